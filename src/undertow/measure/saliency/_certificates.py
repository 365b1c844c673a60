"""What `certify` finds: masks, what they keep of the probability of their label, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from undertow.measure.saliency._pictures import Picture, grid, shown_input, shown_mask

if TYPE_CHECKING:
    from undertow import lab


@dataclass(frozen=True, eq=False)
class Certificates:
    """Masks of inputs, for some labels of each.

    Attributes:
        masks: in [0, 1], certificates in descending order of the probability that they keep.
        labels: what they are for.
        probabilities: f(x M + z (1 - M), a), the mean over backgrounds z.
        whole: f(x, a), of the whole input.
        predicted: the label that the model gives to each input.
        objective: what was minimised, in nats, on 64 backgrounds that descent has not seen.
        by_restart: the same of each restart, of which the lowest is kept.
        gained: by how much the last doubling of the steps has lowered it.
        converged: whether that was at most `atol`.
        steps: that were taken.
        settings: `upsample`, `sparsity` and so on, as they were.
        memory: bytes that the largest block was estimated to take.
        inputs: what was masked.
    """

    masks: Float[Tensor, "inputs labels certificates *spatial"] = field(repr=False)
    labels: Int64[Tensor, "inputs labels"]
    probabilities: Float64[Tensor, "inputs labels certificates"]
    whole: Float64[Tensor, "inputs labels"]
    predicted: Int64[Tensor, " inputs"]
    objective: Float64[Tensor, "inputs labels"]
    by_restart: Float64[Tensor, "inputs labels restarts"]
    gained: Float64[Tensor, "inputs labels"]
    converged: Bool[Tensor, "inputs labels"]
    steps: Int64[Tensor, "inputs labels"]
    settings: Mapping[str, Any]
    memory: int
    inputs: Float[Tensor, "inputs ..."] = field(repr=False)

    @property
    def attributions(self) -> Float[Tensor, "inputs labels *spatial"]:
        """The masks as maps to be scored; of several certificates the first."""
        return self.masks[:, :, 0]

    @property
    def kept(self) -> Float64[Tensor, "inputs labels certificates"]:
        """The share of the input that each mask keeps."""
        return self.masks.double().flatten(3).mean(3)

    def as_dict(self) -> dict[str, Any]:
        """All values, by name."""
        return dict(vars(self))

    def __repr__(self) -> str:
        count, labels, certificates, *spatial = self.masks.shape
        size = " x ".join(map(str, spatial)) + (" pixels" if len(spatial) == 2 else " tokens")
        several = f"{certificates} disjoint " * (certificates > 1)
        parts = []
        own = self.labels == self.predicted[:, None]
        for name, which in (("the predicted label", own), ("other labels", ~own)):
            if which.any():
                kept, whole = self.probabilities[which].mean(), self.whole[which].mean()
                share = self.kept[which].mean()
                parts.append(
                    f"for {name} {float(share):.2g} of the input keeps probability "
                    f"{float(kept):.2g} of {float(whole):.2g}"
                )
        converged, steps = float(self.converged.double().mean()), self.steps.double()
        return (
            f"Certificates: {several}masks of {count} inputs x {labels} labels, {size}, upsampled "
            f"by {self.settings['upsample']}; on average {', '.join(parts)}; {converged:.0%} "
            f"converged to {self.settings['atol']:g} nats, after {float(steps.mean()):.0f} steps "
            f"(at most {int(steps.max())}); in eval mode."
        )

    def document(self, names: Sequence[str] | None = None) -> lab.Document:
        """What was found by label, and pictures; `names` of the labels."""
        from undertow import lab

        own = self.labels == self.predicted[:, None]
        rows: dict[str, list[Any]] = {
            "labels": [], "f of the input": [], "f of what is kept": [], "share kept": [],
            "objective": [], "converged": [],
        }  # fmt: skip
        for name, which in (("predicted", own), ("others", ~own)):
            if which.any():
                values = (
                    self.whole[which].mean(),
                    self.probabilities[which].mean(),
                    self.kept[which].mean(),
                    self.objective[which].mean(),
                    self.converged[which].double().mean(),
                )
                for column, value in zip(rows, (name, *map(float, values)), strict=True):
                    rows[column].append(value)
        drawn = (lab.Chart(lambda: self.plot(names=names)),) if len(self.masks.shape) == 5 else ()
        settings = {name: _said(value) for name, value in self.settings.items()}
        return lab.Document(
            title="Certificates",
            summary=repr(self),
            facts=settings | {"memory": f"{self.memory / 2**20:.0f} MiB a block"},
            sections=(
                lab.Section("Means over inputs", (lab.Table(rows),)),
                lab.Section("Masks", drawn, page_only=True),
            ),
            data={"means": rows, "settings": settings},
        )

    def plot(self, *, inputs: Sequence[int] | int = 6, names: Sequence[str] | None = None) -> Any:
        """An altair chart: inputs, and the masks for the predicted label and the runner-up.

        Args:
            inputs: which of them, or how many of the first.
            names: of the labels.

        Raises:
            ValueError: masks of tokens, which are no picture.
        """
        if self.masks.ndim != 5:
            raise ValueError("masks of tokens are no picture; read them from .masks")
        chosen = range(min(inputs, len(self.masks))) if isinstance(inputs, int) else inputs
        low, high = float(self.inputs.min()), float(self.inputs.max())
        pictures = []
        for index in chosen:
            row = str(index)
            image = shown_input(self.inputs[index], low, high)
            pictures.append(Picture(row, "input", image, ""))
            order = self.whole[index].argsort(descending=True)
            for column, place in zip(
                ("most probable", "runner-up"), order[:2].tolist(), strict=False
            ):
                label = int(self.labels[index, place])
                said = names[label] if names is not None else f"label {label}"
                whole, kept = self.whole[index, place], self.probabilities[index, place, 0]
                caption = f"{said}: {float(kept):.2g} of {float(whole):.2g}"
                mask = shown_mask(self.masks[index, place, 0])
                pictures.append(Picture(row, column, mask, caption))
        return grid(pictures)


def _said(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
