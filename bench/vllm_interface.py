"""Print the names and parameters of a released vLLM that permix uses, read from its source without importing it: one JSON
object, the names of one owner in a line.

    pip download vllm==0.33.0 --no-deps --only-binary :all: --dest wheels
    python -m bench.vllm_interface wheels/vllm-*.whl > tests/inference/vllm_interface.json

Several wheels give several versions. tests/inference/test_vllm.py holds permix against them.
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
"""For each class that permix makes or reads: its file, and the classes in it that have its fields."""

FUNCTIONS = {
    "AsyncLLMEngine.from_engine_args": ("vllm/v1/engine/async_llm.py", "AsyncLLM", "from_engine_args"),
    "AsyncLLMEngine.generate": ("vllm/v1/engine/async_llm.py", "AsyncLLM", "generate"),
    "AsyncLLMEngine.shutdown": ("vllm/v1/engine/async_llm.py", "AsyncLLM", "shutdown"),
    "RequestOutput": ("vllm/outputs.py", "RequestOutput", "__init__"),
}
"""For each function that permix calls, or class that it reads: its file, class and name."""

MODULE_FUNCTIONS = {"tokens_input": "vllm/inputs/engine.py"}
"""For each function of `vllm.inputs` that permix calls: its file."""

ASSIGNED = {
    "AsyncLLMEngine": ("vllm/v1/engine/async_llm.py", "AsyncLLM"),
}
"""Classes whose attributes permix reads, which are assigned in `__init__`."""

PACKAGES = ("vllm/__init__.py", "vllm/inputs/__init__.py")

EXCEPTIONS = {"vllm/v1/engine/exceptions.py": ("EngineDeadError",)}

ENVIRONMENT_FILE = "vllm/envs.py"


def main() -> None:
    found = dict(map(read_wheel, map(Path, sys.argv[1:])))
    texts = {version: {owner: " ".join(names) for owner, names in each.items()} for version, each in found.items()}
    print(json.dumps(texts, indent=1, sort_keys=True))


def read_wheel(path: Path) -> tuple[str, dict[str, list[str]]]:
    """The version in a wheel's name, and its names by what they belong to."""
    found = re.match(r"vllm-([^-]+)-", path.name)
    if found is None:
        raise SystemExit(f"{path}: is no wheel of vllm; its name must be vllm-VERSION-TAGS.whl")
    places = (*CLASSES.values(), *FUNCTIONS.values(), *ASSIGNED.values())
    files = {str(place[0]) for place in places} | {*MODULE_FUNCTIONS.values(), *EXCEPTIONS, *PACKAGES}
    files.add(ENVIRONMENT_FILE)
    with zipfile.ZipFile(path) as wheel:
        trees = {name: ast.parse(wheel.read(name)) for name in files}
    return found[1], dict(_interface(trees))


def _interface(trees: dict[str, ast.Module]) -> Iterator[tuple[str, list[str]]]:
    yield "vllm", _keys(trees["vllm/__init__.py"], "MODULE_ATTRS")
    yield "environment", sorted({text for text in _texts(trees[ENVIRONMENT_FILE]) if re.fullmatch(r"VLLM_[A-Z0-9_]+", text)})
    for name, (file, classes) in CLASSES.items():
        yield name, [field for one in classes for field in _fields(_class(trees[file], one))]
    for name, (file, owner, function) in FUNCTIONS.items():
        yield name, _parameters(_class(trees[file], owner), function)[1:]  # without self or cls
    yield "vllm.inputs", sorted({text for text in _texts(trees["vllm/inputs/__init__.py"]) if text.isidentifier()})  # __all__
    for name, file in MODULE_FUNCTIONS.items():
        yield name, _parameters(trees[file], name)
    for name, (file, owner) in ASSIGNED.items():
        yield name, _assigned(_class(trees[file], owner))
    for file, names in EXCEPTIONS.items():
        yield file, [one for one in names if _class(trees[file], one)]


def _texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _class(tree: ast.Module, name: str) -> ast.ClassDef:
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    if not found:
        raise SystemExit(f"there is no class {name} any more; look where it went, and change CLASSES or FUNCTIONS")
    return found[0]


def _keys(tree: ast.Module, name: str) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and getattr(node.targets[0], "id", None) == name:
            return [text for key in node.value.keys if key is not None for text in _texts(key)]
    raise SystemExit(f"there is no {name} any more")


def _fields(owner: ast.ClassDef) -> list[str]:
    annotated = [node.target.id for node in owner.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    targets = [node.targets[0] for node in owner.body if isinstance(node, ast.Assign)]
    assigned = [target.id for target in targets if isinstance(target, ast.Name)]
    return [name for name in (*annotated, *assigned) if not name.startswith("_")]


def _parameters(owner: ast.ClassDef | ast.Module, name: str) -> list[str]:
    for node in owner.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            return [one.arg for one in (*node.args.args, *node.args.kwonlyargs)]
    raise SystemExit(f"there is no {name} any more")


def _assigned(owner: ast.ClassDef) -> list[str]:
    start = next(node for node in owner.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    targets = [target for node in ast.walk(start) if isinstance(node, ast.Assign) for target in node.targets]
    return sorted({one.attr for one in targets if isinstance(one, ast.Attribute) and not one.attr.startswith("_")})


if __name__ == "__main__":
    main()
