"""Checkpoints and weights that somebody else handed over: opened, or refused in one line that names the file."""

from __future__ import annotations

import contextlib
import copy
import json
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from raymotion import storage
from raymotion.errors import InputError, RaymotionError
from raymotion.models.checkpoint import load_model, read_checkpoint_info, save_checkpoint
from raymotion.models.fusion.config import FusionConfig
from raymotion.models.fusion.network import FusionHead
from raymotion.models.fusion_tuned.config import TunedConfig
from raymotion.models.fusion_tuned.network import TunedStreams
from raymotion.models.inputs.base import Input
from raymotion.models.inputs.captions import Captions
from raymotion.models.inputs.picture import PictureInput
from raymotion.models.inputs.regions import RegionInput
from raymotion.models.inputs.streams import CropInput, Stream, StreamInput
from raymotion.models.outputs.base import Output
from raymotion.models.outputs.dimensions import Dimensions
from raymotion.models.outputs.embedding import Embedding
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.outputs.paths import PathLabels, PathNumbers
from raymotion.models.recipe import LossSettings
from raymotion.models.registry import get_kind
from raymotion.models.student.config import StudentConfig
from raymotion.models.student.network import Student
from raymotion.models.text.tokenizer import train_tokenizer
from raymotion.models.two_path.config import TwoPathConfig
from raymotion.models.two_path.network import TwoPath
from raymotion.models.vision.backbones import identify
from raymotion.models.vision.regions import ExtractorIdentity
from raymotion.models.visualbert.config import TeacherConfig
from raymotion.models.visualbert.network import VisualBertTeacher
from raymotion.models.weights_file import read_state_dict
from raymotion.pipeline.stages import Item
from raymotion.vocabulary import VALENCE_3

NET, SIZE = "test_resnet", 48
TRAINING = {
    "data": {"name": "s.parquet", "fingerprint": "abc", "splits": {"train": 8, "val": 4}, "seen": ["ab", "cd"]},
    "seed": 0, "best_epoch": 2, "history": [{"epoch": 1, "attempt": "a"}], "settings": {"select_by": "bce"},
    "outputs": {"emotions": {"prior": [0.3, 0.3, 0.4], "thresholds": [0.5, 0.5, 2.0]}},
}  # fmt: skip
SHAPE = {"fusion": "weighted", "hidden": 8}


def make(kind: str, folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a happy dog", "a sad man"], size=60, min_frequency=1)
    outputs: list[Output] = [MultiLabel(VALENCE_3)]
    inputs = list[Input]()
    network: Any
    if kind == "teacher-visualbert":
        shape = {"size": "tiny", "vocab_size": len(tokenizer), "visual_dim": 6}
        network = VisualBertTeacher(TeacherConfig.model_validate(shape), 3)
        extractor = ExtractorIdentity(name="fasterrcnn_resnet50_fpn", weights="random:0", count=3, dim=6)
        inputs = [Captions(64, tokenizer=tokenizer), RegionInput(extractor)]
    elif kind == "student":
        config = StudentConfig(image_size=16, channels=(2, 3), embedding_size=4, text_size=4, hidden_size=8,
                               vocab_size=len(tokenizer))  # fmt: skip
        network, inputs = Student(config, 3), [Captions(64, tokenizer=tokenizer), PictureInput(16)]
    else:
        identity = identify(NET, "random:0", size=SIZE)
        head = FusionConfig.model_validate({**SHAPE, "dims": dict.fromkeys(("context", "face"), identity.dim)})
        streams = [Stream(name, "net", identity) for name in ("context", "face")]
        network, inputs = FusionHead(head, 3), [StreamInput(streams)]
        if kind == "fusion-tuned":
            identities = {stream: identity.to_dict() for stream in ("context", "face")}
            network = TunedStreams(TunedConfig(fusion=head, identities=identities, tuned_blocks=1), 3)
            inputs = [CropInput(streams)]
        outputs = [MultiLabel(VALENCE_3, loss=LossSettings(name="focal"))]
        if kind.startswith("two-path"):
            kind, _, join = kind.partition(":")
            shape = {"dims": dict.fromkeys(("context", "face"), identity.dim), "hidden": 8, "joint": 4, "join": join}
            outputs = [PathLabels(VALENCE_3), PathNumbers(scale=(1.0, 9.0))]
            if join == "joint":
                space = Embedding(4, sides=("context", "face"), name="space")
                outputs = [MultiLabel(VALENCE_3), Dimensions(scale=(1.0, 9.0)), space]
            network = TwoPath(TwoPathConfig.model_validate(shape), outputs)
    save_checkpoint(folder, get_kind(kind), network, inputs, outputs, training=TRAINING)
    return folder


KINDS = ("teacher-visualbert", "student", "fusion", "fusion-tuned", "two-path:separate", "two-path:joint")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("made")
    return {kind: make(kind, base / kind) for kind in KINDS}


def load(folder: storage.PathLike) -> None:
    """What a job does with a checkpoint: reads about it, opens it, and asks it, here with a text alone."""
    info = read_checkpoint_info(folder)
    info.to_dict()
    model = load_model(folder)
    item = Item({"image_uri": None, "captions": ["a happy dog"], "face_box": None})
    predicted = model.predict({own.name: own.collect([item]) for own in model.inputs})
    for own in model.outputs:
        assert predicted[own.name].shape == (1, own.width)


def copied(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target))


def refused(folder: Path, name: str, reason: str) -> None:
    with pytest.raises(RaymotionError, match=reason) as caught:
        load(folder)
    assert str(folder / name) in str(caught.value) and "\n" not in str(caught.value)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("kind", KINDS)
def test_as_it_was_saved_it_opens(made: dict[str, Path], kind: str) -> None:
    load(made[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(made: dict[str, Path], tmp_path: Path, kind: str, value: float) -> None:
    folder = copied(made[kind], tmp_path / "t")
    weights, mark = load_file(folder / "model.safetensors"), metadata(folder / "model.safetensors")
    last = {"fusion-tuned": "head.head.weight", "two-path:separate": "heads.emotions.face.weight",
            "two-path:joint": "heads.emotions.weight"}.get(kind, "head.weight")  # fmt: skip
    weights[last].view(-1)[3] = value
    save_file(weights, folder / "model.safetensors", mark)
    refused(folder, "model.safetensors", rf"weight {re.escape(last)} holds 1 of \d+ numbers that are NaN or infinite")
    model = load_model(made["student"])
    torch.nn.init.constant_(model.network.get_parameter("head.bias"), value)
    with pytest.raises(InputError, match=r"head\.bias holds 3 of 3"):
        save_checkpoint(tmp_path / "s", model.info.kind, model.network, model.inputs, model.outputs, training=TRAINING)
    assert not (tmp_path / "s").exists()


def metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def test_files_of_another_checkpoint_are_noticed(made: dict[str, Path], tmp_path: Path) -> None:
    """Same sizes, other meaning: nothing but the digests tells."""

    def after(name: str, change: Callable[[Any], Any]) -> None:
        folder = copied(made["teacher-visualbert"], tmp_path / "t")
        edit(folder / name, change)
        refused(folder, name, "is not the file that was written with these weights .* restore it")

    def exchange(value: dict[str, Any]) -> None:
        vocab = value["model"]["vocab"]
        dog, man = vocab["a"], vocab["d"]
        vocab["a"], vocab["d"] = man, dog

    def reverse(labels: list[str]) -> dict[str, Any]:
        from raymotion.vocabulary import Vocabulary

        return Vocabulary("valence-3", tuple(reversed(labels))).to_dict()

    after("tokenizer.json", exchange)
    after("tokenizer.json", lambda c: c["normalizer"].update(lowercase=False))
    after("training.json", lambda c: c["outputs"]["emotions"]["thresholds"].reverse())
    after("training.json", lambda c: c["outputs"]["emotions"].update(prior=[0.1, 0.1, 0.1]))
    after("training.json", lambda c: c["outputs"]["emotions"].pop("prior"))
    after("config.json", lambda c: c["inputs"].pop())
    after("config.json", lambda c: c["inputs"][0].update(used=False))
    after("config.json", lambda c: c["model"].update(heads=1))
    after("config.json", lambda c: c["outputs"][0].update(vocabulary=reverse(c["outputs"][0]["vocabulary"]["labels"])))
    folder = copied(made["teacher-visualbert"], tmp_path / "t")
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")  # by a program that drops the mark
    refused(folder, "model.safetensors", r"does not say which config\.json it belongs to")
    (tmp_path / "crlf").mkdir()
    for path in made["teacher-visualbert"].iterdir():  # as a checkout on Windows may make it: the same values
        text = path.suffix == ".json"
        (tmp_path / "crlf" / path.name).write_bytes(
            path.read_bytes().replace(b"\n", b"\r\n") if text else path.read_bytes()
        )
    load(tmp_path / "crlf")


HUGE = 10**12


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("teacher-visualbert", {"hidden_size": HUGE}),
        ("teacher-visualbert", {"intermediate_size": HUGE}),
        ("teacher-visualbert", {"visual_dim": HUGE}),
        ("teacher-visualbert", {"vocab_size": HUGE}),
        ("teacher-visualbert", {"layers": HUGE}),
        ("teacher-visualbert", {"max_positions": HUGE}),
        ("student", {"image_size": HUGE}),
        ("student", {"channels": [2, HUGE]}),
        ("student", {"text_size": HUGE}),
        ("student", {"embedding_size": HUGE}),
        ("student", {"text": "bert", "bert": {"num_hidden_layers": HUGE}, "embedding_size": 128, "text_size": 256}),
        ("student", {"image": "vit_base_patch16_224", "channels": [16, 32, 64]}),
        ("fusion", {"hidden": HUGE}),
        ("fusion", {"dims": {"context": HUGE, "face": 8}}),
        ("two-path:separate", {"hidden": HUGE}),
        ("two-path:separate", {"dims": {"context": HUGE, "face": 8}}),
        ("two-path:joint", {"joint": HUGE}),
    ],
)
def test_sizes_are_compared_before_anything_is_built(
    made: dict[str, Path], tmp_path: Path, kind: str, change: dict[str, Any], rebind: Callable[[Path], None]
) -> None:
    folder = copied(made[kind], tmp_path / "t")
    edit(folder / "config.json", lambda c: c["model"].update(change))
    rebind(folder)
    with pytest.raises(InputError) as caught:
        load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def header(path: Path, change: Callable[[dict[str, Any]], Any] | bytes, *, length: int | None = None) -> None:
    """Writes another header over that of a safetensors file; the tensors' bytes stay."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    text = change if isinstance(change, bytes) else b""
    if not isinstance(change, bytes):
        value = json.loads(data[8 : 8 + size])
        change(value)
        text = json.dumps(value).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data[8 + size :])


def test_headers_that_lie(made: dict[str, Path], tmp_path: Path) -> None:
    def entry(c: dict[str, Any]) -> Any:
        return c["head.bias"]

    def after(change: Callable[[dict[str, Any]], Any] | bytes, **more: Any) -> None:
        folder = copied(made["student"], tmp_path / "t")
        header(folder / "model.safetensors", change, **more)
        refused(folder, "model.safetensors", "is damaged or cut off")

    after(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    after(b"{}", length=2**63)
    after(b"{}", length=10**11)
    after(b"[]")
    after(b"\xff\xfe")
    after(lambda c: entry(c).update(shape=[HUGE]))
    after(lambda c: entry(c).update(shape=[-3]))
    after(lambda c: entry(c).update(shape="3"))
    after(lambda c: entry(c).update(dtype="F128"))
    after(lambda c: entry(c).update(data_offsets=["0", "12"]))
    after(lambda c: entry(c).update(data_offsets=[0]))
    after(lambda c: entry(c).update(data_offsets=[12, 0]))
    after(lambda c: c.update(more={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}))  # lies over another
    after(lambda c: c.update(__metadata__={"a": 1}))


def emotions(**facts: Any) -> Callable[[Any], Any]:
    return lambda c: c["outputs"]["emotions"].update(facts)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("training.json", emotions(prior=["0.3", "0.3", "0.4"]), "prior is not a list of 3 numbers"),
        ("training.json", emotions(prior="often"), "prior is not a list of 3 numbers"),
        ("training.json", emotions(prior=[0.3, 0.3, 1.5]), "prior is not .* from 0 to 1"),
        ("training.json", emotions(thresholds=[True, 0.1, 0.1]), "thresholds is not a list of 3 numbers"),
        ("training.json", emotions(thresholds=[0.5, -1, 0.5]), "thresholds is not .* from 0"),
        ("training.json", emotions(thresholds=[10**400, 0.5, 0.5]), "thresholds is not a list of 3 numbers"),
        ("training.json", emotions(validation="good"), "holds no readable evaluation"),
        ("training.json", lambda c: c["outputs"].update(emotions=[1]), "outputs.emotions is not a mapping"),
        ("training.json", lambda c: c.update(history="long"), "history is not a list"),
        ("training.json", lambda c: c["data"].update(seen=[1]), "data.seen is not a list of texts"),
        ("config.json", lambda c: c.update(kind=["student"]), "is not a checkpoint of raymotion"),
        ("config.json", lambda c: c.update(kind="os:system"), "no kind of model is called 'os:system'"),
        ("config.json", lambda c: c.update(inputs="captions"), "names no inputs"),
        ("config.json", lambda c: c.update(inputs=[["captions"]]), "an input without a type"),
        ("config.json", lambda c: c["inputs"].append(c["inputs"][0]), "two inputs of one name"),
        ("config.json", lambda c: c["inputs"].reverse(), "reads captions and picture"),
        ("config.json", lambda c: c["inputs"][1].update(size=HUGE), "size is 1000000000000"),
        ("config.json", lambda c: c["inputs"][1].update(size=32), r"model\.image_size is 16"),
        ("config.json", lambda c: c["inputs"][1].update(type="os:system"), "no input is called 'os:system'"),
        ("config.json", lambda c: c["outputs"].append(c["outputs"][0]), "two outputs of one name"),
        ("config.json", lambda c: c["outputs"][0].update(loss={"name": "bce", "options": [1]}), "which loss"),
        ("config.json", lambda c: c["outputs"][0].update(loss={"name": "guess"}), "guess"),
        ("config.json", lambda c: c.update(model=[]), "model is not a mapping"),
        ("config.json", lambda c: c.update(files=["../../etc/passwd"]), "files is not a list of names"),
        ("config.json", lambda c: c["inputs"].append({"type": "regions", "extractor": "rcnn"}),
         "identity of a region extractor"),
        ("config.json", lambda c: c["inputs"].append({"type": "regions", "extractor": {
            "name": "x", "weights": "y", "count": HUGE, "dim": 1}}), "identity of a region extractor"),
    ],
)  # fmt: skip
def test_values_that_can_not_be(
    made: dict[str, Path], tmp_path: Path, name: str, change: Any, reason: str, rebind: Callable[[Path], None]
) -> None:
    folder = copied(made["student"], tmp_path / "t")
    edit(folder / name, change)
    with contextlib.suppress(AttributeError, OSError):  # what has no digest
        rebind(folder)
    refused(folder, name, reason)
    (folder / name).write_text((made["student"] / name).read_text().replace("0.5", "Infinity"))
    if name == "training.json":
        refused(folder, name, "is not JSON")


ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([HUGE, -HUGE, 10**30, 1e300, 0.5, -0.5]),
    st.sampled_from(["", "x", "../..", "\ud800", "random:0", "nan", "bert", "gru", "vit_tiny_patch16_224"]),
    st.just([]), st.just({}), st.just([1, "a", None]), st.just({"a": [1]}),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items)[:40]:
        yield from places(inner, (*path, key))


def put(value: Any, path: tuple[Any, ...], change: Any, how: str) -> Any:
    """A copy of `value` with another value at `path`, or without it, or with it twice."""
    if not path:
        return change
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if how == "drop":
        del inner[path[-1]]
    elif how == "add" and isinstance(inner, dict):
        inner["another"] = change
    else:
        inner[path[-1]] = change
    return value


def opens_or_says_why(folder: Path, name: str) -> None:
    try:
        load(folder)
    except RaymotionError as error:
        text = str(error)
        assert "\n" not in text.strip() and str(folder) in text, text
        assert name in text or "model.safetensors" in text or "config.json" in text, text


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_every_text_of_a_checkpoint_is_fuzzed(
    made: dict[str, Path], tmp_path: Path, rebind: Callable[[Path], None], kind: str, data: st.DataObject
) -> None:
    folder = tmp_path / "t"
    if not folder.exists():
        copied(made[kind], folder)
    names = [path.name for path in sorted(made[kind].iterdir()) if path.suffix == ".json"]
    name = data.draw(st.sampled_from(names))
    before = (made[kind] / name).read_bytes()
    weights = (made[kind] / "model.safetensors").read_bytes()
    try:
        if data.draw(st.booleans()):
            value = json.loads(before)
            where = data.draw(st.sampled_from([*places(value)]))
            how = data.draw(st.sampled_from(["set", "drop", "add"]))
            changed = put(value, where, data.draw(ODD), how)
            (folder / name).write_text(json.dumps(changed))
            with contextlib.suppress(TypeError, AttributeError, ValueError, OSError):
                rebind(folder)  # as if it had been written so
        else:
            start = data.draw(st.integers(0, len(before)))
            end = data.draw(st.integers(start, min(len(before), start + 40)))
            (folder / name).write_bytes(before[:start] + data.draw(st.binary(max_size=8)) + before[end:])
        opens_or_says_why(folder, name)
    finally:
        (folder / name).write_bytes(before)
        (folder / "model.safetensors").write_bytes(weights)


@pytest.mark.parametrize("kind", ["student", "fusion"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_the_weights_of_a_checkpoint_are_fuzzed(
    made: dict[str, Path], tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    folder = tmp_path / "t"
    if not folder.exists():
        copied(made[kind], folder)
    path = folder / "model.safetensors"
    before = (made[kind] / path.name).read_bytes()
    (size,) = struct.unpack("<Q", before[:8])
    if data.draw(st.booleans()):
        value = json.loads(before[8 : 8 + size])
        where = data.draw(st.sampled_from([*places(value)]))
        text = json.dumps(put(value, where, data.draw(ODD), data.draw(st.sampled_from(["set", "drop"])))).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + before[8 + size :])
    else:
        start = data.draw(st.integers(0, len(before)))
        path.write_bytes(before[:start] + data.draw(st.binary(max_size=16)) + before[start:][16:])
    opens_or_says_why(folder, path.name)


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("executed",))


def test_weights_of_other_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "w.pth"
    whole = tmp_path / "whole.pth"
    torch.save({"a": torch.ones(3)}, whole)
    for value in (Evil(), {"a": Evil()}, [1, 2], {"a": 1}, {1: torch.ones(2)}, {"state_dict": {"a": "b"}}, None):
        torch.save(value, path)
        with pytest.raises(InputError, match=r"w\.pth: (is not a readable weights file|holds no state dict)"):
            read_state_dict(path)
    for data in (b"", b"PK\x03\x04", b"\x80\x02.", b"\x80\x05" + b"\x94" * 50, whole.read_bytes()[:200], b"x" * 300):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"w\.pth: (is not a readable weights file|holds no state dict)"):
            read_state_dict(path)
    for value in (float("nan"), float("-inf")):
        torch.save({"a": torch.ones(2), "model.b": torch.tensor([1.0, value])}, path)
        with pytest.raises(InputError, match=r"w\.pth: weight model\.b holds 1 of 2 numbers that are NaN or infinite"):
            read_state_dict(path)
    torch.save({"state_dict": {"a": torch.ones(2)}}, path)
    assert read_state_dict(path)["a"].tolist() == [1, 1]
    assert "executed" not in capsys.readouterr().out


def test_a_checkpoint_in_a_store_is_checked_alike(made: dict[str, Path], s3: str) -> None:
    for path in made["student"].iterdir():
        storage.write_bytes(f"{s3}/t/{path.name}", path.read_bytes())
    load(f"{s3}/t")
    edited = (made["student"] / "tokenizer.json").read_text().replace('"lowercase":true', '"lowercase":false')
    storage.write_text(f"{s3}/t/tokenizer.json", edited)
    with pytest.raises(InputError, match=rf"{s3}/t/tokenizer\.json: is not the file that was written with these"):
        load_model(f"{s3}/t")


@pytest.mark.parametrize("kind", ["bert", "visual_bert"])
def test_pretrained_folders_are_measured_before_they_are_built(tmp_path: Path, kind: str) -> None:
    from transformers import BertConfig, BertModel, VisualBertConfig, VisualBertModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
             "vocab_size": 30, "max_position_embeddings": 20}  # fmt: skip
    config = TeacherConfig.model_validate(
        {"size": "tiny", "vocab_size": 30, "visual_dim": 6, "max_text_length": 8, "max_positions": 20}
    )
    model = (
        BertModel(BertConfig(**sizes)) if kind == "bert"
        else VisualBertModel(VisualBertConfig(**sizes, visual_embedding_dim=6))
    )  # fmt: skip
    model.save_pretrained(tmp_path)
    start = VisualBertTeacher.from_text if kind == "bert" else VisualBertTeacher.from_pretrained
    assert start(str(tmp_path), config, 3).config.hidden_size == 8
    before = (tmp_path / "config.json").read_text()
    for name in ("hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings"):
        for value in (HUGE, -1, "many"):
            edit(tmp_path / "config.json", lambda c, name=name, value=value: c.update({name: value}))
            with pytest.raises(InputError, match=str(tmp_path)):
                start(str(tmp_path), config, 3)
            (tmp_path / "config.json").write_text(before)
    weights = load_file(tmp_path / "model.safetensors")
    next(own for name, own in weights.items() if name.endswith("word_embeddings.weight"))[3, 3] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"word_embeddings\.weight holds 1 of 240 numbers that are NaN"):
        start(str(tmp_path), config, 3)
