"""Update rules: what an optimizer does in one step, as pure functions.

    new_params, new_state = rule.update(params, grads, state, hyper)

A rule knows nothing of models or data. Its tensors may carry a leading ensemble axis `E`; then any
field of `hyper` may be a tensor of shape `[E]`, one value a member. The optimizer front ends in
`undertow.train.optim` and the ensemble trainer call these same functions.

Wrappers make a rule of a rule: `svag` amplifies the noise at a finer step, `label_noise` perturbs
the targets, `unit_norm` keeps weights on the sphere. They compose in any order, each at most once,
and take the hyperparameters of the rule inside.
"""

from __future__ import annotations

from undertow.train.rules._adaptive import adam as adam
from undertow.train.rules._adaptive import adamw as adamw
from undertow.train.rules._adaptive import adaptive as adaptive
from undertow.train.rules._adaptive import rmsprop as rmsprop
from undertow.train.rules._momentum import ema_momentum as ema_momentum
from undertow.train.rules._momentum import momentum as momentum
from undertow.train.rules._momentum import sgd as sgd
from undertow.train.rules._rule import COUNTERS as COUNTERS
from undertow.train.rules._rule import HYPER as HYPER
from undertow.train.rules._rule import Hyper as Hyper
from undertow.train.rules._rule import Perturb as Perturb
from undertow.train.rules._rule import Rule as Rule
from undertow.train.rules._rule import Scaling as Scaling
from undertow.train.rules._rule import State as State
from undertow.train.rules._rule import add_scaled as add_scaled
from undertow.train.rules._rule import along_members as along_members
from undertow.train.rules._rule import with_values as with_values
from undertow.train.rules._wrappers import effective_lr as effective_lr
from undertow.train.rules._wrappers import label_noise as label_noise
from undertow.train.rules._wrappers import scaled_update as scaled_update
from undertow.train.rules._wrappers import svag as svag
from undertow.train.rules._wrappers import unit_norm as unit_norm

__all__ = [
    "COUNTERS",
    "HYPER",
    "Hyper",
    "Perturb",
    "Rule",
    "Scaling",
    "State",
    "adam",
    "adamw",
    "adaptive",
    "add_scaled",
    "along_members",
    "effective_lr",
    "ema_momentum",
    "label_noise",
    "momentum",
    "rmsprop",
    "scaled_update",
    "sgd",
    "svag",
    "unit_norm",
    "with_values",
]
