from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from raymotion import storage
from raymotion.batch.label_dataset import load_labels
from raymotion.cli.main import raymotion
from raymotion.errors import InputError
from raymotion.report.figures import pick_samples
from raymotion.report.page import write_report
from raymotion.vocabulary import MIKELS_8, SOCRATIS_29, VocabularyMismatch

Build = Callable[..., Path]


class Page(HTMLParser):
    """Tags, attributes and text of a page; void elements need no end."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag != "rect":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def render(folder: Path, **options: int) -> tuple[Page, str]:
    out = folder.parent / "report.html"
    write_report(folder, out, **options)
    html = out.read_text()
    page = Page(html)
    assert page.open == []
    return page, html


def test_load_reads_every_part(labels_folder: Build) -> None:
    folder = labels_folder(60)
    labelled = load_labels(folder)
    assert len(labelled) == 60 and len(labelled.parts) == 3
    assert labelled.vocabulary == SOCRATIS_29
    table = storage.read_table(folder / "data/part-00001.parquet").to_pylist()
    assert labelled.probabilities[25].tolist() == table[0]["probabilities"]
    assert labelled.vocabulary.decode(np.flatnonzero(labelled.mask[30]).tolist()) == table[5]["labels"]
    rows = labelled.rows([59, 0, 30])
    assert [row.sample_id for row in rows] == [f"coco:{i:012d}" for i in (59, 0, 30)]
    counts, first = labelled.quarantine(2)
    assert counts == {"image_truncated": 2, "image_missing": 1}
    assert [row.sample_id for row in first] == ["coco:900", "coco:901"]


def test_page_is_self_contained(labels_folder: Build) -> None:
    page, html = render(labels_folder(60, teacher_skill=1.0))
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", html)
    assert not any(tag in ("script", "link", "iframe", "object") for tag, _ in page.tags)
    pictures = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert pictures
    for source in pictures:
        assert source and source.startswith("data:image/jpeg;base64,")
        image = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert image.format == "JPEG" and image.width <= 320 and image.height <= 240
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")


def test_user_text_is_escaped(labels_folder: Build) -> None:
    # All rows are shown, so the one with the script is among them.
    page, html = render(labels_folder(30), samples_shown=30)
    assert "<script" not in html and "<b>bold" not in html
    assert "&lt;script&gt;alert(" in html and "&lt;b&gt;bold&lt;/b&gt;" in html
    assert "<script>alert('caption')</script> & \"quotes\"" in page.text


def test_a_good_set_says_so_first(labels_folder: Build) -> None:
    page, _ = render(labels_folder(60, teacher_skill=1.0))
    body = page.text.partition("images ")[2] or page.text
    assert "✓ Collapse check passed: the labels vary" in body
    banner = next(attrs for tag, attrs in page.tags if "banner" in (attrs.get("class") or ""))
    assert banner["class"] == "banner good"
    for name in ("BCE, nats", "Micro AP", "Macro AP (mAP)", "Top-1 accuracy", "Recall@3", "▲ better"):
        assert name in page.text
    for value in ("41.7 images/s", "12.0 s (25.0 % of both)", "feedfacefeedface", "random weights", "2 min 10 s"):
        assert value in page.text
    assert "image_truncated 2" in page.text and "image file is truncated" in page.text


def test_a_collapsed_set_says_so_first(labels_folder: Build) -> None:
    page, _ = render(labels_folder(60, skill=0.0, teacher_skill=-0.5))
    banner = next(attrs for tag, attrs in page.tags if "banner" in (attrs.get("class") or ""))
    assert banner["class"] == "banner bad"
    assert "✗ Collapse check FAILED" in page.text and "no better than its prior" in page.text and "▼ worse" in page.text
    assert page.text.index("✗ Collapse check FAILED") < page.text.index("Key figures")


def test_missing_records_are_shown_as_missing(labels_folder: Build) -> None:
    folder = labels_folder(30)
    storage.write_json(folder / "_job.json", {"job": "labels"})
    page, _ = render(folder)
    assert "not recorded" in page.text and "status is not recorded" in page.text
    assert "? No collapse found" in page.text
    assert "image_truncated 2" in page.text  # counted from the files


def test_books_that_do_not_close_are_told(labels_folder: Build) -> None:
    page, _ = render(labels_folder(30, job={"counts": {"in": 40, "good": 31, "quarantined": 3}}))
    assert "_job.json counts 31 labelled images, the parts hold 30." in page.text
    assert "The books do not close: 40 in, 31 labelled, 3 quarantined." in page.text


def test_a_set_of_nothing(labels_folder: Build) -> None:
    folder = labels_folder(1, job={"counts": {"in": 3, "good": 0, "quarantined": 3}})
    (folder / "data/part-00000.parquet").unlink()
    page, _ = render(folder)
    assert "0 images are too few" in page.text and "No image was labelled." in page.text


def test_cards_show_what_was_chosen(labels_folder: Build) -> None:
    folder = labels_folder(30)
    page, _ = render(folder, samples_shown=30)
    assert sum(tag == "figure" for tag, _ in page.tags) == 30
    labels = storage.read_table(folder / "data/part-00000.parquet").column("labels").to_pylist()
    assert f"Labels: {', '.join(labels[4])}" in page.text
    for words in ("no image: image_missing", "no caption", "and 2 more", "among the least certain"):
        assert words in page.text
    assert sum(attrs.get("class") == "blank" for _, attrs in page.tags) == 2


def test_picks_are_distinct_and_of_three_kinds() -> None:
    entropy = np.random.default_rng(0).random(1000)
    picked = pick_samples(entropy, 24, seed=0)
    assert len({i for i, _ in picked}) == 24
    order = np.argsort(entropy)
    assert {i for i, why in picked if "most" in why} == set(order[:8].tolist())
    assert {i for i, why in picked if "least" in why} == set(order[-8:].tolist())
    assert picked == pick_samples(entropy, 24, seed=0) != pick_samples(entropy, 24, seed=1)
    assert len(pick_samples(entropy[:5], 24, 0)) == 5 and pick_samples(entropy[:0], 24, 0) == []


def test_same_folder_same_page(labels_folder: Build) -> None:
    folder = labels_folder(30)
    assert render(folder)[1] == render(folder)[1]


def test_errors(labels_folder: Build, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load_labels(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no _job\.json"):
        load_labels(tmp_path / "empty")
    storage.write_json(tmp_path / "other/_job.json", {"job": "regions"})
    with pytest.raises(InputError, match="regions job"):
        load_labels(tmp_path / "other")
    storage.write_json(tmp_path / "none/_job.json", {"job": "labels"})
    with pytest.raises(InputError, match="no data/"):
        load_labels(tmp_path / "none")
    folder = labels_folder(30)
    part = folder / "data/part-00001.parquet"
    data = part.read_bytes()
    part.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"part-00001.*Parquet"):
        load_labels(folder)
    part.write_bytes(data)
    record = storage.read_json(folder / "_job.json")
    storage.write_json(folder / "_job.json", {**record, "vocabulary": MIKELS_8.to_dict()})
    with pytest.raises(VocabularyMismatch, match="mikels-8"):
        load_labels(folder)
    record["model"]["prior"] = [0.5]
    storage.write_json(folder / "_job.json", record)
    with pytest.raises(InputError, match="29 rates"):
        load_labels(folder)


def test_from_bucket_to_bucket(labels_folder: Build, s3: str) -> None:
    folder = labels_folder(30)
    for path in folder.rglob("*.*"):
        storage.write_bytes(f"{s3}/labels/{path.relative_to(folder)}", path.read_bytes())
    summary = write_report(f"{s3}/labels", f"{s3}/report.html", samples_shown=3)
    assert summary.labelled == 30 and summary.quarantined == 3
    assert storage.read_text(f"{s3}/report.html").startswith("<!doctype html>")


def test_command(labels_folder: Build, tmp_path: Path) -> None:
    folder, out = labels_folder(60, teacher_skill=1.0), tmp_path / "page.html"
    result = CliRunner().invoke(raymotion, ["report", str(folder), "--out", str(out), "--examples", "6"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].startswith("Collapse check passed")
    row = r"BCE.*\d\.\d{4} +\d\.\d{4} to \d\.\d{4} +\d\.\d{4} +\d\.\d{4} +\d+ +better"
    assert any(re.match(row, line) for line in lines)
    assert "63 in, 60 labelled, 3 quarantined, 60 selected" in result.output
    assert out.exists() and str(out) in lines[-1]


def test_numbers_lead_to_their_pictures(labels_folder: Build, tmp_path: Path) -> None:
    folder, out = labels_folder(30), tmp_path / "pages" / "page.html"
    result = CliRunner().invoke(
        raymotion, ["report", str(folder), "--out", str(out), "--review", str(tmp_path / "review")]
    )
    assert result.exit_code == 0, result.output
    links = re.findall(r'<a href="([^"]+)"', out.read_text())
    assert len(links) == len(SOCRATIS_29) + 3
    assert all((out.parent / link.partition("#")[0]).resolve() == tmp_path / "review/index.html" for link in links)
    assert "../review/index.html#view=chosen&amp;emotion=sad&amp;order=high" in links
    assert (tmp_path / "review/index.html").exists()


def test_an_unfinished_job_is_called_that_first(labels_folder: Build, tmp_path: Path) -> None:
    folder = labels_folder(30)
    record = json.loads((folder / "_job.json").read_text())
    (folder / "_job.json").write_text(json.dumps({**record, "status": "running", "input": {"rows": 103}}))
    first = r"The labelling job is not finished \(status: running\): these are 30 of 103 rows"
    for command in ("report", "review"):
        result = CliRunner().invoke(raymotion, [command, str(folder), "--out", str(tmp_path / f"{command}.html")])
        assert result.exit_code == 0 and re.match(first, result.output), result.output
    assert re.search(first, (tmp_path / "report.html").read_text())
    result = CliRunner().invoke(raymotion, ["audit", str(folder), "--out", str(tmp_path / "audit")])
    assert result.exit_code == 0 and re.search(f"note: {first}", result.output), result.output


def test_command_on_a_collapsed_set(labels_folder: Build, tmp_path: Path) -> None:
    folder = labels_folder(60, skill=0.0, teacher_skill=0.0)
    result = CliRunner().invoke(raymotion, ["report", str(folder), "--out", str(tmp_path / "page.html")])
    assert result.exit_code == 0
    assert result.output.startswith("Collapse check FAILED: The probabilities hardly differ")


def test_command_on_nothing(tmp_path: Path) -> None:
    result = CliRunner().invoke(raymotion, ["report", str(tmp_path / "nowhere")])
    assert result.exit_code == 2
    assert "error: " in result.output and "no such folder" in result.output
    shown = CliRunner().invoke(raymotion, ["report", "--help"]).output
    assert "raymotion report labels/ --out report.html" in shown
