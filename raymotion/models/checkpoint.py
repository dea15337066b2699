"""Checkpoints: a folder that opens on any machine, without pickle.

    model.safetensors   the weights
    config.json         architecture, shape, vocabulary, modalities, extractor: what is needed to use the model
    vocabulary.json     the labels in order, for people and other programs
    tokenizer.json      the whole tokenizer
    training.json       where it comes from: settings, seed, data, history, class rates, thresholds, metrics
    README.md           the model card, written from training.json
    answers.parquet     what training ended with: probabilities of the validation and test samples, by sample_id

`read_checkpoint_info` reads all but the weights and does not import torch; `load_teacher` gives the model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import raymotion
from raymotion import storage
from raymotion.errors import InputError
from raymotion.models.card import model_card
from raymotion.models.checkpoint_files import (
    ANSWERS,
    ARCHITECTURES,
    CARD,
    CONFIG,
    FORMAT,
    FUSIONS,
    MARK,
    TOKENIZER,
    TRAINING,
    VOCABULARY,
    WEIGHTS,
    binding,
    check_binding,
    check_weights,
    fingerprint,
    fingerprinted,
    read_config,
    read_contents,
    to_json,
)
from raymotion.models.finite import require_finite
from raymotion.models.loaded import LoadedFusion, LoadedStudent, Teacher
from raymotion.models.weights_file import Header, read_header
from raymotion.stores.local_files import replaced
from raymotion.vocabulary import Vocabulary

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import nn
    from transformers import PreTrainedTokenizerFast

    from raymotion.models.fusion.network import FusionHead
    from raymotion.models.fusion_tuned.network import TunedStreams
    from raymotion.models.student.network import Student
    from raymotion.models.visualbert.network import VisualBertTeacher


@dataclass(frozen=True)
class CheckpointInfo:
    """All that is known of a checkpoint without opening its weights.

    Attributes:
        architecture: a key of `ARCHITECTURES`.
        config: the `TeacherConfig` or `StudentConfig` as a mapping.
        modalities: what it was trained on, of those that its architecture can read. It predicts from these alone.
        extractor: {"name", "weights", "count", "dim"} of the region features it was trained on, or None.
        prior: class rates of its training split, (L,), or None.
        thresholds: per-class thresholds fitted on validation, (L,), or None.
        validation, test: `Evaluation.to_dict()`, or None.
        fingerprint: 16 hex digits over weights, config and tokenizer.
        training: the whole of training.json.
        backbones: of a fusion head: stream -> identity of the frozen backbone whose features it reads.
        fusion_loss: of a fusion head: the loss it was trained with, which says what its outputs mean.
    """

    folder: str
    architecture: str
    config: dict[str, Any]
    vocabulary: Vocabulary
    modalities: tuple[str, ...]
    extractor: dict[str, Any] | None
    prior: tuple[float, ...] | None
    thresholds: tuple[float, ...] | None
    validation: dict[str, Any] | None
    test: dict[str, Any] | None
    fingerprint: str
    training: dict[str, Any]
    backbones: dict[str, dict[str, Any]] | None = None
    fusion_loss: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """What a job's record says of its teacher."""
        return {
            "path": self.folder,
            "fingerprint": self.fingerprint,
            "architecture": self.architecture,
            "modalities": list(self.modalities),
            "extractor": self.extractor,
            **({} if self.backbones is None else {"backbones": self.backbones}),
            "prior": None if self.prior is None else list(self.prior),
            "thresholds": None if self.thresholds is None else list(self.thresholds),
            "validation": self.validation,
        }


def save_checkpoint(
    folder: storage.PathLike,
    model: VisualBertTeacher | Student | FusionHead | TunedStreams,
    tokenizer: PreTrainedTokenizerFast | None,
    vocabulary: Vocabulary,
    *,
    modalities: Sequence[str],
    extractor: Mapping[str, Any] | None,
    training: Mapping[str, Any],
    fusion: Mapping[str, Any] | None = None,
    answers: pa.Table | None = None,
) -> CheckpointInfo:
    """Writes the checkpoint, whole or not at all, in place of one that is there.

    Args:
        tokenizer: None for a model that reads no text.
        fusion: of a fusion head: `backbones`, stream -> identity and input, and `loss`, which says what its outputs
            mean (`learning.multilabel_losses.make_loss`).
        answers: sample_id, split and probabilities of the samples that the model was measured on.

    Raises:
        InputError: the folder holds something else than a checkpoint.
    """
    from safetensors.torch import save

    from raymotion.models.text.tokenizer import tokenizer_json

    known = ARCHITECTURES[model.architecture]
    if not modalities or set(modalities) - set(known):
        raise ValueError(f"modalities {list(modalities)} are not one or both of {known}")
    config = {
        "format": FORMAT,
        "architecture": model.architecture,
        "model": model.config.model_dump(mode="json"),
        "vocabulary": vocabulary.to_dict(),
        "modalities": list(modalities),
        "extractor": None if extractor is None else dict(extractor),
        **({} if fusion is None else {"fusion": dict(fusion)}),
    }
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    require_finite(weights, WEIGHTS)
    record = {**training, "raymotion": raymotion.__version__}
    pieces = None if tokenizer is None else tokenizer_json(tokenizer)
    # One entry: safetensors writes several in the order of a hash map, and the same model would give other bytes.
    mark = {MARK: json.dumps(binding(config, vocabulary.to_dict(), pieces, record))}
    files: dict[str, bytes] = {
        WEIGHTS: save(weights, mark),
        VOCABULARY: to_json(vocabulary.to_dict(), VOCABULARY),
        **({} if pieces is None else {TOKENIZER: pieces.encode()}),
        TRAINING: to_json(record, TRAINING),
        **({} if answers is None else {ANSWERS: storage.parquet_bytes(answers)}),
        CARD: model_card(config, record, parameters=sum(w.numel() for w in weights.values())).encode(),
        # Last: where there is a config.json, all the rest is there too.
        CONFIG: to_json(config, CONFIG),
    }
    target = storage.absolute(folder)
    if storage.is_remote(target):
        storage.remove(storage.join(target, CONFIG))
        for name, data in files.items():
            storage.write_bytes(storage.join(target, name), data)
    else:
        _write_local(os.path.realpath(target), files)  # where a link leads: the link stays
    return read_checkpoint_info(target)


def _write_local(target: str, files: Mapping[str, bytes]) -> None:
    if storage.list_entries(target) and not os.path.exists(os.path.join(target, CONFIG)):
        raise InputError("is not empty and is not a checkpoint", path=target, remedy="Name another folder.")
    with replaced(target) as temporary:
        for name, data in files.items():
            storage.write_bytes(storage.join(temporary, name), data)


def is_checkpoint(folder: storage.PathLike) -> bool:
    """Whether a finished checkpoint stands there."""
    return storage.exists(storage.join(storage.absolute(folder), CONFIG))


def read_checkpoint_info(folder: storage.PathLike) -> CheckpointInfo:
    """What the checkpoint is, without its weights and without torch.

    Raises:
        InputError: a file is missing or damaged (it is named), or another program's model lies there.
    """
    where = storage.absolute(folder)
    return _read_info(where, where)


def _read_info(where: str, copy: str) -> CheckpointInfo:
    """The checkpoint `where`, with the fingerprint of the files in `copy`: the same folder, or what was fetched."""
    contents = read_contents(where)
    config, training = contents.config, contents.training
    header = read_header(storage.join(copy, WEIGHTS), shown=storage.join(where, WEIGHTS))
    check_binding(header, contents, where, copy)
    return CheckpointInfo(
        folder=where,
        architecture=config["architecture"],
        config=dict(config["model"]),
        vocabulary=contents.vocabulary,
        modalities=contents.modalities,
        extractor=config["extractor"],
        prior=contents.prior,
        thresholds=contents.thresholds,
        validation=training.get("validation"),
        test=training.get("test"),
        fingerprint=fingerprint(where, copy, config["architecture"]),
        training=training,
        backbones=config.get("fusion", {}).get("backbones"),
        fusion_loss=dict(config.get("fusion", {}).get("loss", {})),
    )


def sample_mark(sample_id: str) -> str:
    """10 hex digits for a sample: what a checkpoint keeps of those that it was trained on."""
    return hashlib.sha256(sample_id.encode()).hexdigest()[:10]


def load_teacher(folder: storage.PathLike, device: str = "cpu", *, expected_fingerprint: str | None = None) -> Teacher:
    """The teacher in `folder` (local or an address), in evaluation mode on `device`.

    Args:
        expected_fingerprint: the fingerprint that it had when the job began; None takes whatever is there.

    Raises:
        InputError: as `read_checkpoint_info`, for a student, for weights that do not fit the config, and for a
            checkpoint that is no longer the expected one.
    """
    model, tokenizer, info = _fetch_and_load(folder, device, "visualbert-teacher", expected_fingerprint)
    return Teacher(model, tokenizer, info.vocabulary, info)


def load_student(
    folder: storage.PathLike, device: str = "cpu", *, expected_fingerprint: str | None = None
) -> LoadedStudent:
    """The student in `folder`; see `load_teacher`."""
    model, tokenizer, info = _fetch_and_load(folder, device, "student", expected_fingerprint)
    return LoadedStudent(model, tokenizer, info.vocabulary, info)


def load_fusion(
    folder: storage.PathLike, device: str = "cpu", *, expected_fingerprint: str | None = None
) -> LoadedFusion:
    """The fusion head in `folder`; see `load_teacher`."""
    model, _, info = _fetch_and_load(folder, device, "fusion", expected_fingerprint)
    return LoadedFusion(model, info.vocabulary, info)


def load_any_fusion(
    folder: storage.PathLike, device: str = "cpu", *, expected_fingerprint: str | None = None
) -> LoadedFusion:
    """The fusion head in `folder`, on cached features or with its own backbones; see `load_teacher`."""
    if read_config(storage.absolute(folder))["architecture"] != "fusion-tuned":
        return load_fusion(folder, device, expected_fingerprint=expected_fingerprint)
    model, info = load_tuned(folder, device, expected_fingerprint=expected_fingerprint)
    return LoadedFusion(model, info.vocabulary, info)


def load_tuned(
    folder: storage.PathLike, device: str = "cpu", *, expected_fingerprint: str | None = None
) -> tuple[TunedStreams, CheckpointInfo]:
    """Backbones and fusion head in `folder`; see `load_teacher`. Needs no hub: the backbones' weights are in there."""
    model, _, info = _fetch_and_load(folder, device, "fusion-tuned", expected_fingerprint)
    return model, info


def _fetch_and_load(
    folder: storage.PathLike, device: str, architecture: str, expected_fingerprint: str | None
) -> tuple[Any, Any, CheckpointInfo]:
    """Model, tokenizer (None of a model that reads no text), and what is known of the checkpoint."""
    where = storage.absolute(folder)
    with contextlib.ExitStack() as stack:
        copy = where
        if storage.is_remote(where):
            # First of all: tells a folder that is no checkpoint from one that lacks its weights.
            files = fingerprinted(read_config(where)["architecture"])
            copy = stack.enter_context(tempfile.TemporaryDirectory(prefix="raymotion-"))
            for name in files:
                data = storage.require(storage.join(where, name))
                storage.write_bytes(storage.join(copy, name), data, durable=False)
        info = _read_info(where, copy)
        if info.architecture != architecture:
            raise InputError(f"is a {info.architecture}, not a {architecture}", path=where)
        if expected_fingerprint is not None and info.fingerprint != expected_fingerprint:
            raise InputError(
                f"the checkpoint changed since the job began (fingerprint {expected_fingerprint} then, "
                f"{info.fingerprint} now)",
                path=where,
                remedy="Start the job in a fresh folder.",
            )
        model, tokenizer = _load(copy, info)
        return model.to(device).eval(), tokenizer, info


def _model_of(info: CheckpointInfo) -> tuple[VisualBertTeacher | Student | FusionHead | TunedStreams, int | None]:
    """A model of the checkpoint's shape, with the weights it was drawn with, and the word pieces that it reads."""
    from pydantic import ValidationError

    try:
        if info.architecture == "fusion":
            from raymotion.models.fusion.network import FusionConfig, FusionHead

            return FusionHead(FusionConfig.model_validate(info.config), len(info.vocabulary)), None
        if info.architecture == "fusion-tuned":
            from raymotion.models.fusion_tuned.network import TunedConfig, TunedStreams

            return TunedStreams(TunedConfig.model_validate(info.config), len(info.vocabulary)), None
        if info.architecture == "student":
            from raymotion.models.student.network import Student, StudentConfig

            student = StudentConfig.model_validate(info.config)
            return Student(student, len(info.vocabulary)), student.vocab_size
        from raymotion.models.visualbert.network import TeacherConfig, VisualBertTeacher

        teacher = TeacherConfig.model_validate(info.config)
        return VisualBertTeacher(teacher, len(info.vocabulary)), teacher.vocab_size
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"model.{'.'.join(str(part) for part in first['loc'])}: {first['msg']}",
            path=storage.join(info.folder, CONFIG),
        ) from error


def _check_size(info: CheckpointInfo, header: Header) -> None:
    """Raises unless a model of config.json has the tensors of the weights file. No memory is asked for before that.

    The model is built on PyTorch's meta device, where tensors have shapes and nothing else.
    """
    import torch

    path = storage.join(info.folder, CONFIG)
    layers = _layers_of(info.config)
    if layers > len(header.tensors):
        raise InputError(f"names {layers} layers, and {WEIGHTS} holds {len(header.tensors)} tensors", path=path)
    try:
        with torch.device("meta"):
            model, _ = _model_of(info)
    except InputError as error:
        raise error if error.path else InputError(error.reason, path=path) from error
    except NotImplementedError:  # a few models of timm compute sizes from values, of which meta has none
        return
    except Exception as error:  # whatever PyTorch says of sizes that no tensor can have
        if "meta tensor" in str(error):
            return
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"describes no model ({text})", path=path) from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    check_weights(header, expected, storage.join(info.folder, WEIGHTS))


def _layers_of(value: object) -> int:
    """The largest number of layers that config.json names anywhere: each of them is built, whatever its size."""
    if not isinstance(value, Mapping):
        return 0
    own = [value[name] for name in ("layers", "num_hidden_layers") if isinstance(value.get(name), int)]
    return max([*own, *(_layers_of(inner) for inner in value.values())], default=0)


def _load(local: str, info: CheckpointInfo) -> tuple[nn.Module, PreTrainedTokenizerFast | None]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from raymotion.models.text.tokenizer import load_tokenizer

    path = storage.join(info.folder, WEIGHTS)
    _check_loss(info)
    header = read_header(storage.join(local, WEIGHTS), shown=path)
    _check_size(info, header)
    model, pieces = _model_of(info)
    tokenizer = None
    if pieces is not None:
        tokenizer = load_tokenizer(storage.join(local, TOKENIZER), shown=storage.join(info.folder, TOKENIZER))
        if len(tokenizer) != pieces:
            raise InputError(
                f"has {len(tokenizer)} pieces, the model reads {pieces}",
                path=storage.join(info.folder, TOKENIZER),
            )
    try:
        weights = load_file(storage.join(local, WEIGHTS))
    except (SafetensorError, OSError) as error:
        raise InputError(f"is damaged ({str(error).splitlines()[0]})", path=path) from error
    check_weights(header, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, path)
    require_finite(weights, path)
    model.load_state_dict(weights)
    return model, tokenizer


def _check_loss(info: CheckpointInfo) -> None:
    if info.architecture not in FUSIONS:
        return
    from raymotion.learning.losses.multilabel import probabilities_of

    try:
        probabilities_of(info.fusion_loss["name"])
    except InputError as error:
        raise InputError(f"fusion.loss: {error.reason}", path=storage.join(info.folder, CONFIG)) from error
