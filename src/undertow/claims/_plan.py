"""What a run of a claim is: knobs that a preset and its changes give, and the trials they make."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from undertow import lab
from undertow.claims._claim import BUILT_IN, Claim, errors_of
from undertow.claims._overview import RUNS
from undertow.claims._registry import by_value, get


@dataclass(frozen=True)
class Plan:
    """Everything that determines a run: `changed` are the knobs that differ from the preset's."""

    claim: Claim
    preset: str
    seed: int
    changed: Mapping[str, Any]
    knobs: Any

    @cached_property
    def study(self) -> lab.Study:
        """The trials, once the claim's parts are seen to be sound."""
        config = {
            "claim": self.claim.name,
            "source": self.claim.source,
            "preset": self.preset,
            "seed": self.seed,
            "knobs": dict(self.changed),
        }
        with errors_of(self.claim.source):
            self.claim.check_parts()
            self.claim.predictions(self.knobs)  # written before the run, so sound before it
            experiments = self.claim.experiments(self.knobs, self.seed)
            by_value(self.claim)
            study = lab.Study(self.claim.name, experiments, config=config)
        if not len(study):
            raise ValueError(f"{self.claim.name} has no trials with these knobs")
        return study

    def default_out(self) -> Path:
        """The folder of a run that was given none."""
        name = f"{self.claim.name}-{self.preset}-seed{self.seed}"
        if self.changed:
            content = json.dumps(dict(self.changed), sort_keys=True).encode()
            name += f"-{hashlib.sha256(content).hexdigest()[:8]}"
        return RUNS / name


def make_plan(claim: Claim, preset: str, seed: int, overrides: Mapping[str, Any]) -> Plan:
    """The run of a preset with some of its knobs changed, by their flat names."""
    lab.check_seed(seed)
    base = claim.preset(preset)
    try:
        knobs = base.with_values(overrides)
    except ValueError as error:
        raise ValueError(f"{claim.name}: {error}") from error
    flat, given = base.flat(), knobs.flat()
    changed = {name: given[name] for name in overrides if given[name] != flat[name]}
    return Plan(claim, preset, seed, changed, knobs)


def stored_plan(store: lab.Store) -> Plan:
    """The run that a folder holds, by its config.json."""
    stored = store.config.get("config") or {}
    try:
        claim, preset, seed, knobs = (stored[key] for key in ("claim", "preset", "seed", "knobs"))
    except KeyError as error:
        raise ValueError(
            f"{store.path} holds no run of a claim (its config.json has no {error.args[0]!r});"
            " start one with: undertow reproduce CLAIM"
        ) from error
    source = stored.get("source", BUILT_IN)
    try:
        found = get(source if os.path.isabs(source) else claim)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{store.path} holds a run of the claim {claim}, whose file is no longer at {source};"
            " put it back there"
        ) from error
    return make_plan(found, preset, seed, {name: _as_knob(knobs[name]) for name in knobs})


def _as_knob(value: Any) -> Any:
    """JSON has lists where knobs have tuples."""
    return tuple(_as_knob(item) for item in value) if isinstance(value, list) else value
