"""Curvature products, eigenvalues and traces against curvlinops and PyHessian.

The unit is one gradient pass of plain PyTorch over the same data. Alternating runs in one process;
the figures are medians of processor time. Rivals are timed where they are installed:
curvlinops-for-pytorch 3.0 and pyhessian 0.1. What is paid once, at the first product, is shown
apart.

    python -m benchmarks.curvature [--threads 1|2] [--repeats 15]
                                   [--part products|eigenvalues|track|trace|preconditioned]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from undertow.measure import SharpnessTracker, hessian_trace, sharpness
from undertow.measure.curvature._krylov import curvature_operator
from undertow.objective import Objective

Run = Callable[[], object]
# What errors of the largest eigenvalue that is followed are to stay below.
_TRACKED_AIM = 0.02


@dataclass(frozen=True)
class Case:
    """A trained-a-little network and its data."""

    name: str
    model: nn.Module
    inputs: Tensor
    targets: Tensor

    @property
    def loss(self) -> nn.CrossEntropyLoss:
        """The mean cross-entropy."""
        return nn.CrossEntropyLoss()

    def gradient(self) -> object:
        """One gradient pass."""
        loss = self.loss(self.model(self.inputs), self.targets)
        return torch.autograd.grad(loss, list(self.model.parameters()))

    def objective(self) -> Objective:
        """What Undertow measures."""
        return Objective(self.model, self.loss, (self.inputs, self.targets))


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn() -> nn.Sequential:
    """About 19 thousand parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 49, 9),
    )


class Transformer(nn.Module):
    """Two encoder layers of width 64 over 16 vectors: about 102 thousand parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 9)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `[samples, 9]`."""
        return self.head(self.encoder(self.embed(inputs)).mean(1))


def cases() -> Iterator[Case]:
    """The networks of the figures, after a few steps of gradient descent on random clusters."""
    torch.manual_seed(0)
    for name, model, shape in (
        ("MLP 134k, N = 2048", mlp(256, 256, 256, 10), (2048, 256)),
        ("MLP 134k, N = 64", mlp(256, 256, 256, 10), (64, 256)),
        ("CNN 19k, N = 128", cnn(), (128, 1, 28, 28)),
        ("transformer 102k, N = 64", Transformer(), (64, 16, 16)),
    ):
        targets = torch.randint(9, (shape[0],))
        inputs = torch.randn(shape) + torch.randn(9, *shape[1:])[targets]
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        model.zero_grad()
        yield Case(name, model.eval(), inputs, targets)


def timed(runs: dict[str, Run], repeats: int) -> dict[str, float]:
    """Median processor seconds of each, alternating."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.process_time()
            run()
            taken[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def rivals() -> tuple[bool, bool]:
    """Whether curvlinops and PyHessian are here."""
    return tuple(importlib.util.find_spec(n) is not None for n in ("curvlinops", "pyhessian"))  # type: ignore[return-value]


def curvlinops_operator(case: Case, kind: str) -> object:
    """Its linear operator, without the probe of determinism."""
    import curvlinops

    make = curvlinops.HessianLinearOperator if kind == "hessian" else curvlinops.GGNLinearOperator
    params = list(case.model.parameters())
    data = [(case.inputs, case.targets)]
    return make(case.model, case.loss, params, data, check_deterministic=False)


def many(objective: Objective, multiply: Callable[[Tensor], Tensor], block: Tensor) -> None:
    """Eight products one after another at fixed parameters, as in a Krylov method."""
    with objective.fixed():
        for _ in range(8):
            multiply(block)


def products(case: Case, repeats: int) -> None:
    """Gradient passes per direction."""
    size = sum(p.numel() for p in case.model.parameters())
    runs: dict[str, Run] = {"gradient": case.gradient}
    directions = {"gradient": 1}
    once: dict[str, float] = {}
    for kind in ("hessian", "ggn"):
        objective = case.objective()
        multiply = objective.hvp if kind == "hessian" else objective.ggnvp
        for k in (1, 8):
            block = torch.randn(k, size)
            start = time.process_time()
            multiply(block)
            once[f"undertow {kind} k={k}"] = time.process_time() - start
            runs[f"undertow {kind} k={k}"] = lambda m=multiply, b=block: m(b)
            directions[f"undertow {kind} k={k}"] = k
            if k == 1:
                name = f"undertow {kind} k=1, 8 fixed"
                runs[name] = lambda o=objective, m=multiply, b=block: many(o, m, b)
                directions[name] = 8
            if rivals()[0]:
                operator = curvlinops_operator(case, kind)
                columns = block.T.contiguous() if k > 1 else block[0]
                name = f"curvlinops {kind} k={k}"
                runs[name] = lambda o=operator, c=columns: o @ c
                directions[name] = k
    if rivals()[1]:
        import pyhessian

        data = [(case.inputs, case.targets)]
        measure = pyhessian.hessian(case.model, case.loss, dataloader=data, cuda=False)
        vector = [torch.randn_like(p) for p in case.model.parameters()]
        runs["pyhessian dataloader k=1"] = lambda: measure.dataloader_hv_product(vector)
        directions["pyhessian dataloader k=1"] = 1
    seconds = timed(runs, repeats)
    unit = seconds["gradient"]
    print(f"{case.name}: gradient {unit * 1e3:.2f} ms; gradient passes per direction")
    for name in list(runs)[1:]:
        first = f" (first call {once[name] / unit:.0f} in all)" if name in once else ""
        print(f"  {name:<28} {seconds[name] / unit / directions[name]:5.2f}{first}")


def eigenvalues(case: Case) -> None:
    """Time and products to the top five eigenvalues, and the relative error."""
    exact = sharpness(case.objective(), 5, 1e-5).eigenvalues
    unit = timed({"gradient": case.gradient}, 9)["gradient"]

    def ours() -> tuple[Tensor, int]:
        found = sharpness(case.objective(), 5)
        return found.eigenvalues, found.products

    contenders: dict[str, Callable[[], tuple[Tensor, int | None]]] = {"undertow": ours}
    if rivals()[0]:
        import scipy.sparse.linalg

        def arpack() -> tuple[Tensor, int | None]:
            operator = curvlinops_operator(case, "hessian").to_scipy()  # type: ignore[attr-defined]
            values = scipy.sparse.linalg.eigsh(operator, k=5, which="LA", tol=1e-3)[0]
            return torch.tensor(values).double().flip(0), None

        contenders["curvlinops + ARPACK"] = arpack
    if rivals()[1]:
        import pyhessian

        def power() -> tuple[Tensor, int | None]:
            data = (case.inputs, case.targets)
            measure = pyhessian.hessian(case.model, case.loss, data=data, cuda=False)
            values, _ = measure.eigenvalues(top_n=5)
            return torch.tensor(values).double(), None

        contenders["pyhessian"] = power
    print(f"{case.name}: top five eigenvalues")
    for name, run in contenders.items():
        taken = []
        for _ in range(3):
            torch.manual_seed(0)
            start = time.process_time()
            values, count = run()
            taken.append(time.process_time() - start)
        error = float((values / exact - 1).abs().max())
        spent = "" if count is None else f", {count} products"
        case.model.zero_grad()
        print(
            f"  {name:<22} {statistics.median(taken):7.3f} s = "
            f"{statistics.median(taken) / unit:5.0f} gradients, error {error:.1e}{spent}"
        )


def track(steps: int = 400) -> None:
    """Products a step and the worst error along gradient descent, before and beyond the edge."""
    for learning_rate, seed in ((2.0, 1), (3.0, 2), (3.0, 3), (3.0, 4), (4.0, 5)):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)
        )
        inputs = torch.randn(200, 64)
        targets = nn.functional.one_hot(torch.randint(10, (200,)), 10).float()
        objective = Objective(model, nn.MSELoss(), (inputs, targets))
        tracker = SharpnessTracker(objective)
        edge = 2 / learning_rate
        spent: dict[bool, list[int]] = {False: [], True: []}
        errors: dict[bool, list[float]] = {False: [], True: []}
        beyond, truth = False, None
        for _ in range(steps):
            found = tracker.update()
            truth = sharpness(objective, 3, start=truth)
            beyond = beyond or float(truth.eigenvalues[0]) > edge
            spent[beyond].append(found.products)
            errors[beyond].append(abs(float(found.eigenvalues[0] / truth.eigenvalues[0]) - 1))
            step = objective.gradient().split([p.numel() for p in model.parameters()])
            with torch.no_grad():
                for p, part in zip(model.parameters(), step, strict=True):
                    p -= learning_rate * part.view_as(p)
        print(f"Gradient descent at learning rate {learning_rate:g}, edge {edge:.3f}")
        for beyond_edge, name in ((False, "before the edge"), (True, "beyond the edge")):
            if spent[beyond_edge]:
                off = sum(error > _TRACKED_AIM for error in errors[beyond_edge])
                print(
                    f"  {name}: {statistics.mean(spent[beyond_edge]):.2f} products a step, worst "
                    f"error {max(errors[beyond_edge]):.2%} over {len(spent[beyond_edge])} steps, "
                    f"{off} of them above {_TRACKED_AIM:.0%}"
                )


def trace(case: Case, rtol: float = 0.02) -> None:
    """Products to a standard error of 2%, beside those of plain Hutchinson."""
    found = hessian_trace(case.objective(), rtol)
    operator = curvature_operator(case.objective(), "hessian")
    generator = torch.Generator().manual_seed(1)
    samples = []
    for _ in range(16):
        signs = torch.randint(0, 2, (16, operator.size), generator=generator) * 2.0 - 1
        samples.append((signs * operator.multiply(signs)).sum(1).double())
    drawn = torch.cat(samples)
    plain = float(drawn.var()) / (rtol * float(drawn.mean())) ** 2
    print(
        f"{case.name}: trace {found.value:.5g} to {rtol:.0%} by {found.products} products "
        f"({found.deflated} deflated); plain Hutchinson needs about {plain:.0f}"
    )


def preconditioned(case: Case, repeats: int) -> None:
    """What a product of the sharpness as Adam feels it takes over one of the plain sharpness."""
    optimizer = torch.optim.Adam(case.model.parameters(), weight_decay=1e-4)
    for _ in range(3):
        optimizer.zero_grad()
        case.loss(case.model(case.inputs), case.targets).backward()
        optimizer.step()
    optimizer.zero_grad()
    objective = case.objective()
    given = {"plain": None, "Adam": optimizer}
    runs: dict[str, Run] = {
        name: lambda p=own: sharpness(objective, preconditioner=p, max_products=10)
        for name, own in given.items()
    }
    seconds = timed(runs, repeats)
    found = {name: sharpness(objective, preconditioner=own) for name, own in given.items()}
    each = {name: seconds[name] / min(10, found[name].products) for name in given}
    print(
        f"{case.name}: {each['Adam'] / each['plain']:.3f} of the plain sharpness's time a product; "
        f"converged after {found['Adam'].products} products, plain after {found['plain'].products}"
    )


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(description="Time curvature measurements beside peers.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--part", choices=("products", "eigenvalues", "track", "trace", "preconditioned")
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.backends.mha.set_fastpath_enabled(False)  # it has no second derivative
    warnings.simplefilter("ignore")  # the peers' own
    chosen = arguments.part
    for case in cases():
        # The peers would fail on fused attention, which has no second derivative.
        with sdpa_kernel(SDPBackend.MATH), contextlib.redirect_stderr(io.StringIO()):
            if chosen in (None, "products"):
                products(case, arguments.repeats)
            if chosen in (None, "eigenvalues"):
                eigenvalues(case)
            if chosen in (None, "trace"):
                trace(case)
            if chosen in (None, "preconditioned"):
                preconditioned(case, arguments.repeats)
    if chosen in (None, "track"):
        track()


if __name__ == "__main__":
    main()
