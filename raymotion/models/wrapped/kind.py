"""Kinds around models of `transformers`: usable as they come (`raymotion wrap`), and calibrated by training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np

from raymotion.errors import InputError
from raymotion.label_mapping import read_mapping
from raymotion.models.inputs.base import Input, batches, require_inputs
from raymotion.models.inputs.captions import Captions
from raymotion.models.inputs.picture import PictureInput
from raymotion.models.kind import Kind, Training, Wrap
from raymotion.models.outputs.base import DataFacts, Output
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.text.tower import without_warnings
from raymotion.models.wrapped.recipe import (
    ClassifierRecipe,
    ClassifierSource,
    TextClassifierRecipe,
    TextClassifierSource,
    ZeroShotRecipe,
    ZeroShotSource,
)
from raymotion.vocabulary import Vocabulary, read_vocabulary

# Training samples that center and spread are computed from; more change neither.
SAMPLES = 1024


class WrappedKind(Kind):
    """Base of the kinds around models of somebody else's."""

    chunk: ClassVar[int] = 32
    half = True

    def outputs(self, recipe: Any, facts: DataFacts) -> Sequence[Output]:
        return [MultiLabel.of_recipe(recipe, facts)]

    def build(self, recipe: Any, training: Training) -> Any:
        """Returns the network, which initially predicts the class prior."""
        import torch

        output = cast(MultiLabel, training.outputs[0])
        network = self.network(recipe, output.vocabulary)
        data, (bound,) = training.data, training.inputs.values()
        rows = data.splits["train"]
        rows = np.random.default_rng(recipe.seed).permutation(rows[bound.present[rows]])[:SAMPLES]
        scores = list(self.training_scores(network, recipe, training, np.sort(rows)))
        if not scores:
            raise InputError("no training sample can be read", path=data.name)
        network.calibrate(torch.cat(scores), output.first_numbers(data.targets_of(output), data.splits["train"]))
        return network

    def wrap(self, recipe: Any) -> tuple[Any, Sequence[Input], Sequence[Output]]:
        vocabulary = self.vocabulary_of(recipe)
        return self.network(recipe, vocabulary), self.inputs(recipe), [MultiLabel(vocabulary)]

    @abstractmethod
    def training_scores(self, network: Any, recipe: Any, training: Training, rows: np.ndarray) -> Iterator[Any]:
        """Yields the scores (n, L) of training rows, some at a time; without augmentation."""

    @abstractmethod
    def vocabulary_of(self, recipe: Any) -> Vocabulary:
        """Returns the vocabulary of a model that is not calibrated."""

    @abstractmethod
    def network(self, recipe: Any, vocabulary: Vocabulary) -> Any:
        """Returns the network with the weights of the recipe's source, as the model comes."""

    def describe(
        self, model: Mapping[str, Any], training: Mapping[str, Any], inputs: Sequence[Input], parameters: int
    ) -> list[str]:
        calibrated = (
            "Its answers were calibrated on labelled samples: one temperature, and a bias of each label."
            if model["calibrated"]
            else "Its probabilities are the model's own: nothing of it was fitted to labelled pictures. Measure it "
            "(`raymotion evaluate`) before you trust them, and calibrate it with `raymotion train`."
        )
        return [f"{model['source']['model_type']} `{model['named']}`, {parameters:,} parameters.", calibrated]


class WrappedPictureKind(WrappedKind):
    """Base of those that read pictures."""

    def inputs(self, recipe: Any) -> Sequence[Input]:
        return [PictureInput(self.size_of(recipe.source))]

    @abstractmethod
    def size_of(self, source: str) -> int:
        """Returns the side of the square of pixels that the model reads."""

    def training_scores(self, network: Any, recipe: Any, training: Training, rows: np.ndarray) -> Iterator[Any]:
        import torch

        reader = cast(Any, training.inputs["picture"]).reader(recipe)
        for _, read in training.read(reader, rows, self.chunk):
            if read.readable.any():
                yield network.raw_scores(torch.from_numpy(np.array(read.pixels[read.readable])))


class ZeroShotKind(WrappedPictureKind):
    """A CLIP, SigLIP or similar model that compares pictures with texts about each emotion."""

    name: ClassVar[str] = "zero-shot"
    recipe = ZeroShotRecipe
    wraps: ClassVar[Wrap | None] = Wrap(
        ZeroShotSource, "zero-shot openai/clip-vit-base-patch32 --vocabulary mikels-8 --out clip/"
    )

    def size_of(self, source: str) -> int:
        from raymotion.models.wrapped.sources import read_config, read_pixels

        vision = getattr(read_config(source), "vision_config", None)
        return int(read_pixels(source, getattr(vision, "image_size", None))["size"])

    def vocabulary_of(self, recipe: ZeroShotRecipe) -> Vocabulary:
        if recipe.vocabulary is None:
            raise InputError("a zero-shot model has no emotions of its own", remedy="Give --vocabulary NAME or FILE.")
        return read_vocabulary(recipe.vocabulary)

    def network(self, recipe: ZeroShotRecipe, vocabulary: Vocabulary) -> Any:
        from transformers import AutoModel

        from raymotion.models.text.prompts import prompts_of
        from raymotion.models.wrapped.network import ZeroShot, ZeroShotConfig
        from raymotion.models.wrapped.sources import embed_texts, read_config, read_model, read_pixels

        prompts = prompts_of(vocabulary, recipe.templates, recipe.prompts)
        config = read_config(recipe.source)
        if not hasattr(config, "text_config") or not hasattr(config, "vision_config"):
            raise _no_towers(config.model_type, recipe.source)
        model = cast(Any, read_model(recipe.source, AutoModel))
        if not hasattr(model, "get_text_features") or not hasattr(model, "get_image_features"):
            raise _no_towers(config.model_type, recipe.source)
        texts = embed_texts(recipe.source, model, prompts)
        pixels = read_pixels(recipe.source, model.config.vision_config.image_size)
        shape = model.config.to_dict()
        shaped = ZeroShotConfig(
            source={**shape, "text_config": {**shape["text_config"], **SMALLEST}}, named=recipe.source,
            prompts=prompts, **pixels,
        )  # fmt: skip
        network = ZeroShot(shaped, _without_text(model), len(vocabulary), texts.shape[1])
        network.get_buffer("texts").copy_(texts)
        return network.eval()

    def restore(self, model: Mapping[str, Any], inputs: Sequence[Input], outputs: Sequence[Output]) -> Any:
        from transformers import AutoModel

        from raymotion.models.wrapped.network import ZeroShot, ZeroShotConfig

        config = ZeroShotConfig.model_validate(model)
        _require_picture(inputs, config.size)
        inner = _without_text(_of_config(AutoModel, config.source))
        width = config.source.get("projection_dim") or config.source["vision_config"]["hidden_size"]
        return ZeroShot(config, inner, outputs[0].width, width)

    def title(self) -> str:
        return "Zero-shot emotions of pictures"


# The text tower of a checkpoint, whose answers are stored: it is built, and dropped.
SMALLEST = {"num_hidden_layers": 0, "vocab_size": 8}


class ClassifierKind(WrappedPictureKind):
    """Any image classifier of transformers, with its classes mapped to emotions."""

    name: ClassVar[str] = "hf-classifier"
    recipe = ClassifierRecipe
    wraps: ClassVar[Wrap | None] = Wrap(ClassifierSource, "hf-classifier owner/vit-emotions --out classifier/")

    def size_of(self, source: str) -> int:
        from raymotion.models.wrapped.sources import read_config, read_pixels

        return int(read_pixels(source, getattr(read_config(source), "image_size", None))["size"])

    def vocabulary_of(self, recipe: ClassifierRecipe) -> Vocabulary:
        return _vocabulary_of(recipe)

    def network(self, recipe: ClassifierRecipe, vocabulary: Vocabulary) -> Any:
        from transformers import AutoModelForImageClassification

        from raymotion.models.wrapped.network import Classifier, ClassifierConfig
        from raymotion.models.wrapped.sources import read_model, read_pixels

        shared = _classes(recipe, vocabulary)
        model = cast(Any, read_model(recipe.source, AutoModelForImageClassification))
        pixels = read_pixels(recipe.source, getattr(model.config, "image_size", None))
        return Classifier(ClassifierConfig(**shared, **pixels), model, len(vocabulary)).eval()

    def restore(self, model: Mapping[str, Any], inputs: Sequence[Input], outputs: Sequence[Output]) -> Any:
        from transformers import AutoModelForImageClassification

        from raymotion.models.wrapped.network import Classifier, ClassifierConfig

        config = ClassifierConfig.model_validate(model)
        _require_picture(inputs, config.size)
        _require_meaning(config.meaning, outputs[0].width)
        return Classifier(config, _of_config(AutoModelForImageClassification, config.source), outputs[0].width)

    def title(self) -> str:
        return "Emotions of pictures, by an image classifier"

    def describe(
        self, model: Mapping[str, Any], training: Mapping[str, Any], inputs: Sequence[Input], parameters: int
    ) -> list[str]:
        return [*super().describe(model, training, inputs, parameters), _told_of(model)]


class TextClassifierKind(WrappedKind):
    """Any text classifier of transformers on BERT's word pieces, which reads the captions."""

    name: ClassVar[str] = "hf-text-classifier"
    recipe = TextClassifierRecipe
    wraps: ClassVar[Wrap | None] = Wrap(TextClassifierSource, "hf-text-classifier owner/bert-emotions --out text/")

    def inputs(self, recipe: TextClassifierRecipe) -> Sequence[Input]:
        from raymotion.models.text.tokenizer import load_tokenizer

        return [Captions(_longest(recipe), tokenizer=load_tokenizer(recipe.source), source=recipe.source)]

    def vocabulary_of(self, recipe: TextClassifierRecipe) -> Vocabulary:
        return _vocabulary_of(recipe)

    def training_scores(self, network: Any, recipe: Any, training: Training, rows: np.ndarray) -> Iterator[Any]:
        for some in batches(len(rows), self.chunk):
            yield network.raw_scores(**training.inputs["captions"].evidence(rows[some]).tensors("cpu"))

    def network(self, recipe: TextClassifierRecipe, vocabulary: Vocabulary) -> Any:
        from transformers import AutoModelForSequenceClassification

        from raymotion.models.wrapped.network import TextClassifier, TextClassifierConfig
        from raymotion.models.wrapped.sources import read_model

        shared = _classes(recipe, vocabulary)
        model = read_model(recipe.source, AutoModelForSequenceClassification)
        return TextClassifier(TextClassifierConfig(**shared, longest=_longest(recipe)), model, len(vocabulary)).eval()

    def restore(self, model: Mapping[str, Any], inputs: Sequence[Input], outputs: Sequence[Output]) -> Any:
        from transformers import AutoModelForSequenceClassification

        from raymotion.models.wrapped.network import TextClassifier, TextClassifierConfig

        config = TextClassifierConfig.model_validate(model)
        require_inputs(inputs, [Captions])
        cast(Captions, inputs[0]).require_fit(int(config.source.get("vocab_size", 0)), config.longest)
        _require_meaning(config.meaning, outputs[0].width)
        inner = _of_config(AutoModelForSequenceClassification, config.source)
        return TextClassifier(config, inner, outputs[0].width)

    def title(self) -> str:
        return "Emotions of captions, by a text classifier"

    def describe(
        self, model: Mapping[str, Any], training: Mapping[str, Any], inputs: Sequence[Input], parameters: int
    ) -> list[str]:
        return [*super().describe(model, training, inputs, parameters), _told_of(model)]


def _longest(recipe: TextClassifierRecipe) -> int:
    """Returns the most word pieces of a caption that the model can read, at most those asked for."""
    from raymotion.models.wrapped.sources import read_config

    return min(recipe.longest, getattr(read_config(recipe.source), "max_position_embeddings", recipe.longest))


def _vocabulary_of(recipe: Any) -> Vocabulary:
    """Returns the vocabulary that is asked for, or the classes of the model."""
    from raymotion.models.wrapped.sources import classes_of, read_config

    if recipe.vocabulary is not None:
        return read_vocabulary(recipe.vocabulary)
    if recipe.mapping is not None:
        raise InputError("--mapping is given without --vocabulary", remedy="Give the vocabulary it maps to.")
    classes = classes_of(read_config(recipe.source), recipe.source)
    return Vocabulary(f"{recipe.source.rstrip('/').rpartition('/')[2]}-{len(classes)}", tuple(classes))


def _classes(recipe: Any, vocabulary: Vocabulary) -> dict[str, Any]:
    """Returns the fields that the shapes of all classifiers share."""
    from raymotion.models.wrapped.sources import classes_of, read_config

    config = read_config(recipe.source)
    classes = classes_of(config, recipe.source)
    sigmoid = config.problem_type == "multi_label_classification"
    return {
        "source": config.to_dict(), "named": recipe.source, "classes": classes,
        "activation": "sigmoid" if sigmoid else "softmax", "meaning": _meaning(classes, vocabulary, recipe.mapping),
    }  # fmt: skip


def _told_of(model: Mapping[str, Any]) -> str:
    used = len({i for own in model["meaning"] for i in own})
    return f"{used} of its {len(model['classes'])} classes have a meaning here."


def _require_meaning(meaning: Sequence[Sequence[int]], width: int) -> None:
    if len(meaning) != width:
        raise InputError(f"model.meaning is of {len(meaning)} labels, not of {width}")


def _meaning(classes: Sequence[str], vocabulary: Vocabulary, mapping: str | None) -> list[list[int]]:
    """Returns the positions of the classes that mean each label.

    Raises:
        InputError: a label has no class, or the mapping is invalid.
    """
    if mapping is not None:
        found = read_mapping(
            mapping, Vocabulary("classes", tuple(classes)), vocabulary, here="classifier", there="--vocabulary"
        )
        if found.unsaid:
            raise InputError(
                f"no class means {', '.join(found.unsaid[:5])}: the model would never say it",
                path=mapping,
                remedy="Map a class to it, or give a vocabulary without it.",
            )
        return [list(own) for own in found.sources]
    by_name = {name.casefold(): i for i, name in enumerate(classes)}
    missing = [label for label in vocabulary.labels if label.casefold() not in by_name]
    if missing:
        shown = ", ".join(classes[:8]) + (" ..." if len(classes) > 8 else "")
        raise InputError(
            f"no class of the model is called {', '.join(missing[:5])} (its classes: {shown})",
            remedy="Give --mapping FILE, which says what each class means.",
        )
    return [[by_name[label.casefold()]] for label in vocabulary.labels]


def _no_towers(kind: str, source: str) -> InputError:
    return InputError(
        f"is a {kind}, which does not compare pictures with texts",
        path=source,
        remedy="Give a CLIP, a SigLIP or the like; a classifier is for `raymotion wrap hf-classifier`.",
    )


def _require_picture(inputs: Sequence[Input], size: int) -> None:
    require_inputs(inputs, [PictureInput])
    found = cast(PictureInput, inputs[0]).size
    if found != size:
        raise InputError(f"the picture has {found} pixels a side, model.size is {size}")


def _without_text(model: Any) -> Any:
    """Drops the text tower: the embeddings of the texts are stored."""
    for name in ("text_model", "text_projection"):
        if hasattr(model, name):
            setattr(model, name, None)
    return model


def _of_config(auto: Any, config: Mapping[str, Any]) -> Any:
    """Builds a model of transformers from its config, with random weights."""
    from transformers import AutoConfig

    shape = {name: value for name, value in config.items() if name != "model_type"}
    with without_warnings():  # it warns of token ids beyond a vocabulary that was cut, which no text uses
        return auto.from_config(AutoConfig.for_model(config["model_type"], **shape))
