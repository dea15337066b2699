"""Tasks for CVAT.

Formats: https://docs.cvat.ai/docs/other/xml_format/ ("CVAT for images 1.1", annotation mode) and
https://docs.cvat.ai/docs/manual/basics/create_an_annotation_task/ (labels in raw JSON).
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Sequence
from typing import ClassVar

from raymotion.batch.annotation.tool import Task, Tool, xml_attribute
from raymotion.data.tasks import REVIEWED
from raymotion.errors import InputError
from raymotion.vocabulary import Vocabulary


class CvatTool(Tool):
    """Tasks for CVAT: "CVAT for images 1.1" with the labels as tags, labels.json for the project, and picture lists.

    Make a task of the pictures in images-00000.txt, whose names are their paths below --image-root (the folder that
    CVAT shares, or a cloud storage), with the labels of labels.json under "Raw", and upload annotations-00000.xml as
    "CVAT 1.1". There, give pictures that you have looked at the tag `reviewed`: CVAT does not tell otherwise.
    `raymotion data prepare cvat` reads what it exports as "CVAT for images 1.1".

    \b
    Example:
      raymotion data export cvat ask/ --image-root /data/pictures --out tasks/
    """

    name: ClassVar[str] = "cvat"
    is_by_picture: ClassVar[bool] = True
    same: ClassVar[str] = "it knows pictures by their paths without the extension"

    def address(self, uri: str) -> str:
        """See `Tool.address`."""
        if self.image_root is None:
            raise InputError(
                "CVAT knows pictures by their path below a folder",
                remedy="Pass --image-root, the folder that it shares.",
            )
        name = self.below_root(uri)
        xml_attribute(name)  # raises for a name that cannot be written
        return name

    def key(self, task: Task) -> str:
        """See `Tool.key`: CVAT matches names without their extension."""
        return posixpath.splitext(task.picture)[0]

    def files(self, number: int, tasks: Sequence[Task], vocabulary: Vocabulary) -> dict[str, str]:
        """Returns annotations and picture list. CVAT numbers the pictures of a task by their names, and so are these.

        Width and height, which CVAT does not read, are left out: nothing is known of the pictures here.
        """
        lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "  <version>1.1</version>"]
        for at, task in enumerate(tasks):
            lines.append(f'  <image id="{at}" name={xml_attribute(task.picture)}>')
            lines += [f'    <tag label={xml_attribute(label)} source="auto"></tag>' for label in task.labels]
            lines.append("  </image>")
        lines.append("</annotations>\n")
        pictures = "".join(f"{task.picture}\n" for task in tasks)
        return {f"annotations-{number:05d}.xml": "\n".join(lines), f"images-{number:05d}.txt": pictures}

    def settings_files(self, vocabulary: Vocabulary) -> dict[str, str]:
        """Returns the labels, and the one that says that a picture was looked at."""
        if REVIEWED in vocabulary:
            raise InputError(f"the vocabulary has the label {REVIEWED!r}, which is used to mark pictures here")
        for label in vocabulary.labels:
            xml_attribute(label)
        labels = [{"name": name, "type": "tag", "attributes": []} for name in (*vocabulary.labels, REVIEWED)]
        return {"labels.json": json.dumps(labels, ensure_ascii=False, indent=1) + "\n"}
