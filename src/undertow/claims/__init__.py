"""One paper, one file: what each claims, put to the test with a verdict rule fixed beforehand."""

from undertow.claims._claim import Check as Check
from undertow.claims._claim import Claim as Claim
from undertow.claims._claim import Figure as Figure
from undertow.claims._claim import Verdict as Verdict
from undertow.claims._claim import check_above as check_above
from undertow.claims._claim import check_below as check_below
from undertow.claims._claim import check_within as check_within
from undertow.claims._claim import decide as decide
from undertow.claims._page import checks_table as checks_table
from undertow.claims._registry import ALL as ALL
from undertow.claims._registry import get as get
from undertow.claims._reproduce import Reproduction as Reproduction
from undertow.claims._reproduce import last_verdicts as last_verdicts
from undertow.claims._reproduce import report as report
from undertow.claims._reproduce import reproduce as reproduce
from undertow.claims._reproduce import resume as resume

__all__ = [
    "ALL",
    "Check",
    "Claim",
    "Figure",
    "Reproduction",
    "Verdict",
    "check_above",
    "check_below",
    "check_within",
    "checks_table",
    "decide",
    "get",
    "last_verdicts",
    "report",
    "reproduce",
    "resume",
]
