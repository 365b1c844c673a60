"""How tensors become matrices: stacks, kernels, scaled floats, and what is no weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from undertow import apply, measure


class Experts(nn.Module):
    """One tensor for all experts, as Mixtral and gpt-oss keep them."""

    def __init__(self) -> None:
        super().__init__()
        factors = [torch.randn(20, 2) @ torch.randn(2, 6) for _ in range(3)]
        self.gate_up_proj = nn.Parameter(torch.stack(factors))
        self.gate_up_proj_bias = nn.Parameter(torch.randn(3, 20))
        self.pos_embed = nn.Parameter(torch.randn(1, 9, 4))
        self.cls_token = nn.Parameter(torch.randn(1, 1, 4))


class StandardizedConv(nn.Module):
    """A convolution that torch does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel_size = 3
        self.weight = nn.Parameter(torch.randn(8, 4, 3))


def shapes(found: measure.Ranks) -> dict[str, tuple[int, int]]:
    return {name: (rows, cols) for name, rows, cols in found.table["name", "rows", "cols"].rows()}


@pytest.mark.parametrize("live", [True, False])
def test_a_stack_is_as_many_matrices(live: bool) -> None:
    model = Experts()
    found = measure.ranks(model if live else model.state_dict())
    expected = {f"gate_up_proj[{i}]": (20, 6) for i in range(3)} | {"pos_embed": (9, 4)}
    assert shapes(found) == expected
    assert found.table["threshold_rank"].to_list() == [2, 2, 2, 4]
    for index, name in enumerate(list(expected)[:3]):
        exact = torch.linalg.svdvals(model.gate_up_proj[index].double())
        assert found.spectra[name].tolist() == pytest.approx(exact.tolist(), abs=1e-5)
    assert found.notes[0] == "gate_up_proj was taken for 3 matrices 20 x 6"
    assert apply.inspect(model).parameters_at(0.01) == 3 * 2 * 26 + 36


CONVOLUTIONS: list[nn.Module] = [
    *(nn.Conv1d(4, 8, 3), nn.Conv2d(4, 8, 3), nn.Conv3d(4, 8, 3), nn.Conv1d(4, 8, 4)),
    *(nn.Conv2d(8, 8, 3, groups=8), nn.Conv1d(8, 4, 5, groups=2), nn.Conv2d(3, 8, 16)),
    *(nn.ConvTranspose1d(4, 8, 4), nn.ConvTranspose2d(4, 8, 3), nn.ConvTranspose3d(4, 8, 2)),
    *(nn.ConvTranspose2d(4, 8, 3, groups=2), nn.ConvTranspose2d(8, 8, 3, groups=8)),
]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=repr)
def test_a_kernel_of_a_file_is_laid_out_as_the_layer_has_it(layer: nn.Module) -> None:
    """The bias beside it says which axis is which."""
    live, stored = measure.ranks(layer), measure.ranks(layer.state_dict())
    assert shapes(live) == shapes(stored)
    assert live.spectra["weight"].tolist() == pytest.approx(stored.spectra["weight"].tolist())
    transposed = "Transpose" in repr(layer) and layer.weight.shape[1] > 1  # type: ignore[union-attr,index]
    assert any("transposed" in note for note in stored.notes) == transposed


def test_names_decide_where_no_bias_does() -> None:
    state = {
        "encoder.conv.weight": torch.randn(6, 4, 7),
        "up.deconv.weight": torch.randn(6, 4, 7),
        "experts.w1": torch.randn(6, 4, 3),
        "head.weight": torch.randn(6, 20, 30),
        "line.weight": torch.randn(16, 8, 3),
    }
    found = measure.ranks(state)
    sizes = shapes(found)
    assert sizes["encoder.conv.weight"] == (6, 28)
    assert sizes["up.deconv.weight"] == (4, 42)
    assert sizes["experts.w1[5]"] == (4, 3)
    assert sizes["head.weight[5]"] == (20, 30)
    assert sizes["line.weight"] == (16, 24)
    assert {note.split()[0] for note in found.notes} == {
        *("up.deconv.weight", "experts.w1", "head.weight", "line.weight"),
    }


def test_axes_of_one_are_no_axes() -> None:
    state = {
        "positions": torch.randn(9, 1, 4),
        "table": torch.randn(1, 9, 4),
        "token": torch.randn(1, 1, 4),
        "gain": torch.randn(4, 1, 1),
        "depthwise.weight": torch.randn(8, 1, 3),
        "one.experts.w1": torch.randn(1, 5, 4),
    }
    assert shapes(measure.ranks(state)) == {
        "positions": (9, 4),
        "table": (9, 4),
        "depthwise.weight": (8, 3),
        "one.experts.w1": (5, 4),
    }


def test_a_module_beside_a_state_dict_says_how_it_is_laid_out() -> None:
    model = nn.Sequential(StandardizedConv(), nn.Conv1d(8, 8, 9, bias=False))
    initial = {name: value * 2 for name, value in model.state_dict().items()}
    split = measure.split_init(model, initial, decay_exponent=0.1)
    assert [tuple(row) for row in split.table["rows", "cols"].rows()] == [(8, 12), (8, 72)]
    found = apply.inspect(initial, against=model)
    assert found.table["change"].to_list() == pytest.approx([1, 1])


WEIGHT = torch.randn(4, 6)
NO_WEIGHTS: dict[str, dict[str, Tensor]] = {
    "gptq": {
        "l.qweight": torch.zeros(8, 16, dtype=torch.int32),
        "l.qzeros": torch.zeros(1, 2, dtype=torch.int32),
        "l.scales": torch.rand(2, 16),
        "l.g_idx": torch.zeros(64, dtype=torch.int32),
    },
    "bitsandbytes": {
        "l.weight": torch.zeros(32, 1, dtype=torch.uint8),
        "l.weight.absmax": torch.rand(4, 8),
        "l.weight.quant_map": torch.rand(16),
        "l.weight.nested_absmax": torch.rand(4, 2),
    },
    "mxfp4": {
        "gate_up_proj_blocks": torch.zeros(4, 8, 2, 16, dtype=torch.uint8),
        "gate_up_proj_scales": torch.zeros(4, 8, 2, dtype=torch.uint8),
        "gate_up_proj_bias": torch.randn(4, 8),
    },
    "compressed": {
        "l.weight_packed": torch.zeros(8, 2, dtype=torch.int32),
        "l.weight_scale": torch.rand(8, 4),
        "l.weight_zero_point": torch.zeros(8, 4, dtype=torch.int8),
    },
    "caches": {
        "attn.bias": torch.ones(1, 1, 8, 8),
        "attn.masked_bias": torch.tensor(-1e4),
        "rotary_emb.inv_freq": torch.rand(4),
        "rotary_emb.cos_cached": torch.rand(1, 1, 8, 4),
        "position_ids": torch.arange(5)[None],
        "bn.running_var": torch.rand(4),
        "layer_scale.gamma": torch.rand(8, 1, 1),
        "blocks.attn_mask": torch.zeros(4, 9, 9),
    },
}


@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_what_is_no_weight_is_not_measured(kind: str) -> None:
    found = measure.ranks({"emb.weight": WEIGHT, **NO_WEIGHTS[kind]})
    assert found.table["name"].to_list() == ["emb.weight"]
    packed = [name for name in ("l.qweight", "l.weight", "gate_up_proj_blocks", "l.weight_packed")
              if name in NO_WEIGHTS[kind]]  # fmt: skip
    assert [note.split()[0] for note in found.notes] == packed


def test_weights_that_are_called_as_tables_are_measured() -> None:
    state = {
        "relative_attention_bias.weight": torch.randn(32, 8),
        "relative_position_bias_table": torch.randn(49, 4),
        "A_log": torch.randn(8, 4),
        "token_scale.weight": torch.randn(5, 3),
    }
    assert measure.ranks(state).table["name"].to_list() == list(state)


SCALES = {
    "tensor": torch.tensor(0.3),
    "row": torch.rand(300, 1) + 0.5,
    "flat row": torch.rand(300) + 0.5,
    "block": torch.rand(3, 2) + 0.5,
    "group": torch.rand(300, 5) + 0.5,
}


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["weight_scale", "weight_scale_inv"])
def test_eight_bit_floats_are_multiplied_by_their_scale(
    kind: torch.dtype, scale: str, name: str
) -> None:
    factor = SCALES[scale]
    wide = factor[:, None] if factor.ndim == 1 else factor
    if scale == "block":
        wide = factor.repeat_interleave(128, 0)[:300].repeat_interleave(128, 1)[:, :200]
    elif scale == "group":
        wide = factor.repeat_interleave(40, 1)
    stored = torch.randn(300, 200).to(kind)
    exact = torch.linalg.svdvals(stored.double() * wide.double())
    for found in (
        measure.ranks({"l.weight": stored, f"l.{name}": factor}),
        apply.inspect({"l.weight": stored, f"l.{name}": factor}),
    ):
        assert found.spectra["l.weight"].tolist() == pytest.approx(exact.tolist(), rel=1e-5)


def test_eight_bit_floats_without_a_scale_that_fits_are_refused() -> None:
    stored = torch.randn(300, 200).to(torch.float8_e4m3fn)
    for beside, said in (
        ({}, "without a scale"),
        ({"l.weight_scale": torch.rand(7, 3)}, "does not say for which entries"),
        ({"l.weight_scale": torch.rand(1), "l.weight_scale_inv": torch.rand(1)}, "two scales"),
    ):
        found = measure.ranks({"emb.weight": WEIGHT, "l.weight": stored, **beside})
        assert found.table["name"].to_list() == ["emb.weight"]
        assert said in found.notes[0]


def test_scaled_experts_have_a_scale_each() -> None:
    stored, scale = torch.randn(4, 10, 6).to(torch.float8_e4m3fn), torch.rand(4, 10, 1) + 0.5
    found = measure.ranks({"experts.down_proj": stored, "experts.down_proj_scale": scale})
    for index in range(4):
        exact = torch.linalg.svdvals(stored[index].double() * scale[index].double())
        given = found.spectra[f"experts.down_proj[{index}]"]
        assert given.tolist() == pytest.approx(exact.tolist(), rel=1e-5)


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("old", [True, False])
def test_norms_of_weight_normalisation_are_no_weights(dim: int, *, old: bool) -> None:
    state = nn.utils.parametrizations.weight_norm(nn.Conv1d(8, 12, 5), dim=dim).state_dict()
    if old:
        names = {"original0": "weight_g", "original1": "weight_v"}
        state = {names.get(name.rpartition(".")[2], name): state[name] for name in state}
    (name,) = measure.ranks(state).table["name"].to_list()
    assert name in ("weight_v", "parametrizations.weight.original1")
