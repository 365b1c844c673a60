"""What a pass makes of the per-sample gradients that it comes by, parameter by parameter.

Squared norms of all, and the gradients of chosen samples, kept for inner products with the mean
gradient, which is known at the end only; or such inner products at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from undertow.measure.noise._layer_gradients import Gradients, Rows

# Gradients are kept while they, or what they are known by, take no more than so many bytes.
_KEPT_BYTES = 2**26


class Gathering(Protocol):
    """Takes gradients of samples."""

    def take(self, name: str, gradients: Gradients, here: slice) -> Tensor | None:
        """Of one use of a parameter, those of the samples `here`; gives their sum, if it is known.

        One call a use and samples; they add up.
        """
        ...

    def forget(self, name: str) -> None:
        """What was taken of a parameter was not all."""
        ...


class Part(NamedTuple):
    """Gradients of some of the chosen samples: those at this place among them."""

    place: slice
    gradients: Gradients


class Kept:
    """Gradients of chosen samples, while they take little memory.

    Args:
        chosen: of all samples in the order of the data.
    """

    def __init__(self, chosen: Bool[Tensor, " samples"]) -> None:
        self._chosen = chosen
        self._samples = self._bytes = 0
        self._lost = False
        self._pieces: list[tuple[int, dict[str, list[Part]]]] = []

    def rows(self, samples: int) -> Rows | None:
        """The chosen ones of the next so many samples; None where none is to be kept."""
        here = self._chosen[self._samples : self._samples + samples]
        if self._lost or len(here) < samples:
            return None
        return slice(None) if here.all() else here.nonzero().squeeze(1)

    @property
    def room(self) -> int:
        """Bytes left."""
        return _KEPT_BYTES - self._bytes

    def add(self, batch: Squares) -> None:
        """What a batch has kept of the next samples."""
        self._samples += batch.samples
        if batch.kept is None:
            self._lost = True
            self._pieces.clear()
        else:
            self._bytes += batch.bytes
            self._pieces.append((batch.chosen, batch.kept))

    def covers(self, chosen: Bool[Tensor, " samples"]) -> bool:
        """Whether all of these samples' gradients were kept, and no others."""
        return not self._lost and self._samples == len(chosen) and self._chosen.equal(chosen)

    def inners(self, directions: Mapping[str, Tensor]) -> dict[str, Float64[Tensor, " chosen"]]:
        """Inner products of each parameter's gradients with a tensor like it."""
        found: dict[str, list[Tensor]] = {name: [] for name in directions}
        for samples, piece in self._pieces:
            for name, direction in directions.items():
                sums = torch.zeros(samples, dtype=torch.float64, device=direction.device)
                for place, gradients in piece.get(name, ()):
                    sums[place] += gradients.inners(direction)
                found[name].append(sums)
        return {name: torch.cat(parts) for name, parts in found.items()}


class Squares:
    """Squared norms of a batch's gradients, and the gradients at some rows of it.

    Args:
        names: of the parameters.
        samples: in the batch.
        device: of what is taken.
        rows: whose gradients are kept; None keeps none.
        room: bytes that these may take; with more, none is kept.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        samples: int,
        device: torch.device,
        rows: Rows | None = None,
        room: int = 0,
    ) -> None:
        self.samples = samples
        self.values = _zeros(names, samples, device)
        self.kept: dict[str, list[Part]] | None = None if rows is None else {}
        self.chosen = 0 if rows is None else samples if isinstance(rows, slice) else len(rows)
        self.bytes = 0
        self._rows = rows if rows is None or isinstance(rows, slice) else rows.to(device)
        self._room = room

    def take(self, name: str, gradients: Gradients, here: slice) -> Tensor | None:
        """As of `Gathering`."""
        squares, total = gradients.squares()
        self.values[name][here] += squares
        if self.kept is not None:
            self._keep(self.kept, name, gradients, here)
        return total

    def _keep(
        self, kept: dict[str, list[Part]], name: str, gradients: Gradients, here: slice
    ) -> None:
        rows, place = self._rows, here
        if isinstance(rows, Tensor):
            start, stop, _ = here.indices(self.samples)
            place = slice(0, len(rows))
            if stop - start < self.samples:
                ends = torch.tensor([start, stop], device=rows.device)
                place = slice(*torch.searchsorted(rows, ends).tolist())
                rows = rows[place] - start
        assert rows is not None
        some = gradients.at(rows)
        self.bytes += some.bytes
        kept.setdefault(name, []).append(Part(place, some))
        if self.bytes > self._room:
            self.kept = None

    def forget(self, name: str) -> None:
        """As of `Gathering`."""
        self.values[name].zero_()
        if self.kept is not None:
            self.kept.pop(name, None)


class Inners:
    """Inner products of a batch's gradients with tensors like the parameters."""

    def __init__(self, directions: Mapping[str, Tensor], samples: int) -> None:
        device = next(iter(directions.values())).device
        self.values = _zeros(tuple(directions), samples, device)
        self._directions = directions

    def take(self, name: str, gradients: Gradients, here: slice) -> None:
        """As of `Gathering`."""
        self.values[name][here] += gradients.inners(self._directions[name])

    def forget(self, name: str) -> None:
        """As of `Gathering`."""
        self.values[name].zero_()


def _zeros(
    names: tuple[str, ...], samples: int, device: torch.device
) -> dict[str, Float64[Tensor, " samples"]]:
    zeros = torch.zeros(len(names), samples, dtype=torch.float64, device=device)
    return dict(zip(names, zeros.unbind(), strict=True))
