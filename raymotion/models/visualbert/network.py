"""The teacher: VisualBERT with a multi-label head.

Li et al. (2019), *VisualBERT: a simple and performant baseline for vision and language*. One transformer reads the
caption's word pieces and the image's region features together; a linear head on its pooled output gives one logit per
emotion. The public system that raymotion follows trained only that head on `uclanlp/visualbert-vqa-coco-pre`.

Missing inputs are masked: an image without features has a region mask of all False, and a missing caption is
[CLS] [SEP]; neither is a row of zeros that the model could take for evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from raymotion.errors import InputError
from raymotion.models.finite import require_finite
from raymotion.models.text.predict import mean_over_captions
from raymotion.models.text.tower import read_text_tower, require_sizes, sizes_of
from raymotion.models.visualbert.config import TeacherConfig


class VisualBertTeacher(nn.Module):
    """VisualBERT -> dropout -> linear head.

    Args:
        config: the shape.
        labels: number of emotions L.
    """

    def __init__(self, config: TeacherConfig, labels: int) -> None:
        from transformers import VisualBertModel

        super().__init__()
        for name, most in (("frozen_layers", config.layers), ("pooled_layers", config.layers + 1)):
            if (getattr(config, name) or 0) > most:
                raise InputError(f"model.{name} is {getattr(config, name)}, the model has {config.layers} layers")
        self.config = config
        self.backbone = VisualBertModel(config.transformer())
        self.region_norm = nn.LayerNorm(config.visual_dim) if config.normalize_regions else None
        self.bag_norm = nn.LayerNorm(config.hidden_size) if config.pooling in ("mean", "cls+mean") else None
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden_size * config.pooled_layers, labels)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        for part in self._frozen():
            part.requires_grad_(False)
        if config.new_projection:
            self.backbone.embeddings.visual_projection.requires_grad_(True)
        self.train(self.training)

    @classmethod
    def from_pretrained(cls, source: str, config: TeacherConfig, labels: int) -> VisualBertTeacher:
        """Creates a teacher with the backbone of `source`, a hub id or a folder written by `save_pretrained`.

        Sizes come from `source`, everything else from `config`. The projection of regions is initialised anew if
        `visual_dim` differs from the source's.

        Raises:
            InputError: `source` is missing, not a VisualBERT, or has another vocabulary than the tokenizer.
        """
        from transformers import VisualBertConfig, VisualBertModel

        remedy = "Name a hub id or a folder with config.json and model.safetensors."
        try:
            published = VisualBertConfig.from_pretrained(source)
        except Exception as error:
            raise InputError(
                f"no pretrained model there ({str(error).splitlines()[0]})", path=source, remedy=remedy
            ) from error
        if published.model_type != "visual_bert":
            raise InputError(f"is a {published.model_type}, not a visual_bert", path=source)
        require_sizes(source, source, published)
        _require_vocabulary(source, published.vocab_size, config.vocab_size)
        other = published.visual_embedding_dim != config.visual_dim
        sized = _resized(source, config, {**sizes_of(published), "new_projection": other})
        model = cls(sized, labels)
        try:
            loaded, info = VisualBertModel.from_pretrained(
                source,
                config=sized.transformer(),
                ignore_mismatched_sizes=other,
                output_loading_info=True,
                weights_only=True,
            )
        except Exception as error:
            raise InputError(
                f"could not be loaded ({str(error).splitlines()[0]})", path=source, remedy=remedy
            ) from error
        missing = [key for key in info["missing_keys"] if "position_ids" not in key]
        if missing:
            raise InputError(f"lacks {len(missing)} weights, such as {missing[0]}", path=source)
        require_finite(loaded.state_dict(), source)
        model.backbone.load_state_dict(loaded.state_dict())
        return model

    @classmethod
    def from_text(cls, source: str, config: TeacherConfig, labels: int) -> VisualBertTeacher:
        """Creates a teacher with the text tower of `source`, a BERT: a hub id, or a folder written by `save_pretrained`
        or sentence-transformers.

        Sizes, positions, activation and norms come from `source`, everything else from `config`. The visual embeddings
        start as copies of the textual ones; only the projection of the regions (and the pooler, if `source` has none)
        is initialised anew.

        Raises:
            InputError: `source` is missing, not a BERT, lacks weights, has another vocabulary than the tokenizer, or
                has fewer positions than captions may have pieces.
        """
        tower = read_text_tower(source)
        _require_vocabulary(source, tower.config.vocab_size, config.vocab_size)
        model = cls(_resized(source, config, {**tower.sizes(), "new_projection": True}), labels)
        tower.start(model.backbone)
        return model

    def _frozen(self) -> list[nn.Module]:
        """Returns the frozen parts of the backbone."""
        if self.config.freeze_backbone:
            return [self.backbone]
        if self.config.frozen_layers is not None:
            # Only the textual embeddings, because a new projection of regions must be trained.
            own, layers = self.backbone.embeddings, self.backbone.encoder.layer
            read = (own.word_embeddings, own.position_embeddings, own.token_type_embeddings, own.LayerNorm, own.dropout)
            return [*read, *layers[: self.config.frozen_layers]]
        return []

    def train(self, mode: bool = True) -> VisualBertTeacher:
        """Sets the mode, but keeps frozen parts in evaluation mode: their dropout would only add noise."""
        super().train(mode)
        for part in self._frozen():
            part.eval()
        return self

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        regions: Tensor | None = None,
        region_mask: Tensor | None = None,
    ) -> Tensor:
        """Computes logits (B, L).

        Args:
            input_ids, attention_mask: (B, T) int64; padding has mask 0.
            regions: (B, N, visual_dim) float, or None if no sample has an image.
            region_mask: (B, N) bool, False for missing regions; None: all are present.
        """
        if regions is None:
            region_mask = None
        else:
            if region_mask is None:
                region_mask = torch.ones(regions.shape[:2], dtype=torch.bool, device=regions.device)
            # Masked values have the attention weight 0, but 0 * inf is NaN.
            regions = regions.masked_fill(~region_mask.unsqueeze(-1).bool(), 0.0)
            if self.region_norm is not None:
                regions = self.region_norm(regions)
        return self.head(self.dropout(self._pooled(input_ids, attention_mask, regions, region_mask)))

    def _pooled(
        self, input_ids: Tensor, attention_mask: Tensor, regions: Tensor | None, region_mask: Tensor | None
    ) -> Tensor:
        pooled: Tensor | None = None
        if self.config.pooling != "mean":
            # Ones, as in the authors' code.
            types = None if regions is None else torch.ones(regions.shape[:2], dtype=torch.long, device=regions.device)
            learns = not self.config.freeze_backbone or (self.config.new_projection and regions is not None)
            with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
                output = self.backbone(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    visual_embeds=regions,
                    visual_attention_mask=None if region_mask is None else region_mask.to(attention_mask.dtype),
                    visual_token_type_ids=types,
                    output_hidden_states=self.config.pooled_layers > 1,
                )
            pooled = output.pooler_output
            if self.config.pooling == "mean-output":
                mask = attention_mask.bool()
                mask = mask if region_mask is None else torch.cat((mask, region_mask.bool()), dim=1)
                many = self.config.pooled_layers > 1
                layers = output.hidden_states[-self.config.pooled_layers :] if many else (output.last_hidden_state,)
                means = [masked_mean(values, mask) for values in layers]
                if self.config.normalize_pooled:
                    means = [nn.functional.normalize(own, dim=1) for own in means]
                pooled = torch.cat(means, dim=1)
        if self.bag_norm is not None:
            bag = self._bag(input_ids, attention_mask, regions, region_mask)
            pooled = bag if pooled is None else pooled + bag
        assert pooled is not None
        return pooled

    def _bag(
        self, input_ids: Tensor, attention_mask: Tensor, regions: Tensor | None, region_mask: Tensor | None
    ) -> Tensor:
        """Returns the mean embedding of all present words and regions, (B, hidden_size).

        Two thousand captions are too few for a randomly initialised transformer to learn which words matter; this
        shortcut gives each word piece a direct gradient.
        """
        assert self.bag_norm is not None
        embeddings = self.backbone.embeddings
        values, mask = embeddings.word_embeddings(input_ids), attention_mask.bool()
        if regions is not None and region_mask is not None:
            values = torch.cat((values, embeddings.visual_projection(regions)), dim=1)
            mask = torch.cat((mask, region_mask.bool()), dim=1)
        return self.bag_norm(masked_mean(values, mask))


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Averages `values` (B, T, D) over T where `mask` (B, T) is True; returns (B, D), zeros for an all-False mask."""
    weight = mask.unsqueeze(-1).to(values.dtype)
    return (values * weight).sum(1) / weight.sum(1).clamp(min=1)


def _require_vocabulary(source: str, pieces: int, own: int) -> None:
    if pieces != own:
        raise InputError(
            f"was trained with {pieces} word pieces, the tokenizer has {own}",
            path=source,
            remedy="Use the tokenizer that belongs to it (google-bert/bert-base-uncased for the published ones).",
        )


def _resized(source: str, config: TeacherConfig, sizes: Mapping[str, Any]) -> TeacherConfig:
    """Returns `config` with the sizes of a pretrained model."""
    if config.max_text_length > sizes["max_positions"]:
        raise InputError(
            f"reads {sizes['max_positions']} word pieces, model.max_text_length is {config.max_text_length}",
            path=source,
            remedy=f"--set model.max_text_length={sizes['max_positions']}",
        )
    return config.model_copy(update=dict(sizes))


@torch.inference_mode()
def predict_tokens(
    model: VisualBertTeacher,
    tokens: Sequence[Sequence[int] | np.ndarray],
    owners: np.ndarray,
    samples: int,
    regions: np.ndarray | None = None,
    region_mask: np.ndarray | None = None,
    *,
    decode: Callable[[Tensor], Tensor],
    pad_id: int = 0,
    batch_size: int = 32,
) -> np.ndarray:
    """Predicts (samples, L) float32, averaged over the captions of each sample.

    Args:
        tokens, owners: word pieces and sample of each caption; each sample has at least one.
        regions, region_mask: (samples, N, D) and (samples, N), or None.
        decode: maps logits to predictions.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device

    def logits(ids: Tensor, attention: Tensor, rows: np.ndarray) -> Tensor:
        if regions is None:
            return cast(Tensor, model(ids, attention))
        features = torch.from_numpy(np.asarray(regions[rows], dtype=np.float32)).to(device)
        mask = None if region_mask is None else torch.from_numpy(region_mask[rows]).to(device)
        return cast(Tensor, model(ids, attention, features, mask))

    predicted = mean_over_captions(
        model, tokens, owners, samples, width=model.head.out_features, logits=logits, decode=decode, pad_id=pad_id,
        batch_size=batch_size,
    )  # fmt: skip
    model.train(was_training)
    return predicted
