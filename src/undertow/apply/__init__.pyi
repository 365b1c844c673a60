from ._checkpoint import read_checkpoint as read_checkpoint
from ._inspect import inspect as inspect
from ._inspection import Inspection as Inspection
from ._inspection import Residue as Residue
