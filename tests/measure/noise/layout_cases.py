"""Models that lay out their samples in ways that sizes do not tell; lengths and widths to collide.

Each takes tokens `[samples, length]`, none of which is 0 in the first column, and gives four
outputs a sample; each is, of one sample, the same function of it as in any batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from noise_cases import CLASSES, TOKENS
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence


class Tokens(nn.Module):
    """What the models have in common; `middle` and `norm` see rows as the model lays them out."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.table = nn.Embedding(TOKENS, width)
        self.places = nn.Embedding(9, width)
        self.middle = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)
        self.length = length

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.table(tokens)
        return self.head(self.laid_out(hidden, tokens).mean(1))

    def rows(self, rows: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.middle(rows)))

    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        raise NotImplementedError


class Places(Tokens):
    """Looked up once for the whole batch."""

    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        return self.rows(hidden + self.places(torch.arange(tokens.shape[1])))


class PlacesInAList(Tokens):
    """Looked up for each sample."""

    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1]).expand(tokens.shape)
        return self.rows(hidden + self.places(places))


class TimesFirst(Tokens):
    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        return self.rows(hidden.transpose(0, 1)).transpose(0, 1)


class Flat(Tokens):
    """Batch by time, in one axis."""

    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        return self.rows(hidden.flatten(0, 1)).unflatten(0, tokens.shape)


class FlatTimesFirst(Tokens):
    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        rows = self.rows(hidden.transpose(0, 1).flatten(0, 1))
        return rows.unflatten(0, (tokens.shape[1], tokens.shape[0])).transpose(0, 1)


class WidthFirst(Tokens):
    """Samples on the third axis."""

    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        moved = hidden[None].permute(2, 0, 1, 3)
        return self.rows(moved).permute(1, 2, 0, 3)[0]


class Sorted(Tokens):
    """By the number of tokens that are not padding, longest first, as packing wants them."""

    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        order = (tokens > 0).sum(1).argsort(descending=True, stable=True)
        return self.rows(hidden[order])[order.argsort()]


class SortedByValue(Tokens):
    """By a column of what is embedded."""

    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        order = hidden[:, 0, 0].detach().sort().indices
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        return self.rows(hidden.index_select(0, order)).index_select(0, back)


class Unpadded(Tokens):
    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        keep = (tokens > 0).nonzero(as_tuple=True)
        return torch.zeros_like(hidden).index_put(keep, self.rows(hidden[keep]))


class Filtered(Tokens):
    """The same by masked_select and masked_scatter."""

    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        keep = (tokens > 0)[..., None].expand_as(hidden)
        rows = self.rows(hidden.masked_select(keep).reshape(-1, hidden.shape[2]))
        return torch.zeros_like(hidden).masked_scatter(keep, rows)


class Experts(Tokens):
    """Some samples go through one more layer, in a batch of their own."""

    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        chosen = tokens[:, 0] % 2 == 0
        outputs = hidden.clone()
        outputs[chosen] = self.rows(hidden[chosen])
        return outputs


class Routed(Tokens):
    """Tokens are sorted by expert; the last kind has none."""

    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        flat = hidden.flatten(0, 1)
        order = (tokens.flatten() % 3).argsort(stable=True)
        rows = self.rows(flat[order])
        return torch.zeros_like(flat).index_copy(0, order, rows).unflatten(0, tokens.shape)


class ByMatrix(Tokens):
    """An order that is written as a matrix, from comparisons alone."""

    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        places = torch.arange(len(tokens))
        keys = tokens[:, 0] * len(tokens) + places
        order = (keys[:, None] > keys).sum(1)[:, None].eq(places).to(hidden)
        rows = self.rows((order.T @ hidden.flatten(1)).unflatten(1, hidden.shape[1:]))
        return (order @ rows.flatten(1)).unflatten(1, hidden.shape[1:])


class BySum(Tokens):
    """The same by products and sums."""

    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        ones = torch.ones_like(tokens[:, 0])
        keys = tokens[:, 0] * len(tokens) + ones.cumsum(0)
        order = (keys[:, None] > keys).sum(1)[:, None].eq(ones.cumsum(0) - 1).to(hidden)
        rows = self.rows((order[:, :, None, None] * hidden[:, None]).sum(0))
        return (order[:, :, None, None] * rows).sum(1)


class Exchanged(Tokens):
    """Neighbours change places if their first tokens say so."""

    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        places = torch.arange(len(tokens))
        other = torch.where(places % 2 == 0, places + 1, places - 1).clamp(max=len(tokens) - 1)
        least = torch.minimum(tokens[:, 0], torch.stack([tokens[int(i), 0] for i in other]))
        swap = ((least % 2 == 0) & (other != places))[:, None, None]
        shifted = torch.cat([hidden[1:], hidden[:1]])
        back = torch.cat([hidden[-1:], hidden[:-1]])
        even = (places % 2 == 0)[:, None, None]
        rows = self.rows(torch.where(swap, torch.where(even, shifted, back), hidden))
        shifted, back = torch.cat([rows[1:], rows[:1]]), torch.cat([rows[-1:], rows[:-1]])
        return torch.where(swap, torch.where(even, shifted, back), rows)


class Dispatched(Tokens):
    """Experts with places for tokens, filled by one-hot matrices as in Switch transformers."""

    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        flat, expert = hidden.flatten(0, 1), tokens.flatten() % 2
        hot = torch.stack([expert == 0, expert == 1], 1).to(flat)
        place = (hot.cumsum(0) * hot - 1).long()
        slots = (place[..., None] == torch.arange(len(flat))).to(flat)
        rows = self.rows(torch.einsum("nec,nd->ecd", slots, flat))
        return torch.einsum("nec,ecd->nd", slots, rows).unflatten(0, tokens.shape)


class Beams(Tokens):
    """Samples repeated in turn."""

    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        rows = self.rows(hidden.repeat_interleave(3, 0))
        return rows.unflatten(0, (-1, 3)).sum(1)


class Heads(Tokens):
    """Samples repeated as a whole."""

    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        rows = self.rows(hidden.repeat(3, 1, 1))
        return rows.unflatten(0, (3, -1)).sum(0)


class Passes(Tokens):
    """Two views of each sample, one after the other."""

    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        one, other = self.rows(torch.cat([hidden, 2 * hidden.tanh()])).chunk(2)
        return one * other


class Reversed(Tokens):
    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        return self.rows(hidden.flip(0)).flip(0)


class Rolled(Tokens):
    """By a number that few samples do not notice."""

    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        return self.rows(hidden.roll(30030, 0).roll(-30029, 0)).roll(-1, 0)


class LateSwap(Tokens):
    """Only beyond the seventh sample are two exchanged."""

    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        order = list(range(len(hidden)))
        if len(order) > 7:
            order[6], order[7] = order[7], order[6]
        return self.rows(hidden[torch.tensor(order)])[torch.tensor(order)]


class Halves(Tokens):
    """The second half first, beyond seven samples."""

    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        half = len(hidden) // 2 if len(hidden) > 7 else 0
        rows = self.rows(torch.cat([hidden[half:], hidden[:half]]))
        rest = len(hidden) - half
        return torch.cat([rows[rest:], rows[:rest]])


class OneByOne(Tokens):
    """In a loop of Python's, backwards."""

    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        return torch.stack([self.rows(one) for one in reversed(hidden)][::-1])


class ByNumpy(Tokens):
    """An order that PyTorch does not see."""

    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        order = tokens[:, 0].numpy().argsort(kind="stable")
        rows = self.rows(torch.stack([hidden[int(i)] for i in order]))
        return torch.stack([rows[int(i)] for i in order.argsort(kind="stable")])


class Grouped(Tokens):
    """Samples folded into the channels of a grouped convolution."""

    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        samples, _, width = hidden.shape
        folded = hidden.transpose(1, 2).reshape(1, samples * width, -1)
        kernel = self.middle.weight[..., None].repeat(samples, 1, 1)
        bias = self.middle.bias.repeat(samples)
        found = functional.conv1d(folded, kernel, bias, groups=samples)
        return torch.tanh(self.norm(found.reshape(samples, width, -1).transpose(1, 2)))


class Frames(Tokens):
    """Every token an image of its own, in a convolution's batch."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__(width, length)
        self.kernel = nn.Conv1d(1, 2, 1)

    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        images = self.kernel(hidden.flatten(0, 1)[:, None])
        return self.rows(torch.tanh(images).sum(1).unflatten(0, tokens.shape))


class Packed(Tokens):
    """A recurrent layer over packed sequences."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__(width, length)
        self.memory = nn.GRU(width, width, batch_first=True)

    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        lengths = (tokens > 0).sum(1).clamp(min=1)
        packed = pack_padded_sequence(hidden, lengths, batch_first=True, enforce_sorted=False)
        rows = packed._replace(data=self.rows(packed.data))
        return self.memory(rows)[1].transpose(0, 1)


class Latents(Tokens):
    """As many learnt queries as there may be samples."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__(width, length)
        self.queries = nn.Parameter(torch.ones(length, width))

    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        queries = self.middle(self.queries)
        mixed = torch.softmax(queries @ hidden.transpose(1, 2), -1) @ hidden
        return torch.tanh(self.norm(mixed))


class SubBatch(Tokens):
    """The first sample twice through a layer, which sees it and the others apart."""

    def laid_out(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        return torch.cat([self.rows(hidden[:1]), self.rows(hidden[1:])])


LAYOUTS: dict[str, Callable[[int, int], nn.Module]] = {
    kind.__name__: kind
    for kind in (
        Places, PlacesInAList, TimesFirst, Flat, FlatTimesFirst, WidthFirst, Sorted, SortedByValue,
        Unpadded, Filtered, Experts, Routed, ByMatrix, BySum, Exchanged, Dispatched, Beams, Heads,
        Passes, Reversed, Rolled, LateSwap, Halves, OneByOne, ByNumpy, Grouped, Frames, Packed,
        Latents, SubBatch,
    )
}  # fmt: skip
# Those whose layouts formulas cover in full.
PLAIN = {"Places", "PlacesInAList", "TimesFirst", "Flat", "WidthFirst", "Beams"}


def tokens(seed: int, samples: int, length: int) -> Tensor:
    """Of which some rows end in padding."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(1, TOKENS, (samples, length), generator=generator)
    lengths = torch.randint(1, length + 1, (samples,), generator=generator)
    return found * (torch.arange(length) < lengths[:, None])
