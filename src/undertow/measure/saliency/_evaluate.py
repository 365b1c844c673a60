"""Both numbers for any attribution method: `completeness`, `soundness`, and `evaluate` for several.

A map that keeps the predicted label is complete; one that can be had for wrong labels too is not
sound. Random maps are sound, and constant ones: only both numbers together say something.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn

from undertow.measure._arguments import or_new
from undertow.measure.saliency._attributions import Channels, Method, constant
from undertow.measure.saliency._backgrounds import Background
from undertow.measure.saliency._bench import Bench, Models, Settings, check_bound, networks_of
from undertow.measure.saliency._evaluation import Curves, Evaluation
from undertow.measure.saliency._memory import MEMORY
from undertow.measure.saliency._scores import Score, Unit, check_unit

_SHOWN = 6  # inputs whose maps are kept for pictures


def evaluate(
    model: Models,
    inputs: Tensor,
    methods: Mapping[str, Method],
    labels: Any = None,
    *,
    unit: Unit = "image",
    floor: float = 0.1,
    background: Background = "mean",
    data: Tensor | None = None,
    budgets: int | Sequence[float] = 28,
    channels: Channels = "sum",
    draws: int = 8,
    embedding: nn.Module | None = None,
    memory: int = MEMORY,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Evaluation:
    """Completeness and soundness of attribution methods, in one table.

    For each input x and label a the pixels of a map are ranked, the best k kept and the rest filled
    with a background. g(x, a) is the mean over budgets k of the probability that is left to a;
    f(x, a) that of the whole input, and e a floor below which probabilities are not told apart:

        completeness = min(max(e, g) / f, 1)        soundness = min(max(e, f) / g, 1)

    A map is complete if it keeps its label, and sound if it does not raise a label beyond what the
    whole input gives it. Each is averaged at the label that the network predicts, over the other
    labels, and at the label of each input where it is least. Models run in eval mode on copies, as
    methods do; they are left as found.

    Args:
        model: a network from inputs to logits, or several in a list.
        inputs: images `[n, channels, height, width]` or embeddings `[n, tokens, width]`; with
            `embedding`, what the model takes.
        methods: by name. Tensors: one map an input `[n, height, width]` for all labels, one a label
            `[n, labels, height, width]`, either with an axis of channels before the height; of
            tokens `[n, tokens]` and so on. `Certificates` or `LearnedMasks`. A method of Captum as
            it is, or its class. Or a function of `(model, inputs [pairs, ...], labels [pairs])`
            that gives attributions of the inputs' shape, or one a pixel; it should make of each
            pair the same whichever others are in the block.
        labels: that are scored: all if None, one for each input `[n]`, or several `[n, labels]`.
            Name the probable ones where there are many: methods are asked for each.
        unit: what the 95% intervals are over: `image` for these networks, or `network` for these
            images.
        floor: e, the paper's by default.
        background: as in `certify`; `mean`, the zero of standardised images, is the paper's grey.
        data: samples for it; None for the inputs.
        budgets: so many equal steps up to the whole input, or the shares of it that are kept.
        channels: how a pixel's channels (or a token's width) become one number: their `sum`, or
            that of their `absolute` values.
        draws: backgrounds, where they are `data`; and orders of equal values, where a budget parts
            them: the pixels among them are kept at random, and averaged.
        embedding: as in `certify`.
        memory: bytes that a block of masked inputs may take at a time.
        generator: draws backgrounds, orders and the seed of what methods draw; None starts a new
            one from 0.
        progress: show a bar with the time left on standard error.

    Raises:
        TypeError: inputs, a model or a method of the wrong kind.
        ValueError: a model as in `certify`; attributions of another shape or of other labels, NaN,
            or all equal in every map; what is of one network for several; or `unit="network"` of
            one.

    Source: 2211.02912, definitions of completeness and soundness, its code for floor and budgets.
    """
    settings = Settings(
        labels, floor, background, data, budgets, channels, draws, embedding, memory
    )
    if not isinstance(methods, Mapping) or not methods:
        raise TypeError(f"methods must map names to attributions, got {type(methods).__name__}")
    networks = networks_of(model)
    check_unit(unit, networks)
    for name, method in methods.items():
        check_bound(name, method, networks)
    from undertow import lab

    seed = int(torch.randint(2**31, (), generator=or_new(generator)))
    parts: dict[str, list[tuple[Tensor, Tensor, int]]] = {name: [] for name in methods}
    benches: list[Bench] = []
    maps: dict[str, Tensor] = {}
    total = len(methods) * len(networks)
    with lab.progress_bar("evaluate", total=total, done=0, shown=progress, what="maps") as advance:
        for network in networks:
            # The same draws in each network.
            bench = Bench(network, inputs, settings, torch.Generator().manual_seed(seed))
            benches.append(bench)
            for name, method in methods.items():
                found = bench.maps(method, name)
                check_told_apart(found, name)
                maps.setdefault(name, found[:_SHOWN].clone())
                parts[name].append((*bench.curves(found), int(constant(found).sum())))
                advance(1)
    return Evaluation(
        curves={name: curves_of(benches, own, floor, unit) for name, own in parts.items()},
        maps=maps,
        inputs=benches[0].network.inputs[:_SHOWN].clone(),
    )


class Options(TypedDict, total=False):
    """What `evaluate` can be told."""

    unit: Unit
    floor: float
    background: Background
    data: Tensor | None
    budgets: int | Sequence[float]
    channels: Channels
    draws: int
    embedding: nn.Module | None
    memory: int
    generator: torch.Generator | None
    progress: bool


def settings_of(
    labels: Any, options: Options
) -> tuple[Settings, Unit, torch.Generator | None, bool]:
    """How maps are scored, what intervals are over, what draws, and whether a bar is shown."""
    given: dict[str, Any] = dict(options)
    unit = given.pop("unit", "image")
    generator, shown = given.pop("generator", None), given.pop("progress", False)
    return Settings(labels, **given), unit, generator, shown


def completeness(
    model: Models,
    inputs: Tensor,
    attributions: Method,
    labels: Any = None,
    **options: Unpack[Options],
) -> Score:
    """What the maps of one method keep of their labels: min(max(e, g) / f, 1).

    Its `own`, at the predicted label, is the paper's number. Arguments, options and errors are
    those of `evaluate`, which gives both numbers at the cost of one.
    """
    named = {"attributions": attributions}
    return evaluate(model, inputs, named, labels, **options).completeness["attributions"]


def soundness(
    model: Models,
    inputs: Tensor,
    attributions: Method,
    labels: Any = None,
    **options: Unpack[Options],
) -> Score:
    """Whether the maps of one method make up evidence: min(max(e, f) / g, 1).

    Its `others`, over labels that are not predicted, and `worst` are the paper's numbers.
    Arguments, options and errors are those of `evaluate`, which gives both at the cost of one.
    """
    named = {"attributions": attributions}
    return evaluate(model, inputs, named, labels, **options).soundness["attributions"]


def check_told_apart(maps: Tensor, name: str) -> None:
    """Refuse maps of which no pixel comes before another.

    Raises:
        ValueError: all of them are all equal.
    """
    if bool(constant(maps).all()):
        raise ValueError(
            f"{name} must tell pixels apart, but every map is all equal: none comes before another"
        )


def curves_of(
    benches: Sequence[Bench],
    parts: Sequence[tuple[Tensor, Tensor, int]],
    floor: float,
    unit: Unit,
) -> Curves:
    """The curves of a method in all networks."""
    values, tied, flat = zip(*parts, strict=True)
    first = benches[0]
    return Curves(
        values=torch.stack(values),
        shares=first.scoring.budgets.shares,
        whole=torch.stack([bench.whole() for bench in benches]),
        labels=first.labels.clone(),
        predicted=torch.stack([bench.network.predicted for bench in benches]),
        tied=torch.stack(tied),
        constant=sum(flat),
        floor=floor,
        unit=unit,
    )
