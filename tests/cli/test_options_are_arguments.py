"""Every option is a parameter of the function that its command calls, with the same default."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import pytest

from undertow import apply, claims, predict
from undertow.cli import _rescale, main
from undertow.cli._fields import bounds_of
from undertow.cli._main import COMMANDS
from undertow.cli._words import OUTPUT, UNITS, arguments, shared_parameters

CALLED: dict[str, Callable[..., Any]] = {
    "inspect": apply.inspect,
    "rescale": apply.rescale,
    "forecast": apply.forecast,
    "reproduce": claims.reproduce,
    "resume": claims.resume,
    "report": claims.report,
    "claims": claims.overview,
    "new": claims.write_template,
}


def options_of(command: str) -> Any:
    return importlib.import_module(f"undertow.cli._{command}").Options


def default_of(field: dataclasses.Field[Any]) -> Any:
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default


def test_every_command_is_held_to_it() -> None:
    assert set(CALLED) == set(COMMANDS)


@pytest.mark.parametrize("command", CALLED)
def test_an_option_is_a_parameter_with_the_same_default(command: str) -> None:
    parameters = inspect.signature(CALLED[command]).parameters
    renamed = importlib.import_module(f"undertow.cli._{command}").PARAMETERS
    fields = {field.name: field for field in dataclasses.fields(options_of(command))}
    assert set(renamed) <= set(fields)
    for name, field in fields.items():
        if name in OUTPUT | UNITS:
            assert name not in parameters
            continue
        parameter = renamed.get(name, name)
        assert parameter in parameters, f"--{name} of {command} is no parameter"
        default = default_of(field)
        if default is inspect.Parameter.empty:
            # None there stands for what a configuration says, and a command line has none.
            assert parameters[parameter].default in (inspect.Parameter.empty, None)
        elif parameter in shared_parameters(renamed):
            assert default is None  # not given: another option of that parameter may be
        else:
            assert default == parameters[parameter].default, f"--{name} of {command}"


def test_the_hyperparameters_of_rescale_are_those_that_the_rules_read() -> None:
    shared = shared_parameters(_rescale.PARAMETERS)
    assert shared == {"optimizer_or_dict"}
    hyper = {name for name, parameter in _rescale.PARAMETERS.items() if parameter in shared}
    described = predict.rescale.__doc__ or ""
    assert all(f"`{name}`" in described for name in hyper)


def test_options_of_one_parameter_come_under_it_as_a_dictionary() -> None:
    @dataclasses.dataclass(frozen=True)
    class Options:
        rows: int = 2
        cols: int = 3
        to: str = "there"
        seed: int = 4
        json: bool = True

    found = arguments(Options(), {"rows": "shape", "cols": "shape", "to": "out"})
    assert found == {"shape": {"rows": 2, "cols": 3}, "out": "there", "seed": 4}


@pytest.mark.parametrize("command", CALLED)
def test_every_number_has_bounds_and_out_of_them_is_wrong_usage(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Infinity and a number far below zero are outside all of them."""
    kind = options_of(command)
    required = {
        field.name: ("1" if "x" not in field.name else "x")
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING
    }
    for name, hint in get_type_hints(kind, include_extras=True).items():
        plain = get_type_hints(kind)[name]
        numbers = {int, float} & {plain, *get_args(plain)}
        if not numbers:
            continue
        assert list(bounds_of(hint)), f"--{name} of {command} has no bounds"
        items = get_args(plain)
        values = ["-9"] * (len(items) if plain == (tuple[float, float] | None) else 1)
        words = [name.replace("_", "-"), *values]
        given = [word for each, word in required.items() if each in ("path", "name", "directory")]
        given += ["momentum"] if command == "reproduce" else []
        flags = [
            part
            for each, word in required.items()
            if each not in ("path", "name", "directory", name)
            for part in (f"--{each.replace('_', '-')}", word)
        ]
        status = main([command, *given, *flags, f"--{words[0]}", *words[1:]])
        assert status == 2, words
        assert f"--{words[0]} must be" in capsys.readouterr().err
