"""Run many trials well: identity, store, engine, statistics, report. Knows no claim, no network."""

from undertow.lab._association import slope as slope
from undertow.lab._association import spearman as spearman
from undertow.lab._charts import save_chart as save_chart
from undertow.lab._effect import Effect as Effect
from undertow.lab._files import StoreError as StoreError
from undertow.lab._files import write_atomically as write_atomically
from undertow.lab._report import Badge as Badge
from undertow.lab._report import Page as Page
from undertow.lab._report import Section as Section
from undertow.lab._report import write_report as write_report
from undertow.lab._statistics import Equivalence as Equivalence
from undertow.lab._statistics import bootstrap_interval as bootstrap_interval
from undertow.lab._statistics import equivalence_test as equivalence_test
from undertow.lab._statistics import paired_ratio as paired_ratio
from undertow.lab._statistics import paired_sign_test as paired_sign_test
from undertow.lab._statistics import proportion as proportion
from undertow.lab._store import Failure as Failure
from undertow.lab._store import Store as Store
from undertow.lab._study import Study as Study
from undertow.lab._study import run as run
from undertow.lab._tables import text_table as text_table
from undertow.lab._trial import trial_hash as trial_hash

__all__ = [
    "Badge",
    "Effect",
    "Equivalence",
    "Failure",
    "Page",
    "Section",
    "Store",
    "StoreError",
    "Study",
    "bootstrap_interval",
    "equivalence_test",
    "paired_ratio",
    "paired_sign_test",
    "proportion",
    "run",
    "save_chart",
    "slope",
    "spearman",
    "text_table",
    "trial_hash",
    "write_atomically",
    "write_report",
]
