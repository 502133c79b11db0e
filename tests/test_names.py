"""A public name has one meaning in the package: no two modules define a function, a class or a constant of the same name.

A name that is public in two modules on purpose stands in `EXCEPTIONS` with the reason.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "permix"
EXCEPTIONS: dict[str, str] = {}


def defined_names(tree: ast.Module) -> Iterator[str]:
    """The functions, classes and constants that a module defines at its top level; imported names are not among them."""
    for statement in tree.body:
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield statement.name
            case ast.Assign():
                for target in statement.targets:
                    yield from (
                        node.id for node in ast.walk(target) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
                    )
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name


def public_names(package: Path) -> dict[str, list[str]]:
    """The modules that define each public name. A module that is run as a script (`guest/`) counts like any other."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted(package.rglob("*.py")):
        for name in dict.fromkeys(defined_names(ast.parse(path.read_text(encoding="utf-8")))):
            if not name.startswith("_"):
                found[name].append(str(path.relative_to(package)))
    return found


def test_a_public_name_has_one_meaning() -> None:
    twice = {name: modules for name, modules in public_names(PACKAGE).items() if len(modules) > 1}
    assert {name: modules for name, modules in twice.items() if name not in EXCEPTIONS} == {}
    assert set(EXCEPTIONS) <= set(twice), "an exception that is none any more"
    assert len(EXCEPTIONS) <= 20


def test_what_counts_as_a_public_name(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "from b import Imported\nONE, two = 1, 2\n_private = 3\nx: int = 4\n\n\ndef f(): ...\n\n\ntable = {}\ntable[ONE] = 5\n"
    )
    (tmp_path / "b.py").write_text("class f: ...\n\n\nclass Imported:\n    inner = 1\n")
    assert public_names(tmp_path) == {
        "ONE": ["a.py"], "two": ["a.py"], "x": ["a.py"], "table": ["a.py"], "f": ["a.py", "b.py"], "Imported": ["b.py"],
    }  # fmt: skip


@pytest.mark.parametrize("folder", ["report", "rendering", "dashboard"])
def test_a_docstring_says_what_a_function_gives_without_the_word_return(folder: str) -> None:
    """ "The models of ...", not "Return the models of ..."; a function that does something begins with its verb."""
    found = [
        f"{path.name}: {node.name}"
        for path in sorted((PACKAGE / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and (ast.get_docstring(node) or "").startswith("Return")
    ]
    assert found == []
