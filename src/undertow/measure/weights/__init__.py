"""Read off weights alone: ranks, spectra, norms, and what is left of the initial ones."""

from undertow.measure.weights._angles import AngularUpdate as AngularUpdate
from undertow.measure.weights._angles import angular_update as angular_update
from undertow.measure.weights._convolution import operator_spectrum as operator_spectrum
from undertow.measure.weights._displacement import Displacement as Displacement
from undertow.measure.weights._displacement import displacement as displacement
from undertow.measure.weights._fluctuation import update_fluctuation as update_fluctuation
from undertow.measure.weights._norms import LayerCall as LayerCall
from undertow.measure.weights._norms import LayerNorms as LayerNorms
from undertow.measure.weights._norms import layer_calls as layer_calls
from undertow.measure.weights._norms import layer_norms as layer_norms
from undertow.measure.weights._norms import toeplitz_norm as toeplitz_norm
from undertow.measure.weights._null_space import null_projector as null_projector
from undertow.measure.weights._ranks import Ranks as Ranks
from undertow.measure.weights._ranks import ranks as ranks
from undertow.measure.weights._spectrum import SpectrumRanks as SpectrumRanks
from undertow.measure.weights._spectrum import matrix_ranks as matrix_ranks
from undertow.measure.weights._spectrum import matrix_spectrum as matrix_spectrum
from undertow.measure.weights._spectrum import spectrum_ranks as spectrum_ranks
from undertow.measure.weights._split import InitSplit as InitSplit
from undertow.measure.weights._split import MatrixSplit as MatrixSplit
from undertow.measure.weights._split import SplitRanks as SplitRanks
from undertow.measure.weights._split import split_init as split_init
from undertow.measure.weights._split import split_matrices as split_matrices
from undertow.measure.weights._weights import Include as Include
from undertow.measure.weights._weights import WeightMatrix as WeightMatrix
from undertow.measure.weights._weights import weight_matrices as weight_matrices

__all__ = [
    "AngularUpdate",
    "Displacement",
    "Include",
    "InitSplit",
    "LayerCall",
    "LayerNorms",
    "MatrixSplit",
    "Ranks",
    "SpectrumRanks",
    "SplitRanks",
    "WeightMatrix",
    "angular_update",
    "displacement",
    "layer_calls",
    "layer_norms",
    "matrix_ranks",
    "matrix_spectrum",
    "null_projector",
    "operator_spectrum",
    "ranks",
    "spectrum_ranks",
    "split_init",
    "split_matrices",
    "toeplitz_norm",
    "update_fluctuation",
    "weight_matrices",
]
