"""Where samples lie in what layers see: tried by derivatives, never guessed from sizes.

A layer's formula is right if each row of the gradient at its output belongs to the sample that it
is counted with. Whose it is, derivatives say: with a slope of its own for every sample's output,
a row is the sum of what each sample makes of it, so that with one slope at a time only its owner's
is not zero, and with slopes multiplied by marks it comes back multiplied by its owner's mark.

- Few samples are run with one slope at a time. That settles on which axis the samples lie, and
  that the formulas give the gradients that autograd gives.
- Another number of them is run with marks. Both numbers divide no size of inputs or parameters.
- A batch is run with marks too, a third of a gradient more, which is proof whatever the model does.
  It is done without where the batch's trace (`_trace`) is the one that the probes foretell, or has
  been proven and is of the probes' program: the same operations on the same tensors, none of which
  lets values decide where samples go, or lets them meet. The probes foretell a trace if every size
  in it lies on the line through theirs. Sorting, routing and the dropping of padding are of another
  kind, and so are proven batch by batch.

A parameter for which it fails is differentiated sample by sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from undertow.measure._nested import tensors
from undertow.measure.noise._forward import Forward, agree
from undertow.measure.noise._layer_gradients import by_sample, flat_rows, square_rows, wide
from undertow.measure.noise._sites import Layout, Site
from undertow.measure.noise._trace import Law, Trace
from undertow.objective import EmpiricalRisk, Tensors, dense, taken

_PRIMES = (2, 3, 5, 7, 11, 13)
# Traces that are kept, as of batches of different lengths.
_KEPT = 64


class Layouts:
    """The layout of each parameter that a formula covers, and where it has been proven.

    Attributes:
        layout: by the parameter's name.
        uses: how often each is used.
        traceable: whether the model runs under a tracer.
    """

    def __init__(
        self, layout: dict[str, Layout], uses: dict[str, int], law: Law | None, *, traceable: bool
    ) -> None:
        self.layout, self.uses, self.traceable = layout, uses, traceable
        self._law = law
        self._proven: dict[tuple[int, int], tuple[Trace, frozenset[str]]] = {}

    def wrong(self, samples: int, trace: Trace | None) -> frozenset[str] | None:
        """Parameters that lie otherwise in a pass with this trace; None where that is unknown."""
        if trace is None or self._law is None or not self._law.covers(trace):
            return None
        known = self._proven.get((samples, trace.key))
        if known is not None and known[0] == trace:
            return known[1]
        if self._law.foretells(samples, trace):
            self.learn(samples, trace, frozenset())
            return frozenset()
        return None

    def learn(self, samples: int, trace: Trace | None, wrong: frozenset[str]) -> None:
        """Remember what marks have shown."""
        if trace is not None and self._law is not None and self._law.covers(trace):
            if len(self._proven) >= _KEPT:
                self._proven.clear()
            self._proven[samples, trace.key] = trace, wrong


def layouts_of(risk: EmpiricalRisk, parameters: Tensors, inputs: Any, targets: Tensor) -> Layouts:
    """The layouts of the parameters whose formulas give what autograd gives for a few samples.

    A formula is wrong where a parameter is used in another way too, or the samples lie elsewhere.
    Tried once of a risk; a random linear function of the outputs takes the place of the loss, which
    may ignore samples.
    """
    found = risk.findings.layouts
    if not isinstance(found, Layouts):
        found = risk.findings.layouts = _tried(risk, parameters, inputs, targets)
    return found


def _tried(risk: EmpiricalRisk, parameters: Tensors, inputs: Any, targets: Tensor) -> Layouts:
    fewest, more = _numbers(inputs, parameters)
    few = _Few(risk, parameters, inputs, targets, fewest)
    layouts = few.layouts()
    law = None
    if layouts and few.forward.trace is not None:
        law = few.law(_Few(risk, parameters, inputs, targets, more, layouts), layouts)
    uses = {name: few.forward.capture.counts[name] for name in layouts}
    return Layouts(layouts, uses, law, traceable=few.forward.trace is not None)


def _numbers(inputs: Any, parameters: Tensors) -> tuple[int, int]:
    """Two numbers of samples that no size of theirs can be taken for."""
    sizes = {size for part in tensors(inputs) for size in part.shape[1:]}
    sizes.update(size for tensor in parameters.values() for size in tensor.shape)
    free = [n for n in _PRIMES if all(size % n for size in sizes)]
    taken_too = [n for n in _PRIMES if n not in free]
    first, second = (free + taken_too)[:2]
    return min(first, second), max(first, second)


class _Few:
    """A few samples under watch, and a slope that tells their outputs apart."""

    def __init__(
        self,
        risk: EmpiricalRisk,
        parameters: Tensors,
        inputs: Any,
        targets: Tensor,
        samples: int,
        known: dict[str, Layout] | None = None,
    ) -> None:
        self.samples = samples
        self._deltas: dict[int, Tensor] = {}
        deltas = self._deltas
        index = torch.arange(samples, device=targets.device) % len(targets)
        some = taken(inputs, index), targets[index]

        def collect(site: Site, delta: Tensor) -> dict[str, Tensor]:
            deltas[id(site)] = delta
            return {}

        def run(*, traced: bool) -> Forward:
            with torch.enable_grad():
                return Forward(risk, parameters, *some, collect, known, traced=traced)

        try:
            self.forward = run(traced=True)
        except (RuntimeError, NotImplementedError, TypeError):
            self.forward = run(traced=False)  # what a tracer does not know, or a true error
        outputs = self.forward.outputs
        generator = torch.Generator().manual_seed(0)
        shape = outputs.shape[1:]
        self._slope = torch.randn(shape, generator=generator, dtype=torch.float64).to(outputs)
        if outputs.is_complex():
            self._slope = self._slope * (1 + 1j)

    def layouts(self) -> dict[str, Layout]:
        """Of the parameters whose formulas hold."""
        forward = self.forward
        if not forward.outputs.requires_grad:
            return {}
        sites, leaves = forward.capture.sites, forward.leaves
        axes = {id(site): set(site.axes) for site in sites}
        alone = list(self._alone())
        for owner, (deltas, _) in enumerate(alone):
            for site in sites:
                if id(site) in deltas:
                    axes[id(site)] = {
                        axis for axis in axes[id(site)] if self._owns(owner, deltas[id(site)], axis)
                    }
        expected = torch.stack([squares for _, squares in alone])
        found: dict[str, Layout] = {}
        for name, squares in zip(leaves, expected.unbind(1), strict=True):
            own = [site for site in sites if name in site.names]
            common = set.intersection(*(axes[id(site)] for site in own)) if own else set()
            if not common or len({site.shared for site in own}) > 1:
                continue
            if not forward.capture.used_once(name):
                continue
            precision = max(torch.finfo(leaf.dtype).eps for leaf in leaves.values())
            floor = expected.sum(1) * (100 * precision) ** 2
            away = (self._squares(name, own, min(common), alone) - squares).abs()
            if torch.all(away <= precision**0.5 * squares + floor):
                found[name] = Layout(min(common), own[0].shared)
        return found

    def law(self, more: _Few, layouts: dict[str, Layout]) -> Law | None:
        """What foretells other numbers of samples, if with more of them layouts are the same."""
        one, other = self.forward, more.forward
        if one.trace is None or other.trace is None or not other.outputs.requires_grad:
            return None
        uses = {name: one.capture.counts[name] for name in layouts}
        if any(other.capture.counts[name] != count for name, count in uses.items()):
            return None
        slope = more._slope.expand_as(other.outputs)
        marked = other.marked(slope)
        plain = torch.autograd.grad(
            other.outputs, other.capture.edges, slope, allow_unused=True, retain_graph=True
        )
        known = [site for site in one.capture.sites if any(name in layouts for name in site.names)]
        if len(known) != len(other.capture.sites):
            return None
        for few, site, delta in zip(known, other.capture.sites, plain, strict=True):
            axis = next(layouts[name].axis for name in site.names if name in layouts)
            if few.shape[axis] * more.samples != site.shape[axis] * self.samples:
                return None
            if delta is not None and not marked.fits(site, delta, axis):
                return None
        return Law.of((self.samples, one.trace), (more.samples, other.trace))

    def _alone(self) -> Iterator[tuple[dict[int, Tensor], Float64[Tensor, " params"]]]:
        """With one sample's slope at a time: gradients at sites, and squares of the parameters'."""
        leaves = list(self.forward.leaves.values())
        for owner in range(self.samples):
            slope = torch.zeros_like(self.forward.outputs)
            slope[owner] = self._slope
            self._deltas.clear()
            gradients = torch.autograd.grad(
                self.forward.outputs, leaves, slope, retain_graph=True, allow_unused=True
            )
            squares = [
                torch.zeros(1) if found is None else square_rows(wide(dense(found)[None])).cpu()
                for found in gradients
            ]
            yield dict(self._deltas), torch.cat(squares).double()

    def _owns(self, owner: int, delta: Tensor, axis: int) -> bool:
        """Whether rows that lie with other samples have no part in this one's output."""
        rows = flat_rows(wide(by_sample(delta, self.samples, axis)))
        sizes = torch.linalg.vector_norm(rows, dim=1)
        others = sizes.clone()
        others[owner] = 0
        return bool(agree(others, sizes[owner].expand_as(others), delta.dtype).all())

    def _squares(
        self,
        name: str,
        sites: list[Site],
        axis: int,
        alone: list[tuple[dict[int, Tensor], Tensor]],
    ) -> Float64[Tensor, " samples"]:
        """What the formulas make of each sample's gradient."""
        squares = torch.zeros(self.samples, dtype=torch.float64)
        with torch.no_grad():
            for deltas, _ in alone:
                for site in sites:
                    if id(site) not in deltas:
                        continue
                    for use in site.uses(axis):
                        if use.name == name:
                            squares += use.gradients(deltas[id(site)]).squares()[0].cpu()
        return squares
