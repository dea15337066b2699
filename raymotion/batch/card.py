"""The data set card of a finished job: a Markdown page with the header of the Hugging Face hub.

The file is `_README.md`, because pandas and pyarrow would read `README.md` as a part. `datasets` finds the rows through
`.huggingface.yaml`, locally and on the hub, where the card is uploaded as `README.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import yaml

from raymotion import storage
from raymotion.data.parts import DATA, QUARANTINE, VERIFY, part_names
from raymotion.data.samples import DIMENSIONS, scale_of
from raymotion.learning.priors import told_rates
from raymotion.models.outputs.embedding import TEXT, Embedding
from raymotion.pipeline.ask import spent_text

CARD, CONFIG = "_README.md", ".huggingface.yaml"
CONFIGS = {"configs": [{"config_name": "default", "data_files": f"{DATA}/*.parquet"}]}
TITLES = {
    "labels": "Emotion pseudo-labels",
    "region-features": "Region features",
    "embeddings": "Embeddings of pictures, bodies and faces",
}
COLUMNS = {
    "sample_id": "the sample's name, unique",
    "group_id": "samples of one picture share it",
    "split": "train, val or test; null where the table named none",
    "image_uri": "address of the picture",
    "image_bytes": "size in bytes of the picture that was read; null where none was",
    "image_digest": "16 hex digits of BLAKE2b of the picture that was read; null where none was",
    "captions": "the captions that the model read",
    "unknown_words": "share (0 to 1) of the captions' words that the model does not know; null where it read none",
    "probabilities": "the model's probability (0 to 1) for each emotion, in the order below",
    "labels": "the emotions that were chosen, in the order below",
    "selected": "whether the selection takes the row at all",
    "body_box": "x1, y1, x2, y2 of the body, in pixels",
    "face_box": "x1, y1, x2, y2 of the face, in pixels",
    "context_of": "sample_id of the row that holds the features of this row's picture",
    "features": "the regions' vectors, one after the other",
    "boxes": "x1, y1, x2, y2 of each region, as shares of width and height",
    "scores": "the detector's score of each region",
    "mask": "which regions there are",
}
VECTOR = "unit vector of the {side}, null where there is none; those of two sides are compared by their cosine"
UPPER = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def write_card(folder: str, record: Mapping[str, Any]) -> None:
    """Writes the card of a finished job from its record and the schema of its parts; the card contains no times."""
    names = part_names(folder)
    schema = pa.schema([])
    if names:
        with storage.open_parquet(storage.join(folder, names[0]), remedy=VERIFY) as part:
            schema = part.schema_arrow
    storage.write_text(storage.join(folder, CONFIG), _yaml(CONFIGS))
    storage.write_text(storage.join(folder, CARD), card(record, schema))


def card(record: Mapping[str, Any], schema: pa.Schema) -> str:
    """Returns the card as Markdown with the hub's YAML header; omits what is not recorded.

    Args:
        record: of the job.
        schema: of its parts.
    """
    kind, counts = str(record["job"]), record["counts"]
    size = next((name for limit, name in UPPER if counts["good"] < limit), "n>10M")
    tags = ["raymotion", "emotion-recognition", *(["pseudo-labels"] if kind == "labels" else [])]
    header = {**CONFIGS, "license": "unknown", "tags": tags, "size_categories": [size]}
    title = TITLES.get(kind, kind)
    if kind == "labels" and not record.get("vocabulary") and _vectors(record):
        title = "Vectors of pictures and captions"
    lines = ["---", _yaml(header).rstrip("\n"), "---", "", f"# {title}", ""]
    if collapse := record.get("collapse"):
        lines += [f"**{collapse['headline']}**", "", *(f"- {reason}" for reason in collapse["reasons"][1:])]
    if domain := record.get("domain"):
        lines += [f"**{domain['headline']}**", ""]
    failed = ", ".join(f"{count:,} {reason}" for reason, count in counts["by_reason"].items())
    lines += [
        f"- {counts['in']:,} samples: {counts['good']:,} good rows, {counts['quarantined']:,} in quarantine"
        + (f" ({failed}; see `{QUARANTINE}/`)." if failed else "."),
        *_made_by(record),
        *(f"- {notice}" for notice in record.get("notices") or ()),
        "- The licence of the pictures and their captions holds for what was made of them; it is not known here.",
    ]
    if kind == "labels" and record.get("vocabulary"):
        lines.append("- A model chose these labels, and no person checked them: they are what it predicts.")
    if statistics := (record.get("domain") or {}).get("statistics"):
        lines += ["", "## Beside what the model learned from", "", "| | in training | here |", "|---|---|---|"]
        lines += [f"| {own['name']} | {own['training']:.3g} | {own['collection']:.3g} |" for own in statistics]
    lines += ["", "## Columns", "", "| column | type | what |", "|---|---|---|"]
    scale = scale_of(schema.empty_table())
    of_numbers = "predicted" if scale is None else f"predicted, on a scale of {scale[0]:g} to {scale[1]:g}"
    meanings = {**COLUMNS, **dict.fromkeys(DIMENSIONS, of_numbers)}
    for side in (side for own in _vectors(record) for side in own["sides"]):
        meanings[f"{side}_embedding"] = VECTOR.format(side="captions" if side == TEXT else side)
    lines += [f"| {field.name} | {field.type} | {meanings.get(field.name, '')} |" for field in schema]
    if vocabulary := record.get("vocabulary"):
        names = vocabulary["labels"]
        lines += ["", f"## Emotions: {vocabulary['name']}, {len(names)} labels", "", ", ".join(names)]
    lines += ["", "## How to open it", "", "Name this folder (here `FOLDER`):", "", "```python"]
    if kind == "labels":
        what = " with one column for each emotion" if record.get("vocabulary") else ""
        lines.append(f'raymotion.open_labels("FOLDER")  # a DataFrame{what}')
        if _vectors(record):
            lines.append('raymotion.search("a dog at sunset", "FOLDER")  # with the model that made it')
    lines += [
        'pandas.read_parquet("FOLDER")',
        'pyarrow.dataset.dataset("FOLDER")',
        'datasets.load_dataset("FOLDER")',
        """duckdb.sql("SELECT * FROM 'FOLDER/**/*.parquet'")""",
        "```",
        "",
        "To publish the rows with this page: `hf upload OWNER/NAME FOLDER . --repo-type dataset --include 'data/*'`, "
        f"then `hf upload OWNER/NAME FOLDER/{CARD} README.md --repo-type dataset`.",
    ]
    return "\n".join(lines) + "\n"


def _vectors(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the description of the model's outputs that are vectors."""
    outputs = (record.get("model") or {}).get("outputs") or ()
    return [own for own in outputs if own.get("type") == Embedding.kind_of_output]


def _made_by(record: Mapping[str, Any]) -> list[str]:
    """Returns lines on how the rows were made: model fingerprint and inputs, extractor, detector or backbones."""
    lines = []
    model = record.get("model") or {}
    if "fingerprint" in model:
        read = " and ".join(model.get("reads") or ()) or "nothing that is recorded"
        lines.append(f"- Made by the {model.get('kind', 'model')} `{model['fingerprint']}`, which read {read}.")
    if usage := record.get("usage"):
        lines.append(f"- Asked `{model['service'].get('model', 'a service')}` behind an endpoint: {spent_text(usage)}.")
    for role in ("extractor", "detector", "backbones"):
        made = model.get(role) or {}
        for name, one in made.items() if all(isinstance(one, Mapping) for one in made.values()) else [(role, made)]:
            lines.append(f"- Made with {one.get('name', name)}, weights {one.get('weights')}.")
    if selection := (record.get("settings") or {}).get("selection"):
        chosen = ", ".join(f"{name} {value}" for name, value in selection.items() if value is not None)
        uncertain = selection.get("policy") == "uncertain"
        what = "Rows selected (the labels are as they were before)" if uncertain else "Labels chosen"
        lines.append(f"- {what} by: {chosen}.")
    choice = record.get("choice") or {}
    if told := told_rates(record["vocabulary"]["labels"], choice) if choice else []:
        lines += [f"- {line}" for line in [*told, *(choice.get("notes") or ())]]
    return lines


def _yaml(value: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True))
