"""What the members of an ensemble make of some data."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Shaped
from torch import Tensor

from undertow.train.ensemble._losses import BatchLoss


@dataclass(frozen=True)
class Evaluation:
    """Loss and accuracy of every member on some data, each `[E]`.

    Members that diverged have NaN. Accuracy is NaN where the targets are not class labels.
    """

    loss: Float[Tensor, " E"]
    accuracy: Float[Tensor, " E"]
    num_samples: int

    def __repr__(self) -> str:
        accuracy = float(self.accuracy.nanmean())
        shown = f", accuracy {accuracy:.4g}" if accuracy == accuracy else ""
        return (
            f"{len(self.loss)} members on {self.num_samples} samples: "
            f"mean loss {float(self.loss.nanmean()):.4g}{shown}"
        )


def score(
    loss: BatchLoss,
    outputs: Float[Tensor, "n ..."],
    targets: Shaped[Tensor, "n ..."],
    ignored: int | None,
) -> tuple[Tensor, Tensor]:
    """One member's mean loss and accuracy; samples with the label `ignored` do not count."""
    total, count = loss.sum_and_count(outputs, targets, len(outputs))
    accuracy = outputs.new_tensor(float("nan"))
    if outputs.ndim == 2 and targets.ndim == 1 and not targets.is_floating_point():
        right = outputs.argmax(1) == targets
        counted = right if ignored is None else right[targets != ignored]
        accuracy = counted.to(outputs.dtype).mean()
    return total / count, accuracy
