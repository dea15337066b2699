"""What stands for a network where the model runs somewhere else."""

from __future__ import annotations

from torch import nn

from raymotion.models.vlm.recipe import VlmConfig


class NoWeights(nn.Module):
    """A module without weights, which carries the settings of the checkpoint."""

    def __init__(self, config: VlmConfig) -> None:
        super().__init__()
        self.config = config
