"""Reads Flickr8k (Hodosh, Young and Hockenmaier 2013): 8,091 pictures with five captions each, no emotions.

All captions of a picture are one sample. The published code made a sample of each caption, so that a picture met its
own captions as wrong ones.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import pyarrow as pa
from pydantic import Field

from raymotion import storage
from raymotion.config import File, Folder, Metavar
from raymotion.data.captions import one_line
from raymotion.data.images.files import EXTENSIONS, FileNames, FolderContent, list_pictures
from raymotion.data.readers.flickr8k.caption_files import CaptionedPicture, read_caption_file
from raymotion.data.readers.flickr8k.public_split import PICTURES, public_split
from raymotion.data.readers.reader import Reader, Report, noted, report_line
from raymotion.data.same_pictures import content_digests, joined_groups
from raymotion.data.samples import SPLITS, table_from_rows
from raymotion.data.splits import split_by_shares
from raymotion.data.text_rows import shown
from raymotion.errors import InputError

SOURCE = "flickr8k"
# Names of the pictures' folder beside the captions: Kaggle's, and those of the published archive.
FOLDERS = ("Images", "images", "Flicker8k_Dataset", "Flickr8k_Dataset")
KARPATHY = "dataset_flickr8k.json"
USUAL = 5

# Flickr8k.token.txt has captions of 2258277193_586949ec62.jpg.1, a file that no copy of the data set holds.
_NO_FILE = re.compile(rf".*(?:{'|'.join(map(re.escape, EXTENSIONS))})\.\d+", re.IGNORECASE)
_MARKS = re.compile(r"[^\w\s]|_")


@dataclass
class Flickr8kReport(Report):
    """Counts of `Flickr8kReader`. All captions of the file, and all pictures, are in the table or counted here.

    Attributes:
        captions: in the table. unusual: pictures in the table that have not five.
        missing, missing_captions: pictures that the file names and the folder lacks, and their captions, left out
            (`missing_name`: one of them). not_files, not_file_captions: the same of names that are no file's.
        bare: pictures in the folder without a caption, left out (`bare_name`: one of them).
        without_pictures: no folder of pictures was given or found.
        split_note: what is to be known of a published split. few: message about an empty split.
    """

    captions: int = 0
    unusual: int = 0
    missing: int = 0
    missing_captions: int = 0
    missing_name: str = ""
    not_files: int = 0
    not_file_captions: int = 0
    not_file_name: str = ""
    bare: int = 0
    bare_name: str = ""
    without_pictures: bool = False
    split_note: str | None = None
    few: str | None = None
    ambiguous: int = noted("of them could be several files")
    empty_captions: int = noted("captions have no words, and are left out")
    short_captions: int = noted(
        "captions with fewer words than --min-words left out",
        "caption with fewer words than --min-words left out",
    )
    uncaptioned: int = noted("pictures lost all of their captions by this, and are left out")
    same_content: int = noted(
        "pictures are the same as another: each set of them is one group",
        "picture is the same as another: both are one group",
    )
    not_compared: int = noted("pictures cannot be read: their content was not compared")
    no_split: int = noted(
        "pictures are not in Karpathy's split: their split is empty",
        "picture is not in Karpathy's split: its split is empty",
    )
    withdrawn: int = noted(
        "pictures left out, whose content is also in a later part of the published split",
        "picture left out, whose content is also in a later part of the published split",
    )

    def lines(self) -> list[str]:
        """Returns lines for rows and captions, then the notes."""
        other = f"picture{' has' if self.unusual == 1 else 's have'} not {USUAL}"
        captions = report_line("captions", f"{self.captions:,}", self.unusual, other)
        return [report_line("rows", self.rows), captions, *self.note_lines()]

    def notes(self) -> list[str]:
        """Returns a text for each reason for leaving data out, and what is to be known of the split."""
        notes = []
        if self.missing:
            are = "picture that the captions name is" if self.missing == 1 else "pictures that the captions name are"
            notes.append(
                f"{self.missing:,} {are} not in the folder (such as {shown(self.missing_name)}), "
                f"{self.missing_captions:,} captions left out"
            )
        if self.not_files:
            notes.append(
                f"{self.not_file_captions:,} captions left out, of names that no file has (such as "
                f"{shown(self.not_file_name)})"
            )
        if self.bare:
            are = "picture in the folder has no caption" if self.bare == 1 else "pictures in the folder have no caption"
            notes.append(f"{self.bare:,} {are} (such as {shown(self.bare_name)}), left out")
        if self.without_pictures:
            notes.append("no folder of pictures (--images): rows have captions alone, for features that are there")
        return [*notes, *super().notes(), *(note for note in (self.split_note, self.few) if note)]


class Flickr8kReader(Reader):
    """Flickr8k: pictures with five captions each, from captions.txt, Flickr8k.token.txt or dataset_flickr8k.json.

    Which of them FILE is, its content tells. A sample is a picture with all of its captions. Captions of pictures that
    are not there, and pictures without captions, are counted and left out. Without a folder of pictures the table has
    captions alone: `raymotion features import` adds vectors that were made elsewhere.

    \b
    Splits:
      grouped   by --seed and the shares below; pictures with the same content stay together
      karpathy  as dataset_flickr8k.json says (Karpathy and Li 2015): 6,000, 1,000 and 1,000 pictures
      public    70/15/15 by NumPy's shuffle with seed 42: 5,663, 1,213 and 1,215 of all 8,091 pictures

    \b
    Example:
      raymotion data prepare flickr8k captions.txt --images Images --out flickr8k.parquet
      raymotion data prepare flickr8k Flickr8k.token.txt --split karpathy --karpathy dataset_flickr8k.json \\
          --out flickr8k.parquet
    """

    path: File
    images: Folder | None = Field(
        None, description=f"Folder of the pictures. Default: {', '.join(FOLDERS)} beside FILE, or none."
    )
    split: Literal["grouped", "karpathy", "public"] = Field("grouped", description="See above.")
    karpathy: File | None = Field(
        None, description=f"Json of --split karpathy. Default: FILE if it is one, or {KARPATHY} beside it."
    )
    min_words: Annotated[int, Metavar("COUNT")] = Field(
        1, ge=1, description="Leave out captions with fewer words; the public project used 3."
    )
    name: Annotated[str, Metavar("NAME")] = Field(
        SOURCE, min_length=1, description="Of the data set, in the ids: other sets have these forms too."
    )
    content_hash: bool = Field(True, description="Do not look for pictures with the same content, which are one group.")
    val_fraction: Annotated[float, Metavar("SHARE")] = Field(0.1, description="Share of pictures for validation.")
    test_fraction: Annotated[float, Metavar("SHARE")] = Field(0.1, description="Share of pictures for the test.")
    no_split: bool = Field(False, description="Leave the split column empty.")
    seed: int = Field(0, description="Same seed, same result.")

    def read(self) -> tuple[pa.Table, Flickr8kReport]:
        """A row for each picture, in the order of the file.

        Raises:
            InputError: names the file, the line (in the json, the entry) and the reason.
        """
        if self.no_split and self.split != "grouped":
            raise InputError(f"--no-split and --split {self.split} are given", remedy="Give one of them.")
        path = self._captions_file()
        report = Flickr8kReport()
        form, named = read_caption_file(path)
        named = _with_files(named, report)
        splits = self._published_split(path, form, named, report)
        files = self._files(path, named, report)
        kept = _with_captions([own for own in named if own.name in files], self.min_words, report)
        if not kept:
            raise InputError(
                f"none of its {len(named):,} pictures has a caption of {self.min_words} words or more",
                path=path,
                remedy="Check --min-words.",
            )
        names = [own.name for own in kept]
        groups = [f"{self.name}:{name}" for name in names]
        if self.content_hash and not report.without_pictures:
            contents = content_digests([files[name] or "" for name in names])
            times = Counter(contents)
            report.not_compared = times.pop(None, 0)
            report.same_content = sum(times.values()) - len(times)
            groups = joined_groups(groups, contents)
        chosen = _of_last_part(groups, [splits.get(name) for name in names])
        report.withdrawn = len(names) - len(chosen)
        table = table_from_rows(
            [
                {
                    "sample_id": f"{self.name}:{names[i]}",
                    "group_id": groups[i],
                    "image_uri": files[names[i]],
                    "captions": list(kept[i].captions),
                    "split": splits.get(names[i]),
                    "source": self.name,
                }
                for i in chosen
            ],
            where=path,
        )
        report.rows = table.num_rows
        counts = [len(kept[i].captions) for i in chosen]
        report.captions, report.unusual = sum(counts), sum(count != USUAL for count in counts)
        if self.split == "grouped" and not self.no_split:
            table, report.few = split_by_shares(
                table, val_fraction=self.val_fraction, test_fraction=self.test_fraction, seed=self.seed
            )
        elif self.split == "karpathy":
            report.no_split = table["split"].null_count
        return table, report

    def _captions_file(self) -> str:
        """Returns FILE, or the captions in the folder that was given in its place."""
        if not storage.is_dir(self.path):
            return self.path
        usual = ("captions.txt", "Flickr8k.token.txt", KARPATHY)
        found = [name for name in usual if storage.exists(storage.join(self.path, name))]
        if not found:
            raise InputError(
                "is a folder that holds no captions", path=self.path, remedy=f"Give the file: {', '.join(usual)}."
            )  # fmt: skip
        return storage.join(self.path, found[0])

    def _published_split(
        self, path: str, form: str, named: Sequence[CaptionedPicture], report: Flickr8kReport
    ) -> dict[str, str]:
        """Returns the split of each picture; empty for one by seed."""
        if self.karpathy is not None and self.split != "karpathy":
            raise InputError(
                f"--karpathy is given, and the split is {self.split}", remedy="Give --split karpathy, too."
            )
        if self.split == "public":
            many = len(named)
            report.split_note = (
                "the public split, by the order in which the file names its pictures; the published lists were not "
                "there to compare with"
                + ("" if many == PICTURES else f". Its {PICTURES:,} pictures are not these {many:,}: no published part")
            )
            return public_split([own.name for own in named])
        if self.split == "grouped":
            return {}
        beside = storage.join(storage.parent(storage.absolute(path)), KARPATHY)
        place = self.karpathy or (path if form == "json" else beside)
        if not storage.exists(place):
            raise InputError("no such file", path=place, remedy=f"Give --karpathy {KARPATHY}.")
        kind, pictures = ("json", named) if place == path else read_caption_file(place)
        splits = {own.name: own.split for own in pictures if own.split is not None}
        if kind != "json" or not splits:
            raise InputError("holds no split", path=place, remedy=f"Give --karpathy {KARPATHY}.")
        if not any(own.name in splits for own in named):
            raise InputError(f"names none of the {len(named):,} pictures of {path}", path=place)
        return splits

    def _files(self, path: str, named: Sequence[CaptionedPicture], report: Flickr8kReport) -> dict[str, str | None]:
        """Returns the address of each picture that is there; without a folder None for all."""
        beside = [storage.join(storage.parent(storage.absolute(path)), name) for name in FOLDERS]
        folder = self.images or next((own for own in beside if storage.is_dir(own)), None)
        if folder is None:
            report.without_pictures = True
            return {own.name: None for own in named}
        if not storage.is_dir(folder):
            raise InputError("no such folder", path=folder, remedy="Give --images, the folder of the pictures.")
        content: FolderContent = list_pictures(folder)
        report.content = content
        names = FileNames(content.pictures, content.base, content.aliases)
        found: dict[str, str] = {}
        for own in named:
            # Some copies name the folder too: Images/1000268201_693b08cb0e.jpg.
            file = names.find_alike(own.name) or names.find_alike(posixpath.basename(own.name.replace("\\", "/")))
            if file is not None:
                found[own.name] = file
                continue
            report.ambiguous += own.name in names.ambiguous
            report.missing += 1
            report.missing_captions += len(own.captions)
            report.missing_name = report.missing_name or own.name
        if not found:
            raise InputError(
                f"none of its {len(named):,} pictures is in {folder} (such as {shown(report.missing_name)})",
                path=path,
                remedy="Check --images.",
            )
        twice = next((file for file, count in Counter(found.values()).items() if count > 1), None)
        if twice is not None:
            both = [name for name, file in found.items() if file == twice]
            raise InputError(
                f"{' and '.join(map(shown, both))} are both the picture {shown(twice)}",
                path=path,
                remedy="Use one name for it.",
            )
        bare = sorted(set(content.pictures) - set(found.values()))
        report.bare, report.bare_name = len(bare), next(iter(bare), "")
        return {name: content.address(file) for name, file in found.items()}


def _with_files(named: Sequence[CaptionedPicture], report: Flickr8kReport) -> list[CaptionedPicture]:
    """Leaves out names that no file has: NAME.jpg.1."""
    kept = []
    for own in named:
        if _NO_FILE.fullmatch(own.name):
            report.not_files += 1
            report.not_file_captions += len(own.captions)
            report.not_file_name = report.not_file_name or own.name
        else:
            kept.append(own)
    return kept


def _with_captions(named: Sequence[CaptionedPicture], least: int, report: Flickr8kReport) -> list[CaptionedPicture]:
    """Returns the pictures that keep a caption, with white space collapsed."""
    kept = []
    for own in named:
        texts = [text for text in map(one_line, own.captions) if text]
        long = [text for text in texts if words(text) >= least]
        report.empty_captions += len(own.captions) - len(texts)
        report.short_captions += len(texts) - len(long)
        if long:
            kept.append(CaptionedPicture(own.name, tuple(long), own.split))
        else:
            report.uncaptioned += 1
    return kept


def words(caption: str) -> int:
    """Returns the number of words as the public project counts them: parts between blanks, without punctuation."""
    return len(_MARKS.sub("", caption).split())


def _of_last_part(groups: Sequence[str], splits: Sequence[str | None]) -> list[int]:
    """Returns which rows stay: of a group in several parts of a split, those in the last of them."""
    last: dict[str, int] = {}
    ranks = [-1 if split is None else SPLITS.index(split) for split in splits]
    for group, rank in zip(groups, ranks, strict=True):
        last[group] = max(rank, last.get(group, -1))
    return [i for i, (group, rank) in enumerate(zip(groups, ranks, strict=True)) if rank == last[group]]
