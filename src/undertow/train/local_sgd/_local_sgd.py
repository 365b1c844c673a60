"""Local SGD over the workers of a process group: a hook on the optimizer's step.

Each worker takes H steps of its own, then the parameters of all are averaged (2303.01215); with an
outer optimizer on the averaged difference this is DiLoCo (2311.08105).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.hooks import RemovableHandle

from undertow.train.local_sgd._averaging import Averager
from undertow.train.local_sgd._carried import digest, named_parameters
from undertow.train.local_sgd._checks import HOOKED, check_arguments, check_places, check_state
from undertow.train.local_sgd._meeting import Word, WorkerLost
from undertow.train.local_sgd._outer import Outer
from undertow.train.local_sgd._outer_state import OuterState
from undertow.train.local_sgd._progress import Progress
from undertow.train.local_sgd._report import LocalReport
from undertow.train.local_sgd._rounds import Period, Rounds
from undertow.train.local_sgd._start import agree, settings_of
from undertow.train.local_sgd._statistics import reestimate
from undertow.train.local_sgd._team import Team, Troubled, trouble

_EVERY = 16  # rounds from one measurement of the distance to the average to the next


class LocalSGD:
    """Let each worker take its own steps, and average the model over workers round by round.

    One line in a loop that runs under `torchrun`, each worker on its own data; the loop itself
    stays as it is on one machine, without DistributedDataParallel:

        with train.LocalSGD(model, optimizer, period=8):
            for inputs, targets in loader:
                loss(model(inputs), targets).backward()
                optimizer.step()
                optimizer.zero_grad()

    It counts calls of `optimizer.step`, so that schedulers, clipping, several groups, gradient
    accumulation and `torch.compile` change nothing. A step that a GradScaler skips is no call and
    does not count: that worker takes one more for its round. Leaving the block averages what is
    left of the last round. Without a process group, or in a group of one, only an outer optimizer
    has something to do.

    Args:
        model: any module. Its parameters must be equal on all ranks; DTensors of `fully_shard`
            are averaged shard by shard over `group`, the ranks with the same shard.
        optimizer: a `torch.optim.Optimizer` of the model's parameters.
        period: H, local steps of a round; or "qsr", the quadratic rule of 2310.14423; or a function
            of the steps taken and the learning rate. The rate is the optimizer's own at the first
            step of the round, the largest of its groups.
        alpha: as in `train.Rounds`, and so are base, power, warmup_steps, peak_lr, total_steps.
        base: as there.
        power: as there.
        warmup_steps: as there.
        peak_lr: as there.
        total_steps: as there; steps of this worker.
        outer: what is done with the averaged difference; plain averaging by default.
        average: what is averaged beside "parameters" (always): "optimizer", its state such as
            momenta (counters are checked, not averaged); "buffers" (integers: the largest). Outer
            steps are for parameters only.
        group: the workers; all processes by default.
        timeout: seconds after which a worker that does not come to the end of a round is lost. It
            must exceed the longest wait for the slowest worker, evaluation on one rank included.
        sync: start from the first rank's parameters in place of comparing them.

    Raises:
        TypeError: an argument is of the wrong kind; of this and the next, all ranks say the line.
        ValueError: an argument is out of its range, ranks differ in settings, shapes or values, or
            the model is averaged over the same ranks already (DistributedDataParallel, FSDP).
        WorkerLost: a rank did not come within the timeout. It is raised by `optimizer.step()` too,
            on every rank that is left, with its own parameters in place; `rebuild()` then goes on.
        FloatingPointError: from a step: a number is no longer finite on some rank. Nothing has been
            averaged.

    Notes:
        Averages go through one flat buffer for each number format, reduced in slices of 25 MB, all
        on their way at once. Parameters keep their storage. Words of a few bytes go through the
        group's store before and after, so that an averaging happens on all ranks or on none.
        Sparse gradients are fine: what is averaged are parameters, which are dense.

    Source: 2303.01215 (Local SGD), 2310.14423 (the quadratic rule), 2311.08105 (DiLoCo).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        period: Period = 1,
        *,
        alpha: float | None = None,
        base: int = 1,
        power: float = 2.0,
        warmup_steps: int = 0,
        peak_lr: float | None = None,
        total_steps: int | None = None,
        outer: Outer | None = None,
        average: Sequence[Literal["parameters", "optimizer", "buffers"]] = ("parameters",),
        group: dist.ProcessGroup | None = None,
        timeout: float = 600.0,
        sync: bool = False,
    ) -> None:
        if not (math.isfinite(timeout) and timeout > 0):
            raise ValueError(f"timeout must be seconds above 0, got {timeout}")
        self._team = Team.of(group, timeout)
        try:
            check_arguments(model, optimizer, outer, average, self._team)
            self._rule = Rounds(period, alpha, base, power, warmup_steps, peak_lr, total_steps)
        except (TypeError, ValueError) as error:
            self._team.leave(trouble(error))
            raise
        averaged = sorted(set(average))
        settings = settings_of(
            optimizer, **vars(self._rule), outer=outer, average=averaged, sync=sync
        )
        self.model, self.optimizer = model, optimizer
        self._averager = Averager(model, optimizer, {"parameters", *average})
        self._outer = OuterState(outer or Outer())
        self._progress = Progress()
        self._payload = 0  # bytes of the parameters, which data-parallel training sends each step
        self._lost: tuple[int, ...] | None = None  # after a failure: whom to go on without
        self._hooks: list[RemovableHandle] = []
        self._begin(settings, sync)

    def _begin(self, settings: dict[str, Any], sync: bool) -> None:
        with torch.no_grad():
            start = [part for part in self._averager.carried() if part.part != "optimizer"]
            if self.num_workers > 1:
                try:
                    agree(self._team, settings, start, values=not sync)
                except Troubled as told:
                    raise told.error from None
            self._team.connect()
            if sync:
                self._averager.broadcast(self._team)
            self._payload = sum(
                tensor.nbytes
                for part in start
                if part.part == "parameters"
                for tensor in part.tensors.values()
            )
        HOOKED.add(self.optimizer)
        self._hooks = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        ]

    @property
    def num_workers(self) -> int:
        """K, the workers that average now."""
        return self._team.size

    @property
    def steps(self) -> int:
        """Steps that this worker has taken."""
        return self._progress.steps

    @property
    def rounds(self) -> int:
        """Averagings."""
        return self._progress.rounds

    @property
    def step_in_round(self) -> int:
        """Steps since the last averaging."""
        return self._progress.step_in_round

    @property
    def bytes_reduced(self) -> int:
        """What this worker gave to all-reduces; half precision counts as float32, as it is sent."""
        return self._progress.bytes_reduced

    @property
    def bytes_sent(self) -> float:
        """2 (K - 1) / K times as many bytes, which is what a ring sends from each worker."""
        return self._progress.bytes_sent

    def __repr__(self) -> str:
        workers = f"{self.num_workers} worker{'s' if self.num_workers > 1 else ''}"
        rule = self._rule.period if isinstance(self._rule.period, int | str) else "a function"
        return f"LocalSGD({workers}, period {rule}, step {self.steps}, {self.rounds} rounds)"

    def _before_step(self, *_: Any) -> None:
        if self._lost is not None:
            raise RuntimeError(
                "the last round was not averaged: rebuild() goes on without the workers that are "
                "lost, load_state_dict() from a saved state"
            )
        if self.step_in_round:
            return
        try:
            lr = max(float(group["lr"]) for group in self.optimizer.param_groups)
            self._progress.length = self._rule.length(self.steps, lr)
            self._progress.lr = lr
        except Exception as error:
            self._team.leave(trouble(error))
            self._lost = ()
            raise
        with torch.no_grad():
            self._outer.begin(named_parameters(self.model, self.optimizer))

    def _after_step(self, *_: Any) -> None:
        self._progress.steps += 1
        self._progress.step_in_round += 1
        if self.step_in_round >= self._progress.length:
            self._average()

    def _average(self, ended: bool = False) -> bool:
        """Average; whether there was something to."""
        progress = self._progress
        word: Word = {
            "steps": progress.steps,
            "in_round": progress.step_in_round,
            "length": progress.length,
            "lr": progress.lr,
            "ended": ended,
        }
        about = "the end of the loop" if ended else f"the average after step {self.steps}"
        try:
            with torch.no_grad():
                far = progress.rounds % _EVERY == 0
                done = self._averager.average(self._team, word, about, far=far)
                if done is None:
                    return False
                self._outer.step_(named_parameters(self.model, self.optimizer))
        except Troubled as told:
            self._lost = told.ranks
            raise told.error from None
        except WorkerLost as lost:
            self._lost = lost.ranks
            raise
        except Exception:
            self._lost = ()
            raise
        progress.end_round(self.num_workers, done.nbytes, done.distance)
        return True

    def average(self) -> None:
        """End the round here and average; all ranks call it, after as many steps.

        For an evaluation or a checkpoint of the averaged model in the middle of a round.
        """
        if self.step_in_round:
            self._average()

    def finish(self) -> None:
        """Average what is left of the last round, and stop; all ranks call it when their loop ends.

        A rank may be as much as a round behind the others, such as for steps that a GradScaler
        skipped there; it then takes part as it is.

        Raises:
            WorkerLost: a rank ended its loop more than a round before the others, did not come
                within the timeout, or had left with an error.
        """
        if not self._hooks:
            return
        if self._lost is None:
            while self._average(ended=True) and self.num_workers > 1:
                pass
            self._team.farewell()
        self._unhook()

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        HOOKED.discard(self.optimizer)

    def close(self) -> None:
        """Take the hooks away and give the group back; nothing is averaged.

        The model and the optimizer are then as if there had been no LocalSGD.
        """
        self._unhook()
        self._team.disconnect(works=self._lost is None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.finish()
            elif self._lost is None and self._hooks:
                text = (str(error).splitlines() or [""])[0]
                why = f"{type(error).__name__}: {text}" if text else type(error).__name__
                self._team.leave({"left": f"stopped after step {self.steps} ({why})"})
                self._lost = ()
        finally:
            self.close()

    def rebuild(self, group: dist.ProcessGroup | None = None) -> None:
        """Go on after a loss with the workers that are left, who all call it.

        The round that failed is averaged now, over them, and training continues from there: each of
        them still has its own parameters of the round's end. Bytes and steps go on counting.

        Args:
            group: the workers to go on with; by default those that are not known to be lost.

        Raises:
            ValueError: this rank is one of those that the others went on without, or ranks come
                from different rounds.
            WorkerLost: another one is lost.
        """
        lost = self._lost or ()
        if group is None and self._team.rank in lost:
            raise ValueError(
                f"rank {self._team.rank} was left out: the others go on without it; start it anew "
                "from their saved state, in a new group"
            )
        self._team = (
            self._team.without(lost) if group is None else Team.of(group, self._team.timeout)
        )
        self._same_place("the rebuilt group")
        self._team.connect()
        failed, self._lost = self._lost is not None, None
        if failed and self.step_in_round >= self._progress.length:
            self._average()

    def _same_place(self, about: str, problem: Exception | None = None) -> None:
        """All ranks have taken as many rounds, and are as far in theirs."""
        words = {"place": self._progress.place} if problem is None else trouble(problem)
        try:
            self._team.meet(words, about, check=check_places)
        except Troubled as others:
            raise (problem or others.error) from None

    def reestimate(self, loader: Iterable[Any], batches: int = 100) -> int:
        """Set the running statistics of batch norm to their means over batches of all workers.

        For an averaged model, after `finish()` or `average()`; all ranks call it. It runs in
        training mode for the norms alone (dropout is off), and every mode is restored.

        Args:
            loader: batches of this worker: inputs, tuples that start with them, or dictionaries of
                the model's arguments.
            batches: how many each worker runs, or all that its loader has.

        Returns:
            How many batches were run, over all workers.

        Raises:
            ValueError: batches is below 1, or a loader is empty.

        Source: 2303.01215, whose experiments take 100 batches.
        """
        try:
            with torch.no_grad():
                return reestimate(self.model, loader, batches, self._team)
        except Troubled as told:
            raise told.error from None

    def report(self, eigenvalue: float | None = None) -> LocalReport:
        """What was sent, how far workers strayed and, for an eigenvalue, whether it could matter.

        Args:
            eigenvalue: of the Hessian at the minimum, such as the largest of `measure.sharpness`.
                The drift multiplier is that of plain SGD: give eigenvalue / (1 - momentum) for
                steps with momentum.

        Raises:
            ValueError: the eigenvalue is negative, or a step at it was unstable.
        """
        return self._progress.report(self.num_workers, self._payload, eigenvalue)

    def state_dict(self) -> dict[str, Any]:
        """What resumes this worker exactly, in the middle of a round too; one for each rank.

        It holds the place in the round, counts, and the outer optimizer's start and velocity. In
        the middle of a round a worker's own parameters and optimizer state are in the `state_dict`s
        of the model and the optimizer: save those of each rank too.
        """
        return self._progress.state_dict() | {
            "num_workers": self.num_workers,
            "layout": digest(self._averager.carried())[:2],
            "outer": self._outer.state_dict(self.step_in_round > 0),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`; all ranks call it, each with its own.

        The model's and the optimizer's are loaded by the caller.

        Raises:
            ValueError: the state is of another number of workers or another model, its outer
                optimizer lacks what this one needs, or ranks are at different steps.
        """
        problem: Exception | None = None
        try:
            check_state(state, self.num_workers, self._outer)
            self._progress = Progress.of(state)
            self._outer.load_state_dict(
                state["outer"], named_parameters(self.model, self.optimizer)
            )
        except (KeyError, TypeError, ValueError) as error:
            problem = error
        self._same_place("load_state_dict", problem)
        if problem is not None:
            raise problem
        self._lost = None
