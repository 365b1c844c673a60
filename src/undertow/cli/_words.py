"""How the words of a command line become the options of a command, and how its help is shown.

Options are the fields of a dataclass, as are a claim's knobs: a field's type says what its flag
takes, and the words under it are its help. tyro reads values and lays out help, when there are any.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import math
import os
import shutil
import sys
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, replace
from functools import partial
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NoReturn,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from undertow.lab import Bound

# Options that say what becomes of a result. Every other one is an argument of the library's
# function that the command calls, under its name or one that the command's PARAMETERS give.
OUTPUT = frozenset({"json", "html", "csv", "every", "expect"})
# Options that say what other options count in; a command converts these before it calls.
UNITS = frozenset({"sequence_length"})

_Options = TypeVar("_Options")


def program() -> str:
    """What this was called as, for its usage."""
    by_module = os.path.basename(sys.argv[0]) == "__main__.py"
    return "python -m undertow" if by_module else "undertow"


class UsageError(Exception):
    """The arguments make no sense; the message says what would."""


class HelpShown(Exception):
    """Help was asked for and has been printed: there is nothing left to do."""


@dataclass(frozen=True)
class Shown:
    """How help shows the value of a field; one that is positional has no flag."""

    metavar: str
    positional: bool = False


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
        positional = [_metavar(kind, name) for name in _positional(kind)]
        show_help(" ".join([command, *positional]), summary, kind)
    refuse_unknown(flags, [kind], command)

    wanted = _positional(kind)
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
        placed = Flag(_metavar(kind, name), (word,))
        values[name] = _read(get_type_hints(kind)[name], placed, command)
    missing = [
        _spelled(kind, field.name)
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if _is_required(field) and field.name not in values
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
            names = {name for kind in kinds for name in _flag_fields(kind)}
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


def show_help(usage: str, summary: str, *parts: Any) -> NoReturn:
    """Print what a command does and its options.

    Args:
        usage: the command and its positional words.
        summary: a sentence.
        parts: dataclasses whose fields are the options, or instances that hold their defaults.

    Raises:
        HelpShown: always.
    """
    import tyro

    nameless = tyro.conf.arg(name="")
    fields = [(f"part_{i}", Annotated[_dressed(part), nameless]) for i, part in enumerate(parts)]
    printed = io.StringIO()
    with (
        _as_wide_as(width := terminal_width()),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        tyro.cli(
            dataclasses.make_dataclass("whole", fields),
            args=["--help"],
            description="-",
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    # tyro neither wraps what stands above the options, nor keeps the usage within 80 columns.
    _, _, options = printed.getvalue().partition("\n\n-\n\n")
    used = textwrap.fill(f"usage: {program()} {usage} [OPTIONS]", width, subsequent_indent="  ")
    print(f"{used}\n\n{textwrap.fill(summary, width)}\n")
    print("\n".join(line.rstrip() for line in options.rstrip().splitlines()))
    raise HelpShown


def terminal_width() -> int:
    """The columns that help takes, 40 at the least."""
    return max(40, min(shutil.get_terminal_size().columns, 80))


@contextlib.contextmanager
def _as_wide_as(width: int) -> Iterator[None]:
    """Tell tyro the width of the terminal, where it would come to no end on a very narrow one."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(width)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


# --- the fields of a dataclass ----------------------------------------------------------------


def _positional(kind: type) -> list[str]:
    hints = get_type_hints(kind, include_extras=True)
    return [name for name, hint in hints.items() if (shown := _shown(hint)) and shown.positional]


def _flag_fields(kind: type) -> list[str]:
    """The fields that have a flag: a nested dataclass has none, its own fields do."""
    hints = get_type_hints(kind)
    fields = [field.name for field in dataclasses.fields(kind)]
    skipped = {*_positional(kind), *(n for n in fields if dataclasses.is_dataclass(hints[n]))}
    return [name for name in fields if name not in skipped]


def _field_of(kind: type, flag: Flag) -> str | None:
    """The field that a flag sets, or none; a switch has a flag for off too."""
    if flag.name in _flag_fields(kind):
        return flag.name
    off = flag.name.removeprefix("no_")
    return off if get_type_hints(kind).get(off) is bool else None


def _shown(hint: Any) -> Shown | None:
    return next((extra for extra in get_args(hint)[1:] if isinstance(extra, Shown)), None)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _spelled(kind: type, name: str) -> str:
    """`PATH`, or `--batch-size N`."""
    metavar = _metavar(kind, name)
    return metavar if name in _positional(kind) else f"--{name.replace('_', '-')} {metavar}"


def _metavar(kind: type, name: str) -> str:
    hint = get_type_hints(kind, include_extras=True)[name]
    shown = _shown(hint)
    return shown.metavar if shown else _short(get_type_hints(kind)[name])


def _taken(kind: type, flag: Flag, *, spare: int) -> int:
    """How many of the words after a flag are its own; `spare` of a list's last ones are not."""
    name = _field_of(kind, flag)
    hint = _without_none(get_type_hints(kind)[name or flag.name])
    if get_origin(hint) is not tuple:
        return int(flag.joined) if hint is bool else 1
    items = get_args(hint)
    if Ellipsis not in items:
        return len(items)
    return max(len(flag.values) - max(spare, 0), int(flag.joined))


# --- types: how they are written, what they take ----------------------------------------------


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else hint
    return hint


def _short(hint: Any) -> str:
    """What stands for a value in help; short, so that many options fit on a screen."""
    plain = _without_none(hint)
    if get_origin(plain) is tuple:
        items = get_args(plain)
        if Ellipsis in items:
            return f"{_short(items[0])}..."
        return " ".join(map(_short, items))
    if get_origin(plain) is Literal:
        return "NAME"
    return {int: "N", float: "X", Path: "PATH"}.get(plain, "TEXT")


def _takes(hint: Any) -> str:
    """What a flag takes, in words."""
    plain = _without_none(hint)
    if get_origin(plain) is tuple:
        items = get_args(plain)
        if Ellipsis in items:
            return f"a list, each {_takes(items[0])}"
        return " and ".join(map(_takes, items))
    if get_origin(plain) is Literal:
        return f"one of {', '.join(map(str, get_args(plain)))}"
    return {int: "a whole number", float: "a number", Path: "a path"}.get(plain, "a value")


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
        raise UsageError(f"{command}: {flag.given} takes {_takes(hint)}, got {got}")
    return value


def _plain(word: str, hint: Any) -> str:
    """A number such as 5e5, 0.5M or 2k in digits; every other word as it is."""
    plain = _without_none(hint)
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


def _sentence(words: str | None) -> str | None:
    """Words about a flag, as a sentence: a comment beside a field begins small and ends openly."""
    if not words or words.endswith("."):
        return words
    return f"{words[0].upper()}{words[1:]}."


def _dressed(part: Any) -> Any:
    """The same dataclass with short placeholders, and without defaults that say nothing."""
    import tyro

    from undertow.lab import comments

    kind = part if isinstance(part, type) else type(part)
    hints, said = get_type_hints(kind), comments(kind)
    fields: list[tuple[str, Any, Any]] = []
    for field in dataclasses.fields(kind):
        name, filled, hint = field.name, dataclasses.field(), None
        if not _is_required(field):
            filled = dataclasses.field(default_factory=partial(getattr, part, name))
            default = getattr(part, name)
            hint = "" if default is None or default is False else None
        if dataclasses.is_dataclass(hints[name]):
            fields.append((name, Annotated[hints[name], tyro.conf.Suppress], filled))
            continue
        metavar = None if hints[name] is bool else _metavar(kind, name)
        look = [
            tyro.conf.arg(metavar=metavar, help=_sentence(said.get(name)), help_behavior_hint=hint)
        ]
        if name in _positional(kind):
            look.append(tyro.conf.Positional)
        fields.append((name, Annotated[hints[name], *look], filled))
    # A subclass: tyro finds the words about a field where it was written.
    return dataclasses.make_dataclass(kind.__name__, fields, bases=(kind,), frozen=True)
