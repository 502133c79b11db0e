"""Prints the names and parameters of a released vLLM that permix uses, read from its source without importing it.

    pip download vllm==0.33.0 --no-deps --only-binary :all: --dest wheels
    python -m bench.vllm_interface wheels/vllm-*.whl > tests/inference/vllm_interface.json

The output is one JSON object: for each wheel's version, the names of each owner (class, function or module) on one line.
tests/inference/test_vllm.py compares permix with them.
"""

import ast
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

CLASSES = {
    "AsyncEngineArgs": ("vllm/engine/arg_utils.py", ("EngineArgs", "AsyncEngineArgs")),
    "SamplingParams": ("vllm/sampling_params.py", ("SamplingParams",)),
    "StructuredOutputsParams": ("vllm/sampling_params.py", ("StructuredOutputsParams",)),
    "RequestOutputKind": ("vllm/sampling_params.py", ("RequestOutputKind",)),
    "CompletionOutput": ("vllm/outputs.py", ("CompletionOutput",)),
}
"""The file of each class that permix makes or reads, and the classes in that file that define its fields."""

FUNCTIONS = {
    "AsyncLLMEngine.from_engine_args": ("vllm/v1/engine/async_llm.py", "AsyncLLM", "from_engine_args"),
    "AsyncLLMEngine.generate": ("vllm/v1/engine/async_llm.py", "AsyncLLM", "generate"),
    "AsyncLLMEngine.shutdown": ("vllm/v1/engine/async_llm.py", "AsyncLLM", "shutdown"),
    "RequestOutput": ("vllm/outputs.py", "RequestOutput", "__init__"),
}
"""The file, class and name of each function that permix calls, or whose parameters are the fields that it reads."""

MODULE_FUNCTIONS = {"tokens_input": "vllm/inputs/engine.py"}
"""The file of each function of `vllm.inputs` that permix calls."""

ASSIGNED = {
    "AsyncLLMEngine": ("vllm/v1/engine/async_llm.py", "AsyncLLM"),
}
"""The file and name of each class of which permix reads attributes that `__init__` assigns."""

PACKAGES = ("vllm/__init__.py", "vllm/inputs/__init__.py")

EXCEPTIONS = {"vllm/v1/engine/exceptions.py": ("EngineDeadError",)}

ENVIRONMENT_FILE = "vllm/envs.py"


def main() -> None:
    names_by_version = dict(map(read_wheel, map(Path, sys.argv[1:])))
    texts = {
        version: {owner: " ".join(names) for owner, names in by_owner.items()} for version, by_owner in names_by_version.items()
    }
    print(json.dumps(texts, indent=1, sort_keys=True))


def read_wheel(path: Path) -> tuple[str, dict[str, list[str]]]:
    """Return the version in a wheel's file name, and the names in it by owner."""
    match = re.match(r"vllm-([^-]+)-", path.name)
    if match is None:
        raise SystemExit(f"{path}: this is no wheel of vllm; its name must be vllm-VERSION-TAGS.whl")
    locations = (*CLASSES.values(), *FUNCTIONS.values(), *ASSIGNED.values())
    files = {str(location[0]) for location in locations} | {*MODULE_FUNCTIONS.values(), *EXCEPTIONS, *PACKAGES}
    files.add(ENVIRONMENT_FILE)
    with zipfile.ZipFile(path) as wheel:
        trees = {name: ast.parse(wheel.read(name)) for name in files}
    return match[1], dict(_interface(trees))


def _interface(trees: dict[str, ast.Module]) -> Iterator[tuple[str, list[str]]]:
    yield "vllm", _dict_keys(trees["vllm/__init__.py"], "MODULE_ATTRS")
    yield (
        "environment",
        sorted({text for text in _string_constants(trees[ENVIRONMENT_FILE]) if re.fullmatch(r"VLLM_[A-Z0-9_]+", text)}),
    )
    for name, (file, classes) in CLASSES.items():
        yield name, [field for owner in classes for field in _fields(_class(trees[file], owner))]
    for name, (file, owner, function) in FUNCTIONS.items():
        yield name, _parameters(_class(trees[file], owner), function)[1:]  # without self or cls
    yield (
        "vllm.inputs",
        sorted({text for text in _string_constants(trees["vllm/inputs/__init__.py"]) if text.isidentifier()}),
    )  # __all__
    for name, file in MODULE_FUNCTIONS.items():
        yield name, _parameters(trees[file], name)
    for name, (file, owner) in ASSIGNED.items():
        yield name, _assigned_attributes(_class(trees[file], owner))
    for file, names in EXCEPTIONS.items():
        yield file, [exception for exception in names if _class(trees[file], exception)]


def _string_constants(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _class(tree: ast.Module, name: str) -> ast.ClassDef:
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    if not classes:
        raise SystemExit(f"the class {name} was removed or moved; find it, and change CLASSES or FUNCTIONS")
    return classes[0]


def _dict_keys(tree: ast.Module, name: str) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and getattr(node.targets[0], "id", None) == name:
            return [text for key in node.value.keys if key is not None for text in _string_constants(key)]
    raise SystemExit(f"the dict {name} was removed or moved")


def _fields(owner: ast.ClassDef) -> list[str]:
    annotated = [node.target.id for node in owner.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    targets = [node.targets[0] for node in owner.body if isinstance(node, ast.Assign)]
    assigned = [target.id for target in targets if isinstance(target, ast.Name)]
    return [name for name in (*annotated, *assigned) if not name.startswith("_")]


def _parameters(owner: ast.ClassDef | ast.Module, name: str) -> list[str]:
    for node in owner.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            return [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
    raise SystemExit(f"the function {name} was removed or moved")


def _assigned_attributes(owner: ast.ClassDef) -> list[str]:
    start = next(node for node in owner.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    targets = [target for node in ast.walk(start) if isinstance(node, ast.Assign) for target in node.targets]
    return sorted({target.attr for target in targets if isinstance(target, ast.Attribute) and not target.attr.startswith("_")})


if __name__ == "__main__":
    main()
