"""`raymotion study`."""

from __future__ import annotations

import importlib
from typing import Any

import click

from raymotion.cli.options import cluster_option, progress_option

# Elsewhere, and imported only when asked for.
ELSEWHERE = {"report": ("raymotion.cli.study_report", "report", "Show a study as one HTML page.")}


class StudyGroup(click.Group):
    """`run` stands here; the others are imported when they are run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *ELSEWHERE]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in ELSEWHERE:
            module, attribute, _ = ELSEWHERE[cmd_name]
            command = getattr(importlib.import_module(module), attribute)
            assert isinstance(command, click.Command)
            return command
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own = [(name, command.get_short_help_str(90)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl([*own, *((name, line) for name, (_, _, line) in ELSEWHERE.items())])


@click.group(cls=StudyGroup)
def study() -> None:
    """Search configurations of a model, stage by stage.

    \b
    Example:
      raymotion study run tune_spaces/emotic/ --embeddings embeddings/ --out study/
    """


@study.command(short_help="Run the stages and the joint search; the same command goes on.")
@click.argument("spaces")
@click.option("--embeddings", multiple=True, required=True, metavar="DIR",
              help="Of `raymotion features embeddings`; repeat for several of the same samples.")  # fmt: skip
@click.option("--out", required=True, metavar="DIR", help="Folder of the study; may be an s3:// address.")
@click.option("--samples", metavar="PARQUET", help="Sample table.  [default: the one the embeddings were made of]")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Trainings of each configuration.")
@click.option("--epochs", type=click.IntRange(1), help="Most epochs (optimiser.epochs).  [default: the recipe's, 20]")
@click.option("--stages", metavar="NAMES", help="Only these, as backbones,fusion.  [default: all]")
@click.option("--skip-joint", is_flag=True, help="Leave the joint search out.  [default: it runs]")
@click.option("--no-early-stopping", is_flag=True, help="Train every configuration to its end.  [default: ASHA stops]")
@click.option("--ties", type=click.Choice(["incumbent", "highest"]), default="incumbent", show_default=True,
              help="What a stage carries on where validation tells no difference.")  # fmt: skip
@click.option("--concurrent", type=click.IntRange(1), help="Configurations at a time.  [default: as many as fit]")
@click.option("--cpus-per-trial", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True,
              help="CPUs of a configuration.")  # fmt: skip
@click.option("--gpus-per-trial", type=click.FloatRange(0),
              help="GPUs of a configuration.  [default: 0.25 where there are any]")  # fmt: skip
@click.option("--autoscale", is_flag=True,
              help="The cluster starts nodes for configurations that wait: refuse nothing for want of room. Needs "
              "--concurrent, and --gpus-per-trial where no GPU is up yet.  [default: what is there]")  # fmt: skip
@click.option("--retry-failed", is_flag=True, help="Train those again that failed.  [default: they stay failed]")
@progress_option
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE",
              help="Override one setting of the recipe (repeatable).  [default: as the recipe says]")  # fmt: skip
@cluster_option
def run(
    spaces: str,
    embeddings: tuple[str, ...],
    stages: str | None,
    skip_joint: bool,
    no_early_stopping: bool,
    assignments: tuple[str, ...],
    address: str | None,
    progress: Any,
    **options: Any,
) -> None:
    """Run the stages and the joint search of the folder SPACES; go on where an earlier run was cut off.

    \b
    Examples:
      raymotion study run tune_spaces/emotic/ --embeddings embeddings/ --seeds 3 --out study/
      raymotion study run tune_spaces/emotic-small/ --embeddings embeddings/ --stages backbones,fusion \\
          --skip-joint --epochs 10 --out trial/

    Every choice is made on validation, over seeds, and ties are told apart by a paired bootstrap over images. The test
    split is scored once, at the end.
    """
    from raymotion.config import load_settings
    from raymotion.study.run import run_study
    from raymotion.study.settings import StudySettings

    settings = load_settings(
        StudySettings,
        options={
            **options, "spaces": spaces, "embeddings": list(embeddings), "joint": not skip_joint,
            "stages": [name.strip() for name in stages.split(",") if name.strip()] if stages else None,
            "early_stopping": not no_early_stopping, "set": list(assignments),
        },
    )  # fmt: skip
    run_study(settings, address=address, progress=progress, say=click.echo)
    click.echo(f"wrote {settings.out}; show it: raymotion study report {settings.out}")
