"""What a batch job's command prints when it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from raymotion.batch.job import JobSummary


def print_job(summary: JobSummary, *, next_step: str) -> None:
    """Counts, reasons, throughput, notices; the next command of the usual way."""
    record = summary.record
    counts = record["counts"]
    for notice in record["notices"]:
        click.echo(f"note: {notice}")
    for warning in record.get("warnings", []):
        click.echo(f"WARNING: {warning}")
    if summary.already_complete:
        click.echo(f"{summary.folder} is complete already: nothing to do.")
    click.echo(f"{counts['in']} in = {counts['good']} good + {counts['quarantined']} in quarantine -> {summary.folder}")
    for reason, number in counts["by_reason"].items():
        click.echo(f"  quarantine: {number} {reason}")
    throughput = record.get("throughput")
    if throughput and not summary.already_complete:
        click.echo(
            f"{throughput['images_per_second']:.1f} images/s with {throughput['workers']} worker(s); "
            f"{throughput['startup_seconds']:.1f} s before the first image, "
            f"{throughput['finish_seconds']:.1f} s after the last"
        )
    click.echo(f"next: {next_step}")
