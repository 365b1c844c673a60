"""What is the optimizer doing? Measurements that read weights and data and never train."""

from undertow.measure._convolution import operator_spectrum as operator_spectrum
from undertow.measure._ranks import Ranks as Ranks
from undertow.measure._ranks import ranks as ranks
from undertow.measure._spectrum import SpectrumRanks as SpectrumRanks
from undertow.measure._spectrum import matrix_ranks as matrix_ranks
from undertow.measure._spectrum import matrix_spectrum as matrix_spectrum
from undertow.measure._spectrum import spectrum_ranks as spectrum_ranks

__all__ = [
    "Ranks",
    "SpectrumRanks",
    "matrix_ranks",
    "matrix_spectrum",
    "operator_spectrum",
    "ranks",
    "spectrum_ranks",
]
