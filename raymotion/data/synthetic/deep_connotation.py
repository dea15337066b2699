"""A small DeepConnotation: the merged csv with its votes, `labels.json`, and pictures with the faults of the real ones.

Where fewer annotators agree, the picture more often shows another emotion than the one it was searched for. Some
pictures were found by two searches, under the same address or another one, and some are gone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from raymotion import storage
from raymotion.data.readers.reader import report_line
from raymotion.data.synthetic.collections import claim_dataset, jpeg
from raymotion.data.synthetic.patterns import draw_emotion
from raymotion.errors import InputError
from raymotion.folders.lock import one_writer_of
from raymotion.vocabulary import MIKELS_8

CSV_NAME, JSON_NAME = "merged.csv", "labels.json"
FOLDERS = ("images", "train_img", "dev_img", "test_img")
ANNOTATORS = 5
# Shares of the csv's rows.
TWICE_SHARE, GONE_SHARE = 0.05, 0.05
# How often 0, 1 ... 5 annotators agree.
_AGREEING = (0.03, 0.05, 0.08, 0.18, 0.3, 0.36)


@dataclass
class SyntheticDeepConnotation:
    """What `write_deep_connotation` wrote.

    Attributes:
        rows: of the csv. pictures: files in `images/`, one for each name.
        twice: rows whose picture an earlier row has, of another emotion. gone: rows without a picture.
    """

    rows: int
    pictures: int
    twice: int
    gone: int

    def lines(self) -> list[str]:
        """What `raymotion data synth` prints."""
        return [
            report_line("rows", f"{self.rows:,}", self.twice, "of a picture that another search found too"),
            report_line("images", f"{self.pictures:,}", self.gone, "rows have none"),
            report_line("files", f"{CSV_NAME}, {JSON_NAME}, {', '.join(f'{name}/' for name in FOLDERS)}"),
        ]


@one_writer_of("out")
def write_deep_connotation(
    out: storage.PathLike, images: int, seed: int = 0, *, size: int = 64
) -> SyntheticDeepConnotation:
    """Writes the data set twice, as the csv with pictures named by address, and as `labels.json` with numbered ones.

    Args:
        out: folder or s3:// address.
        images: rows of the csv, the same number for each of the eight emotions or one more.
        seed: same seed, same data.
        size: width and height of the pictures in pixels.

    Raises:
        InputError: a number out of range, or a folder that holds something else.
    """
    if not 40 <= images <= 100_000:
        raise InputError(f"{images} images cannot be made", remedy="Choose from 40 to 100,000.")
    if not 8 <= size <= 1024:
        raise InputError(f"pictures of {size} pixels cannot be made", remedy="Choose from 8 to 1,024.")
    claim_dataset(
        out,
        "deep-connotation",
        {"images": images, "seed": seed, "size": size},
        folders=FOLDERS,
        files=[CSV_NAME, JSON_NAME],
    )
    rng = np.random.default_rng(seed)
    count = len(MIKELS_8)
    emotions = [MIKELS_8.labels[i * count // images] for i in range(images)]  # sorted, as the merged csv is
    fate = rng.permutation(images)
    twice = {int(i) for i in fate[: round(TWICE_SHARE * images)]}
    gone = {int(i) for i in fate[len(fate) - round(GONE_SHARE * images) :]}
    originals = [int(i) for i in fate if i not in twice and i not in gone]
    drawn: dict[int, tuple[str, int, bytes]] = {}
    for i in sorted(range(images), key=lambda i: i in twice):  # the pictures that are found again come first
        own = np.random.default_rng([seed, i])
        agreeing = int(own.choice(ANNOTATORS + 1, p=_AGREEING))
        shown = emotions[i]
        if own.random() > 0.5 + agreeing / (2 * ANNOTATORS):
            shown = str(own.choice([name for name in MIKELS_8.labels if name != shown]))
        name = f"{own.integers(10**9, 10**10)}_{own.integers(16**10):010x}.jpg"
        data = jpeg(draw_emotion(shown, own, size))
        if i in twice:
            others = [j for j in originals if emotions[j] != emotions[i]]
            before, _, data = drawn[others[int(own.integers(len(others)))]]
            name = before if own.random() < 0.5 else name  # the same address, or the picture uploaded again
        drawn[i] = (name, agreeing, data)
    lines: list[str] = []
    kept: list[tuple[int, bytes]] = []
    names: set[str] = set()
    for i, emotion in enumerate(emotions):
        name, agreeing, data = drawn[i]
        url = f"http://farm{1 + i % 9}.staticflickr.com/{2000 + i % 97}/{name}"
        lines.append(f"{emotion},{url},{ANNOTATORS - agreeing},{agreeing}\n")
        if i in gone:
            continue
        kept.append((MIKELS_8.index(emotion), data))
        if name not in names:
            names.add(name)
            storage.write_bytes(storage.join(out, "images", name), data)
    order = [int(i) for i in rng.permutation(len(kept))]
    first, second = round(0.8 * len(kept)), round(0.9 * len(kept))
    numbers: dict[str, list[int]] = {}
    for split, part in {"train": order[:first], "dev": order[first:second], "test": order[second:]}.items():
        numbers |= {f"{split}X": part, f"{split}Y": [kept[i][0] for i in part]}
        for position, i in enumerate(part):
            storage.write_bytes(storage.join(out, f"{split}_img", f"img{position}.jpg"), kept[i][1])
    storage.write_text(storage.join(out, CSV_NAME), "".join(lines))
    storage.write_text(storage.join(out, JSON_NAME), json.dumps(numbers))
    return SyntheticDeepConnotation(images, len(names), len(twice), len(gone))
