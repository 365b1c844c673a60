"""Networks that claims have trained side by side, each on its own draw of the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped
    from torch import Tensor

    from undertow.objective import Objective
    from undertow.train import Ensemble, Evaluation

Loss = Literal["cross-entropy", "square"]


@dataclass(frozen=True)
class Networks:
    """An ensemble, with the data that each member is trained and tested on.

    Attributes:
        ensemble: the networks.
        pool: inputs `[rows, ...]` in the type in which the ensemble trains, and their targets.
        train: each member's training data, as rows of the pool.
        held_out: those that were kept back from it.
        num_classes: labels run from 0 to one less.
        characters: those that language models know; none of networks on images.
        loss: what they are trained on.
        smoothing: share of each label that cross-entropy spreads over all classes.
    """

    ensemble: Ensemble
    pool: tuple[Tensor, Tensor]
    train: Int[Tensor, "E n"]
    held_out: Int[Tensor, "E m"]
    num_classes: int
    characters: str = ""
    loss: Loss = "cross-entropy"
    smoothing: float = 0.0

    @property
    def inputs(self) -> Float[Tensor, "E n ..."]:
        """What each member is trained on, copied; `data_of` gives it for one."""
        return self.pool[0][self.train]

    @property
    def targets(self) -> Shaped[Tensor, "E n ..."]:
        """The targets of `inputs`."""
        return self.pool[1][self.train]

    @property
    def test(self) -> tuple[Float[Tensor, "E m ..."], Shaped[Tensor, "E m ..."]]:
        """Inputs and targets that each member was not trained on, copied."""
        return self.pool[0][self.held_out], self.pool[1][self.held_out]

    def data_of(self, member: int) -> tuple[Tensor, Tensor]:
        """Inputs `[n, ...]` and targets `[n, ...]` that one member is trained on."""
        rows = self.train[member]
        return self.pool[0][rows], self.pool[1][rows]

    def fit(self) -> Evaluation:
        """Every member's loss and accuracy on what it is trained on."""
        return self._evaluation(self.train)

    def tested(self) -> Evaluation:
        """Every member's loss and accuracy on what was kept back from it."""
        return self._evaluation(self.held_out)

    def measured(
        self, measure: Callable[[Objective], float], only: Sequence[int] | None = None
    ) -> list[float | None]:
        """What is measured of each member's `objective`; None of those that have diverged.

        Args:
            measure: from a member's loss on its own training data to a number.
            only: the members to measure, None of the others; by default all.
        """
        found: list[float | None] = [None] * len(self.ensemble.diverged)
        for member in self.ensemble.alive:
            if only is None or member in only:
                found[member] = measure(self.objective(member))
        return found

    def results(self) -> dict[str, Any]:
        """What is compared of trained networks, with a value for each, as `lab.rows_of` takes it.

        `diverged`, `loss` and its logarithm `log_loss` on what each is trained on, `test_loss` and
        `accuracy` on what was kept back.
        """
        fit, tested = self.fit(), self.tested()
        return {
            "diverged": self.ensemble.diverged,
            "loss": fit.loss,
            "log_loss": fit.loss.double().log(),
            "test_loss": tested.loss,
            "accuracy": tested.accuracy,
        }

    def losses_at(
        self, steps: Sequence[int], shown: int | None = None
    ) -> Float[Tensor, "readings E"]:
        """Every member's training loss after these numbers of steps; trains to each of them.

        Args:
            steps: of the rule, all in all since the start; they rise.
            shown: on how many of its training samples each is read; by default all.
        """
        import torch

        losses, samples = [], self.train[:, :shown]
        for taken in steps:
            self.ensemble.train(taken - self.ensemble.steps_taken)
            losses.append(self.ensemble.evaluate(*self.pool, samples=samples).loss)
        return torch.stack(losses)

    def objective(self, member: int, smoothing: float | None = None) -> Objective:
        """One member's cross-entropy on its own training data, as a function of its parameters.

        Args:
            member: which one.
            smoothing: share of each label that is spread over all classes: the mean over labels of
                which as many are drawn anew. By default as in training.
        """
        from undertow.objective import Objective

        share = self.smoothing if smoothing is None else smoothing
        module = self.ensemble.module(member)
        return Objective(module, cross_entropy(share), self.data_of(member))

    def _evaluation(self, rows: Int[Tensor, "E n"]) -> Evaluation:
        inputs, labels = self.pool
        shown = as_shown(self.loss, labels, self.num_classes, inputs)
        found = self.ensemble.evaluate(inputs, shown, samples=rows)
        if self.loss == "cross-entropy":
            return found
        right = self.ensemble.predict(inputs, samples=rows).argmax(2) == labels[rows]
        accuracy = right.double().mean(1).masked_fill(found.loss.isnan(), float("nan"))
        return replace(found, accuracy=accuracy)


def cross_entropy(smoothing: float) -> Callable[[Tensor, Tensor], Tensor]:
    """With a share of each label spread over all classes."""
    from torch import nn
    from torch.nn import functional

    return nn.CrossEntropyLoss(label_smoothing=smoothing) if smoothing else functional.cross_entropy


def as_shown(loss: Loss, labels: Tensor, num_classes: int, inputs: Tensor) -> Tensor:
    """Labels as the loss takes them."""
    if loss == "cross-entropy":
        return labels
    from torch.nn import functional

    return functional.one_hot(labels, num_classes).to(inputs)
