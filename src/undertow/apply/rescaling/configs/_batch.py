"""The batch of a configuration: per device x accumulation x devices, as its keys say it.

What they say must agree; whether a whole batch is one of tokens is told by its size, or left open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from undertow.apply.rescaling.configs._roles import Roles

_TOKENS_AT_MOST, _TOKENS_SURELY = 2**27, 2**20


@dataclass(frozen=True)
class Batch:
    """Samples a step, as a configuration says them.

    Attributes:
        size: over all devices that are counted; None where it is not said.
        counted: whether all devices are.
        world: how many these are; None where it is not said.
        micro: of one device, or None.
        accumulation: batches of a device in a step.
        chunk: whether `micro` is only a way to cut a device's batch.
        unit: `tokens` where the batch is counted in them, `either` where that cannot be told.
        sequence: tokens in a sample, or None.
    """

    size: int | None
    counted: bool
    world: int | None
    micro: int | None
    accumulation: int
    chunk: bool = False
    unit: str = ""
    sequence: int | None = None


def read_batch(roles: Roles) -> Batch:
    """What the keys say of the batch.

    Raises:
        ValueError: they contradict each other.
    """
    micro, total = roles.one("micro"), roles.one("total")
    accumulation, world = roles.one("accumulation"), _world(roles)
    steps = accumulation or 1
    sequence = roles.one("sequence")
    if roles.vocabulary.over_all and micro is not None:
        size = total or micro * steps
        return Batch(size, True, None, micro, steps, sequence=sequence)
    # NeMo cuts a batch by its model's keys, and leaves the trainer's accumulation at 1.
    cut = accumulation is None or (steps == 1 and _in_model(roles))
    chunk = total is not None and micro is not None and cut
    if total is None:
        size = None if micro is None else micro * steps * (world or 1)
        return Batch(size, world is not None, world, micro, steps, sequence=sequence)
    if micro is None:
        unit = _unit(roles, total, 1, sequence)
        return Batch(total, True, world, None, steps, unit=unit, sequence=sequence)
    share = micro * steps * (world or 1)
    unit = "" if accumulation and world and total == share else _unit(roles, total, share, sequence)
    factor = sequence if unit == "tokens" and sequence else 1
    if total % (share * factor) or (world and not chunk and total != share * factor):
        raise ValueError(
            f"{name_of(roles, 'total')} = {total} is not {name_of(roles, 'micro')} = {micro} x "
            f"{f'accumulation {steps}' if accumulation else 'accumulation'} x "
            f"{f'{world} devices' if world else 'devices'}: the configuration contradicts itself"
        )
    if world is None and not chunk:
        world = total // (share * factor)
    return Batch(total, True, world, micro, steps, chunk, unit, sequence)


def _in_model(roles: Roles) -> bool:
    return any(entry.section == "model" for entry in roles.of("total"))


def _unit(roles: Roles, total: int, share: int, sequence: int | None) -> str:
    """Whether a whole batch is counted in tokens; `either` where it may be.

    No batch has been reported of more than 2^27 tokens; and fewer than 2^20 come in sequences.
    """
    if "token" in name_of(roles, "total"):
        return "tokens"
    if sequence is None or total % (share * sequence):
        return ""
    if total * sequence > _TOKENS_AT_MOST:
        return "tokens"
    return "either" if total * sequence > _TOKENS_SURELY else ""


def name_of(roles: Roles, role: str) -> str:
    """The first key that has a role."""
    return str(roles.of(role)[0].leaf)


def _world(roles: Roles) -> int | None:
    """How many workers see samples of their own."""
    world, devices, nodes = roles.one("world"), roles.one("devices"), roles.one("nodes")
    if any(entry.leaf.name == "n_gpu" for entry in roles.of("devices")):
        if world is None:
            return None if devices is None else int(devices)
        return int(world) * int(devices or 1)  # of each process, in one DataParallel
    product = None if devices is None else devices * (nodes or 1)
    if world is None:
        world = product
    elif product is not None and nodes is not None and product != world:
        raise ValueError(
            f"{name_of(roles, 'world')} = {world} is not {name_of(roles, 'devices')} = {devices} x "
            f"{name_of(roles, 'nodes')} = {nodes}: the configuration contradicts itself"
        )
    one_copy, copies = together(roles), roles.one("copies")
    if world is None:
        return None if copies is None else int(copies)
    if world % one_copy:
        raise ValueError(f"{world} devices do not divide into copies of {one_copy}")
    if copies is not None and copies != world // one_copy:
        raise ValueError(
            f"{name_of(roles, 'copies')} = {copies} is not {world} devices / {one_copy} that hold "
            "a copy of the model between them: the configuration contradicts itself"
        )
    return int(world) // one_copy


def together(roles: Roles) -> int:
    """How many devices hold one copy of the model between them."""
    return math.prod(entry.value for entry in roles.of("parallel"))
