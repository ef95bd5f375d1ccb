"""The rule of the house, read off the imports: which room may import which."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxinterp"
GROUND = ("errors", "checks", "provenance", "files", "lazy")
FAMILIES = ("coda", "gated", "coded", "taylor", "glassbox")
# From the ground up: a room imports rooms on its own line or below. Families are apart from one another.
FLOORS = (
    GROUND,
    ("nn",),
    ("data", "symmetry", "figures", "explain", "train"),
    ("recipe", "testing"),
    FAMILIES,
    ("app",),
)


def modules() -> dict[str, Path]:
    """Every module of the package by its name."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


MODULES = modules()


def imports(path: Path) -> set[str]:
    """Modules of the package or the repository that a file imports, lazy imports and type checking included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else str(node.module) for name in full}
    return {name for name in names if name.split(".")[0] in ("jaxinterp", "experiments", "benchmarks", "tests")}


def room(module: str) -> str:
    """The room of a module; the public names of the package itself are the roof."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "jaxinterp"


def floor(module: str) -> int:
    """The floor of a module, the roof being the highest."""
    return next((i for i, rooms in enumerate(FLOORS) if room(module) in rooms), len(FLOORS))


GRAPH = {name: imports(path) for name, path in MODULES.items()}


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_no_import_runs_up_or_out_of_the_package(module: str) -> None:
    for imported in GRAPH[module]:
        assert imported.startswith("jaxinterp"), f"{module} imports {imported}"
        if imported != "jaxinterp":  # whose version the command prints; its other names are lazy
            assert floor(imported) <= floor(module), f"{module} imports {imported}, a floor above"


@pytest.mark.parametrize("family", FAMILIES)
def test_families_do_not_import_one_another(family: str) -> None:
    others = set(FAMILIES) - {family}
    mine = {module: names for module, names in GRAPH.items() if room(module) == family}
    assert mine
    for module, names in mine.items():
        assert not {name for name in names if room(name) in others}, module


def test_there_is_no_circle_between_modules() -> None:
    done, path = set[str](), list[str]()

    def visit(module: str) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        path.append(module)
        for imported in sorted(GRAPH.get(module, set()) - {"jaxinterp"}):
            visit(imported)
        done.add(path.pop())

    for module in GRAPH:
        visit(module)


def test_there_is_no_circle_between_rooms() -> None:
    arrows = {(room(a), room(b)) for a, names in GRAPH.items() for b in names if room(a) != room(b)}
    order = list[str]()
    rooms = {name for arrow in arrows for name in arrow} - {"jaxinterp"}
    while rooms - set(order):
        free = [
            r for r in sorted(rooms - set(order)) if all(b in order or b == "jaxinterp" for a, b in arrows if a == r)
        ]
        assert free, f"a circle among {sorted(rooms - set(order))}"
        order += free
    assert all(order.index(b) < order.index(a) for a, b in arrows if "jaxinterp" not in (a, b))


def test_experiments_import_neither_benchmarks_nor_tests() -> None:
    for path in (ROOT / "experiments").rglob("*.py"):
        assert not {name for name in imports(path) if name.split(".")[0] in ("benchmarks", "tests")}, path
