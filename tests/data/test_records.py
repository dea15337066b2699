"""ImageFolders and WebDatasets as tables of the user's own."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from raymotion import storage
from raymotion.data.images.decode import fetch
from raymotion.data.readers.table import TableReader
from raymotion.data.samples import read_samples, vocabulary_of
from raymotion.errors import AddressRefused, InputError
from raymotion.stores.tar import place_of


def jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (12, 16, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def write_tar(path: Path, files: Mapping[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def shard(first: int, count: int) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for i in range(first, first + count):
        files |= {
            f"{i:04d}.jpg": jpeg(i), f"{i:04d}.txt": f"Picture {i}.\n".encode(),
            f"{i:04d}.json": json.dumps({"labels": ["joy", "awe"][: 1 + i % 2], "score": 0.5}).encode(),
        }  # fmt: skip
    return files


def read(path: object, **options: Any) -> Any:
    return TableReader(path=str(path), vocabulary_from_data=True, no_split=True, **options).read()[0]


def test_the_pictures_of_a_web_dataset_are_read_where_they_lie(tmp_path: Path) -> None:
    write_tar(tmp_path / "a-000.tar", shard(0, 3))
    write_tar(tmp_path / "a-001.tar", shard(3, 2))
    table = read(tmp_path / "a-*.tar")
    assert table["sample_id"].to_pylist() == [f"table:a-00{i // 3}/{i:04d}" for i in range(5)]
    assert table["captions"].to_pylist() == [[f"Picture {i}."] for i in range(5)]
    assert table["labels"].to_pylist() == [["joy", "awe"][: 1 + i % 2] for i in range(5)]
    for i, uri in enumerate(table["image_uri"].to_pylist()):
        assert fetch(uri) == jpeg(i) and storage.size_of(uri) == len(jpeg(i))
        assert storage.read_head(uri, 4) == jpeg(i)[:4]
    assert not list(tmp_path.glob("*.jpg")), "nothing is unpacked"


def test_a_class_and_folders_in_a_tar(tmp_path: Path) -> None:
    files = {
        "train/1.jpg": jpeg(1),
        "train/1.cls": b"joy",
        "train/1.npy": b"?",
        "val/1.seg.png": b"",
        "val/2.png": jpeg(2),
    }
    table = read(write_tar(tmp_path / "t.tar", files))
    assert table["sample_id"].to_pylist() == ["table:t/train/1", "table:t/val/1", "table:t/val/2"]
    assert table["labels"].to_pylist() == [["joy"], None, None]
    assert [uri is None for uri in table["image_uri"].to_pylist()] == [False, True, False]
    assert fetch(table["image_uri"][2].as_py()) == jpeg(2)


def test_a_web_dataset_in_a_bucket(s3: str, tmp_path: Path) -> None:
    address = f"{s3}/shards/x.tar"
    storage.write_bytes(address, write_tar(tmp_path / "x.tar", shard(0, 2)).read_bytes())
    table = read(address)
    assert place_of(table["image_uri"][1].as_py()).file == address
    assert [fetch(uri) for uri in table["image_uri"].to_pylist()] == [jpeg(0), jpeg(1)]


@pytest.mark.parametrize(
    "address, error",
    [
        ("tar:///etc/passwd", "is not an address inside a tar"),
        ("tar://http://10.0.0.1/x.tar?offset=0&size=5&member=a.jpg", "from a disk or an object store only"),
        ("tar://tar:///x.tar?offset=0&size=5&member=a.jpg", "not an address|from a disk"),
        ("tar:///x.tar?offset=-1&size=5&member=a.jpg", "is not an address inside a tar"),
    ],
)
def test_other_addresses_inside_tars_are_refused(address: str, error: str) -> None:
    with pytest.raises((AddressRefused, InputError), match=error):
        fetch(address)


def test_a_tar_that_is_gone_or_cut_is_the_fault_of_its_rows(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", shard(0, 1))
    (uri,) = read(path)["image_uri"].to_pylist()
    path.write_bytes(path.read_bytes()[:700])
    assert len(fetch(uri)) == 700 - place_of(uri).offset < len(jpeg(0)), "the decoder sees that it is cut"
    path.unlink()
    with pytest.raises(Exception, match="no file at") as missing:
        fetch(uri)
    assert type(missing.value).__name__ == "ImageMissing"


@pytest.mark.parametrize(
    "files, mode, told",
    [
        ({"1.txt": b"only text"}, "w", r"t\.tar: holds no pictures"),
        ({"1.jpg": b"x", "1.png": b"y"}, "w", r"row 1\.png: the sample has several pictures"),
        ({"1.jpg": b"x", "1.json": b"{"}, "w", r"row 1\.json: is not JSON"),
        ({"1.jpg": b"x", "1.json": b"[1]"}, "w", r"row 1\.json: is not an object"),
        ({"1.jpg": b"x", "1.txt": b"\xff"}, "w", r"row 1\.txt: is not UTF-8"),
        ({"1.jpg": b"x", "2.jpg": b"y", "1.txt": b"t"}, "w", r"row 1: the files of a sample do not follow each other"),
        ({"1.jpg": b"x"}, "w:gz", r"t\.tar: is not an uncompressed tar"),
    ],
)
def test_mistakes_in_a_tar_are_named(tmp_path: Path, files: dict[str, bytes], mode: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        read(write_tar(tmp_path / "t.tar", files, mode))


def folder_of(base: Path, names: list[str]) -> Path:
    for i, name in enumerate(names):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(jpeg(i))
    return base


def test_an_image_folder_of_labels(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "f", ["joy/1.jpg", "awe; wonder/2.jpg", "joy/3.jpg"])
    table = read(folder)
    assert table["labels"].to_pylist() == [["awe; wonder"], ["joy"], ["joy"]]
    assert table["sample_id"].to_pylist()[1] == "table:joy/1.jpg"
    assert table["image_uri"].to_pylist()[1] == str(folder / "joy/1.jpg")
    vocabulary = vocabulary_of(table)
    assert vocabulary is not None and vocabulary.labels == ("awe; wonder", "joy")


def test_an_image_folder_of_splits_and_labels(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "f", ["train/joy/1.jpg", "validation/awe/1.jpg", "test/joy/2.jpg"])
    table = read(folder)
    found = dict(zip(table["sample_id"].to_pylist(), table["split"].to_pylist(), strict=True))
    assert found == {
        "table:train/joy/1.jpg": "train",
        "table:validation/awe/1.jpg": "val",
        "table:test/joy/2.jpg": "test",
    }


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_an_image_folder_with_metadata(tmp_path: Path, kind: str) -> None:
    folder = folder_of(tmp_path / "f", ["train/a.jpg", "train/b.jpg", "test/c.jpg"])
    for split, names in (("train", ["a.jpg", "b.jpg"]), ("test", ["c.jpg"])):
        frame = pd.DataFrame({"file_name": names, "text": [f"About {name}" for name in names], "label": "joy"})
        path = folder / split / f"metadata.{kind}"
        if kind == "csv":
            frame.to_csv(path, index=False)
        else:
            frame.to_json(path, orient="records", lines=True)
    table = read(folder)
    assert table["split"].to_pylist() == ["train", "train", "test"]
    assert table["captions"].to_pylist() == [["About a.jpg"], ["About b.jpg"], ["About c.jpg"]]
    assert [Path(uri).read_bytes() for uri in table["image_uri"].to_pylist()] == [jpeg(0), jpeg(1), jpeg(2)]


@pytest.mark.parametrize(
    "names, told",
    [
        (["a.jpg", "joy/b.jpg"], r"holds a\.jpg, and is not a folder of labels \(LABEL/picture\.jpg\).*prepare folder"),
        (["train/joy/b.jpg", "test/c.jpg"], r"holds test/c\.jpg.*SPLIT/LABEL"),
        (["readme.md"], "holds no pictures .* and no metadata.csv"),
    ],
)
def test_other_folders_are_refused(tmp_path: Path, names: list[str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        read(folder_of(tmp_path / "f", names))


def test_an_empty_name_in_metadata_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "f", ["a.jpg"])
    (folder / "metadata.csv").write_text("file_name,label\na.jpg,joy\n,joy\n")
    with pytest.raises(InputError, match=r"metadata\.csv, line 3: file_name is empty"):
        read(folder)


def test_patterns(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / f"part-{i}.csv").write_text(f"image,label\n{i}.jpg,joy\n")
    assert len(read(tmp_path / "part-*.csv")) == 2
    with pytest.raises(InputError, match=r"no file has a name like this"):
        read(tmp_path / "shard-*.csv")
    (tmp_path / "part-3.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r"several formats .*\.csv, \.jsonl"):
        read(tmp_path / "part-*")


def test_a_job_reads_pictures_inside_a_tar(tmp_path: Path, runner: Callable[..., Any]) -> None:
    """From tars to features in two commands; a picture that was damaged in the tar goes into quarantine."""
    files = shard(0, 4)
    files["0002.jpg"] = files["0002.jpg"][:200]
    write_tar(tmp_path / "t.tar", files)
    table = tmp_path / "s.parquet"
    done = runner(
        "data", "prepare", "table", tmp_path / "t.tar", "--vocabulary-from-data", "--no-split", "--out", table
    )
    assert done.code == 0 and re.search(r"rows +4", done.out), done.err
    out = tmp_path / "features"
    done = runner(
        "features", "regions", table, "--extractor", "grid:test_resnet", "--weights", "random:0", "--count", 4,
        "--out", out, "--workers", 0,
    )  # fmt: skip
    assert done.code == 0 and "4 in = 3 good + 1 in quarantine" in done.out, done.err


@pytest.mark.parametrize("kind", ["folder", "tar", "bucket"])
def test_a_relative_table_is_moved_with_its_pictures(
    tmp_path: Path, s3: str, runner: Callable[..., Any], kind: str
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    if kind == "tar":
        here.mkdir()
        write_tar(here / "t.tar", shard(0, 2))
        arguments: tuple[Any, ...] = ("table", here / "t.tar", "--vocabulary-from-data", "--no-split")
        pictures = [jpeg(0), jpeg(1)]
    else:
        folder_of(here, ["in/a.jpg", "in/b.jpg"])
        arguments, pictures = ("folder", here / "in"), [jpeg(0), jpeg(1)]
    done = runner("data", "prepare", *arguments, "--relative", "--out", here / "s.parquet")
    assert done.code == 0, done.err
    stored = pd.read_parquet(here / "s.parquet")["image_uri"]
    assert not stored.str.contains(str(tmp_path)).any(), "no place of this machine stands in it"
    before = read_samples(here / "s.parquet")
    if kind == "bucket":
        for path in here.rglob("*.*"):
            storage.write_bytes(f"{s3}/moved/{path.relative_to(here)}", path.read_bytes())
        table = read_samples(f"{s3}/moved/s.parquet")
    else:
        here.rename(there)
        table = read_samples(there / "s.parquet")
    assert [fetch(uri) for uri in table["image_uri"].to_pylist()] == pictures
    assert table.drop(["image_uri"]).equals(before.drop(["image_uri"])) and b"raymotion.relative" not in (
        table.schema.metadata or {}
    )


def test_pictures_beside_the_folder_of_the_table_are_not_relative(tmp_path: Path, runner: Callable[..., Any]) -> None:
    folder_of(tmp_path / "pictures", ["a.jpg"])
    done = runner(
        "data", "prepare", "folder", tmp_path / "pictures", "--relative", "--out", tmp_path / "tables" / "s.parquet"
    )
    assert done.code == 2 and re.search(r"row 0: .*a\.jpg does not lie in .*tables.*--relative", done.err), done.err
