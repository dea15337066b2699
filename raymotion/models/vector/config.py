"""The shape of a model that reads one vector of each picture, for recipes and checkpoints. Does not import torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from raymotion.config import Settings


class Kernel(Settings):
    """A layer of similarities to training pictures, on which a linear last layer is a kernel machine.

    exp(-gamma |x - z|^2 / D) of a picture's standardised vector x, of D numbers, to those of some training pictures z,
    whitened (Nystroem's method; Williams and Seeger 2001). With all training pictures as landmarks and the squared
    error, a linear probe is exactly kernel ridge regression.

    Attributes:
        landmarks: largest number of training pictures z.
        gamma: inverse width of the kernel.
    """

    landmarks: int = Field(1024, ge=1, le=16384)
    gamma: float = Field(0.5, gt=0)


class VectorConfig(Settings):
    """Shape of the network between a picture's vector and the outputs.

    Attributes:
        hidden: widths of the hidden layers; none: the outputs are linear in the vector.
        activation: between the layers.
        batch_norm: normalise each hidden layer's numbers by its batches, before the activation.
        dropout: after each hidden layer.
        standardise: subtract the mean of the training split from each number of the vector, and divide by its standard
            deviation.
        kernel: similarities to training pictures in place of the vector; None: the vector itself.
        dim: numbers in the vector; filled in.
        values: number columns read beside the vector; filled in.
        landmarks: similarities of `kernel`, of which a small training split has fewer; filled in.
        identity: of the backbone inside the model; None if the vector comes from cached features. Filled in.
        tuned_blocks: last blocks of that backbone that are trained; filled in from the recipe.
        first: shape of the model inside that predicts the values; filled in (`two-input`).
    """

    hidden: tuple[int, ...] = ()
    activation: Literal["relu", "gelu", "tanh"] = "relu"
    batch_norm: bool = False
    dropout: float = Field(0.0, ge=0, lt=1)
    standardise: bool = True
    kernel: Kernel | None = None
    dim: int = Field(0, ge=0)
    values: int = Field(0, ge=0)
    landmarks: int = Field(0, ge=0)
    identity: dict[str, Any] | None = None
    tuned_blocks: int = Field(0, ge=0)
    first: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> VectorConfig:
        if any(width < 1 for width in self.hidden):
            raise ValueError("hidden layers have 1 number or more")
        if not self.hidden and (self.batch_norm or self.dropout):
            raise ValueError("batch_norm and dropout are of hidden layers, and hidden names none")
        if self.kernel is not None and (self.hidden or not self.standardise):
            raise ValueError("a kernel stands in place of hidden layers, and compares standardised vectors")
        if self.kernel is not None and self.tuned_blocks:
            raise ValueError("a kernel compares with the vectors of a frozen backbone: set tuned_blocks to 0")
        return self
