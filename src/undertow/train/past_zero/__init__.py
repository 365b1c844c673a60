"""Training past zero loss: losses in the log domain, and learning rates that follow them."""

from undertow.train.past_zero._descent import Dips as Dips
from undertow.train.past_zero._descent import descend_log_loss as descend_log_loss
from undertow.train.past_zero._descent import loss_based_epochs as loss_based_epochs
from undertow.train.past_zero._descent import past_zero_loss as past_zero_loss
from undertow.train.past_zero._networks import LogDomain as LogDomain
from undertow.train.past_zero._scheduler import LossBasedLR as LossBasedLR
from undertow.train.past_zero._tails import log_losses as log_losses

__all__ = [
    "Dips",
    "LogDomain",
    "LossBasedLR",
    "descend_log_loss",
    "log_losses",
    "loss_based_epochs",
    "past_zero_loss",
]
