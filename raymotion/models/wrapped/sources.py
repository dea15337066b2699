"""Reads models of `transformers` from a folder of `save_pretrained` or from the hub; executes no code of theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from raymotion import storage
from raymotion.errors import InputError
from raymotion.models.text.tower import without_progress_bar
from raymotion.models.wrapped.network import features_of
from raymotion.weights import first_line, is_hub_id

REMEDY = "Give a hub id (owner/name), or a folder that save_pretrained of model and processor wrote."
# A larger cosine means the same text.
ALIKE = 1 - 1e-6
# Texts embedded at once.
CHUNK = 64


def read_config(source: str) -> Any:
    """Returns the config of a model.

    Raises:
        InputError: there is none, or it belongs to no class of transformers.
    """
    from transformers import AutoConfig

    if not storage.is_dir(source) and (not is_hub_id(source) or source.startswith((".", "/"))):
        raise InputError("no such folder", path=source, remedy=REMEDY)
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # the libraries raise many classes
        raise InputError(f"no model there ({first_line(error)})", path=source, remedy=REMEDY) from error


def read_model(source: str, auto: Any) -> nn.Module:
    """Returns a model with its weights, by a class such as `AutoModel`.

    Raises:
        InputError: it is another model, or lacks weights.
    """
    try:
        with without_progress_bar():
            model, info = auto.from_pretrained(
                source, output_loading_info=True, trust_remote_code=False, weights_only=True, dtype=torch.float32
            )
    except Exception as error:
        raise InputError(f"could not be loaded ({first_line(error)})", path=source, remedy=REMEDY) from error
    missing = [name for name in sorted(info["missing_keys"]) if "position_ids" not in name]
    if missing:
        raise InputError(
            f"lacks {len(missing)} weights, such as {missing[0]}: they would be random", path=source, remedy=REMEDY
        )
    return model


def read_pixels(source: str, side: int | None) -> dict[str, Any]:
    """Returns size, mean and std of the pixels that a model reads, from its image processor.

    Args:
        side: what its config says; None if it does not.

    Raises:
        InputError: there is no image processor.
    """
    from transformers import AutoImageProcessor

    try:
        found = AutoImageProcessor.from_pretrained(source, trust_remote_code=False).to_dict()
    except Exception as error:
        raise InputError(f"has no image processor ({first_line(error)})", path=source, remedy=REMEDY) from error
    size = side or _side(found.get("crop_size")) or _side(found.get("size"))
    if not isinstance(size, int):
        raise InputError(f"its image processor names no size ({found.get('size')})", path=source)
    plain = found.get("do_normalize", True) is False
    mean, std = ([0.0] * 3, [1.0] * 3) if plain else (found.get("image_mean"), found.get("image_std"))
    if mean is None or std is None:
        raise InputError("its image processor names no mean and std of pixels", path=source)
    return {"size": size, "mean": list(mean), "std": list(std)}


def _side(value: Any) -> int | None:
    if isinstance(value, Mapping):
        value = value.get("height") or value.get("shortest_edge")
    return value if isinstance(value, int) else None


def embed_texts(source: str, model: nn.Module, prompts: Sequence[Sequence[str]]) -> torch.Tensor:
    """Returns the mean direction (L, D) of each label's texts, of length 1.

    Raises:
        InputError: the model has no tokenizer, or does not tell the texts of two labels apart.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise InputError(f"has no tokenizer ({first_line(error)})", path=source, remedy=REMEDY) from error
    texts = [text for own in prompts for text in own]
    longest = model.config.text_config.max_position_embeddings  # type: ignore[union-attr]
    # SigLIP was trained with texts padded to their full length, CLIP does not see what is padded.
    padding = "max_length" if hasattr(model, "logit_bias") else True
    parts: list[torch.Tensor] = []
    with torch.no_grad():
        for start in range(0, len(texts), CHUNK):
            words = tokenizer(
                texts[start : start + CHUNK], padding=padding, truncation=True, max_length=longest, return_tensors="pt"
            )
            known = {name: words[name] for name in ("input_ids", "attention_mask") if name in words}
            if padding == "max_length":
                known.pop("attention_mask", None)
            found = features_of(model.get_text_features(**known))  # type: ignore[operator]
            parts.append(nn.functional.normalize(found, dim=-1))
    by_text = torch.cat(parts)
    if not bool(by_text.isfinite().all()):
        raise InputError("its text embeddings are not finite", path=source)
    means, start = [], 0
    for own in prompts:
        means.append(by_text[start : start + len(own)].mean(dim=0))
        start += len(own)
    found = nn.functional.normalize(torch.stack(means), dim=-1)
    alike = (found @ found.T - torch.eye(len(found)) > ALIKE).nonzero()
    if len(alike):
        first, second = (prompts[row][0] for row in alike[0].tolist())
        raise InputError(
            f"has the same embedding for {first!r} and {second!r}: it does not know the words",
            path=source,
            remedy="Give --prompts with words that it knows.",
        )
    return found


def classes_of(config: Any, source: str) -> list[str]:
    """Returns the names of a classifier's classes, in order.

    Raises:
        InputError: it has none, or they have no names of their own.
    """
    if hasattr(config, "text_config") and hasattr(config, "vision_config"):
        raise InputError(
            f"is a {config.model_type}, which has no classes", path=source,
            remedy="One that compares pictures with texts is for `raymotion wrap zero-shot`.",
        )  # fmt: skip
    names = [str(config.id2label.get(i, "")) for i in range(config.num_labels)]
    if len(set(names)) < len(names) or all(name == f"LABEL_{i}" for i, name in enumerate(names)):
        raise InputError(
            f"its {len(names)} classes have no names of their own ({', '.join(names[:3])})",
            path=storage.join(source, "config.json"),
            remedy="Write the names into id2label.",
        )
    return names
