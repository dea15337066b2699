"""Emotions of pictures from a joint space as a kind of model: zero-shot, or a layer fitted to labelled samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from raymotion.data.streams import CONTEXT
from raymotion.errors import InputError
from raymotion.models.checkpoint import CheckpointInfo, Model, load_model, read_checkpoint_info
from raymotion.models.inputs.base import Input, require_inputs
from raymotion.models.inputs.captions import Captions
from raymotion.models.inputs.streams import CropInput, PersonInput, StreamInput
from raymotion.models.joint.config import JointConfig
from raymotion.models.joint.kind import JointKind
from raymotion.models.joint_emotions.recipe import JointEmotionsRecipe, JointEmotionsSource
from raymotion.models.kind import Kind, Training, Wrap
from raymotion.models.outputs.base import DataFacts, Output
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.text.prompts import prompts_of
from raymotion.models.text.tokenizer import encode
from raymotion.models.text.words import shown_words, words_of
from raymotion.vocabulary import Vocabulary, read_vocabulary

if TYPE_CHECKING:
    from raymotion.models.joint_emotions.network import JointEmotions


class JointEmotionsKind(Kind):
    """Emotions of pictures by their place in a joint space: zero-shot by words, or a layer fitted to labels."""

    name: ClassVar[str] = "joint-emotions"
    recipe = JointEmotionsRecipe
    chunk: ClassVar[int] = 64
    wraps: ClassVar[Wrap | None] = Wrap(
        JointEmotionsSource, "joint-emotions joint/ --vocabulary mikels-8 --out emotions/"
    )

    def inputs(self, recipe: JointEmotionsRecipe) -> Sequence[Input]:
        source = _source(recipe)
        own = _pictures_of(source)
        if recipe.data.embeddings:
            if JointConfig.model_validate(source.model).tuned_blocks:
                raise InputError(
                    "has a backbone whose last blocks it trained: cached features are of another one",
                    path=recipe.source,
                    remedy="Leave data.embeddings out: it reads the pictures.",
                )
            return [
                StreamInput(folders=recipe.data.embeddings, chosen={CONTEXT: own.streams[0].name},
                            samples=recipe.data.samples)
            ]  # fmt: skip
        if isinstance(own, StreamInput) and recipe.data.samples:
            raise InputError(
                f"reads vectors of {own.streams[0].name}, which is not part of it", path=recipe.source,
                remedy="Name features of these samples with data.embeddings.",
            )  # fmt: skip
        return [own]

    def outputs(self, recipe: JointEmotionsRecipe, facts: DataFacts) -> Sequence[Output]:
        return [MultiLabel.of_recipe(recipe, facts)]

    def build(self, recipe: JointEmotionsRecipe, training: Training) -> JointEmotions:
        """Returns the network, which initially predicts the class prior."""
        bound: Any = training.inputs.get("streams")
        stated = _pictures_of(_source(recipe)).streams[0].identity
        if bound is not None and bound.identities[0] != stated:
            found = bound.identities[0]
            raise InputError(
                f"reads vectors of {stated.name} ({stated.weights}, {stated.size} pixels), and the embeddings are of "
                f"{found.name} ({found.weights}, {found.size} pixels)",
                path=recipe.source,
                remedy="Make the embeddings with that backbone.",
            )
        network = self._network(recipe, cast(MultiLabel, training.outputs[0]).vocabulary, fitted=True)
        own, data = training.outputs[0], training.data
        own.start(network.head, data.targets_of(own), data.splits["train"])
        return network

    def wrap(self, recipe: JointEmotionsRecipe) -> tuple[Any, Sequence[Input], Sequence[Output]]:
        if recipe.vocabulary is None:
            raise InputError("a joint space has no emotions of its own", remedy="Give --vocabulary NAME or FILE.")
        vocabulary = read_vocabulary(recipe.vocabulary)
        return self._network(recipe, vocabulary, fitted=False).eval(), self.inputs(recipe), [MultiLabel(vocabulary)]

    def _network(self, recipe: JointEmotionsRecipe, vocabulary: Vocabulary, *, fitted: bool) -> JointEmotions:
        import torch

        from raymotion.models.joint.kind import texts_of
        from raymotion.models.joint_emotions.network import JointEmotions, JointEmotionsConfig

        model = load_model(recipe.source, kind=JointKind.name)
        joint, prompts = cast(Any, model.network), prompts_of(vocabulary, recipe.templates, recipe.prompts)
        config = JointEmotionsConfig(
            joint=dict(model.info.model), names=joint.text.width if joint.config.classes else 0, fitted=fitted,
            **({} if fitted else {"prompts": prompts, **_not_known(model, vocabulary, prompts)}),
        )  # fmt: skip
        network = JointEmotions(config, len(vocabulary))
        network.pictures.load_state_dict(joint.pictures.state_dict())
        with torch.no_grad():
            network.head.weight.zero_()
            network.head.bias.zero_()
            if not fitted:
                texts = [text for own in prompts for text in own]
                tokens = cast(Captions, model.inputs[0]).tokens([[text] for text in texts])
                said = torch.cat([joint.text_head(own) for own in texts_of(joint, tokens, "cpu")])
                directions = torch.nn.functional.normalize(said, dim=1)
                means = torch.stack([own.mean(dim=0) for own in directions.split([len(own) for own in prompts])])
                scale = joint.log_scale.exp().clamp(max=100.0)
                network.head.weight.copy_(scale * torch.nn.functional.normalize(means, dim=1))
        return network

    def restore(self, model: Mapping[str, Any], inputs: Sequence[Input], outputs: Sequence[Output]) -> JointEmotions:
        from raymotion.models.joint_emotions.network import JointEmotions, JointEmotionsConfig

        config = JointEmotionsConfig.model_validate(model)
        shape = JointConfig.model_validate(config.joint)
        require_inputs(inputs, [type(inputs[0]) if isinstance(inputs[0], StreamInput | CropInput) else StreamInput])
        (stream,) = cast(PersonInput, inputs[0]).streams
        if stream.identity.to_dict() != shape.vector_identity or (
            isinstance(inputs[0], CropInput) and not shape.inside
        ):
            raise InputError("the model reads the vectors of another backbone than its input gives")
        return JointEmotions(config, outputs[0].width)

    def title(self) -> str:
        return "Emotions of pictures from a joint space"

    def describe(
        self, model: Mapping[str, Any], training: Mapping[str, Any], inputs: Sequence[Input], parameters: int
    ) -> list[str]:
        source = (training.get("settings") or {}).get("source", "")
        how = (
            "A layer fitted to labelled samples, on pictures' vectors in that space."
            if model["fitted"]
            else "Zero-shot: it compares pictures with the words for each emotion, and no labelled picture was looked "
            "at. Measure it (`raymotion evaluate`) before you trust it."
        )
        where = f"From the joint space `{str(source).rstrip('/').rpartition('/')[2]}`, {parameters:,} parameters."
        return [where, how, *self.cautions(model)]

    def cautions(self, model: Mapping[str, Any]) -> list[str]:
        unknown, told = model.get("unknown_words") or [], []
        if unknown:
            told.append(
                f"The joint space does not know these words of the texts: {shown_words(unknown)}. What it says of a "
                "label that only they describe means little."
            )
        return told + [
            f"It reads the texts of {', '.join(labels)} as the same, and gives these labels the same probability."
            for labels in model.get("alike") or []
        ]


def _not_known(model: Model, vocabulary: Vocabulary, prompts: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Returns the fields of the shape on words of the prompts that a joint space does not know.

    Raises:
        InputError: it knows no word of a text, not even in pieces.
    """
    captions = cast(Captions, model.inputs[0])
    unknown: dict[str, None] = {}
    read: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for label, texts in enumerate(prompts):
        for text in texts:
            words = words_of(captions, model.info.training, text)
            if words.says_nothing or not captions.known([[text]])[0]:
                raise InputError(
                    f"knows no word of {text!r}", path=model.info.folder, remedy="Say it in other words (--prompts)."
                )
            unknown |= dict.fromkeys(words.unknown)
        pieces = encode(captions.tokenizer, texts, captions.max_length)
        read.setdefault(tuple(tuple(own) for own in pieces), []).append(label)
    alike = [own for own in read.values() if len({tuple(prompts[label]) for label in own}) > 1]
    return {"unknown_words": [*unknown], "alike": [[vocabulary.labels[label] for label in own] for own in alike]}


def _source(recipe: JointEmotionsRecipe) -> CheckpointInfo:
    """Reads the description of the joint space.

    Raises:
        InputError: the checkpoint is another kind of model.
    """
    info = read_checkpoint_info(recipe.source)
    if info.kind.name != JointKind.name:
        raise InputError(f"is a {info.kind.name}, not a {JointKind.name}", path=recipe.source)
    return info


def _pictures_of(info: CheckpointInfo) -> StreamInput | CropInput:
    return next(own for own in info.inputs if isinstance(own, StreamInput | CropInput))
