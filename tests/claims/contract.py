"""What every claim's test gives to the laws that hold for all claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from undertow.claims import Records


@dataclass(frozen=True)
class Contract:
    """A claim's worlds, and what must become of them.

    Attributes:
        claim: its name.
        tiny: knobs with which the whole claim runs in seconds.
        world: records of a world in which every prediction holds, but for what its keyword
            arguments break; its argument `seeds` says how many there are.
        knobs: with which the worlds are judged.
        refuted: what breaks a world, and the beginning of the check's name that it refutes.
        left_open: what breaks a world, and the beginning of the control's name that catches it.
        bad_knobs: knobs out of range, and what the error must say.
    """

    claim: str
    tiny: Any
    world: Callable[..., Records]
    knobs: Any
    refuted: Sequence[tuple[Mapping[str, Any], str]]
    left_open: Sequence[tuple[Mapping[str, Any], str]]
    bad_knobs: Sequence[tuple[Mapping[str, Any], str]]
