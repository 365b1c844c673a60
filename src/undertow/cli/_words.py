"""How the words of a command line become the options of a command.

Options are the fields of a dataclass, as are a claim's knobs: a field's type says what its flag
takes, and the words under it are its help. tyro reads values, when there are any.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import (
    Any,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from undertow.cli._fields import (
    flag_fields,
    is_required,
    metavar,
    positional,
    spelled,
    takes,
    without_none,
)
from undertow.cli._help import show_help
from undertow.lab import Bound

# Options that say what becomes of a result. Every other one is an argument of the library's
# function that the command calls, under its name or one that the command's PARAMETERS give.
OUTPUT = frozenset({"json", "html", "csv", "every", "expect"})
# Options that say what other options count in; a command converts these before it calls.
UNITS = frozenset({"sequence_length"})

_Options = TypeVar("_Options")


class UsageError(Exception):
    """The arguments make no sense; the message says what would."""


@dataclass(frozen=True)
class Flag:
    """A flag as it was given, such as `--batch-size`, and the words after it.

    Where it is `joined` to the first by an equals sign, that one is a value whatever it looks like.
    """

    given: str
    values: tuple[str, ...]
    joined: bool = False

    @property
    def name(self) -> str:
        """The field that it names; `no_` stays before one that is switched off."""
        return "help" if self.given == "-h" else self.given.removeprefix("--").replace("-", "_")


def parse(kind: type[_Options], words: Sequence[str], *, command: str, summary: str) -> _Options:
    """The options that the words spell.

    Raises:
        UsageError: a flag that there is not, a value that it does not take, or one that is missing.
        HelpShown: the words have `--help`.
    """
    loose, flags = by_flag(words)
    if any(flag.name == "help" for flag in flags):
        placed = [metavar(kind, name) for name in positional(kind)]
        show_help(" ".join([command, *placed]), summary, kind)
    refuse_unknown(flags, [kind], command)

    wanted = positional(kind)
    whole = []
    for flag in flags:
        taken = _taken(kind, flag, spare=len(wanted) - len(loose) if flag is flags[-1] else 0)
        whole.append(replace(flag, values=flag.values[:taken]))
        loose += flag.values[taken:]
    if len(loose) > len(wanted):
        raise UsageError(
            f"{command}: {loose[len(wanted)]!r} is one word too many; see undertow {command} --help"
        )
    values = read_values(kind, whole, command)
    for name, word in zip(wanted, loose, strict=False):
        flag = Flag(metavar(kind, name), (word,))
        values[name] = _read(get_type_hints(kind)[name], flag, command)
    missing = [
        spelled(kind, field.name)
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if is_required(field) and field.name not in values
    ]
    if missing:
        raise UsageError(f"{command} needs {', '.join(missing)}; see undertow {command} --help")
    options = kind(**values)
    refuse_out_of_bounds(options, command)
    return options


def by_flag(words: Sequence[str]) -> tuple[list[str], list[Flag]]:
    """The words before the first flag, and each flag with all the words after it.

    Raises:
        UsageError: a word is like a flag, with one hyphen.
    """
    loose: list[str] = []
    flags: list[Flag] = []
    for word in words:
        if word[:1] == "-" and word[1:2].isalpha() and word not in ("-h", "-inf"):
            raise UsageError(f"no flag {word!r}; flags start with --")
        if word.startswith("--") or word == "-h":
            given, equals, value = word.partition("=")
            flags.append(Flag(given, (value,) if equals else (), joined=bool(equals)))
        elif flags:
            flags[-1] = replace(flags[-1], values=(*flags[-1].values, word))
        else:
            loose.append(word)
    return loose, flags


def refuse_unknown(
    flags: Iterable[Flag], kinds: Sequence[type], command: str, noun: str = "option"
) -> None:
    """Every flag must be a field of one of these dataclasses.

    Raises:
        UsageError: one is not; the message says which may have been meant.
    """
    for flag in flags:
        if not any(_field_of(kind, flag) for kind in kinds):
            names = {name for kind in kinds for name in flag_fields(kind)}
            known = [f"--{name.replace('_', '-')}" for name in sorted(names)]
            raise UsageError(f"{command}: no {noun} {flag.given}; {close_to(flag.given, known)}")


def refuse_out_of_bounds(options: Any, command: str) -> None:
    """Every option must keep to the bounds in its annotation.

    Raises:
        UsageError: one does not; the message says what it must be.
    """
    for name, hint in get_type_hints(type(options), include_extras=True).items():
        value = getattr(options, name)
        for bound in get_args(hint)[1:]:
            if isinstance(bound, Bound) and value is not None and not bound.allows(value):
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(f"{command}: {flag} must be {bound.words}, got {value}")


def read_values(kind: type, flags: Iterable[Flag], command: str) -> dict[str, Any]:
    """The values of those flags that are fields of a dataclass, by the field's name.

    Raises:
        UsageError: a field does not take such a value.
    """
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for flag in flags:
        name = _field_of(kind, flag)
        if name is None:
            continue
        if hints[name] is not bool:
            values[name] = _read(hints[name], flag, command)
        elif flag.values:
            raise UsageError(f"{command}: {flag.given} takes no value, got {flag.values[0]}")
        else:
            values[name] = flag.name == name
    return values


def arguments(options: Any, parameters: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of the library's function that a command calls, by the parameter's name.

    Args:
        options: the command's options.
        parameters: option -> parameter, where their names differ. Options of one parameter come
            under it as a dictionary.
    """
    own = OUTPUT | UNITS
    chosen = {name: value for name, value in vars(options).items() if name not in own}
    shared = shared_parameters(parameters)
    found: dict[str, Any] = {parameter: {} for parameter in shared}
    for name, value in chosen.items():
        parameter = parameters.get(name, name)
        if parameter in shared:
            found[parameter][name] = value
        else:
            found[parameter] = value
    return found


def in_samples(options: Any, names: Sequence[str], parameters: Mapping[str, str]) -> dict[str, int]:
    """Options that count samples, as whole numbers by the parameter's name.

    With the option `sequence_length` they count tokens unless they say otherwise. What a number of
    tokens was taken for is said on standard error.

    Raises:
        UsageError: one is no count, or no whole number of sequences.
    """
    from undertow import apply
    from undertow.cli._output import remark

    length, found = options.sequence_length, {}
    for name in names:
        word = getattr(options, name)
        if word is None:
            continue
        flag = f"--{name.replace('_', '-')}"
        try:
            count = apply.parse_count(flag, word, sequence_length=length)
        except ValueError as error:
            raise UsageError(str(error).replace("sequence_length", "--sequence-length")) from None
        if length is not None:
            remark(f"{flag} {word}: {count:,} sequences of {length:,} tokens")
        found[parameters.get(name, name)] = count
    return found


def shared_parameters(parameters: Mapping[str, str]) -> set[str]:
    """The parameters that more than one option goes into."""
    names = list(parameters.values())
    return {name for name in names if names.count(name) > 1}


def close_to(given: str, known: Iterable[str]) -> str:
    """Which of the known names may have been meant."""
    names = list(known)
    close = difflib.get_close_matches(given, names)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"


# --- the fields of a dataclass ----------------------------------------------------------------


def _field_of(kind: type, flag: Flag) -> str | None:
    """The field that a flag sets, or none; a switch has a flag for off too."""
    if flag.name in flag_fields(kind):
        return flag.name
    off = flag.name.removeprefix("no_")
    return off if get_type_hints(kind).get(off) is bool else None


def _taken(kind: type, flag: Flag, *, spare: int) -> int:
    """How many of the words after a flag are its own; `spare` of a list's last ones are not."""
    name = _field_of(kind, flag)
    hint = without_none(get_type_hints(kind)[name or flag.name])
    if get_origin(hint) is not tuple:
        return int(flag.joined) if hint is bool else 1
    items = get_args(hint)
    if Ellipsis not in items:
        return len(items)
    return max(len(flag.values) - max(spare, 0), int(flag.joined))


# --- types: how they are written, what they take ----------------------------------------------


def _read(hint: Any, flag: Flag, command: str) -> Any:
    """The value of one flag, by a parser for it alone: so what fails is known, and said here."""
    import tyro

    values = [_plain(word, hint) for word in flag.values]
    words = ["--value", *values]
    if flag.joined:
        words[:2] = [f"--value={values[0]}"]
    alone = dataclasses.make_dataclass("alone", [("value", hint)])
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            value: Any = tyro.cli(alone, args=words).value
    except SystemExit:
        value = math.nan
    if any(item != item for item in (value if isinstance(value, tuple) else (value,))):  # NaN
        got = " ".join(flag.values) or "nothing"
        raise UsageError(f"{command}: {flag.given} takes {takes(hint)}, got {got}")
    return value


def _plain(word: str, hint: Any) -> str:
    """A number such as 5e5, 0.5M or 2k in digits; every other word as it is."""
    plain = without_none(hint)
    kinds = {plain, *(kind for kind in get_args(plain) if kind is int)}
    if not kinds & {int, float} or (not word[:1].isdigit() and word[:1] != "."):
        return word
    if word.isdigit() or word[-1].lower() not in "0123456789.kmbgti":
        return word
    if word[-1].isdigit() and int not in kinds:
        return word
    from undertow import apply

    try:
        return str(apply.parse_count("", word))
    except ValueError:
        return word  # for what reads the value to refuse
