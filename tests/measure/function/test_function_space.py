"""The distance between two ensembles' laws of the output: closed forms, null and invariances."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from undertow.measure import distance_in_function_space as distance
from undertow.models import scale_invariant_mlp
from undertow.train import Ensemble, Member

CLASSES: dict[str, Any] = {"law": "classes"}


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def votes(chosen: list[int]) -> Tensor:
    """Members that choose class 0 or 1 on one input."""
    return torch.tensor(chosen)[:, None]


def test_of_shares_it_is_their_difference() -> None:
    # 3 of 4 choose class 1 in one ensemble, 1 of 5 in the other.
    found = distance(votes([1, 1, 1, 0]), votes([0, 0, 1, 0, 0]), **CLASSES)
    assert found.value == pytest.approx(3 / 4 - 1 / 5)
    assert (found.members, found.num_inputs) == ((4, 5), 1)
    # The jackknife of a difference of means is their standard error.
    variance = 0.75 * 0.25 / 3 + 0.2 * 0.8 / 4
    assert found.stderr == pytest.approx(math.sqrt(variance))


def test_symmetric_kl_of_bernoulli_laws() -> None:
    p, q = 0.7, 0.4
    logits = [torch.tensor([[[0.0, math.log(own / (1 - own))]]] * 3) for own in (p, q)]
    found = distance(*logits, kind="symmetric kl")
    expected = (p - q) * (math.log(p / q) - math.log((1 - p) / (1 - q))) / 2
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert distance(*logits).value == pytest.approx(p - q, rel=1e-6)
    assert distance(*logits).stderr == pytest.approx(0, abs=1e-9)


def test_the_null_of_bernoulli_ensembles_is_that_of_a_hypergeometric_law() -> None:
    """Of 8 members of which 4 choose class 1, the first 4 have so many by chance."""
    found = distance(votes([1, 1, 0, 0]), votes([0, 1, 0, 1]), permutations=40_000, **CLASSES)
    law = stats.hypergeom(8, 4, 4)
    expected = sum(abs(2 * k - 4) / 4 * law.pmf(k) for k in range(5))
    assert found.value == 0
    assert found.p_value == 1
    assert found.null == pytest.approx(expected, rel=0.02)
    apart = distance(votes([1, 1, 1, 1]), votes([0, 0, 0, 0]), permutations=40_000, **CLASSES)
    assert apart.p_value == pytest.approx(2 / math.comb(8, 4), rel=0.15)
    assert apart.null_interval[1] <= 1.0


def test_the_null_has_the_size_that_two_ensembles_of_one_law_have() -> None:
    share, sizes = 0.3, (12, 20)
    generator = torch.Generator().manual_seed(0)
    found = [
        distance(
            *((torch.rand(size, 30, generator=generator) < share).long() for size in sizes),
            permutations=99,
            **CLASSES,
        )
        for _ in range(60)
    ]
    real = torch.tensor([own.value for own in found]).mean()
    # About sqrt(2 / pi) standard deviations of the difference of shares.
    expected = math.sqrt(2 / math.pi * share * (1 - share) * (1 / 12 + 1 / 20))
    assert float(real) == pytest.approx(expected, rel=0.05)
    assert sum(own.null for own in found) / len(found) == pytest.approx(float(real), rel=0.03)


@pytest.mark.parametrize("kind", ["total variation", "symmetric kl"])
def test_p_values_of_one_law_are_uniform(kind: Any) -> None:
    values = [
        distance(draw(seed, 6, 5, 3), draw(1000 + seed, 8, 5, 3), kind=kind, permutations=99)
        for seed in range(200)
    ]
    p_values = [own.p_value for own in values]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert 0.01 < sum(p <= 0.05 for p in p_values) / len(p_values) < 0.1


def test_laws_that_differ_are_told_apart() -> None:
    near, far = draw(0, 20, 30, 4), draw(1, 20, 30, 4)
    far[..., 0] += 1
    found = distance(near, far)
    assert found.p_value == 1e-3
    assert found.excess > 5 * found.stderr
    assert found.null_interval[0] < found.null < found.null_interval[1] < found.value
    assert "apart (p = 0.001)" in repr(found)


def test_neither_order_nor_sides_nor_a_shift_of_logits_count() -> None:
    one, other = draw(0, 9, 7, 4), draw(1, 6, 7, 4) + 0.3
    first = distance(one, other)
    shuffled = distance(one.flip(0), other[torch.tensor([3, 1, 0, 5, 4, 2])])
    turned = distance(other + draw(2, 6, 7, 1), one)
    for found in (shuffled, turned):
        assert found.value == pytest.approx(first.value)
        assert found.stderr == pytest.approx(first.stderr)
        assert found.null == pytest.approx(first.null, rel=0.02)
    assert distance(one, one.clone()).value == 0


def test_logits_and_the_classes_that_they_choose_are_one() -> None:
    one, other = draw(0, 9, 7, 4), draw(1, 6, 7, 4)
    logits = distance(one, other, **CLASSES)
    for mixed in ((one.argmax(2), other.argmax(2)), (one, other.argmax(2))):
        assert distance(*mixed, **CLASSES) == logits


def test_modules_and_ensembles_are_shown_the_inputs() -> None:
    x, y = draw(0, 24, 6), torch.arange(24) % 3
    members = [Member(seed, 0.2, order="replacement") for seed in range(6)]
    ensemble = Ensemble(
        lambda generator: scale_invariant_mlp((6, 8, 3), generator=generator),
        nn.functional.cross_entropy,
        (x, y),
        members,
        batch_size=8,
    ).train(10)
    modules = [ensemble.module(number).train() for number in range(6)]
    shown = draw(1, 11, 6)
    outputs = ensemble.predict(shown)
    expected = distance(outputs[:3], outputs[3:])
    found = distance(modules[:3], modules[3:], shown)
    assert found.value == pytest.approx(expected.value, rel=1e-5)
    assert all(module.training for module in modules)
    assert distance(ensemble, modules[3:], shown).members == (6, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((draw(0, 3, 4, 2), draw(0, 1, 4, 2)), ValueError, "others must hold at least two members"),
        (
            (draw(0, 3, 4, 2), draw(0, 3, 5, 2)),
            ValueError,
            "shown the same inputs, got .4, 5. rows",
        ),
        ((draw(0, 3, 4, 2), draw(0, 3, 4, 3)), ValueError, "the same classes, got .2, 3."),
        ((draw(0, 3, 4, 1), draw(0, 3, 4, 1)), ValueError, r"single output; .* \[-f / 2, f / 2\]"),
        ((draw(0, 3, 4), draw(0, 3, 4)), ValueError, "models must give logits"),
        (
            (nn.Linear(2, 2), draw(0, 3, 4, 2), draw(0, 4, 2)),
            TypeError,
            "models must be modules in",
        ),
        (
            ([nn.Linear(2, 2)] * 2, draw(0, 3, 4, 2)),
            ValueError,
            "inputs must be given where models",
        ),
        ((draw(0, 3, 4, 2), draw(0, 3, 4, 2), draw(0, 4)), ValueError, "inputs must be None"),
        ((["a", "b"], ["c", "d"], draw(0, 4)), TypeError, "each of models must be an nn.Module"),
    ],
)
def test_bad_ensembles_are_named(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        distance(*arguments)


def test_bad_options_are_named() -> None:
    pair = draw(0, 3, 4, 2), draw(1, 3, 4, 2)
    with pytest.raises(ValueError, match="kind must be total variation or symmetric kl"):
        distance(*pair, kind="l2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="law must be probabilities or classes"):
        distance(*pair, law="logits")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="of classes is infinite"):
        distance(*pair, kind="symmetric kl", law="classes")
    with pytest.raises(ValueError, match="permutations must be at least 1"):
        distance(*pair, permutations=0)
    with pytest.raises(ValueError, match="law='probabilities' needs logits"):
        distance(votes([0, 1]), votes([0, 1]))
    lost = draw(0, 3, 4, 2)
    lost[1] = math.nan
    with pytest.raises(ValueError, match=r"members \[1\] do not; leave out those that diverged"):
        distance(lost, pair[1])
    with pytest.raises(ValueError, match="classes must lie below the 2 of the logits, got 5"):
        distance(pair[0], torch.full((3, 4), 5), law="classes")


def test_what_gives_a_number_that_is_none_is_refused() -> None:
    one, *others = (nn.Linear(3, 2) for _ in range(4))
    inputs = torch.ones(5, 3)
    with pytest.raises(ValueError, match="models must be different modules"):
        distance([one, one], others, inputs)
    laws = torch.rand(3, 5, 2).softmax(2)
    with pytest.raises(ValueError, match="others must give logits, but give probabilities"):
        distance(laws.log(), laws)
    with pytest.raises(TypeError, match="models must be modules in a list"):
        distance(laws.numpy(), laws)  # type: ignore[arg-type]


def test_how_classes_are_numbered_makes_no_difference() -> None:
    drawn = torch.Generator().manual_seed(0)
    one, other = (torch.randint(3, (4, 6), generator=drawn) for _ in range(2))
    plain = distance(one, other, law="classes")
    far = distance(one * 10**9, other * 10**9, law="classes")
    assert plain == far
