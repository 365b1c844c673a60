"""Replication: whole seeds drawn anew, judged again, and what that says of a verdict."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

import numpy as np
import polars as pl
import pytest

from undertow import lab
from undertow.lab import Check, Verdict, _replication, decide
from undertow.lab._replication import _Parted

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def frame(seeds: Sequence[int], rows: int = 3, **columns: Sequence[float]) -> pl.DataFrame:
    """Rows of each seed, cell by cell as a study gives them."""
    values = {name: list(given) * rows for name, given in columns.items()}
    return pl.DataFrame(
        {
            "trial": [f"{cell}-{seed}" for cell in range(rows) for seed in seeds],
            "cell": [cell for cell in range(rows) for _ in seeds],
            "seed": list(seeds) * rows,
            **values,
        }
    )


def drawn(records: dict[str, pl.DataFrame], draw: int = 0) -> dict[str, pl.DataFrame]:
    return dict(_Parted(records).drawn(np.random.default_rng(draw)))


def check(name: str, passed: bool) -> Check:
    return Check(name, 0.0, (0.0, 0.0), "", passed)


def mean_above(bound: float, records: dict[str, pl.DataFrame]) -> Verdict:
    """The mean over seeds is above a bound; a second check always passes."""
    passed = float(records["runs"]["value"].mean()) > bound
    return decide([check("mean", passed), check("always", True)])


# ---- what a draw is


def test_a_draw_keeps_every_seeds_rows_whole() -> None:
    seeds = range(40, 52)
    records = {"runs": frame(seeds, rows=4, origin=[float(seed) for seed in seeds])}
    for draw in range(5):
        (runs,) = drawn(records, draw).values()
        assert sorted(runs["seed"].unique()) == list(seeds)
        assert runs.schema == records["runs"].schema
        for _, own in runs.group_by("seed"):
            assert own["origin"].n_unique() == 1  # all of one seed's
            assert own["cell"].to_list() == [0, 1, 2, 3]  # in the records' order


def test_a_seed_that_is_drawn_twice_is_two_seeds_of_other_trials() -> None:
    records = {"runs": frame(range(12), origin=range(12))}
    (runs,) = drawn(records).values()
    assert runs["origin"].n_unique() < 12
    assert runs["seed"].n_unique() == 12
    assert runs["trial"].n_unique() == len(runs) == 36


def test_every_seed_is_drawn_as_often_and_a_draw_of_each_is_the_records() -> None:
    records = {"runs": frame(range(3), origin=range(3))}
    found = [drawn(records, draw)["runs"] for draw in range(300)]
    shares = np.mean([np.bincount(runs["origin"], minlength=3) for runs in found], axis=0) / 9
    assert shares == pytest.approx([1 / 3] * 3, abs=0.05)
    (whole, *_) = [runs for runs in found if (runs["origin"] == runs["seed"]).all()]
    assert whole.equals(records["runs"])


def test_experiments_of_the_same_seeds_share_a_draw_and_others_do_not() -> None:
    records = {
        "one": frame(range(8), origin=range(8)),
        "two": frame(range(8), rows=2, origin=range(8)),
        "own": frame(range(100, 108), origin=range(8)),
    }
    found = [drawn(records, draw) for draw in range(10)]
    origins = [
        {name: dict(runs.select("seed", "origin").iter_rows()) for name, runs in draw.items()}
        for draw in found
    ]
    assert all(draw["one"] == draw["two"] for draw in origins)
    assert any(list(draw["own"].values()) != list(draw["one"].values()) for draw in origins)


def test_pairs_stay_pairs_where_an_experiment_has_some_of_anothers_seeds() -> None:
    records = {
        "all": frame(range(10), value=[100.0 + seed for seed in range(10)]),
        "some": frame(range(4), value=[float(seed) for seed in range(4)]),
    }
    difference = lab.of("all", "value") - lab.of("some", "value")
    for draw in range(5):
        found = drawn(records, draw)
        assert difference(found).values == dict.fromkeys(range(4), 100.0)
        assert found["all"]["seed"].n_unique() == 10


def test_what_has_no_seed_stays_as_it_is() -> None:
    exact = pl.DataFrame({"trial": ["a"], "value": [1.0]})
    mixed = pl.DataFrame({"trial": ["x", "a", "b"], "seed": [None, 1, 2], "value": [0.0, 1.0, 2.0]})
    empty = pl.DataFrame(schema={"trial": pl.String})
    records = {"exact": exact, "mixed": mixed, "empty": empty}
    for draw in range(5):
        found = drawn(records, draw)
        assert found["exact"] is exact
        assert found["empty"] is empty
        assert found["mixed"].filter(pl.col("seed").is_null())["value"].to_list() == [0.0]
        assert sorted(found["mixed"].drop_nulls("seed")["seed"]) == [1, 2]


# ---- what it says


def test_a_world_whose_seeds_are_all_alike_replicates() -> None:
    records = {"runs": frame(range(8), value=[1.0] * 8)}
    found = lab.replication(partial(mean_above, 0.5), records)
    assert found.probability == 1.0
    assert found.interval == pytest.approx((0.9817, 1.0), abs=1e-3)
    assert found.checks == {"mean": 1.0, "always": 1.0}
    assert (found.draws, found.unjudged) == (200, 0)


def test_a_world_at_the_edge_replicates_in_about_half() -> None:
    values = np.random.default_rng(1).normal(0, 1, 24)
    records = {"runs": frame(range(24), value=values)}
    edge = float(values.mean()) - 1e-9
    found = lab.replication(partial(mean_above, edge), records)
    assert 0.4 < found.probability < 0.6
    assert found.weakest == ("mean", found.probability)
    assert found.checks["always"] == 1.0
    low, high = found.interval
    assert low < found.probability < high
    assert "weakest check: mean (" in repr(found)


def test_another_outcome_counts_whichever_it_is() -> None:
    """Draws of a verdict that is inconclusive replicate where they are inconclusive, too."""
    values = np.random.default_rng(1).normal(0, 1, 24)
    records = {"runs": frame(range(24), value=values)}
    edge = float(values.mean())
    above = lab.replication(partial(mean_above, edge - 1e-9), records)
    below = lab.replication(partial(mean_above, edge + 1e-9), records)
    assert above.probability + below.probability == pytest.approx(1.0, abs=0.02)


def without_seed_3(records: dict[str, pl.DataFrame]) -> Verdict:
    if 3.0 not in records["runs"]["origin"].to_list():
        raise ValueError("there must be one")
    return decide([check("there", True)])


def test_what_cannot_be_judged_is_another_outcome_in_which_nothing_passed() -> None:
    records = {"runs": frame(range(8), origin=range(8))}
    found = lab.replication(without_seed_3, records)
    assert found.unjudged > 40  # a seed is missed in (7 / 8)^8 of the draws
    assert found.probability == found.checks["there"] == 1 - found.unjudged / 200
    assert f"{found.unjudged} of which could not be judged" in repr(found)


def test_one_seed_gives_one_answer_in_one_process_or_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_replication, "_WORTH_WORKERS", 0.0)
    values = np.random.default_rng(2).normal(0, 1, 12)
    records = {"runs": frame(range(12), value=values)}
    judge = partial(mean_above, float(values.mean()) + 0.05)
    here = lab.replication(judge, records, draws=40, seed=5, workers=1)
    assert lab.replication(judge, records, draws=40, seed=5, workers=2) == here
    assert lab.replication(judge, records, draws=40, seed=6, workers=1) != here
    fewer = lab.replication(judge, records, draws=39, seed=5, workers=1)
    assert abs(fewer.probability * 39 - here.probability * 40) <= 1 + 1e-9


def ends_the_process(parent: int, records: dict[str, pl.DataFrame]) -> Verdict:
    if os.getpid() != parent:
        os._exit(3)
    return decide([check("there", True)])


def test_a_worker_that_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_replication, "_WORTH_WORKERS", 0.0)
    records = {"runs": frame(range(4), origin=range(4))}
    with pytest.raises(RuntimeError, match=r"judging redrawn seeds failed: worker process died"):
        lab.replication(partial(ends_the_process, os.getpid()), records, draws=2, workers=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"draws": 0}, "draws must be at least 1, got 0"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"seed": -1}, r"seed must be from 0 to 2\^63 - 1, got -1"),
        ({"seed": 2**63}, r"seed must be from 0 to 2\^63 - 1"),
    ],
)
def test_what_is_out_of_range_is_named(arguments: dict[str, int], message: str) -> None:
    records = {"runs": frame(range(4), value=[1.0] * 4)}
    with pytest.raises(ValueError, match=message):
        lab.replication(partial(mean_above, 0.0), records, **arguments)


def test_records_without_seeds_cannot_be_redrawn() -> None:
    records = {"runs": pl.DataFrame({"trial": ["a"], "value": [1.0]})}
    with pytest.raises(ValueError, match="records must have a column seed"):
        lab.replication(partial(mean_above, 0.0), records)
