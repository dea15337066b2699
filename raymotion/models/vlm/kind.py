"""A vision-language model behind an endpoint: it has no weights here, and answers about pictures in words."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import ValidationError

from raymotion import storage
from raymotion.config import first_problem
from raymotion.errors import InputError
from raymotion.models.inputs.answers import AnswersInput, Service, not_trained
from raymotion.models.inputs.base import Evidence, Input, require_inputs
from raymotion.models.kind import Kind, Training, Wrap
from raymotion.models.outputs.base import DataFacts, Output
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.vlm.prompt import PROMPT, check_prompt, tokens_of
from raymotion.models.vlm.recipe import Access, VlmConfig, VlmRecipe, VlmSource
from raymotion.vocabulary import Vocabulary, read_vocabulary


class VlmKind(Kind):
    """A vision-language model behind an OpenAI-compatible endpoint, asked about each picture."""

    name: ClassVar[str] = "vlm"
    recipe = VlmRecipe
    whole_shard = True  # so that its questions about a shard are open at once
    wraps: ClassVar[Wrap | None] = Wrap(
        VlmSource,
        "vlm --endpoint http://gpu-node:8000/v1 --model Qwen/Qwen2.5-VL-7B-Instruct --vocabulary emotic-26 "
        "--out models/vlm/",
        arguments=(),
        names={"served_model": "model"},
    )

    def inputs(self, recipe: VlmRecipe) -> Sequence[Input]:
        return [AnswersInput(recipe.image_size)]

    def outputs(self, recipe: Any, facts: DataFacts) -> Sequence[Output]:
        raise not_trained()

    def build(self, recipe: Any, training: Training) -> Any:
        raise not_trained()

    def check_recipe(self, recipe: Any) -> None:
        raise not_trained()

    def wrap(self, recipe: VlmRecipe) -> tuple[Any, Sequence[Input], Sequence[Output]]:
        from raymotion.models.vlm.network import NoWeights

        if importlib.util.find_spec("openai") is None:
            raise InputError("the package openai is not installed", remedy="pip install 'raymotion[vlm]'")
        vocabulary = read_vocabulary(recipe.vocabulary)
        text = PROMPT if recipe.prompt is None else storage.require(recipe.prompt).decode(errors="replace")
        check_prompt(text, recipe.prompt)
        config = VlmConfig(
            served_model=recipe.served_model,
            image_size=recipe.image_size,
            response_format=recipe.response_format,
            prompt=text,
            max_tokens=recipe.max_tokens or tokens_of(vocabulary.labels),
        )
        return NoWeights(config), self.inputs(recipe), [MultiLabel(vocabulary)]

    def restore(self, model: Mapping[str, Any], inputs: Sequence[Input], outputs: Sequence[Output]) -> Any:
        from raymotion.models.vlm.network import NoWeights

        require_inputs(inputs, [AnswersInput])
        return NoWeights(VlmConfig.model_validate(model))

    def check(self, model: Mapping[str, Any], *, where: str) -> None:
        try:
            own = VlmConfig.model_validate(model)
        except ValidationError as error:
            raise InputError(f"model: {first_problem(error, VlmConfig)}", path=where) from error
        check_prompt(own.prompt, where)

    def service(
        self, model: Mapping[str, Any], training: Mapping[str, Any], outputs: Sequence[Output]
    ) -> Service | None:
        from raymotion.models.vlm.client import Endpoint

        settings = training.get("settings") or {}
        try:
            access = Access.model_validate({name: settings[name] for name in Access.model_fields if name in settings})
        except ValidationError as error:
            raise InputError(f"training.json, settings: {first_problem(error, Access)}") from error
        return Endpoint(VlmConfig.model_validate(model), access, _vocabulary_of(outputs).labels)

    def predict(
        self,
        network: Any,
        evidence: Mapping[str, Evidence],
        outputs: Sequence[Output],
        *,
        batch_size: int | None = None,
        precision: str = "float32",
    ) -> dict[str, np.ndarray]:
        """Returns the answers: they are probabilities already."""
        (own,) = evidence.values()
        return {outputs[0].name: own.tensors("cpu")["answer"].numpy()}

    def title(self) -> str:
        return "Emotions by a vision-language model behind an endpoint"

    def describe(
        self, model: Mapping[str, Any], training: Mapping[str, Any], inputs: Sequence[Input], parameters: int
    ) -> list[str]:
        own, settings = VlmConfig.model_validate(model), training.get("settings") or {}
        quoted = "\n".join(f"  > {line}".rstrip() for line in own.prompt.splitlines())
        return [
            f"`{own.served_model}` at `{settings.get('endpoint')}`, OpenAI-compatible; no weights are here.",
            f"Asked at temperature 0 about each picture, sent with at most {own.image_size} pixels on the longer side; "
            f"answers of at most {own.max_tokens} tokens, constrained by {own.response_format} where the server can.",
            "An answer that is not one number from 0 to 1 for each emotion is no answer: its row goes to quarantine.",
            "Its probabilities are what the model writes: nothing was fitted to labelled pictures.",
            f"Prompt, where `{{labels}}` stands for the emotions and `{{answer}}` for the JSON expected:\n\n{quoted}\n",
        ]


def _vocabulary_of(outputs: Sequence[Output]) -> Vocabulary:
    vocabulary = outputs[0].vocabulary
    if len(outputs) != 1 or vocabulary is None:
        raise InputError(f"the model has one output with a vocabulary, not {json.dumps([own.name for own in outputs])}")
    return vocabulary
