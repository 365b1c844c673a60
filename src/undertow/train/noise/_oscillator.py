"""An oscillator with noisy gradients, whose SDE has a known second moment: a test of weak error.

dx = -P^-1 (x dt + noise) with noise of two values, stepped by `train.rules` themselves; 2102.12470
for SGD, 2205.10287 for RMSprop and Adam, whose running mean of squares makes P.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undertow.objective import whole_number
from undertow.train.rules import Hyper, Rule, State

_RULES = ("sgd", "rmsprop", "adam")
_CHUNK = 2**14  # paths at once, so that a step's arrays stay in the cache
_WARM = 1e15  # so many steps taken that no bias is left to correct


@dataclass(frozen=True)
class NoisyOscillator:
    """The loss x^2 / 2, whose gradients are x + s with noise s of -sigma or sigma, as a coin falls.

    How far a rule is from its stochastic differential equation (SDE) can be read off E x^2: that of
    the SDE is known, that of the rule comes from paths. Under `rules.svag` with growing l the two
    meet, as 1/l for SGD and as 1/l^2 for RMSprop and Adam (weak error).

    Time t is steps x lr for SGD, steps x lr^2 for the others. With sigma_0 = sigma lr, eps_0 =
    eps lr, c1 = (1 - beta1) / lr^2 and P = sigma_0 + eps_0 the SDEs are

    - SGD: dx = -x dt + lr^(1/2) sigma dW;
    - RMSprop: dx = -P^-1 (x dt + sigma_0 dW);
    - Adam: dx = -(P g1)^-1 m dt, dm = c1 (x - m) dt + c1 sigma_0 dW, m = 0 at first, g1 = 1 where
      it is warm and 1 - exp(-c1 t) from step 0.

    As in 2205.10287 (equation 4 and definition 4.4) noise dominates: the running mean of squares v
    rests at sigma^2, and x^2 is small beside it.

    Attributes:
        rule: `rules.sgd`, `rules.rmsprop` or `rules.adam`, bare.
        hyper: its hyperparameters; of them lr, beta1, beta2 and eps are read.
        noise: sigma.
        start: x at time 0.
        end: the time at which E x^2 is taken.
        warm: whether v rests at sigma^2 from the first step and no bias is left to correct.
            Otherwise the averages start at zero, as an optimizer's do.

    Raises:
        ValueError: another rule; weight decay, or one value a member; noise or end not above 0;
            RMSprop from step 0, whose v starts at 0 uncorrected: noise over v^(1/2) then has a
            variance of the integral of dt / t, and there is no SDE to tend to.
    """

    rule: Rule
    hyper: Hyper
    noise: float = 1.0
    start: float = 1.0
    end: float = 1.0
    warm: bool = True

    def __post_init__(self) -> None:
        """Hold the arguments against what the equations are for."""
        if self.rule.name not in _RULES:
            words = ", ".join(f"rules.{name}" for name in _RULES)
            raise ValueError(f"rule must be one of {words}, got {self.rule!r}")
        if self.hyper.weight_decay or any(isinstance(v, Tensor) for v in vars(self.hyper).values()):
            raise ValueError(f"hyper must be plain numbers without weight decay, got {self.hyper}")
        for name in ("noise", "end"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.rule.name == "rmsprop" and not self.warm:
            raise ValueError("warm must be True for rmsprop, got False: from v = 0 it has no SDE")

    def sde_moment(self) -> float:
        """E x^2 at the end of time of the SDE; in closed form but for Adam."""
        first, lr = self.start**2, float(self.hyper.lr)
        if self.rule.name == "adam":
            return self._sde_moment_of_adam()
        if self.rule.name == "sgd":
            pull, rest = 1.0, lr * self.noise**2 / 2
        else:
            scale = lr * (self.noise + float(self.hyper.eps))
            pull, rest = 1 / scale, (lr * self.noise) ** 2 / (2 * scale)
        faded = math.exp(-2 * pull * self.end)
        return first * faded + rest * (1 - faded)

    def simulated_moment(
        self, rule: Rule | None = None, *, paths: int, generator: torch.Generator
    ) -> float:
        """E x^2 at the end of time under the rule itself, as a mean over so many paths, in float64.

        For RMSprop and Adam it is `linear_moment` plus the mean difference from linear paths under
        the same noise, which are close, so that the difference has little variance.

        Args:
            rule: the oscillator's, by default, or this in `rules.svag`. Its noise may have other
                `batch_weights`.
            paths: how many.
            generator: where the noise comes from.

        Raises:
            ValueError: a rule that is not made of the oscillator's, or no paths.
        """
        rule, level = self._finer(rule)
        paths = whole_number("paths", paths, least=1)
        linear = self._linear(rule, level) if self.rule.name != "sgd" else None
        noise = self.noise * _noise_values(rule)
        total = 0.0
        for size in _chunks(paths):
            x = torch.full((size,), self.start, dtype=torch.float64)
            state = rule.init([x])
            if self.warm:
                _warm_up(state, (level * self.noise) ** 2)
            own, mean = x.clone(), torch.zeros_like(x)
            for step in range(1, self._steps(rule) + 1):
                drawn = noise[torch.randint(len(noise), (size,), generator=generator)]
                _, state = rule.update([x], [x + drawn], state, self.hyper, inplace=True)
                if linear is not None:
                    mean = linear.keep * mean + (1 - linear.keep) * (own + drawn)
                    own = own - linear.gain(step) * mean
            squares = x.square()
            total += float((squares if linear is None else squares - own.square()).sum())
        return total / paths + (0.0 if linear is None else self.linear_moment(rule))

    def linear_moment(self, rule: Rule | None = None) -> float:
        """E x^2 at the end of time, exactly, with P at its rest instead of the running mean.

        For SGD, which has none, this is the rule's own.

        Args:
            rule: as of `simulated_moment`.

        Raises:
            ValueError: a rule that is not made of the oscillator's.
        """
        rule, level = self._finer(rule)
        linear = self._linear(rule, level)
        variance = self.noise**2 * sum(weight**2 for weight in rule.batch_weights)
        return linear.moment(self.start, variance, self._steps(rule))

    def _finer(self, rule: Rule | None) -> tuple[Rule, float]:
        """The rule that steps, and l."""
        rule = self.rule if rule is None else rule
        assert self.rule.scaling is not None
        if rule.reads != self.rule.reads or rule.scaling != self.rule.scaling:
            raise ValueError(f"rule must be {self.rule!r} or this in rules.svag, got {rule!r}")
        return rule, rule.steps_per_step ** (1 / self.rule.scaling.steps)

    def _steps(self, rule: Rule) -> int:
        assert rule.scaling is not None
        return round(self.end / float(self.hyper.lr) ** rule.scaling.steps * rule.steps_per_step)

    def _linear(self, rule: Rule, level: float) -> _Linear:
        rate = float(self.hyper.lr) / level
        if self.rule.name != "sgd":
            rate /= level * (self.noise + float(self.hyper.eps))
        if self.rule.name != "adam":
            return _Linear(rate, 0.0, corrected=False)
        keep = 1 - (1 - float(self.hyper.beta1)) / level**2
        return _Linear(rate, keep, corrected=not self.warm)

    def _sde_moment_of_adam(self) -> float:
        from scipy.integrate import solve_ivp

        lr = float(self.hyper.lr)
        forgetting = (1 - float(self.hyper.beta1)) / lr**2
        scale = lr * (self.noise + float(self.hyper.eps))
        spread = (forgetting * lr * self.noise) ** 2

        def velocity(log_time: float, moments: np.ndarray) -> list[float]:
            time, (xx, xm, mm) = math.exp(log_time), moments
            pull = 1 / (scale * (1.0 if self.warm else -math.expm1(-forgetting * time)))
            change = (
                -2 * pull * xm,
                -pull * mm + forgetting * (xx - xm),
                2 * forgetting * (xm - mm) + spread,
            )
            return [time * part for part in change]

        # In the logarithm of time, as the pull diverges at step 0; at first m is all noise.
        first, square = 1e-9 * min(self.end, 1 / forgetting), self.start**2
        begin = [square, forgetting * first * square, spread * first]
        span = (math.log(first), math.log(self.end))
        solved = solve_ivp(velocity, span, begin, method="LSODA", rtol=1e-10, atol=1e-14)
        return float(solved.y[0, -1])


@dataclass(frozen=True)
class _Linear:
    """m' = keep m + (1 - keep) (x + noise), x' = x - gain m': linear, with known moments."""

    rate: float
    keep: float
    corrected: bool

    def gain(self, step: int) -> float:
        return self.rate / (1 - self.keep**step if self.corrected else 1.0)

    def moment(self, start: float, variance: float, steps: int) -> float:
        """E x^2 after so many steps."""
        keep, take = self.keep, 1 - self.keep
        xx, xm, mm = start**2, 0.0, 0.0
        for step in range(1, steps + 1):
            mm = keep**2 * mm + 2 * keep * take * xm + take**2 * (xx + variance)
            xm = keep * xm + take * xx
            gain = self.gain(step)
            xx, xm = xx - 2 * gain * xm + gain**2 * mm, xm - gain * mm
        return xx


def _noise_values(rule: Rule) -> Float[Tensor, " values"]:
    """What the weighted sum of the rule's batches can be when each one's noise is -1 or 1."""
    signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=len(rule.batch_weights))))
    return signs.double() @ torch.tensor(rule.batch_weights, dtype=torch.float64)


def _chunks(paths: int) -> Iterator[int]:
    for done in range(0, paths, _CHUNK):
        yield min(_CHUNK, paths - done)


def _warm_up(state: State, square: float) -> None:
    """The state of a rule that has seen nothing but noise for a long time."""
    for name, value in (("square", square), ("step", _WARM)):
        if name in state:
            state[name][0].fill_(value)
