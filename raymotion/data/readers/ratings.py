"""Reads any table of pictures with ratings of valence, arousal or dominance, in columns that options name.

What all sets of ratings have in common is here, and the readers of OASIS and GAPED use it: names that do not quite
match the files, and groups of pictures that show the same.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from raymotion import storage
from raymotion.config import File, Folder, Metavar
from raymotion.data.images.files import EXTENSIONS, FileNames, FolderContent, list_pictures
from raymotion.data.readers.reader import Reader, Report, noted, report_line
from raymotion.data.readers.table import IMAGE_NAMES, parse_number, parse_scale
from raymotion.data.records import metadata_of, records_of
from raymotion.data.same_pictures import content_digests, joined_groups
from raymotion.data.samples import DIMENSIONS, NUMBERS, SCALE_SLACK, table_from_rows
from raymotion.data.splits import split_by_shares
from raymotion.data.text_rows import shown
from raymotion.errors import InputError, located
from raymotion.vocabulary import Vocabulary

Column = Annotated[str, Metavar("NAME")]
NARROW = 0.25  # a smaller part of the scale than this is hardly all that people answered
TELLING = 10  # fewer values may be alike by chance


@dataclass
class RatingsReport(Report):
    """Counts of a reader of ratings.

    Attributes:
        groups: number of groups, which no split divides.
        numbers: for each dimension, lowest, mean and highest value. scale: lowest and highest possible value.
        missing_names: the first few names without a picture.
        narrow: messages about dimensions that span a small part of the scale.
        few: message about an empty split and the reason.
    """

    groups: int = 0
    numbers: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    scale: tuple[float, float] = (0.0, 1.0)
    missing: int = 0
    missing_names: list[str] = field(default_factory=list)
    narrow: list[str] = field(default_factory=list)
    few: str | None = None
    ambiguous: int = noted("of them could be several files")
    unused_pictures: int = noted("pictures in the folder that no row names", "picture in the folder that no row names")
    unrated: int = noted("rows left out, which have no rating", "row left out, which has no rating")
    repeated: int = noted(
        "rows left out, which say again what an earlier row says", "row left out, which says again what another says"
    )
    same_content: int = noted(
        "pictures have the content of another one: they are in its group",
        "picture has the content of another one: it is in its group",
    )
    not_compared: int = noted(
        "pictures cannot be read: their content was not compared",
        "picture cannot be read: its content was not compared",
    )
    ungrouped: int = noted(
        "names without the --group-pattern: each is a group of its own",
        "name without the --group-pattern: it is a group of its own",
    )

    def lines(self) -> list[str]:
        """Returns lines for rows, groups and each dimension, then the notes."""
        low, high = self.scale
        told = [
            report_line(name, f"{least:.2f} to {most:.2f}, mean {mean:.2f}, on a scale of {low:g} to {high:g}")
            for name, (least, mean, most) in self.numbers.items()
        ]
        return [report_line("rows", self.rows), report_line("groups", self.groups), *told, *self.note_lines()]

    def notes(self) -> list[str]:
        """Returns a text for each kind of data that was left out or is uncertain."""
        names = ", ".join(map(shown, self.missing_names)) + (" ..." if self.missing > len(self.missing_names) else "")
        what, are = ("row has", "is") if self.missing == 1 else ("rows have", "are")
        gone = [f"{self.missing:,} {what} no picture in the folder, and {are} left out ({names})"]
        few = [self.few] if self.few else []
        return [*(gone if self.missing else []), *super().notes(), *self.narrow, *few]


@dataclass
class RatedPicture:
    """One row of a set of ratings.

    Attributes:
        name: the picture as the file names it. place: where the row is, as the arguments of `errors.located`.
        numbers: valence, arousal_sd ...; None where a cell is empty.
        group: pictures with the same text are one group; None: the picture is one by itself.
        source: the data set, and perhaps the kind of picture: `oasis/person`. labels: None: not annotated.
    """

    name: str
    numbers: dict[str, float | None]
    source: str
    place: dict[str, Any]
    group: str | None = None
    labels: list[str] | None = None


def table_of_ratings(
    rated: Sequence[RatedPicture],
    pictures: FolderContent,
    report: RatingsReport,
    *,
    prefix: str,
    scale: tuple[float, float],
    where: object,
    content_hash: bool,
    vocabulary: Vocabulary | None = None,
) -> pa.Table:
    """Returns a sample table without splits of the pictures that are there, in the order of `rated`.

    A picture that is named again must have the same numbers, group and source, and is left out. Pictures with the same
    content are joined into one group.

    Args:
        prefix: of the ids. content_hash: whether to read the pictures for that.

    Raises:
        InputError: a number is off the scale, a picture has two ratings, or no picture is there.
    """
    names = FileNames(pictures.pictures, pictures.base, pictures.aliases)
    found: dict[str, RatedPicture] = {}
    for own in rated:
        with located(**own.place):
            _check_numbers(own.numbers, scale)
            if all(own.numbers.get(name) is None for name in DIMENSIONS):
                report.unrated += 1
                continue
            file = names.find_alike(own.name)
            if file is None:
                report.missing += 1
                report.ambiguous += own.name in names.ambiguous
                report.missing_names = [*report.missing_names, own.name.strip()][:3]
                continue
            before = found.setdefault(file, own)
            if before is own:
                continue
            at = ", ".join(f"{key} {value}" for key, value in before.place.items() if key != "path")
            if before.numbers != own.numbers:
                raise InputError(
                    f"rates {shown(own.name)!r} another time, with other numbers ({at} has the first)",
                    remedy="Keep one row for each picture: the means of its ratings.",
                )
            for what in ("group", "source"):
                first, other = getattr(before, what), getattr(own, what)
                if first != other:
                    raise InputError(
                        f"names {shown(own.name)!r} another time, with the {what} {_named(other)} ({at} has "
                        f"{_named(first)})",
                        remedy="Keep one row for each picture.",
                    )
            report.repeated += 1
    if not found:
        raise InputError(
            f"none of the {len(rated):,} rows has a picture in {pictures.base}"
            + (f": {shown(report.missing_names[0])!r}, for example, is not there" if report.missing_names else ""),
            path=where,
            remedy="Check the folder of the pictures, and the column of their names.",
        )
    groups = [f"{prefix}:{own.group or file}" for file, own in found.items()]
    if content_hash:
        contents = content_digests([pictures.address(file) for file in found])
        times = Counter(contents)
        report.not_compared = times.pop(None, 0)
        report.same_content = sum(times.values()) - len(times)
        groups = joined_groups(groups, contents)
    rows = [
        {
            "sample_id": f"{prefix}:{file}",
            "group_id": group,
            "image_uri": pictures.address(file),
            **own.numbers,
            "labels": own.labels,
            "source": own.source,
        }
        for (file, own), group in zip(found.items(), groups, strict=True)
    ]
    report.unused_pictures = len(pictures.pictures) - len(found)
    report.rows, report.groups, report.scale = len(rows), len(set(groups)), scale
    for name in DIMENSIONS:
        values = [value for own in found.values() if (value := own.numbers.get(name)) is not None]
        if values:
            least, most = min(values), max(values)
            report.numbers[name] = (least, sum(values) / len(values), most)
            if len(values) >= TELLING and most - least < NARROW * (scale[1] - scale[0]):
                report.narrow.append(
                    f"{name} lies between {least:.2f} and {most:.2f}, of a scale of {scale[0]:g} to {scale[1]:g}: is "
                    "that scale right?"
                )
    return table_from_rows(rows, vocabulary, scale=scale, where=where)


def _named(text: str | None) -> str:
    return "none" if text is None else repr(shown(text))


def _check_numbers(numbers: Mapping[str, float | None], scale: tuple[float, float]) -> None:
    low, high = scale
    for name, value in numbers.items():
        if value is None:
            continue
        if name in DIMENSIONS and not low - SCALE_SLACK <= value <= high + SCALE_SLACK:
            raise InputError(
                f"{name} is {value:g}, and the scale is {low:g} to {high:g}",
                remedy="Correct the rating or the scale.",
            )
        if name not in DIMENSIONS and value < 0:
            raise InputError(f"{name} is {value:g}, less than 0")


class RatingsReader(Reader):
    """Any table of ratings: a picture a row, with valence, arousal or dominance in columns that options name.

    FILE is a csv, tsv, JSON or Parquet file. Pictures are found in --images by exactly the name that the table gives,
    or by a name that differs in blanks at the end, in case or in the extension alone.

    Pictures that show the same have to be one group, or a model is tested on what it has learned by heart:
    --group-column and --group-pattern say which. Each split has its share of every tenth of the valence scale.

    \b
    Example:
      raymotion data prepare ratings norms.csv --images pictures --image-column picture --valence-column val_mean \\
          --valence-sd-column val_sd --scale 1,9 --out norms.parquet
      raymotion data prepare ratings norms.csv --images pictures --valence-column valence --scale 1,9 \\
          --group-pattern '(.*?)[ _]*\\d+$' --out norms.parquet
    """

    path: File
    images: Folder | None = Field(None, description="Folder of the pictures. Default: the folder of FILE.")
    image_column: Column | None = Field(
        None, description="Column of picture names. Default: by name (image, file, path ...)."
    )
    valence_column: Column | None = Field(None, description="Column of mean valence.")
    arousal_column: Column | None = Field(None, description="Column of mean arousal.")
    dominance_column: Column | None = Field(None, description="Column of mean dominance.")
    valence_sd_column: Column | None = Field(None, description="Column of the standard deviation of valence.")
    arousal_sd_column: Column | None = Field(None, description="Column of the standard deviation of arousal.")
    dominance_sd_column: Column | None = Field(None, description="Column of the standard deviation of dominance.")
    scale: Annotated[str, Metavar("LOW,HIGH")] | None = Field(
        None, description="Lowest and highest possible rating: 1,9. Always needed: the numbers do not tell."
    )
    group_column: Column | None = Field(
        None, description="Column of themes or scenes, which no split divides. Default: the name of the picture."
    )
    group_pattern: Annotated[str, Metavar("REGEX")] | None = Field(
        None,
        description="Part of the group column, or of the picture's name without extension, that names the group: the "
        "first (...) of it, or all that matches. '(.*?) *\\d+$' makes 'Acorns 1' and 'Acorns 2' one group.",
    )
    source_column: Column | None = Field(
        None,
        description="Column of categories: `evaluate --holdout-domain source=ratings/person` scores one of them.",
    )
    name: Annotated[str, Metavar("NAME")] = Field("ratings", min_length=1, description="Of the data set, in the ids.")
    content_hash: bool = Field(True, description="Do not look for pictures with the same content, which are one group.")
    val_fraction: Annotated[float, Metavar("SHARE")] = Field(0.1, description="Share of groups for validation.")
    test_fraction: Annotated[float, Metavar("SHARE")] = Field(0.1, description="Share of groups for the test.")
    no_split: bool = Field(False, description="Leave the split column empty.")
    seed: int = Field(0, description="Same seed, same result.")

    def read(self) -> tuple[pa.Table, RatingsReport]:
        """The pictures in the order of the table, with the scale attached.

        Raises:
            InputError: names the file, the line and the reason.
        """
        if self.scale is None:
            raise InputError("the scale of the ratings is not stated", path=self.path, remedy="Give --scale LOW,HIGH.")
        scale = parse_scale(self.scale)
        pattern = _compiled(self.group_pattern)
        report = RatingsReport()
        if storage.is_dir(self.path) and not metadata_of(self.path):
            raise InputError(
                "is a folder, not a table",
                path=self.path,
                remedy="Give the table, and the folder of its pictures with --images.",
            )
        columns, records = records_of(self.path, verbatim=[self.image_column or "", *IMAGE_NAMES])
        image, numbers = self._columns(columns)
        rated = []
        for place, record in records:
            with located(**place):
                name = str(record.get(image) or "")
                if not name.strip():
                    raise InputError(f"{image or 'the first column'} is empty")
                rated.append(
                    RatedPicture(
                        name,
                        {
                            what: parse_number(record.get(column), column, max(map(abs, scale)))
                            for what, column in numbers.items()
                        },
                        self._source(record),
                        place,
                        self._group(name, record, pattern, report),
                    )
                )
        pictures = pictures_in(self.images or storage.parent(storage.absolute(self.path)))
        report.content = pictures
        table = table_of_ratings(
            rated, pictures, report, prefix=self.name, scale=scale, where=self.path, content_hash=self.content_hash
        )
        if not self.no_split:
            table, report.few = split_by_shares(
                table, val_fraction=self.val_fraction, test_fraction=self.test_fraction, seed=self.seed
            )
        return table, report

    def _columns(self, names: Sequence[str]) -> tuple[str, dict[str, str]]:
        """Returns the column of pictures, and those of the numbers by what they are."""
        given = {what: column for what in NUMBERS if (column := getattr(self, f"{what}_column")) is not None}
        if not any(what in given for what in DIMENSIONS):
            raise InputError("no column of ratings is named", path=self.path, remedy="Give --valence-column NAME.")
        for what in given:
            if what not in DIMENSIONS and what.removesuffix("_sd") not in given:
                raise InputError(
                    f"--{what.replace('_', '-')}-column is given without the ratings that it is the deviation of",
                    remedy=f"Give --{what.removesuffix('_sd')}-column, too.",
                )
        usual = {name.strip().casefold(): name for name in names}
        image = self.image_column or next((usual[name] for name in IMAGE_NAMES if name in usual), None)
        if image is None:
            raise InputError(
                "has no column of pictures that is known by its name",
                path=self.path,
                remedy=f"Give --image-column; its columns are {', '.join(map(shown, names))}.",
            )
        for column in (image, *given.values(), self.group_column, self.source_column):
            if column is not None and column not in names:
                raise InputError(
                    f"has no column {column!r}",
                    path=self.path,
                    remedy=f"Its columns are {', '.join(map(shown, names))}.",
                )
        return image, given

    def _source(self, record: Mapping[str, Any]) -> str:
        category = "" if self.source_column is None else str(record.get(self.source_column) or "").strip()
        return f"{self.name}/{category.casefold()}" if category else self.name

    def _group(
        self, name: str, record: Mapping[str, Any], pattern: re.Pattern[str] | None, report: RatingsReport
    ) -> str | None:
        if self.group_column is not None:
            text = str(record.get(self.group_column) or "").strip()
        elif pattern is not None:
            stem, extension = posixpath.splitext(posixpath.basename(name.strip().replace("\\", "/")))
            text = stem if extension.casefold() in EXTENSIONS else stem + extension
        else:
            return None
        if pattern is not None:
            match = pattern.search(text)
            part = match and (match[1] if pattern.groups else match[0])
            report.ungrouped += not part
            text = part or text
        return text.strip().casefold() or None


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    try:
        return None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise InputError(f"--group-pattern {pattern!r} is no regular expression ({error})") from error


def pictures_in(folder: storage.PathLike) -> FolderContent:
    """Lists the pictures of a data set's folder; raises an `InputError` if there is no such folder."""
    if not storage.is_dir(folder):
        raise InputError("no such folder", path=folder, remedy="Give the folder of the pictures.")
    return list_pictures(folder)
