"""Backbones and fusion head as one kind of model: predicts emotions (and numbers) from crops of a person."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from raymotion.config import load_settings
from raymotion.errors import InputError
from raymotion.models.checkpoint import CheckpointInfo, load_model, read_checkpoint_info
from raymotion.models.fusion.config import FusionConfig, input_size, wants_tokens
from raymotion.models.fusion.kind import FusionKind, check_head, head_outputs, require_streams, set_first_answers
from raymotion.models.fusion_tuned.config import TunedConfig
from raymotion.models.fusion_tuned.recipe import FusionTunedRecipe
from raymotion.models.inputs.base import Evidence, Input, require_inputs
from raymotion.models.inputs.person_crops import PersonReader
from raymotion.models.inputs.streams import CropInput, PreparedCrops, Stream, StreamInput
from raymotion.models.kind import Kind, Training
from raymotion.models.outputs.base import DataFacts, Output
from raymotion.models.vision.backbones import BackboneIdentity, build, identify

if TYPE_CHECKING:
    from torch import Tensor

    from raymotion.models.fusion_tuned.network import TunedStreams


class FusionTunedKind(Kind):
    """Backbones and fusion head trained end to end on pictures."""

    name: ClassVar[str] = "fusion-tuned"
    recipe = FusionTunedRecipe
    # Activations of three backbones are large.
    chunk: ClassVar[int] = 16
    half = True

    def inputs(self, recipe: FusionTunedRecipe) -> Sequence[Input]:
        config, streams = _head(recipe)
        return [CropInput(streams, ablation=config.ablation)]

    def outputs(self, recipe: FusionTunedRecipe, facts: DataFacts) -> Sequence[Output]:
        config, _ = _head(recipe)
        if recipe.init is not None and facts.vocabulary is not None:
            info = read_checkpoint_info(recipe.init)
            if info.vocabulary != facts.vocabulary:
                raise InputError(
                    f"knows {info.vocabulary.name} ({info.vocabulary.fingerprint}), the samples "
                    f"{facts.vocabulary.name} ({facts.vocabulary.fingerprint})",
                    path=info.folder,
                    remedy="Take a head of the same vocabulary.",
                )
        return head_outputs(recipe, facts, vad=config.vad)

    def build(self, recipe: FusionTunedRecipe, training: Training) -> TunedStreams:
        """Returns the pretrained backbones with the head of `init`, or a new one.

        The inputs of a new head are standardised by statistics of the initial features. Tuning changes these only
        slowly (`backbone_lr`); without standardisation the first epochs would be spent on their scale.
        """
        from raymotion.models.fusion_tuned.network import TunedStreams

        def backbone(stream: str, identity: BackboneIdentity) -> Any:
            named = getattr(recipe.weights, stream)
            return build(identity, identity.weights if identity.is_random else named)

        config = _whole(recipe)
        network = TunedStreams(
            config, training.outputs[0].width, build=backbone, checkpointing=recipe.gradient_checkpointing
        )
        if recipe.init is not None:
            network.head.load_state_dict(load_model(recipe.init, kind=FusionKind.name).network.state_dict())
            return network
        if not network.head.published:
            if recipe.statistics_samples:
                network.head.set_statistics(*_statistics(network, config.fusion, recipe, training))
            set_first_answers(network.head, training)
        return network

    def restore(self, model: Mapping[str, Any], inputs: Sequence[Input], outputs: Sequence[Output]) -> TunedStreams:
        from raymotion.models.fusion_tuned.network import TunedStreams

        config = TunedConfig.model_validate(model)
        require_inputs(inputs, [CropInput])
        crops = cast(CropInput, inputs[0])
        require_streams(config.fusion, crops)
        if {own.stream: own.identity.to_dict() for own in crops.streams} != config.identities:
            raise InputError("the backbones of the input crops are not those of model.identities")
        return TunedStreams(config, outputs[0].width)

    def learning_rate(self, recipe: FusionTunedRecipe, network: Any, parameter: str) -> float:
        settings = recipe.optimiser
        return settings.backbone_lr if parameter.startswith("backbones.") else settings.lr

    def check(self, model: Mapping[str, Any], *, where: str) -> None:
        check_head(model.get("fusion"), "model.fusion", where=where)

    def title(self) -> str:
        return "Emotions of a person in a picture: backbones and fusion head"

    def describe(
        self, model: Mapping[str, Any], training: Mapping[str, Any], inputs: Sequence[Input], parameters: int
    ) -> list[str]:
        shape, settings = model["fusion"], training.get("settings") or {}
        return [
            f"Fusion `{shape['fusion']}`, width {shape['hidden']}, {parameters:,} parameters and statistics. Its "
            f"backbones are part of it: the last {model['tuned_blocks']} blocks of each learned with the head.",
            f"Augmentation {settings.get('augmentation', 'none')}.",
        ]

    def reads(self, inputs: Sequence[Input]) -> str:
        return "what there is of a person"


def _head(recipe: FusionTunedRecipe) -> tuple[FusionConfig, list[Stream]]:
    """Returns the head's shape, and the streams with their backbones.

    Raises:
        InputError: timm lacks a backbone or its weights, or `init` has other backbones.
    """
    chosen = recipe.backbones.chosen()
    identities = {
        stream: identify(name, getattr(recipe.weights, stream), size=getattr(recipe.sizes, stream))
        for stream, name in chosen.items()
    }
    if recipe.init is None:
        config = _new_head(recipe, identities)
    else:
        config = _head_of(read_checkpoint_info(recipe.init), recipe, identities)
    return config, [
        Stream(stream, name, identities[stream], round(config.tokens.get(stream, 0) ** 0.5))
        for stream, name in chosen.items()
    ]


def _whole(recipe: FusionTunedRecipe) -> TunedConfig:
    config, streams = _head(recipe)
    identities = {own.stream: own.identity.to_dict() for own in streams}
    return TunedConfig(fusion=config, identities=identities, tuned_blocks=recipe.tuned_blocks)


def _new_head(recipe: FusionTunedRecipe, identities: Mapping[str, BackboneIdentity]) -> FusionConfig:
    shape: dict[str, Any] = {**recipe.model, "dims": {stream: own.dim for stream, own in identities.items()}}
    if recipe.tokens:
        if not wants_tokens(str(recipe.model.get("fusion", FusionConfig.model_fields["fusion"].default))):
            raise InputError("tokens are set, and this fusion reads pooled features", remedy="Set tokens to 0.")
        shape["tokens"] = dict.fromkeys(identities, recipe.tokens**2)
        shape["token_dims"] = {stream: own.token_dim for stream, own in identities.items()}
    try:
        return load_settings(FusionConfig, options=shape)
    except InputError as error:
        raise InputError(error.reason.replace("setting ", "setting model.", 1), remedy=error.remedy) from error


def _head_of(
    info: CheckpointInfo, recipe: FusionTunedRecipe, identities: Mapping[str, BackboneIdentity]
) -> FusionConfig:
    """Returns the shape of the head in `init`, after checking that it has these backbones."""

    def refuse(reason: str, remedy: str) -> None:
        raise InputError(reason, path=info.folder, remedy=remedy)

    streams = info.input("streams")
    if info.kind.name != FusionKind.name or not isinstance(streams, StreamInput):
        refuse(f"is a {info.kind.name}, and init takes a fusion head", "Train one on cached features.")
    config = FusionConfig.model_validate(info.model)
    if list(config.dims) != list(identities):
        refuse(
            f"reads the streams {', '.join(config.dims)}, the recipe {', '.join(identities)}",
            "Name a backbone for these streams, and for no other.",
        )
    for own in cast(StreamInput, streams).streams:
        trained, stream, named = own.identity, own.stream, identities[own.stream]
        if trained != named:
            refuse(
                f"was trained on {stream} features of {trained.name} ({trained.weights}, {trained.size} pixels), the "
                f"recipe begins with {named.name} ({named.weights}, {named.size} pixels)",
                f"Set backbones.{stream}, weights.{stream} and sizes.{stream} to those.",
            )
    shape = config.model_dump(mode="json")
    for name, value in recipe.model.items():
        if name != "dropout" and shape.get(name) != value:
            refuse(
                f"has model.{name} {shape.get(name)!r}, the recipe {value!r}",
                f"Leave model.{name} out: with init the shape comes from the checkpoint.",
            )
    sides: Iterable[int] = [round(count**0.5) for count in config.tokens.values() if count]
    if recipe.tokens and set(sides) != {recipe.tokens}:
        refuse("reads another number of tokens than the recipe says", "Leave tokens out: the head knows them.")
    return FusionConfig.model_validate({**shape, "dropout": recipe.model.get("dropout", config.dropout)})


def _statistics(
    network: TunedStreams, fusion: FusionConfig, recipe: FusionTunedRecipe, training: Training
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns means and standard deviations, (D,), of each stream's features, over some training persons."""
    import torch

    crops = cast(PreparedCrops, training.inputs["crops"])
    rows = np.random.default_rng([recipe.seed, 1]).permutation(training.data.splits["train"])
    rows = rows[: recipe.statistics_samples]
    device = "cuda" if recipe.use_gpu is not False and torch.cuda.is_available() else "cpu"
    sums = {name: torch.zeros(2, input_size(fusion, name), dtype=torch.float64) for name in fusion.dims}
    counts = dict.fromkeys(fusion.dims, 0)
    reader = PersonReader(crops.reader(recipe).identities, damaged=recipe.data.damaged)
    network.to(device).eval()
    with torch.no_grad():
        for some, read in training.read(reader, rows, recipe.optimiser.batch_size):
            evidence: Evidence = crops.evidence(some, read)
            arguments = evidence.tensors(device)
            mask = arguments["mask"]
            for number, (name, values) in enumerate(
                zip(fusion.dims, network.features(arguments["crops"], mask), strict=True)
            ):
                if values is not None:
                    own = values[mask[:, number]].reshape(-1, values.shape[-1]).double().cpu()
                    sums[name] += torch.stack([own.sum(dim=0), own.square().sum(dim=0)])
                    counts[name] += len(own)
    network.to("cpu")
    means = {name: total[0] / max(1, counts[name]) for name, total in sums.items()}
    squares = {name: total[1] / max(1, counts[name]) for name, total in sums.items()}
    stds = {name: (squares[name] - means[name].square()).clamp(min=0).sqrt() for name in sums}
    # Constant features and missing streams carry no information; avoids a division by zero.
    stds = {name: torch.where(std < 1e-6, 1.0, std) for name, std in stds.items()}
    return {name: mean.float() for name, mean in means.items()}, {name: std.float() for name, std in stds.items()}
