"""`raymotion calibrate`: fits temperatures on labelled samples of a new domain."""

from __future__ import annotations

import click

from raymotion.cli.options import access_options, settings_from
from raymotion.evaluation.calibrate import CalibrateSettings


@click.command()
@settings_from(CalibrateSettings, arguments=["model", "samples"], file=False)
@access_options
def calibrate(settings: CalibrateSettings) -> None:
    """Fit temperatures on labelled samples of a new domain, so that the model's probabilities hold there.

    MODEL is a checkpoint, SAMPLES a sample table with people's labels, of which rows of the split test are not used.
    The checkpoint in --out has the same weights, and the temperatures: one for all rows and, with --by, one for the
    rows of each value. `label`, `evaluate` and `predict` use them. The order of images within a label and a domain
    stays.

    \b
    Example:
      raymotion calibrate teacher/ captions.parquet --out teacher-calibrated/
      raymotion calibrate teacher/ mixed.parquet --by source --out teacher-calibrated/
    """
    from raymotion.evaluation.calibrate import calibrate_checkpoint
    from raymotion.text_table import table_lines

    done = calibrate_checkpoint(settings)
    heads = [
        settings.by or "rows",
        "rows",
        "temperature",
        "BCE before",
        "one for all",
        "after",
        "gain",
        "95 % interval",
    ]
    rows = [
        [
            own.domain, f"{own.rows:,}", f"{own.temperature:.3f}", f"{own.before:.4f}", f"{own.global_after:.4f}",
            f"{own.after:.4f}", f"{own.before - own.after:+.4f}",
            "" if own.gain_low is None else f"{own.gain_low:+.4f} to {own.gain_high:+.4f}",
        ]
        for own in done.domains
    ]  # fmt: skip
    for line in table_lines(heads, rows):
        click.echo(line)
    click.echo("BCE is of rows that the temperature was not fitted to (5-fold cross-validation over images).")
    for own in done.domains:
        if own.gain_low is not None and own.gain_low <= 0:
            click.echo(f"note: for {own.domain} the gain is not clear of 0: calibration may do nothing there.")
    for note in done.notes:
        click.echo(f"note: {note}")
    click.echo(f"wrote {done.info.folder} (fingerprint {done.info.fingerprint})")
