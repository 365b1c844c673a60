"""Inspections: the same ranks as `measure.ranks`, compressibility as the SVD has it, and notes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from undertow import apply, measure, predict


def low_rank(rows: int, cols: int, rank: int) -> Tensor:
    return torch.randn(rows, rank, dtype=torch.float64) @ torch.randn(
        rank, cols, dtype=torch.float64
    )


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Linear(12, 7))


def test_the_table_is_that_of_ranks(model: nn.Module, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "model.pt")
    expected = measure.ranks(model).table
    for source in (model, model.state_dict(), tmp_path / "model.pt"):
        found = apply.inspect(source)
        columns = ["name", "rows", "cols", "threshold_rank"]
        assert found.table.select(columns).equals(expected.select(columns))
        for column in ("stable_rank", "effective_rank", "spectral_norm", "frobenius_norm"):
            assert found.table[column].to_numpy() == pytest.approx(expected[column].to_numpy())


@pytest.mark.parametrize("error", [0.01, 0.05, 0.3])
def test_truncating_to_the_rank_given_keeps_the_error(error: float) -> None:
    matrix = torch.randn(30, 20, dtype=torch.float64) @ torch.diag(
        torch.logspace(0, -3, 20, dtype=torch.float64)
    )
    found = apply.inspect({"weight": matrix}, errors=(error,))
    rank = found.table[f"rank_at_{100 * error:g}"][0]
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)

    def relative_error(kept: int) -> float:
        truncated = left[:, :kept] * values[:kept] @ right[:kept]
        return float((matrix - truncated).norm() / matrix.norm())

    assert relative_error(rank) <= error < relative_error(rank - 1)
    assert found.parameters_at(error) == min(600, rank * 50)


def test_a_difference_has_the_rank_of_what_was_added() -> None:
    base = {"a.weight": torch.randn(40, 30), "b.weight": torch.randn(20, 20)}
    tuned = {
        "a.weight": (base["a.weight"].double() + 1e-2 * low_rank(40, 30, 3)).float(),
        "b.weight": base["b.weight"] * 1.1,
        "c.weight": torch.randn(3, 3),
    }
    found = apply.inspect(tuned, against=base)
    assert found.table["name"].to_list() == ["a.weight", "b.weight"]
    assert found.table["rank_at_1"][0] == 3
    assert found.table["change"][1] == pytest.approx(0.1, rel=1e-5)
    assert any("c.weight" in note for note in found.notes)
    with pytest.raises(ValueError, match="shares no matrix"):
        apply.inspect(tuned, against={"d.weight": torch.randn(2, 2)})


def test_survivors_are_those_of_the_closed_form() -> None:
    weight = torch.randn(64, 48) * 0.02
    found = apply.inspect({"w": weight}, lr=0.1, weight_decay=5e-3, steps=4_000, init="he")
    assert found.residue is not None
    assert found.residue.decay_exponent == pytest.approx(2.0)
    assert found.residue.factor == pytest.approx(2.718281828459045**-2)
    spectrum = predict.initial_spectrum(64, 48, predict.initial_std("he", fan_in=48))
    expected = predict.surviving_rank(spectrum, 2.0, final_norm=float(weight.double().norm()))
    assert found.table["survivors"].to_list() == [expected]


def test_a_broken_matrix_does_not_cost_the_others() -> None:
    weights = {"good": torch.randn(4, 4), "bad": torch.full((4, 4), float("nan"))}
    found = apply.inspect(weights)
    assert found.table["name"].to_list() == ["good"]
    assert found.notes == ("bad holds infinities or NaN and was skipped",)
    with pytest.raises(ValueError, match="no matrix left to report: bad holds"):
        apply.inspect({"bad": weights["bad"]})


def test_tied_quantised_and_parametrised_weights_are_noted(tmp_path: Path) -> None:
    tied = torch.randn(6, 4)
    linear = parametrizations.weight_norm(nn.Linear(4, 4))
    state = {"embed.weight": tied, "head.weight": tied, "packed": torch.ones(4, 4).to(torch.int8)}
    torch.save(state | linear.state_dict(), tmp_path / "model.pt")
    notes = " ".join(apply.inspect(tmp_path / "model.pt").notes)
    assert "head.weight is the same tensor as embed.weight" in notes
    assert "packed has dtype torch.int8" in notes
    assert "parts of parametrised weights" in notes
    assert apply.inspect(linear).table["name"].to_list() == ["weight"]
    with pytest.raises(ValueError, match="on the meta device"):
        apply.inspect(nn.Linear(2, 2, device="meta"))


def test_matrices_that_differ_in_number_alone_are_one_line() -> None:
    state = {
        f"h.{i}.{kind}.weight": torch.randn(6, 6) for i in range(20) for kind in ("up", "down")
    }
    found = apply.inspect(state)
    roles = found.by_role()
    assert roles["name"].to_list() == ["h.0-19.up.weight", "h.0-19.down.weight"]
    assert roles["count"].to_list() == [20, 20]
    assert roles["frobenius_norm"].sum() * 20 == pytest.approx(found.table["frobenius_norm"].sum())
    text = found.text()
    assert "up (20) " in text
    assert len(found.text(every=True).splitlines()) > 40


@pytest.mark.parametrize("arguments", [{}, {"lr": 0.1, "weight_decay": 1e-3, "steps": 100}])
def test_the_text_fits_a_terminal(arguments: dict[str, float]) -> None:
    name = "transformer.layers.with_a_long_name.0.attention.output.projection.weight"
    state = {name: torch.randn(300, 7), "x.weight": torch.zeros(3, 3), f"{name}2": torch.eye(9)}
    for against in (None, {key: value + 1 for key, value in state.items()}):
        if against is None or not arguments:
            found = apply.inspect(state, against=against, **arguments)  # type: ignore[arg-type]
            assert max(map(len, found.text().splitlines())) <= 80


def test_json_and_page_hold_the_whole(model: nn.Module, tmp_path: Path) -> None:
    found = apply.inspect(model, lr=0.1, weight_decay=1e-3, steps=100)
    content = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert [row["name"] for row in content["matrices"]] == found.table["name"].to_list()
    assert content["residue"] == pytest.approx(0.99, abs=1e-3)
    page = found.write_html(tmp_path / "page.html").read_text()
    assert "Every matrix" in page
    assert "0.weight" in page


def test_results_and_settings_do_not_depend_on_the_number_of_threads(model: nn.Module) -> None:
    before = torch.get_num_threads()
    single, double = (apply.inspect(model, workers=count) for count in (1, 3))
    assert single.table.equals(double.table)
    assert torch.get_num_threads() == before


def test_arguments_out_of_range() -> None:
    weights = {"w": torch.randn(3, 3)}
    for errors in ((), (0.0,), (1.0,)):
        with pytest.raises(ValueError, match="errors must lie strictly between 0 and 1"):
            apply.inspect(weights, errors=errors)
    with pytest.raises(ValueError, match="lr, weight_decay and steps together"):
        apply.inspect(weights, lr=0.1)
    with pytest.raises(ValueError, match="init must be"):
        apply.inspect(weights, lr=0.1, weight_decay=0.1, steps=1, init="magic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="hyperparameters or against"):
        apply.inspect(weights, against=weights, lr=0.1, weight_decay=0.1, steps=1)
    with pytest.raises(TypeError, match=r"must be an nn\.Module or a mapping"):
        apply.inspect(3)  # type: ignore[arg-type]


def test_a_safetensors_file_in_half_precision(tmp_path: Path) -> None:
    weight = torch.randn(20, 10).bfloat16()
    save_file({"w": weight}, tmp_path / "w.safetensors")
    found = apply.inspect(tmp_path / "w.safetensors")
    exact = torch.linalg.svdvals(weight.double())
    assert found.spectra["w"].numpy() == pytest.approx(exact.numpy())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_difference_leaves_both_sides_as_they_were(dtype: torch.dtype) -> None:
    base = {"w": torch.randn(6, 5).to(dtype)}
    tuned = {"w": torch.randn(6, 5).double()}
    kept = {"base": base["w"].clone(), "tuned": tuned["w"].clone()}
    first = apply.inspect(tuned, against=base).table
    assert torch.equal(base["w"], kept["base"])
    assert torch.equal(tuned["w"], kept["tuned"])
    assert first.equals(apply.inspect(tuned, against=base).table)
    assert first["frobenius_norm"][0] == pytest.approx(float((tuned["w"] - base["w"]).norm()))


def test_a_change_from_zero_is_infinite_and_none_at_all_is_zero() -> None:
    zero, one = torch.zeros(3, 3), torch.ones(3, 3)
    found = apply.inspect({"same": zero, "new": one}, against={"same": zero, "new": zero})
    assert found.table["change"].to_list() == [0.0, float("inf")]
    rows = json.loads(json.dumps(found.as_json(), allow_nan=False))["matrices"]
    assert [row["change"] for row in rows] == [0.0, None]
    assert "nan" not in found.text()


def test_an_argument_out_of_range_is_not_blamed_on_the_weights() -> None:
    weights = {"w": torch.randn(4, 4)}
    for threshold in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="threshold must be a finite number"):
            apply.inspect(weights, threshold=threshold)
    with pytest.raises(ValueError, match="errors must be at least 1e-05"):
        apply.inspect(weights, errors=(1e-9,))
    with pytest.raises(ValueError, match="errors must differ"):
        apply.inspect(weights, errors=(0.1, 0.1))
    with pytest.raises(TypeError, match="did you mean"):
        apply.inspect(weights, errors=0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="workers must be at least 1"):
        apply.inspect(weights, workers=0)
    assert apply.inspect(weights, threshold=1e9).table["threshold_rank"].to_list() == [0]


def test_the_least_error_is_kept_to() -> None:
    values = torch.tensor([1.0, 3e-5, 0.9e-5, 1e-7], dtype=torch.float64)
    found = apply.inspect({"w": torch.diag(values)}, errors=(1e-5,))
    assert found.table["rank_at_0.001"].to_list() == [2]


def test_very_many_errors_take_longer_lines() -> None:
    errors = [place / 20 for place in range(1, 20)]
    text = apply.inspect({"some.layer.weight": torch.randn(4, 4)}, errors=errors).text()
    assert "some.layer" in text


def test_xavier_counts_the_taps_of_a_convolution() -> None:
    kernel = torch.empty(16, 4, 3, 3)
    nn.init.xavier_normal_(kernel, generator=torch.Generator().manual_seed(0))
    std = predict.initial_std("xavier", fan_in=36, fan_out=16 * 9)
    assert float(kernel.std()) == pytest.approx(std, rel=0.1)
    expected = predict.surviving_rank(
        predict.initial_spectrum(16, 36, std),
        5.5,
        final_norm=float(kernel.double().norm()),
    )
    run = {"lr": 0.1, "weight_decay": 5.5e-3, "steps": 10_000}
    found = apply.inspect({"conv": kernel}, **run, init="xavier")  # type: ignore[arg-type]
    assert found.table["survivors"].to_list() == [expected]
    layer = apply.forecast({"conv": kernel}, **run, batch_size=8, init="xavier").layers[0]  # type: ignore[arg-type]
    assert layer.final_rank == expected


@pytest.mark.parametrize("tied_side", ["both", "tuned", "base"])
def test_a_difference_looks_behind_ties(tied_side: str) -> None:
    def head(tied: bool, order: tuple[str, str]) -> dict[str, Tensor]:
        shared = torch.randn(6, 4)
        return {name: shared if tied else torch.randn(6, 4) for name in order}

    tuned = head(tied_side != "base", ("embed.weight", "head.weight"))
    base = head(tied_side != "tuned", ("head.weight", "embed.weight"))
    found = apply.inspect(tuned, against=base)
    if tied_side == "both":
        assert found.table["name"].to_list() == ["embed.weight"]
        assert found.notes == ("head.weight is tied to embed.weight in both; reported once",)
    else:
        assert found.table["name"].to_list() == ["embed.weight", "head.weight"]
        assert found.notes == ()
    for name, norm in found.table.select("name", "frobenius_norm").iter_rows():
        assert norm == pytest.approx(float((tuned[name] - base[name]).norm()))


def test_a_tied_model_beside_its_checkpoint(tmp_path: Path) -> None:
    model = nn.ModuleDict({"head": nn.Linear(4, 6), "embed": nn.Embedding(6, 4)})
    model["head"].weight = model["embed"].weight
    save_file({"embed.weight": model["embed"].weight.detach().clone()}, tmp_path / "m.safetensors")
    for one, other in ((model, tmp_path / "m.safetensors"), (tmp_path / "m.safetensors", model)):
        found = apply.inspect(one, against=other)  # type: ignore[arg-type]
        assert found.table.select("name", "change").rows() == [("embed.weight", 0.0)]
        assert found.notes == ()
