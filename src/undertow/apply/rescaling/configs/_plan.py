"""From one batch of a configuration to another, and the keys that say the new one.

Memory is what a device's batch is bounded by, so it stays where accumulation can make up for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from undertow.apply.rescaling._units import Quantity, as_given
from undertow.apply.rescaling.configs import _keys
from undertow.apply.rescaling.configs._batch import Batch, together
from undertow.apply.rescaling.configs._keys import PLAIN
from undertow.apply.rescaling.configs._roles import Entry, Roles
from undertow.apply.rescaling.configs._tree import Leaf, Path
from undertow.predict import Change

_SECTION_OF = {"accumulate_grad_batches": "trainer", "accumulative_counts": "optim_wrapper"}


@dataclass(frozen=True)
class Plan:
    """From which batch to which, and what is to be written for it.

    Attributes:
        from_batch: of all workers, now.
        to_batch: and after.
        changes: new values by path.
        said: the same as changes to show.
        notes: what was taken for granted.
    """

    from_batch: int
    to_batch: int
    changes: Mapping[Path, Any]
    said: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()


def plan(
    roles: Roles,
    batch: Batch,
    *,
    from_batch: Quantity | None,
    to_batch: Quantity,
    from_workers: int,
    to_workers: int | None,
) -> Plan:
    """Which batches are meant, and the keys that say the new one.

    Raises:
        ValueError: what is given contradicts the configuration, or the new batch does not divide.
    """
    notes: list[str] = []
    workers = to_workers or from_workers
    if batch.size is None:
        if from_batch is None:
            raise ValueError("from_batch is needed: the configuration does not say it")
        if from_batch.unit != to_batch.unit:
            raise ValueError("from_batch and to_batch must be in one unit")
        old, new = from_batch.value * from_workers, to_batch.value * workers
        return _unsaid(roles, old, new, to_batch)
    before = None if from_batch is None else _samples("from_batch", from_batch, batch)
    after = _samples("to_batch", to_batch, batch)
    unsaid = roles.vocabulary.unsaid
    if unsaid != 1 and not roles.of("accumulation") and before != batch.micro:
        raise ValueError(
            f"{roles.vocabulary.accumulation} is not given, and {roles.vocabulary.name} takes "
            f"{unsaid} then: give it"
        )
    if batch.counted:
        old, new, world = _counted(batch, before, after, from_workers, to_workers)
    else:
        bare = all(entry.leaf.name in _keys.BARE for entry in roles.of("micro"))
        plain = roles.vocabulary is PLAIN and bare and not roles.of("accumulation")
        old, new, world = _of_one_device(
            batch, before, after, from_workers, to_workers, notes, plain
        )
    was = batch.world if batch.counted else from_workers
    if old == new and world in (was, None):
        return Plan(old, new, {}, notes=(*notes, f"the batch is {new} already: nothing is moved"))
    moved = world if to_workers not in (None, was) else None
    changes, said = _written(roles, batch, new, world, moved, notes)
    return Plan(old, new, changes, tuple(said), tuple(notes))


def _unsaid(roles: Roles, old: int, new: int, to_batch: Quantity) -> Plan:
    """Where no key says the batch: one that does is added, if any may be, so that it is told."""
    names = roles.of("name", "type")
    open_at_top = any(
        len(e.leaf.path) == 1 and not (e.leaf.closed or e.leaf.fixed) for e in roles.entries
    )
    if old == new:
        return Plan(old, new, {}, notes=(f"the batch is {new} already: nothing is moved",))
    if roles.vocabulary is PLAIN and names and open_at_top and not to_batch.unit:
        said = Change("batch_size", None, to_batch.value, "to_batch", "no key said the batch")
        return Plan(old, new, {("batch_size",): to_batch.value}, (said,))
    note = (
        f"no key says the batch: set it to {to_batch.value} where the run is told; a second call "
        "would move the rest again"
    )
    return Plan(old, new, {}, notes=(note,))


def _samples(name: str, given: Quantity, batch: Batch) -> int:
    """A batch in the unit of the configuration."""
    if not given.unit or given.unit == (batch.unit or "sequences"):
        return given.value
    if batch.unit == "either":
        raise ValueError(
            f"{name} is in {given.unit}, and the configuration's batch of {batch.size} may be in "
            "tokens or in sequences: give it in the same, without a word"
        )
    if batch.sequence is None:
        raise ValueError(
            f"{name} is in {given.unit}, and the configuration does not say how long a sequence "
            "is: give both batches in one unit"
        )
    if given.unit == "sequences":
        return given.value * batch.sequence
    if given.value % batch.sequence:
        low = given.value // batch.sequence * batch.sequence
        raise ValueError(
            f"{name} = {given.value} tokens is no whole number of sequences of {batch.sequence}; "
            f"near it are {low} and {low + batch.sequence}"
        )
    return given.value // batch.sequence


def _counted(
    batch: Batch, before: int | None, after: int, from_workers: int, to_workers: int | None
) -> tuple[int, int, int | None]:
    """Where the configuration says the batch over all devices."""
    assert batch.size is not None
    new = after * (to_workers or (1 if before is None else from_workers))
    world = batch.world if to_workers is None or batch.world is None else to_workers
    if before is None:
        if from_workers != 1:
            raise ValueError(
                f"from_workers: the configuration counts its workers, {batch.size} samples a step "
                "over all of them; leave from_workers at 1, or give from_batch too"
            )
    elif before * from_workers != batch.size and batch.size != new:
        raise ValueError(
            f"from_batch: the configuration says {batch.size} samples a step, got "
            f"{before * from_workers}; leave from_batch out, or correct one of them"
        )
    return batch.size, new, world


def _of_one_device(
    batch: Batch,
    before: int | None,
    after: int,
    from_workers: int,
    to_workers: int | None,
    notes: list[str],
    plain: bool,
) -> tuple[int, int, int | None]:
    """Where the configuration says the batch of one device, and not how many there are."""
    assert batch.size is not None
    one, workers = batch.size, to_workers or from_workers
    if before is None or before == one:
        if from_workers == 1 and workers == 1 and not plain:
            notes.append(
                "the configuration does not say how many devices there are: both batches are taken "
                "to be those of one"
            )
        return one * from_workers, after * workers, workers
    if one == after and (from_workers != 1 or before % one):
        return after * workers, after * workers, workers  # it has been moved already
    devices = f" = {before // one}" if before % one == 0 and before != one else ""
    raise ValueError(
        f"from_batch: the configuration says {one} samples a step on one device, got {before}; "
        f"leave it out, give from_workers{devices}, and to_batch as that of one device"
    )


def _written(
    roles: Roles,
    batch: Batch,
    new: int,
    world: int | None,
    moved: int | None,
    notes: list[str],
) -> tuple[dict[Path, Any], list[Change]]:
    """The keys of the batch with their new values; those of the workers where these are others."""
    values: dict[str, int] = {"total": new}
    samples = new // batch.sequence if batch.unit == "tokens" and batch.sequence else new
    if moved is not None:
        _move_world(roles, moved, values, notes)
    share = world or 1
    if batch.micro is not None:
        if samples % share:
            raise ValueError(
                f"to_batch: {new} does not divide among {share} devices; near it are "
                f"{new // share * share} and {(new // share + 1) * share}"
            )
        values |= _of_device(roles, batch, samples // share, notes)
    changes: dict[Path, Any] = {}
    said = []
    for role, value in values.items():
        entries = [entry for entry in roles.of(role) if not entry.leaf.fixed]
        if not entries and role == "accumulation" and value != 1:
            entries = [_added(roles)]
        for entry in entries:
            # A list of devices names them, and nobody knows the names of others.
            listed = role == "devices" and not isinstance(entry.leaf.value, int)
            changes[entry.leaf.path] = value if listed else as_given(entry.leaf.value, value)
            said.append(
                Change(str(entry.leaf), entry.value, value, _EQUATIONS[role], _REASONS[role])
            )
    return changes, said


_EQUATIONS = {
    "total": "to_batch",
    "micro": "to_batch / (accumulation x devices)",
    "accumulation": "to_batch / (batch of a device x devices)",
    "world": "to_workers",
    "copies": "to_workers",
    "devices": "to_workers / nodes",
}
_REASONS = {
    "total": "samples in a step",
    "micro": "samples in a step on one device, before they are added up",
    "accumulation": "batches of a device that are added up in a step",
    "world": "devices",
    "copies": "workers",
    "devices": "devices of a node",
}


def _of_device(roles: Roles, batch: Batch, samples: int, notes: list[str]) -> dict[str, int]:
    """The batch of a device and how often it is accumulated, for that many samples."""
    assert batch.micro is not None
    largest = next(size for size in range(min(batch.micro, samples), 0, -1) if samples % size == 0)
    if batch.chunk:
        return {"micro": largest}
    addable = bool(roles.of("accumulation")) or _container(roles) is not None
    if not addable:
        return {"micro": samples}
    if largest == batch.micro:
        notes.append(f"a device's batch stays at {largest}, and accumulation makes up the rest")
    else:
        notes.append(
            f"a device's batch becomes {largest}, the largest up to {batch.micro} that divides "
            f"{samples}"
        )
    return {"micro": largest, "accumulation": samples // largest}


def _move_world(roles: Roles, world: int, values: dict[str, int], notes: list[str]) -> None:
    nodes, devices = roles.one("nodes") or 1, world * together(roles)
    written = [entry for entry in roles.of("world", "devices", "copies") if not entry.leaf.fixed]
    if not written:
        notes.append(f"start it on {world} workers: no key of the configuration says how many")
    elif devices % nodes:
        raise ValueError(f"to_workers: {devices} devices do not divide among {nodes} nodes")
    values |= {"world": devices, "devices": devices // nodes, "copies": world}


def _container(roles: Roles) -> Path | None:
    """Where accumulation may be added: beside the batch, or in the trainer's section."""
    key, micro = roles.vocabulary.accumulation, roles.of("micro")
    if key is None or not micro:
        return None
    if micro[0].leaf.name in _keys.BARE and roles.vocabulary.holds_all:
        return None  # too common a name to say whose program it is, and that it would read the key
    section = _SECTION_OF.get(key)
    if section is None:
        return None if micro[0].leaf.closed else micro[0].leaf.path[:-1]
    for path in (entry.leaf.path for entry in roles.entries if not entry.leaf.closed):
        if section in path[:-1]:
            end = path.index(section) + 1
            return None if isinstance(path[end], int) else path[:end]
    return None


def _added(roles: Roles) -> Entry:
    key, container = roles.vocabulary.accumulation, _container(roles)
    assert key is not None
    assert container is not None
    return Entry(Leaf((*container, key), (key,), 1), "accumulation", 1, "top")
