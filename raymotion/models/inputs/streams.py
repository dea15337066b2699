"""What a fusion head's checkpoint reads: for each stream the frozen backbone that its features came from.

Features of other weights mean something else, so a backbone is compared with what the checkpoint names before it is
used: its identity is told again here, and must be the same in every field.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from raymotion import storage
from raymotion.data.streams import ABLATIONS
from raymotion.errors import InputError
from raymotion.models.checkpoint_files import CONFIG
from raymotion.models.fusion.config import FusionConfig, streams_of
from raymotion.models.vision.backbones import BackboneIdentity, fitted, identify

if TYPE_CHECKING:
    from raymotion.models.checkpoint import CheckpointInfo
    from raymotion.models.vision.backbones import Backbone


@dataclass(frozen=True)
class StreamInput:
    """One stream that a head looks at.

    Attributes:
        name: of the backbone, as the user named it.
        grid: side of the grid of spatial tokens that the head reads; 0: the pooled vector.
    """

    stream: str
    name: str
    identity: BackboneIdentity
    grid: int


def stream_inputs(info: CheckpointInfo, ablation: str | None = None) -> tuple[StreamInput, ...]:
    """The streams that the head in a checkpoint looks at, in the order of `STREAMS`.

    Args:
        ablation: leaves some of them out, besides the head's own; a key of `ABLATIONS`.

    Raises:
        InputError: no fusion head, a damaged description of the backbones, or an ablation that leaves nothing.
    """
    tuned, path = info.architecture == "fusion-tuned", storage.join(info.folder, CONFIG)
    config = FusionConfig.model_validate(info.config["fusion"] if tuned else info.config)
    if ablation is not None and ablation not in ABLATIONS:
        raise InputError(f"there is no ablation {ablation!r}", remedy=f"Choose from {', '.join(ABLATIONS)}.")
    own = streams_of(config)
    kept = [stream for stream in own if stream in ABLATIONS[ablation or "all"]]
    if not kept:
        raise InputError(
            f"looks at {' and '.join(own)} alone, and ablation {ablation} leaves nothing of that", path=info.folder
        )
    inputs = []
    for stream in kept:
        described = (info.backbones or {}).get(stream) or {}
        tokens = config.tokens.get(stream, 0)
        grid = math.isqrt(tokens)
        if "name" not in described or "identity" not in described or grid * grid != tokens:
            raise InputError(f"does not say where its features of the {stream} come from", path=path)
        identity = BackboneIdentity.from_dict(described["identity"], where=path)
        inputs.append(StreamInput(stream, str(described["name"]), identity, grid))
    return tuple(inputs)


def find_weights(inputs: Sequence[StreamInput], weights: Sequence[str] = (), *, path: object = None) -> dict[str, str]:
    """Where the weights of each backbone are, by its name: what `Backbone` takes.

    Published and random weights are found by what the checkpoint says; a file it knows by its digest alone.

    Args:
        weights: `FILE` for all backbones whose weights came from a file, or `NAME=FILE` for one.
        path: the checkpoint, for messages.

    Raises:
        InputError: a file is not named, or is another one; timm describes the backbone otherwise than it did.
    """
    identities = {own.name: own.identity for own in inputs}
    general, special = None, {}
    for value in weights:
        name, equals, what = value.partition("=")
        if equals and name in identities:
            special[name] = what
        else:
            general = value
    files = [name for name, identity in identities.items() if identity.weights.startswith("sha256:")]
    if general is not None and not files:
        raise InputError(
            "has no backbone with weights from a file, and would not use --weights", path=path, remedy="Leave them out."
        )
    found = {}
    for name, identity in identities.items():
        given = special.get(name, general if name in files else None)
        if given is None and name in files:
            raise InputError(
                f"reads features of {name} with weights from a file ({identity.weights})",
                path=path,
                remedy=f"Name that file: --weights {name}=FILE.",
            )
        given = given or (identity.weights if identity.is_random else "default")
        offered = identify(identity.name, given, size=identity.size, fit=identity.fit)
        if offered != identity:
            ours, theirs = offered.to_dict(), identity.to_dict()
            field = next(field for field in theirs if ours[field] != theirs[field])
            raise InputError(
                f"was trained on features of {name} with {field} {theirs[field]}, here it is {ours[field]}",
                path=path,
                remedy="Use the weights that its features came from."
                if field == "weights"
                else "Install the version of timm that its features came from.",
            )
        found[name] = given
    return found


def looks(
    inputs: Sequence[StreamInput],
    backbones: Mapping[str, Backbone],
    crops: Mapping[str, Sequence[np.ndarray | None]],
    *,
    batch_size: int = 16,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Features of n samples out of their crops, rounded to float16 as the embedding job stores them.

    Args:
        crops: of each stream, n pictures uint8 (h, w, 3), or None where a sample lacks the stream.

    Returns:
        For each stream the features (n, D) or (n, T, D), 0 where it lacks, and bool (n,), where it is there.
    """
    features: dict[str, np.ndarray] = {}
    there: dict[str, np.ndarray] = {}
    for own in inputs:
        backbone, several = backbones[own.name], crops[own.stream]
        shape = (own.grid**2, own.identity.token_dim) if own.grid else (own.identity.dim,)
        values = np.zeros((len(several), *shape), np.float16)
        present = np.array([crop is not None for crop in several], dtype=bool)
        rows = np.flatnonzero(present)
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            pixels = np.stack([backbone.prepare(crop) for i in some if (crop := several[i]) is not None])
            pooled, tokens = backbone(pixels, tokens=own.grid)
            values[some] = pooled if tokens is None else tokens
        features[own.stream], there[own.stream] = values, present
    return features, there


def squares(
    inputs: Sequence[StreamInput], crops: Mapping[str, Sequence[np.ndarray | None]]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What a head with its own backbones reads of n samples: `looks`, with crops (n, S, S, 3) uint8 for features."""
    pixels: dict[str, np.ndarray] = {}
    there: dict[str, np.ndarray] = {}
    for own in inputs:
        several = crops[own.stream]
        values = np.zeros((len(several), own.identity.size, own.identity.size, 3), np.uint8)
        for row, crop in enumerate(several):
            if crop is not None:
                values[row] = np.asarray(fitted(Image.fromarray(np.ascontiguousarray(crop)), own.identity))
        pixels[own.stream] = values
        there[own.stream] = np.array([crop is not None for crop in several], dtype=bool)
    return pixels, there


def masks(streams: Sequence[str], there: Mapping[str, np.ndarray], n: int) -> np.ndarray:
    """Bool (n, S) of a head with these streams; False for one that nobody looked at."""
    none = np.zeros(n, dtype=bool)
    return np.stack([there.get(stream, none) for stream in streams], axis=1)


def needs(inputs: Sequence[StreamInput]) -> str:
    """What a sample has to have, in words: one of these is enough."""
    words = {"context": "a picture", "body": "a body box", "face": "a face box"}
    return " or ".join(words[own.stream] for own in inputs)
