"""Output of batch job commands at their end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from raymotion.batch.job import JobSummary


def print_verdict(collapse: Mapping[str, Any]) -> None:
    """Prints the collapse check's line, in red if it failed."""
    click.secho(collapse["headline"], fg="red" if collapse["collapsed"] else None, bold=True)


def print_rates(record: Mapping[str, Any]) -> None:
    """Prints which class rates moved most, if labels or rows were chosen by estimated ones, and the notes on it."""
    from raymotion.learning.priors import told_rates

    choice = record.get("choice") or {}
    for line in told_rates(record["vocabulary"]["labels"], choice) if choice else ():
        click.echo(line)
    for note in choice.get("notes", ()):
        click.echo(f"note: {note}")


def print_domain(domain: Mapping[str, Any]) -> None:
    """Prints the line of the domain check, in yellow if the collection is far from the training data."""
    click.secho(domain["headline"], fg="yellow" if domain["grade"] == "far" else None)


def _place(workers: int) -> str:
    if not workers:
        return "in this process, without Ray"
    return f"with {workers} worker{'' if workers == 1 else 's'}"


def print_job(summary: JobSummary, *, next_step: str) -> None:
    """Prints counts, reasons, throughput, notices, and the usual next command."""
    record = summary.record
    counts = record["counts"]
    collapse = record.get("collapse")
    if collapse:
        print_verdict(collapse)
    if domain := record.get("domain"):
        print_domain(domain)
    for notice in record["notices"]:
        click.echo(f"note: {notice}")
    print_rates(record)
    if summary.already_complete:
        click.echo(f"{summary.folder} is complete already: nothing to do.")
    click.echo(f"{counts['in']} in = {counts['good']} good + {counts['quarantined']} in quarantine -> {summary.folder}")
    for reason, number in counts["by_reason"].items():
        click.echo(f"  quarantine: {number} {reason}")
    if kept := counts.get("damaged_kept"):
        click.echo(f"  kept: {kept} with a damaged picture, as it decodes (--damaged keep)")
    if usage := record.get("usage"):
        from raymotion.pipeline.ask import spent_text

        click.echo(f"asked: {spent_text(usage)}")
    throughput = record.get("throughput")
    if throughput and not summary.already_complete:
        unit = throughput.get("unit", "images")
        click.echo(
            f"{throughput['images_per_second']:.1f} {unit}/s {_place(throughput['workers'])}, from the first "
            f"worker ready to the last shard ({throughput['steady_seconds']:.1f} s); "
            f"{throughput['startup_seconds']:.1f} s to start, {throughput['finish_seconds']:.1f} s to finish"
        )
    click.echo(f"next: {next_step}")
