"""`raymotion data`: sample tables from raw data sets, and synthetic data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from raymotion.cli.faces import faces
from raymotion.cli.options import access_options

if TYPE_CHECKING:
    import pyarrow as pa

    from raymotion.data.readers.emotic_report import EmoticReport
    from raymotion.data.synthetic.collections import SyntheticReport

OUT_TABLE = click.option(
    "--out", required=True, metavar="FILE", help="Sample table to write (Parquet; local path or s3://)."
)
OUT_FOLDER = click.option("--out", required=True, metavar="FOLDER", help="Folder to write to (local path or s3://).")
SEED = click.option("--seed", default=0, show_default=True, help="Same seed, same result.")
IMAGES = click.option("--images", default=500, show_default=True, help="How many images to make.")
CORRUPT = click.option(
    "--corrupt",
    default=0.0,
    show_default=True,
    metavar="SHARE",
    help="Share of the image files to damage, 0 to 1; corrupt.json lists them.",
)


@click.group()
def data() -> None:
    """Prepare sample tables from raw data sets, or make synthetic ones.

    \b
    Example:
      raymotion data synth coco --images 500 --out demo/coco
      raymotion data prepare coco demo/coco --split val2017 --out coco.parquet
    """


data.add_command(faces)


@data.group()
def synth() -> None:
    """Make a small data set in the on-disk format of a real one.

    \b
    Example:
      raymotion data synth coco --images 500 --out demo/coco
    """


@synth.command("coco")
@IMAGES
@OUT_FOLDER
@SEED
@click.option("--split", default="val2017", show_default=True, metavar="NAME", help="COCO's name for the split.")
@CORRUPT
def synth_coco(images: int, out: str, seed: int, split: str, corrupt: float) -> None:
    """Pictures with captions, boxes and keypoints, as in COCO.

    \b
    Example:
      raymotion data synth coco --images 500 --out demo/coco
      raymotion data synth coco --images 2000 --corrupt 0.01 --seed 7 --out broken/
    """
    from raymotion.data.synthetic.collections import write_coco

    _say_written(out, write_coco(out, images, seed, split=split, corrupt=corrupt))


@synth.command("socratis")
@IMAGES
@OUT_FOLDER
@SEED
@CORRUPT
def synth_socratis(images: int, out: str, seed: int, corrupt: float) -> None:
    """Pictures with a caption each and simulated annotators, as in Socratis: the raw json and the cleaned csv.

    \b
    Example:
      raymotion data synth socratis --images 400 --out demo/socratis
    """
    from raymotion.data.synthetic.collections import write_socratis

    _say_written(out, write_socratis(out, images, seed, corrupt=corrupt))


@synth.command("emotic")
@click.option("--persons", default=2000, show_default=True, help="How many persons to draw, one to four in an image.")
@OUT_FOLDER
@SEED
@click.option(
    "--format",
    "kind",
    type=click.Choice(["mat", "csv", "both"]),
    default="both",
    show_default=True,
    help="Annotations as EMOTIC's .mat, as the csv files of the public conversion, or both.",
)
@click.option(
    "--defects",
    default=0.0,
    show_default=True,
    metavar="SHARE",
    help="Share of the images to give one of EMOTIC's known defects, 0 to 1; defects.json lists them.",
)
def synth_emotic(persons: int, out: str, seed: int, kind: str, defects: float) -> None:
    """Persons whose surroundings, bodies and faces each tell something else of their emotions, as in EMOTIC.

    faces.csv holds the true face boxes, for `raymotion data prepare emotic --faces`: no detector knows a drawn face.

    \b
    Example:
      raymotion data synth emotic --persons 2000 --out demo/emotic
      raymotion data synth emotic --persons 300 --defects 0.1 --format mat --out broken/
    """
    from raymotion.data.synthetic.emotic import write_emotic

    report = write_emotic(out, persons, seed, kind=kind, defects=defects)
    _say("images", report.images)
    _say("persons", f"{report.persons:,}, {report.faces:,} with a face that can be seen")
    _say("split", ", ".join(f"{name} {count:,}" for name, count in report.splits.items()))
    if report.defects:
        _say("defects", ", ".join(f"{name} {count:,}" for name, count in report.defects.items()))
    _say("files", ", ".join(report.files))
    _say("wrote", out)


@data.group()
def prepare() -> None:
    """Turn a raw data set into a sample table, which every job takes.

    \b
    Example:
      raymotion data prepare folder PHOTOS --captions captions.jsonl --out mine.parquet
    """


@prepare.command("coco")
@click.argument("root")
@click.option("--split", default="val2017", show_default=True, metavar="NAME", help="COCO's name: train2014, val2017.")
@click.option("--persons", is_flag=True, help="One row per person, with body and face box, instead of one per image.")
@click.option(
    "--min-side", default=32.0, show_default=True, metavar="PIXELS", help="With --persons: leave smaller boxes out."
)
@OUT_TABLE
def prepare_coco(root: str, split: str, persons: bool, min_side: float, out: str) -> None:
    """COCO images with their captions. ROOT holds annotations/ and the folder of the split.

    Other data sets in COCO's format are read too: an annotation belongs to the picture that the entry of its image_id
    names in file_name, a path below the folder of the split or below ROOT. Boxes are checked against the pictures.

    \b
    Example:
      raymotion data prepare coco ROOT --split val2017 --out coco.parquet
      raymotion data prepare coco ROOT --split train2017 --persons --out persons.parquet
    """
    from raymotion.data.readers.coco import read_coco
    from raymotion.data.samples import require_table_or_nothing, write_samples

    require_table_or_nothing(out)
    table, report = read_coco(root, split, persons=persons, min_side=min_side)
    write_samples(out, table)
    _say("rows", report.rows)
    _say("images", f"{report.images:,}", report.no_image - report.dropped_entries, "not on disk")
    _say("captions", f"{report.captions:,}", report.empty_captions, "empty ones left out")
    if persons:
        _say("persons", f"{report.persons:,}, {report.bodies:,} with a body box, {report.faces:,} with a face box")
        boxes = f"{report.small_boxes:,} small and {report.degenerate_boxes:,} degenerate boxes"
        _say("left out", f"{boxes}, {report.crowds:,} crowds")
    _note(report.notes())
    _say_table(table, out)


@prepare.command("socratis")
@click.argument("path", metavar="FILE")
@click.option("--images", metavar="FOLDER", help="Folder of the pictures. Default: none, captions only.")
@click.option(
    "--vocabulary",
    metavar="NAME",
    help="Take the labels of this vocabulary (socratis-29) and drop all other words. Default: those of the file.",
)
@click.option(
    "--min-images",
    default=100,
    show_default=True,
    metavar="N",
    help="Of the raw json: leave out labels on fewer images. Not used with --vocabulary or a csv.",
)
@click.option("--val-fraction", default=0.1, show_default=True, metavar="SHARE", help="Share of images for validation.")
@click.option("--test-fraction", default=0.1, show_default=True, metavar="SHARE", help="Share of images for the test.")
@click.option("--no-split", is_flag=True, help="Leave the split column empty.")
@SEED
@OUT_TABLE
def prepare_socratis(
    path: str,
    images: str | None,
    vocabulary: str | None,
    min_images: int,
    val_fraction: float,
    test_fraction: float,
    no_split: bool,
    seed: int,
    out: str,
) -> None:
    """Socratis, from its raw json or the cleaned csv; which one FILE is, its content tells.

    Images are split into train, validation and test by --seed, so that each has its part of the rare labels (iterative
    stratification).

    \b
    Example:
      raymotion data prepare socratis cleaned_data.csv --images DIR --out socratis.parquet
      raymotion data prepare socratis raw.json --vocabulary socratis-29 --seed 3 --out socratis.parquet
    """
    from raymotion.data.readers.socratis import read_socratis
    from raymotion.data.samples import require_table_or_nothing, write_samples
    from raymotion.data.splits import empty_splits, split_samples
    from raymotion.vocabulary import get_vocabulary

    require_table_or_nothing(out)
    fractions = {"train": round(1.0 - val_fraction - test_fraction, 9), "val": val_fraction, "test": test_fraction}
    chosen = get_vocabulary(vocabulary) if vocabulary else None
    table, report = read_socratis(path, images, min_images=min_images, vocabulary=chosen)
    few = None
    if not no_split:
        table = split_samples(table, fractions=fractions, seed=seed)
        few = empty_splits(table, fractions)
    write_samples(out, table)
    _say("rows", report.rows)
    if images:
        _say("images", f"{report.images_found:,}", report.images_missing, f"not in {images}")
    else:
        _say("images", "none: no --images folder was given")
    _say("captions", report.captions)
    if report.weighted:
        _say("annotators", f"{report.annotators:,} entries; label_weights are their shares")
    top = sorted(report.labels.items(), key=lambda item: -item[1])[:5]
    _say("labels", f"{len(report.labels)}; most common: " + ", ".join(f"{name} {count:,}" for name, count in top))
    _note(report.notes() + ([few] if few else []))
    _say_table(table, out)


@prepare.command("folder")
@click.argument("folder")
@click.option("--captions", metavar="FILE", help="Captions as .jsonl, .csv, .tsv or .json. Default: none, images only.")
@OUT_TABLE
def prepare_folder(folder: str, captions: str | None, out: str) -> None:
    """Any folder of pictures, searched to the bottom, with captions from a file.

    Links to files and folders are followed. Every file that is left out, and every caption that finds no picture, is
    counted under its reason.

    \b
    Lines of a .jsonl:    {"file": "trip/1.jpg", "caption": "A boat at sunset."}
    Columns of a .csv:    file,caption        (a file's second line is its second caption)
    Columns of a .tsv:    the same, with tabs (no quotes: a quote is a character like any other)

    \b
    Example:
      raymotion data prepare folder PHOTOS --captions captions.jsonl --out mine.parquet
    """
    from raymotion.data.readers.folder import read_folder
    from raymotion.data.samples import require_table_or_nothing, write_samples

    require_table_or_nothing(out)
    table, report = read_folder(folder, captions)
    write_samples(out, table)
    _say("rows", report.rows)
    _say("captions", f"{report.captions:,}", report.without_caption, "images have none")
    _note(report.notes())
    _say_table(table, out)


@prepare.command("emotic")
@click.argument("root")
@click.option(
    "--annotations",
    metavar="PATH",
    help="Annotations.mat, one of train.csv, val.csv, test.csv, or a folder with either. Default: found in ROOT.",
)
@click.option(
    "--faces",
    metavar="FILE",
    help="Csv of face boxes: split, index, x1, y1, x2, y2 and optionally filename, which must match. "
    "Default: none; EMOTIC has no face boxes.",
)
@click.option("--keep-missing", is_flag=True, help="Keep persons whose image is not there, for counting labels.")
@click.option(
    "--keep-leaked",
    is_flag=True,
    help="Keep the train copies of images that are in val or test too. Training refuses such a table.",
)
@click.option(
    "--keep-suspect-boxes", is_flag=True, help="Keep body boxes that a swapped image size has cut, instead of none."
)
@click.option("--report", "report_file", metavar="FILE", help="Write all counts and findings as JSON. Default: not.")
@OUT_TABLE
def prepare_emotic(
    root: str,
    annotations: str | None,
    faces: str | None,
    keep_missing: bool,
    keep_leaked: bool,
    keep_suspect_boxes: bool,
    report_file: str | None,
    out: str,
) -> None:
    """EMOTIC, one row for each person, its known defects found. ROOT holds Annotations/ and emotic/ as published.

    Also read: the train.csv, val.csv and test.csv of the public conversion, in ROOT or ROOT/emotic_pre.

    \b
    Example:
      raymotion data prepare emotic ROOT --out emotic.parquet
      raymotion data prepare emotic demo/emotic --faces demo/emotic/faces.csv --report emotic.json --out e.parquet
    """
    from raymotion.data.readers.emotic import read_emotic
    from raymotion.data.readers.emotic_report import is_report
    from raymotion.data.samples import require_table_or_nothing, write_samples
    from raymotion.folders.outputs import require_replaceable
    from raymotion.storage import write_json

    if report_file:
        require_replaceable(report_file, "a report on EMOTIC", is_report)
    require_table_or_nothing(out)
    table, report = read_emotic(
        root,
        annotations=annotations,
        faces=faces,
        keep_missing=keep_missing,
        keep_leaked=keep_leaked,
        keep_suspect_boxes=keep_suspect_boxes,
    )
    write_samples(out, table)
    if report_file:
        write_json(report_file, report.to_dict())
    _say_emotic(report)
    _say_table(table, out)


def _say_emotic(report: EmoticReport) -> None:
    _say("rows", f"{report.rows:,} persons in {report.images:,} images, {report.bodies:,} with a body box")
    _say("faces", f"{report.faces:,}" if report.faces else "none: EMOTIC has no face boxes")
    for name, split in report.splits.items():
        left = f"{split.persons:,} persons annotated ({split.annotated_by}), {split.rows:,} kept"
        _say(name, left)
    _note(report.notes())
    for line in report.prevalence_table():
        click.echo(line)


def _say(name: str, value: int | str, count: int = 0, what: str = "") -> None:
    text = f"{value:,}" if isinstance(value, int) else value
    click.echo(f"{name:<11}{text}" + (f" ({count:,} {what})" if count else ""))


def _note(lines: list[str]) -> None:
    for line in lines:
        click.echo(f"{'note':<11}{line}")


def _say_table(table: pa.Table, out: str) -> None:
    import pyarrow.compute as pc

    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(table.column("split")).to_pylist()}
    sizes = [f"{name} {counts[name]:,}" for name in ("train", "val", "test") if name in counts]
    if sizes:
        _say("split", ", ".join(sizes))
    _say("wrote", out)


def _say_written(out: str, report: SyntheticReport) -> None:
    _say("images", f"{report.images:,}", report.corrupt, "damaged, listed in corrupt.json")
    _say("captions", report.captions)
    _say("files", ", ".join(report.files))
    _say("wrote", out)


for _command in prepare.commands.values():
    access_options(_command)
