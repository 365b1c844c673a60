"""Token sequences: embeddings are masked, given as such or within the model."""

from __future__ import annotations

import pytest
import torch
from masked import CLASSES, draw
from torch import Tensor, nn
from torch.nn.utils import skip_init

from undertow.measure import saliency

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

WORDS, TOKENS, WIDTH = 9, 5, 4


class Reader(nn.Module):
    """Embeds tokens, adds positions, and reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = skip_init(nn.Embedding, WORDS, WIDTH)
        self.head = skip_init(nn.Linear, TOKENS * WIDTH, CLASSES)
        self.positions = nn.Parameter(torch.empty(TOKENS, WIDTH))
        self.double()
        with torch.no_grad():
            for index, parameter in enumerate(self.parameters()):
                parameter.copy_(draw(index, *parameter.shape))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.read(self.embedding(tokens))

    def read(self, embedded: Tensor) -> Tensor:
        return self.head(torch.tanh(embedded + self.positions).flatten(1))


class Rest(nn.Module):
    """The same of embeddings."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader = reader

    def forward(self, embedded: Tensor) -> Tensor:
        return self.reader.read(embedded)


def tokens(count: int = 4, seed: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(WORDS, (count, TOKENS), generator=generator)


def test_masking_within_the_model_is_masking_its_embeddings() -> None:
    model, maps = Reader(), draw(3, 4, CLASSES, TOKENS)
    embedded = model.embedding(tokens()).detach()
    for background in ("mean", 0.0):
        within = saliency.evaluate(
            model, tokens(), {"m": maps}, embedding=model.embedding, background=background
        )
        outside = saliency.evaluate(Rest(model), embedded, {"m": maps}, background=background)
        assert torch.allclose(within.curves["m"].values, outside.curves["m"].values, atol=1e-12)
        assert within.curves["m"].shares == (0.2, 0.4, 0.6, 0.8, 1.0)
    one = saliency.certify(model, tokens(), embedding=model.embedding, data=tokens(9, 8), steps=60)
    other = saliency.certify(
        Rest(model), embedded, data=model.embedding(tokens(9, 8)).detach(), steps=60
    )
    assert torch.allclose(one.masks, other.masks, atol=1e-10)
    assert one.masks.shape == (4, CLASSES, 1, TOKENS)
    assert "5 tokens, upsampled by 1" in repr(one)


def test_scores_are_those_of_a_slow_loop_over_tokens() -> None:
    model, maps = Reader(), draw(3, 4, CLASSES, TOKENS)
    found = saliency.evaluate(model, tokens(), {"m": maps}, embedding=model.embedding, background=0)
    embedded = model.embedding(tokens()).detach()
    for i in range(4):
        for a in range(CLASSES):
            order = maps[i, a].argsort(descending=True)
            for kept in range(1, TOKENS + 1):
                masked = torch.zeros_like(embedded[i])
                masked[order[:kept]] = embedded[i, order[:kept]]
                expected = model.read(masked[None]).softmax(1)[0, a].detach()
                got = found.curves["m"].values[0, i, a, kept - 1]
                assert float(got) == pytest.approx(float(expected))


def test_methods_are_given_the_model_of_embeddings() -> None:
    model = Reader()
    embedded = model.embedding(tokens()).detach()
    methods = {"g": saliency.gradient_x_input, "r": saliency.random_map}
    within = saliency.evaluate(model, tokens(), methods, embedding=model.embedding)
    outside = saliency.evaluate(Rest(model), embedded, methods)
    for name in methods:
        assert torch.allclose(within.curves[name].values, outside.curves[name].values, atol=1e-12)


def test_tokens_are_no_picture() -> None:
    found = saliency.certify(Rest(Reader()), draw(0, 3, TOKENS, WIDTH), steps=60)
    with pytest.raises(ValueError, match="masks of tokens are no picture"):
        found.plot()
    scored = saliency.evaluate(
        Rest(Reader()), draw(0, 3, TOKENS, WIDTH), {"g": saliency.gradient_x_input}
    )
    with pytest.raises(ValueError, match="maps of tokens are no picture"):
        scored.plot_maps()
    assert scored.document().sections


def test_what_cannot_be_masked_is_refused() -> None:
    model = Reader()
    with pytest.raises(TypeError, match="of tokens name the embedding="):
        saliency.certify(model, tokens())
    with pytest.raises(ValueError, match="must be a part of the model"):
        saliency.certify(model, tokens(), embedding=skip_init(nn.Embedding, WORDS, WIDTH))
    with pytest.raises(ValueError, match=r"must be called once .* got 0 calls"):
        saliency.certify(Rest(model), draw(0, 3, TOKENS, WIDTH), embedding=model.embedding)
    with pytest.raises(ValueError, match="is for images"):
        saliency.certify(model, tokens(), embedding=model.embedding, background="blur")
