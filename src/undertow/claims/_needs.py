"""What trials need of the machine they run on, looked for before the first of them runs.

A data set that is missing would be found by every trial, one after the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from undertow import lab


def check_needs(study: lab.Study, store: lab.Store) -> None:
    """Ask what the trials that are not stored yet hold, once each.

    What a field of a trial holds is asked by its method `check`, where it has one, as `data.Images`
    does; the field `device` names a device of PyTorch.

    Raises:
        FileNotFoundError: data are not there.
        ValueError: data are damaged or fewer than asked for, or there is no such device.
    """
    needed = {(name, repr(value)): value for name, value in _needed(study, store)}
    for (name, _), value in needed.items():
        try:
            if name == "device":
                _check_device(value)
            else:
                value.check()
        except (OSError, ValueError, ImportError) as error:
            kind = FileNotFoundError if isinstance(error, OSError | ImportError) else ValueError
            raise kind(f"{study.name} cannot run here: {error}") from error


def _needed(study: lab.Study, store: lab.Store) -> Iterator[tuple[str, Any]]:
    done = set(store.hashes())
    for experiment, identities in study.identities.items():
        trials = study.experiments[experiment].trials
        for identity, trial in zip(identities, trials, strict=True):
            if identity not in done:
                for field in dataclasses.fields(trial):
                    name, value = field.name, getattr(trial, field.name)
                    if callable(getattr(value, "check", None)):
                        yield "source", value
                    elif name == "device" and isinstance(value, str):
                        yield name, value


def _check_device(device: str) -> None:
    if device == "cpu":
        return
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # CUDA that is not built in is an assertion
        why = str(error).split("\n")[0].rstrip(".")
        raise ValueError(f"there is no device {device!r} ({why}); --device cpu would do") from error
