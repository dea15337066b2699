"""The three streams of a person in an image, after EMOTIC: the whole image, the body, the face."""

from __future__ import annotations

from typing import Literal, get_args

STREAMS = ("context", "body", "face")
CONTEXT = STREAMS[0]
CONTEXT = STREAMS[0]

# Streams kept by each ablation (the seven values of the public study's --ablation).
ABLATIONS: dict[str, tuple[str, ...]] = {
    "all": STREAMS,
    "context": ("context",),
    "body": ("body",),
    "face": ("face",),
    "face_body": ("body", "face"),
    "face_context": ("context", "face"),
    "body_context": ("context", "body"),
}

# Strength of the augmentation of an image or crop; see `data.views`.
Level = Literal["none", "basic", "full"]
LEVELS: tuple[Level, ...] = get_args(Level)
