"""The files of a checkpoint: their names, what config.json may say, and their fingerprint. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from raymotion import storage
from raymotion.config import digest_of
from raymotion.data.path_kinds import wrong_kind
from raymotion.data.streams import STREAMS
from raymotion.errors import InputError
from raymotion.learning.metrics.multilabel import Evaluation
from raymotion.models.fusion.config import FusionConfig
from raymotion.models.vision.regions import ExtractorIdentity
from raymotion.models.weights_file import Header
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
FORMAT = 2
# Key in the metadata of the weights file: digests of the files that these weights belong to.
MARK = "raymotion"
# Pixels a side that a model may read: more is a damaged number, and would be allocated before anything notices.
LARGEST_PICTURE = 4096
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
        other = wrong_kind(where, "checkpoint")
        if other is not None:
            raise other
        there = storage.exists(where) or storage.list_names(where)
        raise InputError(
            "is not a checkpoint: it has no config.json" if there else "no such checkpoint",
            path=where,
            remedy="Train one with `raymotion train`; `raymotion pull owner/name --out DIR` fetches one from a hub.",
        )
    config = storage.read_json(path)
    if not isinstance(config, dict) or config.get("architecture") not in [*ARCHITECTURES]:  # it may be a list
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


@dataclass(frozen=True)
class Contents:
    """What config.json, vocabulary.json and training.json of a checkpoint say, checked."""

    config: dict[str, Any]
    vocabulary: Vocabulary
    modalities: tuple[str, ...]
    training: dict[str, Any]
    prior: tuple[float, ...] | None
    thresholds: tuple[float, ...] | None


def read_contents(where: str) -> Contents:
    """The small files of the checkpoint `where`.

    Raises:
        InputError: one of them is missing, is damaged, or holds a value that it cannot have. The file is named.
    """
    config = read_config(where)
    path = storage.join(where, CONFIG)
    vocabulary = Vocabulary.from_dict(config["vocabulary"], where=path)
    modalities = config["modalities"]
    known = ARCHITECTURES[config["architecture"]]
    if (
        not isinstance(modalities, list)
        or not modalities
        or any(name not in known for name in modalities)
        or len(modalities) != len({*modalities})
    ):
        raise InputError(f"modalities {modalities} are not of {list(known)}", path=path)
    _check_model(config, path)
    stated = Vocabulary.from_dict(storage.read_json(storage.join(where, VOCABULARY)), where=_in(where, VOCABULARY))
    stated.require_same(vocabulary, here=_in(where, VOCABULARY), there=path)
    training = storage.read_json(storage.join(where, TRAINING))
    if not isinstance(training, dict):
        raise InputError("holds no mapping", path=storage.join(where, TRAINING))
    _check_training(training, storage.join(where, TRAINING))
    return Contents(
        config,
        vocabulary,
        tuple(modalities),
        training,
        _per_label(training, "prior", vocabulary, where, highest=1.0),
        _per_label(training, "thresholds", vocabulary, where, highest=math.inf),
    )


def _in(where: str, name: str) -> str:
    return storage.join(where, name)


def _check_model(config: Mapping[str, Any], path: str) -> None:
    """Refuses what a job would trip over before the model itself is built, which checks the rest."""
    model, architecture = config["model"], config["architecture"]
    if not isinstance(model, dict):
        raise InputError("model is not a mapping", path=path)
    if architecture == "student":
        for name, highest in (("image_size", LARGEST_PICTURE), ("max_text_length", 512)):
            value = model.get(name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= highest:
                raise InputError(f"model.{name} is {value!r}, not a number from 1 to {highest}", path=path)
    extractor = config["extractor"]
    if extractor is not None:
        ExtractorIdentity.from_dict(extractor, where=path)
    if architecture in FUSIONS:
        _check_fusion(config, path)


def _check_fusion(config: Mapping[str, Any], path: str) -> None:
    tuned = config["architecture"] == "fusion-tuned"
    head = config["model"].get("fusion") if tuned else config["model"]
    try:
        FusionConfig.model_validate(head)
    except ValidationError as error:
        raise _invalid("model.fusion" if tuned else "model", error, path) from error
    except InputError as error:
        raise InputError(error.reason, path=path) from error
    origin = config["fusion"]
    backbones = origin.get("backbones") if isinstance(origin, dict) else None
    loss = origin.get("loss") if isinstance(origin, dict) else None
    if not isinstance(backbones, dict) or not isinstance(loss, dict) or not isinstance(loss.get("name"), str):
        raise InputError("fusion does not say which backbones it reads and which loss it was trained with", path=path)
    for stream, own in backbones.items():
        named = isinstance(own, dict) and isinstance(own.get("name"), str) and isinstance(own.get("identity"), dict)
        if not named or stream not in STREAMS:
            raise InputError(f"fusion.backbones.{stream} does not name a backbone and its identity", path=path)


def _invalid(prefix: str, error: ValidationError, path: str) -> InputError:
    first = error.errors()[0]
    return InputError(f"{'.'.join([prefix, *(str(part) for part in first['loc'])])}: {first['msg']}", path=path)


def _check_training(training: Mapping[str, Any], path: str) -> None:
    for name, kind in (("data", dict), ("settings", dict), ("history", list), ("emotic", dict)):
        value = training.get(name)
        if value is not None and not isinstance(value, kind):
            raise InputError(f"{name} is not a {'mapping' if kind is dict else 'list'}", path=path)
    if any(not isinstance(epoch, dict) for epoch in training.get("history") or []):
        raise InputError("history is not a list of epochs", path=path)
    seen = (training.get("data") or {}).get("seen")
    if seen is not None and (not isinstance(seen, list) or any(not isinstance(mark, str) for mark in seen)):
        raise InputError("data.seen is not a list of texts", path=path)
    for name in ("validation", "test"):
        if training.get(name) is not None:
            Evaluation.from_dict(training[name], where=path)


def _per_label(
    training: Mapping[str, Any], name: str, vocabulary: Vocabulary, where: str, *, highest: float
) -> tuple[float, ...] | None:
    """Numbers by label that training.json may hold, each from 0 to `highest`; None where it does not."""
    values = training.get(name)
    if values is None:
        return None
    if (
        not isinstance(values, list)
        or len(values) != len(vocabulary)
        or any(isinstance(value, bool) or not isinstance(value, int | float) for value in values)
    ):
        raise InputError(f"{name} is not a list of {len(vocabulary)} numbers", path=storage.join(where, TRAINING))
    for label, value in zip(vocabulary.labels, values, strict=True):
        if not 0 <= value <= highest or value > 1e9:
            raise InputError(f"{name} of {label} is {value}", path=storage.join(where, TRAINING))
    return tuple(float(value) for value in values)


def binding(
    config: Mapping[str, Any], vocabulary: Mapping[str, Any], tokenizer: str | None, training: Mapping[str, Any]
) -> dict[str, str]:
    """Digests of what these weights belong to, which travel in the weights file.

    They cover what decides the labels: of training.json the numbers by label; the record of the training (times,
    versions) may differ between runs that give the same weights.
    """
    return {
        CONFIG: digest_of(config),
        VOCABULARY: digest_of(vocabulary),
        **({} if tokenizer is None else {TOKENIZER: digest_of(json.loads(tokenizer))}),
        TRAINING: digest_of([training.get("prior"), training.get("thresholds")]),
    }


def check_binding(header: Header, contents: Contents, where: str, copy: str) -> None:
    """Raises unless each small file is the one that was written with the weights.

    Args:
        where, copy: the checkpoint, and the folder that its files are read from.
    """
    try:
        stated = json.loads(header.metadata.get(MARK, "null"))
    except (ValueError, RecursionError):
        stated = None
    if not isinstance(stated, dict):
        raise InputError(
            "does not say which config.json it belongs to",
            path=storage.join(where, WEIGHTS),
            remedy="Use the folder that `raymotion train` wrote, whole.",
        )
    tokenizer = None
    if config_reads_text(contents.config):
        storage.read_json(storage.join(copy, TOKENIZER))  # says what is wrong with it
        tokenizer = storage.read_text(storage.join(copy, TOKENIZER))
    vocabulary = storage.read_json(storage.join(where, VOCABULARY))
    for name, digest in binding(contents.config, vocabulary, tokenizer, contents.training).items():
        if stated.get(name) != digest:
            raise InputError(
                f"is not the file that was written with these weights (its digest is {digest}, "
                f"{WEIGHTS} names {stated.get(name)})",
                path=storage.join(where, name),
                remedy="It was edited, or exchanged with another checkpoint's: restore it.",
            )


def config_reads_text(config: Mapping[str, Any]) -> bool:
    """Whether a model of this config.json has a tokenizer."""
    return config["architecture"] not in FUSIONS


def fingerprint(where: str, copy: str, architecture: str) -> str:
    """16 hex digits over what decides the predictions of the checkpoint `where`, whose files are in `copy`."""
    digest = hashlib.sha256()
    for name in fingerprinted(architecture):
        digest.update(f"{name}:{storage.sha256_file(storage.join(copy, name))}\n".encode())
    return digest.hexdigest()[:16]


def check_weights(header: Header, expected: Mapping[str, Iterable[int]], path: str) -> None:
    """Raises unless the weights file holds exactly the tensors of `expected`, name -> shape."""
    for name in sorted(expected.keys() | header.tensors.keys()):
        if name not in header.tensors or name not in expected:
            raise InputError(f"{'lacks' if name not in header.tensors else 'has an unknown'} weight {name}", path=path)
        shape, wanted = header.tensors[name].shape, tuple(expected[name])
        if shape != wanted:
            raise InputError(f"weight {name} has shape {shape}, config.json says {wanted}", path=path)


def to_json(value: Any, name: str) -> bytes:
    """`value` as the file `name` of a checkpoint; NaN is an error."""
    return storage.json_text(value, name).encode()
