"""The example of Local SGD as its reader starts it: real processes, stopped, and gone on with."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "local_sgd.py"


def _started(out: Path) -> list[str]:
    """What it prints; two processes, one thread each."""
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    words = ["--epochs", "2", "--batch-size", "64", "--save-every", "6", "--alpha", "0.2"]
    done = subprocess.run(
        [*launch, str(EXAMPLE), *words, "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_it_trains_and_goes_on_from_the_middle_of_a_round_to_the_same_end(tmp_path: Path) -> None:
    whole = _started(tmp_path / "run")
    assert "test images right after 22 steps" in whole[0]
    for path in (tmp_path / "run").glob("step-*"):
        if not path.name.startswith("step-6-"):
            path.unlink()
    shutil.copy(tmp_path / "run" / "step-6-rank-0.pt", tmp_path / "run" / "step-12-rank-0.pt")
    again = _started(tmp_path / "run")  # rank 1 has no step 12
    assert again == ["going on after step 6", *whole]
