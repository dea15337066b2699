"""The files of a checkpoint: their names, what config.json may say, and their fingerprint. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from typing import Any

from raymotion import storage
from raymotion.data.streams import STREAMS
from raymotion.errors import InputError
from raymotion.vocabulary import Vocabulary

# What a model of each architecture can read.
ARCHITECTURES = {
    "visualbert-teacher": ("text", "regions"),
    "student": ("text", "image"),
    "fusion": STREAMS,
    "fusion-tuned": STREAMS,
}
# Those that read no text, and have no tokenizer.
FUSIONS = ("fusion", "fusion-tuned")
FORMAT = 1
WEIGHTS, CONFIG, VOCABULARY, TOKENIZER, TRAINING, CARD, ANSWERS = (
    "model.safetensors", "config.json", "vocabulary.json", "tokenizer.json", "training.json", "README.md",
    "answers.parquet",
)  # fmt: skip
# What decides the predictions. The record of the training (times, versions) does not.
FINGERPRINTED = (WEIGHTS, CONFIG, TOKENIZER)


def fingerprinted(architecture: str) -> tuple[str, ...]:
    """The files that decide the predictions of a model of this architecture."""
    return FINGERPRINTED[:2] if architecture in FUSIONS else FINGERPRINTED


def read_config(where: str) -> dict[str, Any]:
    """config.json of the folder `where`, or an `InputError` that says what is wrong with it."""
    path = storage.join(where, CONFIG)
    if not storage.exists(path):
        there = storage.exists(where) or storage.list_names(where)
        raise InputError(
            "is not a checkpoint: it has no config.json" if there else "no such checkpoint",
            path=where,
            remedy="Train one with `raymotion train`; `raymotion pull owner/name --out DIR` fetches one from a hub.",
        )
    config = storage.read_json(path)
    if not isinstance(config, dict) or config.get("architecture") not in ARCHITECTURES:
        named = config.get("architecture") or config.get("architectures") if isinstance(config, dict) else None
        raise InputError(
            f"is a model of another kind ({named or 'it names no architecture'}), "
            f"not one of {', '.join(ARCHITECTURES)}",
            path=path,
            remedy="Give a folder that `raymotion train` wrote; pretrained models go into the recipe as model.init.",
        )
    if config.get("format") != FORMAT:
        raise InputError(f"has format {config.get('format')}, this version reads {FORMAT}", path=path)
    needed: tuple[str, ...] = ("model", "vocabulary", "modalities", "extractor")
    needed += ("fusion",) if config["architecture"] in FUSIONS else ()
    missing = [name for name in needed if name not in config]
    if missing:
        raise InputError(f"lacks {', '.join(missing)}", path=path)
    return config


def per_label(training: Mapping[str, Any], name: str, vocabulary: Vocabulary, where: str) -> tuple[float, ...] | None:
    """Numbers by label that training.json may hold; None where it does not."""
    values = training.get(name)
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != len(vocabulary):
        raise InputError(f"{name} is not a list of {len(vocabulary)} numbers", path=storage.join(where, TRAINING))
    return tuple(float(value) for value in values)


def fingerprint(where: str, copy: str, architecture: str) -> str:
    """16 hex digits over what decides the predictions of the checkpoint `where`, whose files are in `copy`."""
    digest = hashlib.sha256()
    for name in fingerprinted(architecture):
        path = storage.join(copy, name)
        if name == WEIGHTS:
            _require_whole(path, storage.join(where, name))
        digest.update(f"{name}:{storage.sha256_file(path)}\n".encode())
    return digest.hexdigest()[:16]


def _require_whole(path: str, shown: str) -> None:
    """A truncated weights file is told from its header, before a job starts on it. `shown`: its name in the message."""
    with storage.open_input(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        try:
            entries = json.loads(file.read(length)) if 8 + length <= size else None
            ends = [e["data_offsets"][1] for n, e in (entries or {}).items() if n != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            entries, ends = None, []
    if entries is None or 8 + length + max(ends, default=0) != size:
        raise InputError("is damaged or cut off", path=shown, remedy="Copy or train it again.")


def to_json(value: Any) -> bytes:
    """`value` as a file of a checkpoint; NaN is an error."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
