"""Run every benchmark, one after another: `python -m benchmarks`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

for module in sorted(Path(__file__).parent.glob("[a-z]*.py")):
    print(f"\n== {module.stem}", flush=True)
    sys.argv = [str(module)]
    runpy.run_module(f"benchmarks.{module.stem}", run_name="__main__")
