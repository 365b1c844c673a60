"""The declared ranges of the dependencies, tried at both ends on each Python: `make bounds`.

Builds an environment for each Python of `PYTHONS` that is found, once with exactly the lower bounds
of pyproject.toml and once with the newest releases, and runs the tests in it. Takes an hour and
several gigabytes a Python; prints one line for each.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
# What the tests need beside the library; not what is tried.
_TOOLS = ("pytest", "pytest-xdist", "hypothesis", "mlxtend")


def lower_bounds(pyproject: Path) -> list[str]:
    """`name==bound` for each dependency that the library declares.

    Raises:
        ValueError: if one has no lower bound.
    """
    declared = tomllib.loads(pyproject.read_text())["project"]["dependencies"]
    pinned = []
    for requirement in declared:
        name, found, bounds = requirement.partition(">=")
        if not found:
            raise ValueError(f"{requirement} has no lower bound: write name>=version")
        pinned.append(f"{name.strip()}=={bounds.split(',')[0].strip()}")
    return pinned


def newest(pyproject: Path) -> list[str]:
    """The dependencies as they are declared, of which pip takes the newest."""
    return list(tomllib.loads(pyproject.read_text())["project"]["dependencies"])


def interpreter(version: str) -> str | None:
    """A Python of that version: the one running, on the path, or among pyenv's."""
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return sys.executable
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    return str(pyenv[-1]) if pyenv else shutil.which(f"python{version}")


def try_in(python: str, requirements: list[str], tests: list[str], folder: Path) -> str:
    """Build an environment in `folder` and run the tests there; the last line of what was said."""
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    own = str(folder / "bin" / "python")
    quiet = [own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    built = subprocess.run([*quiet, *requirements, *_TOOLS], capture_output=True, text=True)
    if built.returncode == 0:
        built = subprocess.run(
            [*quiet, "--no-deps", "--editable", str(ROOT)], capture_output=True, text=True
        )
    if built.returncode:
        return f"could not be built: {(built.stderr.strip().splitlines() or ['no reason'])[-1]}"
    run = [own, "-m", "pytest", "--numprocesses", "2", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["no output"]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return "\n    ".join([lines[-1], *failed[:20]])


def main() -> int:
    """Try what the arguments say; 1 if a Python was missing or a test failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", nargs="*", default=PYTHONS)
    parser.add_argument("--ends", nargs="*", default=("lower", "newest"))
    parser.add_argument("tests", nargs="*", help="arguments of pytest; all tests by default")
    arguments = parser.parse_args()
    ends = {"lower": lower_bounds, "newest": newest}
    missed = False
    for version in arguments.python:
        python = interpreter(version)
        for end in arguments.ends:
            said = "not found: put it on the path"
            if python is not None:
                with tempfile.TemporaryDirectory() as folder:
                    said = try_in(
                        python, ends[end](ROOT / "pyproject.toml"), arguments.tests, Path(folder)
                    )
            missed = missed or "passed" not in said or "failed" in said or "error" in said
            print(f"Python {version}, {end}: {said}", flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
