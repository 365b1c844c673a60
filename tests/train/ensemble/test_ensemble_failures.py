"""Members that diverge, and input that an ensemble refuses, with the words that say why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from toy_runs import BATCH, CLASSES, FEATURES, SAMPLES, draw, inputs, labels, numbers

from undertow.models import conv_net, mlp
from undertow.train import Ensemble, Member, rules

PATHS = ("fused", "vmap", "loop")
pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def small(generator: torch.Generator) -> nn.Sequential:
    return mlp((FEATURES, 6, CLASSES), generator=generator)


def normed(generator: torch.Generator) -> nn.Sequential:
    return mlp((FEATURES, 6, CLASSES), batch_norm=True, generator=generator)


def averaging(generator: torch.Generator) -> nn.Sequential:
    net = normed(generator)
    net[2].momentum = None
    return net


def dropping(generator: torch.Generator) -> nn.Sequential:
    return nn.Sequential(*small(generator), nn.Dropout(0.5))


# ---- divergence

CALM = [Member(1, 0.05, 0.01, 0.5), Member(3, 0.02, 0.0, 0.9)]
WILD = Member(2, 1e6, 0.0, 0.9)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [rules.sgd, rules.momentum], ids=repr)
@pytest.mark.parametrize(
    ("build", "path"),
    [
        *((build, path) for path in PATHS for build in (small, normed)),
        # Under vmap, PyTorch reads its counter of batches as a number, which it cannot.
        *((averaging, path) for path in ("fused", "loop")),
    ],
)
def test_a_member_that_diverges_never_touches_the_others(
    build: Any, rule: rules.Rule, path: str
) -> None:
    """It is masked, wherever it stands, and its neighbours are what they would be without it."""
    data = (inputs(), numbers())
    # Batch norm tames the rate of a plain squared error.
    loss: Any = nn.MSELoss() if build is small else exploding

    def make(own: list[Member]) -> Ensemble:
        return Ensemble(
            build, loss, data, own, batch_size=11, rule=rule, path=path, dtype=torch.float64
        ).train(150)

    without = make(CALM)
    ensemble = make([WILD, *CALM])
    assert ensemble.diverged_at == [128, None, None]
    assert without.diverged_at == [None, None]
    assert "1 diverged" in repr(ensemble)
    for found, alone in (
        (ensemble.parameters(), without.parameters()),
        (ensemble.buffers(), without.buffers()),
    ):
        for name, value in found.items():
            torch.testing.assert_close(value[1:], alone[name], rtol=1e-9, atol=1e-11)
            if value.is_floating_point():
                assert bool(torch.isnan(value[0]).all()), name
    lost = [True, False, False]
    assert torch.isnan(ensemble.evaluate(*data).loss).tolist() == lost
    assert torch.isnan(ensemble.predict(inputs())).flatten(1).all(1).tolist() == lost
    ensemble.train(10)
    assert ensemble.diverged_at == [128, None, None]
    assert all(bool(torch.isfinite(value[1:]).all()) for value in ensemble.parameters().values())


def exploding(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error, cubed where it is large."""
    error = (outputs - targets).square()
    return torch.where(error > 1e4, error**3, error).mean(1)


def test_a_diverged_member_of_a_convolutional_ensemble() -> None:
    images = draw(5, SAMPLES, 1, 6, 6)

    def make(own: list[Member], path: str) -> Ensemble:
        return Ensemble(
            lambda generator: conv_net((1, 6, 6), (4, 8), CLASSES, generator=generator),
            nn.MSELoss(),
            (images, numbers()),
            own,
            batch_size=11,
            path=path,
        ).train(40)

    for path in ("vmap", "loop"):
        ensemble, without = make([CALM[0], WILD, CALM[1]], path), make(CALM, path)
        assert ensemble.diverged_at == [None, 40, None]
        for name, value in ensemble.parameters().items():
            torch.testing.assert_close(value[[0, 2]], without.parameters()[name])


def test_evaluation_skips_members_whose_outputs_a_loss_would_refuse() -> None:
    """`binary_cross_entropy` raises on NaN."""
    targets = labels(2)[:, None].double()
    ensemble = Ensemble(
        lambda generator: nn.Sequential(nn.Linear(FEATURES, 1), nn.Sigmoid()),
        functional.binary_cross_entropy,
        (inputs(), targets),
        [WILD, CALM[0]],
        batch_size=BATCH,
        path="vmap",
    )
    ensemble.diverged_at[0] = 0
    ensemble.train(1)
    assert torch.isnan(ensemble.evaluate(inputs(), targets).loss).tolist() == [True, False]


def test_large_but_finite_weights_are_no_divergence() -> None:
    module = nn.utils.skip_init(nn.Linear, FEATURES, CLASSES)
    nn.init.constant_(module.weight, 1e38)  # whose sum is not finite in float32
    nn.init.zeros_(module.bias)
    ensemble = Ensemble(
        module,
        lambda outputs, targets: 0 * outputs.sum(1),
        (inputs() * 1e-30, labels()),
        [Member(1, 0.1)],
        batch_size=BATCH,
        path="fused",
    ).train(2)
    assert ensemble.diverged_at == [None]


# ---- input that is refused


def refused(
    words: str,
    error: type[Exception] = ValueError,
    *,
    model: Any = small,
    loss: Any = functional.cross_entropy,
    data: Any = None,
    members: Any = None,
    steps: int = 0,
    **options: Any,
) -> None:
    """An ensemble of these parts is refused with words that match."""
    data = (inputs(), labels()) if data is None else data
    members = [Member(1, 0.1)] if members is None else members
    with pytest.raises(error, match=words):
        Ensemble(model, loss, data, members, **{"batch_size": BATCH} | options).train(steps)


def holding(value: float, tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[3] = value
    return tensor


def test_labels_out_of_range() -> None:
    refused("label 3, but the model has 3 outputs", data=(inputs(), holding(3, labels())))
    refused("labels must be 0 to 2", data=(inputs(), holding(-1, labels())))
    refused("label 7", loss=functional.nll_loss, data=(inputs(), holding(7, labels())))


def test_targets_of_the_wrong_shape_or_type() -> None:
    refused("whole numbers, one a sample", data=(inputs(), labels().double()))
    refused("do not go together in the loss", data=(inputs(), labels()[:, None]))
    refused("do not go together|same shape|must match", data=(inputs(), numbers(2)))
    refused("compares elements", loss=nn.MSELoss(), data=(inputs(), labels()))
    refused("compares elements", loss=nn.HuberLoss(), data=(inputs(), numbers(1)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_data_that_are_not_finite(value: float) -> None:
    refused("the inputs hold NaN", data=(holding(value, inputs()), labels()))
    refused("the targets hold NaN", loss=nn.MSELoss(), data=(inputs(), holding(value, numbers())))


def test_data_that_overflow_in_the_type_to_train_in() -> None:
    refused("infinite in torch.float32", data=(holding(1e300, inputs()), labels()))


def test_data_of_the_wrong_form() -> None:
    refused("21 inputs and 22 targets", data=(inputs()[1:], labels()))
    refused("at least one, got 0 inputs", data=(inputs()[:0], labels()[:0]))
    refused("two tensors", TypeError, data=inputs())
    refused("two tensors", TypeError, data=(inputs().numpy(), labels().numpy()))
    refused(r"shape \(4,\) a sample", data=(inputs()[:, 1:], labels()))
    refused("type torch.int64", data=(inputs().long(), labels()))


def test_batch_sizes() -> None:
    refused("batch_size must be at least 1, got 0", batch_size=0)
    refused("batch_size must lie between 1 and the 22 samples there are", batch_size=23)
    refused("batch_size must be a whole number", TypeError, batch_size=2.0)


def test_orders_that_do_not_fit_together() -> None:
    def mixed(*orders: Any) -> list[Member]:
        return [Member(1, 0.1, order=order) for order in orders]

    refused("order='full' cannot share", members=mixed("full", "epochs"))
    refused("5 does not divide 22", members=mixed("replacement", "cyclic"))
    Ensemble(small, functional.cross_entropy, (inputs(), labels()), mixed("full"), batch_size=10**6)


@pytest.mark.parametrize(
    ("words", "error", "options"),
    [
        ("lr must be finite and not negative, got -0.1", ValueError, {"lr": -0.1}),
        ("lr must be finite", ValueError, {"lr": float("nan")}),
        ("weight_decay must be finite and not negative", ValueError, {"weight_decay": -1e-3}),
        ("momentum must be below 1", ValueError, {"momentum": 1.0}),
        ("lr x weight_decay must be below 1", ValueError, {"lr": 0.5, "weight_decay": 2.0}),
        ("order must be one of epochs, replacement", ValueError, {"order": "shuffled"}),
        ("seed must be at least 0, got -1", ValueError, {"seed": -1}),
        ("seed must be a whole number", TypeError, {"seed": 0.5}),
    ],
)
def test_members(words: str, error: type[Exception], options: dict[str, Any]) -> None:
    with pytest.raises(error, match=words):
        Member(**{"seed": 1, "lr": 0.1} | options)


def test_ensembles_without_members_or_of_something_else() -> None:
    refused("at least one member, got none", members=[])
    refused("members must be train.Member", TypeError, members=[{"seed": 1}])
    refused("rule must be one of train.rules", TypeError, rule=torch.optim.SGD)
    refused("path must be one of auto, fused, vmap, loop, got 'fast'", path="fast")


def test_models() -> None:
    refused("model must be an nn.Module", TypeError, model=3)
    one = small(torch.Generator())
    refused("model must hold one module for each of the 1 members, got 2", model=[one, one])
    refused("model must hold modules, got int", TypeError, model=[3])
    refused("returned NoneType; it must make an nn.Module", TypeError, model=lambda generator: None)
    refused("no parameters to train", model=nn.Flatten())
    frozen = small(torch.Generator()).requires_grad_(False)
    refused("no parameters to train", model=frozen)
    widths = iter((4, 5))
    refused(
        "member 1 has other tensors or shapes",
        model=lambda generator: mlp((FEATURES, next(widths), CLASSES), generator=generator),
        members=[Member(1, 0.1), Member(2, 0.1)],
    )
    refused(
        "must return a tensor, got tuple",
        TypeError,
        model=lambda generator: nn.GRU(FEATURES, CLASSES),
    )


def test_losses() -> None:
    refused("loss must be an nn.Module or a function", TypeError, loss="mse")
    refused("reduction='sum'", loss=nn.CrossEntropyLoss(reduction="sum"))
    data = (inputs(), numbers())
    elementwise = nn.MSELoss(reduction="none")
    refused("one value per sample", loss=elementwise, data=data)
    refused(r"got \(4, 2\)", loss=lambda outputs, targets: outputs[:, :2])
    refused(r"got float", loss=lambda outputs, targets: 1.0)


def test_paths_that_cannot_run_the_module() -> None:
    conv = conv_net((1, 4, 4), (2,), CLASSES)
    images = (draw(1, SAMPLES, 1, 4, 4), labels())
    refused("path='fused' runs plain MLPs only", path="fused", model=conv, data=images)
    for path, words in (("vmap", "own randomness"), ("fused", "plain MLPs")):
        refused(words, path=path, model=dropping)


@pytest.mark.parametrize("path", ["auto", *PATHS])
def test_batch_norm_on_a_rest_of_one_sample(path: str) -> None:
    words = "cannot train on a batch of one sample"
    refused(words, model=normed, batch_size=7, path=path)
    refused(words, model=normed, batch_size=1, path=path)
    every = [Member(1, 0.1, order="replacement")]
    ensemble = Ensemble(
        normed, functional.cross_entropy, (inputs(), labels()), every, batch_size=7, path=path
    )
    ensemble.train(5)


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (lambda steps: 1.0 - steps, "negative"),
        (lambda steps: steps * float("nan"), "not finite"),
        (lambda steps: steps * 1e3, "at least 1 / weight_decay, between steps 0 and 9"),
        (lambda steps: 0.5, "one factor for each of the 10 steps"),
    ],
)
def test_schedules(schedule: Any, words: str) -> None:
    refused(words, members=[Member(1, 0.1, 0.1, schedule=schedule)], steps=10)


def test_a_refused_schedule_does_not_use_up_data() -> None:
    allowed = [False]

    def schedule(steps: Any) -> Any:
        return steps * 0 + (1.0 if allowed[0] else -1.0)

    data, own = (inputs(), labels()), [Member(1, 0.1, schedule=schedule)]
    ensemble = Ensemble(small, functional.cross_entropy, data, own, batch_size=BATCH, path="fused")
    with pytest.raises(ValueError, match="negative"):
        ensemble.train(3)
    allowed[0] = True
    expected = Ensemble(
        small, functional.cross_entropy, data, own, batch_size=BATCH, path="fused"
    ).train(3)
    for name, value in ensemble.train(3).parameters().items():
        assert torch.equal(value, expected.parameters()[name])


def test_steps() -> None:
    refused("steps must be at least 0, got -1", steps=-1)
    refused("steps must be a whole number, got 1.5", TypeError, steps=1.5)


def test_data_to_evaluate_on() -> None:
    ensemble = Ensemble(
        small, functional.cross_entropy, (inputs(), labels()), [Member(1, 0.1)], batch_size=BATCH
    )
    for words, data in {
        "label 3": (inputs(), holding(3, labels())),
        "inputs hold NaN": (holding(float("nan"), inputs()), labels()),
        "21 inputs": (inputs()[1:], labels()),
        "at least one, got 0": (inputs()[:0], labels()[:0]),
    }.items():
        with pytest.raises(ValueError, match=words):
            ensemble.evaluate(*data)
