"""Tasks for Label Studio.

Formats: https://labelstud.io/guide/predictions (tasks in JSON with `data` and `predictions`),
https://labelstud.io/tags/choices (the labelling interface and its results), and
https://labelstud.io/guide/storage#Local-storage (`/data/local-files/?d=`, relative to the document root).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import ClassVar

from raymotion.batch.annotation.tool import Task, Tool, openable, xml_attribute
from raymotion.errors import InputError
from raymotion.vocabulary import Vocabulary

CONTROL = "emotions"
LOCAL_FILES = "/data/local-files/?d="


class LabelStudioTool(Tool):
    """Tasks for Label Studio: JSON with the labels as predictions, and the labelling interface in labels.xml.

    Label Studio opens s3://, gs:// and web addresses. Pictures on a disk have to lie below the folder that its local
    storage serves (LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT), which is --image-root. A task's prediction score is its
    smallest certainty, so that tasks can be sorted by it. `raymotion data prepare label-studio` reads the project's
    export in JSON.

    \b
    Example:
      raymotion data export label-studio ask/ --image-root /data/pictures --out tasks/
      raymotion data export label-studio ask/ --image-root s3://bucket/a --image-prefix https://example.org/a/ \\
          --out tasks/
    """

    name: ClassVar[str] = "label-studio"

    def address(self, uri: str) -> str:
        """See `Tool.address`."""
        if self.image_root is not None:
            return self.below_root(
                uri, LOCAL_FILES if "://" not in self.image_root else f"{self.image_root.rstrip('/')}/"
            )
        return openable(
            uri,
            ("s3", "gs", "http", "https"),
            "Label Studio",
            "Pass --image-root FOLDER, the folder that its local storage serves, or with --image-prefix one that a web "
            "server does.",
        )

    def files(self, number: int, tasks: Sequence[Task], vocabulary: Vocabulary) -> dict[str, str]:
        """Returns a list of tasks; `score` of a prediction is the probability of its label nearest to even."""
        rows = []
        for task in tasks:
            p = {label: round(float(own), 6) for label, own in zip(vocabulary.labels, task.probabilities, strict=True)}
            score = min((max(own, 1.0 - own) for own in p.values()), default=1.0)
            result = {"from_name": CONTROL, "to_name": "image", "type": "choices", "value": {"choices": task.labels}}
            data = {
                "image": task.picture,
                "caption": "\n".join(task.captions),
                "sample_id": task.sample_id,
                "probabilities": p,
            }
            predictions = [{"model_version": "raymotion", "score": score, "result": [result]}]
            rows.append(json.dumps({"data": data, "predictions": predictions}, ensure_ascii=False, allow_nan=False))
        return {f"tasks-{number:05d}.json": "[\n" + ",\n".join(rows) + "\n]\n"}

    def settings_files(self, vocabulary: Vocabulary) -> dict[str, str]:
        """Returns the labelling interface, for the project's settings."""
        for label in vocabulary.labels:
            if label.startswith("$"):
                raise InputError(f"the label {label!r} would be a variable in Label Studio", remedy="Rename it.")
        choices = "\n".join(f"    <Choice value={xml_attribute(label)}/>" for label in vocabulary.labels)
        text = f"""<View>
  <Image name="image" value="$image"/>
  <Text name="caption" value="$caption"/>
  <Choices name="{CONTROL}" toName="image" choice="multiple" showInline="true">
{choices}
  </Choices>
</View>
"""
        return {"labels.xml": text}
