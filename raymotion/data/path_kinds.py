"""Detects what is at a path that was given in place of another kind of input, and names the right command.

Users may pass a csv file, a folder of images, or labels in place of a model. Naming the right command helps more than
"no such file" or an error from Parquet.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import Literal

from raymotion import records, storage
from raymotion.data.parts import JOB, read_job
from raymotion.errors import InputError, RaymotionError

Wanted = Literal["table", "checkpoint", "labels", "regions", "embeddings"]

# Kind of job in _job.json -> kind of folder.
JOBS = {"labels": "labels", "region-features": "regions", "embeddings": "embeddings", "evaluation": "evaluation"}
PICTURES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic")
# Limits of the search for images, so that it does not read a whole disk.
DEPTH, MOST_FOLDERS = 3, 50
_PREPARE = "Make a sample table of it first: raymotion data prepare {} --out samples.parquet"
_STUDENT = "Train a student on it: raymotion train recipes/student-gru-cnn.yaml --labels PATH --out student/"
# Description of each kind, and the remedy; PATH stands for the path.
_KINDS = {
    "pictures": ("a folder of pictures", _PREPARE.format("folder PATH")),
    "coco": ("a folder of COCO", _PREPARE.format("coco PATH")),
    "emotic": ("a folder of EMOTIC", _PREPARE.format("emotic PATH")),
    "socratis": ("a file of Socratis", _PREPARE.format("socratis PATH --images PICTURES")),
    "coco file": ("a file of COCO's annotations", "Make a sample table of the folder that holds it in annotations/: "
                  "raymotion data prepare coco ROOT --out samples.parquet"),
    "captions": ("a list of captions", "Make a sample table of it and its pictures first: "
                 "raymotion data prepare folder PICTURES --captions PATH --out samples.parquet"),
    "raw table": ("a table of other columns", "Make a sample table of it first (--help tells how to name columns): "
                  "raymotion data prepare table PATH --out samples.parquet"),
    "picture": ("a picture", "For one picture: raymotion predict MODEL PATH. For many: "
                "raymotion data prepare folder PICTURES --out samples.parquet"),
    "table": ("a sample table", ""),
    "checkpoint": ("a checkpoint", "It goes where a model is asked for: "
                   "raymotion label SAMPLES --model PATH --out labels/"),
    "labels": ("a labelled data set", "Name the folder that `raymotion features` wrote."),
    "regions": ("a folder of region features", "Pass it as --features PATH, besides what is asked for here."),
    "embeddings": ("a folder of embeddings",
                   "Name it as --features PATH of `raymotion label`, or --embeddings PATH of `raymotion train`."),
    "evaluation": ("an evaluation", "Name the checkpoint or the labels that it belongs to."),
    "study": ("a study", "Name the checkpoint in its folder `final`, or run `raymotion study` on it."),
    "weights": ("a file of weights", "Weights of an extractor or a backbone are passed as --weights."),
    "recipe": ("a file of settings", "A recipe goes to `raymotion train PATH --samples SAMPLES --out DIR`."),
    "archive": ("an archive", "Unpack it first."),
}  # fmt: skip
# Remedy for a pair (kind found, kind wanted).
_INSTEAD = {
    ("table", "checkpoint"): "Train a model on it first: "
    "raymotion train recipes/teacher-visualbert-small.yaml --samples PATH --out teacher/",
    ("table", "labels"): "Label it first: raymotion label PATH --model MODEL --out labels/",
    ("table", "regions"): "Make them from it: raymotion features regions PATH --out features/",
    ("table", "embeddings"): "Make them from it: raymotion features embeddings PATH --out features/",
    ("labels", "table"): "Look at it with `raymotion report PATH` or raymotion.open_labels. " + _STUDENT,
    ("raw table", "checkpoint"): "Probabilities of your own become a model: "
    "raymotion wrap stored-probabilities PATH --out stored/. Data to label or to train on: "
    "raymotion data prepare table PATH --out samples.parquet",
    ("labels", "checkpoint"): _STUDENT,
    ("weights", "checkpoint"): "Name the checkpoint's folder, which holds config.json beside it.",
}


def wrong_kind(path: storage.PathLike, wanted: Wanted) -> InputError | None:
    """Returns an error for a `path` of another kind than `wanted`, with the command that accepts it.

    None if the path does not exist, is of an unknown kind, or is of the kind `wanted`.
    """
    text = str(path)
    try:
        kind = _folder_kind(text) if storage.is_dir(text) else _file_kind(text)
    except (RaymotionError, OSError, ValueError):  # this is only a hint; the caller raises the original error
        return None
    if kind is None or kind == wanted:
        return None
    what, remedy = _KINDS[kind]
    remedy = _INSTEAD.get((kind, wanted), remedy).replace("PATH", shlex.quote(text))
    expected = _KINDS[wanted][0].removeprefix("a folder of ")
    return InputError(f"is {what}, not {expected}", path=path, remedy=remedy)


def _file_kind(path: str) -> str | None:
    if not storage.exists(path):
        return None
    name = path.lower()
    if name.endswith(PICTURES):
        return "picture"
    if name.endswith((".safetensors", ".pt", ".pth", ".bin", ".ckpt")):
        return "weights"
    if name.endswith((".yaml", ".yml")):
        return "recipe"
    if name.endswith((".zip", ".tar", ".gz", ".tgz", ".7z", ".bz2", ".xz")):
        return "archive"
    if name.endswith(".mat"):
        return "emotic"
    with storage.open_input(path) as file:
        head = file.read(4096)
    if head[:4] == b"PAR1":
        return _parquet_kind(path)
    start = head.decode("utf-8-sig", errors="replace").lstrip()
    if name.endswith((".csv", ".tsv", ".txt")):
        columns = start.splitlines()[0].lower() if start else ""
        if "image_name" in columns:
            return "socratis"
        if "folder" in columns and "filename" in columns:
            return "emotic"
        cells = {cell.strip(' "') for cell in re.split(r"[,;\t]", columns)}
        return "captions" if "file" in cells and cells <= {"file", "caption", "captions"} else "raw table"
    if name.endswith((".json", ".jsonl", ".ndjson")):
        if '"image_name"' in start or '"captions_and_emotions"' in start:
            return "socratis"
        if start.startswith("{") and ('"licenses"' in start or '"images"' in start):
            return "coco file"
        keys = set(re.findall(r'"(\w+)"\s*:', start.partition("}")[0]))
        is_captions = keys <= {"file", "caption", "captions"} or (name.endswith(".json") and start.startswith("{"))
        return "captions" if is_captions else "raw table"
    return None


def _parquet_kind(path: str) -> str | None:
    with storage.open_parquet(path) as file:
        schema = file.schema_arrow
    names = set(schema.names)
    if {"sample_id", "group_id", "captions", "source"} <= names:
        return "table"
    if {"probabilities", "selected"} <= names:
        return "labels"
    if b"raymotion.regions" in (schema.metadata or {}):
        return "regions"
    return "embeddings" if "context_of" in names else None


def _folder_kind(path: str) -> str | None:
    names = set(storage.list_names(path))
    if "config.json" in names and "model.safetensors" in names:
        return "checkpoint"
    if JOB in names or records.copy_of(JOB) in names:
        job, _ = read_job(path)
        return JOBS.get(str(job.get("job"))) if job is not None else None
    if "study.json" in names:
        return "study"
    if "evaluation.json" in names:
        return "evaluation"
    inner = _folders(path)
    if "annotations" in inner and any(
        name.startswith(("captions_", "instances_", "person_keypoints_"))
        for name in storage.list_names(storage.join(path, "annotations"))
    ):
        return "coco"
    if {"Annotations", "annots_arrs", "cvpr_emotic", "emotic"} & set(inner) or "Annotations.mat" in names:
        return "emotic"
    return "pictures" if _has_picture(path) else None


def _folders(path: str) -> list[str]:
    if storage.is_remote(path):
        return sorted(name.removesuffix("/") or name for name in storage.list_remote(path) if name.endswith("/"))
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir())


def _has_picture(path: str) -> bool:
    level = [path]
    for _ in range(DEPTH):
        for folder in level:
            if any(name.lower().endswith(PICTURES) for name in storage.list_names(folder)):
                return True
        level = [storage.join(folder, name) for folder in level for name in _folders(folder)][:MOST_FOLDERS]
    return False
