"""Checkpoints: folders that load on any machine, without pickle.

    model.safetensors   the weights
    config.json         kind, shape, inputs, outputs with vocabulary and scale: all that is needed to use the model
    training.json       origin: settings, seed, data, history; facts and metrics of each output
    tokenizer.json      the complete tokenizer, if the model reads captions
    README.md           the model card, written from training.json
    domain.safetensors  features of some training samples, for the domain check of what it labels
    answers.parquet     predictions for the validation and test samples at the end of training, by sample_id

`read_checkpoint_info` reads everything except the weights and does not import torch; `load_model` loads the model.
Neither imports code named in the checkpoint: a third-party kind must already be registered (`models.registry`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from raymotion import records, storage
from raymotion.config import message_of
from raymotion.errors import InputError
from raymotion.models.card import model_card
from raymotion.models.checkpoint_files import (
    ANSWERS,
    CARD,
    CONFIG,
    DOMAIN,
    FORMAT,
    MARK,
    TRAINING,
    WEIGHTS,
    binding,
    check_binding,
    check_weights,
    fingerprint,
    fingerprinted,
    read_config,
    read_contents,
)
from raymotion.models.finite import require_finite
from raymotion.models.inputs.base import Evidence, Input
from raymotion.models.kind import Kind
from raymotion.models.outputs.base import Output
from raymotion.models.weights_file import Header, read_header
from raymotion.stores.local_files import replaced
from raymotion.version import __version__
from raymotion.vocabulary import Vocabulary

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import nn


@dataclass(frozen=True)
class CheckpointInfo:
    """Everything about a checkpoint except its weights.

    Attributes:
        kind: the kind of model.
        model: the network's shape.
        inputs, outputs: of the network, in order.
        fingerprint: 16 hex digits over weights, config and tokenizer.
        training: contents of training.json.
        members: the models of which it is the mean (`models.ensemble`), at least two; empty for a checkpoint.
    """

    folder: str
    kind: Kind
    model: dict[str, Any]
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    fingerprint: str
    training: dict[str, Any]
    members: tuple[CheckpointInfo, ...] = ()

    @property
    def labels(self) -> Output | None:
        """The first output with a vocabulary; None if the model predicts no labels."""
        return next((own for own in self.outputs if own.vocabulary is not None), None)

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of the predicted labels.

        Raises:
            InputError: the model predicts no labels.
        """
        vocabulary = None if self.labels is None else self.labels.vocabulary
        if vocabulary is None:
            raise InputError("is a model without a vocabulary: it gives numbers, no emotions", path=self.folder)
        return vocabulary

    @property
    def one_label(self) -> bool:
        """Whether exactly one of its labels applies to a sample."""
        return self.labels is not None and self.labels.gives == "one_label"

    @property
    def reads(self) -> tuple[str, ...]:
        """The parts of the inputs that it was trained on: captions, regions, picture, or the streams of a person."""
        return tuple(dict.fromkeys(part for own in self.inputs if own.used for part in own.part_names))

    def input(self, name: str) -> Input | None:
        """Returns the input of this name, or None."""
        return next((own for own in self.inputs if own.name == name), None)

    def facts(self, output: str) -> Mapping[str, Any]:
        """Returns the entries of an output in training.json: `prior`, `thresholds`, `validation`, `test`, etc."""
        return dict((self.training.get("outputs") or {}).get(output) or {})

    @cached_property
    def _of_labels(self) -> Mapping[str, Any]:
        return {} if self.labels is None else self.facts(self.labels.name)

    @property
    def prior(self) -> tuple[float, ...] | None:
        """Class rates in the training split, (L,), or None."""
        return None if (own := self._of_labels.get("prior")) is None else tuple(own)

    @property
    def learned_rates(self) -> tuple[float, ...] | None:
        """Class rates that the probabilities were trained towards, (L,), or None: of soft or smoothed targets, if it
        learned these.

        `prior` is always of hard labels, which soft targets (shares of annotators) do not follow.
        """
        return self.prior if (own := self._of_labels.get("learned_rates")) is None else tuple(own)

    @property
    def _resampling(self) -> str | None:
        """How rows were added to those that the rates are of (`learning.resample`), or None."""
        settings = (self.training.get("settings") or {}).get("resampling")
        made = settings.get("method") if isinstance(settings, Mapping) else None
        return None if made in (None, "none") else str(made)

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """Thresholds of the labels, fitted on validation, (L,), or None."""
        return None if (own := self._of_labels.get("thresholds")) is None else tuple(own)

    @property
    def domain(self) -> str | None:
        """SHA-256 of the sample of its training data, or None."""
        sha256 = (self.training.get("domain") or {}).get("sha256")
        return sha256 if isinstance(sha256, str) else None

    def domain_bytes(self) -> bytes | None:
        """Returns the file of that sample, or None; raises `Damaged` if it is missing or was changed."""
        return None if self.domain is None else records.read_bytes(storage.join(self.folder, DOMAIN), self.domain)

    @property
    def validation(self) -> dict[str, Any] | None:
        """`Evaluation.to_dict()` of the first output on validation, or None."""
        return self.facts(self.outputs[0].name).get("validation")

    @property
    def test(self) -> dict[str, Any] | None:
        """`Evaluation.to_dict()` of the first output on test, or None."""
        return self.facts(self.outputs[0].name).get("test")

    def to_dict(self) -> dict[str, Any]:
        """Returns the description of the model for the record of a job."""
        return {
            "path": self.folder,
            "fingerprint": self.fingerprint,
            "kind": " + ".join(dict.fromkeys(own.kind.name for own in self.members or (self,))),
            **({"members": [own.to_dict() for own in self.members]} if self.members else {}),
            "reads": list(self.reads),
            "inputs": [own.to_dict() for own in self.inputs],
            "outputs": [own.to_dict() for own in self.outputs],
            **({"one_label": True} if self.one_label else {}),
            "prior": None if self.prior is None else list(self.prior),
            **({} if self.learned_rates in (None, self.prior) else {"learned_rates": list(self.learned_rates or ())}),
            **({} if (made := self._resampling) is None else {"resampling": made}),
            "thresholds": None if self.thresholds is None else list(self.thresholds),
            "validation": self.validation,
        }


@dataclass(frozen=True)
class Model:
    """A network with its checkpoint's description, ready to predict.

    Attributes:
        members: loaded, if it is the mean of several; `network` is then that of the first.
    """

    network: nn.Module
    info: CheckpointInfo
    members: tuple[Model, ...] = ()

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The inputs that it reads."""
        return self.info.inputs

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The outputs that it predicts."""
        return self.info.outputs

    def predict(
        self, evidence: Mapping[str, Evidence], *, batch_size: int | None = None, precision: str = "float32"
    ) -> dict[str, np.ndarray]:
        """Predicts n samples; returns decoded values (n, width) float32 by output. See `Kind.predict`."""
        return self.info.kind.predict(self.network, evidence, self.outputs, batch_size=batch_size, precision=precision)


def save_checkpoint(
    folder: storage.PathLike,
    kind: Kind,
    network: nn.Module,
    inputs: Sequence[Input],
    outputs: Sequence[Output],
    *,
    training: Mapping[str, Any],
    answers: pa.Table | None = None,
    domain: bytes | None = None,
) -> CheckpointInfo:
    """Writes a checkpoint atomically, replacing an existing one.

    Args:
        training: contents of training.json; `outputs` contains the facts of each output by name.
        answers: sample_id, split and predictions of the samples that the model was evaluated on.
        domain: file of a sample of the training data (`models.domain_sample`).

    Raises:
        InputError: the folder contains something other than a checkpoint.
    """
    from safetensors.torch import save

    if not any(own.used for own in inputs):
        raise ValueError("a model that reads nothing cannot be saved")
    others = {name: data for own in inputs for name, data in own.files().items()}
    config = {
        "format": FORMAT,
        "kind": kind.name,
        "model": kind.shape(network),
        "inputs": [own.to_dict() for own in inputs],
        "outputs": [own.to_dict() for own in outputs],
        "files": sorted(others),
    }
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    require_finite(weights, WEIGHTS)
    record = {**training, "raymotion": __version__}
    record.pop("domain", None)  # of the checkpoint that these weights came from
    if domain is not None:
        record["domain"] = {"sha256": hashlib.sha256(domain).hexdigest()}
    # A single entry, because safetensors writes several in hash order, and equal models would give different bytes.
    mark = {MARK: json.dumps(binding(config, others, record))}
    card = model_card(kind, inputs, outputs, config, record, parameters=sum(w.numel() for w in weights.values()))
    files: dict[str, bytes] = {
        WEIGHTS: save(weights, mark),
        **others,
        TRAINING: storage.json_text(record, TRAINING).encode(),
        **({} if answers is None else {ANSWERS: storage.parquet_bytes(answers)}),
        **({} if domain is None else {DOMAIN: domain}),
        CARD: card.encode(),
        # Last, so that a folder with a config.json is complete.
        CONFIG: storage.json_text(config, CONFIG).encode(),
    }
    target = storage.absolute(folder)
    if storage.is_remote(target):
        storage.remove(storage.join(target, CONFIG))
        for name, data in files.items():
            storage.write_bytes(storage.join(target, name), data)
    else:
        _write_local(os.path.realpath(target), files)  # follows a link instead of replacing it
    return read_checkpoint_info(target)


def _write_local(target: str, files: Mapping[str, bytes]) -> None:
    if storage.list_entries(target) and not os.path.exists(os.path.join(target, CONFIG)):
        raise InputError("is not empty and is not a checkpoint", path=target, remedy="Name another folder.")
    with replaced(target) as temporary:
        for name, data in files.items():
            storage.write_bytes(storage.join(temporary, name), data)


def is_checkpoint(folder: storage.PathLike) -> bool:
    """Returns whether the folder contains a complete checkpoint."""
    return storage.exists(storage.join(storage.absolute(folder), CONFIG))


def read_checkpoint_info(folder: storage.PathLike) -> CheckpointInfo:
    """Reads the description of a checkpoint, without its weights and without torch.

    Raises:
        InputError: a file (named in the message) is missing or damaged, or the model is another program's.
    """
    where = storage.absolute(folder)
    return _read_info(where, where)


def _read_info(where: str, copy: str) -> CheckpointInfo:
    """Reads the checkpoint `where`, with weights and fingerprint from `copy`: the same folder, or a local copy."""
    contents = read_contents(where, copy)
    header = read_header(storage.join(copy, WEIGHTS), shown=storage.join(where, WEIGHTS))
    check_binding(header, contents, where, copy)
    return CheckpointInfo(
        folder=where,
        kind=contents.kind,
        model=dict(contents.config["model"]),
        inputs=contents.inputs,
        outputs=contents.outputs,
        fingerprint=fingerprint(where, copy, contents.config),
        training=contents.training,
    )


def sample_mark(sample_id: str) -> str:
    """Returns 10 hex digits for a sample; a checkpoint stores them for the samples that training has seen."""
    return hashlib.sha256(sample_id.encode()).hexdigest()[:10]


def load_model(
    folder: storage.PathLike, device: str = "cpu", *, expected_fingerprint: str | None = None, kind: str | None = None
) -> Model:
    """Loads the model in `folder` (local or an address), in evaluation mode on `device`.

    Args:
        expected_fingerprint: fingerprint of the checkpoint when the job began; None accepts any.
        kind: required kind of model; None accepts any.

    Raises:
        InputError: as `read_checkpoint_info`; also if the kind differs, the weights do not match the config, or the
            checkpoint has changed.
    """
    where = storage.absolute(folder)
    with contextlib.ExitStack() as stack:
        copy = where
        if storage.is_remote(where):
            # First, to distinguish a folder that is not a checkpoint from a checkpoint without weights.
            files = fingerprinted(read_config(where))
            copy = stack.enter_context(tempfile.TemporaryDirectory(prefix="raymotion-"))
            for name in files:
                data = storage.require(storage.join(where, name))
                storage.write_bytes(storage.join(copy, name), data, durable=False)
        info = _read_info(where, copy)
        if kind is not None and info.kind.name != kind:
            raise InputError(f"is a {info.kind.name}, not a {kind}", path=where)
        if expected_fingerprint is not None and info.fingerprint != expected_fingerprint:
            raise InputError(
                f"the checkpoint changed since the job began (fingerprint {expected_fingerprint} then, "
                f"{info.fingerprint} now)",
                path=where,
                remedy="Start the job in a fresh folder.",
            )
        for own in info.inputs:
            own.open(copy, shown=where)  # before the local copy is removed
        return Model(_load(copy, info).to(device).eval(), info)


def _network_of(info: CheckpointInfo) -> nn.Module:
    """Builds a network of the checkpoint's shape, with random weights."""
    from pydantic import ValidationError

    path = storage.join(info.folder, CONFIG)
    try:
        return info.kind.restore(info.model, info.inputs, info.outputs)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"model.{'.'.join(str(part) for part in first['loc'])}: {message_of(first)}", path=path
        ) from error
    except InputError as error:
        raise error if error.path else InputError(error.reason, path=path, remedy=error.remedy) from error


def _check_size(info: CheckpointInfo, header: Header) -> None:
    """Checks that config.json describes the tensors of the weights file, before any memory is allocated for them.

    Builds the network on PyTorch's meta device, whose tensors have shapes but no data.
    """
    import torch

    path = storage.join(info.folder, CONFIG)
    layers = _layers_of(info.model)
    if layers > len(header.tensors):
        raise InputError(f"names {layers} layers, and {WEIGHTS} holds {len(header.tensors)} tensors", path=path)
    try:
        with torch.device("meta"):
            network = _network_of(info)
    except InputError:
        raise
    except NotImplementedError:  # a few timm models compute sizes from values, which meta tensors lack
        return
    except Exception as error:  # PyTorch raises various errors for impossible sizes
        if "meta tensor" in str(error):
            return
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"describes no model ({text})", path=path) from error
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    check_weights(header, expected, storage.join(info.folder, WEIGHTS))


def _layers_of(value: object) -> int:
    """Returns the largest number of layers anywhere in config.json; each would be built, whatever its size."""
    if not isinstance(value, Mapping):
        return 0
    own = [value[name] for name in ("layers", "num_hidden_layers") if isinstance(value.get(name), int)]
    return max([*own, *(_layers_of(inner) for inner in value.values())], default=0)


def _load(local: str, info: CheckpointInfo) -> nn.Module:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = storage.join(info.folder, WEIGHTS)
    header = read_header(storage.join(local, WEIGHTS), shown=path)
    _check_size(info, header)
    network = _network_of(info)
    try:
        weights = load_file(storage.join(local, WEIGHTS))
    except (SafetensorError, OSError) as error:
        raise InputError(f"is damaged ({str(error).splitlines()[0]})", path=path) from error
    check_weights(header, {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}, path)
    require_finite(weights, path)
    network.load_state_dict(weights)
    return network
