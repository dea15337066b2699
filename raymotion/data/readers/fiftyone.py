"""Labels that people gave in FiftyOne, from its exports in JSON.

Formats: https://docs.voxel51.com/user_guide/export_datasets.html, FiftyOneDataset (`samples.json`: samples with
filepath, tags and fields) and FiftyOneImageClassificationDataset (`labels.json`: classes, and labels by picture).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from raymotion import storage
from raymotion.config import Metavar
from raymotion.data.marked import Mark, MarkedReport
from raymotion.data.readers.reader import noted
from raymotion.data.tasks import REVIEWED, TaskReader, TaskSet
from raymotion.data.text_rows import read_json, shown
from raymotion.errors import InputError, located

# Picture, whether it was looked at, labels.
Entry = tuple[str, bool, list[str]]


@dataclass
class FiftyoneReport(MarkedReport):
    """Counts of `FiftyoneReader`."""

    unreviewed: int = noted(f"pictures do not have the tag {REVIEWED}, and are left out")


class FiftyoneReader(TaskReader):
    """Labels that people gave in FiftyOne.

    EXPORT is the folder or the samples.json of dataset.export(dataset_type=fo.types.FiftyOneDataset,
    export_media=False): pictures with the tag `reviewed` are read. Or, with --all-reviewed, the labels.json of a view
    of the reviewed pictures as FiftyOneImageClassificationDataset (abs_paths=True, export_media=False), which has no
    tags. TASKS is the folder of `raymotion data export fiftyone`, SAMPLES the table that was labelled.

    \b
    Example:
      raymotion data prepare fiftyone export/ coco.parquet tasks/ --out corrected.parquet
    """

    tool: ClassVar[str] = "fiftyone"
    suffixes: ClassVar[tuple[str, ...]] = (".json",)
    report_type: ClassVar[type[MarkedReport]] = FiftyoneReport

    field: Annotated[str, Metavar("NAME")] = Field("emotions", description="Field of the labels in samples.json.")
    all_reviewed: bool = Field(False, description="All pictures of the export were looked at, whatever their tags.")

    def marks(self, paths: Sequence[str], tasks: TaskSet, report: MarkedReport) -> dict[str, Mark]:
        """See `TaskReader.marks`."""
        assert isinstance(report, FiftyoneReport)
        marks: dict[str, Mark] = {}
        for path in [own for own in paths if len(paths) == 1 or _is_data(own)]:
            for picture, is_reviewed, labels in self._entries(path):
                with located(path, row=shown(picture)):
                    sample_id = tasks.sample(picture)
                    if not is_reviewed and not self.all_reviewed:
                        report.unreviewed += 1
                        continue
                    if sample_id in marks:
                        raise InputError("is there twice", remedy="Export each picture once.")
                    marks[sample_id] = tasks.mark(sample_id, labels)
        return marks

    def _entries(self, path: str) -> Iterator[Entry]:
        found = read_json(path)
        if isinstance(found, dict) and isinstance(found.get("samples"), list):
            for number, sample in enumerate(found["samples"]):
                with located(path, row=f"sample {number}"):
                    entry = self._sample(sample)
                yield entry
        elif isinstance(found, dict) and isinstance(found.get("labels"), dict):
            if not self.all_reviewed:
                raise InputError(
                    "has no tags, which say what people have looked at",
                    path=path,
                    remedy="Export a view of the reviewed pictures and pass --all-reviewed, or a FiftyOneDataset.",
                )
            for picture, value in found["labels"].items():
                with located(path, row=shown(picture)):
                    entry = (picture, True, _listed(value, found.get("classes")))
                yield entry
        else:
            raise InputError(
                "has neither samples nor labels", path=path, remedy="Give samples.json or labels.json of an export."
            )

    def _sample(self, sample: object) -> Entry:
        if not isinstance(sample, dict) or not isinstance(sample.get("filepath"), str):
            raise InputError("has no filepath")
        tags = sample.get("tags") or []
        if not isinstance(tags, list):
            raise InputError("has tags that are not a list")
        if self.field not in sample:
            raise InputError(f"has no field {shown(self.field)!r}", remedy="Name the field of the labels: --field.")
        return sample["filepath"], REVIEWED in tags, _of_document(sample[self.field])


def _is_data(path: str) -> bool:
    """Returns whether a file of an export holds samples or labels; metadata.json and others do not."""
    return storage.absolute(path).rsplit("/", 1)[-1].startswith(("samples", "labels"))


def _of_document(value: object) -> list[str]:
    """Returns the labels of a stored `Classifications`, of one `Classification`, or of an empty field."""
    if value is None:
        return []
    kind = value.get("_cls") if isinstance(value, dict) else None
    inner: Any = value.get("classifications") if isinstance(value, dict) and kind == "Classifications" else [value]
    if kind not in ("Classifications", "Classification") or not isinstance(inner, list):
        raise InputError("has a field of labels that are not classifications")
    return [_text(own.get("label") if isinstance(own, Mapping) else None) for own in inner]


def _listed(value: object, classes: object) -> list[str]:
    """Returns the labels of an entry of labels.json: a label or number of a class, an object with it, or a list."""
    labels = []
    for own in value if isinstance(value, list) else [] if value is None else [value]:
        label = own.get("label") if isinstance(own, dict) else own
        if isinstance(label, int) and isinstance(classes, list) and 0 <= label < len(classes):
            label = classes[label]
        labels.append(_text(label))
    return labels


def _text(label: object) -> str:
    if not isinstance(label, str):
        raise InputError("has a classification without a label")
    return label
