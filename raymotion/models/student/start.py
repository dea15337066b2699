"""Initialisation of students: random, pretrained, or with layers of another student."""

from __future__ import annotations

import torch
from torch import Tensor

from raymotion import storage
from raymotion.errors import InputError
from raymotion.models.student.config import StudentConfig
from raymotion.models.student.encoders import TimmEncoder
from raymotion.models.student.network import Student
from raymotion.models.text.bert import read_bert
from raymotion.models.text.encoders import BertEncoder, GruEncoder
from raymotion.models.vision import timm_models
from raymotion.weights import find


def initialise(
    config: StudentConfig, labels: int, *, image_init: str | None = None, text_init: str | None = None
) -> Student:
    """Creates a student for training.

    Args:
        image_init: `timm` for timm's published weights of the encoder, a file of its state dict, or a hub id.
        text_init: hub id or folder of a BERT. A GRU takes its word embeddings (with their size), a BERT encoder all its
            weights.

    Raises:
        InputError: a source is missing, or does not match the recipe or the tokenizer.
    """
    source = None if text_init is None else read_bert(text_init, config.vocab_size)
    if source is not None:
        shape, weights = source
        if config.text == "bert" and config.max_text_length > shape.max_position_embeddings:
            raise InputError(
                f"has {shape.max_position_embeddings} positions, the student reads {config.max_text_length} pieces",
                path=text_init,
                remedy="Lower model.max_text_length.",
            )
        size = {"embedding_size": shape.hidden_size} if config.text == "gru" else {"bert": shape}
        config = config.model_copy(update=size)
    model = Student(config, labels)
    if source is not None:
        _load_text(model, weights, text_init)
    if image_init is not None:
        _load_image(model, image_init)
    return model


def transferred(
    donor: Student, depth: int, labels: int, *, freeze: bool = False, source: storage.PathLike = ""
) -> Student:
    """Creates a student with the first `depth` layers of `donor`, and the others at random.

    Args:
        source: the donor's checkpoint, for the message.

    Raises:
        InputError: `depth` exceeds the layers of the donor.
    """
    blocks = donor.blocks()
    if depth >= len(blocks):
        raise InputError(
            f"has {len(blocks)} layers, the head among them; {depth} cannot be transferred",
            path=source,
            remedy=f"Give a depth of at most {len(blocks) - 1}.",
        )
    if depth:
        # Must differ from the donor's initial values. With those, the upper layers could co-adapt to the copied ones as
        # before, which would hide the cost of splitting a network (Yosinski et al. 2014, 4.2).
        torch.manual_seed((torch.initial_seed() + 7919 * depth) % 2**63)
    model = Student(donor.config, labels)
    own, theirs = model.state_dict(), donor.state_dict()
    model.load_state_dict({**own, **{name: theirs[name] for block in blocks[:depth] for name in block}})
    if freeze:
        model.freeze(depth)
    return model


def _load_text(model: Student, weights: dict[str, Tensor], source: str | None) -> None:
    if isinstance(model.text, BertEncoder):
        model.text.model.load_state_dict(weights)
        return
    assert isinstance(model.text, GruEncoder)
    with torch.no_grad():
        model.text.embedding.weight.copy_(weights["embeddings.word_embeddings.weight"])


def _load_image(model: Student, source: str) -> None:
    if not isinstance(model.image, TimmEncoder):
        raise InputError(
            "image_init gives weights of a timm model, and the student's image encoder is its own cnn",
            remedy="Set model.image to the model's name.",
        )
    own, name = model.image.model, model.config.image
    if source == "timm":
        own.load_state_dict(timm_models.published(name, model.config.image_size).state_dict())
    else:
        timm_models.load(own, name, find(source))
