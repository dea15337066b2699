"""The documentation: the site builds without a broken link and loads nothing from elsewhere, and its notebook runs."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import raymotion

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
# The resources of a page: what a browser fetches by itself, in contrast to a link.
FETCHED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src"}


def build(root: Path, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=root, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip


class Resources(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if FETCHED.get(tag) == name]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.slow
def test_every_page_of_the_repository_is_on_the_site(site: Path) -> None:
    for page in [*(ROOT / "docs").glob("*.md"), ROOT / "docs/notebook.md", ROOT / "docs/contributing.md"]:
        assert (site / f"{page.stem}.html").is_file(), page
    assert "Quick start" in (site / "index.html").read_text()
    commands = (site / "reference/commands.html").read_text()
    assert "raymotion data prepare table" in commands and "--max-failed" in commands
    assert "student-bundled" in (site / "reference/lists.html").read_text()
    assert "notebook/socratis/images" in (site / "notebook.html").read_text()


@pytest.mark.slow
def test_the_reference_describes_every_public_name(site: Path) -> None:
    page = (site / "reference/python.html").read_text()
    for name in set(raymotion.__all__) - {"__version__"}:
        assert f'id="raymotion.{name}"' in page, name
    assert "uint8" in page, "the docstrings are there, not only the names"


@pytest.mark.slow
def test_nothing_is_fetched_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        seen = Resources()
        seen.feed(page.read_text())
        assert seen.found and not [own for own in seen.found if re.match(r"(https?:)?//", own)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", sheet.read_text()), sheet


@pytest.mark.slow
def test_broken_links_fail_the_build(tmp_path: Path) -> None:
    for name in ("docs", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("mkdocs.yml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "raymotion"):
        (tmp_path / name).symlink_to(ROOT / name)
    broken = [
        "[gone](nowhere.md)",
        "[gone](jobs.md#no-such-heading)",
        "![gone](images/no.png)",
        "[g](../pyproject.toml)",
    ]
    with (tmp_path / "docs/audit.md").open("a") as page:
        page.write("\n" + "\n\n".join(broken))
    done = build(tmp_path, tmp_path / "site")
    warnings = [line for line in done.stderr.splitlines() if "WARNING" in line]
    assert done.returncode != 0 and len(warnings) == len(broken) and all("'audit.md'" in line for line in warnings)


def python_blocks() -> list[tuple[str, str]]:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    blocks = [
        (page, text) for page in pages for text in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    ]
    return [(page.name, text) for page, text in blocks]


@pytest.mark.parametrize(("page", "text"), python_blocks())
def test_what_the_docs_import_is_there(page: str, text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "raymotion":
            assert node.attr in raymotion.__all__, ast.unparse(node)


def test_pictures_are_small_and_say_what_they_show() -> None:
    shown = re.findall(r"!\[([^]]*)\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert len(shown) == 2
    for alternative, path in shown:
        assert len(alternative) > 20 and 5_000 < (ROOT / path).stat().st_size < 150_000, path


def test_the_notebook_is_stored_without_outputs() -> None:
    cells: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 5 and not any(cell["outputs"] or cell["execution_count"] for cell in code)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    book = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = "".join(
        "".join(output.get("data", {}).get("text/html", "") + output.get("data", {}).get("text/plain", ""))
        for cell in book.cells if cell.cell_type == "code" for output in cell.outputs
    )  # fmt: skip
    for text in ("captions, regions -> 29 emotions", "Macro AP (mAP)", "samples selected",
                 "labels of", "120 in = 120 good + 0 in quarantine", "doubtful"):  # fmt: skip
        assert text in shown, text
    assert len(raymotion.open_labels(tmp_path / "notebook/labels")) == 120
