"""The `raymotion` command. Groups are imported on demand, so that `--help` is fast."""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import click

from raymotion import interrupts
from raymotion.errors import RaymotionError, guess
from raymotion.registry import foreign_classes

# name -> (module, attribute, help line); the help line is given here so that --help imports none of the modules.
COMMANDS = {
    "data": ("raymotion.cli.data", "data", "Prepare sample tables from data sets, or make synthetic ones."),
    "features": ("raymotion.cli.features", "features", "Extract features from images, once."),
    "train": ("raymotion.cli.train", "train", "Train a model from a recipe."),
    "wrap": ("raymotion.cli.wrap", "wrap", "Make a model of a CLIP or a classifier from elsewhere."),
    "finetune": ("raymotion.cli.finetune", "finetune", "Compare AnB, AnB+, BnB, BnB+ and training from scratch."),
    "carryover": ("raymotion.cli.carryover", "carryover", "Test a recipe on domains that it was not trained on."),
    "crossfit": ("raymotion.cli.crossfit", "crossfit", "Predict training samples by models that did not see them."),
    "study": ("raymotion.cli.study", "study", "Search configurations of a model, stage by stage."),
    "tune": ("raymotion.cli.tune", "tune", "Search settings of one recipe."),
    "evaluate": ("raymotion.cli.evaluate", "evaluate", "Score a checkpoint on labelled samples, beside its baselines."),
    "attack": ("raymotion.cli.attack", "attack", "Measure how easily a model is misled."),
    "calibrate": ("raymotion.cli.calibrate", "calibrate", "Fit temperatures on labelled samples of a new domain."),
    "predict": ("raymotion.cli.predict", "predict", "Emotions of one image and its caption."),
    "label": ("raymotion.cli.label", "label", "Label every image of a sample table with a model."),
    "search": ("raymotion.cli.search", "search", "Find pictures by a sentence, or by another picture."),
    "select": ("raymotion.cli.label", "select", "Choose labels anew from stored probabilities."),
    "export": ("raymotion.cli.label", "export", "Write a labelled data set as csv or COCO-style json."),
    "report": ("raymotion.cli.report", "report", "Show a labelled data set as one HTML page."),
    "review": ("raymotion.cli.review", "review", "Look labels through in a browser, and correct them."),
    "audit": ("raymotion.cli.audit", "audit", "Check pseudo-labels against human labels, or themselves."),
    "kinds": ("raymotion.cli.lists", "kinds", "List the kinds of model, their inputs, outputs and losses."),
    "recipes": ("raymotion.cli.lists", "recipes", "List the recipes that come with raymotion."),
    "extractors": ("raymotion.cli.lists", "extractors", "List region extractors and bundled weights."),
    "vocabularies": ("raymotion.cli.lists", "vocabularies", "List the vocabularies of emotions."),
    "readers": ("raymotion.cli.lists", "readers", "List the readers of raw data."),
    "status": ("raymotion.cli.status", "status", "Tell how far a job, a training run or a study is."),
    "push": ("raymotion.cli.hub", "push", "Copy a checkpoint to the Hugging Face hub, or elsewhere."),
    "pull": ("raymotion.cli.hub", "pull", "Copy a checkpoint from the Hugging Face hub, or elsewhere."),
    "demo": ("raymotion.cli.demo", "demo", "Run the whole pipeline on small synthetic data."),
}


class _Interrupted(BaseException):
    """Carries Ctrl-C through click, which would print an empty line for a `KeyboardInterrupt`."""


class LazyGroup(click.Group):
    """Group that imports commands only when they run, and prints errors in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"No such command {args[0]!r}.{guess(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _Interrupted from error

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        arguments = list(sys.argv[1:] if args is None else args)
        # Removed here, so that it works both before and after the command's name.
        debug = wants_debug(arguments)
        arguments = [argument for argument in arguments if argument != "--debug"]
        try:
            return _run(super().main, arguments, *rest, **extra)
        except (KeyboardInterrupt, _Interrupted):
            if debug:
                traceback.print_exc()
            interrupts.tell()
            sys.exit(130)
        except RaymotionError as error:
            if debug:
                traceback.print_exc()
            if not interrupts.stopping():
                click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)
        except Exception as error:
            if debug:
                traceback.print_exc()
            if interrupts.stopping():  # whatever error an interrupted library raised
                sys.exit(130)
            text = str(error).strip().splitlines()
            summary = f"{type(error).__name__}: {text[0] if text else ''}"
            # A full disk or a lost network is the machine's fault; any other error is ours or that of a user's class.
            blame = "" if isinstance(error, OSError) else f" ({_blamed(error)}: --debug shows more)"
            click.echo(f"error: {summary}{blame}", err=True)
            sys.exit(1)


def _blamed(error: BaseException) -> str:
    """Returns the place of the error in a user's code that raymotion has called.

    Without one it is a fault of raymotion's, or of a user's class that takes other arguments or has returned something
    else: then no line of it is in the traceback, and the classes in use are named.
    """
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    libraries = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    foreign = foreign_classes()
    called, place = False, "a fault of raymotion's" + (f", or of {', '.join(foreign)}" if foreign else "")
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename.startswith(package + os.sep):
            called = True
        elif called and os.path.isfile(frame.filename) and not frame.filename.startswith(libraries):
            place = f"in {frame.filename}, line {frame.lineno}"
    return place


def _run(command_main: Callable[..., Any], arguments: list[str], *rest: Any, **extra: Any) -> Any:
    """Runs like click's standalone mode, but raises an interrupt instead of printing "Aborted!" and exiting with 1."""
    try:
        value = command_main(arguments, *rest, **{**extra, "standalone_mode": False})
    except click.Abort as error:  # click's name for Ctrl-C, and for the end of input at a prompt
        raise KeyboardInterrupt from error
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    if extra.get("standalone_mode", True):
        # Without standalone mode, ctx.exit(code) returns the integer code; our commands return None.
        sys.exit(value if isinstance(value, int) else 0)
    return value


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Every command takes --help, with an example, and --debug, for the traceback of an error.",
)
@click.version_option(package_name="raymotion")
def raymotion() -> None:
    """Label image collections with emotions: on a laptop, or on a Ray cluster."""


def wants_debug(arguments: Sequence[str]) -> bool:
    """Tests whether to print tracebacks: with `--debug`, or if RAYMOTION_DEBUG is set."""
    return bool(os.environ.get("RAYMOTION_DEBUG")) or "--debug" in arguments


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line, for a process that does nothing else: entry point of the console script and of `jobs/`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with interrupts.handled(debug=wants_debug(arguments)):
        raymotion(arguments, prog_name="raymotion")


if __name__ == "__main__":
    main()
