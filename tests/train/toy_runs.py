"""Small problems and networks in float64, and the plain PyTorch loop that ensembles must equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from undertow.train import Member, rules
from undertow.train.ensemble._sampling import BatchStream, batch_sizes, spawn_generators
from undertow.train.rules import Rule
from undertow.train.schedules import Cosine, StepDecay

SAMPLES, FEATURES, CLASSES = 22, 5, 3
BATCH = 5  # leaves a rest of 2
STEPS = 140  # beyond the 128 steps after which scales are folded and divergence is looked for

Build = Callable[[torch.Generator], nn.Module]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs() -> Tensor:
    return draw(0, SAMPLES, FEATURES)


def labels(classes: int = CLASSES) -> Tensor:
    return torch.randint(classes, (SAMPLES,), generator=torch.Generator().manual_seed(1))


def numbers(outputs: int = CLASSES) -> Tensor:
    return draw(2, SAMPLES, outputs)


def members(order: str = "epochs") -> list[Member]:
    """Three members that differ in all that members may differ in."""
    return [
        Member(3, 0.1, 0.01, 0.9, Cosine(200, warmup=10), order, beta1=0.8, eps=1e-4),
        Member(4, 0.03, 0.0, 0.0, None, order, beta2=0.95, eps=1e-2),
        Member(5, 0.05, 0.3, 0.5, StepDecay((50, 100), 0.3), order, eps=1e-3),
    ]


def plain_loop(
    build: Build,
    loss: Callable[[Tensor, Tensor], Tensor],
    data: tuple[Tensor, Tensor],
    own_members: Sequence[Member],
    *,
    batch_size: int = BATCH,
    rule: Rule = rules.sgd,
    steps: int = STEPS,
) -> list[nn.Module]:
    """Each member on its own: autograd and `torch.optim`."""
    x, y = data
    trained = []
    for member in own_members:
        first, order, _ = spawn_generators(member.seed, 3)
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(first.get_state())
            module = build(first).double().train()
        size = len(x) if member.order == "full" else batch_size
        sizes = batch_sizes(member.order, len(x), size, 0, steps)
        stream = BatchStream(member.order, len(x), size, order)
        optimizer = torch_optimizer(rule, module, member)
        for step, count in enumerate(sizes):
            if member.schedule is not None:
                factor = float(member.schedule(np.array([step]))[0])
                optimizer.param_groups[0]["lr"] = member.lr * factor
            index = stream.take(count)
            optimizer.zero_grad()
            loss(module(x[index]), y[index]).mean().backward()
            optimizer.step()
        trained.append(module)
    return trained


def torch_optimizer(rule: Rule, module: nn.Module, member: Member) -> torch.optim.Optimizer:
    """PyTorch's own optimizer for a rule."""
    params = list(module.parameters())
    if rule is rules.rmsprop:
        return torch.optim.RMSprop(
            params, member.lr, member.beta2, member.eps, weight_decay=member.weight_decay
        )
    if rule in (rules.adam, rules.adamw):
        make = torch.optim.Adam if rule is rules.adam else torch.optim.AdamW
        betas = (member.beta1, member.beta2)
        return make(params, member.lr, betas, member.eps, weight_decay=member.weight_decay)
    momentum = member.momentum if rule is rules.momentum else 0.0
    return torch.optim.SGD(params, member.lr, momentum, weight_decay=member.weight_decay)


def assert_tensors_equal(
    found: dict[str, Tensor], expected: Sequence[nn.Module], *, rtol: float = 1e-9
) -> None:
    """Every parameter and buffer of every member, to rounding in float64."""
    wanted = [dict([*part.named_parameters(), *part.named_buffers()]) for part in expected]
    assert found.keys() == wanted[0].keys()
    for name, value in found.items():
        stacked = torch.stack([own[name].detach() for own in wanted])
        torch.testing.assert_close(value, stacked, rtol=rtol, atol=1e-10, msg=name)


def scale_invariant_gradient(weight: Tensor) -> Tensor:
    """Of L(w) = <A, theta> + <theta, B theta> / 2 with theta = w / ||w||."""
    weight = weight.detach().requires_grad_()
    theta = weight / weight.norm()
    loss = (draw(7, 4, 3) * theta).sum() + (theta * (draw(8, 4, 4) @ theta)).sum() / 2
    return torch.autograd.grad(loss, weight)[0]
