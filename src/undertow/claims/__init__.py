"""What papers claim, put to the test: experiments, predictions written before the run, a verdict.

Names resolve on first use: a claim's knobs can be shown before anything heavy is loaded.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
