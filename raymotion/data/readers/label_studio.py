"""Labels that people gave in Label Studio, from its JSON export.

Formats: https://labelstud.io/guide/task_format (tasks with `annotations`, `was_cancelled` and `completed_by`) and
https://labelstud.io/tags/choices (results of type `choices`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from raymotion.config import Metavar
from raymotion.data.marked import Mark, MarkedReport
from raymotion.data.readers.reader import noted
from raymotion.data.tasks import TaskReader, TaskSet
from raymotion.data.text_rows import read_json, shown
from raymotion.errors import InputError, located

AGAIN = "Export the project as JSON, not JSON-MIN or another format."
# Sample, annotator, time, labels.
Vote = tuple[str, object, str, list[str]]


@dataclass
class LabelStudioReport(MarkedReport):
    """Counts of `LabelStudioReader`."""

    several: int = noted("rows have several annotators; their shares are the label_weights")
    unannotated: int = noted("tasks have no annotation that was submitted, and are left out")
    cancelled: int = noted("annotations were skipped by their annotator, and are left out")
    replaced: int = noted("annotations were replaced by a later one of the same annotator")
    other_results: int = noted("results of other controls than choices are left out")


class LabelStudioReader(TaskReader):
    """Labels that people gave in Label Studio.

    EXPORT is the project's export as JSON: a file, a folder or a pattern. TASKS is the folder of `raymotion data export
    label-studio`, SAMPLES the table that was labelled. Tasks without a submitted annotation are left out; of two
    annotations by one annotator the later counts. An annotation without a choice says that no label applies.

    \b
    Example:
      raymotion data prepare label-studio project-1.json coco.parquet tasks/ --out corrected.parquet
    """

    tool: ClassVar[str] = "label-studio"
    suffixes: ClassVar[tuple[str, ...]] = (".json",)
    report_type: ClassVar[type[MarkedReport]] = LabelStudioReport

    agreement: Annotated[float, Metavar("SHARE")] = Field(
        0.5, gt=0, le=1, description="Of several annotators, at least this share has to give a label."
    )
    control: Annotated[str, Metavar("NAME")] = Field(
        "emotions", description="Name of the choices in the project's labelling interface."
    )

    def marks(self, paths: Sequence[str], tasks: TaskSet, report: MarkedReport) -> dict[str, Mark]:
        """See `TaskReader.marks`."""
        assert isinstance(report, LabelStudioReport)
        votes: dict[str, dict[object, tuple[str, list[str]]]] = {}
        for path in paths:
            for sample_id, annotator, time, labels in self._votes(path, tasks, report):
                own = votes.setdefault(sample_id, {})
                report.replaced += annotator in own
                if annotator not in own or time >= own[annotator][0]:
                    own[annotator] = (time, labels)
        marks = {}
        for sample_id, own in votes.items():
            given = [set(labels) for _, labels in own.values()]
            shares = {label: sum(label in one for one in given) / len(given) for label in set[str]().union(*given)}
            chosen = [label for label, share in shares.items() if share >= self.agreement]
            report.several += len(given) > 1
            marks[sample_id] = tasks.mark(
                sample_id, chosen, [shares[label] for label in chosen] if len(given) > 1 else None
            )
        return marks

    def _votes(self, path: str, tasks: TaskSet, report: LabelStudioReport) -> Iterator[Vote]:
        found = read_json(path)
        if not isinstance(found, list):
            raise InputError("is not a list of tasks", path=path, remedy=AGAIN)
        for number, task in enumerate(found):
            name = task.get("id", number) if isinstance(task, dict) else number
            with located(path, row=f"task {shown(str(name))}"):
                if not isinstance(task, dict) or not isinstance(task.get("annotations"), list):
                    raise InputError("has no annotations", remedy=AGAIN)
                sample_id = task["data"].get("sample_id") if isinstance(task.get("data"), dict) else None
                if not isinstance(sample_id, str):
                    raise InputError("has no data.sample_id", remedy="Import what `raymotion data export` wrote.")
                if sample_id not in tasks.labels:
                    raise InputError(f"{shown(sample_id)!r} is not a sample of {tasks.folder}")
                submitted = [own for own in task["annotations"] if not self._is_cancelled(own)]
                report.cancelled += len(task["annotations"]) - len(submitted)
                report.unannotated += not submitted
                for at, own in enumerate(submitted):
                    labels = self._labels(own, report)
                    tasks.mark(sample_id, labels)  # an unknown label is told with its task
                    time = own.get("updated_at") or own.get("created_at") or ""
                    yield sample_id, _annotator(own, (path, number, at)), str(time), labels

    def _is_cancelled(self, annotation: object) -> bool:
        if not isinstance(annotation, dict):
            raise InputError("has an annotation that is not an object")
        return bool(annotation.get("was_cancelled"))

    def _labels(self, annotation: Mapping[str, Any], report: LabelStudioReport) -> list[str]:
        results = annotation.get("result")
        if not isinstance(results, list) or not all(isinstance(own, dict) for own in results):
            raise InputError("has an annotation whose result is not a list of objects", remedy=AGAIN)
        labels: list[str] = []
        for own in results:
            if own.get("type") != "choices":
                report.other_results += 1
                continue
            if own.get("from_name") != self.control:
                raise InputError(
                    f"has choices of {shown(str(own.get('from_name')))!r}, not of {self.control!r}",
                    remedy="Name the ones to read: --control.",
                )
            chosen = own["value"].get("choices") if isinstance(own.get("value"), dict) else None
            if not isinstance(chosen, list) or not all(isinstance(label, str) for label in chosen):
                raise InputError("has choices that are not a list of texts")
            labels += chosen
        return list(dict.fromkeys(labels))


def _annotator(annotation: Mapping[str, Any], otherwise: object) -> object:
    """Returns what identifies the annotator: a number, or an object with id and email in other exports."""
    who = annotation.get("completed_by")
    if isinstance(who, dict):
        who = who.get("id", who.get("email"))
    return who if isinstance(who, int | str) else otherwise
