"""A module imports from its own folder and from lower layers only. Imports inside functions count.

Within a layer, folders do not import each other. A folder below a folder (`evals/strategies`) belongs to the folder above it.
CONTRIBUTING.md draws the layers.
"""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"

LAYERS = (
    ("thinking",),
    ("types", "errors", "sanitize", "progress"),
    ("config", "storage", "verification", "prompts"),
    ("personas", "tasks", "metrics", "inference", "trackers"),
    ("plan",),
    ("evals",),
    ("judges", "rendering", "interop"),
    ("training", "question_writer"),
    ("report",),
    ("dashboard",),
    ("pipelines",),
    ("api",),
    ("cli",),
    ("__main__",),
)
"""The lowest layer first. Each name is a folder or a module of the package."""

LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
VERSION = "permix"
"""`from permix import __version__` is allowed everywhere: the package's __init__ imports nothing when it is imported."""


def imported_modules(path: Path) -> list[str]:
    """Every module of the package that a file imports, at its top or inside a function, as a dotted name."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in found if name.split(".")[0] == "permix"]


def folder_of(module: str) -> str:
    """ "permix.evals.strategies.base" -> "evals"."""
    return module.split(".")[1]


def violations(root: Path, package: str = "permix") -> list[str]:
    """One line for each import that goes up, or to another folder of the same layer."""
    found = []
    for path in sorted((root / package).rglob("*.py")):
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        if module == f"{package}.__init__":
            continue
        own = folder_of(module)
        for name in imported_modules(path):
            other = folder_of(name)
            if other not in LEVEL:
                assert name == f"{package}.__version__", f"{path}: {name} is in no layer"
            elif other != own and LEVEL[other] >= LEVEL[own]:
                found.append(f"{module} imports {name}")
    return found


def test_every_folder_has_a_layer() -> None:
    folders = {path.stem for path in (SOURCE / "permix").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert folders - {"__init__"} == set(LEVEL)


def test_no_import_goes_up() -> None:
    assert violations(SOURCE) == []


def test_the_tree_is_of_a_size_that_can_be_learnt() -> None:
    assert len(list((SOURCE / "permix").rglob("*.py"))) <= 213


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from permix.types import Cell", []),
        ("from permix.evals.grid import fill", []),
        ("def late():\n    from permix.judges import runner", ["permix.evals.module imports permix.judges.runner"]),
        ("from permix import cli", ["permix.evals.module imports permix.cli"]),
        ("import permix.report.builder", ["permix.evals.module imports permix.report.builder"]),
        ("from permix import __version__", []),
    ],
)
def test_what_counts_as_a_violation(tmp_path: Path, text: str, expected: list[str]) -> None:
    folder = tmp_path / "permix" / "evals"
    folder.mkdir(parents=True)
    (folder / "module.py").write_text(text + "\n")
    assert violations(tmp_path) == expected


def test_folders_of_one_layer_do_not_import_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "permix" / "judges"
    folder.mkdir(parents=True)
    (folder / "module.py").write_text("from permix.interop import stage\nfrom permix.judges import types\n")
    assert violations(tmp_path) == ["permix.judges.module imports permix.interop.stage"]
