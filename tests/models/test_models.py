"""Reference networks: shapes, PyTorch's own initial weights, and no global random draw."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from undertow.models import (
    conv_net,
    deep_plain_mlp,
    identity_plus_noise_,
    mlp,
    residual_net,
    scale_invariant_mlp,
    transformer,
)

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kinds(model: nn.Sequential) -> list[str]:
    return [type(layer).__name__ for layer in model]


def test_an_mlp_is_flatten_then_linear_and_activation_in_turn() -> None:
    assert kinds(mlp((4, 5, 3))) == ["Flatten", "Linear", "ReLU", "Linear"]
    assert kinds(mlp((4, 5, 3), batch_norm=True, activation="tanh")) == [
        "Flatten",
        "Linear",
        "BatchNorm1d",
        "Tanh",
        "Linear",
    ]
    assert kinds(mlp((4, 5, 3), activation="identity")) == ["Flatten", "Linear", "Linear"]
    assert all(layer.bias is None for layer in mlp((4, 5, 3), bias=False)[1::2])


def test_layers_are_distinct_objects() -> None:
    model = mlp((4, 4, 4, 4), batch_norm=True)
    assert len({id(layer) for layer in model}) == len(model)


def test_an_identity_mlp_is_the_product_of_its_matrices() -> None:
    model = mlp((6, 5, 4, 3), activation="identity", bias=False).double()
    inputs = torch.randn(7, 2, 3, dtype=torch.float64, generator=generator(0))
    first, second, third = (layer.weight for layer in model[1:])
    expected = inputs.flatten(1) @ (third @ second @ first).T
    torch.testing.assert_close(model(inputs), expected)


@pytest.mark.parametrize("bias", [True, False])
def test_initial_weights_are_torchs_own(bias: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        linear, convolution = nn.Linear(8, 5, bias=bias), nn.Conv2d(2, 4, 3, bias=bias)
        head = nn.Linear(4 * 4, 3, bias=bias)
        torch.manual_seed(3)
        first = nn.Linear(8, 5, bias=bias)
    ours = mlp((8, 5), bias=bias, generator=generator(3))[1]
    assert torch.equal(ours.weight, first.weight)
    assert torch.equal(linear.weight, first.weight)

    stream = generator(3)
    mlp((8, 5), bias=bias, generator=stream)
    stack = conv_net((2, 4, 4), (4,), 3, bias=bias, generator=stream)
    assert torch.equal(stack[0].weight, convolution.weight)
    assert torch.equal(stack[-1].weight, head.weight)
    if bias:
        assert torch.equal(ours.bias, first.bias)
        assert torch.equal(stack[-1].bias, head.bias)


def test_one_seed_one_network_and_other_seeds_others() -> None:
    first, same, other = (mlp((4, 3), generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first[1].weight, same[1].weight)
    assert not torch.equal(first[1].weight, other[1].weight)
    assert torch.equal(mlp((4, 3))[1].weight, mlp((4, 3))[1].weight)


@given(
    side=st.integers(1, 12),
    channels=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    kernel_size=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 3),
    batch_norm=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_conv_net_maps_images_to_logits(
    side: int, channels: list[int], kernel_size: int, stride: int, batch_norm: bool
) -> None:
    model = conv_net(
        (2, side, side + 1),
        channels,
        10,
        kernel_size=kernel_size,
        stride=stride,
        batch_norm=batch_norm,
    )
    assert model.eval()(torch.zeros(3, 2, side, side + 1)).shape == (3, 10)
    assert kinds(model).count("Conv2d") == len(channels)
    assert kinds(model).count("BatchNorm2d") == len(channels) * batch_norm


def test_a_scale_is_of_the_initial_weights_and_not_of_the_biases() -> None:
    plain, larger = (conv_net((1, 4, 4), (2, 3), 5, scale=scale) for scale in (1.0, 2.0))
    for (name, weight), other in zip(plain.named_parameters(), larger.parameters(), strict=True):
        assert torch.equal(other, weight if "bias" in name else 2 * weight)


def test_digits_and_mnist_shapes() -> None:
    assert conv_net((1, 8, 8), (8, 16), 10)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    model = conv_net((1, 28, 28), (8, 16), 10)
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert model[-1].in_features == 16 * math.ceil(28 / 4) ** 2


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_block_whose_last_norm_is_zero_is_passed_by_with_a_shortcut_and_dead_without(
    blocks: int,
) -> None:
    x = torch.randn(3, 2, 7, 8, generator=generator(1))
    for shortcuts in (True, False):
        model = residual_net((2, 7, 8), 8, blocks, 10, shortcuts=shortcuts, generator=generator(2))
        assert model(x).shape == (3, 10)
        assert kinds(model).count("ReLU") == 1 + blocks
        for block in model[3:-2:2]:
            torch.nn.init.zeros_(block[-1].weight)
        features = model[:3](x)
        assert torch.equal(model[:-2](x), features if shortcuts else torch.zeros_like(features))


def test_kernels_of_a_residual_net_may_be_scaled_without_effect() -> None:
    model = residual_net((1, 8, 8), 8, 2, 10, generator=generator(1)).double()
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64, generator=generator(2))
    before = model(x)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data.mul_(100)
    torch.testing.assert_close(model(x), before, rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match="groups"):
        residual_net((1, 8, 8), 6, 1, 10)


@pytest.mark.parametrize("sizes", [(), (4,), (4, 0, 2), (4, -1)])
def test_bad_sizes_are_named(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"sizes=.*such as"):
        mlp(sizes)


def test_bad_arguments_say_what_would_do() -> None:
    with pytest.raises(ValueError, match=r"activation='swish'.*relu"):
        mlp((2, 2), activation="swish")
    with pytest.raises(ValueError, match=r"even.*such as 3"):
        conv_net((1, 8, 8), (4,), 10, kernel_size=4)
    with pytest.raises(ValueError, match=r"channels=\(\).*at least one"):
        conv_net((1, 8, 8), (), 10)
    with pytest.raises(ValueError, match=r"stride=0"):
        conv_net((1, 8, 8), (4,), 10, stride=0)


def test_a_residual_net_without_norms_starts_from_the_same_weights() -> None:
    normed, plain = (
        residual_net((1, 8, 8), 8, 2, 10, norms=norms, generator=generator(1))
        for norms in (True, False)
    )
    assert "GroupNorm" not in kinds(plain)
    kernels = [[w for w in own.parameters() if w.ndim > 1] for own in (normed, plain)]
    for own, other in zip(*kernels, strict=True):
        assert torch.equal(own, other)
    x = torch.randn(3, 1, 8, 8, generator=generator(2))
    torch.testing.assert_close(plain[:-1](2 * x), 2 * plain[:-1](x))  # no biases but the last


@pytest.mark.parametrize("init", ["identity-plus-noise", "he"])
def test_a_deep_plain_mlp_has_as_many_square_layers_as_its_depth(init: str) -> None:
    model = deep_plain_mlp(6, 5, inputs=12, outputs=3, init=init, generator=generator(1))
    assert kinds(model) == ["Flatten"] + ["Linear", "ReLU"] * 6 + ["Linear"]
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    shapes = [tuple(layer.weight.shape) for layer in linear]
    assert shapes == [(6, 12), *[(6, 6)] * 5, (3, 6)]
    assert all(not layer.bias.any() for layer in linear)
    assert model(torch.zeros(2, 3, 4)).shape == (2, 3)
    again = deep_plain_mlp(6, 5, inputs=12, outputs=3, init=init, generator=generator(1))
    assert all(map(torch.equal, model.parameters(), again.parameters()))


def test_he_weights_have_variance_two_over_fan_in() -> None:
    model = deep_plain_mlp(100, 3, inputs=50, outputs=100, init="he")
    for layer in model:
        if isinstance(layer, nn.Linear):
            ratio = layer.weight.var() * layer.in_features / 2
            assert abs(float(ratio.detach()) - 1) < 0.1


@given(scale=st.floats(0.0, 3.0), power=st.floats(0.0, 3.0), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_noise_has_exactly_the_spectral_norm_asked_for(
    scale: float, power: float, seed: int
) -> None:
    hidden = deep_plain_mlp(5, 4, inputs=3, outputs=2).double()[3:-1]
    identity_plus_noise_(hidden, scale=scale, power=power, generator=generator(seed))
    for index, layer in enumerate(hidden[::2], start=1):
        noise = layer.weight - torch.eye(5, dtype=torch.float64)
        norm = float(torch.linalg.matrix_norm(noise.detach(), 2))
        assert norm == pytest.approx(scale * index**-power, rel=1e-12, abs=1e-12)


def test_identity_plus_noise_leaves_other_layers_alone_and_keeps_positive_inputs() -> None:
    stack = mlp((3, 4, 4, 4, 2), generator=generator(0))
    first, last = stack[1].weight.clone(), stack[-1].weight.clone()
    assert identity_plus_noise_(stack, scale=0.0) is stack
    assert torch.equal(stack[1].weight, first)
    assert torch.equal(stack[-1].weight, last)
    positive = torch.rand(5, 4, generator=generator(1))
    torch.testing.assert_close(stack[3:-1](positive), positive)
    assert stack[3].weight.requires_grad


def test_bad_deep_networks_are_named() -> None:
    with pytest.raises(ValueError, match=r"depth=0.*at least 1"):
        deep_plain_mlp(4, 0, inputs=3, outputs=2)
    with pytest.raises(ValueError, match=r"init='zero'.*identity-plus-noise or he"):
        deep_plain_mlp(4, 2, inputs=3, outputs=2, init="zero")
    with pytest.raises(ValueError, match=r"power=-1"):
        deep_plain_mlp(4, 2, inputs=3, outputs=2, power=-1)
    with pytest.raises(ValueError, match=r"scale=nan"):
        identity_plus_noise_(mlp((4, 4)), scale=math.nan)
    with pytest.raises(ValueError, match="has no nn"):
        identity_plus_noise_(mlp((4, 3, 2)))


def token_batch(vocabulary: int = 7, batch: int = 3, length: int = 6) -> torch.Tensor:
    return torch.randint(vocabulary, (batch, length), generator=generator(5))


@given(
    heads=st.integers(1, 3),
    per_head=st.integers(1, 4),
    depth=st.integers(1, 3),
    length=st.integers(1, 6),
)
@settings(max_examples=20, deadline=None)
def test_a_transformer_maps_tokens_to_logits_with_the_classes_first(
    heads: int, per_head: int, depth: int, length: int
) -> None:
    model = transformer(7, 6, width=heads * per_head, depth=depth, heads=heads)
    tokens = token_batch(length=length)
    logits = model(tokens)
    assert logits.shape == (3, 7, length)
    assert nn.functional.cross_entropy(logits, tokens).isfinite()


def test_a_transformer_sees_no_later_token() -> None:
    model = transformer(7, 6, width=8, depth=2, generator=generator(1)).double()
    tokens = token_batch()
    for position in range(1, 6):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 1) % 7
        moved = (model(tokens) - model(changed)).abs().amax(dim=(0, 1))
        assert not moved[:position].any()
        assert moved[position:].min() > 0
    torch.testing.assert_close(model(tokens[:, :3]), model(tokens)[..., :3])


def test_attention_is_torchs_own() -> None:
    block = transformer(7, 6, width=8, heads=2, depth=1, generator=generator(1))[1].double()
    inputs = torch.randn(3, 6, 8, dtype=torch.float64, generator=generator(2))
    with torch.random.fork_rng():
        theirs = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(block.attention_in.weight)
        theirs.in_proj_bias.copy_(block.attention_in.bias)
        theirs.out_proj.weight.copy_(block.attention_out.weight)
        theirs.out_proj.bias.copy_(block.attention_out.bias)
    normed = block.attention_norm(inputs)
    future = torch.ones(6, 6, dtype=torch.bool).triu(1)
    expected, _ = theirs(normed, normed, normed, attn_mask=future, need_weights=False)
    torch.testing.assert_close(
        block.attention_out(block._attend(block.attention_in(normed))), expected
    )


def test_a_transformer_is_one_network_a_seed_and_has_the_weights_it_says() -> None:
    first, same, other = (
        transformer(50, 16, width=24, depth=3, generator=generator(s)) for s in (1, 1, 2)
    )
    assert all(map(torch.equal, first.parameters(), same.parameters()))
    assert not torch.equal(first[0].token, other[0].token)
    blocks = sum(p.numel() for name, p in first.named_parameters() if p.ndim == 2)
    assert blocks == 12 * 3 * 24**2 + 2 * 50 * 24 + 16 * 24


def test_a_transformer_trains_under_vmap_as_on_its_own() -> None:
    models = [transformer(7, 6, width=4, depth=1, generator=generator(s)).double() for s in (1, 2)]
    tokens = token_batch()

    def loss(params: dict[str, torch.Tensor]) -> torch.Tensor:
        outputs = torch.func.functional_call(models[0], params, (tokens,))
        return nn.functional.cross_entropy(outputs, tokens)

    own = [{name: value.detach() for name, value in m.named_parameters()} for m in models]
    stacked = {name: torch.stack([params[name] for params in own]) for name in own[0]}
    together = torch.func.vmap(torch.func.grad(loss))(stacked)
    for e, params in enumerate(own):
        for name, gradient in torch.func.grad(loss)(params).items():
            torch.testing.assert_close(together[name][e], gradient)


def test_bad_transformers_are_named() -> None:
    with pytest.raises(ValueError, match=r"heads=3 does not divide width=8"):
        transformer(7, 6, width=8, heads=3)
    with pytest.raises(ValueError, match=r"depth=0.*at least 1"):
        transformer(7, 6, depth=0)
    with pytest.raises(ValueError, match=r"9 a sample, but the context is 6"):
        transformer(7, 6)(token_batch(length=9))


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_each_layer_of_a_scale_invariant_mlp_is_so_to_the_last_bit(
    norm: Any, activation: str
) -> None:
    net = scale_invariant_mlp((6, 8, 8, 3), norm=norm, activation=activation)
    inputs = torch.randn(7, 6, generator=generator(0))
    outputs = net(inputs)
    for number in (1, 4):
        with torch.no_grad():
            net[number].weight.mul_(2.0**-20)
        assert torch.equal(net(inputs), outputs)
    assert [own.requires_grad for own in net.parameters()] == [True, True, False]


def test_without_norms_or_a_frozen_head_it_is_a_plain_mlp() -> None:
    net = scale_invariant_mlp((6, 8, 3), norm="none", frozen_head=False)
    assert kinds(net) == ["Flatten", "Linear", "ReLU", "Linear"]
    assert all(own.requires_grad for own in net.parameters())


def test_a_scale_invariant_mlp_names_what_would_not_do() -> None:
    with pytest.raises(ValueError, match="at least one hidden width"):
        scale_invariant_mlp((6, 3))
    with pytest.raises(ValueError, match="norm='group' is unknown; choose batch, layer, none"):
        scale_invariant_mlp((6, 8, 3), norm="group")  # type: ignore[arg-type]
