"""Cached stream features: by id, null where a stream is absent, context once for each image, memory-mapped once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raymotion import storage
from raymotion.data.embedding_layout import EmbeddingLayout, FeatureKey, FeatureShape, stored_rows
from raymotion.data.embeddings import Embeddings
from raymotion.data.provenance import BOXES, MADE_FROM
from raymotion.errors import InputError

DOTTED = "tiny.random_in1k"  # timm's names have dots
CONTEXT, TOKENS = FeatureKey("context", "a"), FeatureKey("context", "a", tokens=True)
BASIC, FACE = FeatureKey("context", "a", "basic"), FeatureKey("face", DOTTED)
SHAPES = {
    CONTEXT: FeatureShape(1, 5),
    TOKENS: FeatureShape(1, 3, 4),
    BASIC: FeatureShape(2, 5),
    FACE: FeatureShape(1, 2),
}
# Image g0: two persons of train; g1: one of val; g2: val and train share an image, as 376 of framesdb do.
PEOPLE = [
    ("p0", "g0", "train", True),
    ("p1", "g0", "train", False),
    ("p2", "g1", "val", True),
    ("p3", "g2", "val", False),
    ("p4", "g2", "train", True),
]
HOLDER = {"g0": "p0", "g1": "p2", "g2": "p4"}


def layout(shapes: dict[FeatureKey, FeatureShape] | None = None, **changes: Any) -> EmbeddingLayout:
    shapes = SHAPES if shapes is None else shapes
    names = sorted({key.backbone for key in shapes})
    known = {"backbones": {name: {"name": name, "dim": 5} for name in names}, "views": {"none": 1, "basic": 2}}
    return EmbeddingLayout(shapes, **{**known, "seed": 0, **changes})


def write_job(
    folder: storage.PathLike,
    parts: list[list[int]],
    plan: EmbeddingLayout | None = None,
    *,
    seed: int = 0,
    status: str = "complete",
) -> dict[FeatureKey, dict[str, np.ndarray]]:
    """A folder as the job writes it, persons by their place in PEOPLE; returns what each person's features are."""
    plan, rng = plan or layout(), np.random.default_rng(seed)
    truth: dict[FeatureKey, dict[str, np.ndarray]] = {key: {} for key in plan.shapes}
    for number, members in enumerate(parts):
        people = [PEOPLE[i] for i in members]
        columns: dict[str, Any] = {
            "sample_id": [p[0] for p in people],
            "group_id": [p[1] for p in people],
            "split": [p[2] for p in people],
            "context_of": [HOLDER[p[1]] for p in people],
            **{own.name: [None] * len(people) for own in (*MADE_FROM, *BOXES)},
        }
        for key, shape in plan.shapes.items():
            values: list[list[float] | None] = []
            images: dict[str, np.ndarray] = {}
            for person, image, split, face in people:
                made = rng.normal(size=shape.of_sample).astype(np.float16)
                wanted = (key.stream == "context" or face) and (key.level == "none" or split == "train")
                if key.stream == "context":
                    made = images.setdefault(image, made)
                    stored = wanted and HOLDER[image] == person
                else:
                    stored = wanted
                if wanted:
                    truth[key][person] = made
                values.append(made.ravel().tolist() if stored else None)
            columns[key.column] = values
        storage.write_table(
            storage.join(folder, f"data/part-{number:05d}.parquet"), pa.Table.from_pydict(columns, schema=plan.schema())
        )
    storage.write_json(storage.join(folder, "_job.json"), {"job": "embeddings", "status": status})
    return truth


def check(found: Embeddings, truth: dict[FeatureKey, dict[str, np.ndarray]]) -> None:
    for key, features in truth.items():
        block = found.block(key.stream, key.backbone, key.level, tokens=key.tokens)
        assert block.array.dtype == np.float16 and block.array.flags["C_CONTIGUOUS"]
        for person, row in zip(found.sample_ids, block.row_of, strict=True):
            assert (row >= 0) == (person in features), (key, person)
            if row >= 0:
                np.testing.assert_array_equal(block.array[row], features[person])


def test_every_person_finds_its_features_and_context_is_stored_once_per_image(tmp_path: Path) -> None:
    truth = write_job(tmp_path / "e", [[0, 1, 2], [3, 4]])
    found = Embeddings(tmp_path / "e", cache=str(tmp_path / "cache"))
    check(found, truth)
    assert found.sample_ids == ["p0", "p1", "p2", "p3", "p4"] and len(found.digest) == 16
    assert set(found.keys) == set(SHAPES) and found.views == {"none": 1, "basic": 2}
    context, tokens = found.block("context", "a"), found.block("context", "a", tokens=True)
    assert isinstance(context.array, np.memmap) and not context.array.flags.writeable
    assert context.array.shape == (3, 1, 5) and context.row_of.tolist() == [0, 0, 1, 2, 2]
    assert tokens.array.shape == (3, 1, 4, 3) and (tokens.tokens, tokens.dim, context.tokens) == (4, 3, 0)
    assert found.mask("context").all() and found.mask("face").tolist() == [True, False, True, False, True]
    assert found.mask("body").tolist() == [False] * 5
    assert found.rows(["p4", "gone", "p0"]).tolist() == [4, -1, 0] and "p1" in found and "gone" not in found
    assert stored_rows(tmp_path / "e") == {CONTEXT: 3, TOKENS: 3, BASIC: 2, FACE: 3}


def test_validation_has_no_augmented_features_even_where_it_shares_an_image_with_training(tmp_path: Path) -> None:
    """Defect 13.4: the public study augments its validation data."""
    write_job(tmp_path / "e", [[0, 1, 2, 3, 4]])
    block = Embeddings(tmp_path / "e", cache=str(tmp_path / "cache")).block("context", "a", "basic")
    assert (block.row_of >= 0).tolist() == [True, True, False, False, True]


def test_the_copy_is_made_once_wherever_the_folder_lies(tmp_path: Path) -> None:
    truth = write_job(tmp_path / "e", [[0, 1, 2], [3, 4]])
    cache = tmp_path / "cache"
    first = Embeddings(tmp_path / "e", cache=str(cache))
    stamps = {path: path.stat().st_mtime_ns for path in cache.rglob("*.bin")}
    shutil.move(tmp_path / "e", tmp_path / "moved")
    again = Embeddings(tmp_path / "moved", cache=str(cache))
    check(again, truth)
    assert again.digest == first.digest
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.bin")} == stamps and len(stamps) == len(SHAPES)
    write_job(tmp_path / "other", [[0, 1, 2], [3, 4]], seed=1)
    assert Embeddings(tmp_path / "other", cache=str(cache)).digest != first.digest
    assert not list(cache.rglob("*.tmp"))


def test_features_in_an_object_store(tmp_path: Path, s3: str) -> None:
    truth = write_job(f"{s3}/e", [[0, 1, 2], [3, 4]])
    check(Embeddings(f"{s3}/e", cache=str(tmp_path / "cache")), truth)


def test_folders_of_the_same_samples_are_joined_by_id_not_by_position(tmp_path: Path) -> None:
    one = layout({CONTEXT: SHAPES[CONTEXT]})
    two = layout({FACE: SHAPES[FACE], BASIC: SHAPES[BASIC]})
    truth = write_job(tmp_path / "one", [[0, 1, 2], [3, 4]], one)
    truth.update(write_job(tmp_path / "two", [[4, 3], [2, 1, 0]], two, seed=5))
    found = Embeddings([tmp_path / "one", tmp_path / "two"], cache=str(tmp_path / "cache"))
    assert found.sample_ids == ["p0", "p1", "p2", "p3", "p4"] and set(found.keys) == {CONTEXT, FACE, BASIC}
    check(found, truth)
    assert set(found.backbones) == {"a", DOTTED}


@pytest.mark.parametrize(
    ("parts", "changes", "shapes", "message"),
    [
        ([[0, 1, 2]], {}, {FACE: SHAPES[FACE]}, r"holds 3 samples, .* holds 5, and 3 are in both"),
        ([[0, 1, 2, 3, 4]], {}, {CONTEXT: SHAPES[CONTEXT]}, r"holds context/a/none, as"),
        ([[0, 1, 2, 3, 4]], {"views": {"none": 1, "basic": 3}}, {FACE: SHAPES[FACE]}, r"level basic is 3"),
        ([[0, 1, 2, 3, 4]], {"backbones": {"a": {"weights": "x"}}}, {BASIC: SHAPES[BASIC]}, r"backbone a is"),
    ],
)
def test_folders_that_do_not_fit_are_told(
    tmp_path: Path, parts: list[list[int]], changes: dict[str, Any], shapes: Any, message: str
) -> None:
    write_job(tmp_path / "one", [[0, 1, 2, 3, 4]], layout({CONTEXT: SHAPES[CONTEXT]}))
    write_job(tmp_path / "two", parts, layout(shapes, **changes))
    with pytest.raises(InputError, match=message):
        Embeddings([tmp_path / "one", tmp_path / "two"], cache=str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"views are of seed 1 .*those of .*one of seed 0 .*--seed 0"),
        ({"renderer": 2}, r"\(renderer 2\).*\(renderer 1\).*both folders anew"),
    ],
)
def test_augmented_views_of_two_folders_are_drawn_alike(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """A view number picks one flip for all streams; from another seed, the body would be mirrored and not the context.

    Clean features have no seed: folders without views of their own fit whatever theirs says.
    """
    face = FeatureKey("face", "a", "basic")
    write_job(tmp_path / "one", [[0, 1, 2, 3, 4]], layout({CONTEXT: SHAPES[CONTEXT], BASIC: SHAPES[BASIC]}))
    write_job(tmp_path / "clean", [[0, 1, 2, 3, 4]], layout({FACE: SHAPES[FACE]}, **changes))
    write_job(tmp_path / "drawn", [[0, 1, 2, 3, 4]], layout({face: FeatureShape(2, 5)}, **changes))
    cache = str(tmp_path / "cache")
    for first, second in (("one", "clean"), ("clean", "one")):
        assert BASIC in Embeddings([tmp_path / first, tmp_path / second], cache=cache).keys
    with pytest.raises(InputError, match=message):
        Embeddings([tmp_path / "clean", tmp_path / "one", tmp_path / "drawn"], cache=cache)


def test_what_is_not_there_is_an_error_with_the_command_that_makes_it(tmp_path: Path) -> None:
    write_job(tmp_path / "e", [[0, 1]])
    found = Embeddings(tmp_path / "e", cache=str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"body/swin/full.*context/a/none.*--body swin"):
        found.block("body", "swin", "full")
    with pytest.raises(InputError, match=r"--tokens 2"):
        found.block("face", DOTTED, tokens=True)
    with pytest.raises(InputError, match="no folder"):
        Embeddings([])


def test_unfinished_and_foreign_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no _job\.json"):
        Embeddings(tmp_path)
    write_job(tmp_path / "e", [[0, 1]], status="running")
    with pytest.raises(InputError, match=r"not complete.*Run the same"):
        Embeddings(tmp_path / "e")
    write_job(tmp_path / "f", [[0, 1], [2]])
    storage.write_table(tmp_path / "f" / "data/part-00001.parquet", pa.table({"sample_id": ["x"]}))
    with pytest.raises(InputError, match=r"part-00001\.parquet: .*no embeddings"):
        Embeddings(tmp_path / "f", cache=str(tmp_path / "cache"))
    (tmp_path / "f" / "data/part-00001.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        Embeddings(tmp_path / "f", cache=str(tmp_path / "cache"))


def test_an_id_that_stands_twice_and_a_lost_holder_are_refused_and_leave_no_copy(tmp_path: Path) -> None:
    write_job(tmp_path / "e", [[0, 1], [0]])
    with pytest.raises(InputError, match="appears twice"):
        Embeddings(tmp_path / "e", cache=str(tmp_path / "cache"))
    write_job(tmp_path / "f", [[1]])  # p1's context stands on p0's row
    with pytest.raises(InputError, match="context_of names 'p0'"):
        Embeddings(tmp_path / "f", cache=str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").rglob("*.bin"))


def test_metadata_that_another_version_wrote(tmp_path: Path) -> None:
    write_job(tmp_path / "e", [[0, 1]])
    path = tmp_path / "e" / "data/part-00000.parquet"
    table = storage.read_table(path)
    for text, message in ((json.dumps({"version": 9}), "layout 9"), ("no json", "no JSON"), ("[]", "layout None")):
        storage.write_table(path, table.replace_schema_metadata({b"raymotion.embeddings": text.encode()}))
        with pytest.raises(InputError, match=message):
            Embeddings(tmp_path / "e", cache=str(tmp_path / "cache"))
