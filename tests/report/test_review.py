"""`raymotion review`: the folder, the page in a browser, and what becomes of the marks."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from raymotion.batch.label_dataset import load_labels
from raymotion.data.samples import read_samples, table_from_rows, vocabulary_of, write_samples
from raymotion.errors import InputError, VocabularyMismatch
from raymotion.report.cards import ReviewLink
from raymotion.report.review import STEPS, write_review
from raymotion.vocabulary import SOCRATIS_29, VALENCE_3, read_vocabulary

Build = Callable[..., Path]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def data_of(folder: Path) -> dict[str, Any]:
    text = (folder / "data.js").read_text()
    assert text.startswith("const REVIEW = ") and text.endswith(";\n")
    found: dict[str, Any] = json.loads(text.removeprefix("const REVIEW = ").removesuffix(";\n").replace("<\\/", "</"))
    return found


def test_the_folder_holds_all_rows(labels_folder: Build, tmp_path: Path) -> None:
    labels, out = labels_folder(60), tmp_path / "review"
    summary = write_review(labels, out)
    own, data = load_labels(labels), data_of(out)
    ids, pictures = own.pictures()
    assert (summary.rows, data["ids"], data["uris"]) == (60, ids, [one.uri for one in pictures])
    packed = np.frombuffer(base64.b64decode(data["probabilities"]), "<u2").reshape(60, len(SOCRATIS_29))
    assert np.abs(packed / STEPS - own.probabilities).max() <= 0.5 / STEPS + 1e-6
    assert [set(row) for row in data["chosen"]] == [set(np.flatnonzero(row).tolist()) for row in own.mask]
    thumbs = {int(path.stem) for path in out.rglob("thumbs/*/*.jpg")}
    assert thumbs | {int(row) for row in data["problems"]} == set(range(60)) and not thumbs & set(
        map(int, data["problems"])
    )
    assert summary.shown == len(thumbs) > 0
    for path in out.rglob("thumbs/*/*.jpg"):
        assert max(Image.open(path).size) <= 320
    page = (out / "index.html").read_text()
    assert "http:" not in page and "https:" not in page, "it opens without a network"
    assert read_vocabulary(str(out / "vocabulary.json")) == SOCRATIS_29


def test_a_second_call_goes_on_and_another_folder_is_refused(labels_folder: Build, tmp_path: Path) -> None:
    labels, out = labels_folder(60), tmp_path / "review"
    write_review(labels, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("thumbs/*/*.jpg")}
    next(iter(before)).unlink()
    write_review(labels, out)
    after = {path: path.stat().st_mtime_ns for path in out.rglob("thumbs/*/*.jpg")}
    assert before.keys() == after.keys() and sum(before[path] != after[path] for path in before) == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match=r"mine\.txt"):
        write_review(labels, tmp_path / "other")


def test_the_selected_rows_are_shown_with_their_own_thumbnails(
    labels_folder: Build, tmp_path: Path, runner: Any
) -> None:
    labels, out = labels_folder(60, job={"identity": {}}), tmp_path / "review"
    done = runner("select", labels, "--policy", "uncertain", "--count", 12, "--out", tmp_path / "ask")
    assert done.code == 0, done.err
    own = load_labels(tmp_path / "ask")
    ids, pictures = own.pictures()
    rows = np.flatnonzero(own.selected)
    for everything, shown in ((True, np.arange(60)), (False, rows), (True, np.arange(60))):
        options = ["--all"] if everything else []
        assert runner("review", tmp_path / "ask", "--out", out, *options).code == 0
        assert data_of(out)["ids"] == [ids[row] for row in shown]
        for path in out.rglob("thumbs/*/*.jpg"):
            with Image.open(path) as thumb, Image.open(str(pictures[shown[int(path.stem)]].uri)) as picture:
                wanted = picture.convert("RGB").resize(thumb.size)
                assert np.abs(np.asarray(thumb, np.int16) - np.asarray(wanted, np.int16)).mean() < 12
        assert ("are not selected" in (out / "index.html").read_text()) is not everything


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node on this machine")
@pytest.mark.parametrize("one_label", [True, False])
def test_the_page_computes_uncertainty_and_distance_from_people(
    labels_folder: Build, tmp_path: Path, one_label: bool
) -> None:
    """The page's own script, without a browser: of one label a sample they are those of its distribution."""
    out = tmp_path / "review"
    write_review(labels_folder(20, job={"model": {"one_label": one_label}}), out)
    data = data_of(out) | {"truth": [[row % 29] for row in range(20)]}
    text = (out / "index.html").read_text()
    script = text[text.index("const bytes =") : text.index("D.labels.forEach")]
    head = f"const D = {json.dumps(data)}, L = D.labels.length, N = D.ids.length, localStorage = null;"
    tail = "console.log(JSON.stringify([[...uncertain], [...apart]]));"
    ran = subprocess.run(["node", "-e", head + script + tail], capture_output=True, text=True, check=True)
    uncertain, apart = np.array(json.loads(ran.stdout))
    p = np.frombuffer(base64.b64decode(data["probabilities"]), "<u2").reshape(20, 29) / STEPS
    p, said = p.clip(1e-3, 1 - 1e-3), np.arange(20) % 29
    if one_label:
        wanted, loss = -(p * np.log2(p)).sum(axis=1), -np.log2(p[np.arange(20), said])
    else:
        wanted = stats.entropy(np.stack([p, 1 - p]), base=2).mean(axis=1)
        own = np.where(np.arange(29) == said[:, None], p, 1 - p)
        loss = -np.log2(own).mean(axis=1)
    np.testing.assert_allclose(uncertain, wanted, rtol=1e-3)
    np.testing.assert_allclose(apart, loss, rtol=1e-5)


def test_a_script_in_an_id_stays_text(labels_folder: Build, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels = labels_folder(4)
    part = next((labels / "data").glob("*.parquet"))
    table = pq.read_table(part)
    ids = ["</script><script>alert(1)</script>", *table["sample_id"].to_pylist()[1:]]
    pq.write_table(table.set_column(0, table.schema.field(0), pa.array(ids)), part)
    write_review(labels, tmp_path / "review")
    assert "</script>" not in (tmp_path / "review" / "data.js").read_text()
    assert data_of(tmp_path / "review")["ids"][0] == ids[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with api.sync_playwright() as driver:
        own = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield own
        own.close()


def opened(browser: Any, folder: Path, width: int = 1280) -> tuple[Any, list[str]]:
    page, errors = browser.new_page(viewport={"width": width, "height": 800}), []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((folder / "index.html").as_uri())
    page.wait_for_selector(".cell")
    return page, errors


def count_of(page: Any) -> int:
    return int(page.inner_text("#count").partition(" ")[0].replace(",", ""))


@pytest.mark.parametrize("width", [1280, 390])
def test_filters_orders_and_marks_in_a_browser(
    browser: Any, labels_folder: Build, tmp_path: Path, runner: Callable[..., Any], width: int
) -> None:
    labels, out = labels_folder(60), tmp_path / "review"
    write_review(labels, out)
    own = load_labels(labels)
    ids, _ = own.pictures()
    page, errors = opened(browser, out, width)
    assert count_of(page) == 60 and page.evaluate("document.documentElement.scrollWidth") <= width
    sad = SOCRATIS_29.index("sad")
    page.select_option("#emotion", label="sad")
    page.select_option("#view", "chosen")
    assert count_of(page) == own.mask[:, sad].sum()
    page.select_option("#view", "all")
    page.select_option("#order", "high")
    packed = np.round(own.probabilities[:, sad] * STEPS)
    best = ids[int(np.flatnonzero(packed == packed.max())[0])]
    assert page.get_attribute(".cell >> nth=0", "title") == best
    page.fill("#least", "50")
    assert count_of(page) == (packed >= 500).sum()
    page.fill("#least", "0")
    page.select_option("#order", "file")
    page.click(".cell >> nth=0")
    page.click("#keep")  # and the next one opens
    assert page.inner_text("#name") == ids[1]
    for box in page.query_selector_all("#emotions input:checked"):
        box.uncheck()
    page.check("#emotions .emotion:has-text('proud') input")
    page.click("#correct")
    page.click("#close")
    assert "2 marked" in page.inner_text("#count")
    page.reload()  # marks stay
    page.wait_for_selector(".cell.correct")
    with page.expect_download() as download:
        page.click("#save")
    path = tmp_path / "corrections.csv"
    download.value.save_as(path)
    assert not errors
    page.close()

    rows = [{"sample_id": name, "group_id": name, "source": "t", "captions": ["c"]} for name in ids]
    write_samples(tmp_path / "s.parquet", table_from_rows(rows))
    done = runner(
        "data", "prepare", "corrections", path, tmp_path / "s.parquet", out / "vocabulary.json",
        "--out", tmp_path / "c.parquet",
    )  # fmt: skip
    assert done.code == 0 and re.search(r"rows +2 \(1 kept, 1 corrected\)", done.out), done.err
    table = read_samples(tmp_path / "c.parquet")
    assert table["sample_id"].to_pylist() == ids[:2] and vocabulary_of(table) == SOCRATIS_29
    assert table["labels"].to_pylist() == [SOCRATIS_29.decode(np.flatnonzero(own.mask[0]).tolist()), ["proud"]]


def people(labels: Path, path: Path, seed: int = 0) -> np.ndarray:
    """Writes a sample table of what people say of these rows, the last one unlabelled; returns bool (n, L)."""
    own = load_labels(labels)
    ids, _ = own.pictures()
    said = np.random.default_rng(seed).random(own.mask.shape) < 0.2
    rows: list[dict[str, Any]] = [
        {"sample_id": name, "group_id": name, "source": "t", "captions": ["c"],
         "labels": SOCRATIS_29.decode(np.flatnonzero(row).tolist())}
        for name, row in zip(ids, said, strict=True)
    ]  # fmt: skip
    rows[-1]["labels"] = None
    write_samples(path, table_from_rows(rows, SOCRATIS_29))
    return said


@pytest.mark.parametrize("width", [1280, 390])
def test_labels_are_compared_with_people_and_links_lead_to_a_view(
    browser: Any, labels_folder: Build, tmp_path: Path, width: int
) -> None:
    labels, out = labels_folder(60), tmp_path / "review"
    said = people(labels, tmp_path / "people.parquet")
    write_review(labels, out, truth=tmp_path / "people.parquet")
    own = load_labels(labels)
    ids, _ = own.pictures()
    assert data_of(out)["truth"][:-1] == [np.flatnonzero(row).tolist() for row in said[:-1]]
    assert data_of(out)["truth"][-1] is None
    page, errors = opened(browser, out, width)
    sad, known = SOCRATIS_29.index("sad"), np.arange(60) < 59
    link = ReviewLink(str(tmp_path / "page.html"), str(out))
    for view, mask in (
        ("said", said[:, sad]),
        ("missed", said[:, sad] & ~own.mask[:, sad]),
        ("wrong", ~said[:, sad] & own.mask[:, sad]),
    ):
        assert link(view, "sad") == f"review/index.html#view={view}&emotion=sad&order=file"
        page.goto((tmp_path / link(view, "sad").partition("#")[0]).as_uri() + "#" + link(view, "sad").partition("#")[2])
        assert count_of(page) == (mask & known).sum()
    page.select_option("#view", "all")
    page.select_option("#order", "disagreement")
    p = np.round(own.probabilities * STEPS).clip(1, STEPS - 1) / STEPS
    apart = -np.where(said, np.log(p), np.log(1 - p)).mean(axis=1)
    apart[~known] = -1
    assert page.get_attribute(".cell >> nth=0", "title") == ids[int(apart.argmax())]
    page.click(".cell >> nth=0")
    told = page.evaluate(
        "[...document.querySelectorAll('.emotion')].filter((own) => own.textContent.includes('●')).length"
    )
    assert told == said[int(apart.argmax())].sum() and not errors
    page.close()


def test_people_of_another_vocabulary_or_without_labels_are_refused(labels_folder: Build, tmp_path: Path) -> None:
    labels = labels_folder(4)
    rows = [{"sample_id": "a", "group_id": "a", "source": "t", "captions": ["c"]}]
    write_samples(tmp_path / "none.parquet", table_from_rows(rows))
    with pytest.raises(InputError, match=r"none\.parquet: has no labels to compare with"):
        write_review(labels, tmp_path / "review", truth=tmp_path / "none.parquet")
    write_samples(tmp_path / "other.parquet", table_from_rows([{**rows[0], "labels": ["positive"]}], VALENCE_3))
    with pytest.raises(VocabularyMismatch):
        write_review(labels, tmp_path / "review", truth=tmp_path / "other.parquet")


@pytest.mark.slow
def test_ten_thousand_rows_scroll_and_filter(browser: Any, labels_folder: Build, tmp_path: Path) -> None:
    labels, out = labels_folder(10_000), tmp_path / "review"
    write_review(labels, out)
    began = time.perf_counter()
    page, errors = opened(browser, out)
    first = time.perf_counter() - began
    assert count_of(page) == 10_000
    drawn = page.evaluate("document.querySelectorAll('.cell').length")
    assert drawn < 100, "only what is seen stands in the page"
    began = time.perf_counter()
    page.select_option("#order", "uncertain")
    filtered = time.perf_counter() - began
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    page.wait_for_timeout(200)
    assert 0 < page.evaluate("document.querySelectorAll('.cell').length") < 100 and not errors
    print(f"10,000 rows: first picture after {first:.2f} s, sorted in {filtered:.2f} s")
    assert first < 10 and filtered < 2, "a page that nobody would wait for"
    page.close()


MARKS = 'sample_id,verdict,labels\na,keep,"[""positive""]"\nb,correct,[]\n'


@pytest.mark.parametrize(
    "text, told",
    [
        (MARKS.replace("keep", "good"), r"line 2: verdict is 'good', not keep or correct"),
        (MARKS.replace("positive", "glad"), r"line 2: the label 'glad' is not in the vocabulary"),
        (MARKS.replace("[]", "joy"), r"line 3: labels are not a JSON list"),
        (MARKS.replace("[]", "{}"), r"line 3: labels are not a list of texts"),
        (MARKS.replace("b,", "a,"), r"line 3: 'a' is marked twice"),
        (MARKS.replace("b,", "z,"), r"marks 1 samples that .* lacks, e\.g\. 'z'"),
        ("sample_id,verdict,labels\n", "has no marks"),
    ],
)
def test_mistakes_in_marks_are_named(tmp_path: Path, runner: Callable[..., Any], text: str, told: str) -> None:
    (tmp_path / "c.csv").write_text(text)
    rows = [{"sample_id": name, "group_id": name, "source": "t", "captions": ["c"]} for name in "abc"]
    write_samples(tmp_path / "s.parquet", table_from_rows(rows))
    done = runner(
        "data", "prepare", "corrections", tmp_path / "c.csv", tmp_path / "s.parquet", VALENCE_3.name,
        "--out", tmp_path / "o.parquet",
    )  # fmt: skip
    assert done.code == 2 and re.search(told, done.err), done.err
