"""The grid of pictures that the pages share: a card for each sample, with its captions and its highest emotions."""

from __future__ import annotations

import io
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlencode

from PIL import Image

from raymotion import storage
from raymotion.batch.label_dataset import LabelledRow
from raymotion.data.images import decode as images
from raymotion.data.images.marks import PictureMark, mark_of
from raymotion.errors import AccessDenied, AddressRefused
from raymotion.report.plots import data_address

THUMBNAIL = (320, 240)
CAPTIONS_SHOWN = 3


@dataclass(frozen=True)
class Card:
    """A sample as the template cards.html.j2 shows it.

    Attributes:
        why: why it is on the page.
        picture: data URL, or None with `problem`.
        bars: emotion, probability, and whether it is ticked.
        lines: sentences below.
    """

    sample_id: str
    why: str
    picture: str | None
    problem: str
    alt: str
    captions: list[str]
    more_captions: int
    bars: list[tuple[str, float, bool]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def make_card(
    row: LabelledRow, why: str, bars: Sequence[tuple[str, float, bool]] = (), lines: Sequence[str] = ()
) -> Card:
    """Makes the card of a sample; its picture is read here."""
    picture, problem = thumbnail(row.image_uri, row.mark)
    return Card(
        sample_id=row.sample_id,
        why=why,
        picture=picture,
        problem=problem,
        alt=row.captions[0] if row.captions else f"image {row.sample_id}",
        captions=row.captions[:CAPTIONS_SHOWN],
        more_captions=max(0, len(row.captions) - CAPTIONS_SHOWN),
        bars=list(bars),
        lines=list(lines),
    )


def thumbnail(uri: str | None, mark: PictureMark | None = None) -> tuple[str | None, str]:
    """Returns the picture as a data URL, or None and the reason.

    Args:
        mark: of the picture that was labelled. If the file at its address has changed, it is not shown.
    """
    data, problem = small_jpeg(uri, mark, THUMBNAIL)
    return (None, problem) if data is None else (data_address(data, "jpeg"), "")


def small_jpeg(uri: str | None, mark: PictureMark | None, size: tuple[int, int]) -> tuple[bytes | None, str]:
    """Returns the picture as a JPEG of at most this width and height, or None and the reason."""
    if not uri:
        return None, "no image"
    try:
        data, pixels = images.read_picture(uri, min_side=min(size), damaged="keep")
    except images.ImageError as error:
        return None, f"no image: {error.reason}"
    except AccessDenied:
        return None, "no image: access denied"
    except AddressRefused:
        return None, "no image: this kind of address is not read"
    if mark is not None and mark_of(data) != mark:
        return None, "not shown: another picture stands at this address now"
    image = Image.fromarray(pixels)
    image.thumbnail(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue(), ""


@dataclass(frozen=True)
class ReviewLink:
    """Makes the links from a page to the pictures behind its numbers, in a folder of `raymotion review`.

    Args:
        page: the page's file.
        folder: the review folder.
        compared: whether it holds people's labels too.
    """

    page: str
    folder: str
    compared: bool = False

    def __call__(self, view: str = "all", emotion: str | None = None, order: str = "file") -> str:
        """Returns the address of the pictures of a view, of an emotion, in an order, as on the review page."""
        folder, here = storage.absolute(self.folder), storage.parent(storage.absolute(self.page))
        if storage.is_remote(folder) == storage.is_remote(here):
            folder = posixpath.relpath(folder, here)
        chosen = {"view": view, **({} if emotion is None else {"emotion": emotion}), "order": order}
        return f"{folder}/index.html#{urlencode(chosen)}"
