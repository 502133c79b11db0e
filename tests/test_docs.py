"""The documents do not drift: their Python runs and prints what it says, their commands parse, their links and names exist.

Dated results (`docs/history`) keep their text for ever. So of them only links are checked, that each section has a command, and
that the index lists it: their commands need not parse with today's options, and the files that they name need not exist.
"""

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
from permix.cli.commands import BATCH_OPTIONS, OUTPUT_OPTIONS, ModelsOptions, PersonasOptions, parse_config
from permix.cli.flags import insert_export_source, take_options, take_section_values
from permix.storage.files import read_json
from permix.storage.run_dir import RunDir

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "docs/recorded/README.md",
]
"""What must agree with today's code."""

HISTORY = sorted((ROOT / "docs/history").glob("*.md"))
"""Dated results and their index, which agree with the code of their date."""

SETTINGS: dict[str, type[BaseModel]] = {
    **config.CONFIGS_BY_STAGE,
    "models": ModelsOptions,
    "personas": PersonasOptions,
}

OTHERS = (
    *(
        ("pip", "install"),
        ("permix", "COMMAND"),
        ("vllm", "serve"),
        ("vllm", "run-batch"),
        ("lm-eval", "run"),
        ("inspect", "eval"),
    ),
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


def test_the_fields_of_usage_json_are_described(tmp_path: Path) -> None:
    with RunDir.open(tmp_path, config.StabilityConfig(), {}) as run, run.track_usage():
        pass
    (row,) = re.findall(r"^\| `usage.json` .*$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) == set(read_json(tmp_path / "usage.json"))


def test_there_is_something_to_test() -> None:
    assert {name.rpartition("-")[0] for name, _ in SNIPPETS} >= {"README", "CONTRIBUTING", "design"}
    assert sum(len(commands(path)) for path in DOCUMENTS) > 20


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("path", [*DOCUMENTS, *sorted((ROOT / "configs").rglob("*.toml"))], ids=lambda path: path.stem)
def test_commands_are_make_targets_or_parse_as_permix_commands(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for program, *words in map(launched, commands(path)):
        if program == "make":
            assert words[0] in targets
            given = [word.removeprefix("ARGS=") for word in words[1:] if word.startswith("ARGS=")]
            if words[0] in STUDY_TARGETS and not is_former_study(path, given):
                refuse_bad_flags("study", [f"configs/study/{STUDY_TARGETS[words[0]]}.toml", *shlex.split(" ".join(given))])
        elif program == "permix" and words[0] != "COMMAND":
            assert words[0] in cli.COMMANDS
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


def refuse_bad_flags(command: str, words: list[str]) -> None:
    """Parse as the command line does, and run nothing. A bad flag exits, a bad value raises."""
    words = [word for word in words if word not in OUTPUT_OPTIONS]
    if "--dry-run" in words:
        assert cli.COMMANDS[command].asks_model
        words.remove("--dry-run")
    overrides: dict[str, Any] = {}
    if command == "study":
        words, overrides = take_section_values(
            [re.sub("^--seeds$", "--only-seeds", word) for word in words], config.OVERRIDABLE_SECTIONS
        )
    if cli.COMMANDS[command].takes_batches:
        words, _ = take_options(words, BATCH_OPTIONS)
    if command == "check":
        assert all((ROOT / word).is_file() for word in words)
        return
    if command in ("report", "compare", "power", "view") and words and not words[0].endswith(".toml"):
        words = ["--runs", *words]
    if command == "judge" and words:
        words = ["--run", *words]
    if command == "export":
        words = list(insert_export_source(words))
    parse_config(command, SETTINGS[command], words, overrides)


def anchors(path: Path) -> set[str]:
    """The names by which GitHub links to the headings of a document."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found.append(f"{name}-{found.count(name)}" if name in found else name)
    return set(found)


@pytest.mark.parametrize("path", [*DOCUMENTS, *HISTORY], ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_resolve(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = target.partition("#")
            linked = path.parent / file if file else path
            assert linked.exists(), target
            assert not anchor or linked.suffix != ".md" or anchor in anchors(linked), target


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
    for path in [*DOCUMENTS, *HISTORY, *(ROOT / "configs").rglob("*.toml")]:
        assert not re.search(r"(?<![\w.])/(?:work|tmp|root|home)/", path.read_text(encoding="utf-8")), path.name


def split_sections(path: Path, marks: str) -> dict[str, str]:
    """The text under each heading with these marks, up to the next such heading."""
    _, *parts = re.split(rf"^{marks} (.+)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_current_results_have_an_answer_a_command_limits_and_their_dated_section() -> None:
    page = ROOT / "docs" / "results.md"
    questions = split_sections(page, "##")
    assert questions
    for question, text in questions.items():
        answer = text.lstrip("\n").partition("\n\n")[0]
        assert re.match(r"[A-Z][^#]*\.$", answer), question
        assert f"- [{question}](#" in page.read_text(encoding="utf-8"), question
    results = {
        heading: text for heading, text in split_sections(page, "##+").items() if "\n### " not in questions.get(heading, "")
    }
    for heading, text in results.items():
        assert "```sh\n" in text, heading
        assert "**What it does not show.**" in text, heading
        assert "](history/" in text, heading


def test_every_dated_result_has_a_command_and_one_line_of_the_index() -> None:
    index = (ROOT / "docs/history/README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d{4}-\d\d-\d\d) \| \[[^|]+\]\(([\w#.-]+)\) \| (?:current|replaced)", index, re.MULTILINE)
    assert [date for date, _ in rows] == sorted((date for date, _ in rows), reverse=True)
    dated = []
    for path in HISTORY:
        sections = split_sections(path, "##")
        dates = [heading[:10] for heading in sections]
        assert dates == sorted(dates, reverse=True), path.name
        assert all("```sh\n" in text for text in sections.values()), path.name
        dated += [f"{path.name}#{name}" for name in anchors(path) if re.match(r"\d{4}-\d\d-\d\d-", name)]
    assert dated
    assert sorted(dated) == sorted(link for _, link in rows)


@pytest.mark.parametrize("page", ["security.md", "inputs.md"])
def test_the_tests_that_a_page_names_exist(page: str) -> None:
    named = re.findall(r"(tests/[\w/]+\.py)::(\w+)", (ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert len(named) > 30
    gone = [f"{file}::{name}" for file, name in named if f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")]
    assert gone == []
