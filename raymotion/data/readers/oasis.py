"""Reads OASIS (Kurdi, Lozano and Banaji 2017): 900 pictures with valence and arousal on a scale of 1 to 7.

The published csv has line ends of a bare CR, and names with blanks at their end; some of the pictures are PNG files
called .jpg. "Acorns 1", "Acorns 2" and "Acorns 3" are pictures of one theme, and nearly the same: they are one group.
"""

from __future__ import annotations

from typing import Annotated

import pyarrow as pa
from pydantic import Field

from raymotion import storage
from raymotion.config import Folder, Metavar
from raymotion.data.readers.ratings import RatingsReader, RatingsReport
from raymotion.data.readers.reader import Reader
from raymotion.errors import InputError

CSV_NAME, IMAGES_NAME = "OASIS.csv", "images"
SCALE = "1,7"


class OasisReader(Reader):
    """OASIS: valence and arousal from 1 to 7, with standard deviations.

    FOLDER holds OASIS.csv, and the pictures in images/ (or beside it). The number of raters is not kept. The pictures
    of a theme are one group, and no split divides them: the numbers at the end of "Acorns 1, 2, 3" do not count.

    \b
    Example:
      raymotion data prepare oasis OASIS --out oasis.parquet
    """

    path: Folder
    content_hash: bool = Field(True, description="Do not look for pictures with the same content, which are one group.")
    val_fraction: Annotated[float, Metavar("SHARE")] = Field(0.1, description="Share of themes for validation.")
    test_fraction: Annotated[float, Metavar("SHARE")] = Field(0.1, description="Share of themes for the test.")
    no_split: bool = Field(False, description="Leave the split column empty.")
    seed: int = Field(0, description="Same seed, same result.")

    def read(self) -> tuple[pa.Table, RatingsReport]:
        """The pictures in the order of the csv; `source` is the category, such as oasis/person.

        Raises:
            InputError: names the file, the line and the reason.
        """
        table = storage.join(self.path, CSV_NAME)
        if not storage.is_dir(self.path):
            if storage.exists(self.path):
                raise InputError("is a file", path=self.path, remedy=f"Give the folder that holds {CSV_NAME}.")
            raise InputError("no such folder", path=self.path, remedy=f"Give the folder that holds {CSV_NAME}.")
        if not storage.exists(table):
            raise InputError(f"holds no {CSV_NAME}", path=self.path, remedy="Give the folder of the data set.")
        images = storage.join(self.path, IMAGES_NAME)
        return RatingsReader(
            path=table,
            images=images if storage.is_dir(images) else self.path,
            image_column="Theme",
            valence_column="Valence_mean",
            valence_sd_column="Valence_SD",
            arousal_column="Arousal_mean",
            arousal_sd_column="Arousal_SD",
            scale=SCALE,
            group_column="Theme",
            group_pattern=r"^(.*?)\s*\d*$",
            source_column="Category",
            name="oasis",
            content_hash=self.content_hash,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            no_split=self.no_split,
            seed=self.seed,
        ).read()
