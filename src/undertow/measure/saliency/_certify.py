"""Certificates: masks that keep a label's probability, learned for every label (2211.02912).

    min over M of   E_z[-log f(x M + z (1 - M), a)] + sparsity mean(M) + total_variation sum (dM)^2

with M in [0, 1]^pixels, coarse and upsampled, and dM the differences of neighbouring pixels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from undertow.measure._arguments import or_new
from undertow.measure.saliency._backgrounds import Background, backgrounds
from undertow.measure.saliency._certificates import Certificates
from undertow.measure.saliency._classifier import Classifier
from undertow.measure.saliency._descent import Found, Lanes, Problem, judging, rounds_of
from undertow.measure.saliency._labels import labels_of
from undertow.measure.saliency._masks import Fit, Price, check_fit, shape_of
from undertow.measure.saliency._memory import MEMORY
from undertow.objective import whole_number

_UPSAMPLE = 4  # of images, where they are large enough; the paper's


def certify(
    model: nn.Module,
    inputs: Tensor,
    labels: Any = None,
    *,
    upsample: int | None = None,
    total_variation: float = 0.01,
    sparsity: float = 1.0,
    background: Background = "data",
    data: Tensor | None = None,
    fit: Fit = "log probability",
    certificates: int = 1,
    restarts: int = 1,
    draws: int = 4,
    lr: float = 0.5,
    steps: int = 900,
    atol: float = 0.05,
    embedding: nn.Module | None = None,
    memory: int = MEMORY,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Certificates:
    """Masks M(x, a) that keep the probability of a label a of an input x, and little else.

    TODO
    """
    check_fit(fit)
    price = Price(sparsity, total_variation)
    counts = {"restarts": restarts, "draws": draws, "steps": steps, "memory": memory}
    restarts, draws, steps, memory = (whole_number(n, v) for n, v in counts.items())
    for name, value in (("lr", lr), ("atol", atol)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    generator = or_new(generator)
    network = Classifier(model, inputs, embedding=embedding, memory=memory)
    if upsample is None:
        upsample = min(_UPSAMPLE, *network.spatial) if network.is_image else 1
    chosen = labels_of(network, labels)
    shape = shape_of(network.spatial, upsample, certificates)
    filling = backgrounds(network, background, data)
    rounds = rounds_of(steps)
    judged = judging(filling, generator)
    starts = torch.stack([shape.start(r, generator) for r in range(restarts)])
    problem = Problem(
        network, shape, price, fit, filling, lr, rounds, atol,
        picks=filling.picks(sum(rounds), draws, generator), judged=judged,
    )  # fmt: skip
    lanes = _lanes(chosen, starts.to(network.inputs))
    with network.running():
        need = problem.need(lanes)
        size = min(len(lanes), need.rows(memory, "mask"))
        found = _with_bar(problem, lanes, size, progress)
    settings = {
        "upsample": upsample,
        "total_variation": total_variation,
        "sparsity": sparsity,
        "background": background if isinstance(background, str | float | int) else "given",
        "fit": fit,
        "draws": draws if filling.drawn else 1,
        "lr": lr,
        "steps": sum(rounds),
        "atol": atol,
    }
    with torch.no_grad():
        return _certificates(network, shape, chosen, found, settings, need.of(size))


def _lanes(labels: Int64[Tensor, "n labels"], starts: Tensor) -> Lanes:
    """One for each input, label and restart, in this order."""
    count, each = labels.shape
    return Lanes(
        torch.arange(count, device=labels.device).repeat_interleave(each * len(starts)),
        labels.flatten().repeat_interleave(len(starts)),
        starts.repeat(count * each, *[1] * (starts.ndim - 1)),
    )


def _with_bar(problem: Problem, lanes: Lanes, size: int, shown: bool) -> Found:
    from undertow import lab

    total = len(lanes)
    with lab.progress_bar("certify", total=total, done=0, shown=shown, what="masks") as advance:
        return problem.solve(lanes, size, advance)


def _certificates(
    network: Classifier,
    shape: Shape,
    labels: Int64[Tensor, "n labels"],
    found: Found,
    settings: dict[str, Any],
    memory: int,
) -> Certificates:
    """The best restart of each input and label, its certificates in order."""
    pairs = labels.numel()
    by_restart = found.objective.view(pairs, -1)
    best = by_restart.argmin(1)
    at = torch.arange(pairs, device=best.device) * by_restart.shape[1] + best
    probabilities, order = found.probabilities[at].sort(1, descending=True)
    masks = shape.masks(found.weights[at])
    masks = masks[torch.arange(pairs, device=at.device)[:, None], order]
    sizes = tuple(labels.shape)
    gained = found.gained[at].view(sizes)
    return Certificates(
        masks=masks.view(*sizes, *masks.shape[1:]),
        labels=labels.clone(),
        probabilities=probabilities.view(*sizes, -1),
        whole=network.whole.exp().gather(1, labels),
        predicted=network.predicted,
        objective=by_restart.gather(1, best[:, None]).view(sizes),
        by_restart=by_restart.view(*sizes, -1),
        gained=gained,
        converged=gained <= settings["atol"],
        steps=found.steps[at.cpu()].view(sizes),
        settings=settings,
        memory=memory,
        inputs=network.inputs,
    )
