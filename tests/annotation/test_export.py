"""`raymotion data export`: tasks for Label Studio, FiftyOne and CVAT, as these programs document them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest

from raymotion.batch.annotation.tool import TOOLS
from raymotion.data.tasks import read_tasks
from raymotion.errors import InputError
from raymotion.vocabulary import Vocabulary

Build = Callable[..., Any]
OURS = ("label-studio", "fiftyone", "cvat")


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def test_ours_and_their_readers() -> None:
    from raymotion.data.readers.reader import READERS

    assert set(TOOLS.places()) >= set(OURS)
    for name in OURS:
        tool = TOOLS.get(name)
        assert tool.name == name == READERS.get(name).tool  # type: ignore[attr-defined]
        assert f"raymotion data export {name}" in (tool.__doc__ or "")


def test_label_studio(labelled: Build, tmp_path: Path, runner: Callable[..., Any]) -> None:
    own, out = labelled(selected=[True] * 6 + [False] * 2), tmp_path / "tasks"
    done = runner(
        "data", "export", "label-studio", own.labels, "--image-root", own.pictures, "--chunk", 4, "--out", out
    )
    assert done.code == 0 and "6 tasks in 2 files" in done.out, done.err
    files = sorted(out.glob("tasks-*.json"))
    assert [(path.name, len(json.loads(path.read_text()))) for path in files] == [
        ("tasks-00000.json", 4), ("tasks-00001.json", 2),
    ]  # fmt: skip
    for i, task in enumerate(task for path in files for task in json.loads(path.read_text())):
        before, _, path = task["data"]["image"].partition("?d=")
        assert before == "/data/local-files/" and own.pictures / unquote(path) == Path(own.pictures, unquote(path))
        assert (own.pictures / unquote(path)) == Path(pq.read_table(own.samples)["image_uri"][i].as_py()) and not set(
            path
        ) & set("#& '")
        assert task["data"]["sample_id"] == own.ids[i] and task["data"]["caption"] == "One.\nTwo."
        assert list(task["data"]["probabilities"].values()) == pytest.approx(own.probabilities[i], abs=1e-6)
        (prediction,) = task["predictions"]
        (result,) = prediction["result"]
        assert result["type"] == "choices" and result["value"] == {"choices": own.chosen[i]}
        assert prediction["score"] == pytest.approx(0.5 + abs(own.probabilities[i] - 0.5).min(), abs=1e-6)
    view = ElementTree.parse(out / "labels.xml").getroot()
    choices = view.find("Choices")
    assert choices is not None and choices.get("name") == result["from_name"] and choices.get("choice") == "multiple"
    image = view.find("Image")
    assert image is not None and image.get("name") == result["to_name"] == choices.get("toName")
    assert image.get("value") == "$image", "the picture of a task"
    tasks = read_tasks(str(out), "label-studio")
    assert tuple(choice.get("value") for choice in choices) == tasks.vocabulary.labels
    assert dict(tasks.labels) == dict(zip(own.ids[:6], own.chosen, strict=False))


def test_fiftyone(labelled: Build, tmp_path: Path, runner: Callable[..., Any]) -> None:
    own, out = labelled(), tmp_path / "tasks"
    assert runner("data", "export", "fiftyone", own.labels, "--out", out).code == 0
    value = json.loads((out / "labels-00000.json").read_text())
    tasks = read_tasks(str(out), "fiftyone")
    assert tuple(value["classes"]) == tasks.vocabulary.labels and set(value) == {"classes", "labels"}
    uris = pq.read_table(own.samples)["image_uri"].to_pylist()
    assert set(value["labels"]) == set(uris)
    for i, uri in enumerate(uris):
        assert [one["label"] for one in value["labels"][uri]] == own.chosen[i]
        for one in value["labels"][uri]:
            p = own.probabilities[i, tasks.vocabulary.index(one["label"])]
            assert one["confidence"] == pytest.approx(p, abs=1e-6)
        assert tasks.sample_of[uri] == own.ids[i]


def test_cvat(labelled: Build, tmp_path: Path, runner: Callable[..., Any]) -> None:
    own, out = labelled(), tmp_path / "tasks"
    done = runner("data", "export", "cvat", own.labels, "--image-root", own.pictures, "--chunk", 5, "--out", out)
    assert done.code == 0, done.err
    seen = []
    uris = pq.read_table(own.samples)["image_uri"].to_pylist()
    for number, size in enumerate((5, 3)):
        root = ElementTree.parse(out / f"annotations-{number:05d}.xml").getroot()
        assert root.tag == "annotations" and root.findtext("version") == "1.1"
        names = [image.attrib["name"] for image in root.findall("image")]
        # CVAT sorts the files of a task by name, and numbers them so.
        assert names == sorted(names) and [image.get("id") for image in root.findall("image")] == list(
            map(str, range(size))
        )
        assert names == (out / f"images-{number:05d}.txt").read_text().splitlines()
        for image in root.findall("image"):
            i = uris.index(str(own.pictures / image.attrib["name"]))
            assert [tag.get("label") for tag in image.findall("tag")] == own.chosen[i]
            seen.append(i)
    assert sorted(seen) == list(range(8))
    labels = json.loads((out / "labels.json").read_text())
    assert [one["name"] for one in labels] == [*read_tasks(str(out), "cvat").vocabulary.labels, "reviewed"]
    assert {one["type"] for one in labels} == {"tag"}


@pytest.mark.parametrize("tool", OURS)
def test_the_same_files_each_time_and_none_of_a_longer_one(
    labelled: Build, tmp_path: Path, runner: Callable[..., Any], tool: str
) -> None:
    own, out = labelled(), tmp_path / "tasks"

    def run(chunk: int) -> dict[str, bytes]:
        words = ["--image-root", own.pictures, "--chunk", chunk, "--out", out]
        assert runner("data", "export", tool, own.labels, *words).code == 0
        return read_all(out)

    few, many = run(5), run(2)
    assert len(many) > len(few) and run(5) == few
    assert read_tasks(str(out), tool).labels.keys() == set(own.ids)
    (out / "mine.txt").write_text("x")
    done = runner("data", "export", tool, own.labels, "--image-root", own.pictures, "--out", out)
    assert done.code == 2 and "holds mine.txt" in done.err
    (out / "mine.txt").unlink()
    other = OURS[OURS.index(tool) - 1]
    done = runner("data", "export", other, own.labels, "--image-root", own.pictures, "--out", out)
    assert done.code == 2 and f"which is not of {other}" in done.err
    assert read_all(out) == few
    with pytest.raises(InputError, match=f"was written for {tool}, not for {other}"):
        read_tasks(str(out), other)


TAR = "tar:///data/a.tar?offset=512&size=99&member=1.jpg"
WEB = "https://example.org/a/1.jpg"


@pytest.mark.parametrize(
    "tool, uri, options, told",
    [
        ("label-studio", "/data/1.jpg", [], r"row mine:0: Label Studio cannot open /data/1\.jpg.*--image-root"),
        ("label-studio", "az://c/1.jpg", [], "cannot open az://c/1"),
        ("label-studio", "/data/1.jpg", ["--image-root", "/dat"], "/data/1.jpg does not lie below --image-root /dat"),
        ("fiftyone", "s3://b/1.jpg", [], "FiftyOne cannot open s3://b/1.jpg. Copy the pictures to a disk"),
        ("cvat", "/data/1.jpg", [], "CVAT knows pictures by their path below a folder. Pass --image-root"),
        ("cvat", "/data/a\nb.jpg", ["--image-root", "/data"], "a character that XML cannot hold"),
        ("cvat", "s3://b/1.jpg?versionId=7", ["--image-root", "s3://b"], "one version of an object"),
        *((tool, TAR, ["--image-root", "/data"], r"inside a tar\. Unpack the tars") for tool in OURS),
        *((tool, WEB, ["--image-prefix", "/a/"], "--image-root, which is missing") for tool in OURS),
    ],
)
def test_what_a_program_cannot_open(
    labelled: Build, tmp_path: Path, runner: Callable[..., Any], tool: str, uri: str, options: list[str], told: str
) -> None:
    own = labelled(uris=[uri])
    done = runner("data", "export", tool, own.labels, *options, "--out", tmp_path / "tasks")
    assert done.code == 2 and re.search(told, done.err), done.err
    assert len(done.err.strip().splitlines()) == 1 and not list(tmp_path.glob("tasks/*"))


@pytest.mark.parametrize(
    "tool, uri, options, picture",
    [
        ("label-studio", "s3://b/x 1.jpg", [], "s3://b/x 1.jpg"),
        ("label-studio", WEB, [], WEB),
        ("label-studio", "s3://b/a/x 1.jpg", ["s3://b/a", "https://c.org/"], "https://c.org/x%201.jpg"),
        ("label-studio", "/data/x 1.jpg", ["/data/", "http://c.org/p/"], "http://c.org/p/x%201.jpg"),
        ("label-studio", "/data/x 1.jpg", ["/data"], "/data/local-files/?d=x%201.jpg"),
        ("label-studio", "s3://b/a/1.jpg", ["s3://b/a"], "s3://b/a/1.jpg"),
        ("fiftyone", "/data/x 1.jpg", [], "/data/x 1.jpg"),
        ("fiftyone", "s3://b/a/1.jpg", ["s3://b/a", "/copy/"], "/copy/1.jpg"),
        ("cvat", "s3://b/a/1.jpg", ["s3://b"], "a/1.jpg"),
        ("cvat", "/data/1.jpg", ["/data", "set/"], "set/1.jpg"),
    ],
)
def test_addresses(
    labelled: Build, tmp_path: Path, runner: Any, tool: str, uri: str, options: list[str], picture: str
) -> None:
    own = labelled(uris=[uri])
    words = [word for pair in zip(("--image-root", "--image-prefix"), options, strict=False) for word in pair]
    done = runner("data", "export", tool, own.labels, *words, "--out", tmp_path / "tasks")
    assert done.code == 0, done.err
    assert dict(read_tasks(str(tmp_path / "tasks"), tool).sample_of) == {picture: "mine:0"}


def test_rows_of_one_picture(labelled: Build, tmp_path: Path, runner: Callable[..., Any]) -> None:
    persons = labelled(uris=["/d/1.jpg", "/d/1.jpg"], captions=[[], []])
    for tool in OURS:
        done = runner("data", "export", tool, persons.labels, "--image-root", "/d", "--out", tmp_path / tool)
        assert done.code == 2 and f"row mine:1: would be the same task in {tool} as mine:0" in done.err, done.err
    # With captions of their own they are different tasks in Label Studio, which shows them.
    captions = labelled(uris=["/d/1.jpg", "/d/1.jpg"], captions=[["One."], ["Two."]])
    words = ["--image-root", "/d", "--out", tmp_path / "tasks"]
    assert runner("data", "export", "label-studio", captions.labels, *words).code == 0
    stems = labelled(uris=["/d/1.jpg", "/d/1.png"])
    done = runner("data", "export", "cvat", stems.labels, "--image-root", "/d", "--out", tmp_path / "c")
    assert done.code == 2 and "by their paths without the extension" in done.err


def test_rows_without_a_picture_are_counted(labelled: Build, tmp_path: Path, runner: Callable[..., Any]) -> None:
    own = labelled(uris=["/d/1.jpg", None, "/d/2.jpg"])
    done = runner("data", "export", "fiftyone", own.labels, "--out", tmp_path / "tasks")
    assert done.code == 0 and "2 tasks in 1 file" in done.out and "1 rows have no picture" in done.out
    none = labelled(uris=["/d/1.jpg"], selected=[False])
    done = runner("data", "export", "fiftyone", none.labels, "--out", tmp_path / "none")
    assert done.code == 2 and "no selected row with a picture" in done.err


@pytest.mark.parametrize(
    "tool, label, told", [("cvat", "reviewed", "has the label 'reviewed'"), ("label-studio", "$x", "a variable")]
)
def test_labels_that_a_program_would_misread(
    labelled: Build, tmp_path: Path, runner: Any, tool: str, label: str, told: str
) -> None:
    own = labelled(vocabulary=Vocabulary("v", ("sad", label)))
    done = runner("data", "export", tool, own.labels, "--image-root", own.pictures, "--out", tmp_path / "tasks")
    assert done.code == 2 and told in done.err


def test_a_damaged_index_is_noticed(labelled: Build, tmp_path: Path, runner: Callable[..., Any]) -> None:
    own, out = labelled(), tmp_path / "tasks"
    words = ["--chunk", 3, "--out", out]
    assert runner("data", "export", "fiftyone", own.labels, *words).code == 0
    (out / "index-00001.parquet").write_bytes((out / "index-00002.parquet").read_bytes())
    with pytest.raises(InputError, match="has 5 tasks, and 8 were written"):
        read_tasks(str(out), "fiftyone")
    (out / "tasks.json").write_text((out / "tasks.json").read_text().replace('"sad"', '"mad"'))
    with pytest.raises(InputError):
        read_tasks(str(out), "fiftyone")


def test_into_a_bucket(labelled: Build, s3: str, runner: Callable[..., Any]) -> None:
    own = labelled()
    done = runner("data", "export", "fiftyone", own.labels, "--chunk", 3, "--out", f"{s3}/tasks")
    assert done.code == 0, done.err
    assert set(read_tasks(f"{s3}/tasks", "fiftyone").labels) == set(own.ids)
