"""Sources of data as knobs: what a trial trains on, as plain values that can be hashed and stored.

Nothing here imports torch; `load` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from undertow.data._datasets import Dataset, Draws
    from undertow.data._text import Windows


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes:
        data: digits, fashion-mnist, mnist-5k or cifar10.
        data_root: Folder of a dataset that you have.
        train_size: Training images; None for all.
        image_size: Side after averaging; None as they are.

    Raises:
        ValueError: a size below 1.
    """

    data: str = "digits"
    data_root: str | None = None
    train_size: int | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        """Hold the sizes against their bounds."""
        _check_sizes(train_size=self.train_size, image_size=self.image_size)

    def load(self, **more: Any) -> Dataset:
        """The images, as `undertow.data.load` gives them; `more` are its other arguments."""
        from undertow.data._load import load

        sizes = {"train_size": self.train_size, "image_size": self.image_size}
        return load(self.data, root=self.data_root, **(sizes | more))

    def check(self) -> None:
        """See that the images can be loaded, before anything is begun for them; without torch.

        Raises:
            ValueError: an unknown name, a size that they do not have, or a damaged file.
            FileNotFoundError: they are not there, and could not be downloaded.
        """
        from undertow.data._files import read_images
        from undertow.data._raw import check_side, check_subset

        raw = read_images(self.data, self.data_root)
        images, labels = raw.train
        available = len(labels) if raw.test is not None else len(labels) * 4 // 5
        check_subset("train_size", self.train_size, int(labels.max()) + 1, available)
        check_side(self.image_size, images.shape[-1])

    def draw(self, seeds: Sequence[int], **more: Any) -> Draws:
        """A split a seed, as `undertow.data.draw` gives them; `more` are its other arguments."""
        from undertow.data._load import draw

        sizes = {"train_size": self.train_size, "image_size": self.image_size}
        return draw(self.data, seeds=seeds, root=self.data_root, **(sizes | more))


@dataclass(frozen=True)
class Text:
    """Windows of a text, character by character.

    Attributes:
        text: python-docs, python-code or austen.
        text_root: Folder of a text that you have.
        windows: Training windows; None for all.
        context: Characters in a window.

    Raises:
        ValueError: a size below 1.
    """

    text: str = "python-docs"
    text_root: str | None = None
    windows: int | None = None
    context: int = 32

    def __post_init__(self) -> None:
        """Hold the sizes against their bounds."""
        _check_sizes(windows=self.windows, context=self.context)

    def load(self, **more: Any) -> Windows:
        """The windows, as `undertow.data.load_text` gives them; `more` are its other arguments."""
        from undertow.data._text import load_text

        sizes = {"context": self.context, "train_size": self.windows}
        return load_text(self.text, root=self.text_root, **(sizes | more))

    def check(self) -> None:
        """See that the windows can be loaded. Raises as `Images.check` does."""
        from undertow.data._files import read_text
        from undertow.data._raw import check_context, check_windows

        text, _ = read_text(self.text, self.text_root)
        boundary = check_context(self.context, len(text))
        check_windows("train_size", self.windows, self.context, boundary)


def _check_sizes(**sizes: int | None) -> None:
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
