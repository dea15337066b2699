"""Pages of the site that are made from other files and from the code, so that nothing is written twice.

The README is the home page. `raymotion recipes`, `kinds` and their like, the help of every command, and the notebook
become pages of their own. Links between these files are relative in the repository, and are turned here.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from raymotion.cli.main import raymotion

ROOT = Path(__file__).resolve().parents[1]
# Page of the site -> file of the repository outside of docs/.
OUTSIDE = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "measured.md": "benchmarks/RESULTS.md",
}
LISTS = ("recipes", "kinds", "readers", "extractors", "vocabularies")
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that have no file in docs/."""
    made = {page: (ROOT / source).read_text(encoding="utf-8") for page, source in OUTSIDE.items()}
    made["notebook.md"] = "\n\n".join(notebook_cells(ROOT / "docs" / "notebook.ipynb"))
    made["reference/commands.md"] = "\n\n".join(["# Commands", *command_help()])
    made["reference/lists.md"] = "\n\n".join(
        ["# What a command or a recipe can name", *(f"## {name.title()}\n\n{listed(name)}" for name in LISTS)]
    )
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links that are right in the repository into links that are right on the site."""
    here = page.file.src_uri
    source = OUTSIDE.get(here, f"docs/{here}")
    pages = {file: own for own, file in OUTSIDE.items()} | {"docs/notebook.ipynb": "notebook.md"}

    def turned(link: re.Match[str]) -> str:
        if re.match(r"[a-z]+:", link[2]):
            return link[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[2]))
        found = pages.get(target, target.removeprefix("docs/"))
        return f"{link[1]}{posixpath.relpath(found, posixpath.dirname(here) or '.')}{link[3] or ''})"

    return LINK.sub(turned, markdown)


def notebook_cells(path: Path) -> Iterator[str]:
    """Yields the cells of a notebook as Markdown; it is stored without outputs."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        yield f"```python\n{text}\n```" if cell["cell_type"] == "code" else text


def listed(*command: str) -> str:
    """Returns what a command of raymotion prints, as a block of text."""
    done = CliRunner().invoke(raymotion, list(command), catch_exceptions=False)
    if done.exit_code:
        raise RuntimeError(f"raymotion {' '.join(command)}: {done.output}")
    return f"```text\n{done.output.strip()}\n```"


def command_help(command: Any = raymotion, *names: str) -> Iterator[str]:
    """Yields the help of a command and of all below it."""
    yield f"## raymotion {' '.join(names)}".rstrip() + f"\n\n{listed(*names, '--help')}"
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from command_help(command.get_command(context, name), *names, name)
