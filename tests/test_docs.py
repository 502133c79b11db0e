"""The documents do not drift: their Python runs and prints what it says, their commands parse, their links and names exist."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from permix import cli, config

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "docs/recorded/README.md",
]
SETTINGS: dict[str, type[BaseModel]] = {**config.CONFIGS_BY_STAGE, "models": cli.ModelsOptions, "personas": cli.PersonasOptions}

OTHERS = (
    *(("pip", "install"), ("permix", "VERB"), ("vllm", "serve"), ("vllm", "run-batch"), ("lm-eval", "run"), ("inspect", "eval")),
)
"""Commands of other programs, which are not parsed here."""

by_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def prose(path: Path) -> str:
    """The document without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def snippets() -> Iterator[tuple[str, str]]:
    for path in DOCUMENTS:
        for number, code in enumerate(blocks(path, "python")):
            yield f"{path.stem}-{number}", code


SNIPPETS = list(snippets())


def expected(code: str) -> list[str]:
    """What a snippet says it prints: the comment behind a print, or comment lines of their own, in order."""
    return [found[1] for line in code.splitlines() if (found := re.search(r"(?:^print\(.*\)  |^)# (.+)$", line))]


def commands(path: Path) -> list[list[str]]:
    """Every shell command that a document gives, in a block or inline; of a configuration, those in its header."""
    if path.suffix == ".toml":
        text = re.sub(r"^#\s*", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        lines = [line for line in text.replace("\\\n", " ").splitlines() if line.startswith("permix ")]
    else:
        lines = "\n".join(blocks(path, "sh")).replace("\\\n", " ").splitlines()
        lines += re.findall(r"`((?:permix|make) [^`]+)`", prose(path))
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def test_there_is_something_to_test() -> None:
    assert {name.rpartition("-")[0] for name, _ in SNIPPETS} >= {"README", "CONTRIBUTING", "design"}
    assert sum(len(commands(path)) for path in DOCUMENTS) > 20


@pytest.mark.parametrize(("name", "code"), SNIPPETS, ids=[name for name, _ in SNIPPETS])
def test_python_runs_and_prints_what_it_says(name: str, code: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if "my-model" in code:
        (tmp_path / "my-model").symlink_to(request.getfixturevalue("tiny_model"))
    script = tmp_path / f"{name}.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    if "GRPOTrainer" in code:
        printed = [line for line in printed if not line.startswith("{'train_")]  # the trainer's own log
    assert printed == expected(code)


@pytest.mark.parametrize("path", [*DOCUMENTS, *sorted((ROOT / "configs").rglob("*.toml"))], ids=lambda path: path.stem)
def test_commands_are_make_targets_or_parse_as_permix_verbs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for program, *words in map(launched, commands(path)):
        if program == "make":
            assert words[0] in targets
            given = [word.removeprefix("ARGS=") for word in words[1:] if word.startswith("ARGS=")]
            if words[0] in STUDY_TARGETS and not is_former_study(path, given):
                refuse_bad_flags("study", [f"configs/study/{STUDY_TARGETS[words[0]]}.toml", *shlex.split(" ".join(given))])
        elif program == "permix" and words[0] != "VERB":
            assert words[0] in cli.VERBS
            refuse_bad_flags(words[0], words[1:])
        elif (program, words[0]) == ("python", "-m"):
            import_module(words[1]).parser().parse_args(words[2:])
        else:
            assert (program, words[0]) in OTHERS


STUDY_TARGETS = {"study": "arithmetic", "paper": "paper"}
"""The study's configuration that a target of make runs."""


def is_former_study(path: Path, given: list[str]) -> bool:
    """Whether a dated section of the results gives the arguments that `make study` took before it ran `permix study`."""
    former = {"--arms", "--side", "--page"} & {word for one in given for word in shlex.split(one)}
    return path.name == "results.md" and bool(former)


def launched(words: list[str]) -> list[str]:
    """The permix command that a launcher starts, whose own flags it must know; settings of the environment are left out."""
    words = [word for place, word in enumerate(words) if place or not re.fullmatch(r"[A-Z_]+=\S*", word)]
    if words[0] not in ("torchrun", "accelerate"):
        return words
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        asked = get_args_parser().parse_args(words[1:])
        assert asked.module
        return [asked.training_script, *asked.training_script_args]
    from accelerate.commands.launch import launch_command_parser

    assert words[1] == "launch"
    asked = launch_command_parser().parse_args(words[2:])
    assert asked.module
    assert (ROOT / asked.config_file).is_file()
    return [asked.training_script, *asked.training_script_args]


def refuse_bad_flags(verb: str, words: list[str]) -> None:
    """Parse as the command line does, and run nothing. A bad flag exits, a bad value raises."""
    words = [word for word in words if word not in cli.OUTPUT_OPTIONS]
    if "--dry-run" in words:
        assert verb in cli.ASKING_VERBS
        words.remove("--dry-run")
    overrides: dict[str, Any] = {}
    if verb == "study":
        words, overrides = cli.take_section_values(
            [re.sub("^--seeds$", "--only-seeds", word) for word in words], config.OVERRIDABLE_SECTIONS
        )
    if verb in cli.BATCH_VERBS:
        words, _ = cli.take_options(words, cli.BATCH_OPTIONS)
    if verb == "check":
        assert all((ROOT / word).is_file() for word in words)
        return
    if verb in ("report", "compare", "view") and words and not words[0].endswith(".toml"):
        words = ["--runs", *words]
    if verb == "judge" and words:
        words = ["--run", *words]
    if verb == "export":
        words = list(cli.insert_export_source(words))
    cli.parse_config(verb, SETTINGS[verb], words, overrides)


@by_document
def test_relative_links_resolve(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target.partition("#")[0]).exists(), target


@by_document
def test_files_and_the_names_in_them_exist(path: Path) -> None:
    text = prose(path)
    for named in re.findall(r"`((?:src|tests|configs|docs|bench)/[\w./-]+)`", text):
        assert "NAME" in named or (ROOT / named).exists(), named
    for name, file in re.findall(r"`(\w+)`\s+in\s+\[?`?([\w/]+\.py)`?", text):
        assert re.search(rf"^(?:def |class )?{name}\b", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), (name, file)


def tree() -> set[str]:
    """Every path of the README's tree. A line is names, two spaces or more, and a phrase; a folder opens an indented part."""
    lines = next(block for block in blocks(ROOT / "README.md", "text") if "src/permix/" in block).splitlines()
    folders: list[str] = []
    found = set()
    for line in lines:
        depth = (len(line) - len(line.lstrip())) // 4
        names = [name for name in re.split(r" {2,}", line.strip())[0].split(" ") if name]
        folders = folders[:depth]
        found |= {"".join([*folders, name]) for name in names}
        if names[0].endswith("/"):
            folders.append(names[0])
    return found


def test_the_tree_names_what_exists_and_every_folder_of_the_package() -> None:
    named = {path.rstrip("/") for path in tree()}
    assert [path for path in named if not (ROOT / path).exists()] == []
    folders = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "src" / "permix").glob("*/__init__.py")}
    assert folders - named == set()


def test_the_project_speaks_of_itself_alone() -> None:
    for path in [*DOCUMENTS, *(ROOT / "configs").rglob("*.toml")]:
        assert not re.search(r"(?<![\w.])/(?:work|tmp|root|home)/", path.read_text(encoding="utf-8")), path.name


def test_results_hold_no_number_without_its_command() -> None:
    sections = re.split(r"^## ", (ROOT / "docs" / "results.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert sections
    assert all("```sh\n" in section for section in sections)


@pytest.mark.parametrize("page", ["security.md", "inputs.md"])
def test_the_tests_that_a_page_names_exist(page: str) -> None:
    named = re.findall(r"(tests/[\w/]+\.py)::(\w+)", (ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert len(named) > 30
    gone = [f"{file}::{name}" for file, name in named if f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")]
    assert gone == []
