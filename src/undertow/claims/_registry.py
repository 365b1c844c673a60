"""Which claims there are. A claim is a module of this package with a `CLAIM`, named here once."""

from __future__ import annotations

import difflib
import importlib

from undertow.claims._claim import Claim

ALL = (
    "low-rank",
    "janus",
    "deep-relu-limit",
    "sgd-noise",
    "rank-one-features",
    "momentum",
    "square-loss",
    "adaptive-sde",
    "matrix-sensing",
    "greedy-low-rank",
)
"""The names in the order in which they are shown; the module `low_rank` is the claim `low-rank`."""


def get(name: str) -> Claim:
    """The claim that the command line calls `name`; its module is imported on first use.

    Raises:
        ValueError: no claim has this name; the message lists close matches.
    """
    if name not in ALL:
        close = difflib.get_close_matches(name, ALL)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(ALL)}."
        raise ValueError(f"no claim is called {name!r}; {hint}")
    return importlib.import_module(f"undertow.claims.{name.replace('-', '_')}").CLAIM
