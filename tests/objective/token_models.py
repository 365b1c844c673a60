"""Models with keyword arguments and a loss of their own, and batches that are dictionaries."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional


class Named(nn.Module):
    """A Hugging Face-style model: keyword arguments in, an object with .logits and .loss out."""

    def __init__(self, shift: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7)
        self.shift, self.scale = shift, scale

    def forward(
        self, input_ids: Tensor, mask: Tensor, labels: Tensor | None = None
    ) -> SimpleNamespace:
        hidden = torch.tanh(self.embedding(input_ids)) * mask[..., None]
        logits = self.head(hidden.cumsum(1))
        loss = None
        if labels is not None:
            kept, wanted = logits[:, : logits.shape[1] - self.shift], labels[:, self.shift :]
            loss = self.scale * functional.cross_entropy(kept.flatten(0, 1), wanted.flatten())
        return SimpleNamespace(logits=logits, loss=loss)


def tokens(samples: int = 9, length: int = 5) -> dict[str, Tensor]:
    ids = torch.randint(7, (samples, length), generator=torch.Generator().manual_seed(3))
    targets = ids.clone()
    targets[:4, 2:] = -100
    return {"input_ids": ids, "mask": (ids > 0).double(), "labels": targets}


def sliced(batch: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    total = len(batch["labels"])
    return [
        {name: part[start : start + size] for name, part in batch.items()}
        for start in range(0, total, size)
    ]
