"""What the members of an ensemble make of some data."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


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
