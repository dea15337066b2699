"""The shape of a joint space of pictures and captions, for recipes and checkpoints. Does not import torch."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from raymotion.config import Settings
from raymotion.models.text.bert import BertShape

# What the data and other settings of the recipe fill in.
FILLED_IN = (
    "vector_dim", "vector_identity", "inside", "tuned_blocks", "tuned_text", "vocab_size", "bert", "classes",
    "kept_pictures", "kept_captions",
)  # fmt: skip


# Numbers that a correction of hubs adds to the vectors of a joint space.
ADDED = 4


class Hubs(Settings):
    """Corrects hubs: pictures that are near to every caption, and captions that are near to every picture.

    Cross-domain similarity local scaling (Conneau et al. 2018): half of the mean similarity to the nearest vectors of
    the other side is subtracted from each similarity. The neighbours are training pictures and captions, of which the
    model keeps what its towers say, so that a similarity does not depend on what else is searched. It remains a cosine,
    of vectors with four more numbers. Needs towers that are not trained.

    Attributes:
        neighbours: nearest ones that the mean is of.
        pictures, captions: largest number of training pictures and captions that are kept.
    """

    neighbours: int = Field(10, ge=1)
    pictures: int = Field(2048, ge=1)
    captions: int = Field(4096, ge=1)


class JointConfig(Settings):
    """Shape of the two towers.

    Attributes:
        dim: numbers of the joint space D.
        image_hidden, text_hidden: widths of hidden layers of each side's head; none: it is linear.
        batch_norm: normalise each hidden layer's numbers by its batches, before the ReLU.
        image_dropout, text_dropout: share of a tower's numbers that are dropped in training, before the head.
        standardise: subtract the training mean from what a tower says, and divide by its mean deviation.
        text: sentence: the mean hidden state of a BERT, such as a sentence model; lstm: word embeddings and an LSTM,
            whose state after the last word piece is read.
        text_layers: the hidden states after these layers of the BERT, side by side (0: its embeddings); None: the last.
        embedding_size, text_size: of the LSTM.
        max_text_length: largest number of word pieces.
        class_names: weight of what the picture's backbone says in words: the mean of the class names' vectors by the
            probabilities that its own classifier gives (Norouzi et al. 2014, ConSE), beside the picture's vector. 0:
            leave it out. Needs a backbone with the classes of ImageNet, and `text: sentence`.
        class_temperature: divides the classifier's logits.
        hubs: correction of hubs; None: none.
        temperature: initial temperature of the similarities, 0.01 at least. learn_temperature: whether it is trained.
        bias: initial bias of the similarities, which the loss `siglip` reads and trains; None: -10, as published.
        vector_dim, vector_identity: numbers and backbone of the picture's vector. inside: whether that backbone is
            inside the model. Filled in.
        tuned_blocks, tuned_text: what of the towers is trained; filled in from the recipe.
        vocab_size, bert: of the text tower; filled in.
        classes: number of named classes; filled in.
        kept_pictures, kept_captions: numbers of `hubs`, of which a small training split has fewer; filled in.
    """

    dim: int = Field(256, ge=1, le=65_536)
    image_hidden: tuple[int, ...] = ()
    text_hidden: tuple[int, ...] = ()
    batch_norm: bool = False
    image_dropout: float = Field(0.0, ge=0, lt=1)
    text_dropout: float = Field(0.0, ge=0, lt=1)
    standardise: bool = True
    text: Literal["sentence", "lstm"] = "sentence"
    text_layers: tuple[int, ...] | None = None
    embedding_size: int = Field(256, ge=1)
    text_size: int = Field(256, ge=1)
    max_text_length: int = Field(64, ge=2, le=512)
    class_names: float = Field(0.0, ge=0)
    class_temperature: float = Field(2.0, gt=0)
    hubs: Hubs | None = None
    temperature: float = Field(0.07, ge=0.01)
    learn_temperature: bool = True
    bias: float | None = None
    vector_dim: int = Field(0, ge=0)
    vector_identity: dict[str, Any] | None = None
    inside: bool = False
    tuned_blocks: int = Field(0, ge=0)
    tuned_text: bool = False
    vocab_size: int = Field(30522, ge=5)
    bert: BertShape | None = None
    classes: int = Field(0, ge=0)
    kept_pictures: int = Field(0, ge=0)
    kept_captions: int = Field(0, ge=0)

    @property
    def space(self) -> int:
        """Numbers of the vectors, with those that a correction of hubs adds."""
        return self.dim + (0 if self.hubs is None else ADDED)

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if any(width < 1 for width in (*self.image_hidden, *self.text_hidden)):
            raise ValueError("hidden layers have 1 number or more")
        if self.batch_norm and not (self.image_hidden or self.text_hidden):
            raise ValueError("batch_norm is of hidden layers, and neither side has any")
        if self.text == "lstm":
            changed = [name for name, used in (("text_layers", self.text_layers is not None),
                                               ("class_names", bool(self.class_names))) if used]  # fmt: skip
            if changed:
                raise ValueError(f"{changed[0]} needs text: sentence")
        else:
            given = [name for name in ("embedding_size", "text_size") if getattr(self, name) != 256]
            if given:
                raise ValueError(f"{given[0]} means something only with text: lstm")
        return self
