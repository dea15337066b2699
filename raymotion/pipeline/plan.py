"""Plans the stages for a checkpoint: those that produce the evidence for its inputs, and the prediction.

The labelling job runs the stages in actors, `Predictor` in this process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from raymotion import storage
from raymotion.bundled import with_digest
from raymotion.data.embedding_layout import FeatureKey, layout_of, require_complete, schema_of
from raymotion.data.feature_store import features_digest
from raymotion.data.images.damage import DamagedPolicy
from raymotion.data.parts import complete_job, part_names
from raymotion.data.path_kinds import wrong_kind
from raymotion.data.provenance import BOXES, begun_at, read_made_from, require_same_pictures
from raymotion.data.samples import read_samples
from raymotion.data.streams import CONTEXT
from raymotion.errors import InputError
from raymotion.models.checkpoint import CheckpointInfo
from raymotion.models.inputs.answers import AnswersInput
from raymotion.models.inputs.base import Input
from raymotion.models.inputs.regions import RegionInput, random_weights_notice
from raymotion.models.inputs.streams import PersonInput, Stream, StreamInput, find_weights
from raymotion.models.vision.regions import ExtractorIdentity, architecture, identify
from raymotion.pipeline.ask import AskService, EncodePictures
from raymotion.pipeline.embed import DecodeOnce, EmbedForHead, LoadEmbeddings
from raymotion.pipeline.predict import Predict, PredictMean
from raymotion.pipeline.stages import DecodeImages, ExtractRegions, LoadRegions, NoEvidence, Stage
from raymotion.weights import locate

Check = Callable[[pa.Table], list[str]]


@dataclass(frozen=True)
class Options:
    """A user's options for the sources of evidence.

    Attributes:
        features: folder of a finished job whose features are read instead of pictures.
        weights: weights files, if the checkpoint refers to files by digest; `NAME=FILE` for one backbone.
        ablation: key of `ABLATIONS`: the streams of a person to keep.
        damaged: treatment of pictures that decode incorrectly.
    """

    features: str | None = None
    weights: tuple[str, ...] = ()
    ablation: str | None = None
    damaged: DamagedPolicy = "quarantine"


@dataclass(frozen=True)
class Plan:
    """The stages of a model, with information for a job.

    Attributes:
        make_stages: precision -> stages; the first one loads the evidence.
        identity: values that affect predictions besides the checkpoint.
        notices: warnings for users.
        check: raises an `InputError` if features belong to other samples; may return more notices.
        images: whether pictures are read, and whether a table without any is an error.
        columns: columns of the sample table that the stages read besides those of every job.
        keep_images_together: whether rows of one image must share a batch.
        described: source of the evidence, for the record.
        gpu: whether a GPU is of use.
    """

    make_stages: Callable[[str], tuple[Stage, ...]]
    identity: Mapping[str, Any]
    notices: tuple[str, ...]
    check: Check | None
    images: Literal["none", "optional", "required"]
    columns: tuple[str, ...]
    keep_images_together: bool
    described: Mapping[str, Any]
    gpu: bool = True


@dataclass
class _Part:
    """The part of a plan for one input: stages after decoding, or a stage that loads its features."""

    stages: Callable[[str], list[Stage]] | None = None
    loader: Stage | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    check: Check | None = None
    described: dict[str, Any] = field(default_factory=dict)


def make_plan(info: CheckpointInfo, options: Options, *, samples: str | None = None, pictures: bool = True) -> Plan:
    """Makes the plan of a model.

    Args:
        samples: the table to label, checked for boxes that the model needs; None if it is not known yet.
        pictures: False if no sample has a picture; weights of extractors and backbones are then not required.

    Raises:
        InputError: the model does not use an option; weights are not given, or are others; features come from another
            extractor or backbone; or no sample has a box that the model needs.
    """
    inputs = [own for own in info.inputs if own.used]
    if options.ablation is not None:
        if not any(isinstance(own, PersonInput) for own in inputs):
            raise InputError(
                f"is a {info.kind.name}, and ablations are of the streams of a person",
                path=info.folder,
                remedy="Leave --ablation out.",
            )
        inputs = [
            own.without(options.ablation, where=info.folder) if isinstance(own, PersonInput) else own for own in inputs
        ]
    _refuse_what_is_not_used(info, inputs, options)
    if not pictures:
        inputs = [own for own in inputs if own.looks_at == "none"]
    inputs = _each_once(inputs)
    alone = all(own.looks_at != "none" for own in inputs)
    parts = [_part_of(own, _owner(own, info), options, samples, alone=alone) for own in inputs]
    loaders = [part.loader for part in parts if part.loader is not None]
    looking = [own for own, part in zip(inputs, parts, strict=True) if own.looks_at != "none" and part.loader is None]

    made = [part.stages for part in parts if part.stages is not None]
    # Workers drop pixels before a stage that takes whole shards.
    shown = any(own in looking and part.stages is None for own, part in zip(inputs, parts, strict=True))

    if shown and any(isinstance(own, AnswersInput) for own in inputs):
        raise InputError(
            "one of these models answers from a service, after the others would have dropped the pixels that they read",
            path=info.folder,
            remedy="Average models that need no pixels with it, or label with each.",
        )

    def stages(precision: str) -> tuple[Stage, ...]:
        first: list[Stage] = list(loaders)
        if any(own.looks_at == "all" for own in looking):
            first.append(DecodeOnce(options.damaged, required=alone))
        elif looking:
            sides = [own.min_side for own in looking if own.min_side is not None]
            first.append(DecodeImages(max(sides) if sides else None, damaged=options.damaged))
        judged = known_domain(info)
        predict = [
            Predict(
                own.folder, own.fingerprint, type(own.kind), ablation=options.ablation, precision=precision,
                samples=own is judged,
            )
            for own in info.members or (info,)
        ]  # fmt: skip
        last = PredictMean(predict) if info.members else predict[0]
        last.whole_shard = last.whole_shard and not shown
        return (*(first or [NoEvidence()]), *(stage for make in made for stage in make(precision)), last)

    notices = [notice for part in parts for notice in part.notices]
    if not any(own.looks_at != "none" for own in inputs):
        notices.append(
            f"The model was trained on {_plural(inputs)} alone: it labels from those, and no image was read."
        )
    elif info.input("captions") is not None and not any(own.name == "captions" for own in inputs):
        notices.append("The model was trained on images alone: it labels from the images, and no caption was read.")
    if options.ablation is not None:
        kept = dict.fromkeys(own.stream for person in inputs if isinstance(person, PersonInput) for own in person.kept)
        notices.insert(0, f"Ablation {options.ablation}: the model looked at {' and '.join(kept)} alone.")
    checks = [part.check for part in parts if part.check is not None]
    persons = any(isinstance(own, PersonInput) and own in looking for own in inputs)
    return Plan(
        stages,
        {
            **{name: value for part in parts for name, value in part.identity.items()},
            **({} if options.ablation is None else {"ablation": options.ablation}),
        },
        tuple(notices),
        None if not checks else lambda table: [told for check in checks for told in check(table)],
        # Missing images are acceptable for a model with other inputs.
        "none" if not looking else "optional" if len(inputs) > len(looking) else "required",
        tuple(dict.fromkeys((*input_columns(inputs, options.features), *output_columns(info)))),
        persons,
        {name: value for part in parts for name, value in part.described.items()},
        not all(isinstance(own, AnswersInput) for own in inputs),
    )


def known_domain(info: CheckpointInfo) -> CheckpointInfo | None:
    """Returns the model whose training data a collection is compared with; None if it holds no sample of them.

    Of several models, the first that holds one.
    """
    return next((own for own in info.members or (info,) if own.domain is not None), None)


def input_columns(inputs: Sequence[Input], features: str | None) -> tuple[str, ...]:
    """Returns the columns of the sample table that are read besides those of every job."""
    read = [own for own in inputs if own.used and not (features is not None and own.looks_at != "none")]
    return tuple(dict.fromkeys(name for own in read for name in own.columns))


def output_columns(info: CheckpointInfo) -> tuple[str, ...]:
    """Returns the columns of the sample table that adjust a model's predictions."""
    outputs = [own for member in info.members or (info,) for own in member.outputs]
    return tuple(dict.fromkeys(name for own in outputs for name in own.columns_read))


def _each_once(inputs: Sequence[Input]) -> list[Input]:
    """Returns the inputs without those that several models share."""
    found: list[Input] = []
    for own in inputs:
        if all(type(own) is not type(other) or own.to_dict() != other.to_dict() for other in found):
            found.append(own)
    return found


def _owner(own: Input, info: CheckpointInfo) -> CheckpointInfo:
    """Returns the model of several that reads an input."""
    return next((member for member in info.members if any(own is other for other in member.inputs)), info)


def _plural(inputs: Sequence[Input]) -> str:
    return " and ".join(dict.fromkeys(own.plural for own in inputs))


def _refuse_what_is_not_used(info: CheckpointInfo, inputs: Sequence[Input], options: Options) -> None:
    takes_features = any(own.name in ("regions", "streams") for own in inputs)
    if not takes_features:
        for name, value in (("--features", options.features), ("--weights", options.weights)):
            if value:
                raise InputError(
                    f"reads {_plural(inputs)} itself, and would not use {name}",
                    path=info.folder,
                    remedy=f"Leave {name} out.",
                )
    if options.features is not None and options.weights:
        raise InputError("--weights and --features are given, and only one can be used", remedy="Leave one out.")


def _part_of(own: Input, info: CheckpointInfo, options: Options, samples: str | None, *, alone: bool) -> _Part:
    """Returns the part of an input; `alone` if the model reads nothing but pictures, so that each sample needs one."""
    if isinstance(own, RegionInput):
        return _regions(own, info, options, samples)
    if isinstance(own, StreamInput):
        return _streams(own, info, options, samples, alone)
    if isinstance(own, PersonInput):
        return _Part(notices=_what_samples_lack(samples, own))
    if isinstance(own, AnswersInput):
        return _answers(own, info)
    more = getattr(own, "stages", None)  # a third-party input may define its own stages
    return _Part(stages=more) if more is not None else _Part()


def _regions(own: RegionInput, info: CheckpointInfo, options: Options, samples: str | None) -> _Part:
    folder = options.features
    if folder is None:
        if len(options.weights) > 1:
            raise InputError("--weights is given twice, and a region extractor has one file", remedy="Name one.")
        identity, weights = find_extractor(
            info, own, options.weights[0] if options.weights else None,
            # `raymotion predict` (without samples) has no option --features.
            remedy="Name that file as --weights" + (", or give --features." if samples is not None else "."),
        )  # fmt: skip
        return _Part(
            stages=lambda precision: [ExtractRegions(identity, weights, precision)],
            identity={"extractor": identity.to_dict()},
            notices=list(random_weights_notice(identity)),
            described={"extractor": identity.to_dict()},
        )
    theirs, trained = dict(_features_record(folder)["identity"]["extractor"]), own.identity.to_dict()
    if theirs != trained:
        raise InputError(f"holds features of {theirs}, the model was trained on {trained}", path=folder)
    where = storage.absolute(folder)

    def check(table: pa.Table) -> list[str]:
        remedy = "Extract the features of these samples, or leave --features out."
        made = read_made_from(where, part_names(where), remedy=remedy)
        begun = begun_at(_features_record(where))
        return require_same_pictures(table, made, what="features", where=where, remedy=remedy, since=begun).notes()

    return _Part(
        loader=LoadRegions(where),
        identity={"extractor": trained, "features": features_digest(where)},
        notices=list(random_weights_notice(own.identity)),
        check=check,
        described={"extractor": trained},
    )


def _features_record(folder: str) -> dict[str, Any]:
    other = wrong_kind(folder, "regions")
    if other is not None:
        raise other
    return complete_job(folder, "region-features", what="features job", command="raymotion features regions")


def find_extractor(
    info: CheckpointInfo, own: RegionInput, weights: str | None, *, remedy: str = "Name that file as --weights."
) -> tuple[ExtractorIdentity, str]:
    """Returns the region extractor that a model was trained with, and the location of its weights.

    Args:
        weights: the user's weights (see `regions.identify`); None uses the checkpoint's identity, which suffices for
            published, bundled and random weights, but not for another file.
        remedy: advice for the message if a file must be given.

    Raises:
        InputError: a file of weights is required, or `weights` differ from those of training.
    """
    trained = own.identity
    source = trained.weights
    if weights is None:
        if source.startswith("random:"):
            weights = source
        # Visual Genome's detector is always identified by the digest of its file. Try the published one; the comparison
        # below detects others.
        elif source.startswith(("torchvision:", "timm:")) or architecture(trained.name).is_published_as_file:
            weights = "default"
        elif (weights := with_digest(source)) is None:
            raise InputError(
                f"was trained on regions of {trained.name} with weights from a file ({source[:19]}...)",
                path=info.folder,
                remedy=remedy,
            )
    offered = identify(trained.name, weights, trained.count)
    if offered != trained:
        raise InputError(
            f"--weights {weights} are {offered.weights}, the model was trained with {trained.weights}",
            remedy="Use the weights that its features came from.",
        )
    return trained, locate(weights)


def _streams(own: StreamInput, info: CheckpointInfo, options: Options, samples: str | None, alone: bool) -> _Part:
    notices = own.notices()
    if options.features is not None:
        folder = storage.absolute(options.features)
        return _Part(
            loader=LoadEmbeddings(folder, keys_in(folder, own.kept), own.kept, required=alone),
            identity={"features": features_digest(folder)},
            notices=notices,
            check=_made_from_check(folder, own.kept),
        )
    named = find_weights(own.kept, options.weights, path=info.folder)
    weights = {name: locate(what) for name, what in named.items()}
    return _Part(
        stages=lambda precision: [EmbedForHead(own.kept, weights, precision)],
        notices=[*notices, *_what_samples_lack(samples, own)],
    )


def _answers(own: AnswersInput, info: CheckpointInfo) -> _Part:
    service = info.kind.service(info.model, info.training, info.outputs)
    if service is None:
        raise InputError(f"is a {info.kind.name}, which names no service to answer", path=info.folder)
    return _Part(
        stages=lambda precision: [EncodePictures(own.size), AskService(service)],
        described={"service": service.describe()},
    )


def _made_from_check(folder: str, streams: Sequence[Stream]) -> Check:
    """Returns a check that a folder's features are of the same pictures, and of the same boxes of the used streams."""

    def check(table: pa.Table) -> list[str]:
        boxes = [box.name for box in BOXES if box.name in {f"{own.stream}_box" for own in streams}]
        remedy = "Make the embeddings of these samples, or leave --features out."
        made = read_made_from(folder, part_names(folder), boxes=boxes, remedy=remedy)
        begun = begun_at(require_complete(folder))
        return require_same_pictures(
            table, made, what="features", where=folder, remedy=remedy, boxes=boxes, since=begun
        ).notes()

    return check


def _what_samples_lack(samples: str | None, own: PersonInput) -> list[str]:
    if samples is None:
        return []
    table = read_samples(samples)
    lacking = [
        stream.stream
        for stream in own.kept
        if stream.stream != CONTEXT and table.column(f"{stream.stream}_box").null_count == table.num_rows
    ]
    if len(lacking) == len(own.kept):
        boxes = " or a ".join(f"{stream}_box" for stream in lacking)
        raise InputError(
            f"no sample has a {boxes}, and the model looks at nothing else",
            path=samples,
            remedy="Prepare a table that has them (`raymotion data prepare emotic`, `raymotion data faces`).",
        )
    return [f"No sample has a {stream}_box: the model's {stream} stream was masked for all." for stream in lacking]


def keys_in(folder: str, streams: Sequence[Stream]) -> dict[str, FeatureKey]:
    """Returns stream -> key of its features in an embedding folder, by the identity of the backbone, not its name."""
    require_complete(folder)
    part = next(iter(sorted(part_names(folder))), None)
    if part is None:
        raise InputError("holds no features", path=folder, remedy="Run: raymotion features embeddings ...")
    layout = layout_of(schema_of(storage.join(folder, part)), folder)
    keys: dict[str, FeatureKey] = {}
    for own in streams:
        for key, shape in layout.shapes.items():
            same = dict(layout.backbones[key.backbone]) == own.identity.to_dict()
            if same and (key.stream, key.level, shape.count) == (own.stream, "none", own.grid**2):
                keys[own.stream] = key
        if own.stream not in keys:
            grid = f" with {own.grid} x {own.grid} tokens" if own.grid else ""
            named = layout.backbones.get(own.name)
            other = (
                f"; its {own.name} has {_difference(own, named)}" if named and named != own.identity.to_dict() else ""
            )
            raise InputError(
                f"holds no features of the {own.stream} by {own.identity.name} ({own.identity.weights}, "
                f"{own.identity.size} pixels){grid}, which the model was trained on{other}",
                path=folder,
                remedy="Make the embeddings with that backbone, or leave --features out.",
            )
    return keys


def _difference(own: Stream, named: Mapping[str, Any]) -> str:
    trained = own.identity.to_dict()
    return ", ".join(f"{field} {named.get(field)}" for field in trained if named.get(field) != trained[field])
