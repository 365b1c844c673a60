"""Forecasts: the closed forms put together, schedules, and records beside them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from undertow import apply, predict

RUN: dict[str, Any] = {"lr": 0.1, "weight_decay": 5e-4, "steps": 2_000, "batch_size": 64}
SHAPES = {"a": (64, 48), "head": (10, 64)}


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "step:0.1@500,1500"])
@pytest.mark.parametrize("warmup", [0, 100])
def test_a_schedule_is_that_of_torch(schedule: str, warmup: int) -> None:
    found = apply.lr_factors(schedule, 2_000, warmup_steps=warmup)
    assert len(found) == 2_000
    assert found.max() == pytest.approx(1.0)
    assert np.all(np.diff(found[:warmup]) > 0)
    later = found[warmup:]
    assert np.all(np.diff(later) <= 0)
    if schedule.startswith("step"):
        at = np.array([499, 500, 1499, 1500])
        assert found[at] == pytest.approx([1, 0.1, 0.1, 0.01])
    if schedule in ("cosine", "linear"):
        assert later.mean() == pytest.approx(0.5, abs=1e-3)
        assert later[-1] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    "schedule",
    [
        "cosin",
        "step:0.1",
        "step:x@3",
        "step:0.1@",
        "step:0.1@3,,5",
        "step:1e400@3",
        "step:-1@3",
        [1.0],
        [-1.0] * 2_000,
    ],
)
def test_a_schedule_that_does_not_parse(schedule: Any) -> None:
    with pytest.raises(ValueError, match="schedule"):
        apply.forecast(**RUN, schedule=schedule)


def test_the_exponent_is_the_sum_over_the_schedule() -> None:
    found = apply.forecast(**RUN, schedule="cosine", warmup_steps=200, momentum=0.5)
    rates = 0.1 * apply.lr_factors("cosine", 2_000, warmup_steps=200)
    assert found.decay_exponent == pytest.approx(predict.decay_exponent(rates, 5e-4, momentum=0.5))
    assert found.exponents[-1] == pytest.approx(found.decay_exponent)
    assert found.residue == pytest.approx(math.exp(-found.decay_exponent))
    assert found.memory_steps == pytest.approx(0.5 / (0.1 * 5e-4))
    assert (found.steps[0], found.steps[-1]) == (0, 2_000)


def test_ranks_are_those_of_the_survivor_law() -> None:
    found = apply.forecast(SHAPES, **{**RUN, "steps": 80_000}, threshold=1e-2, init="he")
    for layer in found.layers:
        spectrum = predict.initial_spectrum(
            layer.rows, layer.cols, predict.initial_std("he", fan_in=layer.cols)
        )
        norm = float(np.linalg.norm(spectrum))
        assert layer.norm == pytest.approx(norm)
        for exponent, rank in zip(found.exponents, layer.ranks, strict=True):
            expected = predict.surviving_rank(spectrum, exponent, final_norm=norm, threshold=1e-2)
            assert rank == expected
        assert list(layer.ranks) == sorted(layer.ranks, reverse=True)


def test_a_model_gives_shapes_and_norms(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(5, 7))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    for source in (model, tmp_path / "model.pt"):
        layers = apply.forecast(source, **RUN).layers
        assert [(layer.name, layer.rows, layer.cols) for layer in layers] == [
            ("0.weight", 8, 27),
            ("1.weight", 7, 5),
        ]
        assert layers[1].norm == pytest.approx(float(model[1].weight.norm().detach()))


def test_what_applies_to_which_optimizer() -> None:
    plain = apply.forecast(SHAPES, **RUN)
    assert plain.layers[0].bound is not None
    assert plain.equilibrium == predict.equilibrium(0.1, 5e-4)
    heavy = apply.forecast(SHAPES, **RUN, momentum=0.9)
    assert heavy.layers[0].bound is None
    assert heavy.effective_lr == pytest.approx(1.0)
    adaptive = apply.forecast(SHAPES, **RUN, optimizer="adamw")
    assert adaptive.equilibrium == predict.equilibrium(0.1, 5e-4, optimizer="adamw")
    assert adaptive.effective_lr is None
    assert apply.forecast(SHAPES, **RUN, optimizer="adam").equilibrium is None
    assert adaptive.decay_exponent == plain.decay_exponent
    assert any("coupled decay" in note for note in apply.forecast(**RUN, optimizer="adam").notes)


def test_adamw_settles_by_its_own_first_beta_at_the_peak() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    for optimizer in (
        torch.optim.AdamW([weight], lr=0.1, betas=(0.8, 0.999)),
        torch.optim.Adam([weight], lr=0.1, betas=(0.8, 0.999), decoupled_weight_decay=True),
    ):
        found = apply.forecast(**RUN, optimizer=optimizer)
        assert found.equilibrium == predict.equilibrium(0.1, 5e-4, optimizer="adamw", beta1=0.8)
    moved = torch.optim.AdamW([weight], lr=0.1)
    cycle = torch.optim.lr_scheduler.OneCycleLR(moved, max_lr=0.1, total_steps=RUN["steps"] + 1)
    found = apply.forecast(**RUN | {"lr": None}, schedule=cycle)
    assert found.equilibrium is not None
    settled = predict.equilibrium(0.1, 5e-4, optimizer="adamw", beta1=0.85)
    assert found.equilibrium.angular_update == pytest.approx(settled.angular_update, rel=1e-3)


def test_without_decay_nothing_is_forgotten() -> None:
    found = apply.forecast(SHAPES, **{**RUN, "weight_decay": 0.0}, samples=1_000)
    assert found.residue == 1.0
    assert math.isinf(found.memory_steps)
    assert found.equilibrium is None
    assert found.layers[0].ranks[0] == found.layers[0].ranks[-1]
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["memory_steps"] is None
    assert "no weight decay" in found.text()


def test_epochs_and_rounds() -> None:
    found = apply.forecast(**RUN, samples=6_400)
    assert found.memory_epochs == pytest.approx(found.memory_steps / 100)
    assert found.sync.share == pytest.approx(1 / 4)


@pytest.mark.slow
def test_the_text_fits_a_terminal(tmp_path: Path) -> None:
    many = {f"encoder.layers.{i}.attention.output.dense.weight": (64, 64) for i in range(40)}
    for shapes in (None, SHAPES, many):
        text = apply.forecast(shapes, **RUN, optimizer="adam", samples=10_000).text()
        assert max(map(len, text.splitlines())) <= 80
    assert "(40)" in text
    page = apply.forecast(SHAPES, **RUN).write_html(tmp_path / "page.html").read_text()
    assert "Surviving initial directions" in page


def records_of(rate: float, decay: float, steps: list[int]) -> pl.DataFrame:
    """Pure decay of a drawn matrix, beside a learned part of rank three."""
    start = np.random.default_rng(0).normal(size=(64, 64)) / math.sqrt(3 * 64)
    rows = []
    for step in steps:
        weight = (1 - rate * decay) ** step * start
        norm = 8.0
        values = np.linalg.svd(weight, compute_uv=False)
        rows.append(
            {
                "step": step,
                "rows": 64,
                "cols": 64,
                "norm": norm,
                "rank": int((values > 1e-2 * norm).sum()),
                "learned_rank": 3,
            }
        )
    return pl.DataFrame(rows)


def test_forecast_beside_measurement(tmp_path: Path) -> None:
    frame = records_of(0.1, 5e-4, [0, 5_000, 20_000, 30_000])
    frame.write_csv(tmp_path / "records.csv")
    frame.write_parquet(tmp_path / "records.parquet")
    frame.write_ndjson(tmp_path / "records.jsonl")
    run = {**RUN, "steps": 30_000, "threshold": 1e-2}
    for name in ("records.csv", "records.parquet", "records.jsonl"):
        comparison = apply.forecast(**run, records=tmp_path / name).comparison
        assert comparison is not None
        assert comparison.dominated is not None
        assert comparison.dominated < 0.1
        assert comparison.table["decay_exponent"][1] == pytest.approx(0.25)
    named = frame.rename({"rank": "threshold_rank", "norm": "frobenius_norm"})
    again = apply.compare_records(named, lr=0.1, weight_decay=5e-4, threshold=1e-2)
    assert again.mean_error == pytest.approx(comparison.mean_error)


def test_records_that_cannot_be_compared(tmp_path: Path) -> None:
    frame = records_of(0.1, 5e-4, [0, 5_000])
    with pytest.raises(ValueError, match="records lack rank"):
        apply.compare_records(frame.drop("rank"), lr=0.1, weight_decay=5e-4)
    with pytest.raises(ValueError, match="need decay_exponent, or step"):
        apply.compare_records(frame.drop("step"), lr=0.1, weight_decay=5e-4)
    with pytest.raises(ValueError, match="beyond the 2000 steps"):
        apply.forecast(**RUN, records=frame)
    (tmp_path / "records.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="cannot be read"):
        apply.compare_records(tmp_path / "records.parquet")
    with pytest.raises(FileNotFoundError):
        apply.compare_records(tmp_path / "nothing.csv")
    with pytest.raises(ValueError, match="no folder of a run"):
        apply.compare_records(tmp_path)


def test_arguments_out_of_range() -> None:
    for changed, said in (
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"weight_decay": 20.0}, "wipes the weights out"),
        ({"lr": -1.0}, "lr"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
        ({"scheduler_interval": 0}, "scheduler_interval must be at least 1"),
        ({"optimizer": "adam", "momentum": 0.9}, "momentum is SGD's"),
        ({"warmup_steps": 5_000}, "warmup_steps"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0, got -1"),
        ({"norm_ratio": 0.0}, "norm_ratio"),
        ({"samples": 0}, "samples"),
        ({"init": "magic"}, "init must be"),
    ):
        with pytest.raises(ValueError, match=said):
            apply.forecast(SHAPES, **{**RUN, **changed})
    for name in ("steps", "batch_size", "samples", "warmup_steps"):
        for wrong in (2.5, True):
            with pytest.raises(TypeError, match=f"{name} must be a whole number, got {wrong}"):
                apply.forecast(SHAPES, **{**RUN, name: wrong})
    with pytest.raises(ValueError, match="shape of a must be"):
        apply.forecast({"a": (3, 0)}, **RUN)
    assert apply.parse_shapes(["3x4", "b=5x6"]) == {"matrix 1": (3, 4), "b": (5, 6)}
    with pytest.raises(ValueError, match="does not parse"):
        apply.parse_shapes(["3y4"])


def test_the_rank_bound_counts_the_steps_that_the_end_remembers() -> None:
    run: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.05, "batch_size": 1}
    shapes = {"w": (4096, 4096)}

    def bound(**changed: Any) -> predict.RankBound:
        found = apply.forecast(shapes, **run, **changed).layers[0].bound
        assert found is not None
        return found

    # E below log(2 / threshold): the start still shows, and its rank is full.
    assert bound(steps=10).vacuous
    constant = predict.rank_bound(**run, shape=(4096, 4096))
    assert bound(steps=5_000).rank == pytest.approx(constant.rank)
    # A schedule's last steps decay less, so that more of them are remembered.
    rates = 0.1 * apply.lr_factors("cosine", 5_000)
    left = np.cumsum((rates * 0.05)[::-1])
    steps = int(np.searchsorted(left, math.log(2e3))) + 1
    assert bound(steps=5_000, schedule="cosine").rank == pytest.approx(steps, rel=1e-2)


def test_values_that_would_go_unread_are_refused() -> None:
    for changed, said in (
        ({"batch_size": -5, "optimizer": "adamw"}, "batch_size must be"),
        ({"optimizer": "momentum"}, "momentum is needed"),
    ):
        with pytest.raises(ValueError, match=said):
            apply.forecast(SHAPES, **{**RUN, **changed})
    with pytest.raises(ValueError, match="a has one already"):
        apply.parse_shapes(["a=3x4", "a=5x6"])
    listed = apply.forecast({"a": [64, 48]}, **RUN).layers[0]
    assert listed.ranks == apply.forecast({"a": (64, 48)}, **RUN).layers[0].ranks


def test_records_are_checked_before_they_are_compared() -> None:
    frame = records_of(0.1, 5e-4, [0, 1_000])
    run: dict[str, Any] = {"lr": 0.1, "weight_decay": 5e-4, "threshold": 1e-2}
    expected = apply.compare_records(frame, **run).table["forecast"].to_list()
    floats = frame.with_columns(pl.col("step").cast(pl.Float64))
    assert apply.compare_records(floats, **run).table["forecast"].to_list() == expected
    unknown = frame.with_columns(step=pl.Series([None, 1_000]))
    assert apply.compare_records(unknown, **run).table["forecast"].to_list() == expected[1:]
    for changed, said in (
        (frame.with_columns(step=pl.Series([-1, 0])), "step must hold finite numbers >= 0"),
        (frame.with_columns(norm=pl.Series([math.nan, 1.0])), "norm must hold finite"),
        (frame.with_columns(rank=pl.Series(["a", "b"])), "rank must hold numbers"),
        (frame.clear(), "no row"),
    ):
        with pytest.raises(ValueError, match=said):
            apply.compare_records(changed, **run)
