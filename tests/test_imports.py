"""The rules of the house, read from the source: who may import whom, what stays out of `--help`."""

from __future__ import annotations

import ast
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "raymotion"
MODULES = sorted(PACKAGE.rglob("*.py"))
JOBS = sorted((REPOSITORY / "jobs").glob("*.py"))
BENCHMARKS = sorted((REPOSITORY / "benchmarks").glob("*.py"))

HOUSE = runpy.run_path(str(REPOSITORY / "benchmarks" / "house.py"))
FLOORS: list[set[str]] = HOUSE["FLOORS"]
HEAVY = {"torch", "torchvision", "ray", "transformers", "timm", "pandas", "matplotlib", "sklearn", "imblearn"}

# What a reader of such a name cannot know: what is in it.
NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST, package: tuple[str, ...], *, everywhere: bool = True) -> Iterator[tuple[str, int]]:
    """Dotted names that `tree` imports, with their lines; not `everywhere`: only those that run on import."""
    for node in ast.iter_child_nodes(tree):
        if not everywhere and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if not everywhere and isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from imports(ast.Module(body=node.orelse, type_ignores=[]), package, everywhere=False)
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            start = ".".join(part for part in (base, node.module or "") if part)
            yield from ((f"{start}.{alias.name}", node.lineno) for alias in node.names)
        else:
            yield from imports(node, package, everywhere=everywhere)


def imported(path: Path, *, everywhere: bool = True) -> list[tuple[str, int]]:
    package = path.relative_to(REPOSITORY).parts[:-1]
    return list(imports(ast.parse(path.read_text()), package, everywhere=everywhere))


def ids(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.fixture(scope="module")
def house() -> dict[str, Any]:
    """Every file of the package, by dotted name."""
    return HOUSE["read_package"](PACKAGE)


def test_no_room_imports_a_higher_one(house):
    assert HOUSE["upward_imports"](house) == []


def test_no_files_import_each_other(house):
    assert HOUSE["circles"](house) == []


def test_kinds_of_models_are_named_at_home_alone(house):
    found = HOUSE["kind_switches"](house)
    assert len(found) <= 3, found
    assert set(HOUSE["kinds"](house)) >= {"teacher-visualbert", "student", "fusion", "fusion-tuned"}


def test_what_is_public_is_described(house):
    assert HOUSE["without_docstring"](house) == []


@pytest.mark.parametrize("path", [p for p in MODULES if room_of(p) in {"pipeline"} | FLOORS[0] | FLOORS[1]], ids=ids)
def test_models_learning_data_and_pipeline_do_not_know_ray(path):
    assert [f"line {line}: {name}" for name, line in imported(path) if name.split(".")[0] == "ray"] == []


@pytest.mark.parametrize("path", [p for p in MODULES if room_of(p) in {"cli"} | FLOORS[0]], ids=ids)
def test_the_command_line_imports_nothing_heavy_before_it_is_used(path):
    early = [(name, line) for name, line in imported(path, everywhere=False) if name.split(".")[0] in HEAVY]
    assert early == []


@pytest.mark.parametrize("path", JOBS, ids=ids)
def test_jobs_are_one_call(path):
    assert len(path.read_text().splitlines()) <= 6
    assert [name for name, _ in imported(path)] == ["raymotion.cli.submitted.run"]


@pytest.mark.parametrize("path", MODULES + JOBS + BENCHMARKS, ids=ids)
def test_files_say_what_they_are_about(path):
    assert path.stem not in NAMELESS
    text = path.read_text()
    if text:
        assert ast.get_docstring(ast.parse(text)), "the first line says what the file is about"
    if "def " in text:
        assert "from __future__ import annotations" in text


def test_folders_say_what_they_are_about():
    assert not NAMELESS & {path.name for path in PACKAGE.rglob("*") if path.is_dir()}


def test_nothing_unpickles_what_users_hand_in():
    """`pickle.load`, `torch.load(weights_only=False)` and `np.load(allow_pickle=True)` run what the file says."""
    found = []
    for path in MODULES + JOBS:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if (
                name
                in {"pickle.load", "pickle.loads", "cloudpickle.load", "cloudpickle.loads", "yaml.load", "joblib.load"}
                or (name == "torch.load" and keywords.get("weights_only") != "True")
                or keywords.get("allow_pickle", "False") != "False"
                or keywords.get("trust_remote_code", "False") != "False"
            ):
                found.append(f"{ids(path)}, line {node.lineno}: {ast.unparse(node)[:80]}")
    assert found == []


class TestTheTestItself:
    """A rule that cannot be broken is not held: each is tried on a breach."""

    @pytest.mark.parametrize(
        "source, names",
        [
            ("import ray.data", ["ray.data"]),
            ("from raymotion.cli import main", ["raymotion.cli.main"]),
            ("from raymotion import batch", ["raymotion.batch"]),
            ("from ..train import loop", ["raymotion.train.loop"]),
            ("from . import samples", ["raymotion.data.samples"]),
            ("def f():\n    import torch", ["torch"]),
        ],
    )
    def test_imports_are_found(self, source, names):
        assert [name for name, _ in imports(ast.parse(source), ("raymotion", "data"))] == names

    @pytest.mark.parametrize(
        "source, names",
        [
            ("def f():\n    import torch", []),
            ("if TYPE_CHECKING:\n    import torch\nelse:\n    import ray", ["ray"]),
            ("if typing.TYPE_CHECKING:\n    import torch", []),
            ("try:\n    import torch\nexcept ImportError:\n    pass", ["torch"]),
            ("class A:\n    import torch", ["torch"]),
        ],
    )
    def test_early_imports_are_told_from_late_ones(self, source, names):
        assert [name for name, _ in imports(ast.parse(source), (), everywhere=False)] == names

    def test_what_breaks_a_rule_is_found(self, tmp_path):
        """A package with one fault of each kind."""
        sources = {
            "errors.py": "from raymotion.data import table\n",
            "attic/__init__.py": "",
            "data/__init__.py": "",
            "data/table.py": "def read():\n    from raymotion.data.rows import Row\n",
            "data/rows.py": "from . import table\nclass Row:\n    def __len__(self): ...\n    def own(self): ...\n",
            "models/registry.py": 'KINDS: dict = {"toy": "raymotion.models.toy.kind:Toy"}\n',
            "models/toy/kind.py": 'NAME = "toy"\n',
            "train/fit.py": 'if kind == "toy":\n    from raymotion.models.toy.kind import NAME\n',
        }
        for name, text in sources.items():
            path = tmp_path / "raymotion" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        found = HOUSE["read_package"](tmp_path / "raymotion")
        assert HOUSE["circles"](found) == [["raymotion.data.rows", "raymotion.data.table"]]
        upward = HOUSE["upward_imports"](found)
        assert sorted(upward) == [
            "raymotion.attic stands on no floor",
            "raymotion.errors, line 1: raymotion.data.table",
        ]
        assert [line.partition(":")[0] for line in HOUSE["kind_switches"](found)] == [
            "raymotion.train.fit, line 1", "raymotion.train.fit, line 2",
        ]  # fmt: skip
        assert HOUSE["without_docstring"](found) == [
            "raymotion.data.rows.Row", "raymotion.data.rows.Row.own", "raymotion.data.table.read",
        ]  # fmt: skip
