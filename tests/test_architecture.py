"""The house keeps its floors: a module imports only from lower ones, or from its own package."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "pgcli"
FLOORS = [
    {"types", "errors", "settings", "seeding", "processes", "registry", "options", "student", "functional"},
    {"environments", "policies", "devices", "runs"},
    {"collectors"},
    {"algorithms"},
    {"experiment", "sweeps", "analysis", "verification"},
    {"studies", "pipelines"},
    {"cli", "__init__", "__main__"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
MODULES = sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Dotted names that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "pgcli"}
    return found


def modules(*names: str) -> list:
    return [pytest.param(p, id=str(p.relative_to(SOURCE))) for p in MODULES if room(p) in names]


@pytest.mark.parametrize("path", [pytest.param(p, id=str(p.relative_to(SOURCE))) for p in MODULES])
def test_a_module_imports_only_lower_floors_or_its_own_package(path):
    own = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "pgcli" and len(parts) > 1 and parts[1] in FLOOR and parts[1] != own:
            # Rooms of one floor do not know one another, but for the ground floor, and the program's own config.
            same = FLOOR[parts[1]] == FLOOR[own] and (
                FLOOR[own] == 0
                or name.startswith(
                    ("pgcli.experiment.config", "pgcli.experiment.overrides", "pgcli.experiment.validation")
                )
            )
            assert FLOOR[parts[1]] < FLOOR[own] or same or own in ("__init__", "__main__"), f"imports {name}"


@pytest.mark.parametrize("path", modules("functional"))
def test_the_mathematics_imports_torch_and_nothing_else(path):
    allowed = {"torch", "math", "typing", "collections", "pgcli", "__future__"}
    for name in imports(path):
        assert name.split(".")[0] in allowed, name
        assert not name.startswith("pgcli.") or name.startswith("pgcli.functional"), name


@pytest.mark.parametrize("path", modules("algorithms"))
def test_an_algorithm_does_not_know_in_which_world_it_is(path):
    tree = ast.parse(path.read_text())
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"isinstance", "hasattr", "getattr", "type"}
    for name in imports(path):
        assert not name.startswith(("pgcli.environments", "pgcli.policies", "pgcli.devices", "gymnasium")), name


@pytest.mark.parametrize("path", modules("algorithms"))
def test_algorithms_import_neither_one_another_nor_a_base_class(path):
    others = {p.stem for p in MODULES if room(p) == "algorithms" and not p.stem.startswith("_")} - {path.stem}
    for name in imports(path):
        assert name not in {f"pgcli.algorithms.{other}" for other in others}, name


@pytest.mark.parametrize("path", modules("cli", "analysis", "sweeps", "studies", "pipelines") + modules("runs"))
def test_what_reads_and_compares_runs_needs_no_torch_to_be_imported(path):
    if path.stem in ("checkpoint", "writer"):
        return  # the writing side
    top = {
        name.split(".")[0]
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module])
    }
    assert not top & {"torch", "gymnasium", "hydra", "matplotlib"}


def test_there_is_no_import_cycle():
    names = {
        p: ".".join(("pgcli", *p.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__") for p in MODULES
    }
    graph = {}
    for path in MODULES:
        # What runs at import: neither function bodies nor TYPE_CHECKING blocks.
        nodes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]
        pairs = {(node.module, f"{node.module}.{alias.name}") for node in nodes for alias in node.names}
        graph[names[path]] = {inner if inner in names.values() else outer for outer, inner in pairs}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done or name not in graph:
            return
        path.append(name)
        for other in sorted(graph[name]):
            visit(other)
        path.pop()
        done.add(name)

    for name in graph:
        visit(name)
