"""--json, --quiet and --dry-run: what programs get on stdout, and what stays off stderr."""

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.cli import commands
from permix.config import ReportConfig
from permix.evals.interview import interviewer_messages
from permix.inference.cost import CHARACTERS_PER_TOKEN
from permix.storage.workers import SHARED_LOCK_FILE
from tests.sample_runs import fidelity_values, solve, stability_values, toml
from tests.seeded import stability_run, torn
from tests.servers import openai_server

NOBODY = "http://127.0.0.1:1/v1"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("TQDM_DISABLE", "1")  # --quiet sets it; the test puts it back


def config_file(folder: Path, values: dict[str, Any]) -> str:
    path = folder / f"{values['stage']}.toml"
    path.write_text(toml(values))
    return str(path)


def run_json(capfd: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> tuple[dict[str, Any], str]:
    """The object on stdout, and stderr."""
    assert cli.run_cli([*argv, "--json"]) == code
    shown = capfd.readouterr()
    return json.loads(shown.out), shown.err


def right(body: dict[str, Any], nth: int, headers: object) -> str:
    return f"\\boxed{{{solve(body['messages'][-1]['content'])}}}"


def test_a_run_gives_one_object_and_quiet_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with openai_server(right) as server:
        path = config_file(tmp_path, stability_values(tmp_path, server.base_url))
        result, err = run_json(capfd, "stability", path, "--quiet")
    assert err == ""
    assert (result["command"], result["error"], result["pending"]) == ("stability", None, 0)
    [row] = result["rows"]
    assert (row["label"], row["mean"]["value"], row["n_scored"], row["n_asked"]) == ("test", 1.0, 18, 18)
    assert result["claim"] == "No effect of personas on the accuracy of test is shown."
    run = tmp_path / "run"
    assert result["paths"] == {
        "run": str(run), "metrics": str(run / "metrics.json"), "report": str(run / "report" / "report.md"),
        "page": str(run / "report" / "index.html"), "table": str(run / "report" / "table.json"),
        "tables": str(run / "report" / "tables"),
    }  # fmt: skip
    assert all(Path(path).exists() for path in result["paths"].values())
    assert run_json(capfd, "export", str(run), "--format", "lm-eval", "--out", str(tmp_path / "logs"))[0]["facts"]


def test_what_is_missing_is_counted_and_the_exit_code_stays(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def mostly(body: dict[str, Any], nth: int, headers: object) -> Any:
        from tests.servers import error

        return error(500) if nth in (3, 5) else right(body, nth, headers)

    with openai_server(mostly) as server:
        path = config_file(tmp_path, stability_values(tmp_path, server.base_url))
        result, err = run_json(capfd, "stability", path, "--quiet", code=3)
    assert result["pending"] == 2
    assert "2 of 24 cells, with or without a persona, have no score" in result["error"]
    assert err == f"permix stability: {result['error']}\n"  # an error is never quiet
    assert result["rows"][0]["label"] == "test"


def test_an_error_is_an_object_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result, err = run_json(capfd, "report", str(tmp_path / "none"), code=2)
    assert "none: no such folder; give run directories" in result["error"]
    assert result["error"] in err
    result, _ = run_json(capfd, "stabilty", code=2)
    assert result["error"] == "unknown command 'stabilty'; did you mean stability?"


def test_a_wrong_flag_leaves_an_object(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run_cli(["report", "--nope", "--json"]) == 2
    shown = capfd.readouterr()
    assert json.loads(shown.out)["error"]
    assert "nope" in shown.err


def test_help_stays_text_and_names_the_options(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run_cli(["--json"]) == 0
    assert "--quiet" in capfd.readouterr().out
    for command in ("stability", "report"):
        with pytest.raises(SystemExit):
            cli.run_cli([command, "--help", "--json"])
        shown = " ".join(capfd.readouterr().out.split())
        assert "--json" in shown
        assert ("--dry-run" in shown) == (command == "stability")


def test_every_other_command_gives_an_object(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    one, two = (stability_run(tmp_path / name, name, "x", torn) for name in ("one", "two"))
    result, _ = run_json(capfd, "compare", str(one), str(two), "--out", str(tmp_path / "compared"))
    assert result["comparison"]["n_questions"] > 0
    assert Path(result["paths"]["comparison"]).exists()
    result, _ = run_json(capfd, "report", str(one), str(two), "--out", str(tmp_path / "report"))
    assert [row["label"] for row in result["rows"]] == ["one", "two"]
    result, _ = run_json(capfd, "personas", "--show")
    assert result["n"] == len(result["personas"]) > 0
    result, _ = run_json(capfd, "plan", "--out", str(tmp_path / "plan.parquet"), "--task.n", "8", "--plan.steps", "2")
    assert result["facts"]["steps"] == "2"
    assert run_json(capfd, "models")[0]["facts"]["bundled"]


def test_check_keeps_its_files_apart(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stable, distinct = stability_values(tmp_path, NOBODY), fidelity_values(tmp_path, NOBODY)
    paths = [config_file(tmp_path, values) for values in (stable, distinct)]
    result, _ = run_json(capfd, "check", *paths)
    assert [result["files"][path]["estimates"]["model"]["requests"] for path in paths] == [24, 36]
    assert result["files"][paths[0]]["facts"]["result"] == "valid"
    assert "facts" not in result


def test_a_dry_run_asks_and_writes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with openai_server(right) as server:
        values = stability_values(tmp_path, server.base_url)
        path = config_file(tmp_path, values)
        before = sorted(tmp_path.rglob("*"))
        result, _ = run_json(capfd, "stability", path, "--dry-run", "--samples", "2")
        assert server.asked == []
        assert sorted(tmp_path.rglob("*")) == before
        numbers = result["estimates"]["model"]
        assert (result["dry_run"], numbers["requests"], numbers["new_tokens_at_most"]) == (True, 48, 48 * 16)
        assert (numbers["seconds"], numbers["dollars_at_most"]) == (None, None)
        assert cli.run_cli(["stability", path, "--dry-run"]) == 0
        assert "at most 384" in capfd.readouterr().out


def test_after_a_run_only_the_rest_is_asked_and_its_rate_is_known(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with openai_server(right) as server:
        path = config_file(tmp_path, stability_values(tmp_path, server.base_url))
        run_json(capfd, "stability", path, "--quiet")
    result, _ = run_json(capfd, "stability", path, "--dry-run")
    numbers = result["estimates"]["model"]
    assert (numbers["requests"], numbers["requests_recorded"], numbers["seconds"]) == (0, 24, 0)
    result, _ = run_json(capfd, "stability", path, "--dry-run", "--out", str(tmp_path / "another"))
    numbers = result["estimates"]["model"]
    assert (numbers["requests"], numbers["measured_in"]) == (24, str(tmp_path / "run"))
    assert numbers["seconds"] > 0
    assert not (tmp_path / "another").exists()
    result, _ = run_json(capfd, "stability", path, "--dry-run", "--seed", "1", code=2)
    assert "this run was made with seed = 0, not 1" in result["error"]  # the run itself would be refused too


def test_every_command_that_asks_has_a_dry_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fidelity = config_file(tmp_path, fidelity_values(tmp_path, NOBODY))
    judged = ["--judge.name", "j", "--judge.backend", "openai", "--judge.base-url", NOBODY]
    result, _ = run_json(capfd, "fidelity", fidelity, "--dry-run", *judged)
    # 36 answers by one rubric, and four controls of 36: there are fewer answers than the 100 of each control.
    assert (
        result["facts"]["judge"] == f"at most 360 calls afterwards, 288 of them to test the judge; at most {360 * 256} new tokens"
    )
    train = ["--task.n", "8", "--plan.steps", "2", "--plan.questions-per-step", "2", "--plan.group-size", "4"]
    result, _ = run_json(capfd, "train", "--dry-run", "--out", str(tmp_path / "trained"), *train, "--train.max-new-tokens", "10")
    assert (result["estimates"]["model"]["requests"], result["estimates"]["model"]["new_tokens_at_most"]) == (16, 160)
    assert result["estimates"]["training"] == {"steps": 2, "seconds": None}
    result, _ = run_json(capfd, "quickstart", "--fast", "--dry-run", "--out", str(tmp_path / "quick"))
    assert result["facts"]["trainings"] == "2, of 2 steps"
    pool = str(tmp_path / "pool.toml")
    endpoint = ["--model.name", "m", "--model.backend", "openai", "--model.base-url", NOBODY, "--personas.pool", pool]
    result, _ = run_json(capfd, "questions", "--dry-run", *endpoint, "--n", "2", "--out", str(tmp_path / "questions"))
    # For each of three personas one call for situations, which is known, and then one for each of five tasks.
    assert (result["estimates"]["model"]["requests"], result["estimates"]["model"]["requests_at_most"]) == (3, 18)
    assert {path.name for path in tmp_path.iterdir()} == {"fidelity.toml", "questions.txt", "pool.toml"}


def test_an_interview_counts_the_answers_in_later_prompts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    values = fidelity_values(tmp_path, NOBODY, interview={"turns": 3}, sampling={"max_new_tokens": 100})
    scripted, _ = run_json(capfd, "fidelity", config_file(tmp_path, values), "--dry-run")
    assert scripted["estimates"]["model"]["requests"] == 9
    # The second turn repeats one answer, the third two: 3 personas × 3 × 100 tokens, and the texts.
    assert 900 < scripted["estimates"]["model"]["prompt_tokens"] < 900 + 9 * 100
    asker = ["--interviewer.name", "i", "--interviewer.backend", "openai", "--interviewer.base-url", NOBODY]
    asked, _ = run_json(capfd, "fidelity", config_file(tmp_path, values), "--dry-run", *asker)
    assert (asked["estimates"]["interviewer"]["requests"], asked["estimates"]["interviewer"]["requests_at_most"]) == (9, 27)
    assert asked["estimates"]["interviewer"]["new_tokens_at_most"] == 27 * 120
    # Nine prompts have a text, the answers and questions of the greatest length before them; each may be asked three times.
    once, most = (asked["estimates"]["interviewer"][name] for name in ("prompt_tokens", "prompt_tokens_at_most"))
    texts = sum(len(message["content"]) for message in interviewer_messages(())) / CHARACTERS_PER_TOKEN
    assert once == round(9 * texts + 9 * (100 + 120) + 9 * 120)
    assert most == pytest.approx(3 * once, abs=3)


def test_only_one_process_writes_the_report_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two judges of a run may end at the same time."""
    refused = list[bool]()

    def write(settings: ReportConfig) -> None:
        with (settings.runs[0] / SHARED_LOCK_FILE).open("w") as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                refused.append(True)

    monkeypatch.setattr("permix.report.builder.run_report", write)
    (tmp_path / "metrics.json").write_text("{}")
    commands._write_run_report(tmp_path)
    assert refused == [True]
