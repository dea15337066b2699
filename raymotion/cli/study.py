"""`raymotion study`."""

from __future__ import annotations

import importlib
from typing import Any

import click

from raymotion.cli.options import cluster_option, progress_option, settings_from
from raymotion.study.settings import StudySettings

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
    """Search the configurations of the three-stream fusion model, stage by stage.

    \b
    Example:
      raymotion study run tune_spaces/ --embeddings embeddings/ --out study/
    """


@study.command(short_help="Run the stages and the joint search; the same command goes on.")
@settings_from(StudySettings, arguments=["spaces"], names={"stages": "stage"}, file=False)
@progress_option
@cluster_option
def run(settings: StudySettings, **where: Any) -> None:
    """Run the stages and the joint search of the folder SPACES; go on where an earlier run was cut off.

    \b
    Examples:
      raymotion study run tune_spaces/ --embeddings embeddings/ --seeds 3 --out study/
      raymotion study run tune_spaces/small/ --embeddings embeddings/ --stage backbones \\
          --stage fusion --no-joint --epochs 10 --out trial/

    Every choice is made on validation, over seeds, and ties are told apart by a paired bootstrap over images. The test
    split is scored once, at the end.
    """
    from raymotion.study.run import run_study

    run_study(settings, **where, say=click.echo)
    click.echo(f"wrote {settings.out}; show it: raymotion study report {settings.out}")
