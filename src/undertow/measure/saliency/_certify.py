"""Certificates: masks that keep a label's probability, learned for every label (2211.02912).

    min over M of   E_z[-log f(x M + z (1 - M), a)] + sparsity mean(M) + total_variation sum (dM)^2

with M in [0, 1]^pixels, coarse and upsampled, and dM the differences of neighbouring pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
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
from undertow.measure.saliency._masks import Fit, Price, Shape, check_fit, shape_of
from undertow.measure.saliency._memory import MEMORY
from undertow.objective import whole_number

_UPSAMPLE = 4  # of images, where they are large enough; the paper's


@dataclass(frozen=True, eq=False)
class LearnedMasks:
    """How certificates are learned, as a method that `evaluate` finds in each network.

    `certify` says what each attribute is.
    """

    upsample: int | None = None
    total_variation: float = 0.01
    sparsity: float = 1.0
    background: Background = "data"
    data: Tensor | None = field(default=None, repr=False)
    fit: Fit = "log probability"
    certificates: int = 1
    restarts: int = 1
    draws: int = 4
    lr: float = 0.5
    steps: int = 900
    atol: float = 0.05

    def __post_init__(self) -> None:
        check_fit(self.fit)
        Price(self.sparsity, self.total_variation)
        for name in ("certificates", "restarts", "draws", "steps"):
            whole_number(name, getattr(self, name))
        for name in ("lr", "atol"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} must be a number, got {type(value).__name__}")
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")

    def find(
        self,
        network: Classifier,
        labels: Int64[Tensor, "inputs labels"],
        generator: torch.Generator,
        *,
        memory: int,
        progress: bool = False,
    ) -> Certificates:
        """The certificates of a network's inputs."""
        upsample = self.upsample
        if upsample is None:
            upsample = min(_UPSAMPLE, *network.spatial) if network.is_image else 1
        shape = shape_of(network.spatial, upsample, self.certificates)
        filling = backgrounds(network, self.background, self.data)
        rounds = rounds_of(self.steps)
        judged = judging(filling, generator)
        starts = torch.stack([shape.start(r, generator) for r in range(self.restarts)])
        problem = Problem(
            network, shape, Price(self.sparsity, self.total_variation), self.fit, filling,
            lr=self.lr, rounds=rounds, atol=self.atol,
            picks=filling.picks(sum(rounds), self.draws, generator), judged=judged,
        )  # fmt: skip
        lanes = _lanes(labels, starts.to(network.inputs))
        with network.running():
            need = problem.need(lanes)
            size = min(len(lanes), need.rows(memory, "mask"))
            found = _with_bar(problem, lanes, size, progress)
        settings = {
            "upsample": upsample,
            "total_variation": self.total_variation,
            "sparsity": self.sparsity,
            "background": "given" if isinstance(self.background, Tensor) else self.background,
            "fit": self.fit,
            "draws": problem.picks.shape[1],
            "lr": self.lr,
            "steps": sum(rounds),
            "atol": self.atol,
        }
        with torch.no_grad():
            return _certificates(network, shape, labels, found, settings, need.of(size))


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

    With f(x, a) the softmax of the model's logits, backgrounds z, and dM the differences of
    neighbouring pixels, each mask minimises, in nats,

        E_z[-log f(x M + z (1 - M), a)] + sparsity mean(M) + total_variation sum (dM)^2

    over M = upsampled, bilinearly, from a coarse grid of numbers in [0, 1]. The sparsity is charged
    for the share of the input that is kept, and the sum of squared differences is an integral of
    |grad M|^2 over the image, whatever its resolution: both mean the same at 28 x 28 and 224 x 224.
    The published 2e-5 a pixel and 0.01 a square at 224 x 224 are `sparsity=1` and
    `total_variation=0.01`.

    All inputs, labels and restarts go down side by side, by Adam in rounds of 60, 120, 240, ...
    steps whose rate falls to zero. A mask is done once a round, with twice the steps of the one
    before, lowers its objective by less than `atol` on 64 backgrounds kept for that; a round that
    raises it is taken back. Backgrounds are drawn in advance, the same for all masks, so that none
    depends on which others are asked for. The model runs in eval mode, and is left as found.

    Args:
        model: from inputs to logits `[rows, classes]`.
        inputs: images `[n, channels, height, width]`, scaled as in training, or embeddings
            `[n, tokens, width]`; with `embedding`, what the model takes, such as token ids.
        labels: which to certify: all if None, one for each input `[n]`, or several `[n, labels]`.
        upsample: pixels along a side of a cell of the coarse grid; None for 4, and 1 of tokens.
        total_variation: in nats.
        sparsity: in nats.
        background: what is put where a mask hides: `data` draws another sample at every step,
            `mean` is the data's in each channel, `grey` the middle of their range, `blur` the
            blurred input; or a number, or a tensor of an input's or the inputs' shape.
        data: samples to draw from, and to take the mean and range of; None for the inputs.
        fit: `log probability`, as above, or `double softmax`, what the published code minimises: it
            puts the mean of f over backgrounds through a second softmax, so that its gradient
            vanishes where f is small. That alone makes masks of wrong labels fail.
        certificates: K disjoint masks, which with the hidden rest add up to one at each pixel. The
            objective is the mean over them.
        restarts: descents for each input and label, of which the lowest is kept. The first starts
            at M = 1/2, the others, and all of several certificates, at random.
        draws: backgrounds in each step.
        lr: Adam's, on the logits of the coarse grid, at the start of a round.
        steps: at most, over all rounds; fewer than 60 make a single round, which cannot converge.
        atol: in nats.
        embedding: the part of the model whose output `[n, tokens, width]` is masked, such as its
            `nn.Embedding`, called once in a forward pass; None where inputs are masked.
        memory: bytes that a block of masks may take at a time, by an estimate made on a few of
            them. Where it runs out all the same, blocks are halved.
        generator: draws backgrounds and starts; None starts a new one from 0.
        progress: show a bar with the time left on standard error.

    Raises:
        TypeError: inputs that are no tensor of real numbers, or a model that returns none.
        ValueError: a model that returns one number (a regression), probabilities, or what depends
            on the other samples of a batch; labels it does not have; inputs outside the data's
            range; too little memory for one mask; or an argument out of range.

    Source: 2211.02912 and its code, whose descent (2,000 steps of 10 backgrounds at rate 0.05) ends
    at the same objective.
    """
    masks = LearnedMasks(
        upsample, total_variation, sparsity, background, data, fit, certificates, restarts, draws,
        lr, steps, atol,
    )  # fmt: skip
    memory = whole_number("memory", memory)
    network = Classifier(model, inputs, embedding=embedding, memory=memory)
    chosen = labels_of(network, labels)
    return masks.find(network, chosen, or_new(generator), memory=memory, progress=progress)


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
