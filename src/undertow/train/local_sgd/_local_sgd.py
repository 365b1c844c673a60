"""Local SGD over the workers of a process group: a hook on the optimizer's step, one line in a loop.

Each worker takes H steps of its own, then the parameters of all are averaged (2303.01215); with an
outer optimizer on the averaged difference this is DiLoCo (2311.08105).
"""

from __future__ import annotations

import math
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from undertow.train.local_sgd._flat import Flat, reduce_in_slices
from undertow.train.local_sgd._meeting import Meeting, WorkerLost
from undertow.train.local_sgd._outer import Outer
from undertow.train.local_sgd._rounds import Period, Rounds


class LocalSGD:
    """Average a model over workers after every round of local steps."""

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
        group: dist.ProcessGroup | None = None,
        timeout: float = 600.0,
    ) -> None:
        self.rounds_rule = Rounds(period, alpha, base, power, warmup_steps, peak_lr, total_steps)
        self.model, self.optimizer, self.outer = model, optimizer, outer or Outer()
        self.timeout = timeout
        self.steps = self.rounds = self.step_in_round = self.payload = 0
        self.num_workers = 1
        self._join(group)
        self._flats: list[Flat] = []
        self._length = 0
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    @property
    def bytes_sent(self) -> float:
        """Bytes that this worker has sent, 2 (K - 1) / K times what it had reduced in a ring."""
        return 2 * (self.num_workers - 1) / self.num_workers * self.payload

    def _join(self, group: dist.ProcessGroup | None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            return
        group = group or dist.group.WORLD
        assert group is not None
        ranks = dist.get_process_group_ranks(group)
        self.num_workers = len(ranks)
        if self.num_workers == 1:
            return
        store = group.get_group_store()
        made = store.add(f"undertow/local_sgd/made/{dist.get_rank()}", 1)
        store = dist.PrefixStore(f"undertow/local_sgd/{made}", store)
        self._meeting = Meeting(store, ranks, dist.get_rank(), self.timeout)
        self._meeting.meet({}, "the start")
        self._group = dist.new_group(
            ranks, timeout=timedelta(seconds=self.timeout), use_local_synchronization=True
        )

    def _before_step(self, *_: Any) -> None:
        if self.step_in_round == 0:
            lr = max(float(group["lr"]) for group in self.optimizer.param_groups)
            self._length = self.rounds_rule.length(self.steps, lr)

    def _after_step(self, *_: Any) -> None:
        self.steps += 1
        self.step_in_round += 1
        if self.step_in_round >= self._length:
            with torch.no_grad():
                self._average()

    def _average(self) -> None:
        tensors = [p for p in self.model.parameters() if p.requires_grad]
        if self.num_workers > 1:
            flats = self._flats or [Flat(tensors)]
            finite = flats[0].fill(tensors)
            about = f"the average after step {self.steps}"
            words = self._meeting.meet({"finite": finite, "steps": self.steps}, about)
            for rank, word in words.items():
                if not word["finite"]:
                    raise FloatingPointError(f"rank {rank}: a parameter is not finite")
            reduce_in_slices(flats, self._group)
            self._meeting.meet({}, about)
            flats[0].empty(tensors, 1 / self.num_workers)
            self._flats = flats
            self.payload += flats[0].buffer.nbytes
        self.rounds += 1
        self.step_in_round = 0

    def finish(self) -> None:
        """Average once more where the last round has not ended, and take the hooks away."""
        if self.step_in_round:
            with torch.no_grad():
                self._average()
        self.close()

    def close(self) -> None:
        """Take the hooks away; the model and the optimizer are as they were without."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.close()
