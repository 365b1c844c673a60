"""What a claim is: a paper's statement, the knobs of its test, and where its parts are.

A claim is a folder of `experiments`, `predictions` and `figures`, or one file that holds all three.
They are imported on first use, so that naming a claim and showing its knobs loads nothing heavy.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

    from undertow import lab

Records = Mapping[str, "pl.DataFrame"]
"""What a study gave: a frame of like rows for each experiment."""

BUILT_IN = "built-in"
_PRESETS = ("smoke", "small", "paper")
_PARTS = {
    "experiments": ("experiments",),
    "predictions": ("predictions",),
    "figures": ("FIGURES", "table"),
}


@dataclass(frozen=True)
class Claim:
    """A paper's statement, and how it is put to the test.

    Its parts are functions of the module `home`, or where that is a package of its modules:

    - `experiments.experiments(knobs, seed)`: a `lab.Experiment` by name, in the order in which they
      run; the base seed is what every trial's own seed is derived from;
    - `predictions.predictions(knobs)`: a `lab.Prediction` by name, written before the run;
      `predictions.summary(records, knobs)`, if it is there: what to know beside the verdict;
      `predictions.promises_verdict(records, knobs)`, if it is there: whether the knobs are large
      enough to tell, beside the number of seeds;
    - `figures.FIGURES`: `lab.Drawing`s in order; `figures.table(records, knobs)`: the numbers
      behind the verdict, for the terminal and the report.

    Attributes:
        name: what the command line calls it.
        title: the statement in one line.
        paper: authors, title, year and arXiv number or memo.
        statement: what is claimed, in a paragraph.
        corrections: where the literature's wording does not hold, one sentence each.
        presets: `smoke`, `small` and `paper` instances of the claim's `lab.Knobs`.
        costs: what each preset costs, in words.
        home: the module that defines it: `__name__`, in its file.
        least_seeds: with fewer (of the knob `seeds`) no verdict is promised, and an effect that
            rests on fewer, since the others diverged, neither passes nor refutes.
        source: where the claim was found: built in, an entry point, or a path.

    Raises:
        ValueError: a preset is missing, or the knobs have no `seeds`.
    """

    name: str
    title: str
    paper: str
    statement: str
    presets: Mapping[str, Any]
    costs: Mapping[str, str]
    home: str
    corrections: tuple[str, ...] = ()
    least_seeds: int = 8
    source: str = BUILT_IN

    def __post_init__(self) -> None:
        """What every run needs is said when the claim is made, not after its trials have run."""
        missing = [name for name in _PRESETS if name not in self.presets]
        if missing:
            raise ValueError(
                f"presets must hold {', '.join(_PRESETS)}, got none called {missing[0]!r}"
            )
        if not hasattr(self.presets["small"], "seeds"):
            raise ValueError("knobs must have one called seeds, the number of repetitions")

    def preset(self, name: str) -> Any:
        """The knobs of a preset.

        Raises:
            ValueError: there is no such preset; the message says which there are.
        """
        if name not in self.presets:
            known = ", ".join(self.presets)
            raise ValueError(f"preset must be one of {known} for {self.name}, got {name!r}")
        return self.presets[name]

    def experiments(self, knobs: Any, seed: int) -> Mapping[str, lab.Experiment]:
        """The experiments of a configuration and a base seed.

        Raises:
            TypeError: the claim's function gives anything else.
        """
        from undertow.lab import Experiment

        found = self.part("experiments").experiments(knobs, seed)
        return _named("experiments", found, Experiment)

    def predictions(self, knobs: Any) -> Mapping[str, lab.Prediction]:
        """What is predicted, by name, before anything has run.

        Raises:
            TypeError: the claim's function gives anything else.
        """
        from undertow.lab import Prediction

        return _named("predictions", self.part("predictions").predictions(knobs), Prediction)

    def judge(self, records: Records, knobs: Any) -> lab.Verdict:
        """The verdict that the predictions give on records; its summary says why none is promised.

        A list shorter than that of `small` promises none: what the knobs cut away was not tested.
        """
        from undertow import lab

        part, predictions = self.part("predictions"), self.predictions(knobs)
        summary = part.summary(records, knobs) if hasattr(part, "summary") else ""
        whole = len(self.predictions(self.presets["small"]))
        why = ""
        if knobs.seeds < self.least_seeds:
            why = f"{knobs.seeds} seeds promise no verdict; {self.least_seeds} would."
        elif len(predictions) < whole:
            why = f"{len(predictions)} checks promise no verdict; these knobs cut some of {whole}."
        elif hasattr(part, "promises_verdict") and not part.promises_verdict(records, knobs):
            why = "Runs that are so few or so short promise no verdict."
        checks = lab.check_all(predictions, records, least_seeds=self.least_seeds)
        summary = " ".join(filter(None, (summary, why)))
        return lab.decide(checks, summary, promises_verdict=not why)

    def figures(self, records: Records, knobs: Any) -> tuple[lab.Figure, ...]:
        """The charts of the report."""
        drawn = (draw(records, knobs) for draw in self.part("figures").FIGURES)
        return tuple(figure for figure in drawn if figure is not None)

    def table(self, records: Records, knobs: Any) -> pl.DataFrame:
        """The numbers behind the verdict."""
        found: pl.DataFrame = self.part("figures").table(records, knobs)
        return found

    def check_parts(self) -> None:
        """See that all parts are there, before anything is run for them.

        Raises:
            ValueError: one is not; the message names it.
        """
        for part, names in _PARTS.items():
            for name in names:
                if not hasattr(self.part(part), name):
                    raise ValueError(f"{self.name} has no {name}; see claims.Claim")

    def part(self, name: str) -> ModuleType:
        """The module that holds a part: one of the claim's folder, or its only file."""
        home = sys.modules.get(self.home) or importlib.import_module(self.home)
        return importlib.import_module(f"{self.home}.{name}") if hasattr(home, "__path__") else home


@contextlib.contextmanager
def errors_of(path: str | Path) -> Iterator[None]:
    """Tell an error of somebody's own claim in one line, with its place in their file or folder.

    Those of built-in claims are ours, and pass.

    Raises:
        RuntimeError: in place of any error within; that one is its cause.
    """
    if path == BUILT_IN:
        yield
        return
    try:
        yield
    except Exception as error:
        place = str(path)
        within = f"{place}{os.sep}" if Path(path).is_dir() else place
        frames = traceback.extract_tb(error.__traceback__)
        lines = [(frame.filename, frame.lineno) for frame in frames]
        if isinstance(error, SyntaxError):
            lines.append((error.filename or "", error.lineno))
        for file, line in reversed(lines):
            if file.startswith(within):
                place = f"{file}, line {line}"
                break
        raise RuntimeError(f"{place}: {type(error).__name__}: {error}") from error


def _named(part: str, found: Any, kind: type) -> Any:
    """What a part's function gave, where it is a dictionary of things of this kind."""
    if not isinstance(found, Mapping):
        given = type(found).__name__
        raise TypeError(f"{part}() must give a lab.{kind.__name__} by name, got a {given}")
    for name, value in found.items():
        if not isinstance(value, kind):
            given = type(value).__name__
            raise TypeError(f"{part}() must give a lab.{kind.__name__} for {name!r}, got {given}")
    return found
