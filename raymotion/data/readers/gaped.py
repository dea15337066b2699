"""Reads GAPED (Dan-Glauser and Scherer 2011): 730 pictures with valence and arousal on a scale of 0 to 100.

Each type of picture has a file of ratings, tab-separated, of which there are two forms: `A.txt` and `A_with SD.txt`. It
names `A001.jpg`, and the file is `A/A001.bmp`. Pictures of mistreated animals and of violated human rights also have
ratings of internal and external norms.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from raymotion import storage
from raymotion.config import Folder, Metavar
from raymotion.data.readers.ratings import RatedPicture, RatingsReport, pictures_in, table_of_ratings
from raymotion.data.readers.reader import Reader, noted, report_line
from raymotion.data.readers.table import parse_number
from raymotion.data.splits import split_by_shares
from raymotion.data.text_rows import lines_of, shown
from raymotion.errors import InputError, located
from raymotion.vocabulary import VALENCE_3

SCALE = (0.0, 100.0)
# Type of picture, by the letters that its name begins with: its name here, and its category.
TYPES: Mapping[str, tuple[str, str]] = {
    "A": ("animal", "negative"),
    "H": ("human", "negative"),
    "N": ("neutral", "neutral"),
    "P": ("positive", "positive"),
    "Sn": ("snake", "negative"),
    "Sp": ("spider", "negative"),
}
_FILE = re.compile(r"(a|h|n|p|sn|sp)([ _-]*with[ _-]*sd)?\.txt", re.IGNORECASE)
_PICTURE = re.compile(r"(a|h|n|p|sn|sp)\d", re.IGNORECASE)
_SD = re.compile(r"\b(sds?|std|standard deviation)\b", re.IGNORECASE)
# Ratings of the two forms that differ by rounding alone.
_ROUNDING = 0.51


@dataclass
class GapedReport(RatingsReport):
    """Counts of `GapedReader`.

    Attributes:
        types: rows of each type. absent: types without a file of ratings.
    """

    types: dict[str, int] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    with_norms: int = noted("rows have ratings of norms, for which a sample table has no place")
    different: int = noted("rows have other numbers in the file without SDs: those of the file with SDs are kept")
    without_sd: int = noted("rows have no standard deviations")

    def lines(self) -> list[str]:
        """Returns lines for rows, types and each dimension, then the notes."""
        rows, *rest = super().lines()
        return [rows, report_line("types", ", ".join(f"{name} {count:,}" for name, count in self.types.items())), *rest]

    def notes(self) -> list[str]:
        """Returns a text for each kind of data that was left out or is uncertain."""
        absent = [f"there is no file of ratings of the types {', '.join(self.absent)}"] if self.absent else []
        return [*absent, *super().notes()]


class GapedReader(Reader):
    """GAPED: valence and arousal from 0 to 100, with standard deviations where FOLDER has the files "... with SD.txt".

    FOLDER holds the files of ratings (A.txt, H.txt, N.txt, P.txt, Sn.txt, Sp.txt), and the pictures. Where a type has
    both files, the one with standard deviations counts, and the other one adds pictures that it lacks.

    \b
    Example:
      raymotion data prepare gaped GAPED --out gaped.parquet
      raymotion data prepare gaped GAPED --categories --out gaped.parquet
    """

    path: Folder
    images: Folder | None = Field(None, description="Folder of the pictures. Default: FOLDER.")
    categories: bool = Field(
        False, description="Label each picture negative, neutral or positive, by its type (not by its valence)."
    )
    content_hash: bool = Field(True, description="Do not look for pictures with the same content, which are one group.")
    val_fraction: Annotated[float, Metavar("SHARE")] = Field(0.1, description="Share of pictures for validation.")
    test_fraction: Annotated[float, Metavar("SHARE")] = Field(0.1, description="Share of pictures for the test.")
    no_split: bool = Field(False, description="Leave the split column empty.")
    seed: int = Field(0, description="Same seed, same result.")

    def read(self) -> tuple[pa.Table, GapedReport]:
        """The pictures in the order of the types and their files; `source` is the type, such as gaped/animal.

        Raises:
            InputError: names the file, the line and the reason.
        """
        report = GapedReport()
        rated: list[RatedPicture] = []
        files = self._files()
        for kind in TYPES:
            plain, with_sd = files.get((kind, False)), files.get((kind, True))
            if plain is None and with_sd is None:
                report.absent.append(kind)
                continue
            rated += self._of_kind(kind, plain, with_sd, report)
        pictures = pictures_in(self.images or self.path)
        report.content = pictures
        table = table_of_ratings(
            rated,
            pictures,
            report,
            prefix="gaped",
            scale=SCALE,
            where=self.path,
            content_hash=self.content_hash,
            vocabulary=VALENCE_3 if self.categories else None,
        )
        sources = Counter(table.column("source").to_pylist())
        report.types = {name: sources[f"gaped/{name}"] for name, _ in TYPES.values() if sources[f"gaped/{name}"]}
        report.without_sd = table.column("valence_sd").null_count if "valence_sd" in table.column_names else 0
        # The files of ratings are no surprise among the pictures.
        report.content.others[".txt"] -= len(files)
        report.content.others += Counter()
        if not self.no_split:
            table, report.few = split_by_shares(
                table, val_fraction=self.val_fraction, test_fraction=self.test_fraction, seed=self.seed
            )
        return table, report

    def _files(self) -> dict[tuple[str, bool], str]:
        """Returns the files of ratings by type and by whether they have SDs, in the folder or in a folder of it."""
        if not storage.is_dir(self.path):
            raise InputError("no such folder", path=self.path, remedy="Give the folder of the data set.")
        kinds = {kind.casefold(): kind for kind in TYPES}
        found: dict[tuple[str, bool], str] = {}
        base = storage.absolute(self.path)
        for folder in ["", *storage.list_entries(base)]:
            for name in storage.list_names(storage.child(base, folder)) if _is_folder(base, folder) else ():
                match = _FILE.fullmatch(name)
                if match is None:
                    continue
                key, own = (kinds[match[1].casefold()], match[2] is not None), posixpath.join(folder, name)
                path = storage.child(base, own)
                if key in found and storage.read_bytes(found[key]) != storage.read_bytes(path):
                    raise InputError(
                        f"holds other ratings than {found[key]}, and both are of the type {key[0]}",
                        path=path,
                        remedy="Keep one of them.",
                    )
                found.setdefault(key, path)
        if not found:
            raise InputError(
                "holds no file of ratings", path=self.path, remedy="They are A.txt, H.txt ... or A_with SD.txt ..."
            )
        return found

    def _of_kind(
        self, kind: str, plain: str | None, with_sd: str | None, report: GapedReport
    ) -> Iterator[RatedPicture]:
        """Yields the rows of one type: those with SDs first, then those that only the other file has."""
        name, category = TYPES[kind]
        seen: dict[str, Mapping[str, float | None]] = {}
        normed: set[str] = set()
        for path in (with_sd, plain):
            own: dict[str, Mapping[str, float | None]] = {}
            for line, picture, numbers, has_norms in [] if path is None else _rows(path, kind):
                stem = posixpath.splitext(picture)[0].casefold()
                if has_norms:
                    normed.add(stem)
                own[stem] = numbers
                if stem in seen:
                    report.different += any(
                        before is not None and value is not None and abs(before - value) > _ROUNDING
                        for before, value in ((seen[stem].get(what), value) for what, value in numbers.items())
                    )
                    continue
                yield RatedPicture(
                    picture,
                    dict(numbers),
                    f"gaped/{name}",
                    {"path": path, "line": line},
                    labels=[category] if self.categories else None,
                )
            seen |= own
        report.with_norms += len(normed)


def _is_folder(base: str, name: str) -> bool:
    return not name or storage.is_dir(storage.child(base, name))


def _rows(path: str, kind: str) -> Iterator[tuple[int, str, dict[str, float | None], bool]]:
    """Yields line, picture, numbers and whether there are ratings of norms, of each row of a file of ratings."""
    places: list[str | None] | None = None
    text = storage.read_text(path)
    if "\0" in text:
        raise InputError("holds NUL characters", path=path, remedy="Is it UTF-16, or not text? Save it as UTF-8.")
    for line, content in enumerate(lines_of(text), start=1):
        cells = [cell.strip().strip('"') for cell in content.split("\t")]
        while cells and not cells[-1]:
            cells.pop()
        if not cells:
            continue
        with located(path, line=line):
            if places is None:
                places = _columns(cells)
                continue
            if len(cells) > len(places):
                raise InputError(f"has {len(cells)} cells, and the header has {len(places)}")
            picture = cells[0]
            match = _PICTURE.match(posixpath.basename(picture.replace("\\", "/")))
            if match is None or match[1].casefold() != kind.casefold():
                raise InputError(f"names {shown(picture)[:60]!r}, which is no picture of the type {kind}")
            found = {
                what: parse_number(cell, what, SCALE[1])
                for what, cell in zip(places, cells, strict=False)
                if what is not None
            }
        norms = [found.pop(what, None) for what in ("internal norms", "external norms")]
        yield line, picture, found, any(value is not None for value in norms)
    if places is None:
        raise InputError("is empty", path=path)


def _columns(header: Sequence[str]) -> list[str | None]:
    """Returns what each column is; None for the first, which names the picture.

    Raises:
        InputError: there is no valence or arousal, a column is unknown, or there are two of a kind.
    """
    places: list[str | None] = [None]
    for cell in header[1:]:
        text = cell.casefold().replace("_", " ")
        what: Any = next((name for name in ("valence", "arousal") if name in text), None)
        norms = next((f"{name} norms" for name in ("internal", "external") if name[:6] in text), None)
        if _SD.search(text):
            # "SD" alone is that of the column before.
            last = places[-1]
            base = what or (norms if norms else last)
            what = f"{base}_sd" if base in ("valence", "arousal") else None
            if what is None and base is None:
                raise InputError(f"the column {shown(cell)!r} is the deviation of nothing")
        elif norms is not None:
            what = norms
        elif what is None:
            raise InputError(
                f"the column {shown(cell)!r} is not known",
                remedy="The header names the picture, Valence, Arousal, Internal norms, External norms, and their SDs.",
            )
        if what is not None and what in places:
            raise InputError(f"has the column {what} twice")
        places.append(what)
    for name in ("valence", "arousal"):
        if name not in places:
            raise InputError(f"has no column {name} in its header", remedy="The first line names the columns.")
    return places
