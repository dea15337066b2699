from __future__ import annotations

import base64
import csv
import io
import itertools
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, precision_score

from raymotion import storage
from raymotion.cli.study import report
from raymotion.data.samples import table_from_rows, write_samples
from raymotion.errors import InputError
from raymotion.learning.significance import seed_error
from raymotion.published.metrics import from_text
from raymotion.published.studies import published_study
from raymotion.report.study import write_study_report
from raymotion.report.study_findings import interval, share_text, shown
from raymotion.study.record import StudyFolder, TrialRecord, targets_digest
from raymotion.vocabulary import EMOTIC_26

LABELS = EMOTIC_26.labels
PUBLISHED = published_study("emotic_study")
SEEDS = (0, 1, 2)
PERSONS = {"train": 1400, "val": 160, "test": 240}
NETS = {"swin": "s", "deit": "d", "efficientnet_b7": "e", "mobilenet_v3": "m"}
# emotic_study.md, section 11, as (context, body, face).
BACKBONES = {
    "sse": 31.35, "ssm": 30.94, "see": 30.07, "sde": 30.03, "sdm": 29.96, "dsm": 29.92, "sem": 29.84, "dse": 29.75,
    "ese": 29.66, "esm": 29.39, "dde": 27.51, "ddm": 27.24, "dem": 27.09, "dee": 26.94, "ede": 26.84, "edm": 26.30,
    "eee": 23.76, "eem": 23.33,
}  # fmt: skip
FUSIONS = {
    "weighted": 31.39, "simple": 31.35, "layer_norm": 31.28, "hierarchical": 31.00, "gated_residual": 30.66,
    "bottleneck": 30.28, "attention": 30.25, "cross_modal_transformer": 29.94, "transformation": 29.86,
    "bilinear": 28.82,
}  # fmt: skip
LOSSES = {"discrete": 31.39, "bce": 30.70, "focal": 30.54, "asymmetric": 30.21, "dice": 22.60, "mllsc": 17.48}
AUGMENTATION = {"basic": 31.73, "full": 31.66, "none": 31.39}
RESAMPLING = {"mini": 32.00}


def cells(field: str, values: dict[str, float]) -> list[dict[str, Any]]:
    return [{"config": {field: name}, "test_map": round(score / 100, 4)} for name, score in values.items()]


def backbone_cells() -> list[dict[str, Any]]:
    long = {short: name for name, short in NETS.items()}
    return [
        {
            "config": dict(
                zip(("backbones.context", "backbones.body", "backbones.face"), map(long.get, nets), strict=True)
            ),
            "test_map": round(score / 100, 4),
        }
        for nets, score in BACKBONES.items()
    ]


STAGES_OF_THE_STUDY: list[tuple[str, dict[str, list[str]], list[dict[str, Any]]]] = [
    (
        "backbones",
        {
            "backbones.context": ["swin", "efficientnet_b7", "deit"],
            "backbones.body": ["swin", "efficientnet_b7", "deit"],
            "backbones.face": ["efficientnet_b7", "mobilenet_v3"],
        },
        backbone_cells(),
    ),
    ("fusion", {"model.fusion": list(FUSIONS)}, cells("model.fusion", FUSIONS)),
    ("loss", {"loss.name": list(LOSSES)}, cells("loss.name", LOSSES)),
    ("augmentation", {"augmentation": ["none", "basic", "full"]}, cells("augmentation", AUGMENTATION)),
    ("resampling", {"resampling": ["none", "mini", "full"]}, cells("resampling", RESAMPLING)),
]


def spread(values: np.ndarray | list[float]) -> dict[str, Any]:
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": sd, "seeds": [float(v) for v in values]}


def write_trial(folder: Path, key: str, config: dict[str, Any], epochs: int, scores: list[float], rng: Any) -> None:
    at = np.arange(epochs)
    rows: list[Any] = []
    for epoch in at.tolist():
        fall = np.exp(-epoch / 4)
        rows.append(
            {
                "epoch": epoch,
                "score": [s - 0.12 * fall + 0.002 * rng.normal() for s in scores[:-1]]
                + [None if epoch > 14 and len(scores) > 1 else scores[-1] - 0.12 * fall],
                "train_loss": [0.4 + fall + 0.01 * rng.normal() for _ in scores],
                "best": max(scores),
            }
        )
    best: list[Any] = [{"epoch": max(0, epochs - 4 + i % 3), "score": score} for i, score in enumerate(scores)]
    record = TrialRecord(
        key=key, config=config, seeds=list(range(len(scores))), status="complete", epochs=rows, best=best,
    )  # fmt: skip
    place, ids = StudyFolder(folder), [f"emotic:val:{i}" for i in range(PERSONS["val"])]
    for seed in record.seeds:
        record.files |= place.write_predictions(key, "val", seed, ids, answers(VALIDATION, 1.0, seed))
    place.write_trial(record)


def answers(truth: np.ndarray, skill: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    logits = np.log(0.12 / 0.88) + skill * truth + rng.normal(size=truth.shape)
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


RNG = np.random.default_rng(5)
RATES = np.linspace(0.5, 0.05, len(LABELS))
TRUTH = {name: RNG.random((n, len(LABELS))) < RATES for name, n in {**PERSONS, "train": 4}.items()}
VALIDATION = TRUTH["val"]


def write_samples_and_targets(folder: Path) -> dict[str, np.ndarray]:
    """The sample table of the study; the targets it says, by split, for an independent check."""
    truth, rows = TRUTH, []
    for split in truth:
        for i, row in enumerate(truth[split]):
            labels = [label for label, has in zip(LABELS, row, strict=True) if has]
            rows.append(
                {"sample_id": f"emotic:{split}:{i}", "group_id": f"emotic:{split}:{i // 2}", "image_uri": "x.jpg",
                 "labels": labels, "label_weights": [1.0] * len(labels), "split": split, "source": "emotic"}
            )  # fmt: skip
    write_samples(folder / "emotic.parquet", table_from_rows(rows, EMOTIC_26))
    return truth


def best_first(trial: dict[str, Any]) -> tuple[bool, float]:
    """As a study orders the trials of its record."""
    return trial["status"] != "complete", -(trial["score"] or {"mean": 0.0})["mean"]


def keep_trials(stage: dict[str, Any], count: int) -> None:
    """Cuts a stage down to its winner and a few others."""
    winner = stage["winner"]
    named = {winner["key"], winner["leader"], winner["incumbent"]}
    rest = [own for own in stage["trials"] if own["key"] not in named]
    kept = named | {own["key"] for own in rest[: count - len(named & {own["key"] for own in stage["trials"]})]}
    stage["trials"] = [own for own in stage["trials"] if own["key"] in kept]
    winner["compared"] = [own for own in winner["compared"] if own["key"] in kept]


def write_study(folder: Path) -> Path:
    """A plausible, complete study: 40 cells, a joint search, test scores that follow from the predictions."""
    rng = np.random.default_rng(0)
    truth = write_samples_and_targets(folder.parent)
    chosen: dict[str, Any] = {}
    stages, entries, incumbent = [], [], None
    prevalence = {name: truth[name].mean(axis=0).tolist() for name in ("val", "test")}
    prevalence["train"] = (0.6 * np.array(prevalence["val"])).tolist()

    def scored(name: str, key: str, config: dict[str, Any]) -> dict[str, Any]:
        ap, macro, files = [], [], dict[str, str]()
        ids = [f"emotic:test:{i}" for i in range(PERSONS["test"])]
        for seed in SEEDS:
            p = answers(truth["test"], 1.0, seed + 10)
            files |= StudyFolder(folder).write_predictions(key, "test", seed, ids, p)
            ap.append([average_precision_score(truth["test"][:, j], p[:, j]) for j in range(len(LABELS))])
            macro.append(float(np.mean(ap[-1])))
        per_class = [
            {"label": label, "ap": float(np.mean(ap, axis=0)[j]), "interpolated": float(np.mean(ap, axis=0)[j]) + 0.01,
             "prevalence": float(truth["test"][:, j].mean()), "positives": int(truth["test"][:, j].sum())}
            for j, label in enumerate(LABELS)
        ]  # fmt: skip
        mean = float(np.mean(macro))
        return {
            "name": name, "key": key, "config": config,
            "score": {**spread(macro), "low": mean - 0.011, "high": mean + 0.012, "resamples": 1000},
            "interpolated": mean + 0.01,
            "baseline": float(truth["test"].mean()), "thresholded": {"micro_f1": 0.41, "macro_f1": 0.33},
            "per_class": per_class, "files": files,
        }  # fmt: skip

    for number, (name, grid, published) in enumerate(STAGES_OF_THE_STUDY, 1):
        trials = []
        known = {tuple(cell["config"].values()): cell["test_map"] for cell in published}
        for values in itertools.product(*grid.values()):
            config = dict(zip(grid, values, strict=True))
            level = 0.36 + 0.5 * (known.get(values, 0.31) - 0.31) + 0.004 * rng.normal()
            scores = (level + 0.002 * rng.normal(size=3)).tolist()
            key = f"{number:02d}{len(trials):014x}"
            # Each later stage holds the incumbent as one of its cells, trained before.
            reused = None
            if incumbent is not None and not trials:
                key, reused = incumbent["key"], stages[-1]["name"]
                scores = incumbent["score"]["seeds"]
            stopped = name == "loss" and values[0] in ("dice", "mllsc")
            trials.append(
                {"key": key, "config": config, "status": "stopped" if stopped else "complete",
                 "score": spread(scores), "interpolated": float(np.mean(scores)) + 0.01,
                 "epochs": 15 if stopped else 60, "parameters": 200_000 + 1000 * len(trials), "seconds": 4.2,
                 "reused_from": reused}
            )  # fmt: skip
        if name == "fusion":
            trials[-1] |= {"status": "failed", "score": None, "interpolated": None, "parameters": 0}
        trials.sort(key=best_first)
        complete = [t for t in trials if t["status"] == "complete"]
        leader = complete[0]
        compared = []
        error = seed_error([trial["score"]["seeds"] for trial in complete])
        assert error is not None
        for trial in complete[1:]:
            gap = leader["score"]["mean"] - trial["score"]["mean"]
            compared.append({"key": trial["key"], "difference": gap, "low": gap - 0.006, "high": gap + 0.006,
                             "tied": gap < max(0.006, 2 * error), "seed_error": error})  # fmt: skip
        tied = {other["key"] for other in compared if other["tied"]} | {leader["key"]}
        winner = incumbent if incumbent is not None and incumbent["key"] in tied else leader
        own = next(t for t in trials if t["key"] == winner["key"])
        chosen |= own["config"]
        stages.append(
            {"name": name, "title": name.capitalize(), "stage": number, "fixed": {}, "grid": grid,
             "trials": trials, "seconds": 40.0, "epochs": 500,
             "winner": {"key": own["key"], "leader": leader["key"], "config": dict(chosen),
                        "reason": f"{name}: the numbers say so.",
                        "incumbent": incumbent["key"] if incumbent else None, "compared": compared}}
        )  # fmt: skip
        incumbent = own
        scores = own["score"]["seeds"]
        write_trial(folder, own["key"], own["config"], 20, scores, rng)
        entries.append(scored(name, own["key"], dict(chosen)))

    assert incumbent is not None
    choices = {field: values for _, grid, _ in STAGES_OF_THE_STUDY for field, values in grid.items()}
    joint = []
    for number in range(40):
        config = {field: values[int(rng.integers(len(values)))] for field, values in choices.items()}
        scores = (0.33 + 0.03 * rng.random() + 0.002 * rng.normal(size=3)).tolist()
        stopped = number % 3 != 0
        joint.append(
            {"key": f"99{number:014x}", "config": config, "status": "stopped" if stopped else "complete",
             "score": spread(scores), "interpolated": 0.35, "epochs": 15 if stopped else 60,
             "parameters": int(10 ** rng.uniform(4.8, 6.5)), "seconds": 3.0, "reused_from": None}
        )  # fmt: skip
    joint.sort(key=best_first)
    best = joint[0]
    write_trial(folder, best["key"], best["config"], 20, best["score"]["seeds"], rng)
    entries.append(scored("joint", best["key"], best["config"]))
    gain = best["score"]["mean"] - incumbent["score"]["mean"]
    gap = {"key": incumbent["key"], "difference": gain, "low": gain - 0.006, "high": gain + 0.006, "tied": False}
    ids = {name: [f"emotic:{name}:{i}" for i in range(len(own))] for name, own in truth.items()}
    identities = {"swin": {"name": "swin_l", "weights": "random:0"}}
    job = {"status": "complete", "model": {"backbones": identities}}
    storage.write_json(folder.parent / "embeddings" / "_job.json", job)
    storage.write_json(
        folder / "study.json",
        {
            "format": 2, "status": "complete", "started_at": "2026-11-20T10:00:00+00:00", "published": "emotic_study",
            "settings": {"spaces": str(folder / "spaces"), "samples": str(folder.parent / "emotic.parquet"),
                         "embeddings": [str(folder.parent / "embeddings")], "seeds": 3},
            "identity": {"data": "0123456789abcdef", "embeddings": "fedcba9876543210", "seeds": list(SEEDS)},
            "seeds": list(SEEDS),
            "data": {"samples": "emotic.parquet",
                     "counts": {"rows": 404, "without_labels": 0, "without_split": 0, "without_embeddings": 0},
                     "splits": {name: {"samples": n, "images": n // 2} for name, n in PERSONS.items()},
                     "targets": {name: targets_digest(ids[name], truth[name]) for name in truth},
                     "labels": list(LABELS), "prevalence": prevalence},
            "versions": {"python": "3.11", "torch": "2.15"},
            "stages": stages,
            "joint": {"name": "joint", "title": "Joint search", "grid": choices, "fixed": {}, "trials": joint,
                      "winner": {"key": best["key"], "leader": best["key"], "config": best["config"],
                                 "reason": "Highest.", "incumbent": None, "compared": []},
                      "epochs": 900, "seconds": 100.0},
            "comparison": {"joint_key": best["key"], "gap": gap, "carried": gap,
                           "configurations": {"stages": 40, "joint": 40}, "epochs": {"stages": 2000, "joint": 900},
                           "reason": "Staged is enough <here>."},
            "test": {"scored_at": "2026-11-20T12:00:00+00:00", "entries": entries},
            "cost": {"trials": 80, "trained": 76, "reused": 4, "stopped": 28, "epochs": 2900,
                     "epochs_without_stopping": 4560, "seconds": 290.0},
        },
    )  # fmt: skip
    return folder


class Page(HTMLParser):
    """The page's text, its pictures, and the tables by the id of their section: rows of texts, headings first."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.section, self.words = "", list[str]()
        self.tables: dict[str, list[list[list[str]]]] = {}
        self.pictures: list[str] = []
        self.open: list[str] = []
        self._cell: list[str] | None = None
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "img":
            self.pictures.append(values["src"] or "")
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "section":
            self.section = values.get("id") or ""
        elif tag == "table":
            self.tables.setdefault(self.section, []).append([])
        elif tag == "tr":
            self.tables[self.section][-1].append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("td", "th") and self._cell is not None:
            self.tables[self.section][-1][-1].append("".join(self._cell))
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            return
        self.words.append(data)
        if self._cell is not None:
            self._cell.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study") / "study")


@pytest.fixture(scope="module")
def written(study: Path) -> Path:
    out = study.parent / "report"
    write_study_report(study, out)
    return out


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page((written / "index.html").read_text())


@pytest.fixture
def changed(study: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], Any]], tuple[Page, Any]]:
    """Reports the study after a change to its record; without predictions, and with two small stages, to be quick."""

    def build(change: Callable[[dict[str, Any]], Any]) -> tuple[Page, Any]:
        folder = tmp_path / "study"
        record = storage.read_json(study / "study.json")
        record["stages"] = [record["stages"][0], record["stages"][3]]
        keep_trials(record["stages"][0], 3)
        keep_trials(record["joint"], 4)
        record["test"]["entries"] = [record["test"]["entries"][i] for i in (0, 3)]
        change(record)
        storage.write_json(folder / "study.json", record)
        summary = write_study_report(folder, tmp_path / "report")
        return Page((tmp_path / "report/index.html").read_text()), summary

    return build


def column(table: list[list[str]], name: str) -> list[str]:
    place = table[0].index(name)
    return [row[place] for row in table[1:]]


def plus_minus(entry: dict[str, Any]) -> str:
    return f"{entry['mean']:.4f} ± {entry['sd']:.4f}"


def published_of(stage: dict[str, Any]) -> dict[tuple[str, ...], float]:
    known = PUBLISHED.stage(stage["name"])
    return {tuple(cell.values()): score for cell, score in known.cells} if known else {}


def test_the_overview_says_what_study_json_says_beside_the_published_stages(study, page):
    record = storage.read_json(study / "study.json")
    (table,) = page.tables["overview"]
    winners = [next(t for t in s["trials"] if t["key"] == s["winner"]["key"]) for s in record["stages"]]
    assert column(table, "val mAP ± sd") == [plus_minus(trial["score"]) for trial in winners]
    assert column(table, "carried on") == [" / ".join(trial["config"].values()) for trial in winners]
    assert column(table, "published test mAP") == ["0.3135", "0.3139", "0.3139", "0.3173", "0.3200"]
    tests = [entry["score"] for entry in record["test"]["entries"][:5]]
    wanted = [f"{plus_minus(m)} ({m['low']:.4f} to {m['high']:.4f})" for m in tests]
    assert column(table, "test mAP ± sd (95 % interval)") == wanted
    gains = column(table, "leader’s gain over the incumbent")
    for stage, gain, verdict in zip(record["stages"], gains, column(table, "verdict"), strict=True):
        winner = stage["winner"]
        other = next((c for c in winner["compared"] if c["key"] == winner["incumbent"]), None)
        if winner["incumbent"] is None:
            assert gain == "no incumbent"
        elif other is None:
            assert gain == "the incumbent leads" and "nothing gained" in verdict
        else:
            assert gain.startswith(f"+{other['difference']:.4f} (") and ("beyond" in verdict) != other["tied"]


def test_every_configuration_stands_in_its_stage_best_first_with_the_published_cell(study, page):
    record = storage.read_json(study / "study.json")
    sizes, found = [], []
    for number, stage in enumerate(record["stages"], 1):
        table = page.tables[f"stage-{number}"][0]
        ours = {tuple(t["config"].values()): t for t in stage["trials"]}
        theirs = published_of(stage)
        names = [tuple(cell.removeprefix("✓ ") for cell in row[: len(stage["grid"])]) for row in table[1:]]
        assert set(names) == set(ours) and len(names) == len(ours)
        means = [ours[name]["score"]["mean"] for name in names if ours[name]["status"] == "complete"]
        assert means == sorted(means, reverse=True)
        for name, value, cell in zip(
            names, column(table, "val mAP ± sd"), column(table, "published test mAP"), strict=True
        ):
            scores = ours[name]["score"]
            assert value == (plus_minus(scores) if scores else "–")
            assert cell == (f"{theirs[name]:.4f}" if name in theirs else "–")
        sizes.append(len(table) - 1)
        found.append(sum(cell != "–" for cell in column(table, "published test mAP")))
    assert sizes == [18, 10, 6, 3, 3]
    assert found == [18, 10, 6, 3, 2], "the cells of the public study"


def test_rank_correlation_is_of_the_cells_that_match_by_name(study, page):
    stage = storage.read_json(study / "study.json")["stages"][0]
    theirs = published_of(stage)
    ours = [t["score"]["mean"] for t in stage["trials"]]
    other = [theirs[tuple(t["config"].values())] for t in stage["trials"]]
    by_hand = np.corrcoef(np.argsort(np.argsort(ours)), np.argsort(np.argsort(other)))[0, 1]
    assert f"over the 18 configurations of the same name: {by_hand:+.2f}" in page.text
    assert "3 configurations of the published study have the same name: too few" in page.text


def test_seed_spread_is_set_against_the_differences_defect_13_5(study, page):
    record = storage.read_json(study / "study.json")
    complete = [t["score"] for s in record["stages"] for t in s["trials"] if t["status"] == "complete"]
    pooled = np.sqrt(np.mean([np.var(scores["seeds"], ddof=1) for scores in complete]))
    assert f"standard deviation of {pooled:.4f}, the mean of 3 seeds with about" in page.text
    assert "moved by 0.0012" in page.text and "differs by 0.0042" in page.text


def test_emotions_have_names_and_their_chance_defect_13_10(study, page):
    final = storage.read_json(study / "study.json")["test"]["entries"][4]
    table = page.tables["test"][1]
    assert sorted(column(table, "emotion")) == sorted(LABELS)
    assert "Emotion_" not in page.text
    by_name = {row[0]: row for row in table[1:]}
    for entry in final["per_class"]:
        row = by_name[entry["label"]]
        gain = entry["ap"] - entry["prevalence"]
        assert row[1:6] == [share_text(entry["ap"]), share_text(entry["interpolated"]), share_text(entry["prevalence"]),
                            share_text(gain, sign=True), str(entry["positives"])]  # fmt: skip
        assert row[6] == share_text(PUBLISHED.final_ap[entry["label"]])
    assert np.mean(list(PUBLISHED.final_ap.values())) == pytest.approx(PUBLISHED.final_map, abs=1e-4)
    assert "another data set than this study’s" in page.text


def test_the_metrics_file_has_the_published_layout_and_the_numbers_of_the_study(study, written, page):
    """Its argmax numbers are scikit-learn's, and the page says what they are worth (defect 13.10)."""
    text = (written / "evaluation_metrics.txt").read_text()
    head, classes, tail = text.splitlines()[:3], text.splitlines()[3:29], text.splitlines()[29:]
    assert head[0] == "Evaluation Metrics:" and head[2] == "Per-Emotion AP:"
    assert re.fullmatch(r"Mean Average Precision \(mAP\): 0\.\d{4}", head[1])
    assert (
        all(re.fullmatch(rf"  Emotion_{i}: 0\.\d{{4}}", line) for i, line in enumerate(classes)) and len(classes) == 26
    )
    assert [line.split(":")[0] for line in tail] == ["Accuracy", "Precision", "Recall", "F1 Score"]
    final = storage.read_json(study / "study.json")["test"]["entries"][4]
    mean = from_text(text)
    assert mean.mean_ap == pytest.approx(final["score"]["mean"], abs=1e-4)
    assert mean.per_class == pytest.approx([entry["ap"] for entry in final["per_class"]], abs=1e-4)

    truth = write_truth(study)
    said = answers(truth, 1.0, SEEDS[1] + 10).argmax(axis=1)
    first = truth.argmax(axis=1)
    one = from_text((written / "evaluation_metrics-seed-1.txt").read_text())
    assert one.accuracy == one.recall == pytest.approx(accuracy_score(first, said), abs=1e-4)
    assert one.precision == pytest.approx(precision_score(first, said, average="weighted", zero_division=0), abs=1e-4)
    assert one.f1 == pytest.approx(f1_score(first, said, average="weighted"), abs=1e-4)
    assert "mean little" in page.text
    assert column(page.tables["test"][2], "published") == ["0.0814", "0.4455", "0.0814", "0.0408"]


def write_truth(study: Path) -> np.ndarray:
    """Test targets from the sample table, without the report's own reading."""
    rows = storage.read_table(study.parent / "emotic.parquet").to_pylist()
    return np.array([[label in row["labels"] for label in LABELS] for row in rows if row["split"] == "test"])


def test_the_page_needs_nothing_from_elsewhere_and_tells_no_folder(study, written, page):
    for file in written.iterdir():
        text = file.read_text()
        assert str(study.parent) not in text and str(Path.home()) + "/" not in text, file.name
        assert not re.search(r"(?:https?|s3|file):/|src=\"(?!data:image/png)|<script|<link", text), file.name
    assert len(page.pictures) == 11
    for source in page.pictures:
        picture = Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,"))))
        picture.load()
        assert 500 < picture.width < 1300
    assert "Staged is enough <here>." in page.text, "escaped in the file, plain for the reader"


def test_tables_as_csv_hold_the_numbers_in_full(study, written):
    record = storage.read_json(study / "study.json")
    rows = list(csv.DictReader(io.StringIO((written / "stage-1-backbones.csv").read_text())))
    trials = {tuple(t["config"].values()): t for t in record["stages"][0]["trials"]}
    assert len(rows) == 18
    for row in rows:
        trial = trials[row["backbones.context"], row["backbones.body"], row["backbones.face"]]
        assert float(row["val_score"]) == trial["score"]["mean"] and row["key"] == trial["key"]
        assert [float(seed) for seed in row["val_score_seeds"].split()] == trial["score"]["seeds"]
    stages = list(csv.DictReader(io.StringIO((written / "stages.csv").read_text())))
    assert [row["stage"] for row in stages] == [*(stage["name"] for stage in record["stages"]), "joint"]
    assert [float(row["test_score"]) for row in stages] == [e["score"]["mean"] for e in record["test"]["entries"]]
    assert len((written / "joint.csv").read_text().splitlines()) == 41
    assert len((written / "per_class.csv").read_text().splitlines()) == 27


def test_synthetic_data_and_random_backbones_can_not_be_missed(study, page, changed):
    assert page.text.startswith("raymotion study") and "NOT THE EMOTIC DATA SET" in page.text[:200]
    assert "RANDOM BACKBONES: swin was never trained" in page.text[:700]

    def real(record: dict[str, Any]) -> None:
        for name, persons in (("train", 23_266), ("val", 3_300), ("test", 7_203)):
            record["data"]["splits"][name]["samples"] = persons
        record["settings"]["embeddings"] = []

    text, summary = changed(real)
    assert "RANDOM" not in text.text and "NOT THE EMOTIC" not in text.text
    assert "another run on the same split" in text.text and summary.state == "good"


def test_a_tie_keeps_the_incumbent_and_is_no_finding(changed):
    def tie(record: dict[str, Any]) -> None:
        stage = record["stages"][1]
        incumbent = stage["trials"][1]
        stage["winner"] |= {
            "key": incumbent["key"], "incumbent": incumbent["key"],
            "compared": [{"key": incumbent["key"], "difference": 0.0031, "low": -0.001, "high": 0.007, "tied": True,
                          "seed_error": 0.001}],
        }  # fmt: skip

    page, summary = changed(tie)
    assert column(page.tables["overview"][0], "leader’s gain over the incumbent")[1] == "+0.0031 (−0.0010 to +0.0070)"
    assert column(page.tables["overview"][0], "verdict")[1] == "≈ nothing gained; 1 other tied"
    assert "no later stage gained beyond noise (augmentation)" in summary.headline


@pytest.mark.parametrize("second_tied", [True, False])
def test_the_first_line_and_the_noise_section_follow_one_rule(changed, second_tied):
    """Found by a reader: "backbones matter beyond noise" above "the best leads by less than noise" (backbones)."""

    def close(record: dict[str, Any]) -> None:
        stage = record["stages"][0]
        ranked = stage["trials"]
        for place, trial in enumerate(ranked):
            mean = 0.3 - 0.02 * place
            trial["score"] = {"mean": mean, "sd": 0.001, "seeds": [mean - 0.001, mean, mean + 0.001]}
        stage["winner"] |= {"key": ranked[0]["key"], "leader": ranked[0]["key"], "compared": [
            {"key": trial["key"], "difference": 0.02 * place, "low": -0.1 if tied else 0.1, "high": 0.5, "tied": tied,
             "seed_error": 0.001}
            for place, trial in enumerate(ranked[1:], 1) for tied in [second_tied and place == 1]
        ]}  # fmt: skip

    page, summary = changed(close)
    noise = page.text[page.text.index("best configuration's lead over the second") :][:200]
    assert ("backbones" in noise) == second_tied
    if second_tied:
        assert "in backbones the leader beats 1 of 2 other choices beyond noise" in summary.headline.lower()
        assert "cannot be told from the rest" in summary.headline
    else:
        assert "in backbones the leader beats every other choice beyond noise" in summary.headline.lower()


def test_a_gain_that_another_seed_could_have_made_is_no_finding_defect_13_5(changed):
    """The bootstrap resamples images and says 0.003 to 0.009; but one configuration's seeds differ by 0.02."""

    def loud(record: dict[str, Any]) -> None:
        stage = record["stages"][1]
        # Two errors of a difference: 2 x sqrt(2 / 3) x 0.01 = 0.0163.
        gap = {"key": stage["winner"]["incumbent"], "difference": 0.006, "low": 0.003, "high": 0.009, "tied": True,
               "seed_error": 0.00816}  # fmt: skip
        stage["winner"]["compared"] = [gap]

    page, summary = changed(loud)
    assert column(page.tables["overview"][0], "verdict")[1] == "≈ gained less than seeds differ"
    assert "no later stage gained beyond noise (augmentation)" in summary.headline


def drop(*names: str) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        for name in names:
            record[name] = None
        record["status"] = "running"

    return change


def one_seed(record: dict[str, Any]) -> None:
    record["seeds"] = [0]
    for part in (*record["stages"], record["joint"]):
        for trial in part["trials"]:
            trial["score"] = {"mean": 0.3, "sd": None, "seeds": [0.3]}
        for other in part["winner"]["compared"]:
            other |= {"tied": False, "seed_error": None}
    for entry in record["test"]["entries"]:
        entry["score"] |= {"sd": None, "seeds": entry["score"]["seeds"][:1]}


def gaps(record: dict[str, Any]) -> None:
    record["stages"][0] |= {"name": "other", "title": "<script>x</script>"}
    record["joint"]["left_out"] = [{"config": {}, "reason": "a / b: cannot"}]
    record["data"]["prevalence"] = {}
    for entry in record["test"]["entries"]:
        entry["per_class"][10] |= {"ap": None, "interpolated": None, "prevalence": 0.0, "positives": 0}


@pytest.mark.parametrize(
    "change, says",
    [
        (
            drop("joint", "comparison", "test", "cost"),
            ["Not complete: 2 stages decided so far", "There was no joint search, or it has not begun"],
        ),
        (lambda record: record.update(stages=[], joint=None, test=None, status="running"), ["No stage is decided"]),
        (lambda record: record["test"].update(entries=[]), ["no test split, so nothing was scored on one"]),
        (one_seed, ["One seed: nothing is known of the spread between seeds"]),
        (
            gaps,
            ["The published study has no such stage.", "Stage 1: <script>x</script>", "Left out: a / b: cannot.",
             "Embarrassment undefined", "Not recorded.",
             "Not written: The study's folder keeps no predictions on test."],
        ),
    ],
)  # fmt: skip
def test_what_is_missing_is_said_and_no_error(changed, change, says):
    page, _ = changed(change)
    assert [text for text in says if text not in page.text] == []


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (None, ""),
        ("order", ""),  # predictions are joined by id
        ("labels", "the split test has other labels"),
        ("val", "the split val has other samples"),
        ("test", "the split test has other samples"),
        ("gone", "sample table of the study was not found"),
    ],
)
def test_predictions_are_measured_against_the_targets_of_their_samples_alone(study, tmp_path, damage, reason):
    record = storage.read_json(study / "study.json")
    record["stages"] = [record["stages"][4]]
    keep_trials(record["stages"][0], 1)
    record |= {"joint": None, "comparison": None, "status": "complete"}
    rows = storage.read_table(study.parent / "emotic.parquet").to_pylist()
    if damage == "order":
        rows = rows[::-1]
    for row in rows[::2] if damage == "labels" else ():
        if row["split"] == "test":
            row["labels"], row["label_weights"] = ["Fear"], [1.0]
    for row in rows:
        if damage == row["split"]:
            row["sample_id"] += "x"
    write_samples(tmp_path / "other.parquet", table_from_rows(rows, EMOTIC_26))
    record["settings"]["samples"] = str(tmp_path / ("nowhere" if damage == "gone" else "other.parquet"))
    for name in ("predictions", "trials"):
        shutil.copytree(study / name, tmp_path / "study" / name)
    storage.write_json(tmp_path / "study/study.json", record)
    summary = write_study_report(tmp_path / "study", tmp_path / "report")
    assert ("evaluation_metrics.txt" in summary.files) == (not reason)
    assert any(reason in warning for warning in summary.warnings if reason) == bool(reason), summary.warnings
    assert reason in Page((tmp_path / "report/index.html").read_text()).text
    if damage == "order":
        mean = from_text((tmp_path / "report/evaluation_metrics.txt").read_text())
        assert mean.mean_ap == pytest.approx(record["test"]["entries"][4]["score"]["mean"], abs=1e-4)


def test_a_study_that_repeats_no_published_one_stands_alone(changed):
    page, summary = changed(lambda record: record.update(published=None))
    assert "ublished" not in page.text.replace("2026-11-20", "") and "evaluation_metrics.txt" not in summary.files
    assert "published" not in summary.headline and not any("NOT THE" in warning for warning in summary.warnings)


def test_a_folder_that_is_no_study_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"study\.json"):
        write_study_report(tmp_path, tmp_path / "out")
    for text in ('{"format": 1, "stages": []}', "[]", '{"format": 2, "stages": [{"name": "a", "trials": [{}]}]}', "{"):
        (tmp_path / "study.json").write_text(text)
        with pytest.raises(InputError) as error:
            write_study_report(tmp_path, tmp_path / "out")
        assert "\n" not in str(error.value) and "study.json" in str(error.value)


def test_the_command_prints_the_verdict_and_the_stages(study, tmp_path):
    small = tmp_path / "study"
    record = storage.read_json(study / "study.json")
    storage.write_json(small / "study.json", record | {"stages": record["stages"][3:4], "joint": None})
    result = CliRunner().invoke(report, [str(small), "--out", str(tmp_path / "report")])
    assert result.exit_code == 0 and (tmp_path / "report/index.html").exists()
    assert "test mAP is" in result.output.splitlines()[0]
    assert "RANDOM BACKBONES" in result.output and "Augmentation  basic" in result.output
    assert "raymotion study report study/ --out report/" in CliRunner().invoke(report, ["--help"]).output


@pytest.mark.parametrize(
    "value, text",
    [(0.31354, "0.3135"), (-0.00004, "0.0000"), (-0.0042, "−0.0042"), (None, "–"), (float("nan"), "–"),
     (0.0, "0.0000")],
)  # fmt: skip
def test_scores_are_shares(value, text):
    assert share_text(value) == text
    assert share_text(0.0012, sign=True) == "+0.0012" and interval(0.1, None) == "–"


@pytest.mark.parametrize(
    "value, text",
    [
        ("/home/someone/data/emotic.parquet", "emotic.parquet"),
        ("s3://bucket/data/emotic.parquet", "emotic.parquet"),
        ({"a": ["/x/y", "swin / swin"]}, {"a": ["y", "swin / swin"]}),
        ("Doubt/Confusion", "Doubt/Confusion"),
        ("failed in /opt/lib/code.py: no", "failed in code.py: no"),
    ],
)
def test_folders_of_the_machine_are_not_shown(value, text):
    assert shown(value) == text


def test_the_published_steps_are_the_known_ones():
    assert [stage.test_map for stage in PUBLISHED.stages] == [0.3135, 0.3139, 0.3139, 0.3173, 0.32]
    assert tuple(PUBLISHED.final_ap) == LABELS
