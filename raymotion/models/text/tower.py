"""Initialisation of VisualBERT's text tower from any BERT, by hub id or folder.

VisualBERT is a BERT with three more embedding tables for regions, so the weights of a BERT have the same names. As in
the authors' code (`special_visual_initialize`), the position and token type embeddings of regions start as copies of
those of words.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymotion import storage
from raymotion.errors import InputError
from raymotion.models.finite import require_finite
from raymotion.models.weights_file import read_header
from raymotion.weights import first_line, folder_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import BertConfig, VisualBertConfig

REMEDY = "Name a hub id or a folder with config.json and model.safetensors."
FILES = ("config.json", "model.safetensors")
POOLER = "pooler."
# Visual embeddings and the textual ones they start from; the projection of regions is initialised at random.
SEEN_AS_READ = {
    "embeddings.visual_token_type_embeddings.weight": "embeddings.token_type_embeddings.weight",
    "embeddings.visual_position_embeddings.weight": "embeddings.position_embeddings.weight",
}
PROJECTION = "embeddings.visual_projection."


@dataclass(frozen=True)
class TextTower:
    """Config and weights of a BERT.

    Attributes:
        weights: by the names of `BertModel`; without `pooler.` if the source has none.
    """

    source: str
    config: BertConfig
    weights: dict[str, Tensor]

    def sizes(self) -> dict[str, Any]:
        """Returns `sizes_of` its config."""
        return sizes_of(self.config)

    def start(self, backbone: nn.Module) -> None:
        """Copies the weights into a `VisualBertModel` of the same sizes."""
        import torch

        own = backbone.state_dict()
        types = "embeddings.token_type_embeddings.weight"
        read = dict(self.weights)
        if len(read[types]) != len(own[types]):  # a BERT with one or three token types
            read[types] = torch.cat((read[types], read[types][-1:]))[: len(own[types])]
        for name, model in SEEN_AS_READ.items():
            read[name] = read[model].clone()
        for name in own.keys() - read.keys():
            if not name.startswith((POOLER, PROJECTION)):
                raise InputError(f"lacks the weight {name}", path=self.source)
            read[name] = own[name]
        for name, value in read.items():
            if name in own and own[name].shape != value.shape:
                raise InputError(
                    f"weight {name} has shape {tuple(value.shape)}, config.json says {tuple(own[name].shape)}",
                    path=self.source,
                )
        backbone.load_state_dict(read)


def sizes_of(config: BertConfig | VisualBertConfig) -> dict[str, Any]:
    """Returns the fields of `TeacherConfig` that a pretrained model determines."""
    return {
        "hidden_size": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "max_positions": config.max_position_embeddings,
        "layer_norm_eps": config.layer_norm_eps,
        "activation": config.hidden_act,
    }


def require_sizes(source: str, folder: str, config: Any) -> None:
    """Raises an `InputError` unless the sizes in a transformers config occur in the tensors of its weights file.

    transformers builds the model before it reads weights, so a damaged number could allocate terabytes.

    Args:
        folder: a local folder; anything else (a hub id) is not checked.
    """
    path = storage.join(folder, FILES[1])
    if not storage.is_dir(folder) or not storage.exists(path):
        return
    tensors = read_header(path, shown=storage.join(source, FILES[1])).tensors
    longest = max((side for tensor in tensors.values() for side in tensor.shape), default=0)
    limits = {"num_hidden_layers": len(tensors)} | dict.fromkeys(
        ("hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings", "type_vocab_size",
         "visual_embedding_dim"), longest
    )  # fmt: skip
    for name, most in limits.items():
        value = getattr(config, name, 1)
        if type(value) is not int or not 1 <= value <= most:
            raise InputError(
                f"{name} is {value!r}, which no tensor of {FILES[1]} has", path=storage.join(source, FILES[0])
            )


def read_text_tower(source: str) -> TextTower:
    """Reads a BERT from a hub id, or from a folder (local or an address) written by `save_pretrained` or
    sentence-transformers. The head of a model such as `BertForMaskedLM` is dropped.

    Raises:
        InputError: `source` is missing, not a BERT, has relative positions, or lacks weights.
    """
    with _local(source) as folder:
        config = _config(source, folder)
        require_sizes(source, folder, config)
        return TextTower(source, config, _weights(source, folder, config))


def _config(source: str, folder: str) -> BertConfig:
    from transformers import BertConfig, PretrainedConfig

    try:
        values, _ = PretrainedConfig.get_config_dict(folder)
    except Exception as error:
        raise InputError(f"no pretrained model there ({first_line(error)})", path=source, remedy=REMEDY) from error
    kind = values.get("model_type")
    if kind != "bert":
        raise InputError(
            f"is {'of no known kind' if kind is None else f'a {kind}'}, not a bert",
            path=source,
            remedy="VisualBERT goes under `init`; any other text tower has to be a BERT." if kind == "visual_bert"
            else "Name a BERT: BertModel, BertForMaskedLM, or a sentence-transformers model made of one.",
        )  # fmt: skip
    if values.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(f"has {values['position_embedding_type']} positions; VisualBERT's are absolute", path=source)
    try:
        return BertConfig(**values)
    except Exception as error:  # transformers validates types with exceptions of its own
        raise InputError(f"config.json does not describe a BERT ({first_line(error)})", path=source) from error


def _weights(source: str, folder: str, config: BertConfig) -> dict[str, Tensor]:
    from transformers import BertModel

    try:
        with without_progress_bar():
            model, info = BertModel.from_pretrained(folder, config=config, output_loading_info=True, weights_only=True)
    except Exception as error:
        raise InputError(f"could not be loaded ({first_line(error)})", path=source, remedy=REMEDY) from error
    missing = [name for name in sorted(info["missing_keys"]) if "position_ids" not in name]
    lacking = [name for name in missing if not name.startswith(POOLER)]
    if lacking:
        raise InputError(f"lacks {len(lacking)} weights, such as {lacking[0]}", path=source)
    # Without weights that transformers initialised at random; they must be drawn with the run's seed.
    weights = {name: value for name, value in model.state_dict().items() if name not in missing}
    require_finite(weights, source)
    return weights


@contextlib.contextmanager
def without_progress_bar() -> Iterator[None]:
    """Disables transformers' progress bar, which would also be written to log files."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Silences transformers' warnings, for a config that was read and checked before."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


@contextlib.contextmanager
def _local(source: str) -> Iterator[str]:
    """Yields a source for transformers: a local copy of a remote folder, a local folder of a BERT, or a hub id."""
    source = folder_of(source)
    if storage.is_remote(source):
        with tempfile.TemporaryDirectory(prefix="raymotion-") as folder:
            inner = storage.join(source, _transformer_of(source))
            for name in FILES:
                if not storage.exists(storage.join(inner, name)):
                    raise InputError(f"no pretrained model there (no {name})", path=source, remedy=REMEDY)
                storage.write_bytes(storage.join(folder, name), storage.read_bytes(storage.join(inner, name)))
            yield folder
    elif storage.is_dir(source):
        yield storage.join(source, _transformer_of(source))
    else:
        yield source


def _transformer_of(folder: str) -> str:
    """Returns the subfolder with the BERT of a sentence-transformers model: `0_Transformer` in old ones, else ""."""
    listing = storage.join(folder, "modules.json")
    if not storage.exists(listing):
        return ""
    with contextlib.suppress(KeyError, TypeError, json.JSONDecodeError, InputError):
        first = storage.read_json(listing)[0]["path"]
        # A plain name, so that it cannot lead out of the folder.
        if isinstance(first, str) and "/" not in first and first not in (".", ".."):
            return first
    return ""
