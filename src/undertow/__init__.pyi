from . import claims as claims
from . import data as data
from . import lab as lab
from . import measure as measure
from . import models as models
from . import predict as predict
from . import train as train
from .measure import Ranks as Ranks
from .measure import ranks as ranks
from .objective import Objective as Objective

__version__: str
