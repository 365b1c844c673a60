"""The slow suite: what `make test` draws for seconds, drawn by the thousands, with kills and flips.

`make slow` runs it and prints a tally of each test; `make slow SCALE=0.01` takes a hundredth of the
draws. `make test` does not look into this folder. A test asks for two fixtures: `scaled`, a
function from the number of draws of the whole suite to that of this run, and `tally`, a counter of
what became of them, such as `tally["flip noticed"] += 1`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

_TALLY = "tally"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--scale", type=float, default=1.0, help="take this share of the slow suite's draws"
    )


@pytest.fixture
def scaled(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """From the number of draws in the whole suite to that in this run, one at least."""
    share = request.config.getoption("--scale")
    return lambda draws: max(1, round(share * draws))


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Counter[str]]:
    """A counter that is printed at the end, whether the test passed or not."""
    counts: Counter[str] = Counter()
    yield counts
    request.node.user_properties.append((_TALLY, dict(counts)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [
        report
        for group in terminalreporter.stats.values()
        for report in group
        if isinstance(report, pytest.TestReport) and report.when == "teardown"
    ]
    # A passed teardown is in the group of the empty name.
    tallies = {report.nodeid: dict(report.user_properties).get(_TALLY) for report in reports}
    if not any(tallies.values()):
        return
    terminalreporter.section("tally")
    for name, counts in sorted(tallies.items()):
        if isinstance(counts, dict):
            words = ", ".join(f"{count:,} {what}" for what, count in counts.items())
            terminalreporter.write_line(f"{name.removeprefix('tests/slow/')}: {words}")
