"""Pickles read as data: no class is looked up, nothing is called, no state is set.

What a pickle would call is written down as a `Call`, what it would import as a `Named`. A budget
bounds what a small file can ask for, so that any bytes end in a value or in one `PickledDataError`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

_ENCODED_BYTES = 2**28  # made of text that may be named again and again
_PLAIN_INT = 2**60  # larger ones collide when hashed, by the million where a file means them to
_MARK = object()


class PickledDataError(ValueError):
    """Bytes that are no pickle, are cut off, or ask for more than the budget allows."""


@dataclass(frozen=True)
class Named:
    """A class or function that the pickle names; it is not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False)
class Call:
    """What the pickle would have called, with the state that it would have set."""

    function: Any
    arguments: Any
    state: Any = None
    items: list[Any] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"{self.function}(...)" if isinstance(self.function, Named) else "(...)"


@dataclass(frozen=True, eq=False)
class Persistent:
    """What lies outside the pickle, such as the bytes of a tensor."""

    key: Any


def read_pickle(
    stream: BinaryIO, *, objects: int, strings: Literal["bytes", "text"] = "text"
) -> Any:
    """The value of the pickle at the stream's place, made of plain containers, numbers and text.

    The stream ends behind it. Ordered dictionaries are dictionaries; bytes that protocol 2 spells
    as a call of `_codecs.encode` are bytes.

    Args:
        stream: anything with `read`, `readline` and `tell`.
        objects: how many steps it may take, each of which makes an object at most.
        strings: what the strings of Python 2 become.

    Raises:
        PickledDataError: there is no whole pickle, or a larger one than that.
    """
    machine = _Machine(strings)
    made = 0
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            made += 1
            if made > objects:
                raise PickledDataError(f"it makes more than {objects:,} objects")
            if opcode.name == "STOP":
                return machine.stack.pop()
            step = _STEPS.get(opcode.name)
            if step is None:
                raise PickledDataError(f"it uses {opcode.name}")
            step(machine, argument)
    except PickledDataError:
        raise
    except Exception as error:  # whatever damaged bytes bring about
        reason = str(error).split("\n")[0][:80]
        raise PickledDataError(f"{type(error).__name__}: {reason}") from error
    raise PickledDataError("it has no end")


class _Machine:
    """The stack and the memo of a pickle that is being read."""

    def __init__(self, strings: Literal["bytes", "text"]) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.strings = strings
        self.encoded = 0

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise PickledDataError("it takes a mark for a value")
        return value

    def top(self) -> Any:
        value = self.stack[-1]
        if value is _MARK:
            raise PickledDataError("it takes a mark for a value")
        return value

    def since_mark(self) -> list[Any]:
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise PickledDataError("it lacks a mark")
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values

    def old_string(self, value: str) -> None:
        """A string of Python 2, which pickletools reads as Latin 1."""
        encoded = value.encode("latin1")
        self.push(encoded if self.strings == "bytes" else encoded.decode("utf-8", "replace"))

    def extend(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Call):
            target.items += values
        elif isinstance(target, list):
            target += values
        else:
            raise PickledDataError(f"it appends to {type(target).__name__}")

    def set_items(self, values: list[Any]) -> None:
        target = self.top()
        pairs = zip(values[::2], values[1::2], strict=True)
        if isinstance(target, Call):
            target.items += list(pairs)
        elif isinstance(target, dict):
            target.update((_key(key), value) for key, value in pairs)
        else:
            raise PickledDataError(f"it sets items of {type(target).__name__}")

    def call(self, function: Any, arguments: Any) -> None:
        value = _called(function, arguments)
        if isinstance(value, bytes):
            self.encoded += len(value)
            if self.encoded > _ENCODED_BYTES:
                raise PickledDataError(f"it makes more than {_ENCODED_BYTES:,} bytes of text")
        self.push(value)

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, Call):
            target.state = state
        elif not isinstance(target, dict):  # an ordered dictionary's own attributes are no entries
            raise PickledDataError(f"it sets the state of {type(target).__name__}")


def _key(key: Any) -> Any:
    """A key that hashes in no time: nested tuples and huge numbers may not."""
    if isinstance(key, str | bytes | bool | None):
        return key
    if isinstance(key, int) and abs(key) < _PLAIN_INT:
        return key
    return Call(None, (key,))


def _called(function: Any, arguments: Any) -> Any:
    if function == Named("collections", "OrderedDict") and isinstance(arguments, tuple):
        if not arguments:
            return {}
        if len(arguments) == 1 and isinstance(arguments[0], list):
            return {_key(key): value for key, value in arguments[0]}
    if function == Named("_codecs", "encode"):
        match arguments:
            case (str(text), "latin1"):
                return text.encode("latin1")
    return Call(function, arguments)


def _global(machine: _Machine, names: str) -> None:
    module, name = names.split(" ", 1)
    machine.push(Named(module, name))


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise PickledDataError("it names a class by something else than text")
    machine.push(Named(module, name))


def _with_class(machine: _Machine, _: Any) -> None:
    function, *arguments = machine.since_mark()
    machine.call(function, tuple(arguments))


def _instance(machine: _Machine, names: str) -> None:
    arguments = tuple(machine.since_mark())
    module, name = names.split(" ", 1)
    machine.call(Named(module, name), arguments)


def _reduce(machine: _Machine, _: Any) -> None:
    arguments = machine.pop()
    machine.call(machine.pop(), arguments)


def _new_with_keywords(machine: _Machine, _: Any) -> None:
    keywords, arguments = machine.pop(), machine.pop()
    machine.call(machine.pop(), (arguments, keywords))


def _last(count: int) -> Callable[[_Machine, Any], None]:
    def step(machine: _Machine, _: Any) -> None:
        values = [machine.pop() for _ in range(count)]
        machine.push(tuple(reversed(values)))

    return step


def _append(machine: _Machine, _: Any) -> None:
    value = machine.pop()
    machine.extend([value])


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _put(machine: _Machine, place: int) -> None:
    machine.memo[place] = machine.top()


def _dictionary(machine: _Machine, _: Any) -> None:
    values = machine.since_mark()
    machine.push({})
    machine.set_items(values)


def _pushed(machine: _Machine, value: Any) -> None:
    machine.push(value)


_Step = Callable[[_Machine, Any], None]
_STEPS: dict[str, _Step] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(
        (
            *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
            *("FLOAT", "BINFLOAT", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
            *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        ),
        _pushed,
    ),
    **dict.fromkeys(
        ("STRING", "BINSTRING", "SHORT_BINSTRING"),
        lambda machine, value: machine.old_string(value),
    ),
    "BYTEARRAY8": lambda machine, value: machine.push(bytes(value)),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": lambda machine, _: machine.push(_MARK),
    "POP": lambda machine, _: machine.stack.pop(),
    "POP_MARK": lambda machine, _: machine.since_mark().clear(),
    "DUP": lambda machine, _: machine.push(machine.top()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push(Call(Named("builtins", "set"), ())),
    "LIST": lambda machine, _: machine.push(machine.since_mark()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "FROZENSET": lambda machine, _: machine.push(
        Call(Named("builtins", "frozenset"), (), items=machine.since_mark())
    ),
    "DICT": _dictionary,
    **{f"TUPLE{count}": _last(count) for count in (1, 2, 3)},
    "APPEND": _append,
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.since_mark()),
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "INST": _instance,
    "OBJ": _with_class,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _new_with_keywords,
    "BUILD": lambda machine, _: machine.build(),
    "PERSID": lambda machine, key: machine.push(Persistent(key)),
    "BINPERSID": lambda machine, _: machine.push(Persistent(machine.pop())),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    "MEMOIZE": lambda machine, _: _put(machine, len(machine.memo)),
    **dict.fromkeys(
        ("GET", "BINGET", "LONG_BINGET"),
        lambda machine, place: machine.push(machine.memo[place]),
    ),
}
