"""Gradient noise covariance as an operator: products, top eigenpairs, alignment with curvature.

Sigma = sum_i (g_i - G)(g_i - G)^T / (n - 1) takes directions to their products with the per-sample
gradients and back, in two backward passes and without n x p numbers; the graphs are those that
Gauss-Newton products keep.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undertow.measure._arguments import check_rtol, or_new
from undertow.measure.noise._gradient_noise import noise_and_sweep
from undertow.measure.noise._layer_gradients import wide
from undertow.objective import Objective, outside_inference_mode, whole_number

Product = Callable[[Tensor], Tensor]

# More directions than wanted eigenpairs in a block: clusters at the edge converge sooner.
_EXTRA_DIRECTIONS = 2
_ALIGNMENT_BLOCK = 16


@dataclass(frozen=True, eq=False)
class NoiseEigenpairs:
    """The largest eigenvalues of a noise covariance.

    Attributes:
        eigenvalues: in descending order.
        residuals: ||Sigma v - lambda v|| for each; an eigenvalue lies within it of lambda.
        vectors: unit eigenvectors, a row each.
        products: with Sigma that it took.
        converged: whether every residual is within `rtol`.
    """

    eigenvalues: Float64[Tensor, " pairs"]
    residuals: Float64[Tensor, " pairs"]
    vectors: Float[Tensor, "pairs params"]
    products: int
    converged: bool

    def __repr__(self) -> str:
        pairs = zip(self.eigenvalues.tolist(), self.residuals.tolist(), strict=True)
        values = ", ".join(f"{value:.4g} ± {residual:.1g}" for value, residual in pairs)
        state = "converged" if self.converged else "not converged"
        return f"Largest noise eigenvalues {values}; {state} after {self.products} products."


@dataclass(frozen=True)
class NoiseAlignment:
    """How the gradient noise lies in the curvature H.

    Attributes:
        cosine: tr(Sigma H) / (||Sigma||_F ||H||_F): 1 where the noise is shaped as the curvature.
        cosine_stderr: its standard error.
        trace_product: tr(Sigma H), the rate at which noise raises the loss (times lr^2 / 2 per
            step of batch size 1).
        trace_product_stderr: its standard error.
        noise_curvature: tr(Sigma H) / tr(Sigma), the mean curvature along the noise.
        mean_curvature: tr(H) / p, the same along a direction drawn at random.
        products: with H that it took.
        converged: whether the cosine's standard error is within `atol`.
    """

    cosine: float
    cosine_stderr: float
    trace_product: float
    trace_product_stderr: float
    noise_curvature: float
    mean_curvature: float
    products: int
    converged: bool

    def __repr__(self) -> str:
        state = "converged" if self.converged else "not converged"
        return (
            f"Noise and curvature have cosine {self.cosine:.3g} ± {self.cosine_stderr:.1g}: the "
            f"curvature is {self.noise_curvature:.4g} along the noise and "
            f"{self.mean_curvature:.4g} along a random direction; {state} after {self.products} "
            "products."
        )


@dataclass(frozen=True, eq=False)
class NoiseCovariance:
    """The covariance Sigma of per-sample gradients, as a map on blocks of directions.

    At the parameters that it was made at: after a change of these, make a new one.

    Attributes:
        trace: of Sigma.
        gradient: the mean gradient G.
        num_samples: n; the rank of Sigma is at most n - 1.
    """

    trace: float
    gradient: Float[Tensor, " params"]
    num_samples: int
    _objective: Objective
    _weights: Float[Tensor, " samples"]
    _scale: float

    def __repr__(self) -> str:
        return (
            f"Gradient noise covariance of trace {self.trace:.4g} in {len(self.gradient):,} "
            f"parameters, from {self.num_samples:,} samples."
        )

    @outside_inference_mode
    def product(
        self, block: Float[Tensor, "directions params"]
    ) -> Float[Tensor, "directions params"]:
        """Sigma times each direction, in one pass over the data; in float32 for half precision.

        Raises:
            TypeError: if the block is no tensor.
            ValueError: if it is not `[directions, params]`, or not finite.
        """
        if not isinstance(block, Tensor):
            raise TypeError(f"block must be a tensor, got {type(block).__name__}")
        if block.ndim != 2 or block.shape[1] != len(self.gradient):
            raise ValueError(
                f"block must be [directions, {len(self.gradient)}], got {tuple(block.shape)}"
            )
        block = block.detach().to(self.gradient)
        if not torch.isfinite(block).all():
            raise ValueError("block holds NaN or infinities")
        if len(block) == 0:
            return block
        mean = block @ self.gradient
        found = self._objective.products.centred(block, mean / self._scale, self._weights)
        total, sums = found[:, :-1] * self._scale**2, found[:, -1] * self._scale
        return (total - torch.outer(sums, self.gradient)) / (self.num_samples - 1)

    @outside_inference_mode
    def draws(self, count: int, *, generator: torch.Generator) -> Float[Tensor, "draws params"]:
        """Independent gaussian vectors with covariance Sigma, in one pass over the data."""
        noise = self._objective.sample_noise(count, batch_size=1, generator=generator)
        # That noise is of batches drawn from these very samples, hence over n.
        return noise.to(self.gradient) * math.sqrt(self.num_samples / (self.num_samples - 1))

    @outside_inference_mode
    def eigenpairs(
        self, k: int = 1, *, rtol: float = 1e-3, max_products: int = 200
    ) -> NoiseEigenpairs:
        """The k largest eigenvalues and their vectors, by a block Krylov method.

        It keeps the basis and its images, 2 x products x p numbers, so that the residuals are
        exact, and stops when each is at most rtol times its eigenvalue. Where Sigma has a smaller
        rank than k, as with samples that repeat, eigenvalues of zero complete them.

        Raises:
            TypeError: if k is no whole number.
            ValueError: if k is not between 1 and min(n - 1, p), rtol not between 0 and 1, or
                max_products < k.
        """
        limit = min(self.num_samples - 1, len(self.gradient))
        if whole_number("k", k, least=1) > limit:
            raise ValueError(f"k must be at most min(n - 1, p) = {limit}, got {k}")
        check_rtol(rtol)
        if not max_products >= k:
            raise ValueError(f"max_products must be at least k = {k}, got {max_products!r}")
        block = min(k + _EXTRA_DIRECTIONS, limit, max_products)
        with self._objective.fixed():
            return self._block_krylov(k, block, rtol, max_products)

    def _block_krylov(self, k: int, block: int, rtol: float, max_products: int) -> NoiseEigenpairs:
        generator = torch.Generator().manual_seed(0)
        basis = _orthonormal(self.draws(block, generator=generator), None)
        images = self.product(basis)
        while True:
            small = (basis @ images.mT).double()
            values, mix = torch.linalg.eigh((small + small.mT) / 2)
            values, mix = values.flip(0)[:k], mix.flip(1)[:, :k].to(basis)
            vectors = mix.mT @ basis
            residuals = (mix.mT @ images - values[:, None].to(basis) * vectors).double().norm(dim=1)
            rounding = 10 * torch.finfo(basis.dtype).eps * self.trace
            converged = len(values) == k and bool((residuals <= rtol * values + rounding).all())
            fresh = _orthonormal(images[-block:], basis)
            if len(fresh) == 0 and len(basis) < k:  # all that there is; the rest has no noise
                drawn = torch.randn(k, len(self.gradient), generator=generator).to(basis)
                fresh = _orthonormal(drawn, basis)[: k - len(basis)]
            if converged or len(fresh) == 0 or len(basis) + len(fresh) > max_products:
                break
            basis = torch.cat([basis, fresh])
            images = torch.cat([images, self.product(fresh)])
        return NoiseEigenpairs(values, residuals, vectors, len(basis), converged)

    @outside_inference_mode
    def alignment(
        self,
        curvature: Product,
        *,
        atol: float = 0.02,
        max_products: int = 512,
        generator: torch.Generator | None = None,
    ) -> NoiseAlignment:
        """How the noise lies in a curvature, from draws of the noise and of the unit normal.

        With v ~ N(0, Sigma) and w ~ N(0, I): tr(Sigma H) = E v^T H v, ||Sigma||_F^2 = E (v^T v')^2,
        ||H||_F^2 = E |H w|^2 and tr(H) = E w^T H w. Standard errors are the jackknife's.

        Args:
            curvature: H times a block `[directions, params]`, such as `objective.hvp`.
            atol: standard error of the cosine to stop at.
            max_products: with H at most.
            generator: of the draws; None starts one from 0.
        """
        generator = or_new(generator)
        noise: list[Tensor] = []
        numbers: list[Tensor] = []
        while True:
            drawn = self.draws(_ALIGNMENT_BLOCK, generator=generator)
            unit = torch.randn(drawn.shape, generator=generator).to(drawn)
            bent, image = curvature(drawn), curvature(unit)
            noise.append(drawn)
            rows = ((drawn * bent), image.square(), (unit * image))
            numbers.append(torch.stack([row.double().sum(1) for row in rows]))
            found = _aligned(torch.cat(noise), torch.cat(numbers, dim=1), self.trace)
            products = 2 * _ALIGNMENT_BLOCK * len(noise)
            converged = found[1] <= atol
            if converged or products + 2 * _ALIGNMENT_BLOCK > max_products:
                return NoiseAlignment(*found, products, converged)


@outside_inference_mode
def noise_covariance(objective: Objective) -> NoiseCovariance:
    """The covariance of an objective's per-sample gradients (over n - 1), as an operator.

    The gradient of a batch of B samples has covariance Sigma / B; drawn with replacement from
    these very samples, that times 1 - 1 / n, which is what `Objective.sample_noise` draws from.
    `gradient_noise` says what Sigma is where labels are weighted or ignored.

    Raises:
        ValueError: if there is but one sample, or as `gradient_noise` does.
        TypeError: if the model's output is no tensor.
    """
    noise, sweep = noise_and_sweep(objective, confidence=0.95)
    gradient = wide(sweep.gradient)
    weights = sweep.weights.to(gradient)
    return NoiseCovariance(
        noise.trace, gradient, noise.num_samples, objective, weights, sweep.scale
    )


def _orthonormal(block: Tensor, basis: Tensor | None) -> Float[Tensor, "kept params"]:
    """What a block adds to an orthonormal basis, as orthonormal rows."""
    sizes = block.norm(dim=1, keepdim=True)
    block = block[sizes[:, 0] > 0] / sizes[sizes[:, 0] > 0]
    for _ in range(2):  # the second time for what rounding left
        if basis is not None:
            block = block - (block @ basis.mT) @ basis
        _, scales, rows = torch.linalg.svd(block, full_matrices=False)
        block = rows[scales > 1e3 * torch.finfo(block.dtype).eps]
    return block


def _aligned(
    noise: Tensor, numbers: Float64[Tensor, "quantities draws"], trace: float
) -> tuple[float, float, float, float, float, float]:
    """Cosine, trace product, each with its standard error, and the two mean curvatures."""
    bent, squares, along = numbers
    count, params = noise.shape
    gram = (noise @ noise.mT).double().square()
    gram.fill_diagonal_(0)

    def mean_without(values: Tensor) -> Tensor:
        return (values.sum() - values) / (count - 1)

    pairs, own = gram.sum(), gram.sum(0)
    whole = bent.mean() / (pairs / (count * (count - 1)) * squares.mean()).sqrt()
    sizes = (pairs - 2 * own) / ((count - 1) * (count - 2))
    each = mean_without(bent) / (sizes * mean_without(squares)).sqrt()
    spread = ((count - 1) / count * (each - each.mean()).square().sum()).sqrt()
    if trace == 0 or squares.sum() == 0:  # no noise or no curvature: no angle between them
        whole, spread = torch.zeros(2, dtype=torch.float64)
    product = float(bent.mean())
    return (
        float(whole),
        float(spread),
        product,
        float(bent.std() / math.sqrt(count)),
        product / trace if trace > 0 else math.nan,
        float(along.mean()) / params,
    )
