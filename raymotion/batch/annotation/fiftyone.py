"""Labels for FiftyOne.

Format: https://docs.voxel51.com/user_guide/import_datasets.html, FiftyOneImageClassificationDataset: `labels.json` with
`classes` and, by the absolute path of a picture, a list of labels with `confidence`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import ClassVar

from raymotion import storage
from raymotion.batch.annotation.tool import Task, Tool, openable
from raymotion.vocabulary import Vocabulary


class FiftyoneTool(Tool):
    """Labels for FiftyOne: a FiftyOneImageClassificationDataset with a confidence for each label.

    Import each file with fo.Dataset.from_dir(dataset_type=fo.types.FiftyOneImageClassificationDataset, data_path={},
    labels_path="tasks/labels-00000.json", label_field="emotions"). There, give pictures that you have looked at the tag
    `reviewed`, and export a FiftyOneDataset with export_media=False for `raymotion data prepare fiftyone`.

    FiftyOne opens pictures on a disk. Those of a store are copied first: --image-root s3://bucket/a --image-prefix
    /copy/a/.

    \b
    Example:
      raymotion data export fiftyone ask/ --out tasks/
    """

    name: ClassVar[str] = "fiftyone"
    is_by_picture: ClassVar[bool] = True

    def address(self, uri: str) -> str:
        """See `Tool.address`."""
        remedy = (
            "Copy the pictures to a disk, and pass --image-root with their address and --image-prefix with the folder."
        )
        moved = uri if self.image_root is None else self.below_root(uri, f"{self.image_root.rstrip('/')}/")
        return storage.absolute(openable(moved, (None,), "FiftyOne", remedy))

    def files(self, number: int, tasks: Sequence[Task], vocabulary: Vocabulary) -> dict[str, str]:
        """Returns the labels by picture; see the module."""
        labels = {
            task.picture: [
                {"label": label, "confidence": round(float(task.probabilities[vocabulary.index(label)]), 6)}
                for label in task.labels
            ]
            for task in tasks
        }
        value = {"classes": list(vocabulary.labels), "labels": labels}
        return {f"labels-{number:05d}.json": json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n"}
