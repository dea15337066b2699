"""What is installed and locked: the wheel is complete, the lock is exact and names no address."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
LOCK = (REPOSITORY / "requirements.lock").read_text()
LOCKED = dict(line.split("==") for line in LOCK.splitlines() if "==" in line and not line.startswith("#"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_line_of_the_lock_is_one_exact_version():
    pattern = re.compile(r"[a-z0-9][a-z0-9-]*==[0-9][A-Za-z0-9.+]*( ; .*)?")
    assert [line for line in LOCK.splitlines() if line.strip() and not pattern.fullmatch(line)] == []
    assert len(LOCKED) > 100


def test_the_lock_names_no_address_and_no_place():
    assert not re.search(r"https?:|file:|--index|--extra|--find|/", LOCK)


def test_pytorch_is_the_ordinary_registry_build():
    for name in ("torch", "torchvision"):
        assert "+" not in LOCKED[name], "a local version: a build from elsewhere, which the registry does not have"
    assert any(name.startswith("nvidia-") for name in LOCKED), "the registry's build of torch comes with CUDA"


@pytest.mark.parametrize(
    "text",
    PROJECT["project"]["dependencies"] + [own for group in PROJECT["dependency-groups"].values() for own in group],
)
def test_the_lock_satisfies_every_range(text):
    requirement = Requirement(text)
    assert requirement.specifier.contains(LOCKED[normal(requirement.name)])


def test_the_version_stands_in_one_place_only():
    import raymotion

    assert raymotion.__version__ == PROJECT["project"]["version"]


def test_the_licence_is_apache_2():
    text = (REPOSITORY / "LICENSE").read_text()
    assert "Apache License\n" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.split("\0") if name and (REPOSITORY / name).is_file()]


def test_no_file_names_a_place_of_one_machine_or_a_registry():
    # Put together from parts, so that this file does not hold them.
    forbidden = re.compile("|".join(["/wo" + "rk/", "/ro" + "ot/", "pypi" + r"\.org", "file" + ":///opt"]))
    found = []
    for name in tracked():
        try:
            text = (REPOSITORY / name).read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{name}: {match.group()}" for match in forbidden.finditer(text)]
    assert found == []


def test_no_large_file_is_in_the_repository():
    assert [name for name in tracked() if (REPOSITORY / name).stat().st_size > 1_000_000] == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    if "No module named hatchling" in done.stderr:
        pytest.skip("hatchling is not installed: the environment was not made by make env")
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_holds_every_module_template_and_recipe(wheel):
    built = set(wheel.namelist())
    expected = {name for name in tracked() if name.startswith("raymotion/")}
    expected |= {f"raymotion/{name}" for name in tracked() if name.startswith(("recipes/", "tune_spaces/"))}
    assert expected - built == set()
    assert not [name for name in built if name.startswith(("tests/", "docs/", "benchmarks/"))]


def test_the_wheel_installs_the_command_and_the_licence(wheel):
    texts = {Path(name).name: wheel.read(name).decode() for name in wheel.namelist() if ".dist-info/" in name}
    assert "raymotion = raymotion.cli.main:main" in texts["entry_points.txt"]
    assert "Apache License" in texts["LICENSE"]
    assert f"Version: {PROJECT['project']['version']}" in texts["METADATA"]
