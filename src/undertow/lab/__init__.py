"""Run many trials well: identity, store, engine, statistics, documents. Knows no claim, no network.

Names resolve on first use, so that what prints a few numbers loads no tables and no statistics.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
