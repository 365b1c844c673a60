"""Which weight of one source is which of another: by name, by name but for a prefix, by sizes.

Wrappers put words before names (torch.compile `_orig_mod`, DistributedDataParallel `module`,
FSDP, sentence-transformers `0.auto_model`, a bare model's head `model`); the weights are the same.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
_LEADS = {
    *("module", "model", "base_model", "auto_model", "transformer", "backbone", "net", "network"),
    *("language_model", "lightning_module", "student", "teacher", "ema", "ema_model"),
}
_KOHYA = re.compile(r"^lora_(unet|te\d?|transformer|text_encoder)_")


class Named(Protocol):
    """What has a name and a shape: a weight, or a change of one."""

    @property
    def name(self) -> str:
        """As its source calls it."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""


@dataclass(frozen=True)
class Partners:
    """For each name of one source its partner's in the other, and what was assumed."""

    of: Mapping[str, str]
    notes: tuple[str, ...]


def partners(ours: Sequence[Named], theirs: Sequence[Named]) -> Partners:
    """Pairs of one shape whose names are the same, or the same after one prefix.

    Raises:
        ValueError: none match, or several prefixes do equally well.
    """
    here, there = _plain(ours), _plain(theirs)
    notes = []
    if any(name != item.name for name, item in [*here.items(), *there.items()]):
        notes.append("names were compared without _orig_mod, _fsdp_wrapped_module and the like")
    found = {name: name for name in here if name in there and _same(here[name], there[name])}
    prefix, pairs = _best_prefix(here, there, found)
    if len(pairs) > len(found):
        found |= {name: pairs[name] for name in pairs if name not in found}
        taken = set()
        found = {a: b for a, b in found.items() if not (b in taken or taken.add(b))}  # type: ignore[func-returns-value]
        plural = "name was" if len(pairs) == 1 else "names were"
        notes.append(f"{len(pairs)} {plural} matched {prefix}")
    if not found:
        found = _underscored(here, there)
    if not found:
        first, other = next(iter(here.values())), next(iter(there.values()))
        raise ValueError(
            "against shares no matrix of the same name and shape: "
            f"{_described(first)} here, {_described(other)} there"
        )
    return Partners({here[a].name: there[b].name for a, b in found.items()}, tuple(notes))


def _plain(items: Iterable[Named]) -> dict[str, Named]:
    """Items by their names without wrappers' words, where that leaves them distinct."""
    items = list(items)
    plain = {_WRAPPERS.sub("", item.name): item for item in items}
    return plain if len(plain) == len(items) else {item.name: item for item in items}


def _same(one: Named, other: Named) -> bool:
    return one.shape == other.shape


def _best_prefix(
    here: Mapping[str, Named], there: Mapping[str, Named], found: Mapping[str, str]
) -> tuple[str, dict[str, str]]:
    """The prefix that matches most names, in words, and the pairs; the same names at least."""
    options: list[tuple[str, str]] = []
    counts: Counter[tuple[str, str]] = Counter()
    for name, item in here.items():
        for a, b in _splits(name, there):
            if _same(item, there[b]):
                counts[a, ""] += 1
    for name, item in there.items():
        for a, b in _splits(name, here):
            if _same(item, here[b]):
                counts["", a] += 1
    # Two different prefixes: what all names of a side share comes off first.
    ours, others = _shared_prefix(here), _shared_prefix(there)
    if ours and others and ours != others and (_wraps(ours) or _wraps(others)):
        counts[ours, others] += len(_pairs(here, there, ours, others))
    if not any(counts.values()):
        lead, behind = (prefix if _wraps(prefix) else "" for prefix in (ours, others))
        counts += _after_shared(here, there, lead, behind)
    if not any(counts.values()):
        return "", {}
    most = max(counts.values())
    options = [key for key, count in counts.items() if count == most]
    if most <= len(found):
        return "", {}
    paired = [_pairs(here, there, *option) for option in options]
    if any(pairs != paired[0] for pairs in paired):
        said = " and ".join(repr(a or b) for a, b in options[:3])
        raise ValueError(
            f"against matches as well with {said} before its names; give the part that is meant "
            "as a file of its own"
        )
    (a, b), pairs = options[0], paired[0]
    words = [f"without {a!r} here" if a else "", f"without {b!r} in against" if b else ""]
    return " and ".join(word for word in words if word), pairs


def _pairs(
    here: Mapping[str, Named], there: Mapping[str, Named], ours: str, others: str
) -> dict[str, str]:
    """The names that are the same when each side's prefix is taken off."""
    renamed = {name: others + name.removeprefix(ours) for name in here if name.startswith(ours)}
    return {
        name: other
        for name, other in renamed.items()
        if other in there
        and _same(here[name], there[other])
        # `weight` alone says too little where both sides lose what stands before it.
        and (not (ours and others) or "." in name.removeprefix(ours))
    }


def _after_shared(
    here: Mapping[str, Named], there: Mapping[str, Named], ours: str, others: str
) -> Counter[tuple[str, str]]:
    """Pairs of prefixes of which one is all of its side's, and the other a part's."""
    counts: Counter[tuple[str, str]] = Counter()
    stripped = {name.removeprefix(ours): item for name, item in here.items()}
    for name, item in there.items():
        for lead, rest in _splits(name, stripped):
            if ours and _same(item, stripped[rest]):
                counts[ours, lead] += 1
    stripped = {name.removeprefix(others): item for name, item in there.items()}
    for name, item in here.items():
        for lead, rest in _splits(name, stripped):
            if others and _same(item, stripped[rest]):
                counts[lead, others] += 1
    return counts


def _splits(name: str, others: Mapping[str, Named]) -> Iterable[tuple[str, str]]:
    """Where a name is a prefix and a name of the others: both."""
    for place, character in enumerate(name):
        if character == "." and name[place + 1 :] in others:
            yield name[: place + 1], name[place + 1 :]


def _shared_prefix(names: Iterable[str]) -> str:
    parts = [name.split(".")[:-1] for name in names]
    shared = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return "".join(f"{part}." for part in shared)


def _wraps(prefix: str) -> bool:
    """Whether a prefix is made of words that wrappers put before names, and of numbers."""
    return all(part in _LEADS or part.isdigit() for part in prefix.split(".")[:-1])


def _underscored(here: Mapping[str, Named], there: Mapping[str, Named]) -> dict[str, str]:
    """Names as kohya's adapters spell them, with underscores for dots."""
    spelled: dict[str, list[str]] = {}
    for name in there:
        spelled.setdefault(name.removesuffix(".weight").replace(".", "_"), []).append(name)
    pairs = {}
    for name, item in here.items():
        target = _KOHYA.sub("", name.removesuffix(".weight"))
        fitting = [
            one
            for whole, names in spelled.items()
            if whole == target or whole.endswith(f"_{target}")
            for one in names
            if _same(item, there[one])
        ]
        if target != name and len(fitting) == 1:
            pairs[name] = fitting[0]
    return pairs


def _described(item: Named) -> str:
    return f"{item.name} ({item.shape[0]} x {item.shape[1]})"
