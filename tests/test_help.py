"""`--help`: at once, for every command, with an example that the command itself understands."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator

import click
import pytest

from raymotion.cli.main import COMMANDS, raymotion

LANDED = {name: entry for name, entry in COMMANDS.items() if importlib.util.find_spec(entry[0]) is not None}


def tree(command: click.Command, context: click.Context) -> Iterator[tuple[str, click.Command, click.Context]]:
    """`command` and all below it, each with its full name."""
    yield context.command_path, command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            if command is raymotion and name not in LANDED:
                continue
            child = command.get_command(context, name)
            assert child is not None
            yield from tree(child, click.Context(child, info_name=name, parent=context))


ALL = list(tree(raymotion, click.Context(raymotion, info_name="raymotion")))
LEAVES = [entry for entry in ALL if not isinstance(entry[1], click.Group)]


def names(entry: object) -> str | None:
    return entry if isinstance(entry, str) else None


def examples(command: click.Command) -> list[list[str]]:
    """Command lines in the help text, continued lines joined, comments taken off."""
    text = re.sub(r"\\\n\s*", " ", f"{command.help or ''}\n{command.epilog or ''}")
    return [
        shlex.split(line.strip().removeprefix("$ "), comments=True)
        for line in text.splitlines()
        if re.match(r"\s*(\$ )?raymotion\s", line)
    ]


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"]])
def test_it_answers_at_once(run_command, arguments):
    def seconds() -> float:
        start = time.perf_counter()
        assert run_command(*arguments).code == 0
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.4


def test_it_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from raymotion.cli.main import raymotion\n"
        "try: raymotion.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in 'torch torchvision ray transformers timm pandas matplotlib pyarrow numpy'.split()"
        " if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_every_command_is_listed_with_its_line(runner):
    out = runner("--help").out
    for name, (_, _, line) in COMMANDS.items():
        assert re.search(rf"^  {name}\s+{re.escape(line)}$", out, re.MULTILINE)


@pytest.mark.parametrize("name, command, context", ALL[1:], ids=names)
def test_each_command_helps_with_an_example(name, command, context):
    text = command.get_help(context)
    assert text.startswith("Usage: raymotion")
    assert command.help and command.help.strip()[0].isupper()
    own = [example for example in examples(command) if " ".join(example).startswith(name)]
    assert own, f"{name} --help shows no line that starts with `{name}`"


@pytest.mark.parametrize("name, command, context", LEAVES, ids=names)
def test_each_example_is_understood_by_its_command(name, command, context):
    """Options that do not exist, or miss their value, are caught here before a user types them."""
    depth = len(name.split())
    for example in examples(command):
        if " ".join(example[:depth]) == name:
            arguments = [a for a in example[depth:] if a != "--debug"]
            with command.make_context(name, arguments, resilient_parsing=False):
                pass


@pytest.mark.parametrize("name, command, context", LEAVES, ids=names)
def test_each_option_has_a_help_text_and_says_its_default(name, command, context):
    for parameter in command.params:
        if not isinstance(parameter, click.Option) or parameter.hidden:
            continue
        record = parameter.get_help_record(context)
        assert record is not None and record[1].strip(), f"{name} {parameter.opts[0]} has no help text"
        # A default of None or False says itself what it does; any other value has to be shown.
        default = parameter.get_default(context, call=False)
        if default not in (None, False, (), "") and not parameter.multiple and "Sentinel" not in repr(default):
            assert "default" in record[1].lower(), f"{name} {parameter.opts[0]} does not say its default"


@pytest.mark.parametrize("name, command, context", ALL, ids=names)
def test_each_command_refuses_an_option_that_it_does_not_have(name, command, context, runner):
    outcome = runner(*name.split()[1:], "--no-such-option")
    assert outcome.code == 2
    assert "No such option" in outcome.err and "Traceback" not in outcome.err
