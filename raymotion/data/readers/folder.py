"""Reads any folder of images, with or without a file of captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
from pydantic import Field

from raymotion import storage
from raymotion.config import File, Folder
from raymotion.data.captions import one_line
from raymotion.data.images.files import EXTENSIONS, FileNames, FolderContent, is_unicode, list_pictures
from raymotion.data.readers.flickr8k.caption_files import read_caption_file
from raymotion.data.readers.reader import Reader, Report, noted, report_line
from raymotion.data.samples import table_from_rows
from raymotion.data.text_rows import columns_of, delimited_rows, json_lines, read_json, shown
from raymotion.errors import InputError, located

# Names of the columns and keys, in the order in which they count.
FILE_NAMES = ("file", "file_name", "filename", "image")
CAPTION_NAMES = ("caption", "text")
_KEYS = (*FILE_NAMES, *CAPTION_NAMES, "captions")


@dataclass
class FolderReport(Report):
    """Counts from `FolderReader`. All files and captions are either in the table or counted here.

    Attributes:
        captions, without_caption: total number of captions, and of images without one.
        no_file: files named by the captions but not in the folder (`no_file_names`: the first few of them).
        no_file_captions: captions of these files, left out.
    """

    captions: int = 0
    without_caption: int = 0
    no_file: int = 0
    no_file_names: list[str] = field(default_factory=list)
    no_file_captions: int = 0
    other_case: int = noted("of them differ from a file's name in capital letters only")
    ambiguous_files: int = noted("of them could be several files, which differ in spaces or encoded accents")
    empty_captions: int = noted("entries of the captions file have no caption")

    def lines(self) -> list[str]:
        """Returns lines for rows and captions, then the notes."""
        captions = report_line("captions", f"{self.captions:,}", self.without_caption, "images have none")
        return [report_line("rows", self.rows), captions, *self.note_lines()]

    def notes(self) -> list[str]:
        """Returns a text for each reason for leaving data out."""
        if not self.no_file:
            return super().notes()
        names = ", ".join(map(shown, self.no_file_names[:3])) + (" ..." if self.no_file > 3 else "")
        strays = f"{self.no_file:,} files that the captions name are not pictures in the folder ({names})"
        return [f"{strays}, {self.no_file_captions:,} captions left out", *super().notes()]


class FolderReader(Reader):
    """Any folder of pictures, searched to the bottom, with captions from a file.

    Links to files and folders are followed. Every file that is left out, and every caption that finds no picture, is
    counted under its reason.

    \b
    Lines of a .jsonl:    {"file": "trip/1.jpg", "caption": "A boat at sunset."}
    Columns of a .csv:    file,caption        (a file's second line is its second caption)
    Columns of a .tsv:    the same, with tabs (no quotes: a quote is a character like any other)
    A .txt:               as Flickr8k's captions.txt or Flickr8k.token.txt

    The file may also be called file_name, filename or image, and the caption text.

    \b
    Example:
      raymotion data prepare folder PHOTOS --captions captions.jsonl --out mine.parquet
    """

    folder: Folder
    captions: File | None = Field(
        None, description="Captions as .jsonl, .csv, .tsv, .json or .txt. Default: none, images only."
    )

    def read(self) -> tuple[pa.Table, FolderReport]:
        """Reads all images in `folder` and its subfolders, sorted by path, without labels.

        Files are selected by extension (`files.EXTENSIONS`, in any case); hidden files and folders are skipped. A line
        of a .jsonl may have a list of `"captions"`; a .json maps files to a caption or a list. Files are relative to
        `folder` (see `FileNames`); a file that occurs repeatedly gets several captions.

        Raises:
            InputError: the captions file is invalid (names its line and the reason), or the folder has no images.
        """
        if not storage.is_dir(self.folder):
            raise InputError("no such folder", path=self.folder, remedy="Check the path.")
        content = list_pictures(self.folder)
        report = FolderReport(rows=len(content.pictures), content=content)
        if not content.pictures:
            raise InputError(f"holds no pictures ({', '.join(EXTENSIONS)})", path=self.folder, remedy="Check the path.")
        texts: dict[str, list[str]] = {}
        if self.captions is not None:
            texts = _captions_of(self.captions, self.folder, content, report)
        rows = [
            {
                "sample_id": f"folder:{name}",
                "group_id": f"folder:{name}",
                "image_uri": content.address(name),
                "captions": texts.get(name, []),
                "source": "folder",
            }
            for name in content.pictures
        ]
        report.captions = sum(map(len, texts.values()))
        report.without_caption = sum(1 for name in content.pictures if not texts.get(name))
        return table_from_rows(rows, where=self.folder), report


def _captions_of(
    captions: storage.PathLike, folder: storage.PathLike, content: FolderContent, report: FolderReport
) -> dict[str, list[str]]:
    """Returns captions by image; counts those that match no image."""
    names = FileNames(content.pictures, content.base, content.aliases)
    texts: dict[str, list[str]] = {}
    stray: dict[str, int] = {}
    for name, text in _read_captions(captions, names):
        found = names.find(name)
        if not text:
            report.empty_captions += 1
        if found is None:
            stray[name] = stray.get(name, 0) + bool(text)
            continue
        own = texts.setdefault(found, [])
        if text:
            own.append(text)
    if stray and not texts:
        raise InputError(
            f"names no picture in {folder}: {min(stray)!r}, for example, is not there",
            path=captions,
            remedy="Paths are relative to the folder, subfolders included.",
        )
    report.no_file, report.no_file_captions = len(stray), sum(stray.values())
    report.no_file_names = sorted(stray)[:5]
    report.ambiguous_files = len(names.ambiguous & set(stray))
    report.other_case = sum(1 for name in stray if name not in names.ambiguous and names.other_case(name))
    return texts


def _read_captions(path: storage.PathLike, names: FileNames) -> Iterator[tuple[str, str]]:
    """Yields pairs of file and caption, with white space collapsed ('' for a missing caption)."""
    kind = storage.suffix(path)
    if kind in (".jsonl", ".ndjson"):
        for line, value in json_lines(storage.read_text(path), path):
            with located(path, line=line):
                yield from _pairs(*_of_json(value))
    elif kind in (".csv", ".tsv"):
        text = storage.read_text(path)
        file, caption = _columns(text, path)
        rows = delimited_rows(
            text, path, (file, caption), optional=("captions",), verbatim=(file,),
            is_start=lambda cells: names.find(cells[file]) is not None,
        )  # fmt: skip
        for line, cells in rows:
            if "captions" in cells:
                raise InputError(f"has both {caption} and captions", path=path, line=1, remedy="Keep one column.")
            with located(path, line=line):
                if not cells[file].strip():
                    raise InputError(f"{file} is empty")
                yield from _pairs(cells[file], cells[caption])
    elif kind == ".txt":
        for own in read_caption_file(path)[1]:
            yield from _pairs(own.name, list(own.captions))
    elif kind == ".json":
        value = read_json(path)
        if not isinstance(value, dict):
            raise InputError("is not an object of file to caption", path=path, remedy="Lines of objects are a .jsonl.")
        for name, own in value.items():
            with located(path, row=shown(name)):
                yield from _pairs(name, own)
    else:
        raise InputError(
            f"captions in a {kind or 'file without extension'} cannot be read",
            path=path,
            remedy="Give a .jsonl, .csv, .tsv, .json or .txt file.",
        )


def _columns(text: str, path: storage.PathLike) -> tuple[str, str]:
    """Returns the names of the columns of files and captions; the usual ones if there are none, for the message."""
    if "\0" in text:
        return FILE_NAMES[0], CAPTION_NAMES[0]  # `delimited_rows` refuses it
    there = [name.strip().casefold() for name in _header(text, path)]
    file = next((name for name in FILE_NAMES if name in there), FILE_NAMES[0])
    return file, next((name for name in CAPTION_NAMES if name in there), CAPTION_NAMES[0])


def _header(text: str, path: storage.PathLike) -> list[str]:
    try:
        return columns_of(text, path)
    except InputError:  # `delimited_rows` says what is wrong, of the columns that count
        return []


def _of_json(value: object) -> tuple[str, object]:
    """Returns the file and the caption or captions from a line of a .jsonl."""
    found: dict[str, object] = {}
    for key, own in value.items() if isinstance(value, dict) else ():
        name = key.strip().casefold()
        if name in _KEYS and name in found:
            raise InputError(f'has "{name}" twice', remedy="Keep one of them.")
        found[name] = own
    file = next((found[name] for name in FILE_NAMES if name in found), None)
    if not isinstance(file, str) or not file.strip():
        raise InputError('has no "file"', remedy='Write {"file": "a.jpg", "caption": "..."}.')
    caption = next((name for name in CAPTION_NAMES if name in found), None)
    if caption is not None and "captions" in found:
        raise InputError(f'has both "{caption}" and "captions"', remedy='Put all into "captions": ["...", "..."].')
    return file, found.get("captions", found.get(caption or ""))


def _pairs(name: str, captions: object) -> Iterator[tuple[str, str]]:
    values = captions if isinstance(captions, list) else [captions]
    for value in values or [None]:
        if value is not None and not isinstance(value, str):
            raise InputError("a caption is not text", remedy="Give text or a list of texts.")
        for text in (name, value or ""):
            if not is_unicode(text):
                reason = f"{ascii(text)[:60]} contains half a character (a lone surrogate)"
                raise InputError(reason, remedy="Fix this text.")
        yield name, one_line(value)
