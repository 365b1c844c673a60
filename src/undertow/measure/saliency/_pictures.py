"""Pictures of inputs and of what masks keep of them, and curves, as altair charts."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

if TYPE_CHECKING:
    import polars as pl

_SIDE = 84  # of a picture on the page, in its pixels
_LINE = 14  # of text below it


@dataclass(frozen=True)
class Picture:
    """An image in a grid.

    Attributes:
        row, column: where it stands, and what that is called.
        pixels: `[3, h, w]` in 0 to 255.
        caption: stands below it.
    """

    row: str
    column: str
    pixels: UInt8[Tensor, "3 h w"]
    caption: str


def grid(pictures: Sequence[Picture]) -> Any:
    """Pictures in rows and columns, in the order of their first appearance."""
    import altair as alt
    import polars as pl

    rows = list(dict.fromkeys(picture.row for picture in pictures))
    columns = list(dict.fromkeys(picture.column for picture in pictures))
    frame = pl.DataFrame(
        {
            "row": [picture.row for picture in pictures],
            "column": [picture.column for picture in pictures],
            "url": [_url(picture.pixels) for picture in pictures],
            "caption": [picture.caption for picture in pictures],
        }
    )
    quiet: dict[str, Any] = {"title": None, "domain": False, "ticks": False}
    across = alt.X("column:N", sort=columns, axis=alt.Axis(orient="top", labelAngle=0, **quiet))
    down = alt.Y("row:N", sort=rows, axis=alt.Axis(**quiet))
    base = alt.Chart(frame).encode(across, down)
    drawn = base.mark_image(width=_SIDE, height=_SIDE, yOffset=-_LINE / 2).encode(url="url:N")
    text = base.mark_text(yOffset=_SIDE / 2 + 2, fontSize=10).encode(text="caption:N")
    size = {"width": (_SIDE + 40) * len(columns), "height": (_SIDE + 2 * _LINE) * len(rows)}
    return alt.layer(drawn, text).properties(**size)


def shown_input(image: Float[Tensor, "channels h w"], low: float, high: float) -> Tensor:
    """An image between two values as colours, or greys unless it has three channels."""
    scaled = ((image.double() - low) / ((high - low) or 1.0)).clamp(0, 1)
    if len(image) != 3:
        scaled = scaled.mean(0, keepdim=True)
    return (scaled * 255).round().to(torch.uint8).expand(3, -1, -1)


def shown_map(values: Float[Tensor, "h w"]) -> Tensor:
    """A map from its least value in black to its greatest in white."""
    return shown_input(values[None], float(values.min()), float(values.max()))


def shown_mask(values: Float[Tensor, "h w"]) -> Tensor:
    """A mask from 0 in black to 1 in white."""
    return shown_input(values[None], 0.0, 1.0)


def curves_chart(frame: pl.DataFrame) -> Any:
    """Lines of columns share, probability, method and label."""
    import altair as alt

    return (
        alt.Chart(frame)
        .mark_line()
        .encode(
            alt.X("share:Q", title="share of the input that is kept"),
            alt.Y("probability:Q", title="mean probability of the label"),
            alt.Color("method:N", sort=None, legend=_legend()),
            alt.StrokeDash("label:N", sort=None, legend=_legend()),
        )
        .properties(width=520, height=280)
    )


def _legend() -> Any:
    import altair as alt

    return alt.Legend(orient="top", title=None, labelLimit=0, columns=4)


def _url(pixels: UInt8[Tensor, "3 h w"]) -> str:
    """The image as a PNG within an address."""
    _, height, width = pixels.shape
    lines = pixels.movedim(0, -1).contiguous().flatten(1)
    raw = b"".join(b"\0" + bytes(line.tolist()) for line in lines)

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, red green blue
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + parts).decode()
