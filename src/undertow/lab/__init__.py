"""Run many trials well: identity, store, engine, statistics, predictions, charts, documents.

It knows no claim and no network. Names resolve on first use: what needs little loads little.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
