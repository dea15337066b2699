"""The README does what it says: its quick start runs as it stands, and every other command line in the docs is one."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from raymotion.cli.main import raymotion

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[list[str]]:
    """The `raymotion` lines of the page's code blocks, continued lines joined, comments taken off."""
    found = []
    for block in re.findall(r"```(?:bash|sh|)\n(.*?)```", page.read_text(), re.DOTALL):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            words = line.strip().removeprefix("$ ")
            if words.startswith("raymotion ") and "..." not in words:
                found.append(shlex.split(words, comments=True))
    return found


LINES = [(page.name, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(("page", "words"), LINES, ids=[f"{page}: {' '.join(words)[:60]}" for page, words in LINES])
def test_a_command_line_of_the_docs_is_one(page: str, words: list[str]) -> None:
    context, command = click.Context(raymotion, info_name="raymotion"), raymotion
    rest = words[1:]
    while isinstance(command, click.Group):
        name = rest.pop(0)
        child = command.get_command(context, name)
        assert child is not None, f"there is no command {name}"
        context, command = click.Context(child, info_name=name, parent=context), child
    command.make_context(words[-1], list(rest), parent=context.parent)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_quick_start_runs_as_it_stands(tmp_path: Path) -> None:
    (block,) = re.findall(r"## Quick start\n.*?```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    for name in ("report.html", "labels.csv", "student/model.safetensors", "finetune/finetune.json",
                 "evaluation/evaluation.html", "audit/audit.html", "balanced/_job.json"):  # fmt: skip
        assert (tmp_path / name).stat().st_size > 100, name
    assert "emotion" in done.stdout.splitlines()[-30:][0] or "probability" in done.stdout, "predict prints its table"
