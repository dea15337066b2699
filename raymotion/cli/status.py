"""`raymotion status`."""

from __future__ import annotations

import click

from raymotion.cli.options import access_options


@click.command()
@click.argument("folder")
@access_options
def status(folder: str) -> None:
    """Tell how far a job, a training run or a study is, from its folder alone: also of one that has died.

    FOLDER is what was given as --out, local or s3://. Of `crossfit`, `carryover`, `finetune` and `attack
    poison` it counts the runs.

    \b
    Example:
      raymotion status labels/
      raymotion status s3://bucket/teacher
    """
    from raymotion import storage
    from raymotion.batch.status import is_job, job_status
    from raymotion.errors import InputError
    from raymotion.study.status import is_study, study_status
    from raymotion.train.status import comparison_status, is_comparison, is_training, training_status

    for is_one, status_of in (
        (is_job, job_status), (is_study, study_status), (is_comparison, comparison_status),
        (is_training, training_status),
    ):  # fmt: skip
        if is_one(folder):
            for line in status_of(folder).text():
                click.echo(line)
            return
    if not storage.exists(folder):
        raise InputError("no such folder", path=folder, remedy="Name the folder that was given as --out.")
    raise InputError(
        "holds no job, no training run, no comparison of runs and no study",
        path=folder,
        remedy="Name the folder that was given as --out. A command that has just begun has written nothing yet, and a "
        "job that ends without a commit leaves nothing.",
    )
