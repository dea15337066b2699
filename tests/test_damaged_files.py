"""Every file that raymotion reads back, damaged in many ways: the right result or one line, never another exception.

A reader gives the same answer as over the whole file, or raises a `RaymotionError`. What it may answer besides, where
damage means "not done" or "never begun", stands beside it.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raymotion import records, storage
from raymotion.batch import ledger
from raymotion.batch.preflight import read_record
from raymotion.data.embedding_layout import EmbeddingLayout
from raymotion.data.embeddings import Embeddings, FeatureKey, FeatureShape
from raymotion.data.features import RegionFeatures
from raymotion.data.parts import FORMAT, FileMark, write_job
from raymotion.data.samples import table_from_rows
from raymotion.errors import RaymotionError
from raymotion.models.inputs.captions import Captions, PreparedCaptions
from raymotion.models.inputs.picture import PictureInput, PreparedPictures
from raymotion.models.inputs.streams import PreparedStreams, StreamInput
from raymotion.models.outputs.base import DataFacts, Targets
from raymotion.models.text.tokenizer import train_tokenizer
from raymotion.models.training_set import TrainingSet
from raymotion.study.record import BestEpoch, Epoch, StudyFolder, StudyRecord, TrialRecord
from raymotion.train import fit
from raymotion.train.pictures import cache_pictures
from raymotion.vocabulary import MIKELS_8

# What stands in place of a value somewhere in a JSON file.
VALUES: list[Any] = [None, True, -1, 0.5, "", "x", [], {}, [[1]], {"a": 1}, 10**30, 1e308, "\ud800"]
ROUNDS = 6


def json_places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a document values stand."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from json_places(inner, (*path, key))


def with_other_value(rng: random.Random, data: bytes) -> bytes:
    """A JSON file with something else in one place, or without it."""
    document = json.loads(data)
    *inner, last = rng.choice(list(json_places(document)))
    holder = document
    for key in inner:
        holder = holder[key]
    if rng.random() < 0.3:
        del holder[last]
    else:
        holder[last] = rng.choice(VALUES)
    return json.dumps(document).encode()


def damaged(rng: random.Random, data: bytes, *, is_json: bool) -> Iterator[bytes]:
    """The file, damaged in a dozen ways that are the same in each run."""
    yield from (b"", b"\x00" * len(data), data[: len(data) // 2], data[:-1], data[1:], data + data, b"\xff\xfe" + data)
    for _ in range(ROUNDS // 2):
        place = rng.randrange(len(data))
        yield data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]
    yield rng.randbytes(len(data))
    if is_json:
        yield from (b"[]", b"{}", b"null", b"3", b'"x"', b"NaN", b'{"format": 1e999}', b"[" * 100_000, b"1" * 5000)
        yield data.decode().encode("utf-16")
        yield from (with_other_value(rng, data) for _ in range(ROUNDS))


@dataclass
class Case:
    """One reader.

    Attributes:
        write: makes a folder as raymotion does.
        read: reads it; the answers are compared.
        files: those that are damaged, relative to the folder.
        also: what `read` may answer for a damaged file besides the right answer.
        gone: whether a file that is not there is damage, and no other state of the folder.
    """

    write: Callable[[Path], None]
    read: Callable[[Path], Any]
    files: tuple[str, ...]
    also: tuple[Any, ...] = ()
    gone: bool = True


def as_plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: as_plain(own) for key, own in value.items()}
    return [as_plain(own) for own in value] if isinstance(value, list | tuple) else value


# ---- what is written

IDENTITY = {"format": FORMAT, "kind": "labels", "input": {"rows": 3, "digest": "d"}, "shard_rows": 8}


def write_a_job(folder: Path) -> None:
    record = {
        "job": "labels",
        "format": FORMAT,
        "status": "complete",
        "digest": "e",
        "identity": IDENTITY,
        "settings": {},
    }
    write_job(
        folder,
        {**record, "settings": {}, "runs": [{"seconds": 1.5}], "counts": {"in": 3, "by_reason": {}}, "notices": ["ä"]},
    )


def write_a_job_alone(folder: Path) -> None:
    write_a_job(folder)
    (folder / "__job.json").unlink()


def write_a_commit(folder: Path) -> None:
    ledger.write_commit(
        str(folder), ledger.Commit(0, "d", 3, 2, 1, {"a": 1}, "s", 9, "q", 0.5, {"decode": 0.1}, "w", 1, tail="t")
    )


def write_a_manifest(folder: Path) -> None:
    rows = [{"sample_id": f"s{i}", "group_id": "g", "source": "x", "captions": ["a", "b"]} for i in range(20)]
    samples = table_from_rows(iter(rows))
    ledger.write_manifest(str(folder), samples, ledger.shard_sizes(samples, 8))


def read_a_manifest(folder: Path) -> Any:
    manifest = ledger.Manifest(str(folder))
    return [manifest.rows(shard) for shard in range(3)]


def write_an_attempt(folder: Path) -> None:
    ledger.Attempts(str(folder), "run").note(3, ledger.Attempt(2, 1, {"1": 1}))


def read_an_attempt(folder: Path) -> Any:
    return ledger.Attempts(str(folder), "run").begin(3).blamed


def write_regions(folder: Path) -> None:
    rng = np.random.default_rng(0)
    extractor = {"name": "det", "weights": "random", "count": 2, "dim": 3}
    values = pa.array(rng.normal(size=24).astype(np.float16))
    table = pa.table(
        {
            "sample_id": list("abcd"),
            **MADE_FROM_NOTHING,
            "features": pa.FixedSizeListArray.from_arrays(values, 6),
            "mask": pa.FixedSizeListArray.from_arrays(pa.array([True, False] * 4), 2),
        }
    ).replace_schema_metadata({b"raymotion.regions": json.dumps(extractor).encode()})
    write_part(folder, table, "region-features")


MADE_FROM_NOTHING = {
    "image_uri": pa.nulls(4, pa.string()),
    "image_bytes": pa.nulls(4, pa.int64()),
    "image_digest": pa.nulls(4, pa.string()),
}


def write_part(folder: Path, table: pa.Table, kind: str) -> None:
    data = storage.parquet_bytes(table)
    storage.write_bytes(folder / "data/part-00000.parquet", data)
    mark = FileMark.of(data)
    ledger.write_commit(
        str(folder), ledger.Commit(0, "d", 4, 4, 0, {}, mark.sha256, len(data), None, 0.0, {}, "w", 1, tail=mark.tail)
    )
    write_job(folder, {"job": kind, "status": "complete", "identity": {}, "digest": "d"})


def read_regions(folder: Path) -> Any:
    return as_plain(RegionFeatures(folder, cache=str(folder / "cache")).get(["a", "c", "x"]))


def write_embeddings(folder: Path) -> None:
    key = FeatureKey("body", "net", "none", False)
    layout = EmbeddingLayout({key: FeatureShape(1, 3, 0)}, {"net": {"name": "net"}}, {"none": 1}, 0)
    columns = {
        "sample_id": list("abcd"),
        **{name: column.to_pylist() for name, column in MADE_FROM_NOTHING.items()},
        "body_box": [None] * 4,
        "face_box": [None] * 4,
        "group_id": list("abcd"),
        "split": ["train"] * 4,
        "context_of": [None] * 4,
        key.column: [[1.0, 2.0, 3.0], None, [4.0, 5.0, 6.0], [0.0, 0.5, 0.25]],
    }
    write_part(folder, pa.Table.from_pydict(columns, schema=layout.schema()), "embeddings")


def read_embeddings(folder: Path) -> Any:
    found = Embeddings(folder, cache=str(folder / "cache"))
    block = found.block("body", "net")
    return [found.sample_ids, as_plain(block.row_of), as_plain(np.asarray(block.array))]


def write_training_data(folder: Path) -> None:
    everyone, rows = np.ones(3, bool), np.arange(3)
    tokenizer = train_tokenizer(["a happy dog"], size=100, min_frequency=1)
    emotions = {"hard": np.zeros((3, 8), np.float32), "soft": np.ones((3, 8), np.float32)}
    TrainingSet(
        sample_ids=list("abc"), groups=list("abc"), counts={"rows": 3}, name="n", fingerprint="f",
        splits={"train": np.array([0]), "val": np.array([1]), "test": np.array([2])},
        facts=DataFacts(MIKELS_8, (1.0, 10.0), labelled=True, where="n"),
        inputs={
            "captions": PreparedCaptions(
                tokenizer, np.array([2, 5, 3] * 3), 3 * (rows + 1), rows, everyone, max_length=9
            ),
            "picture": PreparedPictures(["x.png", None, "z.png"], 8),
            "streams": PreparedStreams(["e"], rows),
        },
        targets={"emotions": Targets(emotions, everyone),
                 "vad": Targets({"values": np.zeros((3, 3), np.float32)}, everyone)},
    ).save(str(folder))  # fmt: skip


def read_training_data(folder: Path) -> Any:
    found = TrainingSet.load(str(folder), [Captions(9), PictureInput(8), StreamInput()])
    captions, picture, streams = (found.inputs[name] for name in ("captions", "picture", "streams"))
    assert isinstance(captions, PreparedCaptions) and isinstance(picture, PreparedPictures)
    assert isinstance(streams, PreparedStreams)
    targets = {name: [own.arrays, own.known] for name, own in found.targets.items()}
    read = [captions.tokens, captions.tokenizer.get_vocab(), picture.addresses, streams.folders, streams.rows]
    return as_plain([found.sample_ids, found.groups, found.counts, found.facts.to_dict(), found.splits, targets, read])


def write_a_run(folder: Path) -> None:
    records.write_record(folder / "epochs" / fit.LATEST, {"number": 3, "files": ["state.json"]})
    records.write_record(folder / fit.PROGRESS, {"epoch": 3.0, "val_bce": 0.5})


def write_a_state(folder: Path) -> None:
    import torch

    from raymotion.train.loop import Run, State

    torch.manual_seed(0)
    run: Any = object.__new__(Run)
    run.model = torch.nn.Linear(2, 1)
    run.optimiser = torch.optim.Adam(run.model.parameters())
    run.served = SimpleNamespace(save=lambda folder: None)
    run.best_weights, run.state = run.model.state_dict(), State(epoch=1, history=[{"val_bce": float("nan")}])
    run.save(str(folder))


def read_a_state(folder: Path) -> Any:
    from raymotion.train.loop import read_state

    return str(read_state(str(folder)))


KEY = "k" * 16


def write_a_study(folder: Path) -> None:
    from safetensors.numpy import save

    study = StudyFolder(folder)
    epoch = Epoch(epoch=1, score=[0.5], train_loss=[0.1], best=0.5)
    trial = TrialRecord(
        key=KEY, config={"a": "b"}, seeds=[0], status="complete", epochs=[epoch], best=[BestEpoch(epoch=1, score=0.5)]
    )  # fmt: skip
    trial.files |= study.write_predictions(KEY, "val", 0, list("abc"), np.full((3, 8), 0.5, np.float32))
    trial.files |= study.write_weights(KEY, 0, save({"w": np.ones(4, np.float32)}))
    study.write_trial(trial)
    files = study.write_predictions(KEY, "test", 0, list("de"), np.full((2, 8), 0.25, np.float32))
    line = {"key": KEY, "config": {}, "status": "complete", "score": {"mean": 0.5, "sd": None, "seeds": [0.5]},
            "epochs": 1, "parameters": 4, "seconds": 1.0}  # fmt: skip
    winner = {"key": KEY, "config": {}, "leader": KEY, "incumbent": None, "reason": "", "compared": []}
    stage = {"name": "s", "title": "S", "grid": {"a": ["b"]}, "fixed": {}, "trials": [line], "winner": winner,
             "epochs": 1, "seconds": 1.0}  # fmt: skip
    score = {"mean": 0.5, "sd": None, "seeds": [0.5], "low": None, "high": None, "resamples": 0}
    entry = {"name": "s", "key": KEY, "config": {}, "score": score, "files": files}
    record = {
        "status": "complete", "started_at": "", "settings": {}, "identity": {"a": 1}, "seeds": [0], "versions": {},
        "data": {"samples": "", "counts": {}, "splits": {}, "targets": {}, "labels": list(MIKELS_8.labels),
                 "prevalence": {}},
        "stages": [stage], "test": {"scored_at": "", "entries": [entry]},
    }  # fmt: skip
    study.write(StudyRecord.model_validate(record))


def read_a_trial(folder: Path) -> Any:
    study = StudyFolder(folder)
    record = study.read_trial(KEY)
    whole = study.has_result(KEY, [0], list("abc")), study.has_weights(KEY, [0])
    if record is None or not all(whole):
        return None
    return [record.model_dump(), as_plain(study.validation(KEY, [0], list("abc")))]


def read_test_predictions(folder: Path) -> Any:
    study = StudyFolder(folder)
    record = study.require()
    found = study.predictions(KEY, "test", 0, record.entries[0].files)
    return [record.model_dump(), found.sample_ids, as_plain(found.values)]


def write_pictures(folder: Path) -> None:
    from PIL import Image

    for number in range(2):
        Image.new("RGB", (8, 8), (40 * number + 9, 5, 5)).save(folder / f"{number}.png")


def read_pictures(folder: Path) -> Any:
    uris = [str(folder / f"{number}.png") for number in range(2)]
    return as_plain(np.load(cache_pictures(uris, 8, threads=1, folder=str(folder / "cache"))))


CASES: dict[str, Case] = {
    "_job.json": Case(write_a_job, lambda f: read_record(str(f), "labels"), ("_job.json", "__job.json")),
    "_job.json without a copy": Case(
        write_a_job_alone, lambda f: read_record(str(f), "labels"), ("_job.json",), gone=False
    ),
    "commit": Case(write_a_commit, lambda f: asdict(ledger.read_commit(str(f), 0)), ("_commits/part-00000.json",)),
    "manifest": Case(write_a_manifest, read_a_manifest, ("_manifest.pq",)),
    "attempt": Case(write_an_attempt, read_an_attempt, ("_attempts/run/part-00003.json",), ([],)),
    "regions": Case(
        write_regions, read_regions, ("data/part-00000.parquet", "_commits/part-00000.json", "_job.json"),
    ),
    "cache of regions": Case(write_regions, read_regions, ("cache/index.json", "cache/features.npy", "cache/mask.npy")),
    "embeddings": Case(
        write_embeddings, read_embeddings, ("data/part-00000.parquet", "_commits/part-00000.json", "_job.json"),
    ),
    "cache of embeddings": Case(
        write_embeddings, read_embeddings, ("cache/index.json", "cache/rows-0.npy", "cache/features-0.bin")
    ),
    "cache of pictures": Case(write_pictures, read_pictures, ("cache/index.json", "cache/pictures.npy")),
    "prepared data": Case(
        write_training_data, read_training_data, ("data.json", "arrays.safetensors", "captions/tokenizer.json"),
    ),
    "latest epoch": Case(write_a_run, lambda f: fit._latest(str(f)), (f"epochs/{fit.LATEST}",)),
    "progress": Case(write_a_run, lambda f: fit._epochs_done(str(f)), (fit.PROGRESS,), (0,)),
    "state": Case(
        write_a_state, read_a_state, ("state.json", "best.safetensors", "current.safetensors", "optimiser.pt")
    ),
    "study.json": Case(write_a_study, lambda f: StudyFolder(f).require().model_dump(), ("study.json", "_study.json")),
    "trial": Case(
        write_a_study, read_a_trial,
        (
            f"trials/{KEY}/trial.json", f"trials/{KEY}/seed-0.weights.safetensors",
            f"predictions/{KEY}/val-seed-0.parquet",
        ),
        (None,),
    ),
    "test predictions": Case(
        write_a_study, read_test_predictions, ("study.json", f"predictions/{KEY}/test-seed-0.parquet"),
    ),
}  # fmt: skip


def found_in(folder: Path, name: str) -> Path:
    """The file `name`; in a cache, wherever its digest put it."""
    if not name.startswith("cache/"):
        return folder / name
    (path,) = (folder / "cache").rglob(name.removeprefix("cache/"))
    return path


@pytest.mark.parametrize("name", list(CASES))
def test_a_damaged_file_gives_the_right_result_or_one_line(name: str, tmp_path: Path) -> None:
    case, rng, whole, read = CASES[name], random.Random(name), tmp_path / "whole", tmp_path / "read"
    folder = tmp_path / "damaged"
    folder.mkdir()
    case.write(folder)
    shutil.copytree(folder, whole)
    right = case.read(folder)
    shutil.copytree(folder, read)  # with what a reader keeps
    for file in case.files:
        before = read if file.startswith("cache/") else whole
        data = found_in(before, file).read_bytes()
        mutations = [*damaged(rng, data, is_json=file.endswith((".json", ".lock"))), *([None] if case.gone else [])]
        for mutation in mutations:
            shutil.rmtree(folder)
            shutil.copytree(before, folder)
            path = found_in(folder, file)
            if mutation is None:
                path.unlink()
            else:
                path.write_bytes(mutation)
            try:
                answer = case.read(folder)
            except RaymotionError as error:
                assert len(str(error).splitlines()) == 1, str(error)
                continue
            assert answer == right or answer in case.also, (file, mutation and mutation[:200], answer)
