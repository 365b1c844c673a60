"""The loss-based learning rate of arXiv 1906.05890 as a PyTorch scheduler.

lr = alpha / mean loss. Where an epoch lowered the loss alpha grows by 2^(1/5); where it did not,
the epoch is taken back, and alpha shrinks by 2^(1/10).
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

GROW, SHRINK = 2**0.2, 2**-0.1  # of alpha, where the loss fell and where it did not
_LEAST_LOG = -600.0  # of a loss by which a learning rate can be divided


class LossBasedLR:
    """Sets lr = alpha / mean loss after each epoch, and takes an epoch back that raised the loss.

        scheduler = LossBasedLR(optimizer, log_loss=log_mean_loss(model), relative=True)
        for _ in range(epochs):
            for inputs, labels in loader:
                optimizer.zero_grad()
                scheduler.relative(train.log_losses(model(inputs), labels)).backward()
                optimizer.step()
            scheduler.step(log_mean_loss(model))

    The call is that of `ReduceLROnPlateau`. `step` copies the parameters and the optimizer's state
    where the loss fell, and copies them back where it rose or is NaN, so that the next epoch is the
    retry. Only what the optimizer holds is taken back: batch statistics are not, which homogeneous
    networks have none of.

    Args:
        optimizer: its lr is set.
        log_loss: the log of the mean loss over all data, at the start.
        alpha: at the start.
        grow: alpha is multiplied by it where the loss fell, 2^(1/5) in the paper.
        shrink: and by this where it did not, 2^(-1/10).
        relative: whether the loss that is descended is `relative(...)`, which is the mean loss over
            that at the last epoch: lr is then alpha, and nothing is as small as the loss. Without
            it the loss is the plain one, and lr leaves float64's range where the loss does.

    Attributes:
        alpha: as it is now.
        log_loss: the log of the mean loss of the last epoch that was kept.
        kept, taken_back: how many epochs were.

    Raises:
        TypeError: optimizer is none.
        ValueError: alpha, grow or shrink out of range, or the loss is not finite.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        log_loss: float,
        alpha: float = 0.1,
        grow: float = GROW,
        shrink: float = SHRINK,
        relative: bool = False,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
            )
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha must be positive and finite, got {alpha}")
        if not 0 < shrink < 1 < grow:
            raise ValueError(
                f"shrink must be between 0 and 1 and grow above 1, got {shrink} and {grow}"
            )
        if not math.isfinite(log_loss):
            raise ValueError(
                f"log_loss must be finite, got {log_loss}: give the log of the loss, as "
                "train.log_losses(...).logsumexp(0) - log(n), since the loss itself rounds to zero"
            )
        self.optimizer, self.alpha, self.log_loss = optimizer, float(alpha), float(log_loss)
        self.grow, self.shrink, self.is_relative = grow, shrink, relative
        self.kept = self.taken_back = 0
        self._remember()
        self._set()

    def step(self, log_loss: float | Tensor) -> bool:
        """After an epoch: whether it was kept; otherwise all is as before it, and alpha smaller.

        Args:
            log_loss: the log of the mean loss over all data, with the model as it is now.
        """
        now = float(log_loss)
        fell = now <= self.log_loss and now > -math.inf
        if now == -math.inf:
            raise ValueError(
                "log_loss must be above -inf: the loss rounded to zero before its logarithm was "
                "taken; use train.log_losses"
            )
        if fell:
            self.alpha, self.log_loss = self.alpha * self.grow, now
            self.kept += 1
            self._remember()
        else:
            self.alpha *= self.shrink
            self.taken_back += 1
            self._restore()
        self._set()
        return fell

    def relative(self, log_losses: Tensor) -> Tensor:
        """The mean loss of a batch over that of all data at the last epoch; to be descended.

        Args:
            log_losses: the log of every sample's loss, as `train.log_losses` gives it.
        """
        if not self.is_relative:
            raise ValueError("relative(...) is for a scheduler that was made with relative=True")
        return (log_losses.logsumexp(0) - math.log(len(log_losses)) - self.log_loss).exp()

    def get_last_lr(self) -> list[float]:
        """The learning rate of each group of parameters."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """All but the optimizer, with what an epoch that is taken back would restore."""
        return {
            name: copy.deepcopy(value)
            for name, value in self.__dict__.items()
            if name != "optimizer"
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from such a state; the optimizer's and the model's are loaded apart."""
        self.__dict__.update(copy.deepcopy(state))
        self._set()

    def _set(self) -> None:
        if self.is_relative:
            lr = self.alpha
        elif self.log_loss < _LEAST_LOG:
            raise ValueError(
                f"the loss is e^{self.log_loss:.0f}, too small to divide by; use relative=True and "
                "descend scheduler.relative(train.log_losses(...))"
            )
        else:
            lr = self.alpha * math.exp(-self.log_loss)
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _remember(self) -> None:
        groups = self.optimizer.param_groups
        self._params = [[each.detach().clone() for each in group["params"]] for group in groups]
        self._state = copy.deepcopy(self.optimizer.state_dict()["state"])

    def _restore(self) -> None:
        groups = self.optimizer.param_groups
        with torch.no_grad():
            for group, kept in zip(groups, self._params, strict=True):
                for own, value in zip(group["params"], kept, strict=True):
                    own.copy_(value)
        now = self.optimizer.state_dict()
        self.optimizer.load_state_dict(now | {"state": copy.deepcopy(self._state)})
