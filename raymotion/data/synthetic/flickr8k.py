"""A small Flickr8k: drawn scenes with five captions of what is seen, in the three published forms.

As in the real one, the token file has captions of a file that nobody has, and Karpathy's json leaves some pictures out.
Two pictures are there under two names, and one picture has no caption.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from raymotion import storage
from raymotion.data.readers.reader import report_line
from raymotion.data.synthetic.captions import describe_picture
from raymotion.data.synthetic.collections import claim_dataset, jpeg
from raymotion.data.synthetic.pictures import draw_picture
from raymotion.data.synthetic.scenes import draw_scene
from raymotion.errors import InputError
from raymotion.folders.lock import one_writer_of

CAPTIONS_NAME, TOKEN_NAME, JSON_NAME, FOLDER = "captions.txt", "Flickr8k.token.txt", "dataset_flickr8k.json", "Images"
CAPTIONS = 5
# Names of the real data set: one that no file has, and a picture without captions.
NO_FILE, BARE = "2258277193_586949ec62.jpg.1", "3640443200_b8066f37f6.jpg"
# The pictures 10 and 11 are copies of the first two, with captions of their own.
COPIED, COPIES = 10, 2
# Karpathy's shares: 6,000, 1,000 and 1,000 of 8,091.
SHARES = {"train": 6000 / 8091, "val": 1000 / 8091, "test": 1000 / 8091}


@dataclass
class SyntheticFlickr8k:
    """What `write_flickr8k` wrote: pictures with captions, their captions, and pictures in Karpathy's json."""

    pictures: int
    captions: int
    split: int

    def lines(self) -> list[str]:
        """What `raymotion data synth` prints."""
        return [
            report_line("images", f"{self.pictures:,}", COPIES, "are copies of others; one more has no caption"),
            report_line("captions", self.captions),
            report_line("files", f"{CAPTIONS_NAME}, {TOKEN_NAME}, {JSON_NAME} (of {self.split:,} images), {FOLDER}/"),
        ]


@one_writer_of("out")
def write_flickr8k(out: storage.PathLike, images: int, seed: int = 0, *, size: int = 240) -> SyntheticFlickr8k:
    """Writes the pictures to `out/Images/`, and their captions as captions.txt, Flickr8k.token.txt and Karpathy's json.

    Args:
        out: folder or s3:// address.
        images: pictures with captions; the first of a larger set are the smaller one.
        seed: same seed, same data.
        size: longer side of the pictures in pixels.

    Raises:
        InputError: a number out of range, or a folder that holds something else.
    """
    if not 20 <= images <= 100_000:
        raise InputError(f"{images} images cannot be made", remedy="Choose from 20 to 100,000.")
    if not 32 <= size <= 640:
        raise InputError(f"pictures of {size} pixels cannot be made", remedy="Choose from 32 to 640.")
    claim_dataset(
        out,
        "flickr8k",
        {"images": images, "seed": seed, "size": size},
        folders=[FOLDER],
        files=[CAPTIONS_NAME, TOKEN_NAME, JSON_NAME],
    )
    named: dict[str, list[str]] = {}
    for i in range(images):
        scenic = random.Random(f"{seed}/flickr8k/{i - COPIED if COPIED <= i < COPIED + COPIES else i}")
        scene = draw_scene(scenic)
        picture, figures = draw_picture(scene, scenic)
        rng = random.Random(f"{seed}/flickr8k/{i}/captions")
        # Numbers grow as uploads do; the letters behind them do not.
        name = f"{1_000_000_000 + 20_000 * i + rng.randrange(20_000)}_{rng.getrandbits(40):010x}.jpg"
        things = [figure.category for figure in figures]
        named[name] = [describe_picture(scene, things, rng) for _ in range(CAPTIONS)]
        storage.write_bytes(storage.join(out, FOLDER, name), _small(picture, size))
    rng = random.Random(f"{seed}/flickr8k/bare")
    storage.write_bytes(storage.join(out, FOLDER, BARE), _small(draw_picture(draw_scene(rng), rng)[0], size))
    storage.write_text(storage.join(out, CAPTIONS_NAME), _csv(named))
    storage.write_text(storage.join(out, TOKEN_NAME), _token(named))
    document = _karpathy(named, random.Random(f"{seed}/flickr8k/split"))
    storage.write_text(storage.join(out, JSON_NAME), json.dumps(document))
    return SyntheticFlickr8k(images, CAPTIONS * images, len(document["images"]))


def _small(picture: Image.Image, size: int) -> bytes:
    picture.thumbnail((size, size))
    return jpeg(picture)


def _csv(named: Mapping[str, Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "caption"))
    writer.writerows((name, caption) for name, captions in named.items() for caption in captions)
    return text.getvalue()


def _token(named: Mapping[str, Sequence[str]]) -> str:
    lost = ["A file that nobody has ."] * CAPTIONS
    lines = [
        f"{name}#{number}\t{caption}\n"
        for name, captions in {**named, NO_FILE: lost}.items()
        for number, caption in enumerate(captions)
    ]
    return "".join(lines)


def _karpathy(named: Mapping[str, Sequence[str]], rng: random.Random) -> dict[str, Any]:
    names = list(named)
    rng.shuffle(names)
    ends = [round(sum(list(SHARES.values())[: k + 1]) * len(names)) for k in range(len(SHARES))]
    splits = {name: list(SHARES)[sum(rank >= end for end in ends)] for rank, name in enumerate(names[: ends[-1]])}
    images = []
    for number, (name, captions) in enumerate(named.items()):
        if name not in splits:
            continue
        sentences = [
            {
                "tokens": re.findall(r"[a-z]+", text.lower()),
                "raw": text,
                "imgid": number,
                "sentid": CAPTIONS * number + k,
            }
            for k, text in enumerate(captions)
        ]
        ids = [sentence["sentid"] for sentence in sentences]
        entry = {"sentids": ids, "imgid": number, "sentences": sentences, "split": splits[name], "filename": name}
        images.append(entry)
    return {"images": images, "dataset": "flickr8k"}
