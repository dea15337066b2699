"""Labels that people gave in CVAT, from its XML.

Format: https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/, "CVAT for images 1.1", with the elements of
https://docs.cvat.ai/docs/other/xml_format/: `<image name=...>` with a `<tag label=...>` for each label.

The file comes from somewhere else, so a document type, without which XML has no entities to expand, is refused, as
defusedxml does; the parser is the standard library's expat, which tells the line of an error.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, ClassVar
from xml.parsers import expat

from pydantic import Field

from raymotion import storage
from raymotion.data.marked import Mark, MarkedReport
from raymotion.data.readers.reader import noted
from raymotion.data.tasks import REVIEWED, TaskReader, TaskSet
from raymotion.data.text_rows import shown
from raymotion.errors import InputError, located

AGAIN = 'Export the annotations as "CVAT for images 1.1".'
BLOCK = 1 << 20
# Elements of an image that are marks in the picture, not labels of it.
SHAPES = ("box", "ellipse", "polygon", "polyline", "points", "cuboid", "skeleton", "mask")
ANNOTATIONS = "annotations.xml"


@dataclass
class CvatReport(MarkedReport):
    """Counts of `CvatReader`."""

    unreviewed: int = noted(f"pictures do not have the tag {REVIEWED}, and are left out")
    shapes: int = noted("shapes in pictures are left out")


@dataclass(frozen=True)
class TaggedImage:
    """An image of the file, with its labels and its line."""

    line: int
    name: str
    labels: list[str]


class CvatReader(TaskReader):
    """Labels that people gave in CVAT.

    EXPORT is what CVAT exports as "CVAT for images 1.1": a .zip or the annotations.xml in it, a folder or a pattern of
    them. Pictures with the tag `reviewed` are read, since CVAT does not tell which pictures people have looked at.
    TASKS is the folder of `raymotion data export cvat`, SAMPLES the table that was labelled.

    \b
    Example:
      raymotion data prepare cvat task-1.zip coco.parquet tasks/ --out corrected.parquet
    """

    tool: ClassVar[str] = "cvat"
    suffixes: ClassVar[tuple[str, ...]] = (".xml", ".zip")
    report_type: ClassVar[type[MarkedReport]] = CvatReport

    all_reviewed: bool = Field(False, description="All pictures of the export were looked at, whatever their tags.")

    def marks(self, paths: Sequence[str], tasks: TaskSet, report: MarkedReport) -> dict[str, Mark]:
        """See `TaskReader.marks`."""
        assert isinstance(report, CvatReport)
        marks: dict[str, Mark] = {}
        for path in paths:
            for image in _images(path, report):
                with located(path, line=image.line):
                    sample_id = tasks.sample(image.name)
                    labels = [label for label in image.labels if label != REVIEWED]
                    if not self.all_reviewed and len(labels) == len(image.labels):
                        report.unreviewed += 1
                        continue
                    if sample_id in marks:
                        raise InputError(f"{shown(image.name)!r} is there twice", remedy="Export each picture once.")
                    marks[sample_id] = tasks.mark(sample_id, labels)
        return marks


def _images(path: str, report: CvatReport) -> Iterator[TaggedImage]:
    with storage.open_input(path) as file:
        if storage.suffix(path) != ".zip":
            yield from _parsed(file, path, report)
            return
        try:
            with zipfile.ZipFile(io.BytesIO(file.read())) as archive:
                names = [name for name in archive.namelist() if name.rsplit("/", 1)[-1] == ANNOTATIONS]
                if len(names) != 1:
                    raise InputError(f"has {len(names) or 'no'} {ANNOTATIONS}", path=path, remedy=AGAIN)
                with archive.open(names[0]) as inner:
                    yield from _parsed(inner, path, report)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise InputError(f"is not a zip that can be read ({error})", path=path, remedy=AGAIN) from error


def _parsed(file: IO[bytes], path: str, report: CvatReport) -> Iterator[TaggedImage]:
    """Yields the images of a file, block by block."""
    document = _Document(path, report)
    while True:
        block = file.read(BLOCK)
        yield from document.feed(block)
        if not block:
            return


class _Document:
    """Handlers of the parser."""

    def __init__(self, path: str, report: CvatReport) -> None:
        self.path, self.report = path, report
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.StartElementHandler, self.parser.EndElementHandler = self._start, self._end
        self.parser.CharacterDataHandler = self._text
        self.open: list[str] = []
        self.version = ""
        self.image: TaggedImage | None = None
        self.done: list[TaggedImage] = []

    def feed(self, block: bytes) -> list[TaggedImage]:
        """Parses a block, the last one if it is empty; returns the images that end in it."""
        with located(self.path):
            try:
                self.parser.Parse(block, not block)
            except (expat.ExpatError, LookupError, ValueError) as error:
                line = getattr(error, "lineno", None)
                raise InputError(f"is not XML that can be read ({error})", path=self.path, line=line) from error
        found, self.done = self.done, []
        return found

    def _error(self, reason: str, remedy: str = AGAIN) -> InputError:
        return InputError(reason, path=self.path, line=self.parser.CurrentLineNumber, remedy=remedy)

    def _doctype(self, *_: object) -> None:
        raise self._error(
            "has a document type, whose entities could expand without end", "CVAT writes none: remove it."
        )

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if not self.open and name != "annotations":
            raise self._error(f"begins with <{shown(name)[:40]}>, not with <annotations>")
        inside = self.open[-1] if self.open else ""
        self.open.append(name)
        if inside == "annotations" and name == "track":
            raise self._error("holds tracks of a video")
        if inside == "annotations" and name == "image":
            if self.version.strip() != "1.1":
                raise self._error(f"has the version {shown(self.version.strip())[:40]!r}, not '1.1'")
            if not attributes.get("name"):
                raise self._error("an image has no name")
            self.image = TaggedImage(self.parser.CurrentLineNumber, attributes["name"], [])
        elif inside == "image" and self.image is not None and name == "tag":
            if not attributes.get("label"):
                raise self._error("a tag has no label")
            self.image.labels.append(attributes["label"])
        elif inside == "image" and name in SHAPES:
            self.report.shapes += 1

    def _end(self, name: str) -> None:
        self.open.pop()
        if name == "image" and self.image is not None and len(self.open) == 1:
            self.done.append(self.image)
            self.image = None

    def _text(self, text: str) -> None:
        if self.open[1:] == ["version"]:
            self.version += text
