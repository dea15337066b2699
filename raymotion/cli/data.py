"""`raymotion data`: sample tables from raw data sets, and synthetic data sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from raymotion.cli.annotation import export
from raymotion.cli.faces import faces
from raymotion.cli.options import access_options
from raymotion.cli.settings_options import options_from
from raymotion.cli.tables import merge, show, split

if TYPE_CHECKING:
    from raymotion.data.readers.reader import Reader

OUT = click.option("--out", required=True, metavar="FOLDER", help="Folder to write to (local path or s3://).")
SEED = click.option("--seed", default=0, show_default=True, help="Same seed, same result.")
IMAGES = click.option("--images", default=500, show_default=True, help="How many images to make.")
SIZE = click.option("--size", default=64, show_default=True, metavar="PIXELS", help="Width and height of the pictures.")
CORRUPT = click.option(
    "--corrupt",
    default=0.0,
    show_default=True,
    metavar="SHARE",
    help="Share of the image files to damage, 0 to 1; corrupt.json lists them.",
)


@click.group()
def data() -> None:
    """Prepare sample tables from raw data sets, show, merge and split them, make synthetic ones, or export tasks.

    \b
    Example:
      raymotion data synth coco --images 500 --out demo/coco
      raymotion data prepare coco demo/coco --split val2017 --out coco.parquet
    """


for own in (faces, show, merge, split, export):
    data.add_command(own)


@data.group()
def synth() -> None:
    """Make a small data set in the on-disk format of a real one.

    \b
    Example:
      raymotion data synth coco --images 500 --out demo/coco
    """


@synth.command("coco")
@IMAGES
@OUT
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

    _echo(write_coco(out, images, seed, split=split, corrupt=corrupt).lines(), out)


@synth.command("socratis")
@IMAGES
@OUT
@SEED
@CORRUPT
def synth_socratis(images: int, out: str, seed: int, corrupt: float) -> None:
    """Pictures with a caption each and simulated annotators, as in Socratis: the raw json and the cleaned csv.

    \b
    Example:
      raymotion data synth socratis --images 400 --out demo/socratis
    """
    from raymotion.data.synthetic.collections import write_socratis

    _echo(write_socratis(out, images, seed, corrupt=corrupt).lines(), out)


@synth.command("emotic")
@click.option("--persons", default=2000, show_default=True, help="How many persons to draw, one to four in an image.")
@OUT
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
    """Persons whose surroundings, bodies and faces each carry different information on their emotions, as in EMOTIC.

    faces.csv holds the true face boxes, for `raymotion data prepare emotic --faces`: detectors do not find drawn faces.

    \b
    Example:
      raymotion data synth emotic --persons 2000 --out demo/emotic
      raymotion data synth emotic --persons 300 --defects 0.1 --format mat --out broken/
    """
    from raymotion.data.synthetic.emotic import write_emotic

    _echo(write_emotic(out, persons, seed, kind=kind, defects=defects).lines(), out)


@synth.command("deep-connotation")
@click.option("--images", default=640, show_default=True, help="Rows of the csv, shared evenly by the eight emotions.")
@SIZE
@OUT
@SEED
def synth_deep_connotation(images: int, size: int, out: str, seed: int) -> None:
    """Pictures of eight emotions with votes, as in DeepConnotation: the merged csv, and labels.json.

    Some pictures were found by two searches, and some are gone.

    \b
    Example:
      raymotion data synth deep-connotation --images 640 --out demo/deep-connotation
    """
    from raymotion.data.synthetic.deep_connotation import write_deep_connotation

    _echo(write_deep_connotation(out, images, seed, size=size).lines(), out)


@synth.command("flickr8k")
@IMAGES
@click.option("--size", default=240, show_default=True, metavar="PIXELS", help="Longer side of the pictures.")
@OUT
@SEED
def synth_flickr8k(images: int, size: int, out: str, seed: int) -> None:
    """Pictures with five captions of what is seen, as in Flickr8k: captions.txt, the token file and Karpathy's json.

    \b
    Example:
      raymotion data synth flickr8k --images 500 --out demo/flickr8k
      raymotion data prepare flickr8k demo/flickr8k/captions.txt --out flickr8k.parquet
    """
    from raymotion.data.synthetic.flickr8k import write_flickr8k

    _echo(write_flickr8k(out, images, seed, size=size).lines(), out)


@synth.command("gaped")
@IMAGES
@SIZE
@OUT
@SEED
def synth_gaped(images: int, size: int, out: str, seed: int) -> None:
    """Pictures with valence and arousal from 0 to 100, as in GAPED: .bmp files, and ratings with and without SDs.

    \b
    Example:
      raymotion data synth gaped --images 730 --out demo/gaped
    """
    from raymotion.data.synthetic.rated import write_gaped

    _echo(write_gaped(out, images, seed, size=size).lines(), out)


@synth.command("oasis")
@IMAGES
@SIZE
@OUT
@SEED
def synth_oasis(images: int, size: int, out: str, seed: int) -> None:
    """Pictures with valence and arousal from 1 to 7, as in OASIS: themes of three to five that look nearly the same.

    \b
    Example:
      raymotion data synth oasis --images 600 --out demo/oasis
    """
    from raymotion.data.synthetic.rated import write_oasis

    _echo(write_oasis(out, images, seed, size=size).lines(), out)


class ReaderGroup(click.Group):
    """Group with a command for each reader, made from its class on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from raymotion.data.readers.reader import READERS

        return list(READERS.places())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        from raymotion.data.readers.reader import READERS

        return _prepare_command(cmd_name, READERS.get(cmd_name))


@data.group(cls=ReaderGroup)
def prepare() -> None:
    """Convert a raw data set to a sample table, the input of all jobs.

    Your own reader is given as my_package.my_module:MyReader, or by its name if its package is installed.

    \b
    Example:
      raymotion data prepare folder PHOTOS --captions captions.jsonl --out mine.parquet
    """


def _prepare_command(name: str, reader: type[Reader]) -> click.Command:
    needed = [field for field, info in reader.model_fields.items() if info.is_required()]

    @click.command(name, help=reader.__doc__)
    @options_from(reader, arguments=needed)
    @click.option("--out", required=True, metavar="FILE", help="Sample table to write (Parquet; local path or s3://).")
    @click.option(
        "--relative", is_flag=True, help="Write addresses relative to the table's folder, so that both can be moved."
    )
    @access_options
    def command(out: str, relative: bool, **options: Any) -> None:
        from raymotion import storage
        from raymotion.config import load_settings
        from raymotion.data.readers.reader import read_all, report_line, require_read
        from raymotion.data.samples import relative_to, require_table_or_nothing, write_samples

        require_read(reader)
        settings = load_settings(reader, options=options)
        require_table_or_nothing(out)
        table, report = read_all(settings)
        write_samples(out, relative_to(table, storage.parent(storage.absolute(out))) if relative else table)
        splits = Counter(table["split"].to_pylist())
        sizes = [f"{split} {splits[split]:,}" for split in ("train", "val", "test") if splits[split]]
        _echo([*report.lines(), *([report_line("split", ", ".join(sizes))] if sizes else [])], out)

    return command


def _echo(lines: Sequence[str], out: str) -> None:
    from raymotion.data.readers.reader import report_line

    for text in [*lines, report_line("wrote", out)]:
        click.echo(text)
