from ._checkpoint import read_checkpoint as read_checkpoint
from ._checkpoint import taps_of as taps_of
from ._inspect import inspect as inspect
from ._inspection import Inspection as Inspection
from ._inspection import Residue as Residue
from ._sources import opened as opened
