"""Local SGD of many two-layer ReLU networks as one batched program, watched before averaging.

f(x) = sum_j a_j relu(w_j . x) with a_j fixed: the gradient is of two matrix products, which written
out take a tenth of the time of autograd, and drift is read where it is largest.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from undertow.objective import whole_number


@dataclass(frozen=True, eq=False)
class TwoLayerRounds:
    """What is seen of E networks as they train.

    Drift is of the clients' weights w_k from their average w_bar just before averaging, on client
    k's own samples and mean over clients, in the rounds that were to be read.

    Attributes:
        weights: of the averaged networks, at the end.
        residuals: f(x) - y of the averaged networks, at the start and after every round.
        flips: share of activation signs that differ between w_k and w_bar.
        distances: ||w_k - w_bar||.
        gradient_drifts: ||grad L_k(w_k) - grad L_k(w_bar)|| / ||grad L_k(w_bar)||.
        since_start: share of signs that differ between the average and the start, at the end.
    """

    weights: Float[Tensor, "E m d"]
    residuals: Float[Tensor, "readings E n"]
    flips: Float[Tensor, "read E"]
    distances: Float[Tensor, "read E"]
    gradient_drifts: Float[Tensor, "read E"]
    since_start: Float[Tensor, " E"]

    def __repr__(self) -> str:
        rounds, members = len(self.residuals) - 1, len(self.weights)
        losses = self.residuals.square().mean((1, 2)) / 2
        return (
            f"TwoLayerRounds of {members} networks: mean loss {float(losses[0]):.4g} to "
            f"{float(losses[-1]):.4g} in {rounds} rounds."
        )


def two_layer_rounds(
    weights: Float[Tensor, "E m d"],
    outputs: Float[Tensor, "E m"],
    inputs: Float[Tensor, "E n d"],
    targets: Float[Tensor, "E n"],
    clients: Int[Tensor, "E K share"],
    *,
    period: int,
    lr: Float[Tensor, " E"],
    rounds: int,
    read: Collection[int] = (),
    batches: Int[Tensor, "rounds E K period batch"] | None = None,
) -> TwoLayerRounds:
    """Local SGD of f(x) = sum_j a_j relu(w_j . x) on the mean of (f - y)^2 / 2; a_j stay.

    Args:
        weights: w_j at the start; they are not written over.
        outputs: a_j.
        inputs: x of each network, a sample a row.
        targets: y.
        clients: the rows of each client's samples.
        period: H, local steps between two averagings.
        lr: each network's learning rate.
        rounds: how many.
        read: in which rounds drift is read, counted from 1.
        batches: the rows that each step sees; None: all of the client's.

    Raises:
        TypeError: a count is no whole number.
        ValueError: a count is out of range, or shapes do not fit.

    Source: 2107.10868, Local SGD on overparameterized ReLU networks.
    """
    steps = whole_number("period", period, least=1)
    total = whole_number("rounds", rounds, least=1)
    _check(weights, outputs, inputs, targets, clients, lr, batches, (total, steps))
    members, num_clients, _ = clients.shape
    each = torch.arange(members, device=weights.device)[:, None, None]
    own = inputs[each, clients].flatten(0, 1), targets[each, clients].flatten(0, 1)
    fixed = outputs.repeat_interleave(num_clients, 0)[:, None]
    rate = lr.repeat_interleave(num_clients)[:, None, None]
    average, drifts = weights, []

    def residual() -> Tensor:
        return (torch.relu(inputs @ average.mT) * outputs[:, None]).sum(2) - targets

    residuals = [residual()]
    for turn in range(total):
        local = average.repeat_interleave(num_clients, 0)
        for step in range(steps):
            shown = own
            if batches is not None:
                seen = batches[turn, :, :, step]
                shown = inputs[each, seen].flatten(0, 1), targets[each, seen].flatten(0, 1)
            local -= rate * _gradient(local, fixed, *shown)
        average = local.unflatten(0, (members, num_clients)).mean(1)
        residuals.append(residual())
        if turn + 1 in read:
            center = average.repeat_interleave(num_clients, 0)
            drift = torch.stack(_drift(local, center, fixed, *own))
            drifts.append(drift.unflatten(1, (members, num_clients)).mean(2))
    flips, distances, gradients = (
        torch.stack(drifts, 1) if drifts else average.new_empty(3, 0, members)
    )
    since = ((inputs @ weights.mT > 0) != (inputs @ average.mT > 0)).double().mean((1, 2))
    return TwoLayerRounds(average, torch.stack(residuals), flips, distances, gradients, since)


def _gradient(
    weights: Float[Tensor, "L m d"],
    outputs: Float[Tensor, "L 1 m"],
    inputs: Float[Tensor, "L b d"],
    targets: Float[Tensor, "L b"],
) -> Float[Tensor, "L m d"]:
    before = inputs @ weights.mT
    residual = (torch.relu(before) * outputs).sum(2) - targets
    pushed = (before > 0) * (outputs * residual[:, :, None] / inputs.shape[1])
    return pushed.mT @ inputs


def _drift(
    local: Tensor, center: Tensor, outputs: Tensor, inputs: Tensor, targets: Tensor
) -> tuple[Float[Tensor, " L"], Float[Tensor, " L"], Float[Tensor, " L"]]:
    """Flips, distance and relative gradient drift of each client from its average."""
    flipped = ((inputs @ local.mT > 0) != (inputs @ center.mT > 0)).to(local.dtype).mean((1, 2))
    here, there = (_gradient(at, outputs, inputs, targets).flatten(1) for at in (local, center))
    apart = (local - center).flatten(1).norm(dim=1)
    return flipped, apart, (here - there).norm(dim=1) / there.norm(dim=1)


def _check(
    weights: Tensor,
    outputs: Tensor,
    inputs: Tensor,
    targets: Tensor,
    clients: Tensor,
    lr: Tensor,
    batches: Tensor | None,
    counts: tuple[int, int],
) -> None:
    for name, tensor, axes in (
        ("weights", weights, 3),
        ("inputs", inputs, 3),
        ("clients", clients, 3),
    ):
        if tensor.ndim != axes:
            raise ValueError(f"{name} must have {axes} axes, got shape {tuple(tensor.shape)}")
    members, units, features = weights.shape
    samples = inputs.shape[1]
    expected = {
        "outputs": (outputs, (members, units)),
        "inputs": (inputs, (members, samples, features)),
        "targets": (targets, (members, samples)),
        "clients": (clients, (members, *clients.shape[1:])),
        "lr": (lr, (members,)),
    }
    if batches is not None:
        shape = (counts[0], members, clients.shape[1], counts[1], batches.shape[-1])
        expected["batches"] = batches, shape
    for name, (tensor, wanted) in expected.items():
        if tuple(tensor.shape) != wanted:
            raise ValueError(f"{name} must be of shape {wanted}, got {tuple(tensor.shape)}")
    for name, rows in (("clients", clients), ("batches", batches)):
        if rows is not None and (int(rows.min()) < 0 or int(rows.max()) >= samples):
            raise ValueError(f"{name} must be rows 0 to {samples - 1} of the inputs")
