"""Which matrices `ranks` finds, what it says of them, and that it changes nothing."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from undertow.measure import Ranks, ranks
from undertow.measure.weights import _ranks


def values(matrix: Tensor) -> Tensor:
    return torch.linalg.svdvals(matrix.detach().double())


def check(found: Ranks, expected: dict[str, Tensor]) -> None:
    assert found.table["name"].to_list() == list(expected)
    assert list(found.spectra) == list(expected)
    for row in found.table.iter_rows(named=True):
        matrix = expected[row["name"]]
        reference = values(matrix)
        assert (row["rows"], row["cols"]) == tuple(matrix.shape)
        torch.testing.assert_close(found.spectra[row["name"]], reference, rtol=1e-6, atol=1e-8)
        assert row["threshold_rank"] == int(
            (reference > found.threshold * reference.square().sum().sqrt()).sum()
        )
        assert row["spectral_norm"] == pytest.approx(float(reference[0]))
        assert row["frobenius_norm"] == pytest.approx(float(matrix.detach().double().norm()))
        assert row["method"] in ("gram", "svd")


def test_linear_convolution_and_embedding_layers_as_matrices() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(7, 5),
        nn.Conv1d(2, 3, 4),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.Conv3d(2, 3, 2),
        nn.Embedding(9, 4),
        nn.BatchNorm2d(3),
        nn.Linear(7, 5, bias=False),
    )
    expected = {f"{i}.weight": net[i].weight.flatten(1) for i in (0, 1, 2, 3, 4, 6)}
    check(ranks(net, 0.2), expected)
    check(ranks(net.state_dict(), 0.2), expected)
    arrays = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    check(ranks(arrays, 0.2), expected)


def test_transposed_convolution_has_the_spectrum_of_the_convolution_it_transposes() -> None:
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(6, 4, 3, groups=2)
    kernel = torch.stack([layer.weight[:3].transpose(0, 1), layer.weight[3:].transpose(0, 1)])
    check(ranks(layer), {"weight": kernel.reshape(4, 27)})


@pytest.mark.parametrize("packed", [True, False])
def test_attention_projections_are_three_matrices(packed: bool) -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, kdim=None if packed else 6, vdim=None if packed else 4)
    if packed:
        query, key, value = layer.in_proj_weight.chunk(3)
    else:
        query, key, value = layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight
    expected = {
        "q_proj_weight": query,
        "k_proj_weight": key,
        "v_proj_weight": value,
        "out_proj.weight": layer.out_proj.weight,
    }
    check(ranks(layer), expected)
    check(ranks(layer.state_dict()), expected)


def test_parameters_of_other_modules_count_too() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(3, 4))
            self.scale = nn.Parameter(torch.ones(4))
            self.core = nn.GRU(3, 2)

    head = Head()
    expected = {
        "table": head.table,
        "core.weight_ih_l0": head.core.weight_ih_l0,
        "core.weight_hh_l0": head.core.weight_hh_l0,
    }
    check(ranks(head), expected)


def test_parametrised_weight_is_the_computed_one_and_nothing_moves() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(6, 5)),
        parametrizations.orthogonal(nn.Linear(4, 4)),
        parametrizations.weight_norm(nn.Linear(3, 4)),
    )
    net.train()
    before = copy.deepcopy(net.state_dict())
    random_state = torch.get_rng_state()
    found = ranks(net)
    after = net.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(module.training for module in net.modules())
    assert found.table["stable_rank"][1] == pytest.approx(4, rel=1e-5)
    net.eval()
    check(found, {f"{i}.weight": net[i].weight for i in range(3)})


def test_mode_is_restored_when_a_parametrisation_raises() -> None:
    class Broken(nn.Module):
        broken = False

        def forward(self, weight: Tensor) -> Tensor:
            if self.broken:
                raise RuntimeError("broken")
            return weight

    layer = nn.Linear(3, 3)
    part = Broken()
    parametrize.register_parametrization(layer, "weight", part)
    part.broken = True
    with pytest.raises(RuntimeError, match="broken"):
        ranks(layer)
    assert all(module.training for module in layer.modules())


def test_shared_parameter_is_reported_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(6, 3)
            self.head = nn.Linear(3, 6, bias=False)
            self.head.weight = self.embedding.weight

    for source in (Tied(), Tied().state_dict()):
        found = ranks(source)
        assert found.table["name"].to_list() == ["embedding.weight"]
        assert "head.weight is the same tensor as embedding.weight" in found.notes[0]
        assert "head.weight" in repr(found)


def test_transposed_view_of_one_tensor_is_another_matrix() -> None:
    square = torch.arange(9.0).reshape(3, 3)
    assert len(ranks({"a": square, "b": square.mT}).table) == 2


def test_include_selects_by_name_or_function() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    assert ranks(net, include=["1.weight"]).table["name"].to_list() == ["1.weight"]
    assert ranks(net, include=lambda name: name < "1").table["name"].to_list() == ["0.weight"]
    with pytest.raises(ValueError, match=r"'1\.wieght'.*'1\.weight'"):
        ranks(net, include=["1.wieght"])
    with pytest.raises(TypeError, match="list of names"):
        ranks(net, include="1.weight")


def test_energy_columns_are_named_by_percent() -> None:
    found = ranks({"w": torch.eye(4)}, energies=(0.5, 0.999))
    assert found.table["energy_rank_50"][0] == 2
    assert found.table["energy_rank_99.9"][0] == 4
    default = ranks({"w": torch.eye(4)}).table
    assert default.columns == [
        "name",
        "rows",
        "cols",
        "threshold_rank",
        "stable_rank",
        "effective_rank",
        "spectral_norm",
        "frobenius_norm",
        "energy_rank_90",
        "energy_rank_99",
        "method",
    ]


def test_method_says_which_matrices_needed_the_svd() -> None:
    generator = torch.Generator().manual_seed(0)
    full = torch.randn(8, 6, generator=generator)
    deficient = torch.randn(8, 2, generator=generator) @ torch.randn(2, 6, generator=generator)
    state = {"full": full, "deficient": deficient, "zero": torch.zeros(8, 6)}
    found = ranks(state)
    assert found.table["method"].to_list() == ["gram", "svd", "gram"]
    assert found.table["threshold_rank"].to_list() == [6, 2, 0]
    assert set(ranks(state, exact=True).table["method"]) == {"svd"}


def test_stacks_within_the_memory_allowed_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(*[nn.Linear(6, 6) for _ in range(5)])
    whole = ranks(net)
    monkeypatch.setattr(_ranks, "_STACK_BYTES", 700)
    pieces = ranks(net)
    assert pieces.table.drop("effective_rank").equals(whole.table.drop("effective_rank"))


def test_unusable_tensors_are_skipped_with_a_note() -> None:
    state = {
        "weight": torch.eye(3),
        "mask": torch.ones(3, 3, dtype=torch.bool),
        "complex": torch.ones(2, 2, dtype=torch.complex64),
        "eight_bits": torch.eye(2).to(torch.float8_e4m3fn),
        "none": torch.zeros(0, 4),
        "bias": torch.zeros(3),
        "sparse": torch.eye(3).to_sparse(),
        "epoch": 3,
        "steps": np.arange(4),
    }
    found = ranks(state)
    assert found.table["name"].to_list() == ["weight"]
    assert [note.split()[0] for note in found.notes] == [
        "mask",
        "complex",
        "eight_bits",
        "none",
        "sparse",
    ]


def test_read_only_and_flipped_arrays_are_read() -> None:
    array = np.random.default_rng(0).normal(size=(5, 3))
    array.flags.writeable = False
    check(
        ranks({"a": array, "b": array[::-1]}),
        {"a": torch.tensor(array), "b": torch.tensor(array[::-1].copy())},
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named(bad: float) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with torch.no_grad():
        net[1].weight[2, 1] = bad
    with pytest.raises(ValueError, match=r"1\.weight holds infinities or NaN"):
        ranks(net)
    assert len(ranks(net, include=["0.weight"]).table) == 1


def test_weights_without_values_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.weight has no values yet.*meta"):
        ranks(nn.Sequential(nn.Linear(3, 3, device="meta")))
    with pytest.raises(ValueError, match=r"0\.weight has no values yet.*lazy"):
        ranks(nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(ValueError, match="lazy"):
        ranks(nn.LazyConv2d(3, 3))


def test_nothing_to_measure_is_an_error_that_says_why() -> None:
    with pytest.raises(ValueError, match="no weight matrix"):
        ranks(nn.ReLU())
    with pytest.raises(ValueError, match="mask has dtype"):
        ranks({"mask": torch.ones(3, 3, dtype=torch.int64)})
    with pytest.raises(ValueError, match=r"checkpoint\['model'\]"):
        ranks({"model": {"w": torch.eye(2)}, "epoch": 1})
    with pytest.raises(TypeError, match=r"nn\.Module or a mapping"):
        ranks("model.pt")  # type: ignore[arg-type]


def test_repr_reads_like_a_sentence() -> None:
    text = repr(ranks({f"w{i}": torch.eye(2) for i in range(14)}))
    assert text.startswith("28 of 28 singular values in 14 weight matrices exceed 0.001 of their")
    assert "and 2 more in .table" in text


@pytest.mark.parametrize("kind", [">f8", ">f4", np.longdouble])
def test_arrays_of_types_that_torch_lacks_are_converted(kind: object) -> None:
    plain = np.arange(12.0).reshape(3, 4) + 20 * np.eye(3, 4)
    check(ranks({"w": plain.astype(kind)}), {"w": torch.from_numpy(plain)})


def test_a_module_is_not_quantised_by_the_name_of_its_file() -> None:
    class Plain(nn.Module):
        __module__ = "my_quantized_nets"

        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.eye(3))

    assert ranks(Plain()).table["threshold_rank"].to_list() == [3]


def test_one_energy_is_not_a_list_of_them() -> None:
    with pytest.raises(TypeError, match=r"energies must be a sequence.*got 0\.9"):
        ranks({"w": torch.eye(2)}, energies=0.9)  # type: ignore[arg-type]
