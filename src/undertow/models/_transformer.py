"""A small causal transformer, with a block of its own."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from undertow.models._layers import drawn_layer, or_new


def transformer(
    vocabulary: int,
    context: int,
    *,
    width: int = 32,
    depth: int = 2,
    heads: int = 2,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """A causal transformer with layer norm before each sublayer, such as one for characters.

    Maps tokens `[batch, length]`, `length <= context`, to logits `[batch, vocabulary, length]`: the
    classes lie along axis 1, where `nn.CrossEntropyLoss` expects them for targets `[batch, length]`
    of following tokens. Logits at position j depend on tokens 0 to j only.

    Args:
        vocabulary: tokens run from 0 to `vocabulary - 1`.
        context: the longest input; positions are learned.
        width: of the residual stream; the hidden layer of each block is four times as wide.
        depth: the number of blocks; there are about `12 depth width^2` weights beside the tokens'.
        heads: of the attention; must divide the width.
        generator: draws the initial weights: normal with standard deviation 0.02 for embeddings (as
            GPT-2 has them), PyTorch's default for linear layers but those that write into the
            residual stream, which are divided by `sqrt(2 depth)`. None starts a new one from 0.

    Raises:
        ValueError: a number below 1, or heads that do not divide the width.
    """
    if min(vocabulary, context, width, depth, heads) < 1:
        raise ValueError(
            f"vocabulary={vocabulary}, context={context}, width={width}, depth={depth},"
            f" heads={heads} would not do: each must be at least 1."
        )
    if width % heads:
        raise ValueError(f"heads={heads} does not divide width={width}.")
    generator = or_new(generator)
    layers: list[nn.Module] = [_Embedding(vocabulary, context, width, generator)]
    layers += [_Block(width, heads, 1 / math.sqrt(2 * depth), generator) for _ in range(depth)]
    head = drawn_layer(nn.Linear, width, vocabulary, bias=False, generator=generator)
    return nn.Sequential(*layers, nn.LayerNorm(width), head, _ClassesFirst())


class _Embedding(nn.Module):
    """The sum of a token's vector and its position's."""

    def __init__(self, vocabulary: int, context: int, width: int, generator: torch.Generator):
        super().__init__()
        self.token = nn.Parameter(torch.empty(vocabulary, width))
        self.position = nn.Parameter(torch.empty(context, width))
        for table in (self.token, self.position):
            nn.init.normal_(table, std=0.02, generator=generator)

    def forward(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length width"]:
        length, context = tokens.shape[1], len(self.position)
        if length > context:
            raise ValueError(f"tokens: {length} a sample, but the context is {context}.")
        return self.token[tokens] + self.position[:length]


class _Block(nn.Module):
    """x + attention(norm(x)), then the same with a hidden layer of four times the width.

    Attention is written out: fused kernels have no batching rule for an ensemble of weights, and
    no second derivative.
    """

    def __init__(self, width: int, heads: int, residual_scale: float, generator: torch.Generator):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.attention_in = drawn_layer(nn.Linear, width, 3 * width, bias=True, generator=generator)
        self.attention_out = drawn_layer(nn.Linear, width, width, bias=True, generator=generator)
        self.hidden_norm = nn.LayerNorm(width)
        self.hidden_in = drawn_layer(nn.Linear, width, 4 * width, bias=True, generator=generator)
        self.hidden_out = drawn_layer(nn.Linear, 4 * width, width, bias=True, generator=generator)
        with torch.no_grad():
            for layer in (self.attention_out, self.hidden_out):
                layer.get_parameter("weight").mul_(residual_scale)

    def forward(
        self, x: Float[Tensor, "batch length width"]
    ) -> Float[Tensor, "batch length width"]:
        x = x + self.attention_out(self._attend(self.attention_in(self.attention_norm(x))))
        hidden = nn.functional.gelu(self.hidden_in(self.hidden_norm(x)))
        return x + self.hidden_out(hidden)

    def _attend(
        self, packed: Float[Tensor, "batch length three_widths"]
    ) -> Float[Tensor, "batch length width"]:
        batch, length = packed.shape[:2]
        split = packed.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        future = torch.ones(length, length, dtype=torch.bool, device=packed.device).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        return (weights @ value).transpose(1, 2).reshape(batch, length, -1)


class _ClassesFirst(nn.Module):
    def forward(
        self, logits: Float[Tensor, "batch length vocabulary"]
    ) -> Float[Tensor, "batch vocabulary length"]:
        return logits.mT
