"""The number and length of the package's modules and functions, and its folders that import each other. One JSON line a figure.

python -m bench.structure
python -m bench.structure --package OTHER_CHECKOUT/src/permix
"""

import argparse
import ast
import statistics
from collections.abc import Sequence
from pathlib import Path

from bench.figures import show

PACKAGE = Path(__file__).parents[1] / "src" / "permix"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--package", type=Path, default=PACKAGE, help="the folder of the package")
    return parser


def function_lengths(tree: ast.AST) -> list[int]:
    """Return the number of lines of each function, with methods and nested functions."""
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return [(node.end_lineno or node.lineno) - node.lineno + 1 for node in functions]


def imported_folders(tree: ast.AST, package: str) -> set[str]:
    """Return the folders or top-level modules of the package that a module imports, also inside functions."""
    folders = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        folders |= {name.split(".")[1] for name in names if name.split(".")[0] == package and "." in name}
    return folders


def folder_circles(imports: dict[str, set[str]]) -> int:
    """Return the number of pairs of folders that import each other."""
    return sum(first < second and first in imports.get(second, set()) for first, others in imports.items() for second in others)


def percentile_90(values: Sequence[int]) -> int:
    """Return the value above which a tenth of the values lie."""
    return sorted(values)[int(0.9 * len(values))]


def main() -> None:
    package = parser().parse_args().package
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(package.rglob("*.py"))}
    lengths = [length for tree in trees.values() for length in function_lengths(tree)]
    lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in trees]
    imports: dict[str, set[str]] = {}
    for path, tree in trees.items():
        folder = path.relative_to(package).with_suffix("").parts[0]
        imports.setdefault(folder, set()).update(imported_folders(tree, package.name) - {folder})
    show("modules", len(trees))
    show("module_lines", sum(lines), median=statistics.median(lines), p90=percentile_90(lines), largest=max(lines))
    show("function_lines", statistics.median(lengths), p90=percentile_90(lengths), largest=max(lengths), n=len(lengths))
    show("folder_circles", folder_circles(imports))


if __name__ == "__main__":
    main()
