"""The whole pipeline on small synthetic data, step by step, through the public functions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymotion import storage
from raymotion.bundled import is_installed
from raymotion.folders.lock import one_writer_of

if TYPE_CHECKING:
    from raymotion.batch.job import JobSummary
    from raymotion.models.checkpoint import CheckpointInfo
    from raymotion.report.page import ReportSummary
    from raymotion.train.transfer import Comparison

# Folder of the student.
STUDENT = "student"
# Grid features: a small classifier takes the place of a detector, whose weights would have to be downloaded.
BACKBONE, REGIONS = "tf_efficientnet_lite0", 16


@dataclass(frozen=True)
class DemoResult:
    """Results of the demo, and the duration of each step in seconds."""

    teacher: CheckpointInfo
    labels: JobSummary
    report: ReportSummary
    report_file: str
    student: CheckpointInfo
    comparison: Comparison
    seconds: Mapping[str, float]


@one_writer_of("out")
def run_demo(
    out: str,
    *,
    seed: int = 0,
    socratis_images: int = 600,
    coco_images: int = 300,
    address: str | None = None,
    say: Callable[[str], None] = print,
) -> DemoResult:
    """Generates two data sets, trains a teacher on one, labels the other, writes a report, and trains students on both.

    Every step prints the equivalent command. The same call resumes after an interruption.

    Args:
        out: output folder.
        seed: of data and training.
        socratis_images, coco_images: sizes of the two data sets.
    """
    from raymotion.batch.cluster import connect
    from raymotion.batch.labels import LabelSettings, label
    from raymotion.batch.regions import RegionSettings, extract_regions
    from raymotion.data.readers.coco import CocoReader
    from raymotion.data.readers.socratis import SocratisReader
    from raymotion.data.samples import write_samples
    from raymotion.data.synthetic.collections import write_coco, write_socratis
    from raymotion.report.page import write_report
    from raymotion.report.transfer import write_figure
    from raymotion.train.fit import fit
    from raymotion.train.recipe import load_recipe
    from raymotion.train.source import label_warnings
    from raymotion.train.transfer import compare

    # Without the package, random weights, which see colours and shapes: enough for synthetic pictures.
    extractor, weights = f"grid:{BACKBONE}", f"bundled:{BACKBONE}" if is_installed(BACKBONE) else "random:0"
    seconds: dict[str, float] = {}

    @contextmanager
    def step(name: str, *commands: str) -> Iterator[None]:
        for command in commands:
            say(f"$ raymotion {command}")
        started = time.monotonic()
        yield
        seconds[name] = round(time.monotonic() - started, 1)
        say(f"  done in {seconds[name]:.1f} s")

    def at(name: str) -> str:
        return storage.join(out, name)

    with step(
        "synthetic data",
        f"data synth socratis --images {socratis_images} --seed {seed} --out {at('socratis')}",
        f"data synth coco --images {coco_images} --seed {seed} --corrupt 0.01 --out {at('coco')}",
    ):
        write_socratis(at("socratis"), socratis_images, seed)
        write_coco(at("coco"), coco_images, seed, corrupt=0.01)
    with step(
        "sample tables",
        f"data prepare socratis {at('socratis/cleaned_data.csv')} --images {at('socratis/images')} "
        f"--vocabulary socratis-29 --seed {seed} --out {at('socratis.parquet')}",
        f"data prepare coco {at('coco')} --split val2017 --out {at('coco.parquet')}",
    ):
        socratis = SocratisReader(
            path=at("socratis/cleaned_data.csv"), images=at("socratis/images"), vocabulary="socratis-29", seed=seed
        )
        write_samples(at("socratis.parquet"), socratis.read()[0])
        write_samples(at("coco.parquet"), CocoReader(root=at("coco")).read()[0])
    with connect(address):
        with step(
            "region features",
            f"features regions {at('socratis.parquet')} --extractor {extractor} --weights {weights} "
            f"--count {REGIONS} --out {at('features')}",
        ):
            extract_regions(
                RegionSettings(
                    samples=at("socratis.parquet"),
                    out=at("features"),
                    extractor=extractor,
                    weights=weights,
                    count=REGIONS,
                )
            )
        with step(
            "teacher",
            f"train teacher-demo --samples {at('socratis.parquet')} --features {at('features')} --seed {seed} "
            f"--out {at('teacher')}",
        ):
            options: dict[str, Any] = {
                "data": {"samples": at("socratis.parquet"), "features": at("features")},
                "seed": seed,
            }
            teacher = fit(load_recipe("teacher-demo", options=options), at("teacher")).info
        with step("labels", f"label {at('coco.parquet')} --model {at('teacher')} --out {at('labels')}"):
            labels = label(LabelSettings(samples=at("coco.parquet"), model=at("teacher"), out=at("labels")))
        with step("report", f"report {at('labels')} --out {at('report.html')}"):
            report = write_report(at("labels"), at("report.html"))
        with step(STUDENT, f"train student-demo --labels {at('labels')} --seed {seed} --out {at(STUDENT)}"):
            recipe = load_recipe("student-demo", options={"data": {"labels": at("labels")}, "seed": seed})
            for warning in label_warnings(recipe):
                say(f"warning: {warning}")
            student = fit(recipe, at(STUDENT)).info
        with step(
            "fine-tuning",
            f"finetune {at(STUDENT)} --samples {at('socratis.parquet')} --recipe finetune-demo --out {at('finetune')}",
        ):
            tuning = load_recipe("finetune-demo", options={"data": {"samples": at("socratis.parquet")}})
            comparison = compare(tuning, at(STUDENT), at("finetune"))
            write_figure(comparison)
    return DemoResult(teacher, labels, report, at("report.html"), student, comparison, seconds)
