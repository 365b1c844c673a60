"""Certificates: the optimum of a linear classifier, prices, invariances, blocks, what is said."""

from __future__ import annotations

import math

import pytest
import torch
from masked import CLASSES, SIDE, draw, images, linear, net
from torch import Tensor

from undertow import lab
from undertow.measure import saliency
from undertow.measure.saliency._masks import Price, Shape, fits

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

FREE = {"total_variation": 0.0, "background": 0.0, "upsample": 1}


def certified(model: torch.nn.Module, x: Tensor, **options: object) -> saliency.Certificates:
    return saliency.certify(model, x, **({"data": images(5, seed=9)} | options))  # type: ignore[arg-type]


def least(parts: Tensor, offset: float, sparsity: float) -> tuple[float, Tensor]:
    """The exact minimum of log(1 + exp(-(offset + parts . M))) + sparsity mean(M), and its M.

    It is convex, and the best mask keeps pixels in descending order of their part, the last of them
    in part: along that path it is a convex function of one number, whose minimum is searched.
    """
    ordered, order = parts.sort(descending=True)
    at = torch.linspace(0, len(parts), 200_001, dtype=torch.float64)
    kept = (at[:, None] - torch.arange(len(parts))).clamp(0, 1)
    values = torch.nn.functional.softplus(-(offset + kept @ ordered)) + sparsity * kept.mean(1)
    best = int(values.argmin())
    mask = torch.zeros_like(parts)
    mask[order] = kept[best]
    return float(values[best]), mask


def test_the_optimum_of_a_linear_softmax() -> None:
    weight = torch.stack([torch.zeros(16).double(), draw(2, 16)])
    x = draw(3, 3, 1, 4, 4)
    found = saliency.certify(
        linear(weight),
        x,
        sparsity=2.0,
        steps=3780,
        atol=1e-5,
        **FREE,  # type: ignore[arg-type]
    )
    assert found.converged.all()
    for i in range(3):
        parts = x[i].flatten() * weight[1]
        for label, sign in ((0, -1), (1, 1)):
            value, mask = least(sign * parts, 0.0, 2.0)
            assert float(found.objective[i, label]) == pytest.approx(value, abs=2e-3)
            assert float((found.masks[i, label, 0].flatten() - mask).abs().max()) < 0.1


def test_with_defaults_it_ends_within_its_tolerance_of_the_optimum() -> None:
    weight = torch.stack([torch.zeros(16).double(), draw(2, 16)])
    x = draw(3, 3, 1, 4, 4)
    found = saliency.certify(linear(weight), x, **FREE)  # type: ignore[arg-type]
    parts = x.flatten(1) * weight[1]
    for i in range(3):
        for label, sign in ((0, -1), (1, 1)):
            excess = float(found.objective[i, label]) - least(sign * parts[i], 0.0, 1.0)[0]
            assert -1e-9 < excess < 0.05


def test_prices_mean_the_same_at_any_resolution() -> None:
    """A ramp costs half its sparsity and (n - 1) / n of its total variation, whatever its n."""
    for side in (28, 224):
        ramp = (torch.arange(side, dtype=torch.float64) + 0.5) / side
        mask = ramp.expand(1, 1, side, side)
        assert float(Price(1.0, 0.0).of(mask)) == pytest.approx(0.5)
        assert float(Price(0.0, 1.0).of(mask)) == pytest.approx((side - 1) / side)
    # The published sums at 224 x 224.
    drawn = draw(0, 1, 1, 224, 224).sigmoid()
    squares = drawn.diff(dim=2).square().sum() + drawn.diff(dim=3).square().sum()
    published = 2e-5 * drawn.sum() + 0.01 * squares
    assert float(Price(2e-5 * 224**2, 0.01).of(drawn)) == pytest.approx(float(published))


def test_the_double_softmax_is_bounded() -> None:
    sure = torch.eye(CLASSES).double().clamp_min(1e-30).log()[:, None, None]
    right, wrong = torch.arange(CLASSES), (torch.arange(CLASSES) + 1) % CLASSES
    least, most = (fits(sure, labels, "double softmax") for labels in (right, wrong))
    assert torch.allclose(least, torch.tensor(math.log(1 + (CLASSES - 1) / math.e)).double())
    assert torch.allclose(most, torch.tensor(math.log(math.e + CLASSES - 1)).double())
    assert float(fits(sure, wrong, "log probability").min()) > 60


def test_the_objective_is_what_it_says() -> None:
    """Recomputed from the masks, where the background is one."""
    model, x = net(), images()
    options = {"background": 0.5, "upsample": 2, "sparsity": 0.7, "total_variation": 0.2}
    found = certified(model, x, **options)
    masks = found.masks
    masked = x[:, None, None] * masks[:, :, :, None] + 0.5 * (1 - masks[:, :, :, None])
    with torch.no_grad():
        logs = model(masked.flatten(0, 2)).log_softmax(1).view(4, CLASSES, CLASSES)
    own = logs.diagonal(dim1=1, dim2=2)
    price = 0.7 * masks.mean((2, 3, 4)) + 0.2 * (
        masks.diff(dim=3).square().sum((2, 3, 4)) + masks.diff(dim=4).square().sum((2, 3, 4))
    )
    assert torch.allclose(found.objective, price - own)
    assert torch.allclose(found.probabilities[..., 0], own.exp())
    assert torch.allclose(found.whole, model(x).softmax(1).detach())
    assert torch.allclose(found.kept, masks.mean((3, 4)))


def test_order_subsets_and_blocks_make_no_difference() -> None:
    model, x = net(), images()
    options = {"restarts": 2, "steps": 180, "upsample": 2}
    whole = certified(model, x, **options)
    small = certified(model, x, memory=20_000, **options)
    assert small.memory < whole.memory
    assert torch.allclose(small.masks, whole.masks, atol=1e-8)
    rows = torch.tensor([3, 1])
    labels = torch.tensor([[2, 0], [1, 2]])
    part = certified(model, x[rows], labels=labels, **options)
    assert torch.allclose(part.masks, whole.masks[rows[:, None], labels], atol=1e-8)
    assert torch.equal(part.steps, whole.steps[rows[:, None], labels])


def test_memory_that_runs_out_halves_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from undertow.measure.saliency._descent import Lanes, Problem

    whole = certified(net(), images(), steps=60)
    gradient = Problem.gradient
    sizes = []

    def tight(self: Problem, lanes: Lanes, weights: Tensor, step: int) -> Tensor:
        sizes.append(len(lanes))
        if len(lanes) > 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return gradient(self, lanes, weights, step)

    monkeypatch.setattr(Problem, "gradient", tight)
    found = certified(net(), images(), steps=60)
    assert max(sizes) == 12
    assert torch.allclose(found.masks, whole.masks, atol=1e-8)


def test_the_lowest_restart_is_kept() -> None:
    found = certified(net(), images(), restarts=3)
    assert found.by_restart.shape == (4, CLASSES, 3)
    assert torch.equal(found.objective, found.by_restart.amin(2))
    alone = certified(net(), images(), restarts=1)
    assert torch.allclose(alone.objective, found.by_restart[..., 0], atol=0.2)


def test_certificates_are_disjoint_and_in_order() -> None:
    found = certified(net(), images(), certificates=3)
    assert found.masks.shape == (4, CLASSES, 3, SIDE, SIDE)
    assert bool((found.masks.sum(2) <= 1 + 1e-12).all())
    assert bool((found.probabilities.diff(dim=2) <= 0).all())
    assert torch.equal(found.attributions, found.masks[:, :, 0])
    assert "3 disjoint masks" in repr(found)


def test_rounds_stop_once_they_gain_nothing() -> None:
    found = certified(net(), images(), atol=0.05, steps=900)
    assert found.converged.all()
    assert set(found.steps.flatten().tolist()) <= {180, 420, 900}
    assert bool((found.gained <= 0.05).all())
    short = certified(net(), images(), steps=40)
    assert not short.converged.any()
    assert set(short.steps.flatten().tolist()) == {40}


def test_more_rounds_never_end_higher() -> None:
    values = [certified(net(), images(), steps=steps).objective for steps in (60, 180, 420)]
    assert bool((values[1] <= values[0]).all())
    assert bool((values[2] <= values[1]).all())


def test_sides_that_the_cells_do_not_divide() -> None:
    assert Shape((7, 5), 3, 1).cells == (3, 2)
    found = certified(net(), images(), upsample=4)
    assert found.masks.shape[-2:] == (SIDE, SIDE)


@pytest.mark.parametrize("background", ["data", "mean", "grey", "blur", 0.3, torch.zeros(1, 6, 6)])
def test_backgrounds(background: object) -> None:
    found = certified(net(), images(), background=background, steps=60)
    assert torch.isfinite(found.objective).all()
    said = background if isinstance(background, str | float) else "given"
    assert found.settings["background"] == said


def test_an_input_is_not_its_own_background() -> None:
    """Of two inputs each sees the other alone: as if that were the background given."""
    x = images(2)
    drawn = saliency.certify(net(), x, steps=60)
    given = saliency.certify(net(), x, background=x.flip(0), steps=60)
    assert torch.allclose(drawn.masks, given.masks, atol=1e-10)


def test_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    found = certified(net(), images(), steps=60, progress=True)
    assert "certify: 12 masks" in capsys.readouterr().err
    assert repr(found).startswith("Certificates: masks of 4 inputs x 3 labels, 6 x 6 pixels")
    assert "0% converged" in repr(found)
    assert found.as_dict()["masks"] is found.masks
    assert "MiB a block" in lab.as_text(found.document())
    assert "image/png" in lab.as_page(found.document(names=["one", "two", "three"]))
    assert lab.draw_chart(found.plot(inputs=[1]), ".svg").startswith(b"<svg")
