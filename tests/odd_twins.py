"""Networks in forms that measurements could trip over, each beside a plain twin of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

SAMPLES, FEATURES, CLASSES = 12, 6, 3
Forward = Callable[[Any, Tensor], Tensor]


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Net(nn.Module):
    """Modules and buffers by name, and what becomes of an input."""

    def __init__(self, forward: Forward, **parts: Any) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            elif isinstance(part, nn.Parameter):
                self.register_parameter(name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


@dataclass(frozen=True)
class Twins:
    """Two models with parameters of the same numbers, in the same order, and their data."""

    odd: nn.Module
    plain: nn.Module
    loss: Any = functional.cross_entropy
    odd_data: Any = None
    data: Any = None


def twins(odd: Forward, plain: Forward, parts: Callable[[], dict[str, Any]], **more: Any) -> Twins:
    """The same parts in two networks, in float64."""
    torch.manual_seed(3)
    first = Net(odd, **parts()).double()
    shared = {name: getattr(first, name) for name in parts()}
    own = {n: copy.deepcopy(p) if isinstance(p, nn.Module) else p for n, p in shared.items()}
    return Twins(first, Net(plain, **own), data=more.pop("data", samples()), **more)


def samples() -> tuple[Tensor, Tensor]:
    return draw(0, SAMPLES, FEATURES), torch.arange(SAMPLES) % CLASSES


def sequences() -> tuple[Tensor, Tensor]:
    return draw(1, SAMPLES, 5, 4), torch.arange(SAMPLES) % CLASSES


def _layers() -> dict[str, Any]:
    body = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Tanh())
    return {"a": nn.Linear(FEATURES, 8), "b": body, "o": nn.Linear(8, CLASSES)}


def _layered(net: Any, x: Tensor) -> Tensor:
    return net.o(net.b(torch.tanh(net.a(x))))


def checkpointed(reentrant: bool) -> Twins:
    def odd(net: Any, x: Tensor) -> Tensor:
        return net.o(checkpoint(net.b, torch.tanh(net.a(x)), use_reentrant=reentrant))

    return twins(odd, _layered, _layers)


def checkpoints_in_checkpoints() -> Twins:
    def inner(net: Any, x: Tensor) -> Tensor:
        return checkpoint_sequential(net.b, 2, torch.tanh(net.a(x)), use_reentrant=False)

    def odd(net: Any, x: Tensor) -> Tensor:
        return net.o(checkpoint(partial(inner, net), x, use_reentrant=False))

    return twins(odd, _layered, _layers)


def checkpointed_attention() -> Twins:
    def parts() -> dict[str, Any]:
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        return {"e": layer, "o": nn.Linear(4, CLASSES)}

    def odd(net: Any, x: Tensor) -> Tensor:
        return net.o(checkpoint(net.e, x, use_reentrant=False).mean(1))

    return twins(odd, lambda net, x: net.o(net.e(x).mean(1)), parts, data=sequences())


def compiled() -> Twins:
    found = twins(_layered, _layered, _layers)
    return Twins(torch.compile(found.odd), found.plain, data=found.data)  # type: ignore[arg-type]


def compiled_parts() -> Twins:
    found = twins(_layered, _layered, _layers)
    found.odd.b = torch.compile(found.odd.b)  # type: ignore[assignment]
    return found


def compiled_loss() -> Twins:
    found = twins(_layered, _layered, _layers)
    return Twins(found.odd, found.plain, torch.compile(functional.cross_entropy), data=found.data)


def in_parallel() -> Twins:
    found = twins(_layered, _layered, _layers)
    return Twins(nn.DataParallel(found.odd), found.plain, data=found.data)


def sparse_embedding() -> Twins:
    def parts(sparse: bool) -> dict[str, Any]:
        table = nn.Embedding(7, 4, sparse=sparse)
        return {"e": table, "o": nn.Linear(4, CLASSES)}

    def run(net: Any, x: Tensor) -> Tensor:
        return net.o(torch.tanh(net.e(x)).mean(1))

    data = torch.arange(SAMPLES * 5).reshape(SAMPLES, 5) * 5 % 7, sequences()[1]
    found = twins(run, run, partial(parts, True), data=data)
    found.plain.e.sparse = False  # type: ignore[union-attr]
    return found


def sparse_buffer(layout: torch.layout) -> Twins:
    mixing = (torch.eye(8) + (draw(4, 8, 8) > 0.5)).double()

    def parts(matrix: Tensor) -> dict[str, Any]:
        return {"m": matrix, "a": nn.Linear(FEATURES, 8), "o": nn.Linear(8, CLASSES)}

    def run(net: Any, x: Tensor) -> Tensor:
        return net.o(torch.tanh((net.m @ net.a(x).T).T))

    found = twins(run, run, partial(parts, mixing.to_sparse(layout=layout)))
    found.plain.m = mixing  # type: ignore[assignment]
    return found


def sparse_inputs() -> Twins:
    def run(net: Any, x: Tensor) -> Tensor:
        return net.o(torch.tanh(x @ net.w))

    def parts() -> dict[str, Any]:
        return {"w": nn.Parameter(draw(5, FEATURES, 8)), "o": nn.Linear(8, CLASSES)}

    x, y = samples()
    x = x * (x > 0)
    return twins(run, run, parts, data=(x, y), odd_data=(x.to_sparse(), y))


def _physics() -> dict[str, Any]:
    return {"net": nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))}


def _slope(net: Any, t: Tensor) -> Tensor:
    """The derivative of the network in its input, by hand."""
    first, last = net.net[0], net.net[2]
    return (1 - torch.tanh(first(t)).square()) @ (first.weight * last.weight.T)


def physics(by: str) -> Twins:
    """A network's derivative in its input, as physics-informed losses take it."""

    def mapped(net: Any, t: Tensor) -> Tensor:
        return torch.func.vmap(torch.func.grad(lambda one: net.net(one[None])[0, 0]))(t)

    def whole(net: Any, t: Tensor) -> Tensor:
        return torch.func.vmap(torch.func.jacrev(lambda one: net.net(one)))(t)[:, 0]

    def forwards(net: Any, t: Tensor) -> Tensor:
        return torch.func.jvp(net.net, (t,), (torch.ones_like(t),))[1]

    def by_autograd(net: Any, t: Tensor) -> Tensor:
        t = t.requires_grad_()
        return torch.autograd.grad(net.net(t).sum(), t, create_graph=True)[0]

    ways = {"grad": mapped, "jacrev": whole, "jvp": forwards, "autograd": by_autograd}
    data = draw(6, SAMPLES, 1), draw(7, SAMPLES, 1)
    return twins(ways[by], _slope, _physics, data=data, loss=nn.MSELoss())


def complex_pairs() -> Twins:
    """Complex weights kept as pairs of real numbers, after an odd number of others."""

    def parts() -> dict[str, Any]:
        pairs = nn.Parameter(draw(8, FEATURES, 5, 2))
        return {"s": nn.Parameter(draw(9, 1)), "w": pairs, "o": nn.Linear(5, CLASSES)}

    def odd(net: Any, x: Tensor) -> Tensor:
        weight = torch.view_as_complex(net.w)
        return net.o((x.to(weight.dtype) @ weight).abs() * net.s)

    def plain(net: Any, x: Tensor) -> Tensor:
        real, imaginary = (x @ part for part in net.w.unbind(2))
        return net.o((real.square() + imaginary.square()).sqrt() * net.s)

    return twins(odd, plain, parts)


def empty_and_scalar() -> Twins:
    """A parameter without elements, and one without axes."""

    def parts() -> dict[str, Any]:
        none, one = nn.Parameter(torch.zeros(0, 4)), nn.Parameter(torch.tensor(1.3))
        return {"n": none, "t": one, "a": nn.Linear(FEATURES, 8), "o": nn.Linear(8, CLASSES)}

    def odd(net: Any, x: Tensor) -> Tensor:
        return net.o(torch.tanh(net.a(x))) * net.t + net.n.sum()

    return twins(odd, lambda net, x: net.o(torch.tanh(net.a(x))) * net.t, parts)


def of_two_inputs() -> Twins:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b, self.o = nn.Bilinear(2, 4, 8), nn.Linear(8, CLASSES)

        def forward(self, one: Tensor, other: Tensor) -> Tensor:
            return self.o(torch.tanh(self.b(one, other)))

    class Joint(Pair):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x[:, :2], x[:, 2:])

    torch.manual_seed(3)
    odd, plain = Pair().double(), Joint().double()
    plain.load_state_dict(odd.state_dict())
    x, y = samples()
    return Twins(odd, plain, odd_data=((x[:, :2], x[:, 2:]), y), data=(x, y))


TWINS: dict[str, Callable[[], Twins]] = {
    "checkpointed": partial(checkpointed, False),
    "checkpointed, reentrant": partial(checkpointed, True),
    "checkpoints in checkpoints": checkpoints_in_checkpoints,
    "checkpointed attention": checkpointed_attention,
    "data parallel": in_parallel,
    "sparse embedding": sparse_embedding,
    "sparse buffer": partial(sparse_buffer, torch.sparse_coo),
    "compressed buffer": partial(sparse_buffer, torch.sparse_csr),
    "sparse inputs": sparse_inputs,
    "torch.func.grad": partial(physics, "grad"),
    "torch.func.jacrev": partial(physics, "jacrev"),
    "torch.func.jvp": partial(physics, "jvp"),
    "autograd.grad": partial(physics, "autograd"),
    "complex pairs": complex_pairs,
    "empty and scalar": empty_and_scalar,
    "two inputs": of_two_inputs,
}
# The first takes a second to load PyTorch's compiler, which never compiles.
COMPILED: dict[str, Callable[[], Twins]] = {
    "compiled": compiled,
    "compiled parts": compiled_parts,
    "compiled loss": compiled_loss,
}
