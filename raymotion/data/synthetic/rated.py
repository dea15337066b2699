"""A small GAPED and a small OASIS: pictures whose colour tells valence and whose pattern arousal.

Both have the oddities of the real sets: pictures that are not there, one picture under two names, files of another
format than they are called, bare CR line ends, blanks at the end of names.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from raymotion import storage
from raymotion.data.readers.gaped import TYPES
from raymotion.data.readers.oasis import CSV_NAME, IMAGES_NAME
from raymotion.data.readers.reader import report_line
from raymotion.data.synthetic.collections import claim_dataset, jpeg
from raymotion.data.synthetic.patterns import draw_feeling
from raymotion.errors import InputError
from raymotion.folders.lock import one_writer_of

# GAPED's pictures of each type, mean and deviation of their valence, and mean arousal.
_GAPED = {
    "A": (124, 25, 12, 60), "H": (105, 25, 12, 60), "N": (89, 54, 6, 25), "P": (121, 87, 6, 25),
    "Sn": (133, 38, 12, 55), "Sp": (158, 38, 12, 55),
}  # fmt: skip
_CATEGORIES = ("Animal", "Object", "Person", "Scenery")
# Shares of the pictures; at least one of each.
GONE_SHARE, TWICE_SHARE, PNG_SHARE, BLANK_SHARE = 0.01, 0.01, 0.02, 0.02


@dataclass
class SyntheticRatings:
    """What was written: pictures, how many are not there, are under two names or in another format, and the files."""

    images: int = 0
    gone: int = 0
    twice: int = 0
    pngs: int = 0
    files: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What `raymotion data synth` prints."""
        odd = [f"{self.gone:,} not there", f"{self.twice:,} under two names", f"{self.pngs:,} PNG files called .jpg"]
        told = [text for text, count in zip(odd, (self.gone, self.twice, self.pngs), strict=True) if count]
        return [
            report_line("images", self.images),
            report_line("of them", ", ".join(told)),
            report_line("files", ", ".join(self.files)),
        ]


@one_writer_of("out")
def write_gaped(out: storage.PathLike, images: int, seed: int = 0, *, size: int = 64) -> SyntheticRatings:
    """Writes pictures as `A/A001.bmp`, and the files of ratings with and without standard deviations, which say .jpg.

    Args:
        out: folder or s3:// address.
        images: how many; types have their shares of GAPED's 730.
        seed: same seed, same data.
        size: width and height of the pictures in pixels.

    Raises:
        InputError: a number out of range, or a folder that holds something else.
    """
    _check(images, size)
    forms = {kind: (f"{kind}.txt", f"{kind}_with SD.txt") for kind in TYPES}
    files = [name for form in forms.values() for name in form]
    claim_dataset(out, "gaped", {"images": images, "seed": seed, "size": size}, folders=list(TYPES), files=files)
    total = sum(count for count, *_ in _GAPED.values())
    ends = np.cumsum([round(images * count / total) for count, *_ in _GAPED.values()])
    ends[-1] = images
    kinds = np.repeat(np.array(list(_GAPED), dtype=object), np.diff(ends, prepend=0))
    rng = np.random.default_rng(seed)
    gone, twice = _chosen(rng, images, GONE_SHARE, TWICE_SHARE)
    report = SyntheticRatings(images, len(gone), 0, 0, files)
    rows: dict[str, list[str]] = {name: [] for name in files}
    number, before = 0, b""
    for i, kind in enumerate(kinds):
        number = 1 if i == 0 or kind != kinds[i - 1] else number + 1
        own = np.random.default_rng([seed, i])
        _, mean, spread, excitement = _GAPED[kind]
        valence, arousal = (float(np.clip(own.normal(*at), 0.5, 99.5)) for at in ((mean, spread), (excitement, 12)))
        deviations = own.uniform(5, 31, 2)
        content = io.BytesIO()
        draw_feeling(valence / 100, arousal / 100, own, size, subject=list(_GAPED).index(kind)).save(content, "BMP")
        name, data = f"{kind}{number:03d}", content.getvalue()
        if i in twice and number > 1:
            data, report.twice = before, report.twice + 1
        if i not in gone:
            storage.write_bytes(storage.join(out, kind, f"{name}.bmp"), data)
        before = data
        norms = "".join(f"\t{own.uniform(5, 95):.3f}" for _ in range(2)) if kind in ("A", "H") else ""
        plain, with_sd = forms[kind]
        rows[plain].append(f"{name}.jpg\t{valence:.3f}\t{arousal:.3f}{norms}\t")
        rows[with_sd].append(f"{name}.jpg\t{valence:.3f}\t{deviations[0]:.3f}\t{arousal:.3f}\t{deviations[1]:.3f}")
    for kind, (plain, with_sd) in forms.items():
        norms = "\tInternal norms\tExternal norms" if kind in ("A", "H") else ""
        heads = {plain: f"file\tValence\tArousal{norms}\t", with_sd: "file\tValence\tSD Valence\tArousal\tSD Arousal"}
        for name, head in heads.items():
            storage.write_text(storage.join(out, name), "\r\n".join([head, *rows[name], "", ""]))
    return report


@one_writer_of("out")
def write_oasis(out: storage.PathLike, images: int, seed: int = 0, *, size: int = 64) -> SyntheticRatings:
    """Writes `OASIS.csv` and `images/`; three to five pictures are of one theme, and look and feel nearly the same.

    Args:
        out, images, seed, size: as in `write_gaped`.

    Raises:
        InputError: as in `write_gaped`.
    """
    _check(images, size)
    claim_dataset(out, "oasis", {"images": images, "seed": seed, "size": size}, folders=[IMAGES_NAME], files=[CSV_NAME])
    rng = np.random.default_rng(seed)
    gone, pngs, blanks = _chosen(rng, images, GONE_SHARE, PNG_SHARE, BLANK_SHARE)
    report = SyntheticRatings(images, len(gone), 0, len(pngs), [CSV_NAME, f"{IMAGES_NAME}/"])
    lines = [",Theme,Category,Source,Valence_mean,Valence_SD,Valence_N,Arousal_mean,Arousal_SD,Arousal_N"]
    theme, left, position, feeling = -1, 0, 0, np.zeros(2)
    for i in range(images):
        if not left:
            theme, position = theme + 1, 0
            left = int(np.random.default_rng([seed, 1, theme]).integers(3, 6))
            feeling = np.random.default_rng([seed, 2, theme]).beta([1.6, 2.0], [1.4, 2.4])
        position, left = position + 1, left - 1
        own = np.random.default_rng([seed, 3, i])
        valence, arousal = (float(value) for value in 1 + 6 * np.clip(feeling + own.normal(0, 0.06, 2), 0.02, 0.98))
        # The angle and the shift of the theme's pattern, too.
        picture = draw_feeling(
            (valence - 1) / 6, (arousal - 1) / 6, np.random.default_rng([seed, 4, theme]), size, theme
        )
        name = f"Theme {_letters(theme)} {position}"
        if i not in gone:
            data = _png(picture) if i in pngs else jpeg(picture)
            storage.write_bytes(storage.join(out, IMAGES_NAME, f"{name}.jpg"), data)
        deviations, raters = own.uniform(0.8, 1.9, 2), own.integers(90, 110, 2)
        lines.append(
            f"I{i + 1},{name}{' ' if i in blanks else ''},{_CATEGORIES[theme % 4]},raymotion,"
            f"{valence:.6f},{deviations[0]:.6f},{raters[0]},{arousal:.6f},{deviations[1]:.6f},{raters[1]}"
        )
    storage.write_bytes(storage.join(out, CSV_NAME), "\r".join([*lines, ""]).encode())
    return report


def _check(images: int, size: int) -> None:
    if not 30 <= images <= 100_000:
        raise InputError(f"{images} images cannot be made", remedy="Choose from 30 to 100,000.")
    if not 8 <= size <= 1024:
        raise InputError(f"pictures of {size} pixels cannot be made", remedy="Choose from 8 to 1,024.")


def _chosen(rng: np.random.Generator, count: int, *shares: float) -> list[set[int]]:
    """Returns disjoint sets of numbers below `count`, of these shares and with at least one each."""
    order = [int(i) for i in rng.permutation(count)]
    return [{order.pop() for _ in range(max(1, round(share * count)))} for share in shares]


def _letters(number: int) -> str:
    """Names a theme: A, B ... Z, AA ... A number at its end would be that of a picture."""
    text = ""
    while number >= 0:
        text, number = chr(ord("A") + number % 26) + text, number // 26 - 1
    return text


def _png(picture: Image.Image) -> bytes:
    """Returns a picture as the bytes of a PNG file with transparency."""
    data = io.BytesIO()
    picture.convert("RGBA").save(data, "PNG")
    return data.getvalue()
