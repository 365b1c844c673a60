"""Momentum beside plain SGD under the same noise: where the two are alike, and where they part.

Momentum is in its averaged form, m' = beta m + (1 - beta) g and x' = x - lr m', so that every beta
has the same effective learning rate and beta = 0 is SGD (2307.15196). All betas see the same draws,
so that differences between them are sharper than each of them is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from undertow.objective import whole_number

Field = Callable[[Tensor], Tensor]


def momentum_paths(
    gradient: Field,
    noise: Field,
    momenta: Sequence[float],
    *,
    lr: float,
    read_at: Iterable[int],
    generator: torch.Generator,
    start: float = 1.0,
    replicas: int = 10_000,
) -> Iterator[Float64[Tensor, "momenta replicas"]]:
    """Where paths on a loss of one variable are after these numbers of steps.

    Each step adds noise(x) / lr^(1/2) to the gradient at x, or takes it away, as a coin falls: of
    that order the noise may be in the theorem of 2307.15196, and in `predict.momentum_gap`.

    Args:
        gradient: of the loss, elementwise.
        noise: standard deviation of a gradient's noise at x, times lr^(1/2), elementwise.
        momenta: beta of each row, in [0, 1).
        lr: constant learning rate.
        read_at: numbers of steps from the start, each read once, in ascending order.
        generator: of the coins; a replica's are the same for every beta.
        start: x at step 0; velocities are zero.
        replicas: paths of each beta.

    Raises:
        TypeError: `replicas` is no whole number.
        ValueError: a momentum out of range, lr not above 0, or no replicas.
    """
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be finite and above 0, got {lr}")
    replicas = whole_number("replicas", replicas, least=1)
    kept = _momenta(momenta)[:, None]
    place = torch.full((len(kept), replicas), start, dtype=torch.float64)
    velocity, taken = torch.zeros_like(place), 0
    for step in sorted(set(read_at)):
        for _ in range(step - taken):
            coins = torch.randint(0, 2, (replicas,), generator=generator, dtype=torch.int8)
            signs = coins.double().mul_(2).sub_(1).div_(math.sqrt(lr))
            pull = torch.addcmul(gradient(place), noise(place), signs)
            velocity.mul_(kept).addcmul_(pull, 1 - kept)
            place.sub_(velocity, alpha=lr)
        taken = step
        yield place.clone()


def label_noise_imbalances(
    momenta: Sequence[float],
    *,
    lr: float,
    steps: int,
    noise: float,
    product: float,
    imbalance: float,
    generator: torch.Generator,
    replicas: int = 1000,
) -> Float64[Tensor, "momenta replicas"]:
    """u^2 - v^2 after these steps of the network x -> u v x under label noise, from a minimum.

    The loss is (u v - product - noise z)^2 / 2 with z of -1 or 1, as a coin falls.
    `predict.label_noise_drift` says what becomes of it over 1 / lr^2 steps.

    Args:
        momenta: beta of each row, in [0, 1).
        lr: effective learning rate of all of them, constant.
        steps: how many.
        noise: standard deviation of the label's noise.
        product: the label without noise, u v at the start.
        imbalance: u^2 - v^2 at the start.
        generator: of the coins; a replica's are the same for every beta.
        replicas: networks of each beta.

    Raises:
        TypeError: a count is no whole number.
        ValueError: a momentum or a count out of range.
    """
    steps = whole_number("steps", steps, least=0)
    replicas = whole_number("replicas", replicas, least=1)
    kept = _momenta(momenta)[:, None]
    sharpness = math.hypot(imbalance, 2 * product)
    first = math.sqrt((sharpness + imbalance) / 2)
    second = math.copysign(math.sqrt((sharpness - imbalance) / 2), product)
    layers = torch.tensor([first, second], dtype=torch.float64).view(2, 1, 1)
    layers = layers.repeat(1, len(kept), replicas)
    velocity = torch.zeros_like(layers)
    for _ in range(steps):
        coins = torch.randint(0, 2, (replicas,), generator=generator, dtype=torch.int8)
        residual = layers[0] * layers[1] - product - noise * coins.double().mul_(2).sub_(1)
        velocity.mul_(kept).addcmul_(residual * layers.flip(0), 1 - kept)
        layers.sub_(velocity, alpha=lr)
    return layers[0].square() - layers[1].square()


def stationary_variance(
    inputs: Float[Tensor, "n features"],
    targets: Float[Tensor, " n"],
    momenta: Sequence[float],
    *,
    curvatures: Sequence[float],
    batch_size: int,
    generator: torch.Generator,
    order: Literal["replacement", "epochs"] = "replacement",
    ridge: float = 1e-2,
    replicas: int = 50,
    burn_in: int = 200,
    steps: int = 400,
) -> Float64[Tensor, "curvatures momenta"]:
    """Variance of mini-batch training on ridge regression along the top eigenvector, at rest.

    Of (w - w*) . v, with w* the minimum and v the Hessian's top eigenvector, over replicas and
    steps. Where batches are independent and the noise does not grow with w - w*, its ratio between
    two betas is `predict.momentum_equivalent(...).variance_ratio`.

    Args:
        inputs: of the training set, bias column included.
        targets: of the training set.
        momenta: the betas.
        curvatures: learning rate x top eigenvalue.
        batch_size: samples a step.
        generator: of the batches; a replica's are the same for every beta and curvature.
        order: `replacement` draws each batch independently, `epochs` visits the samples in a fresh
            shuffle each, and drops what whole batches leave over.
        ridge: half of ridge x (top eigenvalue without it) x |w|^2 is added to the loss.
        replicas: runs, each with batches of its own.
        burn_in: steps from w* before the first is counted.
        steps: steps that are counted.

    Raises:
        TypeError: a count is no whole number.
        ValueError: a momentum or a count out of range, another order, or no whole batch in the
            samples.
    """
    if order not in ("replacement", "epochs"):
        raise ValueError(f"order must be 'replacement' or 'epochs', got {order!r}")
    replicas, steps = (
        whole_number("replicas", replicas, least=1),
        whole_number("steps", steps, least=1),
    )
    burn_in = whole_number("burn_in", burn_in, least=0)
    batch_size = whole_number("batch_size", batch_size, least=1)
    if batch_size > len(inputs):
        raise ValueError(f"batch_size must be at most {len(inputs)} samples, got {batch_size}")
    inputs, targets = inputs.double(), targets.double()
    hessian = inputs.T @ inputs / len(inputs)
    penalty = ridge * float(torch.linalg.eigvalsh(hessian)[-1])
    hessian += penalty * torch.eye(len(hessian), dtype=torch.float64)
    sharpness, top = (part[..., -1] for part in torch.linalg.eigh(hessian))
    best = torch.linalg.solve(hessian, inputs.T @ targets / len(inputs))

    kept = _momenta(momenta).repeat(len(curvatures))[:, None, None]
    rates = torch.tensor([c / float(sharpness) for c in curvatures], dtype=torch.float64)
    rates = rates.repeat_interleave(len(momenta))[:, None, None]
    place = best.repeat(len(kept), replicas, 1)
    velocity, total = torch.zeros_like(place), torch.zeros(len(kept), dtype=torch.float64)
    batches = _batches(order, len(inputs), batch_size, replicas, generator)
    for step, drawn in enumerate(itertools.islice(batches, burn_in + steps)):
        batch = inputs[drawn]
        residuals = torch.bmm(batch, place.permute(1, 2, 0)) - targets[drawn][:, :, None]
        gradient = torch.bmm(batch.transpose(1, 2), residuals).permute(2, 0, 1) / batch_size
        gradient += penalty * place
        velocity = kept * velocity + (1 - kept) * gradient
        place = place - rates * velocity
        if step >= burn_in:
            total += ((place - best) @ top).square().mean(1)
    return total.view(len(curvatures), len(momenta)) / steps


def exact_stationary_variance(
    inputs: Float[Tensor, "n features"],
    targets: Float[Tensor, " n"],
    momenta: Sequence[float],
    *,
    curvatures: Sequence[float],
    batch_size: int,
    ridge: float = 1e-2,
) -> Float64[Tensor, "curvatures momenta"]:
    """What `stationary_variance` estimates over independent batches: no draws, nothing fitted.

    The second moments S of w - w* and m at rest solve a linear equation, since a batch's gradient
    is affine in w. In the Hessian's eigenbasis each pair of directions has a 2 x 2 recursion of its
    own, driven by the covariance of the gradient's noise, with r the residuals at w*,

        C(S) = (mean_i x_i x_i' (x_i' S x_i + r_i^2) - H S H - r_mean r_mean') / batch_size,

    where H = mean_i x_i x_i' and r_mean = mean_i r_i x_i. C grows with S: the part of the noise
    that a closed form for additive noise leaves out. Iterated to 1e-12.

    Args:
        inputs: of the training set, bias column included.
        targets: of the training set.
        momenta: the betas.
        curvatures: learning rate x top eigenvalue.
        batch_size: samples a step, drawn with replacement.
        ridge: as in `stationary_variance`.

    Raises:
        TypeError: the batch size is no whole number.
        ValueError: a momentum or a batch size out of range, or a rate at which nothing rests.
    """
    batch_size, betas = whole_number("batch_size", batch_size, least=1), _momenta(momenta)
    inputs, targets = inputs.double(), targets.double()
    count = len(inputs)
    plain = inputs.T @ inputs / count
    values, vectors = torch.linalg.eigh(plain)
    penalty = ridge * float(values[-1])
    bent = values + penalty
    turned = inputs @ vectors
    best = turned.T @ targets / count / bent
    residuals = turned @ best - targets
    mean = turned.T @ residuals / count
    found = []
    for curvature in curvatures:
        for beta in betas.tolist():
            response = _response(bent, curvature / float(bent[-1]), beta)
            moments, change = torch.zeros_like(plain), math.inf
            while change > 1e-12:
                weights = (turned @ moments * turned).sum(1) + residuals.square()
                noise = turned.T @ (weights[:, None] * turned) / count
                noise -= values[:, None] * moments * values + torch.outer(mean, mean)
                later = response * noise / batch_size
                change = float((later - moments).norm() / later.norm().clamp(min=1e-300))
                moments = later
                if not 0 <= float(moments[-1, -1]) < 1e12:
                    raise ValueError(
                        f"curvatures must be those at which SGD rests, got {curvature:g} with"
                        f" momentum {beta:g}"
                    )
            found.append(float(moments[-1, -1]))
    return torch.tensor(found, dtype=torch.float64).view(len(curvatures), len(betas))


def _response(
    bent: Float64[Tensor, " features"], lr: float, beta: float
) -> Float64[Tensor, "features features"]:
    """The covariance of w at rest under unit noise, for each pair of eigendirections."""
    own = torch.zeros(len(bent), 2, 2, dtype=torch.float64)
    own[:, 0, 0], own[:, 0, 1] = 1 - lr * (1 - beta) * bent, -lr * beta
    own[:, 1, 0], own[:, 1, 1] = (1 - beta) * bent, beta
    pushed = torch.tensor([-lr * (1 - beta), 1 - beta], dtype=torch.float64)
    pairs = torch.einsum("jab,kcd->jkacbd", own, own).reshape(len(bent), len(bent), 4, 4)
    driven = torch.outer(pushed, pushed).reshape(4, 1).expand(len(bent), len(bent), 4, 1)
    return torch.linalg.solve(torch.eye(4, dtype=torch.float64) - pairs, driven)[..., 0, 0]


def _momenta(momenta: Sequence[float]) -> Float64[Tensor, " momenta"]:
    if not all(0 <= kept < 1 for kept in momenta):
        raise ValueError(f"momenta must be at least 0 and below 1, got {tuple(momenta)}")
    return torch.tensor(momenta, dtype=torch.float64)


def _batches(
    order: str, count: int, batch_size: int, replicas: int, generator: torch.Generator
) -> Iterator[Int[Tensor, "replicas batch"]]:
    """Batches without end, for each replica its own."""
    whole = count // batch_size * batch_size
    while True:
        if order == "epochs":
            shuffled = torch.rand(replicas, count, generator=generator).argsort(dim=1)
            yield from shuffled[:, :whole].split(batch_size, dim=1)
        else:
            yield torch.randint(0, count, (replicas, batch_size), generator=generator)
