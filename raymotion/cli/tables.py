"""`raymotion data show`, `merge` and `split`: sample tables."""

from __future__ import annotations

import click

from raymotion.cli.options import access_options

OUT = click.option("--out", required=True, metavar="FILE", help="Sample table to write (Parquet; local path or s3://).")
ROWS = 10


@click.command()
@click.argument("samples")
@click.option("--rows", default=ROWS, show_default=True, type=click.IntRange(min=0), help="How many rows to show.")
@access_options
def show(samples: str, rows: int) -> None:
    """Show what a sample table holds: counts, the share of each label in each split, and its first rows.

    \b
    Example:
      raymotion data show mine.parquet
    """
    from raymotion.data.captions import one_line
    from raymotion.data.readers.reader import report_line
    from raymotion.data.samples import SPLITS, read_samples
    from raymotion.data.tables import describe
    from raymotion.text_table import table_lines

    table = read_samples(samples)
    found = describe(table, where=samples)
    sources = ", ".join(f"{name} {count:,}" for name, count in found.sources.items())
    splits = ", ".join(f"{name or 'none'} {count:,}" for name, count in found.splits.items())
    lines = [
        report_line("rows", f"{found.rows:,} ({sources})"),
        report_line("groups", found.groups),
        report_line("pictures", found.pictures),
        report_line("captions", found.captions),
        report_line("splits", splits or "none"),
        report_line("labelled", found.labelled),
    ]
    if found.label_sources:
        told = ", ".join(f"{name} {count:,}" for name, count in found.label_sources.items())
        lines.append(report_line("by", told))
    if found.vocabulary is not None:
        lines.append(
            report_line("vocabulary", f"{found.vocabulary.name}, {len(found.vocabulary)} labels"
                        f" ({found.vocabulary.fingerprint})")
        )  # fmt: skip
    if found.scale is not None:
        lines.append(report_line("scale", f"{found.scale[0]:g} to {found.scale[1]:g}"))
    lines += [
        report_line(name, f"{mean:.2f} (sd {sd:.2f}, {count:,} rows)")
        for name, (count, mean, sd) in found.numbers.items()
    ]
    if found.labelled:
        shares = [
            [label, *("" if (share := own[split]) is None else f"{100 * share:.1f} %" for split in ("", *SPLITS))]
            for label, own in sorted(found.prevalence.items(), key=lambda pair: -(pair[1][""] or 0.0))
        ]
        lines += ["", *table_lines(("label", "all", *SPLITS), shares)]
    if rows and found.rows:
        some = [
            [
                row["sample_id"], row["split"] or "", ", ".join(row["labels"] or ()), row["image_uri"] or "",
                one_line(" / ".join(row["captions"]))[:60],
            ]
            for row in table.slice(0, rows).to_pylist()
        ]  # fmt: skip
        lines += ["", *table_lines(("sample_id", "split", "labels", "image_uri", "captions"), some, left=range(5))]
    for line in lines:
        click.echo(line)


@click.command()
@click.argument("samples", nargs=-1, required=True)
@OUT
@access_options
def merge(samples: tuple[str, ...], out: str) -> None:
    """Merge sample tables of one vocabulary into one.

    \b
    Example:
      raymotion data merge coco.parquet mine.parquet --out both.parquet
    """
    from raymotion.data.readers.reader import report_line
    from raymotion.data.samples import require_table_or_nothing, write_samples
    from raymotion.data.tables import merge_tables

    require_table_or_nothing(out)
    table = merge_tables(samples)
    write_samples(out, table)
    click.echo(report_line("rows", table.num_rows, len(samples), "tables"))
    click.echo(report_line("wrote", out))


@click.command()
@click.argument("samples")
@OUT
@click.option("--val-fraction", default=0.1, show_default=True, metavar="SHARE", help="Share of groups for validation.")
@click.option("--test-fraction", default=0.1, show_default=True, metavar="SHARE", help="Share of groups for the test.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same result.")
@access_options
def split(samples: str, out: str, val_fraction: float, test_fraction: float, seed: int) -> None:
    """Split a sample table anew: groups stay together, and each split has its part of rare labels and of each valence.

    \b
    Example:
      raymotion data split both.parquet --val-fraction 0.1 --test-fraction 0.2 --out both-split.parquet
    """
    from raymotion.data.readers.reader import report_line
    from raymotion.data.samples import SPLITS, read_samples, require_table_or_nothing, write_samples
    from raymotion.data.splits import empty_splits, split_samples

    require_table_or_nothing(out)
    fractions = {"train": round(1.0 - val_fraction - test_fraction, 9), "val": val_fraction, "test": test_fraction}
    table = split_samples(read_samples(samples), fractions=fractions, seed=seed)
    write_samples(out, table)
    found = table.column("split").to_pylist()
    click.echo(report_line("split", ", ".join(f"{name} {found.count(name):,}" for name in SPLITS)))
    if (few := empty_splits(table, fractions)) is not None:
        click.echo(report_line("note", few))
    click.echo(report_line("wrote", out))
