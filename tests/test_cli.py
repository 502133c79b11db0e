"""The command line: every command's exit code and words, flags over file over default, and no torch where none is needed."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from permix import __version__, cli, config
from permix.cli import commands
from permix.config import StabilityConfig
from permix.errors import ConfigError
from permix.plan import read_plan
from tests.cell_files import read_cells
from tests.sample_runs import asked_what, endpoint, solve, stability_values, toml, write_pool
from tests.servers import openai_server
from tests.without_packages import run_without

HEAVY = ("torch", "transformers", "trl", "sklearn", "scipy", "matplotlib", "openai", "pyarrow", "numpy")
WITHOUT = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
"""What is not installed where only endpoints are evaluated."""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def right(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str:
    return str(solve(asked_what(body)))


def python(script: str, *args: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command, environment = [sys.executable, "-c", script, *args], os.environ | (env or {})
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


# Help


def test_alone_it_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["--help"], ["-h"]):
        assert cli.run_cli(argv) == 0
        shown = capsys.readouterr().out
        assert all(f"\n  {command} " in shown for command in cli.COMMANDS)
    assert cli.run_cli(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def options(stage: type[BaseModel], prefix: str = "--") -> list[str]:
    found = []
    for name, field in stage.model_fields.items():
        option = f"{prefix}{name.replace('_', '-')}"
        inner = field.annotation
        found += options(inner, f"{option}.") if isinstance(inner, type) and issubclass(inner, BaseModel) else [option]
    return found


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_names_every_option_of_a_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    if command == "check":
        assert cli.run_cli([command, "--help"]) == 0
        assert "CONFIG.toml" in capsys.readouterr().out
        return
    with pytest.raises(SystemExit) as ended:
        cli.run_cli([command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    others: dict[str, type[BaseModel]] = {"models": commands.ModelsOptions, "personas": commands.PersonasOptions}
    assert cli.COMMANDS[command].help.split("\n")[0] in " ".join(shown.split())
    hidden = {"--stage", *(f"--{name}" for name in (config.FILE_ONLY_FIELDS if command == "study" else ()))}
    expected = [option for option in options(config.CONFIGS_BY_STAGE.get(command) or others[command]) if option not in hidden]
    assert [option for option in expected if option not in shown] == []
    assert "--stage" not in shown
    assert f"Example: {cli.COMMANDS[command].example}" in " ".join(shown.split())
    assert shown.startswith(" ".join(f"usage: permix {command} {cli.COMMANDS[command].arguments} [-h]".split()))


def test_the_examples_are_calls_of_their_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is parsed as the command would parse it; nothing is run."""
    monkeypatch.chdir(Path(cli.__file__).parents[3])
    parsed = []

    def stop(command: str, cls: type[BaseModel], args: Any, overrides: Any = None) -> Any:
        parsed.append(parse(command, cls, args, overrides))
        raise ConfigError("parsed")

    parse = commands.parse_config
    monkeypatch.setattr(commands, "parse_config", stop)
    for command, example in ((one.name, one.example) for one in cli.COMMANDS.values()):
        first, name, *args = shlex.split(example)
        assert (first, name) == ("permix", command)
        if command != "check":
            assert cli.run_cli([name, *args]) == 2
    assert len(parsed) == len(cli.COMMANDS) - 1


def test_help_of_everything_imports_nothing_heavy() -> None:
    script = f"""
import contextlib, sys
import permix
from permix import cli
cli.run_cli(["--help"])
for command in cli.COMMANDS:
    with contextlib.suppress(SystemExit):
        cli.run_cli([command, "--help"])
assert [name for name in {HEAVY} if name in sys.modules] == [], sorted(sys.modules)
"""
    ended = python(script)
    assert ended.returncode == 0, ended.stderr[-2000:]


# Words and exit codes


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["stabilty"], "permix stabilty: unknown command 'stabilty'; did you mean stability?"),
        (["personnas", "--show"], "did you mean personas?"),
        (["zzz"], "report, compare, power, view, import, export, models, personas, check"),
        (["stability", "none.toml"], "none.toml: no such configuration file"),
        (["plan", "--task.n", "3"], "plan.questions_per_step = 8: the task has only 3 questions"),
        (["plan", "--personas.template", "yuo_are"], "personas.template = 'yuo_are': give one of you_are"),
        (["stability", "--personas.include", "exprt"], "exprt"),
        (["personas", "--pool", "none.csv"], 'permix personas: pool = none.csv: no such file; give "builtin" or'),
        (["report"], "no runs: give run directories"),
        (["report", "nowhere"], "runs = nowhere: no such folder; give run directories"),
        (["judge", "nowhere", "--judge.name", "m"], "run = nowhere: nowhere/config.json: no such file"),
        (["export", "nowhere", "--format", "lm-eval"], "run = nowhere: nowhere/config.json: no such file"),
        (["check", "none.toml"], "none.toml: no such configuration file"),
        (["check"], "no file: give one or more configuration files; usage: permix check CONFIG.toml ..."),
        (
            ["stability", "--personas.pool", "none.csv"],
            'personas.pool = none.csv: no such file; give "builtin" or a path to a .toml',
        ),
        (
            ["stability", "--task.path", "q.jsonl"],
            "task.path = q.jsonl: arithmetic is generated and reads no file; to ask your own",
        ),
        (["stability", "--task.path", "q.jsonl", "--task.answer", "exact"], "task.path = q.jsonl: no such file"),
        (["stability", "--task.path", "q", "--task.name", "gsm8k"], "task.path = q: no such file or folder"),
        (["stability", "--exclude-plans", "p.parquet"], "exclude_plans = p.parquet: no such file; make one with"),
        (["train", "--plan-file", "p.parquet"], "plan_file = p.parquet: no such file; make one with `permix plan`"),
        (["fidelity", "--questions", "none.txt"], 'questions = none.txt: no such file; give "builtin" or a path to a .toml'),
        (["fidelity", "--personagym.path", "Gym"], "personagym.path = Gym: no such folder or file; give a clone of PersonaGym"),
        (["questions", "--examples", "--personagym.path", "Gym"], "personagym.path = Gym: no such folder or file"),
        (
            ["fidelity", "--interview.turns", "3", "--interview.script", "none.txt"],
            "interview.script = none.txt: no such file; give a path to a .toml / .jsonl / .txt file",
        ),
        (["fidelity", "--interview.turns", "3", "--interview.script", "builtin"], "interview.script = builtin: no such file"),
        (["fidelity", "--reference", "nowhere"], "reference = nowhere: nowhere/config.json: no such file"),
        (["import", "--lm-eval", "none=logs"], "lm_eval = logs: no such file or folder"),
        (["import", "--personagym", "answers"], "personagym = answers: no such folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    argv: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run_cli(argv) == 2
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.err.startswith(f"permix {argv[0]}: ")
    assert "Traceback" not in shown.err
    assert 'builtin"' not in shown.err or any(option in shown.err for option in ("personas.pool", " questions = ", "pool = "))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["stability", "--task.n", "0"], "permix stability: task.n = 0: must be greater than 0"),
        (["stability", "--samples", "-1"], "permix stability: samples = -1: must be greater than 0"),
        (["stability", "--sampling.top-p", "nan"], "permix stability: sampling.top_p = nan: must be a finite number"),
        (["fidelity", "--judge.temperature", "-1"], "judge.temperature = -1.0: must be greater than or equal to 0"),
        (["fidelity", "--interview.turns", "2"], "interview.turns = 2: too few to measure drift; give 3 or more"),
        (["train", "--train.lr", "0"], "permix train: train.lr = 0.0: must be greater than 0"),
        (["stability", "--seed", "9" * 30], "permix stability: seed: must be an integer between"),
        (["stability", "--model.api-key", "hunter2"], "--model.api-key: a command line can be read by everyone on this machine"),
        (["stability", "--api_key=hunter2"], "give the variable's name with --model.api-key-env"),
        (["stability", "--task.name", "gsm9k"], "'gsm9k'"),
        (["stability", "--model.backend", "opnai"], "'opnai'"),
        (["stability", "--task.m", "3"], "--task.n"),
        (["stability", "--model.backend", "openai"], "base_url is missing"),
        (["plan", "--plan.scope", "person"], "rollout"),
        (["plan", "--model.name", "x"], "permix plan: unknown option --model.name"),
        (
            ["plan", "--task.m", "3", "--plan.stepz=4"],
            "unknown option --task.m (did you mean --task.n?), --plan.stepz (did you mean",
        ),
        (
            ["stability", "--model.base-url", "http://h/v1", "--cache", "c"],
            "permix stability: cache = c: the model behind an endpoint may change; leave cache out with backend",
        ),
        (["plan", "--task.n"], "permix plan: Missing value for argument '--task.n'"),
        (["plan", "--task.n", "x"], "permix plan: task.n = 'x': must be a whole number\n"),
        (["plan", "--task.n=1e3"], "permix plan: task.n = '1e3': must be a whole number; write 1000\n"),
        (["stability", "--threads", "x"], "permix stability: threads = 'x': must be a whole number, or None\n"),
        (["stability", "--resamples", "2,000"], "resamples = '2,000': must be a whole number; write 2000\n"),
        (["stability", "--model.thinking_budget", "1.5"], "model.thinking_budget = '1.5': must be a whole number, or None\n"),
        (["stability", "--precision", "small"], "precision = 'small': must be a number, or None\n"),
        (["train", "--train.lr", "1e-5x"], "train.lr = '1e-5x': must be a number\n"),
        (["power", "--questions", "100", "x"], "questions = '100 x': must be whole numbers, separated by spaces\n"),
        (["power", "--seed-sds", "x"], "seed_sds = 'x': must be numbers, separated by spaces\n"),
        (["plan", "--plan.tag-weights", "expert", "x"], "plan.tag_weights = 'expert x': must be names and numbers in turn"),
        (["stability", "--personas.n", "1000"], "personas.n = 1000: must be between 1 and 36, the number of personas available"),
        (["stability", "--personas.include", "exprt"], "personas.include: unknown tag 'exprt'; "),
        (["stability", "--personas.exclude", "exprt"], "personas.exclude: unknown tag 'exprt'; "),
        (["plan", "--plan.tag-weights", "exprt", "2"], "plan.tag_weights: unknown tag 'exprt'; "),
        (["stability", "--contexts", "foo"], "permix stability: contexts = 'foo': give system, user"),
        (["stability", "--model.base-url", "--dry-run"], "model.base_url = []: names no address; give one such as"),
        (["plan", "stray"], "permix plan: Unrecognized options: stray"),
        (
            ["plan", "--task.split", "all-of-it"],
            "invalid choice 'all-of-it' for argument '--task.split'. Expected one of ('train',",
        ),
        (["stability", "--model.backend", "openai", "--model.base-url", "http://ann:hunter2@h/v1"], "holds credentials"),
    ],
)
def test_bad_flags_say_what_is_valid_and_exit_with_2(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_cli(argv) == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.startswith(f"permix {argv[0]}: ")
    assert shown.count("\n") == 1
    assert "hunter2" not in shown
    assert "pydantic" not in shown


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["stability", "--out", ""], "out = '': is empty; give a path, or leave it out (default: runs/stability)"),
        (["stability", "--out="], "out = '': is empty; give a path"),
        (["fidelity", "--out", " "], "out = ' ': is empty; give a path"),
        (["quickstart", "--out", ""], "out = '': is empty; give a path, or leave it out"),
        (["train", "--plan-file", "", "--task.n", "50"], "plan_file = '': is empty; give a path"),
        (["train", "--model.name", ""], "model.name = '': is empty; give a text, or leave it out (default: bundled)"),
        (["stability", "--personas.pool", ""], "personas.pool = '': is empty; give a text, or leave it out (default: builtin)"),
        (["stability", "--exclude-plans", "a.parquet", ""], "exclude_plans = '': is empty; give a path"),
        (["stability", "--model.base-url", ""], "model.base_url = '': is empty"),
        (["fidelity", "--personagym.hub", ""], "personagym.hub = '': is empty"),
        (["judge", ""], "run = '': is empty; give a path"),
        (["report", ""], "runs = '': is empty; give a path"),
        (["compare", "a", ""], "runs = '': is empty; give a path"),
        (["view", ""], "runs = '': is empty; give a path"),
        (["export", ""], "run = '': is empty; give a path"),
        (["personas", "--pool", ""], "pool = '': is empty; give a text"),
        (["stability", "--batch-out", ""], "--batch-out: its value is missing"),
        (["stability", ""], "an argument before the options is an empty text"),
        (["check", ""], "the name of a file is an empty text"),
    ],
)
def test_an_empty_text_is_never_the_current_folder(
    argv: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run_cli(argv) == 2
    assert capsys.readouterr().err.startswith(f"permix {argv[0]}: {words}")
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_of_another_stage_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.toml"
    file.write_text('stage = "fidelity"\n')
    assert cli.run_cli(["stability", str(file)]) == 2
    assert f'{file}: configures "permix fidelity", not "permix stability"' in capsys.readouterr().err


def test_main_exits_with_the_code() -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["zzz"])
    assert ended.value.code == 2


# Flags over file over default


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('samples = 3\n[task]\nn = 7\nlevels = ["add-1"]\n[sampling]\ntemperature = 0.5\n')
    flags = ["--task.n", "9", "--personas.empty_system_prompt", "--exclude-plans", "a", "b"]
    values = {"task": {"n": 9, "levels": ["add-1"]}, "sampling": {"temperature": 0.5}, "personas": {"empty_system_prompt": True}}
    expected = config.build_config(StabilityConfig, values | {"samples": 3, "exclude_plans": ["a", "b"]}, source="test")
    assert commands.parse_config("stability", StabilityConfig, [str(file), *flags]) == expected
    assert commands.parse_config("stability", StabilityConfig, [str(file), "--task.n", "7"]) == config.load_config(
        StabilityConfig, file
    )
    assert commands.parse_config("stability", StabilityConfig, []) == StabilityConfig()


def test_a_flag_can_mend_what_the_sections_do_not_share(tmp_path: Path) -> None:
    found = commands.parse_config("plan", config.PlanConfig, ["--plan.tag-weights", "expert", "2.5", "--plan.mix", "0.5"])
    assert found.plan.tag_weights == {"expert": 2.5}
    assert found.plan.mix == 0.5
    assert found.personas.split == "train"  # a section's own default stands though another field of it was given
    assert found.task.n == 1000


def test_a_method_named_by_a_flag_brings_its_own_mix_unless_the_file_says_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "train.toml"
    file.write_text('method = "permix"\n[plan]\nsteps = 3\n')
    found = commands.parse_config("train", config.TrainConfig, [str(file), "--method", "rlvr"])
    assert (found.method, found.plan.mix, found.plan.steps) == ("rlvr", 0.0, 3)
    assert commands.parse_config("train", config.TrainConfig, [str(file)]).plan.mix == 0.8
    assert commands.parse_config("train", config.TrainConfig, [str(file), "--plan.mix", "0.3"]).plan.mix == 0.3
    assert commands.parse_config("train", config.TrainConfig, ["--method", "sft"]).plan.mix == 0.0
    file.write_text("[plan]\nmix = 0.8\n")
    assert cli.run_cli(["train", str(file), "--method", "rlvr"]) == 2
    assert 'plan.mix = 0.8: method "rlvr" trains without personas' in capsys.readouterr().err


def test_a_base_url_brings_the_backend_of_endpoints_unless_one_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, local = "http://h/v1", 'model.base_url is given, but backend "transformers" asks no endpoint; give backend = "openai"'
    assert commands.parse_config("stability", StabilityConfig, ["--model.base-url", url]).model.backend == "openai"
    assert commands.parse_config("stability", StabilityConfig, [f"--model.base_url={url}"]).model.backend == "openai"
    assert commands.parse_config("stability", StabilityConfig, ["--model.name", "x"]).model.backend == "transformers"
    judge = commands.parse_config("judge", config.JudgeConfig, ["--run", "r", "--judge.base-url", url]).judge
    assert (judge.backend, judge.base_url) == ("openai", url)
    for flags in (["--model.backend", "transformers"], ["--model.backend=transformers"]):
        assert cli.run_cli(["stability", "--model.base-url", url, *flags]) == 2
        assert local in capsys.readouterr().err
    file = tmp_path / "run.toml"
    file.write_text(f'[model]\nbase_url = "{url}"\n')
    assert commands.parse_config("stability", StabilityConfig, [str(file)]).model.backend == "openai"
    assert commands.parse_config("stability", StabilityConfig, [str(file), "--model.name", "x"]).model.backend == "openai"
    file.write_text('[model]\nbackend = "transformers"\n')
    assert cli.run_cli(["stability", str(file), "--model.base-url", url]) == 2
    assert local in capsys.readouterr().err
    file.write_text(f'[model]\nbackend = "transformers"\nbase_url = "{url}"\n')
    assert cli.run_cli(["stability", str(file)]) == 2
    assert local in capsys.readouterr().err
    assert config.ModelConfig(base_url=url).backend == "openai"
    assert config.build_config(StabilityConfig, {"model": {"base_url": url}}, source="test").model.backend == "openai"
    with pytest.raises(ValueError, match='base_url is given, but backend "transformers"'):
        config.ModelConfig(base_url=url, backend="transformers")
    assert config.ModelConfig().backend == "transformers"


# Verbs


def test_plan_writes_a_plan_and_says_what_is_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--plan.steps", "2", "--plan.questions-per-step", "3", "--plan.group-size", "4", "--plan.mix", "0", "--task.n", "6"]
    out = tmp_path / "new" / "plan.parquet"
    assert cli.run_cli(["plan", "--out", str(out), *flags]) == 0
    shown = capsys.readouterr().out
    plan = read_plan(out)
    assert (plan.steps, len(plan.rows), plan.group_size) == (2, 6, 4)
    for fact in (plan.hash, "24 in groups of 4", "100.0% of rollouts"):
        assert fact in shown


def test_personas_describes_checks_and_shows_safely(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = tmp_path / "pool.toml"
    pool.write_text('[[persona]]\nid = "a"\ntext = "a sailor \u200b[red]of old[/red]"\ntags = ["sea"]\n')
    assert cli.run_cli(["personas", "--pool", str(pool), "--show"]) == 0
    shown = capsys.readouterr().out
    assert "1 personas" in shown
    assert "a  [-; sea]  a sailor \\u200b[red]of old[/red]" in shown
    pool.write_text('[[persona]]\nid = "a"\ntext = "a sailor \\u202e"\n')
    assert cli.run_cli(["personas", "--pool", str(pool)]) == 2
    assert "contains U+202E" in capsys.readouterr().err
    assert cli.run_cli(["personas"]) == 0
    assert "near-duplicates" in capsys.readouterr().out


def test_models_says_where_models_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERMIX_CACHE", str(tmp_path))
    assert cli.run_cli(["models"]) == 0
    assert "not converted yet" in capsys.readouterr().out
    folder = tmp_path / "smollm2-135m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert cli.run_cli(["models"]) == 0
    assert str(folder) in capsys.readouterr().out
    assert cli.run_cli(["models", "--fetch"]) == 0  # there already: nothing is converted
    assert capsys.readouterr().out == f"{folder}\n"


def test_check_names_the_problems_of_all_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good [bold].toml", tmp_path / "bad.toml"
    good.write_text('stage = "stability"\n[task]\nn = 5\n')
    bad.write_text('stage = "stability"\n[task]\nleves = 5\nn = 0\n[personas]\nnn = 3\n')
    worse = tmp_path / "worse.toml"
    worse.write_text(
        'stage = "stability"\nexclude_plans = ["none.parquet"]\n[task]\nname = "own-number"\npath = "none.jsonl"\n'
        '[personas]\npool = "none.csv"\ntemplate = "yuo_are"\n[model]\nname = "./nowhere"\n'
    )
    assert cli.run_cli(["check", str(good)]) == 0
    assert "valid" in capsys.readouterr().out
    assert cli.run_cli(["check", str(bad), str(worse), str(good)]) == 2
    shown = capsys.readouterr()
    assert str(good) in shown.out
    assert str(bad) not in shown.out
    first, *others = shown.err.splitlines()
    assert first == (
        f"permix check: {bad}: unknown key task.leves; did you mean task.levels?; unknown key personas.nn; did you mean "
        "personas.n?; task.n = 0: must be greater than 0"
    )
    starts = ["personas.template = 'yuo_are': ", "task.path = none.jsonl: no such file", "personas.pool = none.csv: no such file"]
    starts += ["exclude_plans = none.parquet: no such file", "model.name = './nowhere': no such folder"]
    assert len(others) == len(starts)
    for line, start in zip(others, starts, strict=True):
        assert line.startswith(f"permix check: {worse}: {start}")


@pytest.mark.slow
def test_a_run_can_be_gone_on_with_and_reported_from_its_own_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, report = tmp_path / "run", tmp_path / "report"
    with openai_server(right) as server:
        file = tmp_path / "run.toml"
        file.write_text(toml(stability_values(tmp_path, server.base_url)))
        assert cli.run_cli(["stability", str(file), "--label", "ours"]) == 0
        assert len(server.asked) == 24
        assert cli.run_cli(["stability", str(run / "config.json")]) == 0
        assert len(server.asked) == 24
    capsys.readouterr()
    assert cli.run_cli(["report", str(run), "--out", str(report)]) == 0
    assert "ours" in capsys.readouterr().out
    assert json.loads((report / "table.json").read_text())["rows"][0]["label"] == "ours"
    assert (report / "report.md").exists()


def test_an_endpoint_that_is_not_there_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.toml"
    file.write_text(toml(stability_values(tmp_path, "http://127.0.0.1:1/v1")))
    assert cli.run_cli(["stability", str(file)]) == 2
    assert "model.base_url = http://127.0.0.1:1/v1: no endpoint there" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_interruption_exits_with_130_and_keeps_what_was_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt_at_9(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str:
        if nth == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return right(body, nth, headers)

    with openai_server(interrupt_at_9) as server:
        file = tmp_path / "run.toml"
        file.write_text(toml(stability_values(tmp_path, server.base_url, model=endpoint(server.base_url))))
        assert cli.run_cli(["stability", str(file)]) == 130
        shown = capsys.readouterr()
        assert "interrupted; finished work is saved, run the same command again to continue" in shown.err
        assert "Traceback" not in shown.err
        kept, asked = len(read_cells(tmp_path / "run" / "records.jsonl")), len(server.asked)
        assert 1 <= kept < 24
        server.script = right
        assert cli.run_cli(["stability", str(file)]) == 0
        # The one request in flight at the interruption may have reached the server after `asked` was read.
        assert len(server.asked) - asked - (24 - kept) in (0, 1)


# Light


@pytest.fixture
def torchless() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command where torch and its kin cannot be imported."""
    return partial(run_without, WITHOUT)


def test_trl_is_imported_where_models_are_trained_alone() -> None:
    sources = (Path(cli.__file__).parents[1]).rglob("*.py")
    importing = {path.name for path in sources if re.search(r"^\s*(?:from|import) trl\b", path.read_text(), re.MULTILINE)}
    assert importing == {"trl_setup.py", "grpo_trainer.py", "sft_trainer.py"}
    ended = python("import sys, permix.pipelines.train; print('torch' in sys.modules or 'trl' in sys.modules)")
    assert ended.stdout == "False\n", ended.stderr[-2000:]


@pytest.mark.slow
def test_endpoints_are_measured_without_torch(torchless: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    with openai_server(right) as server:
        file = tmp_path / "run.toml"
        file.write_text(toml(stability_values(tmp_path, server.base_url)))
        ended = torchless("stability", str(file))
        assert ended.returncode == 0, ended.stderr[-2000:]
        assert "report.md" in ended.stdout
        assert len(server.asked) == 24


INSTALL = f"pip install -e '{Path(cli.__file__).parents[3]}"
"""The beginning of the command that installs an extra of this clone."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["stability"], "model.name = 'bundled': a model in this process needs torch, transformers, which are not installed: "),
        (["fidelity"], "model.name = 'bundled': a model in this process needs torch"),
        (["fidelity", "--interview.turns", "3"], "a model in this process needs torch"),
        (
            ["fidelity", "--model.base-url", "URL", "--model.name", "test", "--judge.name", "bundled"],
            "judge: model.name = 'bundled'",
        ),
        (
            ["stability", "--task.name", "gsm8k"],
            "reading openai/gsm8k (main) from the hub needs datasets, which is not installed: ",
        ),
        (["train"], "training needs torch, transformers, accelerate, trl, which are not installed: "),
        (["train", "--train.lora-rank", "4"], "accelerate, trl, peft, which"),
        (["quickstart", "--fast"], "the quickstart needs torch, transformers, accelerate, trl, which are not installed: "),
        (["models", "--fetch"], "a model in this process needs torch, transformers, which are not installed"),
    ],
)
def test_a_missing_package_is_one_line_with_what_installs_it(
    argv: list[str], words: str, torchless: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    with openai_server(right) as server:
        given = [server.base_url if word == "URL" else word for word in argv]
        out = [] if argv[0] in ("models", "quickstart") else ["--out", str(tmp_path / "run")]
        ended = torchless(*given, *out, env={"PERMIX_CACHE": str(tmp_path / "cache")})
        assert server.asked == []
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr[-2000:]
    (line,) = (line for line in ended.stderr.splitlines() if not line.startswith("note: "))
    assert line.startswith(f"permix {argv[0]}: ")
    assert words in line
    extra = "train" if argv[0] in ("train", "quickstart") else "local"
    assert f"{INSTALL}[{extra}]'" in line
    assert not (tmp_path / "run").exists()


def test_what_permix_imports_somewhere_else_is_named_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> commands.Command:
        def broken_command(args: object) -> None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return commands.Command(broken_command, "permix broken")

    monkeypatch.setitem(cli.COMMANDS, "broken", missing("peft.tuners"))
    assert cli.run_cli(["broken"]) == 2
    assert capsys.readouterr().err == f"permix broken: this needs peft, which is not installed: {INSTALL}[train]'\n"
    monkeypatch.setitem(cli.COMMANDS, "broken", missing("permix.nothing"))
    with pytest.raises(ModuleNotFoundError):
        cli.run_cli(["broken"])


@pytest.mark.slow
def test_plans_checks_and_reports_need_no_torch(
    torchless: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    file = tmp_path / "train.toml"
    file.write_text('stage = "train"\n[task]\nn = 20\n')
    pool = str(write_pool(tmp_path / "pool.toml"))
    for argv in (
        ["plan", "--task.n", "20", "--plan.steps", "1", "--out", str(tmp_path / "plan.parquet")],
        ["check", str(file)],
        ["personas", "--pool", pool],
        ["models"],
    ):
        ended = torchless(*argv)
        assert ended.returncode == 0, (argv, ended.stderr[-2000:])
        is_check = argv[0] == "check"
        assert ("training needs torch, transformers, accelerate, trl, which are not installed: " in ended.stdout) == is_check
