"""Ensembles against a plain PyTorch loop over the members, and against JAX.

Same networks, same data order, same number of steps, alternating runs in one process; the figures
are medians. JAX (a development extra) runs `vmap` over members inside a jitted `lax.scan`.

A second part trains networks by 8 workers each: what a sample costs against as many plain members
with the batch of one worker, and against one plain member a network with the batch of all workers.
The latter reads and writes an eighth of the weights for as many samples.

    python -m benchmarks.ensembles [--part cases|workers] [--threads 1|2] [--repeats 5]
                                   [--without-jax]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from undertow.models import mlp
from undertow.train import Ensemble, Member, Outer, Workers, rules


@dataclass(frozen=True)
class Case:
    """One shape of ensemble, and the speed-up over the loop that it should reach."""

    members: int
    sizes: tuple[int, ...]
    batch_size: int
    steps: int
    target: float

    def __str__(self) -> str:
        return f"{self.members} x {'-'.join(map(str, self.sizes))}, batch {self.batch_size}"


CASES = (
    Case(64, (64, 64, 64, 10), 8, 256, 25),
    Case(64, (10, 20, 2), 8, 256, 40),
    Case(16, (784, 256, 256, 10), 8, 64, 4),
    Case(16, (784, 256, 256, 10), 32, 64, 2.5),
    Case(16, (784, 512, 512, 512, 10), 32, 32, 1.7),
    Case(4, (784, 1024, 1024, 10), 128, 16, 0.95),
    Case(2, (784, 2048, 2048, 10), 256, 8, 0.95),
    Case(1, (64, 64, 64, 10), 8, 256, 0.95),
)

LEARNING_RATE, WEIGHT_DECAY, SAMPLES = 0.05, 1e-3, 1024


def problem(case: Case) -> tuple[Tensor, Tensor]:
    """Random inputs and labels: the arithmetic does not care."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(SAMPLES, case.sizes[0], generator=generator)
    return inputs, torch.randint(0, case.sizes[-1], (SAMPLES,), generator=generator)


def plain_loop(case: Case) -> Callable[[], float]:
    """E modules, each with its own torch.optim.SGD, one after another."""
    inputs, targets = problem(case)
    modules = [mlp(case.sizes) for _ in range(case.members)]
    optimizers = [
        torch.optim.SGD(module.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        for module in modules
    ]
    loss = nn.CrossEntropyLoss()
    generator = torch.Generator().manual_seed(1)

    def run() -> float:
        order = torch.randint(
            SAMPLES, (case.members, case.steps, case.batch_size), generator=generator
        )
        start = time.perf_counter()
        for module, optimizer, own in zip(modules, optimizers, order, strict=True):
            for index in own:
                optimizer.zero_grad()
                loss(module(inputs[index]), targets[index]).backward()
                optimizer.step()
        return time.perf_counter() - start

    return run


def ensemble(case: Case) -> tuple[Callable[[], float], Ensemble]:
    """The same as one `Ensemble`, on the path that it chooses itself."""
    members = [
        Member(seed, LEARNING_RATE, WEIGHT_DECAY, order="replacement")
        for seed in range(case.members)
    ]
    trained = Ensemble(
        lambda generator: mlp(case.sizes, generator=generator),
        nn.CrossEntropyLoss(),
        problem(case),
        members,
        batch_size=case.batch_size,
        rule=rules.sgd,
    ).train(1)

    def run() -> float:
        start = time.perf_counter()
        trained.train(case.steps)
        return time.perf_counter() - start

    return run, trained


def jax_ensemble(case: Case) -> Callable[[], float] | None:
    """The same in JAX, or None where it is not installed."""
    try:
        import jax
        import jax.numpy as jnp
    except ImportError:
        return None
    inputs, targets = (jnp.asarray(part.numpy()) for part in problem(case))
    params = []
    for index, (fan_in, fan_out) in enumerate(zip(case.sizes[:-1], case.sizes[1:], strict=True)):
        bound = fan_in**-0.5
        shape = (case.members, fan_in, fan_out)
        draw = jax.random.uniform(jax.random.key(index), shape, minval=-bound, maxval=bound)
        params.append((draw, jnp.zeros((case.members, fan_out))))

    def loss(own, x, y):
        for weight, bias in own[:-1]:
            x = jax.nn.relu(x @ weight + bias)
        logits = jax.nn.log_softmax(x @ own[-1][0] + own[-1][1])
        return -jnp.take_along_axis(logits, y[:, None], axis=1).mean()

    def step(own, index):
        grads = jax.grad(loss)(own, inputs[index], targets[index])
        shrink = 1 - LEARNING_RATE * WEIGHT_DECAY
        return jax.tree.map(lambda w, g: shrink * w - LEARNING_RATE * g, own, grads)

    @jax.jit
    def steps(all_params, order):
        return jax.lax.scan(lambda p, index: (jax.vmap(step)(p, index), None), all_params, order)[0]

    state = {"params": params, "key": jax.random.key(99)}

    def run() -> float:
        state["key"], key = jax.random.split(state["key"])
        shape = (case.steps, case.members, case.batch_size)
        order = jax.random.randint(key, shape, 0, SAMPLES).block_until_ready()
        start = time.perf_counter()
        state["params"] = jax.block_until_ready(steps(state["params"], order))
        return time.perf_counter() - start

    run()
    return run


def measure(case: Case, repeats: int, with_jax: bool) -> None:
    """Time one case and print its line."""
    ours, trained = ensemble(case)
    runs = {"loop": plain_loop(case), "ensemble": ours}
    if with_jax and (rival := jax_ensemble(case)):
        runs["jax"] = rival
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(run())
    per = {
        name: statistics.median(values) / case.steps / case.members * 1e6
        for name, values in times.items()
    }
    jax_text = f"{per['jax']:9.1f}  {per['jax'] / per['ensemble']:6.2f}x" if "jax" in per else ""
    print(
        f"{case!s:40} {trained.path:6} {per['loop']:9.1f} {per['ensemble']:9.1f} "
        f"{per['loop'] / per['ensemble']:7.2f}x (>= {case.target:g}x) {jax_text}",
        flush=True,
    )


WORKER_CASES = (Case(64, (64, 64, 64, 10), 8, 64, 1.3), Case(64, (10, 20, 2), 8, 256, 1.3))
NUM_WORKERS = 8
CREWS = {
    **{f"H = {period}": Workers(NUM_WORKERS, period) for period in (1, 2, 4, 16, 64)},
    "H = 16, outer Nesterov": Workers(NUM_WORKERS, 16, outer=Outer(0.7, 0.9, nesterov=True)),
}


def measure_workers(case: Case, repeats: int) -> None:
    """Time one case at several periods, and print a line for each."""

    def trained(count: int, batch_size: int, workers: Workers | None = None) -> Ensemble:
        members = [
            Member(seed, LEARNING_RATE, WEIGHT_DECAY, order="replacement", workers=workers)
            for seed in range(count)
        ]
        return Ensemble(
            lambda generator: mlp(case.sizes, generator=generator),
            nn.CrossEntropyLoss(),
            problem(case),
            members,
            batch_size=batch_size,
            path="fused",
        ).train(1)

    runs = {
        "lanes": trained(case.members * NUM_WORKERS, case.batch_size),
        "large": trained(case.members, case.batch_size * NUM_WORKERS),
        **{name: trained(case.members, case.batch_size, own) for name, own in CREWS.items()},
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run.train(case.steps)
            times[name].append(time.perf_counter() - start)

    def ratio(name: str, other: str) -> float:
        pairs = zip(times[name], times[other], strict=True)
        return statistics.median(own / rival for own, rival in pairs)

    samples = case.steps * case.members * NUM_WORKERS * case.batch_size
    for name in CREWS:
        cost = statistics.median(times[name]) / samples * 1e9
        print(
            f"{case!s:34} {name:24} {cost:8.0f} {ratio(name, 'lanes'):7.2f}x (<= {case.target:g}x) "
            f"{ratio(name, 'large'):7.2f}x",
            flush=True,
        )


def cases(repeats: int, with_jax: bool) -> None:
    """Ensembles against a loop and JAX."""
    print(
        f"{'':40} {'path':6} {'loop':>9} {'ensemble':>9} {'ours':>8} {'target':>10} "
        f"{'jax':>9} {'over jax':>9}"
    )
    for case in CASES:
        measure(case, repeats, with_jax)


def workers(repeats: int) -> None:
    """Workers against plain members."""
    lanes, large = f"{NUM_WORKERS} members", f"batch x {NUM_WORKERS}"
    print(f"{'':59} {'ns/sample':>8} {lanes:>10} {'target':>8} {large:>11}")
    for case in WORKER_CASES:
        measure_workers(case, repeats)


def main() -> None:
    """Time every case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("cases", "workers"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--without-jax", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    print(f"microseconds per run-step, {chosen.threads} torch thread(s), medians")
    if chosen.part != "workers":
        cases(chosen.repeats, not chosen.without_jax)
    if chosen.part != "cases":
        workers(chosen.repeats)


if __name__ == "__main__":
    main()
