"""The spectrum of a convolution against the dense matrix of the same map."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from undertow.measure import operator_spectrum, ranks


def dense(kernel: Tensor, size: tuple[int, ...], groups: int, dilation: tuple[int, ...]) -> Tensor:
    """The circular convolution as a matrix, one column per input coordinate."""
    channels = kernel.shape[1] * groups
    inputs = torch.eye(channels * math.prod(size), dtype=kernel.dtype).reshape(-1, channels, *size)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel.shape[2:], strict=True)]
    for axis, extra in enumerate(reach):
        index = torch.arange(size[axis] + extra) % size[axis]
        inputs = inputs.index_select(axis + 2, index)
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[len(size) - 1]
    return convolve(inputs, kernel, groups=groups, dilation=dilation).flatten(1).mT


@pytest.mark.parametrize(
    ("shape", "size", "groups", "dilation"),
    [
        ((3, 2, 3), (8,), 1, (1,)),
        ((2, 3, 3), (7,), 1, (2,)),
        ((4, 3, 3, 3), (5, 6), 1, (1, 1)),
        ((4, 2, 3, 2), (4, 5), 2, (1, 2)),
        ((3, 1, 3, 3), (4, 4), 3, (1, 1)),
        ((2, 2, 5, 5), (3, 4), 1, (1, 1)),
        ((2, 2, 2, 2, 2), (2, 3, 4), 1, (1, 1, 1)),
    ],
)
@pytest.mark.parametrize("exact", [False, True])
def test_operator_spectrum_is_that_of_the_dense_matrix(
    shape: tuple[int, ...],
    size: tuple[int, ...],
    groups: int,
    dilation: tuple[int, ...],
    exact: bool,
) -> None:
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(shape, generator=generator, dtype=torch.float64)
    expected = torch.linalg.svdvals(dense(kernel, size, groups, dilation))
    found = operator_spectrum(kernel, size, groups=groups, dilation=dilation, exact=exact)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


def test_operator_norm_lies_between_kernel_bounds() -> None:
    """||K||_F^2 prod(size) = ||operator||_F^2, and s_1 <= sqrt(taps) s_1 of the flat kernel."""
    generator = torch.Generator().manual_seed(1)
    kernels = torch.randn(5, 6, 4, 3, 3, generator=generator)
    found = operator_spectrum(kernels, (8, 8))
    flat = torch.linalg.svdvals(kernels.flatten(2).double())[:, 0]
    torch.testing.assert_close(
        found.square().sum(-1), 64 * kernels.double().square().sum((1, 2, 3, 4))
    )
    assert (found[:, 0] <= 3 * flat + 1e-9).all()


def test_ranks_reports_operators_of_matching_dimension_only() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Conv1d(2, 2, 3), nn.Linear(3, 2))
    found = ranks(net, operator_size=(6, 6))
    column = found.table["operator_threshold_rank"].to_list()
    assert column == [6 * 6 * 3, None, None]
    spectrum = found.operator_spectra["0.weight"]
    expected = torch.linalg.svdvals(dense(net[0].weight.detach().double(), (6, 6), 1, (1, 1)))
    torch.testing.assert_close(spectrum, expected, rtol=1e-6, atol=1e-9)
    assert found.table["operator_spectral_norm"][0] == pytest.approx(float(expected[0]))


def test_depthwise_operator_of_an_impulse_is_the_identity() -> None:
    kernel = torch.zeros(4, 1, 3, 3)
    kernel[:, :, 1, 1] = 1
    found = operator_spectrum(kernel, (5, 5), groups=4)
    torch.testing.assert_close(found, torch.ones(100, dtype=torch.float64))


def test_shapes_that_do_not_fit_are_refused() -> None:
    kernel = torch.ones(2, 2, 3, 3)
    with pytest.raises(ValueError, match="size"):
        operator_spectrum(kernel, (0, 3))
    with pytest.raises(ValueError, match="kernels"):
        operator_spectrum(kernel, (3, 3, 3))
    with pytest.raises(ValueError, match="groups"):
        operator_spectrum(kernel, (3, 3), groups=3)
    with pytest.raises(ValueError, match="dilation"):
        operator_spectrum(kernel, (3, 3), dilation=(1,))
