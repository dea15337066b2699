"""The files of a checkpoint: their names, validation, and fingerprint. Does not import torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymotion import storage
from raymotion.config import digest_of
from raymotion.data.path_kinds import wrong_kind
from raymotion.errors import InputError
from raymotion.learning.metrics.multilabel import Evaluation
from raymotion.models.inputs.base import Input
from raymotion.models.inputs.table import read_inputs
from raymotion.models.kind import Kind
from raymotion.models.outputs.base import Output
from raymotion.models.outputs.table import read_outputs
from raymotion.models.registry import get_kind
from raymotion.models.weights_file import Header

FORMAT = 3
# Metadata key in the weights file, for the digests of the other files.
MARK = "raymotion"
WEIGHTS, CONFIG, TRAINING, CARD, ANSWERS, DOMAIN = (
    "model.safetensors", "config.json", "training.json", "README.md", "answers.parquet", "domain.safetensors",
)  # fmt: skip


def read_config(where: str) -> dict[str, Any]:
    """Reads config.json of the folder `where`; raises an `InputError` if it is missing or invalid."""
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
    if not isinstance(config, dict) or not isinstance(config.get("kind"), str):
        named = config.get("architecture") or config.get("architectures") if isinstance(config, dict) else None
        raise InputError(
            f"is not a checkpoint of raymotion ({named or 'it names no kind of model'})",
            path=path,
            remedy="Give a folder that `raymotion train` wrote, or that `raymotion wrap` made of a model of "
            "transformers; pretrained weights go into the recipe as init.",
        )
    if config.get("format") != FORMAT:
        raise InputError(f"has format {config.get('format')}, this version reads {FORMAT}", path=path)
    missing = [name for name in ("model", "inputs", "outputs", "files") if name not in config]
    if missing:
        raise InputError(f"lacks {', '.join(missing)}", path=path)
    if not isinstance(config["model"], dict):
        raise InputError("model is not a mapping", path=path)
    files = config["files"]
    if not isinstance(files, list) or any(not isinstance(name, str) or not _is_plain(name) for name in files):
        raise InputError("files is not a list of names", path=path)
    return config


def _is_plain(name: str) -> bool:
    return bool(name) and not name.startswith(".") and not set(name) & {"/", "\\", ":", "\0"}


@dataclass(frozen=True)
class Contents:
    """Validated contents of config.json and training.json."""

    config: dict[str, Any]
    kind: Kind
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    training: dict[str, Any]


def read_contents(where: str, copy: str) -> Contents:
    """Reads the small files of the checkpoint `where`.

    Args:
        copy: folder of the other files: the same, or a local copy.

    Raises:
        InputError: a file (named in the message) is missing, damaged, or has an invalid value.
    """
    config = read_config(where)
    path = storage.join(where, CONFIG)
    kind = get_kind(config["kind"], path=path)
    inputs = read_inputs(config["inputs"], where=path, folder=copy)
    outputs = read_outputs(config["outputs"], where=path)
    kind.check(config["model"], where=path)
    training = storage.read_json(storage.join(where, TRAINING))
    if not isinstance(training, dict):
        raise InputError("holds no mapping", path=storage.join(where, TRAINING))
    _check_training(training, outputs, storage.join(where, TRAINING))
    return Contents(config, kind, inputs, outputs, training)


def _check_training(training: Mapping[str, Any], outputs: Sequence[Output], path: str) -> None:
    for name, kind in (("data", dict), ("domain", dict), ("settings", dict), ("history", list), ("outputs", dict)):
        value = training.get(name)
        if value is not None and not isinstance(value, kind):
            raise InputError(f"{name} is not a {'mapping' if kind is dict else 'list'}", path=path)
    if any(not isinstance(epoch, dict) for epoch in training.get("history") or []):
        raise InputError("history is not a list of epochs", path=path)
    seen = (training.get("data") or {}).get("seen")
    if seen is not None and (not isinstance(seen, list) or any(not isinstance(mark, str) for mark in seen)):
        raise InputError("data.seen is not a list of texts", path=path)
    stated = training.get("outputs") or {}
    for name, facts in stated.items():
        if not isinstance(facts, dict):
            raise InputError(f"outputs.{name} is not a mapping", path=path)
    for output in outputs:
        facts = stated.get(output.name) or {}
        output.check_facts(facts, where=path)
        for name in ("validation", "test"):
            if facts.get(name) is not None:
                Evaluation.from_dict(facts[name], where=path)


def binding(config: Mapping[str, Any], files: Mapping[str, bytes], training: Mapping[str, Any]) -> dict[str, str]:
    """Returns digests of the other files, which are stored in the weights file.

    They cover everything that affects predictions and the choice of labels. Of training.json that is only the facts of
    the outputs, without their metrics: the record of the training (times, versions) may differ between runs that give
    the same weights.
    """
    facts = {
        name: {key: value for key, value in own.items() if key not in ("validation", "test")}
        for name, own in (training.get("outputs") or {}).items()
    }
    others = {name: _digest(name, data) for name, data in files.items()}
    return {CONFIG: digest_of(config), **others, TRAINING: digest_of(facts)}


def _digest(name: str, data: bytes) -> str:
    """Returns the digest of a file; for JSON that of its values, because line endings may change on Windows."""
    if name.endswith(".json"):
        with contextlib.suppress(ValueError, RecursionError):
            return digest_of(json.loads(data))
    return hashlib.sha256(data).hexdigest()[:16]


def check_binding(header: Header, contents: Contents, where: str, copy: str) -> None:
    """Raises an `InputError` unless each small file was written together with the weights.

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
    files = {name: storage.require(storage.join(copy, name)) for name in contents.config["files"]}
    for name, digest in binding(contents.config, files, contents.training).items():
        if stated.get(name) != digest:
            raise InputError(
                f"is not the file that was written with these weights (its digest is {digest}, "
                f"{WEIGHTS} names {stated.get(name)})",
                path=storage.join(where, name),
                remedy="It was edited, or exchanged with another checkpoint's: restore it.",
            )


def fingerprinted(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of the files that determine the predictions; the record of the training is not among them."""
    return (WEIGHTS, CONFIG, *config["files"])


def fingerprint(where: str, copy: str, config: Mapping[str, Any]) -> str:
    """Returns 16 hex digits over the files (in `copy`) that determine the predictions of the checkpoint `where`."""
    digest = hashlib.sha256()
    for name in fingerprinted(config):
        digest.update(f"{name}:{storage.sha256_file(storage.join(copy, name))}\n".encode())
    return digest.hexdigest()[:16]


def check_weights(header: Header, expected: Mapping[str, Iterable[int]], path: str) -> None:
    """Raises an `InputError` unless the weights file contains exactly the tensors of `expected`, name -> shape."""
    for name in sorted(expected.keys() | header.tensors.keys()):
        if name not in header.tensors or name not in expected:
            raise InputError(f"{'lacks' if name not in header.tensors else 'has an unknown'} weight {name}", path=path)
        shape, wanted = header.tensors[name].shape, tuple(expected[name])
        if shape != wanted:
            raise InputError(f"weight {name} has shape {shape}, config.json says {wanted}", path=path)
