from . import apply as apply
from . import claims as claims
from . import data as data
from . import lab as lab
from . import measure as measure
from . import models as models
from . import predict as predict
from . import train as train
from .apply import inspect as inspect
from .measure import activation_region as activation_region
from .measure import depth_convergence as depth_convergence
from .measure import functional_rank as functional_rank
from .measure import gradient_noise as gradient_noise
from .measure import hessian_trace as hessian_trace
from .measure import homogeneity as homogeneity
from .measure import local_drift as local_drift
from .measure import margins as margins
from .measure import neural_collapse as neural_collapse
from .measure import noise_floor as noise_floor
from .measure import ranks as ranks
from .measure import sharpness as sharpness
from .measure import spectral_density as spectral_density
from .measure import spherical_sharpness as spherical_sharpness
from .measure import split_init as split_init
from .objective import Objective as Objective

__version__: str
