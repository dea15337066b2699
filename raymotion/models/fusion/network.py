"""The fusion head, which maps the features of a person's streams to emotions.

Only the head is trained; backbones are frozen and their features cached. Missing streams (e.g. of a person without a
visible face) are masked, as are those that an ablation leaves out: they add nothing and get no weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from raymotion.errors import InputError
from raymotion.models.fusion.config import FUSIONS, PUBLISHED, FusionConfig, input_size, streams_of


def _make(config: FusionConfig) -> nn.Module:
    """Builds the network that a config names."""
    place = FUSIONS[config.fusion].network
    module, _, attribute = place.partition(":")
    made = getattr(import_module(module), attribute)(config)
    if not isinstance(made, nn.Module):
        raise InputError(f"the fusion {config.fusion}: {place} gives {made!r}, no nn.Module", remedy="Inherit it.")
    return made


class FusionHead(nn.Module):
    """Maps features of the streams to logits.

    Args:
        config: the shape.
        labels: number of emotions L.
    """

    def __init__(self, config: FusionConfig, labels: int) -> None:
        super().__init__()
        self.config = config
        self.streams = tuple(config.dims)
        self.kept = streams_of(config)
        self.published = config.fusion in PUBLISHED
        self.fuse = _make(config)
        self.head = nn.Linear(config.hidden, labels)
        self.vad_head = nn.Linear(config.hidden, 3) if config.vad else None
        for name in self.streams:
            self.register_buffer(f"mean_{name}", torch.zeros(input_size(config, name)))
            self.register_buffer(f"scale_{name}", torch.ones(input_size(config, name)))
        self.standardises = False
        self.register_load_state_dict_post_hook(_notice_statistics)
        if not self.published:
            self._freeze_what_the_ablation_leaves_out()

    def _freeze_what_the_ablation_leaves_out(self) -> None:
        """Freezes the layers that only left-out streams use: they never run, and DDP would wait for their gradients."""
        if self.kept == self.streams:
            return
        tokens = self.config.tokens
        inputs = {
            name: torch.ones(1, *((tokens[name],) if tokens.get(name) else ()), input_size(self.config, name))
            for name in self.kept
        }
        self.fuse.eval()
        fused = self.fuse(inputs, torch.ones(1, len(self.kept), dtype=torch.bool))
        self.fuse.train()
        parameters = list(self.fuse.parameters())
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(fused.sum(), parameters, allow_unused=True), strict=True
        ):
            if gradient is None:
                parameter.requires_grad_(False)

    def set_statistics(self, means: Mapping[str, Tensor], stds: Mapping[str, Tensor]) -> None:
        """Enables standardisation of the inputs; the statistics are saved with the weights.

        Constant features (std 0) are only shifted. The published fusions read raw features and ignore this.

        Args:
            means, stds: stream -> (D,), over training samples with the stream.

        Raises:
            InputError: a stream is missing, has a wrong size, or a value is not finite.
        """
        if self.published:
            return
        for name in self.streams:
            size = input_size(self.config, name)
            for what, values in (("means", means), ("stds", stds)):
                if name not in values or tuple(values[name].shape) != (size,) or not values[name].isfinite().all():
                    raise InputError(f"the {what} of stream {name} are not {size} finite numbers")
            std = stds[name].float()
            self._buffer("mean", name).copy_(means[name])
            self._buffer("scale", name).copy_(torch.where(std > 1e-6, 1 / std.clamp(min=1e-6), 1.0))
        self.standardises = True

    def _buffer(self, what: str, stream: str) -> Tensor:
        return self.get_buffer(f"{what}_{stream}")

    def forward(self, features: Sequence[Tensor | None], mask: Tensor) -> Tensor:
        """Computes the logits of a batch.

        Args:
            features: one per stream of `config.dims`, in order: (n, D) float16 or float32, or (n, T, D_token) if the
                config has tokens for it. None: no sample of the batch has the stream.
            mask: (n, streams) bool, True where the sample has the stream. Other values in `features` are ignored, even
                NaN.

        Returns:
            (n, L) logits; with `vad` (n, L + 3), the last three being valence, arousal, dominance on the scale 0..1.
            All samples without any stream get the same finite logits.

        Raises:
            ValueError: a shape is wrong.
        """
        if mask.ndim != 2 or mask.shape[1] != len(self.streams) or len(features) != len(self.streams):
            raise ValueError(
                f"{len(features)} features and a mask of shape {tuple(mask.shape)} for the streams "
                f"{', '.join(self.streams)}"
            )
        inputs: dict[str, Tensor] = {}
        present: list[Tensor] = []
        for number, (name, values) in enumerate(zip(self.streams, features)):
            if name not in self.kept and not self.published:
                continue
            # As in the public study, its networks get zeros for a left-out stream.
            there = mask[:, number] & (values is not None and name in self.kept)
            inputs[name] = self._clean(name, values, there)
            present.append(there)
        fused = self.fuse(inputs, torch.stack(present, dim=1))
        wanted = (len(mask), self.config.hidden)
        if not isinstance(fused, Tensor) or tuple(fused.shape) != wanted:
            told = f"of shape {tuple(fused.shape)}" if isinstance(fused, Tensor) else repr(fused)
            raise InputError(
                f"the fusion {self.config.fusion}: {type(self.fuse).__name__}.forward returns {told}",
                remedy=f"Return a tensor (n, hidden), here {wanted}.",
            )
        if self.vad_head is None:
            return self.head(fused)
        return torch.cat([self.head(fused), self.vad_head(fused)], dim=1)

    def _clean(self, name: str, values: Tensor | None, there: Tensor) -> Tensor:
        """Returns a stream's features as float32, standardised, and zero where masked."""
        size = input_size(self.config, name)
        tokens = self.config.tokens.get(name, 0)
        shape = (len(there), tokens, size) if tokens else (len(there), size)
        if values is None:
            return self.head.weight.new_zeros(shape)
        if tuple(values.shape) != shape:
            raise ValueError(f"features of {name}: shape {tuple(values.shape)}, not {shape}")
        if self.standardises:  # in place on a copy, because these are the largest arrays of a step
            values = values.to(torch.float32, copy=True)
            values = values.sub_(self._buffer("mean", name)).mul_(self._buffer("scale", name))
        else:
            values = values.float()
        if values.device.type != "cpu":
            return values.masked_fill(~there.view(-1, *[1] * (values.ndim - 1)), 0.0)
        # Five times as fast on the CPU; on other devices, counting the rows would wait for the device.
        missing = (~there).nonzero().squeeze(1)
        return values.index_fill(0, missing, 0.0) if len(missing) else values


def _notice_statistics(head: nn.Module, _: Any) -> None:
    # Determined once, because a check in every batch would wait for the device.
    assert isinstance(head, FusionHead)
    head.standardises = not head.published and any(
        bool((head._buffer("mean", name) != 0).any() or (head._buffer("scale", name) != 1).any())
        for name in head.streams
    )


def parameter_count(config: FusionConfig, labels: int) -> int:
    """Returns the number of parameters of a head without allocating them; buffers (statistics) do not count."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in FusionHead(config, labels).parameters())
