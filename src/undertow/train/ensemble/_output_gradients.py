"""Where the fused ensemble trainer's backward pass begins: the loss with respect to the outputs.

Cross-entropy and mean squared error have a closed form; of any other loss it is autograd's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from undertow.train.ensemble._engines import Job
from undertow.train.ensemble._memory import Scratch
from undertow.train.ensemble._sampling import Batch


class OutputGradients:
    """The gradients of a job's loss; `targets` are as its closed form reads them."""

    def __init__(self, job: Job, outputs: int, dtype: torch.dtype) -> None:
        self._job = job
        targets = job.targets
        if job.loss.kind == "cross_entropy" and not targets.is_floating_point():
            self.targets = torch.nn.functional.one_hot(targets, outputs).to(dtype)
        else:
            self.targets = targets.contiguous()

    def of(self, outputs: Tensor, batch: Batch, scratch: Scratch) -> Tensor:
        """Gradient of the batch's summed loss with respect to the outputs, overwriting them."""
        if self._job.loss.kind == "other":
            return self._autograd_gradient(outputs, batch)
        targets = self._closed_form_targets(batch, scratch).view_as(outputs)
        if self._job.loss.kind == "mean_squared_error":
            return outputs.sub_(targets).mul_(2 / outputs.shape[2])
        # A row-wise softmax from elementwise parts: the fused kernel is slow on short rows.
        torch.amax(outputs, 2, keepdim=True, out=scratch.row)
        outputs.sub_(scratch.row).exp_()
        torch.sum(outputs, 2, keepdim=True, out=scratch.row)
        return outputs.div_(scratch.row).sub_(targets)

    def _closed_form_targets(self, batch: Batch, scratch: Scratch) -> Tensor:
        if batch.targets is None:
            return torch.index_select(self.targets, 0, batch.index.reshape(-1), out=scratch.targets)
        if self._job.targets.is_floating_point():
            return batch.targets
        return scratch.targets.zero_().scatter_(1, batch.targets.reshape(-1, 1), 1)

    def _autograd_gradient(self, outputs: Tensor, batch: Batch) -> Tensor:
        targets = self._job.targets_of(batch)
        with torch.inference_mode(False):
            leaf = outputs.clone().requires_grad_()
            means = map(
                self._job.loss.mean,
                leaf.view(-1, *batch.index.shape[2:], outputs.shape[2]),
                targets.clone().flatten(0, 1),
            )
            (grad,) = torch.autograd.grad(torch.stack(list(means)).sum(), leaf)
        return outputs.copy_(grad).mul_(batch.index.shape[2])
