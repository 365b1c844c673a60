"""Text that claims train on, character by character, in windows drawn by a seed."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from undertow.data._draw import stream
from undertow.data._files import read_text
from undertow.data._raw import check_context, check_windows


@dataclass(frozen=True, eq=False, repr=False)
class Windows:
    """Windows of a text, character by character, with the character that follows each.

    Inputs and targets are int64 positions in `characters`; `targets[i, j]` is the character after
    `inputs[i, j]`. Windows do not overlap, but the last target of one may be the first input of the
    next. The last fifth of the text is for testing.

    Attributes:
        name: what `load_text` was asked for.
        characters: those of the whole text, in the order of their code points.
        source: where the text came from, in words.
    """

    name: str
    train_inputs: Int[Tensor, "train context"]
    train_targets: Int[Tensor, "train context"]
    test_inputs: Int[Tensor, "test context"]
    test_targets: Int[Tensor, "test context"]
    characters: str
    source: str

    def __repr__(self) -> str:
        return (
            f"{self.name}: {len(self.train_inputs):,} training and {len(self.test_inputs):,} test"
            f" windows of {self.train_inputs.shape[1]} characters, {len(self.characters)} of them"
            f" distinct, from {self.source}"
        )

    def decode(self, positions: Int[Tensor, " length"]) -> str:
        """The characters at these positions of `characters`, as a string."""
        return "".join(self.characters[position] for position in positions.tolist())


def load_text(
    name: str,
    *,
    context: int,
    root: str | os.PathLike[str] | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
    seed: int = 0,
    characters: str | None = None,
) -> Windows:
    """Load a text by name, cut into windows, all of them or a seeded subset.

    `python-docs` is the language reference that comes with Python for its `help()`, 0.5 million
    characters, and `python-code` the source of some modules of its standard library, 1.4 million;
    both differ a little between Python versions. `austen` is Jane Austen's six novels, 4 million
    characters, from the Debian package r-cran-janeaustenr: installed, or in the folder `root` or
    UNDERTOW_DATA; its checksum is verified.

    Args:
        name: `python-docs`, `python-code` or `austen`.
        context: characters in a window.
        root: the folder that holds the file, or the folder above it.
        train_size: how many training windows to keep; None keeps all, in the text's order.
        test_size: the same for the test windows.
        seed: chooses the subsets. For one seed a smaller subset is part of a larger one.
        characters: those that a network knows, in ascending order: `Windows.characters` of the text
            that it was trained on. Windows with others are left out. None: those of this text.

    Raises:
        ValueError: an unknown name, a number out of range, or a damaged file.
        FileNotFoundError: the text is not there; the message says how to get it.
    """
    text, source = read_text(name, root)
    characters = "".join(sorted(set(text))) if characters is None else characters
    encoded = _encoded(text, characters)
    boundary = check_context(context, len(encoded))
    train_seed, test_seed = (stream(seed, part) for part in ("train", "test"))
    train = _windows(encoded[:boundary], context, train_size, train_seed, "train_size")
    test = _windows(encoded[boundary:], context, test_size, test_seed, "test_size")
    return Windows(name, *train, *test, characters=characters, source=source)


def _encoded(text: str, characters: str) -> Int[Tensor, " length"]:
    """Positions in `characters`, -1 for others."""
    codes, known = (np.frombuffer(own.encode("utf-32-le"), np.uint32) for own in (text, characters))
    places = np.searchsorted(known, codes).clip(max=len(known) - 1)
    return torch.from_numpy(np.where(known[places] == codes, places, -1))


def _windows(
    text: Int[Tensor, " length"],
    context: int,
    size: int | None,
    seed: int,
    argument: str,
) -> tuple[Int[Tensor, "windows context"], Int[Tensor, "windows context"]]:
    """Windows of a text and the same one character on, but for those with unknown characters."""
    whole = (len(text) - 1) // context
    inputs = text[: whole * context].view(whole, context)
    targets = text[1 : whole * context + 1].view(whole, context)
    known = (torch.minimum(inputs, targets) >= 0).all(1)
    inputs, targets = inputs[known], targets[known]
    available = check_windows(argument, size, context, len(inputs) * context + 1)
    kept = torch.arange(available)
    if size is not None:
        generator = torch.Generator().manual_seed(seed)
        kept = torch.randperm(available, generator=generator)[:size].sort().values
    return inputs[kept], targets[kept]
