"""Sanity checks of attribution methods in one call, and whether a random map beats them.

Maps of another label, maps of a network whose weights are shuffled (after 1810.03292), random and
constant maps, all scored as the method's own are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from undertow.measure._arguments import or_new
from undertow.measure.saliency._attributions import Method, constant, is_fixed
from undertow.measure.saliency._baselines import random_map
from undertow.measure.saliency._bench import Bench, Models, check_bound, networks_of
from undertow.measure.saliency._evaluate import Options, check_told_apart, curves_of, settings_of
from undertow.measure.saliency._evaluation import Curves, said
from undertow.measure.saliency._scores import averages, check_unit, effect

if TYPE_CHECKING:
    import polars as pl

    from undertow import lab

Variant = Literal["own", "other label", "shuffled weights"]
_CONTROLS = ("random map", "constant map")


@dataclass(frozen=True, eq=False)
class SanityChecks:
    """What is left of methods' scores where their maps are those of something else.

    Attributes:
        curves: by method and variant: `own` maps, those of the next `other label`, those in a
            network of `shuffled weights`. Without the last two where maps cannot be found there.
        controls: of a `random map` and a `constant map`.
        likeness: by method and variant, the mean rank correlation of maps with the method's own.
        skipped: why a variant is missing.
    """

    curves: Mapping[tuple[str, Variant], Curves]
    controls: Mapping[str, Curves]
    likeness: Mapping[tuple[str, Variant], float]
    skipped: Mapping[tuple[str, Variant], str] = field(repr=False)

    @property
    def methods(self) -> list[str]:
        """By name."""
        return [name for name, variant in self.curves if variant == "own"]

    def against_random(self, method: str) -> dict[str, lab.Effect]:
        """How far a method's completeness and soundness lie above those of a random map.

        Completeness at the predicted label, soundness at the others, paired by image or network.
        """
        own, random = self.curves[method, "own"], self.controls["random map"]
        found = {}
        for quantity, which in (("completeness", "own"), ("soundness", "others")):
            values = [
                averages(getattr(one, quantity).ratios, one.labels, one.predicted)[which]
                for one in (own, random)
            ]
            found[quantity] = effect(values[0] - values[1], own.unit)
        return found

    def beaten(self, method: str) -> list[str]:
        """In which of the two numbers a random map beats it: the interval lies below zero."""
        found = self.against_random(method)
        return [quantity for quantity, effect in found.items() if effect.interval[1] < 0]

    @cached_property
    def table(self) -> pl.DataFrame:
        """A row for each method and variant, and for each control.

        Columns method, maps, completeness, soundness, worst_soundness, likeness and beaten: the
        numbers in which a random map beats the method.
        """
        import polars as pl

        rows: list[tuple[Any, ...]] = []
        for (name, variant), curves in self.curves.items():
            beaten = ", ".join(self.beaten(name)) if variant == "own" else None
            rows.append((name, variant, *_values(curves), self.likeness[name, variant], beaten))
        for name, curves in self.controls.items():
            rows.append((name, "control", *_values(curves), math.nan, None))
        schema = {
            "method": pl.String, "maps": pl.String, "completeness": pl.Float64,
            "soundness": pl.Float64, "worst_soundness": pl.Float64, "likeness": pl.Float64,
            "beaten": pl.String,
        }  # fmt: skip
        return pl.DataFrame(rows, schema=schema, orient="row")

    def as_dict(self) -> dict[str, Any]:
        """All values, by name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def __repr__(self) -> str:
        from undertow import lab

        return lab.as_text(self.document())

    def document(self) -> lab.Document:
        """The table, with what a random map beats."""
        from undertow import lab

        lines: dict[str, list[str]] = {"maps": [], "completeness": [], "soundness": [], "alike": []}
        for (name, variant), curves in self.curves.items():
            likeness = self.likeness[name, variant]
            cells = (name if variant == "own" else f"- {variant}", *_said(curves))
            alike = "" if variant == "own" or math.isnan(likeness) else f"{likeness:.2f}"
            for column, cell in zip(lines, (*cells, alike), strict=True):
                lines[column].append(cell)
        for name, curves in self.controls.items():
            for column, cell in zip(lines, (name, *_said(curves), ""), strict=True):
                lines[column].append(cell)
        beaten = tuple(f"{name}: {_told(self.against_random(name))}" for name in self.methods)
        skipped = tuple(
            f"{name}, {variant}: {why}" for (name, variant), why in self.skipped.items()
        )
        return lab.Document(
            title="Sanity checks",
            summary=(
                "Maps of another label and of shuffled weights should lose completeness, and be "
                "unlike the method's own. Only both numbers together tell it from a random map."
            ),
            sections=(
                lab.Section("", (lab.Table(lines),)),
                lab.Section("Against a random map", (beaten,)),
                lab.Section("Left out", (skipped,) if skipped else ()),
            ),
            data={"rows": self.table.to_dicts()},
        )


def sanity_checks(
    model: Models,
    inputs: Tensor,
    methods: Mapping[str, Method],
    labels: Any = None,
    **options: Unpack[Options],
) -> SanityChecks:
    """Score maps of another label, of shuffled weights, random and constant ones beside methods'.

    For each method: its own maps; for each label the maps of the next one among those scored; and
    its maps in a network each of whose parameters has its entries in another order, which are
    scored in the given network. Beside them a random and a constant map, whose pixels come in
    random order. `beaten` says in which number a random map beats a method: random maps are sound,
    so that a method must win in both. A method that is alike for shuffled weights shows the input
    and not the network (1810.03292).

    Args:
        model: as in `evaluate`.
        inputs: likewise.
        methods: likewise.
        labels: likewise.
        **options: those of `evaluate`.

    Raises:
        TypeError, ValueError: as in `evaluate`.
    """
    settings, unit, generator, shown = settings_of(labels, options)
    networks = networks_of(model)
    check_unit(unit, networks)
    for name, method in methods.items():
        check_bound(name, method, networks)
    from undertow import lab

    seed = int(torch.randint(2**31, (), generator=or_new(generator)))
    tried = _Tried()
    benches = []
    total = len(methods) * len(networks)
    with lab.progress_bar("check", total=total, done=0, shown=shown, what="methods") as advance:
        for network in networks:
            bench = Bench(network, inputs, settings, torch.Generator().manual_seed(seed))
            benches.append(bench)
            for name, method in methods.items():
                tried.method(bench, name, method)
                advance(1)
            for name, maps in _controls(bench).items():
                tried.add(bench, name, maps)
    parts, likeness, skipped = tried.parts, tried.likeness, tried.skipped
    curves = {key: curves_of(benches, own, settings.floor, unit) for key, own in parts.items()}
    return SanityChecks(
        curves={key: own for key, own in curves.items() if key not in _CONTROLS},
        controls={name: curves[name] for name in _CONTROLS},
        likeness={key: sum(own) / len(own) for key, own in likeness.items()},
        skipped=skipped,
    )


class _Tried:
    """What has been scored in the networks so far."""

    def __init__(self) -> None:
        self.parts: dict[Any, list[tuple[Tensor, Tensor, int]]] = {}
        self.likeness: dict[tuple[str, Variant], list[float]] = {}
        self.skipped: dict[tuple[str, Variant], str] = {}

    def method(self, bench: Bench, name: str, method: Method) -> None:
        """Its own maps, and its variants."""
        own = bench.maps(method, name)
        check_told_apart(own, name)
        found: dict[Variant, Tensor] = {"own": own}
        found |= _variants(bench, method, name, own, self.skipped)
        for variant, maps in found.items():
            self.add(bench, (name, variant), maps)
            self.likeness.setdefault((name, variant), []).append(_likeness(own, maps))

    def add(self, bench: Bench, key: Any, maps: Tensor) -> None:
        """Maps in a network."""
        flat = int(constant(maps).sum())
        self.parts.setdefault(key, []).append((*bench.curves(maps), flat))


def _variants(
    bench: Bench,
    method: Method,
    name: str,
    own: Tensor,
    skipped: dict[tuple[str, Variant], str],
) -> dict[Variant, Tensor]:
    """Maps of the next label, and of the network with each parameter's entries shuffled."""
    found: dict[Variant, Tensor] = {}
    if own.shape[1] > 1:
        found["other label"] = own.roll(1, 1)
    else:
        skipped[name, "other label"] = "its maps are the same for all labels"
    if is_fixed(method):
        skipped[name, "shuffled weights"] = "given maps cannot be found in another network"
    else:
        shuffled = _shuffled(bench.network.stand_in.model, bench.network.tensors, bench.asked.seed)
        found["shuffled weights"] = bench.maps(method, name, shuffled)
    return found


def _shuffled(model: nn.Module, tensors: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The entries of each parameter in another order; buffers as they are."""
    generator = torch.Generator().manual_seed(seed)
    found = dict(tensors)
    for name, _ in model.named_parameters():
        tensor = tensors[name]
        order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
        found[name] = tensor.flatten()[order].view_as(tensor)
    return found


def _controls(bench: Bench) -> dict[str, Tensor]:
    network = bench.network
    nothing = torch.zeros(len(network), 1, *network.spatial, device=network.inputs.device)
    return {"random map": bench.maps(random_map, "random map"), "constant map": nothing}


def _likeness(
    own: Float[Tensor, "inputs maps *spatial"], other: Float[Tensor, "inputs maps *spatial"]
) -> float:
    """The mean rank correlation (Spearman's) of the maps of each input and label."""
    one, two = (_ranks(maps.flatten(2).flatten(0, 1)) for maps in (own, other))
    norms = one.norm(dim=1) * two.norm(dim=1)
    found = (one * two).sum(1)[norms > 0] / norms[norms > 0]
    return float(found.mean()) if len(found) else math.nan


def _ranks(values: Float[Tensor, "maps pixels"]) -> Tensor:
    """Centred ranks; equal values share their mean rank."""
    ordered = values.sort(1).values.contiguous()
    kept = values.contiguous()
    low = torch.searchsorted(ordered, kept)
    high = torch.searchsorted(ordered, kept, right=True)
    ranks = (low + high).double()
    return ranks - ranks.mean(1, keepdim=True)


def _told(found: Mapping[str, lab.Effect]) -> str:
    """What an interval of each number's difference says."""
    words = []
    for quantity, difference in found.items():
        low, high = difference.interval
        how = "a random map beats it" if high < 0 else "it wins" if low > 0 else "not told apart"
        words.append(f"{quantity}, {how} ({difference.value:+.3f} [{low:+.3f}, {high:+.3f}])")
    return "; ".join(words)


def _values(curves: Curves) -> tuple[float, float, float]:
    sound = curves.soundness
    return curves.completeness.own.value, sound.others.value, sound.worst.value


def _said(curves: Curves) -> tuple[str, str]:
    return said(curves.completeness.own), said(curves.soundness.others)
