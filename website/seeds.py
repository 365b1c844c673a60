"""Every claim on several base seeds: what came of each, beside the claims' pages.

    python -m website.seeds --seeds 1 2 3 4 5

The runs land in `undertow-runs/seeds`, which git ignores, and what they amount to in
`docs/claims/NAME/seeds.json`, written after every run. Killed, however, it goes on where it was
when called again: what has been run, of the trials of today and by their rules, is not done again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from undertow import claims, lab
from website.claims import DOCS, table_of_seeds

RUNS = Path("undertow-runs") / "seeds"


def run_all(
    names: Sequence[str], seeds: Sequence[int], *, docs: Path = DOCS, runs: Path = RUNS, **how: Any
) -> Iterator[str]:
    """Run each claim on each base seed, claim by claim; yields a line as each has ended.

    Args:
        names: of claims.
        seeds: base seeds.
        docs: where `claims/NAME/seeds.json` is written.
        runs: the folder of the runs' folders.
        how: of `claims.reproduce`: `preset`, `engine`, `workers`, `replicate`, `overrides`.
    """
    preset = how.get("preset", "small")
    for name in names:
        target = docs / "claims" / name / "seeds.json"
        for seed in seeds:
            out = runs / f"{name}-{preset}-seed{seed}"
            trials = _identity(name, preset, seed, how.get("overrides"))
            if _is_done(stored(target), name, preset, seed, trials):
                yield f"{name}, seed {seed}: done before"
                continue
            start = time.monotonic()
            try:
                result = claims.reproduce(name, seed=seed, out=out, **how)
                found = entry(result.as_json()) | {"identity": trials}
            except Exception as error:  # one that cannot be run does not take the others
                found = {
                    "seed": seed,
                    "preset": preset,
                    "error": f"{type(error).__name__}: {error}",
                }
            keep(target, name, found)
            took = time.monotonic() - start
            yield f"{name}, seed {seed}: {found.get('verdict') or found['error']} ({took:.0f} s)"


def entry(verdict: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run, from its `verdict.json`."""
    kept = ("seed", "preset", "verdict", "replication", "trials", "failed", "seconds")
    of_checks = ("name", "value", "interval", "rule", "passed", "control", "replicates")
    checks = [{key: check.get(key) for key in of_checks} for check in verdict["checks"]]
    return {key: verdict.get(key) for key in kept} | {"checks": checks}


def stored(target: Path) -> list[dict[str, Any]]:
    """The runs that a `seeds.json` holds; none where there is none."""
    if not target.exists():
        return []
    found: list[dict[str, Any]] = json.loads(target.read_text(encoding="utf-8"))["runs"]
    return found


def keep(target: Path, name: str, found: dict[str, Any]) -> None:
    """Add a run to a `seeds.json`, in place of one of the same seed."""
    others = [run for run in stored(target) if run["seed"] != found["seed"]]
    runs = sorted([*others, found], key=lambda run: run["seed"])
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"claim": name, "runs": runs}, indent=1, allow_nan=False)
    lab.write_atomically(target, f"{text}\n".encode())


def _identity(name: str, preset: str, seed: int, overrides: Mapping[str, Any] | None) -> str:
    """A digest of the trials that a run has today."""
    claim = claims.get(name)
    knobs = claim.preset(preset).with_values(overrides or {})
    study = lab.Study(name, claim.experiments(knobs, seed), {})
    trials = [f"{kind}/{own}" for kind, ids in study.identities.items() for own in ids]
    return hashlib.sha256(" ".join(trials).encode()).hexdigest()[:16]


def _is_done(
    runs: Sequence[dict[str, Any]], name: str, preset: str, seed: int, trials: str
) -> bool:
    """Whether a run of this seed was judged, of the trials and by the rules as they are today."""
    rules = claims.predictions_table(claims.get(name), preset)
    today = list(zip(rules["prediction"], rules["rule"], strict=True))
    return any(
        run["seed"] == seed
        and run["preset"] == preset
        and run.get("identity") == trials
        and "error" not in run
        and not run["failed"]
        and [(check["name"], check["rule"]) for check in run["checks"]] == today
        for run in runs
    )


def main(words: Sequence[str] | None = None) -> int:
    """Run what the words ask for; returns 1 where a run could not be done."""
    parser = argparse.ArgumentParser(prog="python -m website.seeds", description=__doc__)
    parser.add_argument("--claims", nargs="+", default=claims.names(), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5], metavar="N")
    parser.add_argument("--preset", default="small", choices=("smoke", "small", "paper"))
    parser.add_argument("--workers", type=int, help="worker processes; one a core by default")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the runs' folders")
    given = parser.parse_args(words)
    try:
        for name in given.claims:
            claims.get(name)
        for seed in given.seeds:
            lab.check_seed(seed)
    except ValueError as error:
        parser.error(str(error))
    how = {"preset": given.preset, "workers": given.workers, "progress": sys.stderr.isatty()}
    try:
        for line in run_all(given.claims, given.seeds, runs=given.runs, **how):
            print(f"{time.strftime('%H:%M')} {line}", flush=True)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    print(table_of_seeds(DOCS))
    bad = [
        run
        for name in given.claims
        for run in stored(DOCS / "claims" / name / "seeds.json")
        if run["seed"] in given.seeds and "error" in run
    ]
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
