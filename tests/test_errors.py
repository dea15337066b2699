"""What a user reads when something is wrong: one line, the right exit code, the traceback only when asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymotion.errors import (
    AccessDenied,
    InputError,
    RaymotionError,
    RunFailed,
    SettingsMismatch,
    VocabularyMismatch,
)


@pytest.mark.parametrize(
    "error, text",
    [
        (InputError("bad"), "bad"),
        (InputError("bad", path="a.csv"), "a.csv: bad"),
        (InputError("bad", path=Path("a.csv"), row=0), "a.csv, row 0: bad"),
        (InputError("bad", row=17), "row 17: bad"),
        (InputError("bad", path="a.csv", remedy="Mend it."), "a.csv: bad. Mend it."),
        (InputError("bad.", remedy="Mend it."), "bad. Mend it."),
        (InputError("bad", path="a.csv", row="coco:1"), "a.csv, row coco:1: bad"),
    ],
)
def test_the_message_names_file_row_reason_and_remedy(error, text):
    assert str(error) == text


@given(
    st.text(min_size=1), st.none() | st.text(min_size=1), st.none() | st.integers(0), st.none() | st.text(min_size=1)
)
def test_nothing_that_is_known_is_left_out(reason, path, row, remedy):
    text = str(InputError(reason, path=path, row=row, remedy=remedy))
    assert reason.rstrip(".") in text
    assert (path or "") in text and (remedy or "") in text
    assert row is None or f"row {row}" in text


@pytest.mark.parametrize(
    "kind, code", [(InputError, 2), (AccessDenied, 2), (VocabularyMismatch, 2), (SettingsMismatch, 2), (RunFailed, 1)]
)
def test_exit_codes(kind, code):
    assert kind("x").exit_code == code
    assert isinstance(kind("x"), RaymotionError)


FAULTS = """
import click, os, signal, sys
from raymotion.cli import main as cli
from raymotion.errors import InputError, RunFailed

@click.command()
@click.argument("what")
@click.option("--count", type=int, default=1)
def probe(what, count):
    if what == "input": raise InputError("column emotions is missing", path="a.csv", remedy="Add it.")
    if what == "run": raise RunFailed("a worker died")
    if what == "bug": raise ZeroDivisionError("division by zero\\nsecond line")
    if what == "disk": raise OSError(28, "No space left on device")
    # A shell's background job ignores SIGINT, and so would its children.
    if what == "interrupt": signal.signal(signal.SIGINT, signal.default_int_handler)
    if what == "interrupt": os.kill(os.getpid(), signal.SIGINT); signal.pause()
    if what == "abort": raise click.Abort()
    if what == "exit": click.get_current_context().exit(5)
    if what == "many":
        for i in range(200000): click.echo(f"line {i}")
    click.echo("done")

cli.COMMANDS["probe"] = ("__main__", "probe", "A command of the test.")
cli.main()
"""


def probe(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The real command line, in a process of its own, with one command more that ends as asked."""
    return subprocess.run(
        [sys.executable, "-c", FAULTS, "probe", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, **(env or {})},
    )


@pytest.mark.parametrize(
    "what, code, line",
    [
        ("input", 2, "error: a.csv: column emotions is missing. Add it."),
        ("run", 1, "error: a worker died"),
        ("disk", 1, "error: OSError: [Errno 28] No space left on device"),
        ("interrupt", 130, "stopped; the same command goes on from here"),
        ("abort", 130, "stopped; the same command goes on from here"),
        ("bug", 1, "error: ZeroDivisionError: division by zero (a fault of raymotion's: --debug shows more)"),
    ],
)
def test_an_error_ends_in_one_line(what, code, line):
    done = probe(what)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.strip().splitlines() == [line]


def test_a_command_that_succeeds_ends_with_zero():
    done = probe("nothing")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_command_may_choose_its_exit_code():
    assert probe("exit").returncode == 5


@pytest.mark.parametrize("arguments", [["--debug", "input"], ["input", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(arguments):
    done = probe(*arguments)
    assert done.returncode == 2
    assert "Traceback" in done.stderr and done.stderr.strip().endswith("Add it.")


def test_debug_can_be_set_in_the_environment():
    assert "Traceback" in probe("bug", env={"RAYMOTION_DEBUG": "1"}).stderr


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["input", "--count", "three"], "'three' is not a valid integer"),
        (["input", "--cuont", "3"], "No such option"),
        ([], "Missing argument"),
        (["a", "b"], "unexpected extra argument"),
    ],
)
def test_usage_errors_end_with_two(arguments, told):
    done = probe(*arguments)
    assert done.returncode == 2
    assert told in done.stderr and "Traceback" not in done.stderr


def test_usage_errors_of_the_command_itself(runner):
    for arguments in (["no-such-command"], ["--no-such-option"]):
        outcome = runner(*arguments)
        assert outcome.code == 2
        assert "No such" in outcome.err


def test_a_reader_that_goes_away_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-c", FAULTS, "probe", "many"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "line 0\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(30) == 1


def test_help_and_version_end_with_zero(runner):
    assert runner("--help").code == 0
    version = runner("--version")
    assert version.code == 0 and "raymotion" in version.out


def test_the_runner_of_click_itself_works_too():
    from click.testing import CliRunner

    from raymotion.cli.main import raymotion

    assert isinstance(raymotion, click.Group)
    result = CliRunner().invoke(raymotion, ["--help"])
    assert result.exit_code == 0 and "Commands:" in result.output
