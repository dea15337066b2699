"""The label audit: joins by hand, figures beside scikit-learn, planted errors that confident learning has to find."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn import metrics as sk

from raymotion import storage
from raymotion.data.samples import table_from_rows, write_samples
from raymotion.errors import InputError, VocabularyMismatch
from raymotion.evaluation.agreement import compare
from raymotion.evaluation.confident import find_issues
from raymotion.evaluation.matching import image_key, match
from raymotion.label_mapping import choose_mapping, find_mapping, read_mapping
from raymotion.learning.selection import top_per_image
from raymotion.models.outputs.single_label import SingleLabel
from raymotion.report.audit import AuditSettings, audit_against_truth, audit_choices, audit_samples
from raymotion.report.audit_page import lines, verdict
from raymotion.vocabulary import EMOTIC_26, MIKELS_8, SOCRATIS_29, Vocabulary

SHIPPED = "socratis-29-to-emotic-26"
QUICK = {"bootstrap": 60, "examples": 4}


def settings(**values: Any) -> AuditSettings:
    return AuditSettings(**{**QUICK, **values})


def samples(rows: list[dict[str, Any]], vocabulary: Vocabulary = EMOTIC_26) -> pa.Table:
    return table_from_rows(
        [{"sample_id": f"s:{i}", "group_id": f"g:{i}", "source": "x", **row} for i, row in enumerate(rows)], vocabulary
    )


def write_labels(
    folder: Path, probabilities: np.ndarray, vocabulary: Vocabulary, *, mask: np.ndarray | None = None,
    ids: list[str] | None = None, uris: list[str | None] | None = None, prior: np.ndarray | None = None,
    model: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    """A folder as the labelling job writes it, in two parts; the last image is not selected."""
    n = len(probabilities)
    chosen = top_per_image(probabilities, 4) if mask is None else mask
    table = pa.table(
        {
            "sample_id": pa.array(ids or [f"s:{i}" for i in range(n)], pa.string()),
            "image_uri": pa.array(uris or [None] * n, pa.string()),
            "image_bytes": pa.nulls(n, pa.int64()),
            "image_digest": pa.nulls(n, pa.string()),
            "captions": pa.array([[f"caption {i}"] for i in range(n)], pa.list_(pa.string())),
            "probabilities": pa.FixedSizeListArray.from_arrays(
                pa.array(probabilities.astype(np.float32).reshape(-1)), len(vocabulary)
            ),
            "labels": pa.array([vocabulary.decode(np.flatnonzero(r)) for r in chosen], pa.list_(pa.string())),
            "selected": pa.array([i < n - 1 for i in range(n)]),
        }
    ).replace_schema_metadata(vocabulary.to_metadata())
    storage.write_table(folder / "data/part-00000.parquet", table.slice(0, n // 2))
    storage.write_table(folder / "data/part-00001.parquet", table.slice(n // 2))
    model = {
        "fingerprint": "f" * 16, "reads": ["captions"], "prior": None if prior is None else prior.tolist(),
        **(model or {}),
    }  # fmt: skip
    storage.write_json(
        folder / "_job.json",
        {"job": "labels", "status": "complete", "vocabulary": vocabulary.to_dict(), "model": model,
         "counts": {"good": n}, "digest": "d", "notices": []},
    )  # fmt: skip
    return folder


class TestMapping:
    def test_the_shipped_one_is_whole_and_says_what_it_leaves_out(self) -> None:
        mapping = read_mapping(find_mapping(SHIPPED), SOCRATIS_29, EMOTIC_26)
        said = {c: [SOCRATIS_29.labels[i] for i in own] for c, own in zip(mapping.categories, mapping.sources)}
        assert said["Disquietment"] == ["concerned", "upset", "worried"] and said["Happiness"] == ["happy", "joy"]
        assert set(mapping.unmapped) == {"good", "inspired", "neutral", "nostalgic"}
        assert len(mapping.categories) == 17 and len(mapping.unsaid) == 9 and mapping.note
        assert Path(find_mapping(f"recipes/mappings/{SHIPPED}.yaml")).samefile(find_mapping(SHIPPED))

    def test_several_words_give_the_highest_probability(self) -> None:
        mapping = read_mapping(find_mapping(SHIPPED), SOCRATIS_29, EMOTIC_26)
        p = np.zeros((1, 29))
        for word, value in {"happy": 0.3, "joy": 0.7, "neutral": 0.9, "scared": 0.2}.items():
            p[0, SOCRATIS_29.index(word)] = value
        got = dict(zip(mapping.categories, mapping.probabilities(p)[0].tolist()))
        assert got["Happiness"] == 0.7 and got["Fear"] == 0.2 and sum(got.values()) == pytest.approx(0.9)
        assert mapping.chosen(p > 0.6)[0].sum() == 1

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda m: m["map"].pop("happy"), "does not list happy.*null says"),
            (lambda m: m["map"].update(glad=["Fear"]), "maps glad, which socratis-29 does not have"),
            (lambda m: m["map"].update(happy=["Bliss"]), "'Bliss', which emotic-26 does not have"),
            (lambda m: m["map"].update(happy="Happiness"), "not to a list of labels or null"),
            (lambda m: m["map"].update(happy=["Fear", "Fear"]), "one label twice"),
            (lambda m: m.update(to="mikels-8"), "maps to 'mikels-8', the vocabulary of the human labels is emotic-26"),
            (lambda m: m.update({"from": "x"}), "maps from 'x'"),
            (lambda m: m.update(maps={}), "unknown entry 'maps'"),
            (lambda m: m.pop("map"), "has no `map:`"),
            (lambda m: m.update(map=dict.fromkeys(SOCRATIS_29.labels)), "maps no label to anything"),
        ],
    )
    def test_mistakes_are_named(self, tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
        import yaml

        value = yaml.safe_load(Path(find_mapping(SHIPPED)).read_text())
        change(value)
        (tmp_path / "m.yaml").write_text(yaml.safe_dump(value))
        with pytest.raises(InputError, match=message):
            read_mapping(tmp_path / "m.yaml", SOCRATIS_29, EMOTIC_26)

    def test_without_one_the_vocabularies_are_the_same(self) -> None:
        assert choose_mapping(None, MIKELS_8, MIKELS_8, here="a", there="b").categories == MIKELS_8.labels
        with pytest.raises(VocabularyMismatch, match=rf"a uses .* b uses .*--mapping FILE.*brings {SHIPPED}"):
            choose_mapping(None, SOCRATIS_29, EMOTIC_26, here="a", there="b")
        # Where raymotion is installed is not recorded.
        assert choose_mapping(SHIPPED, SOCRATIS_29, EMOTIC_26, here="a", there="b").path == SHIPPED
        with pytest.raises(InputError, match=rf"no such mapping.*{SHIPPED}"):
            find_mapping("socratis-to-mikels")


class TestMatch:
    TRUTH = [
        {"image_uri": "mscoco/COCO_val2014_000000000139.jpg", "labels": ["Happiness", "Peace"], "group_id": "g1"},
        {"image_uri": "mscoco/COCO_val2014_000000000139.jpg", "labels": ["Happiness"], "group_id": "g1"},
        {"image_uri": "mscoco/COCO_train2014_000000000285.jpg", "labels": [], "group_id": "g2"},
        {"image_uri": "framesdb/frame_1.jpg", "labels": ["Fear"], "group_id": "g3"},
        {"image_uri": "mscoco/COCO_val2014_000000000632.jpg", "labels": None, "group_id": "g4"},
        {"image_uri": None, "labels": ["Fear"], "group_id": "g5"},
        {"image_uri": "a/1.jpg", "labels": ["Fear"], "group_id": "g6"},
        {"image_uri": "b/1.jpg", "labels": ["Fear"], "group_id": "g7"},
    ]
    IDS = ["coco:000000000285", "coco:000000000139", "coco:000000000632", "folder:1", "folder:x", "folder:y"]
    URIS = [None, "s3://b/val2017/000000000139.jpg", "c/000000000632.jpg", "c/1.jpg", "c/twice.png", "d/twice.jpg"]

    def test_by_image_name_with_several_persons_an_image(self) -> None:
        found = match(self.IDS, self.URIS, samples(self.TRUTH))
        assert found.key == "image-name" and found.rows.tolist() == [0, 1] and found.persons.tolist() == [1, 2]
        happy, peace = EMOTIC_26.index("Happiness"), EMOTIC_26.index("Peace")
        assert found.shares[1, [happy, peace]].tolist() == [1.0, 0.5] and found.shares[0].sum() == 0
        assert found.targets("union")[1].sum() == 2 and found.targets("share")[1].sum() == 2
        assert found.counts == {
            "labelled": 6, "truth": 8, "matched": 2, "truth_matched": 3, "labelled_without_truth": 2, "ambiguous": 2,
            "truth_without_labels": 1, "truth_without_name": 1, "truth_without_image": 1, "ambiguous_truth": 2,
        }  # fmt: skip
        assert found.explain()[0].startswith("2 of 6 labelled images were matched by the image's file name with 3 of 8")
        assert len(found.explain()) == 7

    def test_a_share_below_half_is_no_positive(self) -> None:
        rows = [{"image_uri": "x.jpg", "group_id": "g", "labels": ["Fear"] if i == 0 else []} for i in range(3)]
        found = match(["a"], ["x.jpg"], samples(rows))
        fear = EMOTIC_26.index("Fear")
        assert found.shares[0, fear] == pytest.approx(1 / 3)
        assert found.targets("union")[0, fear] == 1 and found.targets("share")[0, fear] == 0

    def test_by_sample_id_where_there_is_one(self) -> None:
        truth = samples([{"labels": ["Fear"]}, {"labels": ["Anger"]}])
        found = match(["s:1", "s:9"], [None, None], truth)
        assert found.key == "sample" and found.rows.tolist() == [0] and found.truth_rows == [[1]]
        with pytest.raises(InputError, match=r"none of the 2 .*image name.*other"):
            match(["s:1", "s:9"], [None, None], truth, on="image-name")
        with pytest.raises(InputError, match="no labels to compare with"):
            match(["s:1"], [None], samples([{"labels": None}]))

    @given(st.integers(0, 10**12 - 1), st.sampled_from(["", "COCO_val2014_", "COCO_train2014_"]))
    def test_coco_numbers_in_every_form(self, number: int, prefix: str) -> None:
        key = f"coco:{number:012d}"
        forms = [(f"a/{prefix}{number:012d}.jpg", "emotic:val:3"), (None, key), (f"http://h/{number:012d}.JPG", "x")]
        for uri, sample in forms:
            assert image_key(uri, sample) == key
        assert image_key(f"frame_{number}.jpg", "y") == f"frame_{number}" and image_key(None, "folder:1") is None


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, np.ndarray, np.ndarray, Path]:
    """300 images whose pseudo-labels know EMOTIC's labels a little, in another order, half with a picture."""
    base = tmp_path_factory.mktemp("audit")
    rng = np.random.default_rng(0)
    mapping = read_mapping(find_mapping(SHIPPED), SOCRATIS_29, EMOTIC_26)
    n = 300
    truth = rng.random((n, 26)) < rng.uniform(0.05, 0.4, 26)
    logits = rng.normal(-1.5, 1, (n, 29))
    for category, own in zip(mapping.categories, mapping.sources, strict=True):
        for word in own:
            logits[:, word] += 1.0 * truth[:, EMOTIC_26.index(category)]
    probabilities = (1 / (1 + np.exp(-logits))).astype(np.float32)
    for i in range(3):
        pixels = rng.integers(0, 255, (8, 12, 3), np.uint8)
        Image.fromarray(pixels).resize((320, 240)).save(base / f"{i:012d}.jpg")
    ids = [f"coco:{i:012d}" for i in range(n)]
    uris: list[str | None] = [str(base / f"{i:012d}.jpg") for i in range(n)]
    prior = probabilities.mean(axis=0)
    labels = write_labels(base / "labels", probabilities, SOCRATIS_29, ids=ids, uris=uris, prior=prior)
    order = rng.permutation(n)
    rows = [
        {"sample_id": f"emotic:{i}", "group_id": f"e:{i}", "image_uri": f"mscoco/COCO_val2014_{i:012d}.jpg",
         "labels": EMOTIC_26.decode(np.flatnonzero(truth[i]).tolist())}
        for i in order.tolist()
    ]  # fmt: skip
    write_samples(base / "emotic.parquet", samples(rows))
    done = audit_against_truth(labels, base / "emotic.parquet", base / "out", settings(mapping=SHIPPED))
    return done, truth, probabilities, base


def test_rows_that_were_trained_on_are_told_in_the_first_line(compared: Any, tmp_path: Path) -> None:
    done, *_, base = compared
    assert "trained on" not in verdict(done.record).text
    table = storage.read_table(base / "emotic.parquet")
    rows = [{**row, "split": "train" if i < 9 else "test"} for i, row in enumerate(table.to_pylist())]
    write_samples(tmp_path / "s.parquet", table_from_rows(rows, EMOTIC_26))
    labels = Path(done.record["labels"]["path"])
    again = audit_against_truth(labels, tmp_path / "s.parquet", tmp_path / "out", settings(mapping=SHIPPED))
    learned = again.record["match"]["trained_on"]
    assert 0 < learned <= 9 and again.record["notes"][0].startswith(f"{learned} of the")
    first = verdict(again.record)
    if verdict(done.record).state == "good":
        assert first.state == "unsure" and f"{learned} of the" in first.text


def test_figures_are_scikit_learns(compared: Any) -> None:
    done, truth, probabilities, base = compared
    mapping = read_mapping(find_mapping(SHIPPED), SOCRATIS_29, EMOTIC_26)
    mask = top_per_image(probabilities, 4)
    rows = {row["label"]: row for row in csv.DictReader((base / "out" / "per_emotion.csv").open())}
    assert list(rows) == list(mapping.categories)
    pooled = []
    for category, own in zip(mapping.categories, mapping.sources, strict=True):
        y = truth[:, EMOTIC_26.index(category)]
        p, given = probabilities[:, own].max(axis=1), mask[:, own].any(axis=1)
        row = rows[category]
        assert float(row["ap"]) == pytest.approx(sk.average_precision_score(y, p))
        assert float(row["auc"]) == pytest.approx(sk.roc_auc_score(y, p))
        assert float(row["auc_low"]) < float(row["auc"]) < float(row["auc_high"])
        assert float(row["prevalence"]) == pytest.approx(y.mean()) and int(row["positives"]) == y.sum()
        y, given = y[:-1], given[:-1]  # the last image is not selected
        assert float(row["kappa"]) == pytest.approx(sk.cohen_kappa_score(y, given))
        assert float(row["precision"]) == pytest.approx(sk.precision_score(y, given))
        assert float(row["recall"]) == pytest.approx(sk.recall_score(y, given))
        pooled.append((y, given))
    y, given = (np.concatenate(part) for part in zip(*pooled, strict=True))
    choice = done.record["results"]["choice"]
    assert choice["precision"] == pytest.approx(sk.precision_score(y, given))
    assert choice["f1"] == pytest.approx(sk.f1_score(y, given))
    shuffled = [np.mean(a) * np.mean(b) * len(a) for a, b in pooled]
    assert choice["precision_by_chance"] == pytest.approx(sum(shuffled) / given.sum())
    assert choice["macro_kappa_low"] > 0
    assert all(row["verdict"] == "better" for row in rows.values())
    assert not any("class rates" in note for note in done.record["notes"]), "the job records its model's"


def test_disagreements_are_the_pairs_that_differ(compared: Any) -> None:
    done, truth, probabilities, base = compared
    mapping = read_mapping(find_mapping(SHIPPED), SOCRATIS_29, EMOTIC_26)
    table = storage.read_table(base / "out" / "disagreements.parquet").to_pylist()
    mask = mapping.chosen(top_per_image(probabilities, 4))[:-1]
    real = truth[:-1][:, mapping.positions]
    expected = {
        (f"coco:{i:012d}", mapping.categories[j], "miss" if real[i, j] else "false alarm")
        for i, j in np.argwhere(mask != real).tolist()
    }
    assert {(row["sample_id"], row["emotion"], row["kind"]) for row in table} == expected and len(table) == len(
        expected
    )
    assert [row["contradiction"] for row in table] == sorted((row["contradiction"] for row in table), reverse=True)
    first = table[0]
    p = mapping.probabilities(probabilities)[:, mapping.categories.index(first["emotion"])]
    above = (p > first["probability"]).mean() if first["kind"] == "miss" else (p < first["probability"]).mean()
    assert first["contradiction"] == pytest.approx(above, abs=1e-6)
    assert done.record["results"]["disagreements"] == len(table)


def test_the_page_is_self_contained_and_says_what_was_compared(compared: Any) -> None:
    done, _, _, base = compared
    page = (base / "out" / "audit.html").read_text()
    assert not any(text in page for text in ("http://", "https://", "<script", 'src="/'))
    assert page.count('<figure class="card">') == 4 and "data:image/png;base64," in page
    assert "300 of 300 labelled images were matched by the image&#39;s file name" in page
    assert "perfect agreement" in page and "No label says Affection" in page
    record = json.loads((base / "out" / "audit.json").read_text())
    assert record == done.record and record["match"]["matched"] == 300 and record["mode"] == "human-labels"
    again = audit_against_truth(
        base / "labels", base / "emotic.parquet", base / "again", settings(mapping=SHIPPED)
    )  # fmt: skip
    for name in ("per_emotion.csv", "disagreements.parquet"):
        assert (base / "again" / name).read_bytes() == (base / "out" / name).read_bytes()
    assert again.record == record


def planted(
    rng: np.random.Generator, n: int = 600, skill: float = 2.5, flip: float = 0.05
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Given labels with flips, the flips, and calibrated probabilities of the true ones; the last of 8 is unknown."""
    rates = np.array([0.4, 0.3, 0.3, 0.2, 0.5, 0.2, 0.3, 0.3])
    true = rng.random((n, 8)) < rates
    # Two normal distributions 2 x skill apart have this posterior: the probabilities are calibrated.
    evidence = rng.normal(np.where(true, skill, -skill) / 2, 1.0)
    evidence[:, 7] = rng.normal(0, 0.2, n)
    logits = np.log(rates / (1 - rates)) + skill * evidence
    flips = rng.random((n, 8)) < flip
    return true ^ flips, flips, 1 / (1 + np.exp(-logits))


def test_confident_learning_finds_planted_errors_far_beyond_chance() -> None:
    from cleanlab.multilabel_classification.filter import find_label_issues

    labels, flips, p = planted(np.random.default_rng(1))
    found = find_issues(labels, p, MIKELS_8.labels, bootstrap=200)
    assert [emotion.judged for emotion in found.emotions] == [True] * 7 + [False]
    assert (
        found.emotions[7].reason == "the predictions do not rank it better than chance" and not found.flags[:, 7].any()
    )
    known, flags = flips[:, :7], found.flags[:, :7]
    recall, precision = (known & flags).sum() / known.sum(), (known & flags).sum() / flags.sum()
    assert recall > 0.5 and precision > 0.5, "chance would find 5 %, and be right in 5 %"
    assert sk.roc_auc_score(known.ravel(), 1 - found.scores[:, :7].ravel()) > 0.9
    by_luck = sum(emotion.by_luck or 0 for emotion in found.emotions)
    assert flags.sum() > 2 * by_luck
    right, _, p_right = planted(np.random.default_rng(2), flip=0.0)
    clean = find_issues(right, p_right, MIKELS_8.labels, bootstrap=50)
    expected = sum(emotion.by_luck or 0 for emotion in clean.emotions)
    assert clean.flags.sum() == pytest.approx(expected, rel=0.3), "where no label is wrong, luck explains the flags"
    # One emotion against the rest is what cleanlab's own multi-label function does.
    theirs = find_label_issues([np.flatnonzero(row).tolist() for row in labels[:, :7]], p[:, :7], n_jobs=1)
    np.testing.assert_array_equal(flags.any(axis=1), theirs)
    assert found.quality[flips[:, :7].any(axis=1)].mean() < found.quality[~flips[:, :7].any(axis=1)].mean() - 0.1


def test_what_can_not_be_judged_is_not(tmp_path: Path) -> None:
    labels, _, p = planted(np.random.default_rng(2), n=40)
    labels[:, 0], labels[:, 1] = True, False
    labels[:3, 1] = True
    found = find_issues(labels, p, MIKELS_8.labels, bootstrap=50, need_skill=False)
    assert [e.reason for e in found.emotions[:2]] == [
        "fewer than 10 images do without it",
        "fewer than 10 images carry it",
    ]
    with pytest.raises(InputError, match="cannot be audited"):
        find_issues(labels[:0], p[:0], MIKELS_8.labels)


def test_human_labels_against_predictions(tmp_path: Path) -> None:
    labels, flips, p = planted(np.random.default_rng(3), n=300)
    rows = [
        {"labels": MIKELS_8.decode(np.flatnonzero(row).tolist()), "split": "train" if i < 7 else "test"}
        for i, row in enumerate(labels)
    ]
    write_samples(tmp_path / "s.parquet", samples(rows, MIKELS_8))
    write_labels(tmp_path / "p", p, MIKELS_8)
    done = audit_samples(tmp_path / "s.parquet", tmp_path / "p", tmp_path / "out", settings())
    assert any("7 of these samples are of the split train" in note for note in done.record["notes"])
    assert "not trained on these labels" in done.record["notes"][0]
    table = storage.read_table(tmp_path / "out" / "disagreements.parquet").to_pylist()
    right = [flips[int(row["sample_id"][2:]), MIKELS_8.index(row["emotion"])] for row in table]
    assert len(table) == done.record["results"]["labels_flagged"] > 20 and np.mean(right) > 0.5
    for row in table:
        assert row["kind"] == ("doubtful" if row["emotion"] in row["given"] else "missing")
    linked = settings(review=str(tmp_path / "review"))
    again = audit_samples(tmp_path / "s.parquet", tmp_path / "p", tmp_path / "out", linked)
    assert again.record == done.record, "where a page goes is no figure"
    page = (tmp_path / "out" / "audit.html").read_text()
    assert '<a href="../review/index.html#view=said&amp;emotion=awe&amp;order=disagreement">awe</a>' in page
    assert '"truth": null' not in (tmp_path / "review" / "data.js").read_text()
    write_labels(tmp_path / "other", np.full((3, 26), 0.5), EMOTIC_26)
    with pytest.raises(VocabularyMismatch):
        audit_samples(tmp_path / "s.parquet", tmp_path / "other", tmp_path / "out2", settings())


def planted_classes(
    rng: np.random.Generator, n: int = 400, skill: float = 3.0, flip: float = 0.08
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One of 8 labels a sample, which of them are flipped, and the probabilities of the true ones, of a softmax.

    The last label is rarer than what can be judged.
    """
    rates = np.array([0.25, 0.2, 0.15, 0.1, 0.1, 0.1, 0.09, 0.01])
    true = rng.choice(8, n, p=rates)
    # Independent normal distributions whose mean is `skill` for the true label have this posterior.
    logits = np.log(rates) + skill * (rng.normal(size=(n, 8)) + skill * np.eye(8)[true])
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    given = np.where(rng.random(n) < flip, (true + rng.integers(1, 7, n)) % 7, true)
    return given, given != true, p / p.sum(axis=1, keepdims=True)


def test_one_label_a_sample_is_flagged_once_and_as_by_cleanlab() -> None:
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    given, flips, p = planted_classes(np.random.default_rng(5))
    found = find_issues(np.eye(8, dtype=bool)[given], p, MIKELS_8.labels, one_label=True, bootstrap=100)
    assert [emotion.judged for emotion in found.emotions] == [True] * 7 + [False]
    theirs = find_label_issues(given, p, n_jobs=1)
    judged = theirs & (given < 7) & (p.argmax(axis=1) < 7)
    np.testing.assert_array_equal(found.flags.any(axis=1), judged)
    assert found.flags.sum(axis=1).max() == 1 and found.flags[np.arange(400), given].sum() == judged.sum() > 20
    assert flips[judged].mean() > 0.6, "of all labels, 8 % are wrong"
    np.testing.assert_allclose(found.quality, get_label_quality_scores(given, p))
    listed = found.frame()
    assert len(listed) == judged.sum() and set(listed["kind"]) == {"doubtful"}
    for row, label, suggested in listed[["row", "label", "suggested"]].to_numpy():
        assert MIKELS_8.index(label) == given[row] and MIKELS_8.index(suggested) == p[row].argmax() != given[row]
    told = found.to_dict()
    assert told["one_label"] and told["labels_flagged"] == told["images_flagged"] == judged.sum()
    assert [e.missing for e in found.emotions] == np.bincount(p.argmax(axis=1)[judged], minlength=8).tolist()
    assert sum(e.doubtful for e in found.emotions) == sum(e.missing for e in found.emotions) == judged.sum()
    assert repr(found).startswith(f"{judged.sum()} of 400 labels (one a sample) are doubtful; ")
    # One against the rest counts what a sample has, and again what it lacks.
    rest = find_issues(np.eye(8, dtype=bool)[given], p, MIKELS_8.labels, bootstrap=100)
    assert rest.flags.sum() > 1.5 * judged.sum()


def test_where_no_label_is_wrong_luck_explains_the_flags_of_one_label_a_sample() -> None:
    given, _, p = planted_classes(np.random.default_rng(6), n=1500, skill=1.2, flip=0.0)
    clean = find_issues(np.eye(8, dtype=bool)[given], p, MIKELS_8.labels, one_label=True, bootstrap=50)
    luck = [emotion.by_luck or 0.0 for emotion in clean.emotions]
    assert sum(luck) > 50 and clean.flags.sum() == pytest.approx(sum(luck), rel=0.25)
    np.testing.assert_allclose(luck, clean.flags.sum(axis=0), rtol=0.6, atol=8)
    constant = find_issues(
        np.eye(8, dtype=bool)[np.zeros(30, int)], p[:30], MIKELS_8.labels, one_label=True, bootstrap=20
    )
    assert not constant.flags.any(), "cleanlab refuses labels of one class"


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda mask, p: mask.__setitem__((3, slice(None)), False), "row 3.*has 0 labels, and exactly one"),
        (lambda mask, p: mask.__setitem__((5, slice(0, 3)), True), "row 5.*labels, and exactly one"),
        (lambda mask, p: p.__setitem__((7, 0), p[7, 0] + 0.1), r"row 7.*sum to 1\.1; of one label a sample"),
    ],
)
def test_what_is_not_one_label_a_sample_is_refused(spoil: Callable[..., None], told: str) -> None:
    given, _, p = planted_classes(np.random.default_rng(5), n=40)
    p[7] = np.eye(8)[3]
    mask = np.eye(8, dtype=bool)[given]
    spoil(mask, p)
    with pytest.raises(InputError, match=told):
        find_issues(mask, np.clip(p, 0, 1.1), MIKELS_8.labels, one_label=True, bootstrap=20)


class TestOneLabel:
    """Audits on predictions of a model of one label a sample."""

    MODEL = {"one_label": True, "outputs": [SingleLabel(MIKELS_8).to_dict()]}

    def test_human_labels_are_doubted_once_with_what_the_predictions_say(self, tmp_path: Path) -> None:
        given, _, p = planted_classes(np.random.default_rng(7))
        names = MIKELS_8.labels
        # The votes of annotators: the label that most agree with is the one that is learned and audited.
        rows = [
            {"labels": [names[j], names[(j + 1) % 8]], "label_weights": [0.7, 0.3]} if i % 3 else {"labels": [names[j]]}
            for i, j in enumerate(given.tolist())
        ]
        write_samples(tmp_path / "s.parquet", samples(rows, MIKELS_8))
        write_labels(tmp_path / "p", p, MIKELS_8, mask=np.eye(8, dtype=bool)[p.argmax(axis=1)], model=self.MODEL)
        done = audit_samples(tmp_path / "s.parquet", tmp_path / "p", tmp_path / "out", settings())
        issues = find_issues(
            np.eye(8, dtype=bool)[given], p.astype(np.float32), names, one_label=True, bootstrap=60
        )  # fmt: skip
        table = storage.read_table(tmp_path / "out" / "disagreements.parquet").to_pylist()
        wanted = {(f"s:{i}", names[given[i]], names[p[i].argmax()]) for i in np.flatnonzero(issues.flags.any(axis=1))}
        assert {(row["sample_id"], row["emotion"], row["suggested"]) for row in table} == wanted
        assert len(table) == len(wanted) == done.record["results"]["labels_flagged"] > 20
        assert all(row["given"] == [row["emotion"]] and row["predicted"] == [row["suggested"]] for row in table)
        assert done.record["results"]["one_label"] is True
        text = lines(done.record)
        assert f"The predictions contradict {len(wanted)} of 400 labels (one a sample), for the 7 of 8" in text[0]
        assert any("suggested" in line and "missing" not in line for line in text)
        page = (tmp_path / "out" / "audit.html").read_text()
        assert "flagged once at most" in page and "; they say " in page and ">missing<" not in page

    def test_the_highest_label_never_parts_from_its_own_probability(self, tmp_path: Path) -> None:
        _, _, p = planted_classes(np.random.default_rng(8))
        mask = np.eye(8, dtype=bool)[p.argmax(axis=1)]
        write_labels(tmp_path / "p", p, MIKELS_8, mask=mask, model=self.MODEL)
        done = audit_choices(tmp_path / "p", tmp_path / "out", settings())
        assert done.record["results"]["labels_flagged"] == 0 and done.record["results"]["one_label"]
        # Thresholds choose several labels, or none.
        write_labels(tmp_path / "q", p, MIKELS_8, mask=p > 0.2, model=self.MODEL)
        assert "one_label" not in audit_choices(tmp_path / "q", tmp_path / "out2", settings()).record["results"]


def test_labels_alone_are_called_circular(tmp_path: Path) -> None:
    _, _, p = planted(np.random.default_rng(4), n=200)
    mask = p > 0.5
    mask[5, :] = ~mask[5, :]  # a selection that the probabilities contradict
    write_labels(tmp_path / "p", p, MIKELS_8, mask=mask)
    done = audit_choices(tmp_path / "p", tmp_path / "out", settings())
    assert done.record["notes"][0].startswith("The labels were chosen from these very probabilities")
    table = storage.read_table(tmp_path / "out" / "disagreements.parquet").to_pylist()
    assert {row["sample_id"] for row in table} == {"s:5"} and done.record["results"]["images"] == 199
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "finds no error of the model" in page and ">AUC<" not in page


@pytest.mark.parametrize("persons", ["union", "share"])
def test_one_image_and_no_positive_is_no_crash(tmp_path: Path, persons: str) -> None:
    write_labels(tmp_path / "p", np.full((3, 29), 0.5), SOCRATIS_29)
    write_samples(tmp_path / "s.parquet", samples([{"labels": []}]))
    done = audit_against_truth(
        tmp_path / "p", tmp_path / "s.parquet", tmp_path / "out", settings(mapping=SHIPPED, persons=persons)
    )
    emotions = done.record["results"]["emotions"]
    assert {e["ap"] for e in emotions} == {e["auc"] for e in emotions} == {None}
    assert (tmp_path / "out" / "audit.html").exists()
    write_labels(tmp_path / "q", np.full((1, 29), 0.5), SOCRATIS_29)  # nothing of it is selected
    done = audit_against_truth(tmp_path / "q", tmp_path / "s.parquet", tmp_path / "out2", settings(mapping=SHIPPED))
    assert done.record["results"]["choice"]["precision"] is None
    with pytest.raises(InputError, match="no image was selected"):
        audit_choices(tmp_path / "q", tmp_path / "out3", settings())


def test_nothing_else_is_written_into(tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "p", np.full((3, 8), 0.5), MIKELS_8)
    with pytest.raises(InputError, match=r"p: .*_job\.json.*audit"):
        audit_choices(labels, labels, settings())


class TestFirstLine:
    """The first line says nothing that its own page takes back."""

    def test_flags_that_luck_alone_makes_are_no_evidence(self) -> None:
        results = {
            "emotions": [{}] * 29, "judged": 4, "images": 211, "images_flagged": 131, "labels_flagged": 160,
            "labels_flagged_by_luck": 248.2,
        }  # fmt: skip
        record = {"mode": "label-quality", "results": results, "labels": {"notices": []}}
        text = verdict(record).text
        assert text.startswith("No evidence of wrong labels") and "about 248 contradictions by luck alone" in text
        results["labels_flagged"] = 400
        assert verdict(record).text.startswith("The predictions contradict 400 labels of 131 of 211 images")

    def test_emotions_without_images_are_not_unclear(self) -> None:
        rng = np.random.default_rng(0)
        truth = (rng.random((60, 6)) < 0.4).astype(float)
        truth[:, 3:] = 0.0
        truth[:3, 3] = 1.0
        found = compare(
            rng.random((60, 6)), rng.random((60, 6)) > 0.5, np.ones(60, bool), truth, prior=truth.mean(axis=0),
            labels=list("abcdef"), words=[[name] for name in "abcdef"], bootstrap=60,
        )  # fmt: skip
        assert [emotion.verdict == "untested" for emotion in found.emotions] == [False] * 3 + [True] * 3
        record = {"mode": "human-labels", "results": found.to_dict(), "labels": {"notices": []}}
        text = verdict(record).text
        assert text.startswith("3 of 6 emotions cannot be judged: fewer than 10 images carry them, or do not.")
        assert "of 3 emotions" in text


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("chosen", ["none", "all", "some"])
def test_labels_of_one_class_or_of_none_are_audited(tmp_path: Path, labels: int, chosen: str) -> None:
    """Found by trying: cleanlab refuses labels of one class, none on any image, and all on every image."""
    rng = np.random.default_rng(0)
    vocabulary = Vocabulary(f"v{labels}", tuple(f"e{i}" for i in range(labels)))
    p = rng.random((12, labels))
    mask = {"none": np.zeros(p.shape, bool), "all": np.ones(p.shape, bool), "some": p > 0.5}[chosen]
    folder = write_labels(tmp_path / "l", p, vocabulary, mask=mask)
    rows = [{"labels": vocabulary.decode(np.flatnonzero(row))} for row in mask]
    write_samples(tmp_path / "t.parquet", samples(rows, vocabulary))
    for number, done in enumerate((
        audit_choices(folder, tmp_path / "a", settings()),
        audit_against_truth(folder, tmp_path / "t.parquet", tmp_path / "b", settings()),
        audit_samples(tmp_path / "t.parquet", folder, tmp_path / "c", settings()),
    )):  # fmt: skip
        assert (Path(done.out) / "audit.html").exists() and verdict(done.record).text, number


def test_the_quality_of_an_image_is_cleanlabs() -> None:
    from cleanlab.multilabel_classification import get_label_quality_scores

    rng = np.random.default_rng(0)
    p = rng.random((50, 7))
    mask = rng.random((50, 7)) > 0.5
    wanted = get_label_quality_scores([np.flatnonzero(row).tolist() for row in mask], p)
    np.testing.assert_allclose(find_issues(mask, p, list("abcdefg"), bootstrap=20).quality, wanted)


class TestWhatALabelSetCanTell:
    def test_intervals_draw_whole_images_where_rows_are_persons(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(4)
        images, persons = 50, 4
        image = np.repeat(np.arange(images), persons)
        # Persons of one picture share most of their labels and probabilities.
        truth = (rng.random(images)[image] < 0.4) ^ (rng.random(len(image)) < 0.1)
        shared = rng.normal(size=images)[image] + rng.normal(0, 0.3, len(image)) + 1.0 * truth
        p = np.stack([1 / (1 + np.exp(-shared)), np.full(len(image), 0.2)], axis=1).astype(np.float32)
        own = Vocabulary("two", ("sad", "calm"))
        mask = np.stack([shared > 0.5, np.zeros(len(image), bool)], axis=1)
        labels = write_labels(tmp_path / "labels", p, own, mask=mask)
        rows = [{"group_id": f"i:{i}", "labels": ["sad"] if t else []} for i, t in zip(image, truth, strict=True)]
        write_samples(tmp_path / "s.parquet", samples(rows, own))
        done = audit_against_truth(labels, tmp_path / "s.parquet", tmp_path / "out", settings(bootstrap=1000))
        sad, calm = done.record["results"]["emotions"]
        drawn, kappas, by_row = [], [], []
        kept = np.arange(len(image)) < len(image) - 1  # the last row is not selected
        for _ in range(300):
            rows_of = np.concatenate([np.flatnonzero(image == i) for i in rng.integers(0, images, images)])
            drawn.append(sk.roc_auc_score(truth[rows_of], p[rows_of, 0]))
            chosen = rows_of[kept[rows_of]]
            kappas.append(sk.cohen_kappa_score(truth[chosen], mask[chosen, 0]))
            single = rng.integers(0, len(image), len(image))
            by_row.append(sk.roc_auc_score(truth[single], p[single, 0]))
        assert [sad["auc_low"], sad["auc_high"]] == pytest.approx(np.percentile(drawn, (2.5, 97.5)), abs=0.02)
        assert [sad["kappa_low"], sad["kappa_high"]] == pytest.approx(np.percentile(kappas, (2.5, 97.5)), abs=0.05)
        assert sad["auc_high"] - sad["auc_low"] > 1.4 * np.diff(np.percentile(by_row, (2.5, 97.5)))[0]
        assert sad["positives"] == truth.sum() and sad["negatives"] == (~truth).sum()
        assert sad["images_with"] == len(set(image[truth])) and sad["images_without"] == len(set(image[~truth]))
        assert calm["verdict"] == "untested" and (calm["images_with"], calm["images_without"]) == (0, images)
        assert any("The 200 rows are of 50 images" in note for note in done.record["notes"])

    def test_many_persons_of_few_images_are_few(self) -> None:
        truth = np.zeros((60, 1))
        truth[:27] = 1.0  # of nine images with three persons each
        groups = [str(i // 3) for i in range(60)]
        p, mask = np.linspace(1, 0, 60)[:, None], np.ones((60, 1), bool)
        words = {"prior": np.array([0.4]), "labels": ["sad"], "words": [["sad"]], "bootstrap": 50}
        assert compare(p, mask, mask[:, 0], truth, groups=groups, **words).emotions[0].verdict == "untested"  # type: ignore[arg-type]
        found = compare(p, mask, mask[:, 0], truth, **words)  # type: ignore[arg-type]
        assert found.emotions[0].verdict == "better" and found.judged == 1

    def test_the_mean_auc_is_that_of_the_judged(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        own = Vocabulary("four", ("good", "sad", "calm", "odd"))
        people = Vocabulary("people", ("Sadness", "Peace", "Rare", "Silent"))
        (tmp_path / "m.yaml").write_text(
            "from: four\nto: people\nmap: {good: null, sad: [Sadness], calm: [Peace], odd: [Rare]}\n"
        )
        truth = rng.random((80, 4)) < [0.4, 0.3, 0.0, 0.2]
        truth[:9, 2] = True
        p = rng.random((80, 4)).astype(np.float32)
        p[:9, 3] += 0.0001
        labels = write_labels(tmp_path / "labels", p, own)
        write_samples(
            tmp_path / "s.parquet",
            samples([{"labels": people.decode(np.flatnonzero(t).tolist())} for t in truth], people),
        )
        done = audit_against_truth(
            labels, tmp_path / "s.parquet", tmp_path / "out", settings(mapping=str(tmp_path / "m.yaml"))
        )
        results = done.record["results"]
        aucs = [sk.roc_auc_score(truth[:, j], p[:, j + 1]) for j in range(2)]
        assert results["judged"] == 2 and results["macro_auc"]["value"] == pytest.approx(np.mean(aucs))
        assert results["macro_auc"]["low"] < np.mean(aucs) < results["macro_auc"]["high"]
        assert results["silent"] == [{"label": "Silent", "images": int(truth[:, 3].sum())}]
        text, page = "\n".join(lines(done.record)), (tmp_path / "out" / "audit.html").read_text()
        for told in (
            "Rare (9 with it, 71 without): fewer than 10 images",
            f"No label says Silent ({int(truth[:, 3].sum())} images)",
            "Labels that mean no category of people: good.",
        ):
            assert told in text and told in page
        assert "emotions judged 2 of 3" in text and "2 of 3" in page and "too few" in page
        few = truth.copy()
        few[:, :2] = False
        write_samples(tmp_path / "few.parquet", samples([{"labels": ["Rare"] if t[2] else []} for t in few], people))
        done = audit_against_truth(
            labels, tmp_path / "few.parquet", tmp_path / "none", settings(mapping=str(tmp_path / "m.yaml"))
        )
        assert done.record["results"]["judged"] == 0 and done.record["results"]["macro_auc"]["value"] is None
        assert "No emotion is on enough images" in verdict(done.record).text
