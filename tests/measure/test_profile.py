"""The table of affordable measurements: complete, honest about what does not apply, harmless."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from undertow.measure import profile, sharpness
from undertow.models import mlp
from undertow.objective import CurvatureProducts, Objective

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def objective(**changes) -> Objective:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 6, generator=generator)
    targets = torch.randint(3, (40,), generator=generator)
    model = mlp((6, 8, 3), generator=generator, **changes)
    return Objective(model, functional.cross_entropy, (inputs, targets))


def test_every_quantity_of_a_homogeneous_network_has_a_value():
    found = profile(objective(bias=False))
    assert found.table["value"].null_count() == 0
    values = dict(found.table.select("quantity", "value").iter_rows())
    assert values["degree of homogeneity"] == pytest.approx(2, abs=1e-6)
    assert values["sharpness"] == pytest.approx(
        float(sharpness(objective(bias=False)).eigenvalues[0]), rel=1e-2
    )
    bounded = found.table.drop_nulls(["low"])
    assert (bounded["low"] <= bounded["value"]).all()
    assert (bounded["value"] <= bounded["high"]).all()


def test_what_does_not_apply_says_why():
    found = profile(objective(activation="gelu"))
    rows = {row["quantity"]: row for row in found.table.iter_rows(named=True)}
    assert rows["normalised margin"]["value"] is None
    assert "homogeneous" in rows["normalised margin"]["note"]
    assert "not taken" in repr(found)
    assert math.isfinite(rows["noise scale"]["value"])


def test_the_module_is_left_as_it_was():
    asked = objective()
    asked.model.append(nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in asked.model.state_dict().items()}
    profile(asked)
    assert asked.model.training
    assert all(torch.equal(before[name], v) for name, v in asked.model.state_dict().items())
    assert all(param.grad is None for param in asked.model.parameters())


def test_the_plot_has_a_line_a_matrix():
    chart = profile(objective()).plot().to_dict()
    (rows,) = chart["datasets"].values()
    assert {row["matrix"] for row in rows} == {"1.weight", "3.weight"}


@pytest.mark.parametrize(
    ("model", "loss", "targets"),
    [
        (nn.Linear(6, 1), functional.mse_loss, torch.linspace(-1, 1, 40)[:, None]),
        (nn.PReLU(), functional.mse_loss, torch.linspace(-1, 1, 240).reshape(40, 6)),
    ],
    ids=["regression", "no matrix"],
)
def test_reasons_fit_in_eighty_columns(model, loss, targets):
    inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    found = profile(Objective(model, loss, (inputs, targets)))
    assert all(len(line) <= 80 for line in repr(found).splitlines())
    assert "targets" in repr(found)
    if isinstance(model, nn.PReLU):
        with pytest.raises(ValueError, match=r"no singular values to draw.*no weight matrix"):
            found.plot()


@pytest.mark.parametrize("budget", [0, 5, 30, 60, 61.5, 120, 400])
def test_no_more_is_done_than_the_budget_covers(budget, monkeypatch):
    multiplied = 0
    product = CurvatureProducts.product

    def counting(self, kind, vectors):
        nonlocal multiplied
        multiplied += len(vectors)
        return product(self, kind, vectors)

    monkeypatch.setattr(CurvatureProducts, "product", counting)
    found = profile(objective(activation="tanh"), budget=budget)
    # A product counts as two gradients; one, on few samples, is tried before any other.
    assert 2 * (multiplied - 2) <= budget
    assert found.spent <= max(budget, 2)
    assert f"of a budget of {budget:g}" in repr(found)


def test_a_budget_gives_one_table_and_a_larger_one_no_less():
    runs = {budget: profile(objective(), budget=budget) for budget in (0, 8, 40, 90, 400)}
    again = profile(objective(), budget=90)
    assert again.table.equals(runs[90].table)
    assert again.left_out == runs[90].left_out
    for fewer, more in itertools.pairwise(runs.values()):
        assert fewer.parts.keys() <= more.parts.keys()
    assert set(runs[0].left_out) == {
        "ranks", "gradient_noise", "margins", "sharpness", "hessian_trace",
    }  # fmt: skip
    assert runs[0].table["value"][:2].null_count() == 0


def test_what_is_left_out_names_the_call_that_gives_it():
    for budget in (0, 60):
        found = profile(objective(), budget=budget)
        assert found.left_out
        notes = " ".join(found.table["note"])
        assert all(f"undertow.{name}(" in notes for name in found.left_out)


def test_a_budget_is_a_number_of_gradients():
    with pytest.raises(TypeError, match="budget must be a number of gradients, got str"):
        profile(objective(), budget="10 s")
    with pytest.raises(ValueError, match="budget must not be negative, got -1"):
        profile(objective(), budget=-1)
    assert profile(objective(bias=False), budget=math.inf).left_out == ()
