"""A joint space of pictures and captions as a kind of model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from raymotion.config import load_settings
from raymotion.errors import InputError
from raymotion.models.inputs.base import Evidence, Input, batches, require_inputs
from raymotion.models.inputs.captions import Captions, PreparedCaptions, Tokens
from raymotion.models.inputs.streams import CropInput, StreamInput
from raymotion.models.joint.config import FILLED_IN, JointConfig
from raymotion.models.joint.recipe import JointRecipe
from raymotion.models.kind import Kind, Training
from raymotion.models.outputs.base import DataFacts, Output
from raymotion.models.outputs.embedding import Embedding
from raymotion.models.text.tokenizer import encode
from raymotion.models.vector.source import (
    backbone_of,
    picture_vectors,
    some_rows,
    vector_identity,
    vector_input,
)
from raymotion.models.vision.backbones import BackboneIdentity, classifier_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from raymotion.models.joint.network import JointNetwork

# What the name of a class is put into, as captions are about pictures.
NAMED = "a photo of a {}"


class JointKind(Kind):
    """A joint space of pictures and captions, for retrieval and search."""

    name: ClassVar[str] = "joint"
    recipe = JointRecipe
    chunk: ClassVar[int] = 64

    def inputs(self, recipe: JointRecipe) -> Sequence[Input]:
        shape = _shape(recipe)
        return [recipe.captions(shape.max_text_length), vector_input(recipe)]

    def outputs(self, recipe: JointRecipe, facts: DataFacts) -> Sequence[Output]:
        shape = _shape(recipe)
        return [Embedding(shape.space, added=shape.space - shape.dim, loss=recipe.loss)]

    def check_recipe(self, recipe: JointRecipe) -> None:
        from raymotion.learning.losses.contrastive import make_contrastive_loss

        super().check_recipe(recipe)
        make_contrastive_loss(recipe.loss.name, recipe.loss.options)

    def build(self, recipe: JointRecipe, training: Training) -> JointNetwork:
        """Returns the network, whose heads begin where `start` says."""
        import torch

        from raymotion.models.joint.network import JointNetwork
        from raymotion.models.text.bert import read_bert

        captions = training.inputs["captions"]
        assert isinstance(captions, PreparedCaptions)
        identity = vector_identity(recipe, training)
        filled: dict[str, Any] = {
            "vector_dim": identity.dim, "vector_identity": identity.to_dict(), "inside": "crops" in training.inputs,
            "tuned_blocks": recipe.tuned_blocks, "tuned_text": recipe.tuned_text,
            "vocab_size": len(captions.tokenizer),
        }  # fmt: skip
        weights = None
        if recipe.text_init is not None:
            filled["bert"], weights = read_bert(recipe.text_init, len(captions.tokenizer))
        named = (
            classifier_of(identity, self._weights_of_vectors(recipe, identity)) if _shape(recipe).class_names else None
        )
        if named is not None:
            filled["classes"] = len(named[2])
        config = JointConfig.model_validate({**recipe.model, **filled})
        positions = None if config.bert is None else config.bert.max_position_embeddings
        if positions is not None and config.max_text_length > positions:
            raise InputError(
                f"has {positions} positions, captions may have {config.max_text_length} pieces", path=recipe.text_init,
                remedy="Lower model.max_text_length.",
            )  # fmt: skip
        network = JointNetwork(config, cast(Embedding, training.outputs[0]), build=backbone_of(recipe))
        if weights is not None:
            cast(Any, network.text).model.load_state_dict(weights)
        device = "cuda" if recipe.use_gpu is not False and torch.cuda.is_available() else "cpu"
        network.to(device).eval()
        network.remember_texts(captions.tokens)
        with torch.no_grad():
            self._begin(network, recipe, training, captions, named, device)
        return network.to("cpu")

    @staticmethod
    def _weights_of_vectors(recipe: JointRecipe, identity: BackboneIdentity) -> str:
        """Returns the weights that made the vectors, as named; of cached ones the recipe may not name them."""
        from raymotion.bundled import with_digest

        if recipe.weights != "default" or identity.weights.startswith("timm:"):
            return recipe.weights
        found = with_digest(identity.weights)
        if found is None:
            raise InputError(
                f"model.class_names reads the classifier of {identity.name} ({identity.weights})",
                remedy="Name the file of these weights with `weights`.",
            )
        return found

    def _begin(
        self,
        network: JointNetwork,
        recipe: JointRecipe,
        training: Training,
        captions: PreparedCaptions,
        named: tuple[Any, Any, list[str]] | None,
        device: str,
    ) -> None:
        """Sets the class names, the statistics of both towers, and the start of the heads."""
        import torch

        from raymotion.models.joint.correlations import correlate

        config = network.config
        if not config.standardise and recipe.start is None and named is None and config.hubs is None:
            return
        most = recipe.statistics_samples if recipe.start is None else recipe.start.pictures
        most = max(most, 0 if config.hubs is None else config.hubs.pictures)
        rows = some_rows(recipe, training, most)
        parts = list(picture_vectors(network, recipe, training, rows))
        if not parts:
            raise InputError("no picture of the split train could be read", path=training.data.name)
        rows, vectors = np.concatenate([own for own, _ in parts]), torch.cat([own for _, own in parts])
        network.to(device)
        rows_with = captions.present[rows]
        rows, vectors = rows[rows_with], vectors[torch.from_numpy(rows_with)]
        tokens = cast(Tokens, captions.evidence(rows))
        said = torch.cat([own.cpu() for own in texts_of(network, tokens, device)])
        if config.standardise and config.text == "sentence":
            network.text_head.measure(said, network.text_blocks)
        if named is not None:
            weight, bias, names = named
            network.pictures.get_buffer("class_weight").copy_(weight)
            network.pictures.get_buffer("class_bias").copy_(bias)
            texts = encode(captions.tokenizer, [NAMED.format(name) for name in names], captions.max_length)
            network.remember_texts(texts)
            given = Tokens(
                np.ones(len(texts), dtype=bool), texts, np.arange(len(texts)), captions.tokenizer.pad_token_id
            )
            numbers = torch.cat(list(texts_of(network, given, device)))
            network.pictures.get_buffer("class_texts").copy_(network.text_head.standardised(numbers))
        pictures = torch.cat([network.pictures.numbers(own.to(device)).cpu() for own in vectors.split(4096)])
        if config.standardise:
            network.pictures.head.measure(pictures, network.pictures.blocks)
        network.to("cpu")
        if config.hubs is not None:
            rng = np.random.default_rng([recipe.seed, 4])
            kept = [
                own[torch.from_numpy(np.sort(rng.permutation(len(own))[:most]))]
                for own, most in ((pictures, config.hubs.pictures), (said, config.hubs.captions))
            ]
            network.keep(*kept)
        if recipe.start is not None:
            image, text = correlate(
                network.pictures.head.standardised(pictures), network.text_head.standardised(said),
                torch.from_numpy(tokens.owners), config.dim, image_penalty=recipe.start.image_penalty,
                text_penalty=recipe.start.text_penalty,
            )  # fmt: skip
            for head, found in ((network.pictures.head, image), (network.text_head, text)):
                head.last.weight.copy_(found.weight)
                head.last.bias.copy_(found.bias)

    def restore(self, model: Mapping[str, Any], inputs: Sequence[Input], outputs: Sequence[Output]) -> JointNetwork:
        from raymotion.models.joint.network import JointNetwork

        config = JointConfig.model_validate(model)
        require_inputs(inputs, [Captions, CropInput if config.inside else StreamInput])
        cast(Captions, inputs[0]).require_fit(config.vocab_size, config.max_text_length)
        (stream,) = cast("StreamInput | CropInput", inputs[1]).streams
        if stream.identity.to_dict() != config.vector_identity or stream.shape != (config.vector_dim,):
            raise InputError(f"the model reads a vector of {config.vector_dim} numbers, and its input is another one")
        output = outputs[0]
        if not isinstance(output, Embedding) or output.dim != config.space:
            raise InputError(f"the model's space has {config.space} numbers, and its output is another one")
        return JointNetwork(config, output)

    def learning_rate(self, recipe: JointRecipe, network: Any, parameter: str) -> float:
        settings = recipe.optimiser
        trained = parameter.startswith("pictures.backbone.") or (
            parameter.startswith("text.") and recipe.text_init is not None
        )  # fmt: skip
        return settings.backbone_lr if trained else settings.lr

    def heads(self, network: Any, outputs: Sequence[Output]) -> Mapping[str, nn.Linear]:
        """Returns the last layer of the side of pictures, whose inputs the domain check compares."""
        return {outputs[0].name: network.pictures.head.last}

    def predict(
        self,
        network: Any,
        evidence: Mapping[str, Evidence],
        outputs: Sequence[Output],
        *,
        batch_size: int | None = None,
        precision: str = "float32",
    ) -> dict[str, np.ndarray]:
        """Predicts n samples; the vector of several captions is the mean of their directions."""
        import torch

        output = cast(Embedding, outputs[0])
        device = str(next(network.parameters()).device)
        tokens = cast(Tokens, evidence["captions"])
        pictures = next(own for name, own in evidence.items() if name != "captions")
        n, size = len(tokens.present), batch_size or self.chunk
        values = np.zeros((n, output.width), dtype=np.float32)
        was_training = network.training
        network.eval()
        with torch.no_grad():
            for rows in batches(n, size):
                own = pictures if len(rows) == n else pictures.take(rows)
                there = np.flatnonzero(own.present)
                if len(there):
                    given = own.take(there).tensors(device)
                    given.pop("mask")
                    found = network.encode_pictures(network.vectors(**given))
                    values[rows[there], : output.dim] = _unit(found)
            known = np.flatnonzero(tokens.present)
            if len(known):
                chosen = tokens if len(known) == n else tokens.take(known)
                sums = np.zeros((len(known), output.dim), dtype=np.float64)
                start = 0
                for said in texts_of(network, chosen, device, size):
                    vectors = _unit(network.encode_said(said))
                    np.add.at(sums, chosen.owners[start : start + len(said)], vectors)
                    start += len(said)
                norms = np.linalg.norm(sums, axis=1, keepdims=True)
                values[known, output.dim :] = sums / np.maximum(norms, 1e-12)
        network.train(was_training)
        return {output.name: values}

    def title(self) -> str:
        return "Joint space of pictures and captions"

    def describe(
        self, model: Mapping[str, Any], training: Mapping[str, Any], inputs: Sequence[Input], parameters: int
    ) -> list[str]:
        config = JointConfig.model_validate(model)
        where = "a backbone inside it" if config.inside else "cached features, which are not part of it"
        tuned = f" (its last {config.tuned_blocks} blocks learned too)" if config.tuned_blocks else ""
        text = "an LSTM" if config.text == "lstm" else f"a {'tuned' if config.tuned_text else 'frozen'} BERT"
        hubs = (
            f" Similarities are corrected by {config.kept_pictures:,} pictures and {config.kept_captions:,} captions "
            "of the training split, of which it keeps what the towers say."
            if config.hubs
            else ""
        )
        names = f", with the names of {config.classes:,} classes that the backbone knows" if config.classes else ""
        return [
            f"Pictures by one vector, from {where}{tuned}{names}; captions by {text}; both into {config.dim} numbers; "
            f"{parameters:,} parameters.{hubs}"
        ]


def _unit(vectors: Tensor) -> np.ndarray:
    """Returns vectors (n, D) of length 1."""
    import torch

    return np.asarray(torch.nn.functional.normalize(vectors.float(), dim=1).cpu().numpy())


def texts_of(network: JointNetwork, tokens: Tokens, device: str, size: int = 128) -> Iterator[Tensor]:
    """Yields what the text tower says of captions in their order, some at a time."""
    for rows in batches(len(tokens.tokens), size):
        some = Tokens(
            np.ones(len(rows), dtype=bool), [tokens.tokens[row] for row in rows], np.arange(len(rows)), tokens.pad_id
        )
        given = some.tensors(device)
        yield network.text_numbers(given["input_ids"], given["attention_mask"])


def _shape(recipe: JointRecipe) -> JointConfig:
    """Returns the shape as the recipe states it; raises an `InputError` for a setting that is not the recipe's."""
    if named := [name for name in FILLED_IN if name in recipe.model]:
        raise InputError(f"setting model.{named[0]}: it is filled in from the data", remedy="Leave it out.")
    try:
        return load_settings(JointConfig, options=dict(recipe.model))
    except InputError as error:
        raise InputError(error.reason.replace("setting ", "setting model.", 1), remedy=error.remedy) from error
