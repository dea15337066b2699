"""The house in figures: circles of files, imports that run upwards, lines that spell a kind of model, size, docstrings.

    python benchmarks/house.py

Read from the source with `ast`; nothing is imported but the table of kinds. Imports under TYPE_CHECKING and inside
functions count as all others do.

- circles: groups of files that import each other, directly or by way of others.
- upward_imports: a file imports one of a higher floor; see `FLOORS`.
- kind_switches: lines outside of a kind's own folder and the registry that name a kind of model: a string that is
  a kind's name, or an import from a kind's folder.
- public_without_docstring: public functions, classes and methods without a docstring. A method that a base class or a
  protocol of the package describes needs none of its own.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "raymotion"

# Higher floors import lower ones, and rooms of one floor each other; never the other way.
FLOORS = [
    {
        "version", "errors", "interrupts", "stores", "storage", "records", "folders", "vocabulary", "label_mapping",
        "config", "weights", "registry", "text_table", "bundled", "loggers",
    },
    {"data", "learning", "models"},
    {"pipeline", "published"},
    {"batch", "train", "study", "evaluation", "report", "robustness"},
    {"demo"},
    {"cli"},
]  # fmt: skip
# Where kinds may be named: their table.
REGISTRY = "raymotion.models.registry"


@dataclass
class Module:
    """One file of the package: its tree, and the modules that it imports, with the line of each import."""

    name: str
    path: Path
    tree: ast.Module
    lines: int
    imports: dict[str, int] = field(default_factory=dict)

    @property
    def room(self) -> str:
        """First part of its name below the package."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else ""


def read_package(folder: Path) -> dict[str, Module]:
    """All modules of the package in `folder`, by dotted name."""
    modules: dict[str, Module] = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text()
        modules[name] = Module(name, path, ast.parse(text), len(text.splitlines()))
    for module in modules.values():
        is_package = module.path.name == "__init__.py"
        for target, line in _imported(module.tree, module.name, is_package):
            found = target
            while found and found not in modules:
                found = found.rpartition(".")[0]
            if found and found != module.name:
                module.imports.setdefault(found, line)
    return modules


def _imported(tree: ast.AST, name: str, is_package: bool) -> Iterator[tuple[str, int]]:
    package = name.split(".") if is_package else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            start = ".".join(part for part in (base, node.module or "") if part)
            yield from ((f"{start}.{alias.name}", node.lineno) for alias in node.names)


def circles(modules: dict[str, Module]) -> list[list[str]]:
    """Groups of two or more modules each of which leads to all others (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in modules[name].imports:
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            group = []
            while True:
                member = stack.pop()
                group.append(member)
                if member == name:
                    break
            if len(group) > 1:
                found.append(sorted(group))

    for name in modules:
        if name not in index:
            visit(name)
    return found


def floor_of(room: str) -> int | None:
    """The number of the floor that a room stands on; None: on no floor."""
    return next((number for number, rooms in enumerate(FLOORS) if room in rooms), None)


def upward_imports(modules: dict[str, Module]) -> list[str]:
    """`module, line: target` of each import of a higher floor, and of each room that stands on none."""
    found = []
    for module in modules.values():
        if not module.room:
            continue  # the package's face hands names on
        own = floor_of(module.room)
        if own is None:
            found.append(f"{module.name} stands on no floor")
            continue
        for target, line in module.imports.items():
            other = floor_of(modules[target].room) if modules[target].room else None
            if other is not None and other > own:
                found.append(f"{module.name}, line {line}: {target}")
    return found


def kinds(modules: dict[str, Module]) -> dict[str, str]:
    """Name of each kind -> the package that is its own, as the registry's table says."""
    for node in ast.walk(modules[REGISTRY].tree):
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and target.id == "KINDS" and isinstance(node, ast.AnnAssign) and node.value:
            table = ast.literal_eval(node.value)
            return {name: where.split(":")[0].rpartition(".")[0] for name, where in table.items()}
    raise AssertionError(f"{REGISTRY} has no table KINDS")


def kind_switches(modules: dict[str, Module]) -> list[str]:
    """`module, line: what` for each line that spells a kind of model where no kind should be known."""
    table = kinds(modules)
    homes = tuple(table.values())
    found = []
    for module in modules.values():
        at_home = any(module.name == home or module.name.startswith(f"{home}.") for home in homes)
        if at_home or module.name == REGISTRY or module.room == "published":
            continue
        named: dict[int, str] = {}
        texts = {id(node.value) for node in ast.walk(module.tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Constant) and node.value in table and id(node) not in texts:
                named[node.lineno] = repr(node.value)
        for target, line in module.imports.items():
            if any(target == home or target.startswith(f"{home}.") for home in homes):
                named[line] = target
        found += [f"{module.name}, line {line}: {what}" for line, what in sorted(named.items())]
    return found


def without_docstring(modules: dict[str, Module]) -> list[str]:
    """`module.name` of every public function, class and method that nothing describes."""
    classes = {
        node.name: node for module in modules.values() for node in module.tree.body if isinstance(node, ast.ClassDef)
    }

    def described_above(owner: ast.ClassDef, name: str, seen: frozenset[str] = frozenset()) -> bool:
        for base in owner.bases:
            above = ast.unparse(base).split("[")[0].split(".")[-1]
            if above in seen:
                continue
            if above not in classes:
                return True  # of a library: its own documentation says what the method does
            for node in classes[above].body:
                if isinstance(node, ast.FunctionDef) and node.name == name and ast.get_docstring(node):
                    return True
            if described_above(classes[above], name, seen | {above}):
                return True
        return False

    protocols = {
        node.name
        for owner in classes.values()
        if any(ast.unparse(base).startswith("Protocol") for base in owner.bases)
        for node in owner.body
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node)
    }
    found = []
    for module in modules.values():
        for node in module.tree.body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                found.append(f"{module.name}.{node.name}")
            if not isinstance(node, ast.ClassDef):
                continue
            for inner in node.body:
                if not isinstance(inner, ast.FunctionDef) or inner.name.startswith("_") or ast.get_docstring(inner):
                    continue
                setter = any(ast.unparse(own).endswith(".setter") for own in inner.decorator_list)
                if not (setter or inner.name in protocols or described_above(node, inner.name)):
                    found.append(f"{module.name}.{node.name}.{inner.name}")
    return found


def main() -> None:
    """Prints the table, what is behind each figure, and the figures as JSON."""
    modules = read_package(PACKAGE)
    behind = {
        "kind_switches": kind_switches(modules),
        "circles": [" <-> ".join(group) for group in circles(modules)],
        "upward_imports": upward_imports(modules),
        "public_without_docstring": without_docstring(modules),
    }
    largest = max(modules.values(), key=lambda module: module.lines)
    figures: dict[str, object] = {name: len(found) for name, found in behind.items()}
    figures["package_lines"] = sum(module.lines for module in modules.values())
    figures["files"] = len(modules)
    figures["largest_file"] = {"path": str(largest.path.relative_to(REPOSITORY)), "lines": largest.lines}
    for name, found in behind.items():
        for line in found:
            print(f"{name}: {line}")
    print()
    for name, value in figures.items():
        print(f"{name:26} {value if not isinstance(value, dict) else ' '.join(str(v) for v in value.values())}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
