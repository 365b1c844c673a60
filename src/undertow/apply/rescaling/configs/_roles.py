"""Each value of a configuration with its role: by its name, and by the section in which it stands.

Where a name is said twice the values must agree; a number that is none is refused by its key.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from undertow.apply.rescaling import _units
from undertow.apply.rescaling.configs import _keys
from undertow.apply.rescaling.configs._keys import PLAIN, VOCABULARIES, Vocabulary
from undertow.apply.rescaling.configs._tree import Leaf

_STEP_UNITS = ("ba", "it", "iter", "iters", "step", "steps")
_MOST = 10**12  # samples or devices; more than that is a mistake
_PAIRS = ("betas", "milestones")
_COUNTED = ("warmup_steps", "count", "clock")
_ABSENT = ("auto", "none", "null", "???", "")


@dataclass(frozen=True)
class Entry:
    """A value that has a role.

    Attributes:
        leaf: where it stands.
        role: what it means.
        value: it as a number, several, or a name.
        section: the kind of section that it is in; `top` where in none.
    """

    leaf: Leaf
    role: str
    value: Any
    section: str


@dataclass(frozen=True)
class Roles:
    """All entries of a configuration, and what has none.

    Attributes:
        vocabulary: whose configuration it is.
        entries: in the order in which they are written.
        unread: keys without a role.
        left: keys whose value the program fills in ("auto").
    """

    vocabulary: Vocabulary
    entries: tuple[Entry, ...]
    unread: tuple[str, ...]
    left: tuple[str, ...]

    def of(self, *roles: str) -> list[Entry]:
        """The entries of some roles."""
        return [entry for entry in self.entries if entry.role in roles]

    def one(self, role: str) -> Any:
        """The value of a role, or None.

        Raises:
            ValueError: two keys say different values.
        """
        found = self.of(role)
        for entry in found[1:]:
            if entry.value != found[0].value:
                raise ValueError(
                    f"{found[0].leaf} = {shown(found[0].value)} and {entry.leaf} = "
                    f"{shown(entry.value)} contradict each other: both are {_WORDS.get(role, role)}"
                )
        return found[0].value if found else None


_WORDS = {
    "lr": "the learning rate",
    "steps": "the steps of the run",
    "micro": "the batch of one device",
    "total": "the whole batch",
    "accumulation": "how many batches are accumulated",
    "world": "the number of devices",
    "copies": "the number of workers",
}


def shown(value: Any) -> str:
    """A value as it stands in an error."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def roles(leaves: Iterable[Leaf]) -> Roles:
    """What each of these values means.

    Raises:
        ValueError, TypeError: a value is not what its key says, or a key is near one that is known.
    """
    leaves = list(leaves)
    words = {word for leaf in leaves for word in leaf.parts}
    words |= {".".join(leaf.parts[-2:]) for leaf in leaves}
    vocabulary = _vocabulary(words)
    elsewhere = _batches_elsewhere(leaves, vocabulary)
    other_units = {leaf.path[:-1] for leaf in leaves if _counts_no_steps(leaf)}
    entries, unread, left = [], [], []
    for leaf in leaves:
        section = "data" if leaf in elsewhere else _section(leaf)
        role = None if section is None else _role(leaf, section, vocabulary)
        if section == "schedule" and role in _COUNTED and leaf.path[:-1] in other_units:
            role = "stay"
        if leaf.name in ("n_steps", "num_steps") and words & _keys.ENVIRONMENTS:
            role = None
        if role is None or section is None:
            if not leaf.default and not leaf.fixed:
                unread.append(str(leaf))
            if section == "top" and vocabulary is PLAIN and not leaf.default:
                _check_spelling(leaf)
            continue
        if leaf.value is None or _is_absent(leaf.value):
            if leaf.value is not None:
                left.append(str(leaf))
            continue
        value = _value(leaf, role)
        if value is not None:
            entries.append(Entry(leaf, role, value, section))
    return Roles(vocabulary, _settled(entries, vocabulary), tuple(unread), tuple(left))


def _batches_elsewhere(leaves: list[Leaf], vocabulary: Vocabulary) -> list[Leaf]:
    """The batch of training in a section that is not known, where no section that is says one."""

    def says(leaf: Leaf, section: str | None) -> bool:
        role = None if section is None else _role(leaf, section, vocabulary)
        return role in ("micro", "total", "batch") and leaf.value is not None

    if any(says(leaf, _section(leaf)) for leaf in leaves):
        return []
    apart = [leaf for leaf in leaves if _section(leaf) is None and says(leaf, "data")]
    words = [{word for part in leaf.parts for word in part.split("_")} for leaf in apart]
    return [leaf for leaf, own in zip(apart, words, strict=True) if not own & _keys.NO_TRAINING]


def _counts_no_steps(leaf: Leaf) -> bool:
    """Whether a section says that what it counts are tokens, samples or epochs."""
    named = leaf.name in ("units", "unit") and isinstance(leaf.value, str)
    return named and leaf.value.lower() not in _STEP_UNITS


def _vocabulary(words: set[str]) -> Vocabulary:
    for vocabulary in VOCABULARIES:
        if any(marks <= words for marks in vocabulary.marks):
            return vocabulary
    return PLAIN


def _section(leaf: Leaf) -> str | None:
    """The kind of section a value stands in; None where it is somebody else's."""
    kind = "top"
    for part in leaf.parts[:-1]:
        if part.isdigit():
            continue
        found = _keys.SECTIONS.get(part)
        if found is None:
            return None
        if found != "through" and not (found == "training" and kind == "optimizer"):
            kind = found
    return kind


def _role(leaf: Leaf, section: str, vocabulary: Vocabulary) -> str | None:
    name = leaf.name
    if name in _keys.BATCH and section in ("top", "training", "data"):
        return _keys.BATCH[name]
    if section == "data":
        return None
    if section == "schedule":
        return _role_in_schedule(name)
    if section == "model" and name in _keys.BATCH and name not in _keys.BARE:
        role = _keys.BATCH[name]  # NeMo and Megatron keep it there
        return role if role in ("micro", "total", "accumulation", "sequence") else None
    if name in _keys.HYPER:
        role = _keys.HYPER[name]
        if role == "eps" and isinstance(leaf.value, list | tuple):
            return None  # Adafactor's two, which are relative to what they bound
        return role if section != "model" or role in _keys.OF_MODELS else None
    if section == "optimizer":
        if name in _keys.TYPES | _keys.NAMES:
            return "type"
        return "rate" if _is_rate(name) else _keys.BATCH.get(name) if "accum" in name else None
    if name in _keys.STEPS:
        if isinstance(leaf.value, list | tuple) or name == "milestones":
            return "milestones"
        return _keys.STEPS[name]
    if section == "model":
        return _keys.BATCH[name] if name == "batch_size" else None
    if name in _keys.NAMES:
        return "name"
    return _other_role(name)


def _other_role(name: str) -> str | None:
    for role, names in (
        ("count", _keys.COUNTS),
        ("ema", _keys.EMAS),
        ("interval", _keys.INTERVALS),
        ("parallel", _keys.PARALLEL),
        ("clip", _keys.CLIPS),
        ("epochs", _keys.EPOCHS),
        ("stay", _keys.STAY),
    ):
        if name in names:
            return role
    if name in _keys.PEAKS:
        return "peak"
    if name == "lr_base":
        return "lr_base"
    return "rate" if _is_rate(name) else None


def _role_in_schedule(name: str) -> str | None:
    if name in _keys.PEAKS | _keys.RATES or _keys.HYPER.get(name) == "lr":
        return "rate"
    if name in _keys.STEPS and name not in _keys.CLOCKS:
        return "count" if _keys.STEPS[name] == "steps" else _keys.STEPS[name]
    if name in _keys.COUNTS:
        return "count"
    if name in _keys.CLOCKS:
        return "clock"
    return "stay" if name in _keys.STAY | _keys.TYPES else None


def _is_rate(name: str) -> bool:
    return name in _keys.RATES or name.endswith(("_lr", "_learning_rate"))


def _is_absent(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() in _ABSENT


def _check_spelling(leaf: Leaf) -> None:
    """A key of a plain dictionary that is nearly a hyperparameter is one that was misspelt."""
    several = isinstance(leaf.value, list | tuple)
    other = set(leaf.name.split("_")) & _keys.NO_TRAINING or leaf.name in _keys.OTHER_WORDS
    if not several and (other or not _is_number(leaf.value)):
        return
    pairs = {name for name, role in _keys.HYPER.items() if role in _PAIRS}
    known = [
        name
        for name in (*_keys.HYPER, *_keys.STEPS, *_keys.BATCH)
        if (name in pairs) == several
        and leaf.name != f"{name}s"
        and not leaf.name.startswith(f"{name}_")  # weight_decay_end
    ]
    close = get_close_matches(leaf.name, known, n=1, cutoff=0.85)
    if close and close[0] != leaf.name:
        raise ValueError(f"{leaf} is no key that is known; did you mean {close[0]}?")


def _value(leaf: Leaf, role: str) -> Any:
    """The value as its role reads it; None where it stands for nothing given."""
    name, value = str(leaf), leaf.value
    if isinstance(value, bool) and role == "rate" and leaf.name not in _keys.RATES:
        return None  # a switch whose name ends as those of rates do
    if role in ("name", "type", "stay", "epochs", "nesterov", "decoupled_weight_decay"):
        return value
    if role in _PAIRS:
        return _units.numbers(name, value)
    if role in ("steps", "warmup_steps", "count", "clock", "interval", "accumulation"):
        return _count(name, value, role)
    if role in ("micro", "total", "batch", "nodes", "world", "copies", "sequence", "parallel"):
        return _size(name, value)
    if role == "devices":
        return devices(value)
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]  # fairseq's lists of one
    return _units.number(name, value)


def _count(name: str, value: Any, role: str) -> Any:
    if isinstance(value, list | tuple):
        if role == "clock" and len(value) > 1:
            return _units.numbers(name, value)
        if len(value) != 1:
            raise ValueError(f"{name} must be one number, got {value!r}")
        value = value[0]
    if isinstance(value, bool):
        return None
    timed = _units.duration(value)
    if timed is not None:
        if timed[1].lower() not in _STEP_UNITS:
            return None  # epochs, tokens, a share of the run: the same at any batch size
        value = timed[0]
    if isinstance(value, str) and value.strip()[-1:] in ("t", "T"):
        return None  # OLMo's tokens: nobody trains for a trillion steps
    if role in ("interval", "clock", "count") and isinstance(value, str):
        return None  # "epoch", "no"
    found = _units.number(name, value)
    if 0 < found < 1 or found < 0 or (found == 0 and role == "steps"):
        return None  # a share of the run; -1 and 0 stand for "not given"
    if found == float("inf"):
        return None
    if not float(found).is_integer():
        if role in ("interval", "clock"):
            return None
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if role == "accumulation" and found > _MOST:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(found) or (1 if role == "accumulation" else 0)


def _size(name: str, value: Any) -> int | None:
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    found = _units.number(name, value)
    if not float(found).is_integer() or found == 0 or not -1 <= found <= _MOST:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(found) if found > 0 else None  # -1 leaves it to the program


def devices(value: Any) -> int | None:
    """How many devices `devices` names; None where that is left to the machine."""
    if isinstance(value, str) and value.replace(",", "").isdigit():
        value = [word for word in value.split(",") if word] if "," in value else int(value)
    if isinstance(value, list | tuple):
        return len(value) or None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _settled(entries: list[Entry], vocabulary: Vocabulary) -> tuple[Entry, ...]:
    """The same, with those roles that depend on which others are there."""
    there = {entry.role for entry in entries}
    _check_batches(entries, there)
    whole = max(
        (entry.value for entry in entries if entry.role == "epochs" and _is_number(entry.value)),
        default=0,
    )
    peak = "rate" if there & {"lr", "lr_base"} else "lr"
    divided = there & {"accumulation", "devices", "world", "copies"} and not there & {
        "micro",
        "batch",
    }

    def role(entry: Entry) -> str:
        if entry.role == "peak":
            return peak
        if entry.role == "milestones" and whole and max(entry.value, default=0) <= whole:
            return "epoch clock"
        if entry.leaf.name == "warmup" and entry.value <= whole:
            return "epoch clock"
        if entry.role == "batch":
            return "total" if "micro" in there and entry.section != "data" else "micro"
        if entry.leaf.name == "train_batch_size" and divided and not vocabulary.whole:
            return "micro"  # of one device, as diffusers has it
        return entry.role

    return tuple(replace(entry, role=role(entry)) for entry in entries)


def _check_batches(entries: list[Entry], there: set[str]) -> None:
    """Two names that both say "the batch" must say the same."""
    if there & {"accumulation", "devices", "world", "copies", "micro"}:
        return
    bare = [e for e in entries if e.role in ("batch", "total") and e.leaf.name in _keys.BARE]
    for entry in bare[1:]:
        if entry.value != bare[0].value:
            raise ValueError(
                f"{bare[0].leaf} = {bare[0].value} and {entry.leaf} = {entry.value} contradict "
                "each other: both are the batch"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
