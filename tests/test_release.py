"""What surrounds a release: the container's recipe and the forms on GitHub."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from raymotion.bundled import BUNDLES

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
FORMS = sorted(set((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")) - {ROOT / ".github/ISSUE_TEMPLATE/config.yml"})
# Keys of GitHub's issue forms, and the attributes without which it shows no form.
NEEDED = {"markdown": {"value"}, "textarea": {"label"}, "input": {"label"}, "dropdown": {"label", "options"},
          "checkboxes": {"label", "options"}}  # fmt: skip
KNOWN = {"label", "description", "placeholder", "value", "render", "options", "multiple", "default"}


def copied() -> list[str]:
    """What the Dockerfile copies out of the checkout."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def test_the_dockerfile_passes_its_linter() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([str(linter), "--no-color", str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    broken = subprocess.run([str(linter), "-"], input="FROM debian\nRUN cd /x\n", capture_output=True, text=True)
    assert broken.returncode != 0, "the linter sees faults"


def test_what_the_dockerfile_copies_is_there_and_enough(tmp_path: Path) -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied()) == kept, ".dockerignore leaves out everything else"
    for name in copied():
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel"], cwd=tmp_path, check=True)
    names = zipfile.ZipFile(next((tmp_path / "dist").glob("*.whl"))).namelist()
    assert "raymotion/cli/main.py" in names and any(name.startswith("raymotion/recipes/") for name in names)


def test_the_container_runs_the_command_as_an_ordinary_user() -> None:
    last = DOCKERFILE.rsplit("\nFROM ", 1)[1]
    assert 'ENTRYPOINT ["raymotion"]' in last and re.search(r"^USER [1-9]\d*$", last, re.MULTILINE)
    assert "--constraint requirements.lock" in DOCKERFILE and "--extra offline" in DOCKERFILE
    assert not re.search(r"https?://", DOCKERFILE), "a registry is the user's choice"


@pytest.mark.slow
def test_the_call_that_prepares_bundled_weights_is_one(tmp_path: Path) -> None:
    """The Dockerfile's Python, run here: a renamed function would fail only at the end of a long build."""
    (line,) = re.findall(r'python" -c "(.+)"', DOCKERFILE)
    done = subprocess.run(
        [sys.executable, "-c", line],
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
    )
    assert done.returncode == 0 and len(done.stdout.split()) == len(BUNDLES), done.stderr
    assert all(Path(folder, "model.safetensors").is_file() for folder in done.stdout.split())


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_a_form_is_one_that_github_shows(path: Path) -> None:
    form: dict[str, Any] = yaml.safe_load(path.read_text())
    assert (
        {"name", "description", "body"} <= set(form) <= {"name", "description", "body", "labels", "title", "assignees"}
    )
    assert all(isinstance(form[key], str) and form[key] for key in ("name", "description"))
    ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert ids and len(set(ids)) == len(ids) and all(re.fullmatch(r"[A-Za-z0-9_-]+", own) for own in ids)
    for field in form["body"]:
        assert set(field) <= {"type", "id", "attributes", "validations"}
        assert NEEDED[field["type"]] <= set(field["attributes"]) <= KNOWN
        assert set(field.get("validations", {})) <= {"required"}
        options = field["attributes"].get("options", [])
        assert len(set(map(str, options))) == len(options) and (field["type"] != "dropdown" or options)


def test_there_is_a_form_for_bugs_and_one_for_wishes() -> None:
    assert [path.stem for path in FORMS] == ["bug", "feature"]
    bug = (ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text()
    assert "raymotion --version" in bug and "--debug" in bug
    assert yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/config.yml").read_text())["blank_issues_enabled"] is True
