"""The three streams of a person in a picture, after EMOTIC: the whole picture, the body, the face."""

from __future__ import annotations

STREAMS = ("context", "body", "face")
CONTEXT = STREAMS[0]
CONTEXT = STREAMS[0]

# What each ablation leaves of them (the seven values of the public study's --ablation).
ABLATIONS: dict[str, tuple[str, ...]] = {
    "all": STREAMS,
    "context": ("context",),
    "body": ("body",),
    "face": ("face",),
    "face_body": ("body", "face"),
    "face_context": ("context", "face"),
    "body_context": ("context", "body"),
}

# Levels of augmentation: of a picture and its crops.
LEVELS = ("none", "basic", "full")
