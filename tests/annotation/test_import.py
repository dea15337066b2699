"""`raymotion data prepare label-studio | fiftyone | cvat`: from labels to the program, through people, and back."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymotion.data.readers.reader import READERS
from raymotion.data.samples import read_samples, vocabulary_of
from raymotion.data.tables import merge_tables
from raymotion.errors import InputError

Build = Callable[..., Any]


@dataclass(frozen=True)
class Exported:
    """Labels that were exported, where they are, and the command that reads what comes back."""

    own: Any
    tasks: Path
    back: Path
    prepare: Callable[..., Any]

    @property
    def corrected(self) -> list[dict[str, Any]]:
        table = read_samples(self.tasks.parent / "corrected.parquet")
        return [dict(row) for row in table.select(["sample_id", "labels", "label_weights", "label_source"]).to_pylist()]


@pytest.fixture
def exported(labelled: Build, tmp_path: Path, runner: Callable[..., Any]) -> Callable[[str], Exported]:
    def build(tool: str) -> Exported:
        own, tasks = labelled(), tmp_path / "tasks"
        words = ["--image-root", own.pictures, "--chunk", 3, "--out", tasks]
        assert runner("data", "export", tool, own.labels, *words).code == 0
        back = tmp_path / {"label-studio": "project.json", "fiftyone": "samples.json", "cvat": "annotations.xml"}[tool]

        def prepare(*options: object, export: object = back) -> Any:
            out = tmp_path / "corrected.parquet"
            return runner("data", "prepare", tool, export, own.samples, tasks, *options, "--out", out)

        return Exported(own, tasks, back, prepare)

    return build


# As the server writes them: https://labelstud.io/guide/task_format
def of_server(tasks: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(tasks.glob("tasks-*.json")):
        for task in json.loads(path.read_text()):
            found.append(
                {"id": len(found) + 1, "annotations": [], "file_upload": path.name, "drafts": [], "meta": {},
                 "predictions": [{"id": 1, **own} for own in task["predictions"]], "data": task["data"],
                 "created_at": "2024-05-01T10:00:00.000000Z", "updated_at": "2024-05-01T10:00:00.000000Z",
                 "inner_id": len(found) + 1, "total_annotations": 0, "cancelled_annotations": 0, "project": 4}
            )  # fmt: skip
    return found


def annotation(labels: list[str], who: Any = 1, *, day: int = 1, **more: Any) -> dict[str, Any]:
    result = [{"value": {"choices": labels}, "id": "f3", "from_name": "emotions", "to_name": "image",
               "type": "choices", "origin": "manual"}] if labels else []  # fmt: skip
    return {"id": 7, "completed_by": who, "result": result, "was_cancelled": False, "ground_truth": False,
            "created_at": "2024-05-01T10:00:00.000000Z", "updated_at": f"2024-05-{day:02d}T11:00:00.000000Z",
            "lead_time": 4.2, "task": 1, **more}  # fmt: skip


def test_label_studio_and_back(exported: Any, runner: Callable[..., Any]) -> None:
    it = exported("label-studio")
    tasks, chosen = of_server(it.tasks), it.own.chosen
    tasks[0]["annotations"] = [annotation(chosen[0][::-1])]  # kept, in another order
    tasks[1]["annotations"] = [annotation(["sad"])]
    tasks[2]["annotations"] = [annotation([])]  # no label applies
    tasks[3]["annotations"] = [annotation(["sad"], was_cancelled=True)]
    tasks[4]["annotations"] = [  # three people: shares 1, 2/3 and 1/3
        annotation(["sad", "joy & awe"], 1),
        annotation(["sad", 'say "hi"'], {"id": 2, "email": "b@example.org"}),
        annotation(["sad", "joy & awe"], 3, day=3),
        annotation(["日本 <x>"], 3, day=2),  # an earlier one of the third
    ]
    it.back.write_text(json.dumps(tasks))
    done = it.prepare()
    assert done.code == 0, done.err
    assert re.search(r"rows +4 \(1 kept, 3 corrected\)", done.out)
    for note in ("1 rows have several annotators", "4 tasks have no annotation", "1 annotations were skipped",
                 "1 annotations were replaced", "4 rows of the table have no mark"):  # fmt: skip
        assert note in done.out
    assert it.corrected == [
        {"sample_id": "mine:0", "labels": chosen[0], "label_weights": None, "label_source": "label-studio/kept"},
        {"sample_id": "mine:1", "labels": ["sad"], "label_weights": None, "label_source": "label-studio/corrected"},
        {"sample_id": "mine:2", "labels": [], "label_weights": None, "label_source": "label-studio/corrected"},
        {"sample_id": "mine:4", "labels": ["joy & awe", "sad"], "label_weights": pytest.approx([2 / 3, 1]),
         "label_source": "label-studio/corrected"},
    ]  # fmt: skip
    table = read_samples(it.tasks.parent / "corrected.parquet")
    assert vocabulary_of(table) is not None and table["split"].null_count == 0
    told = runner("data", "show", it.tasks.parent / "corrected.parquet").out
    assert "label-studio/corrected 3, label-studio/kept 1" in told
    assert it.prepare("--agreement", 0.3).code == 0
    assert it.corrected[3]["labels"] == ["joy & awe", 'say "hi"', "sad"]
    # With another table of the same vocabulary it becomes one to train on.
    (it.tasks.parent / "corrected.parquet").rename(it.tasks.parent / "all.parquet")
    assert merge_tables([str(it.tasks.parent / "all.parquet")])["label_source"].null_count == 0


def test_label_studio_in_several_files(exported: Any) -> None:
    it = exported("label-studio")
    folder = it.tasks.parent / "several"
    folder.mkdir()
    for i, task in enumerate(of_server(it.tasks)[:2] * 2):
        task["annotations"] = [annotation(["sad"], i)]
        (folder / f"{i}.json").write_text(json.dumps([task]))
    for export in (folder, folder / "*.json"):
        assert it.prepare(export=export).code == 0
        assert [row["label_weights"] for row in it.corrected] == [[1.0], [1.0]], "two people each"


@pytest.mark.parametrize(
    "change, told",
    [
        (
            lambda t: t[1].update(annotations=[annotation(["merry"])]),
            r"row task 2: the label 'merry' is not in the vocab",
        ),
        (lambda t: t[1]["data"].update(sample_id="x:1"), r"row task 2: 'x:1' is not a sample of"),
        (lambda t: t[1].update(data={"image": "a"}), r"row task 2: has no data\.sample_id"),
        (lambda t: t[1].pop("annotations"), r"row task 2: has no annotations.*as JSON, not JSON-MIN"),
        (lambda t: t.insert(1, "x"), r"row task 1: has no annotations"),
        (lambda t: t[1].update(annotations=["x"]), "row task 2: has an annotation that is not an object"),
        (lambda t: t[1].update(annotations=[annotation(["sad"], result={})]), "whose result is not a list of objects"),
        (
            lambda t: t[1].update(annotations=[annotation([], result=[{"type": "choices", "from_name": "mood"}])]),
            "has choices of 'mood', not of 'emotions'. Name the ones to read: --control",
        ),
        (
            lambda t: t[1].update(annotations=[annotation([], result=[{"type": "choices", "from_name": "emotions"}])]),
            "has choices that are not a list of texts",
        ),
        (lambda t: t.clear(), "has no marks"),
        (lambda t: None, r"has no marks \(8 tasks have no annotation"),
    ],
)
def test_mistakes_in_a_label_studio_export(exported: Any, change: Any, told: str) -> None:
    it = exported("label-studio")
    tasks: list[Any] = of_server(it.tasks)
    change(tasks)
    it.back.write_text(json.dumps(tasks))
    done = it.prepare()
    assert done.code == 2 and re.search(told, done.err) and "project.json" in done.err, done.err
    assert len(done.err.strip().splitlines()) == 1


def test_other_files_and_folders(exported: Any, tmp_path: Path) -> None:
    it = exported("label-studio")
    it.back.write_text('{"labels": []}')
    assert "is not a list of tasks" in it.prepare().err
    it.back.write_text("[{")
    assert re.search(r"project\.json: is not JSON \(line 1", it.prepare().err)
    assert "no such file or folder" in it.prepare(export=tmp_path / "none.json").err
    assert "there is no .json file" in it.prepare(export=it.own.pictures.parent / "labels" / "data").err
    it.back.write_text(json.dumps([{**task, "annotations": [annotation(["sad"])]} for task in of_server(it.tasks)]))
    other = read_samples(it.own.samples).slice(1)
    from raymotion.data.samples import write_samples

    write_samples(it.own.samples, other)
    assert re.search(r"marks 1 samples that .* lacks, e\.g\. 'mine:0'", it.prepare().err)
    (it.tasks / "tasks.json").unlink()
    assert "Give the folder that `raymotion data export label-studio` wrote" in it.prepare().err


# As FiftyOne 1.22 writes a sample (`Sample.to_mongo_dict`) with a field of `Classifications`.
def of_fiftyone(tasks: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(tasks.glob("labels-*.json")):
        for picture, labels in json.loads(path.read_text())["labels"].items():
            found.append(
                {"_id": {"$oid": f"{len(found):024x}"}, "filepath": picture, "tags": [], "metadata": None,
                 "created_at": {"$date": "2024-05-01T10:00:00Z"}, "_media_type": "image", "_rand": 0.99,
                 "emotions": document(labels)}
            )  # fmt: skip
    return sorted(found, key=lambda sample: sample["filepath"], reverse=True)


def document(labels: list[dict[str, Any]]) -> dict[str, Any]:
    own = [
        {"_id": {"$oid": "6b0ae798bfe9e9e78a25ae55"}, "_cls": "Classification", "tags": [], "confidence": None, **one}
        for one in labels
    ]
    return {"_cls": "Classifications", "classifications": own}


def test_fiftyone_and_back(exported: Any) -> None:
    it = exported("fiftyone")
    samples = of_fiftyone(it.tasks)
    index = {str(it.own.pictures / name): i for i, name in enumerate(names_of(it))}
    for at, labels in enumerate((None, ["sad", "joy & awe"], [])):
        samples[at]["tags"] = ["mine", "reviewed"]
        if labels is not None:
            samples[at]["emotions"] = document([{"label": label} for label in labels]) if labels else None
    it.back.write_text(json.dumps({"samples": samples}))
    done = it.prepare()
    assert done.code == 0 and re.search(r"rows +3 \(1 kept, 2 corrected\)", done.out), done.err
    assert "5 pictures do not have the tag reviewed" in done.out
    found = {row["sample_id"]: (row["labels"], row["label_source"]) for row in it.corrected}
    ids = [f"mine:{index[sample['filepath']]}" for sample in samples[:3]]
    assert found == {
        ids[0]: (it.own.chosen[int(ids[0][5:])], "fiftyone/kept"),
        ids[1]: (["joy & awe", "sad"], "fiftyone/corrected"),
        ids[2]: ([], "fiftyone/corrected"),
    }
    assert it.prepare("--all-reviewed").code == 0 and len(it.corrected) == 8
    # The folder as dataset.export writes it.
    (it.back.parent / "export").mkdir()
    it.back.rename(it.back.parent / "export" / "samples.json")
    (it.back.parent / "export" / "metadata.json").write_text('{"name": "x", "sample_fields": []}')
    assert it.prepare(export=it.back.parent / "export").code == 0 and len(it.corrected) == 3


def names_of(it: Any) -> list[str]:
    return [uri.removeprefix(f"{it.own.pictures}/") for uri in read_samples(it.own.samples)["image_uri"].to_pylist()]


def test_fiftyones_labels_without_tags(exported: Any) -> None:
    it = exported("fiftyone")
    uris = read_samples(it.own.samples)["image_uri"].to_pylist()
    # The four forms of an entry: https://docs.voxel51.com/user_guide/export_datasets.html
    labels = {
        uris[0]: ["sad"],
        uris[1]: [{"label": "sad", "confidence": 0.5}],
        uris[2]: None,
        uris[3]: 0,
        uris[4]: "sad",
    }
    it.back.write_text(json.dumps({"classes": ["joy & awe"], "labels": labels}))
    done = it.prepare()
    assert done.code == 2 and "has no tags" in done.err and "--all-reviewed" in done.err
    assert it.prepare("--all-reviewed").code == 0
    assert [row["labels"] for row in it.corrected] == [["sad"], ["sad"], [], ["joy & awe"], ["sad"]]


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda s: s[1].update(filepath="data/1.jpg"), "row data/1.jpg: 'data/1.jpg' is not a picture of"),
        (lambda s: s[1].pop("filepath"), "row sample 1: has no filepath"),
        (lambda s: s.append("x"), "row sample 8: has no filepath"),
        (lambda s: s[1].pop("emotions"), "row sample 1: has no field 'emotions'.*--field"),
        (lambda s: s[1].update(tags="reviewed"), "row sample 1: has tags that are not a list"),
        (lambda s: s[1].update(emotions={"_cls": "Detections"}), "labels that are not classifications"),
        (lambda s: s[1].update(emotions=["sad"]), "labels that are not classifications"),
        (lambda s: s[1].update(emotions=document([{"label": None}])), "a classification without a label"),
        (lambda s: s[1].update(emotions=document([{"label": "merry"}])), "the label 'merry' is not in the vocabulary"),
        (lambda s: s.append(s[1]), "is there twice"),
    ],
)
def test_mistakes_in_a_fiftyone_export(exported: Any, change: Any, told: str) -> None:
    it = exported("fiftyone")
    samples: list[Any] = of_fiftyone(it.tasks)
    change(samples)
    it.back.write_text(json.dumps({"samples": samples}))
    done = it.prepare("--all-reviewed")
    assert done.code == 2 and re.search(told, done.err) and "samples.json" in done.err, done.err
    it.back.write_text('{"x": 1}')
    assert "has neither samples nor labels" in it.prepare().err


# As CVAT writes it: https://docs.cvat.ai/docs/other/xml_format/
META = """<meta><task><id>4</id><name>ask &amp; look</name><size>3</size><mode>annotation</mode>
<labels><label><name>sad</name><color>#fa3253</color><type>tag</type><attributes></attributes></label></labels>
</task><dumped>2024-05-01 10:00:00.000000+00:00</dumped></meta>"""


def of_cvat(it: Any, change: Callable[[dict[str, list[str]]], None] = lambda tags: None, more: str = "") -> str:
    tags: dict[str, list[str]] = {}
    for path in sorted(it.tasks.glob("annotations-*.xml")):
        for image in ElementTree.parse(path).getroot().findall("image"):
            tags[image.attrib["name"]] = [tag.attrib["label"] for tag in image.findall("tag")]
    change(tags)
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    root.append(ElementTree.fromstring(META))
    for i, (name, labels) in enumerate(tags.items()):
        image = ElementTree.SubElement(root, "image", id=str(i), name=name, width="640", height="480")
        for label in labels:
            ElementTree.SubElement(image, "tag", label=label, source="file").text = "\n"
    text = ElementTree.tostring(root, encoding="unicode").replace("</annotations>", f"{more}</annotations>")
    return '<?xml version="1.0" encoding="utf-8"?>\n' + text.replace("<image", "\n<image")


def look(tags: dict[str, list[str]]) -> None:
    first, second, third, *_ = tags
    tags[first].append("reviewed")
    tags[second] = ["sad", "reviewed", "sad"]
    tags[third] = ["reviewed"]


@pytest.mark.parametrize("kind", ["xml", "utf-16", "zip"])
def test_cvat_and_back(exported: Any, kind: str) -> None:
    it = exported("cvat")
    text, path = of_cvat(it, look), it.back
    if kind == "zip":
        path = path.with_suffix(".zip")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("annotations.xml", text)
            archive.writestr("images/a.jpg", b"x")
    elif kind == "xml":
        path.write_text(text)
    else:
        path.write_text(text.replace("utf-8", "utf-16"), encoding="utf-16")
    done = it.prepare(export=path)
    assert done.code == 0 and re.search(r"rows +3 \(1 kept, 2 corrected\)", done.out), done.err
    assert "5 pictures do not have the tag reviewed" in done.out
    names = names_of(it)
    shown = (it.tasks / "images-00000.txt").read_text().splitlines()
    first, second, third = (f"mine:{names.index(name)}" for name in shown)
    found = {row["sample_id"]: (row["labels"], row["label_source"]) for row in it.corrected}
    assert found == {
        first: (it.own.chosen[int(first[5:])], "cvat/kept"),
        second: (["sad"], "cvat/corrected"),
        third: ([], "cvat/corrected"),
    }
    assert it.prepare("--all-reviewed", export=path).code == 0 and len(it.corrected) == 8


def test_what_raymotion_writes_for_cvat_is_all_unreviewed(exported: Any) -> None:
    it = exported("cvat")
    done = it.prepare(export=it.tasks)
    assert done.code == 2 and "has no marks (8 pictures do not have the tag reviewed" in done.err
    assert it.prepare("--all-reviewed", export=it.tasks).code == 0
    assert {row["label_source"] for row in it.corrected} == {"cvat/kept"}


BOMB = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda t: t.replace("?>", f"?>{BOMB}", 1), r"annotations\.xml, line 1: has a document type"),
        (lambda t: t.replace("?>", f"?>\n\n{OUTSIDE}", 1).replace("640", "&a;"), "line 3: has a document type"),
        (lambda t: t.replace("640", "&a;", 1), "is not XML that can be read .undefined entity"),
        (lambda t: t[:-30], r"is not XML that can be read"),
        (lambda t: "", "is not XML that can be read .no element found"),
        (lambda t: t.replace("utf-8", "utf-99"), "is not XML that can be read"),
        (lambda t: t.replace("annotations", "notes"), "begins with <notes>, not with <annotations>"),
        (lambda t: t.replace("<version>1.1", "<version>2.0"), "has the version '2.0', not '1.1'"),
        (lambda t: t.replace("<version>1.1</version>", ""), "has the version '', not '1.1'"),
        (lambda t: t.replace("<image", '<track id="0" label="sad"></track><image', 1), "holds tracks of a video"),
        (lambda t: t.replace(' name="', ' title="', 1), "an image has no name"),
        (lambda t: t.replace('<tag label="', '<tag name="', 1), "a tag has no label"),
        (lambda t: t.replace('label="sad"', 'label="merry"'), r"line \d+: the label 'merry' is not in the vocabulary"),
        (lambda t: t.replace('name="b/', 'name="d/'), r"line \d+: .d/.* is not a picture of"),
        (lambda t: re.sub(r"(<image.*?</image>)", r"\1\1", t, count=1, flags=re.DOTALL), "is there twice"),
    ],
)
def test_mistakes_in_a_cvat_export(exported: Any, change: Any, told: str) -> None:
    it = exported("cvat")
    it.back.write_text(change(of_cvat(it)))
    done = it.prepare("--all-reviewed")
    assert done.code == 2 and re.search(told, done.err) and "annotations.xml" in done.err, done.err
    assert len(done.err.strip().splitlines()) == 1


def test_shapes_are_counted_and_zips_checked(exported: Any) -> None:
    it = exported("cvat")
    box = '<box label="sad" xtl="1" ytl="1" xbr="2" ybr="2" occluded="0"></box></image>'
    it.back.write_text(of_cvat(it).replace("</image>", box, 2))
    done = it.prepare("--all-reviewed")
    assert done.code == 0 and "2 shapes in pictures are left out" in done.out
    path = it.back.with_suffix(".zip")
    path.write_bytes(b"PK not one")
    assert "is not a zip that can be read" in it.prepare(export=path).err
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other.xml", "x")
    assert "has no annotations.xml" in it.prepare(export=path).err


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["id", "annotations", "data", "sample_id", "result", "type", "value", "choices", "from_name",
                         "was_cancelled", "completed_by", "samples", "labels", "filepath", "tags", "emotions", "_cls",
                         "classifications", "label", "classes"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@pytest.mark.parametrize("tool", ["label-studio", "fiftyone"])
def test_any_json_is_read_or_refused(exported: Any, tool: str) -> None:
    it = exported(tool)
    reader = READERS.get(tool)
    options = {"all_reviewed": True} if tool == "fiftyone" else {}
    good: Any = of_server(it.tasks) if tool == "label-studio" else of_fiftyone(it.tasks)
    good[0] |= {"annotations": [annotation(["sad"])], "tags": ["reviewed"]}

    @given(JSON, st.lists(st.sampled_from(["annotations", "data", "result", "value", "tags", "emotions"]), max_size=3))
    def check(value: Any, path: list[str]) -> None:
        document: Any = json.loads(json.dumps(good[:1]))
        inside: Any = document[0]
        for name in path:  # somewhere inside a good one, as far as the path leads
            inside = inside.get(name, inside) if isinstance(inside, dict) else inside
            inside = inside[0] if isinstance(inside, list) and inside else inside
        if isinstance(inside, dict) and isinstance(value, dict):
            inside |= value
        for own in (document if tool == "label-studio" else {"samples": document}, value):
            it.back.write_text(json.dumps(own))
            try:
                reader(export=str(it.back), samples=str(it.own.samples), tasks=str(it.tasks), **options).read()
            except InputError as error:
                assert str(it.back) in str(error)

    check()


@pytest.mark.slow
def test_any_xml_is_read_or_refused(exported: Any) -> None:
    it = exported("cvat")
    good = of_cvat(it, look).encode()

    @given(
        st.lists(st.tuples(st.integers(0, len(good) - 1), st.binary(max_size=3)), max_size=3), st.binary(max_size=20)
    )
    def check(changes: list[tuple[int, bytes]], junk: bytes) -> None:
        changed = good
        for place, data in changes:
            changed = changed[:place] + data + changed[place + len(data) + 1 :]
        for text in (changed, junk, good[: len(good) // 2] + junk + good[len(good) // 2 :]):
            it.back.write_bytes(text)
            try:
                READERS.get("cvat")(export=str(it.back), samples=str(it.own.samples), tasks=str(it.tasks)).read()  # type: ignore[call-arg]
            except InputError as error:
                assert str(it.back) in str(error)

    check()
