"""`permix fidelity` end to end over HTTP: voices that can be told, one voice that cannot, and what stays owed."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.config import FidelityConfig, build_config
from permix.errors import ConfigError, DataError, IncompleteRunError
from permix.evals.open_ended import load_open_questions, measure_identifiability, run_open_ended, select_open_ended_personas
from permix.evals.text_metrics import measure_text_metrics
from permix.storage.files import read_json
from tests.cell_files import read_cells
from tests.sample_runs import OPEN_QUESTIONS, TEXTS, asked_as, asked_what, fidelity_config, fidelity_values, toml, write_pool
from tests.servers import Action, error, openai_server

VOICES = {
    "clerk": "Kindly note that {} is in perfect order, as per the enclosed form.",
    "sailor": "Aye, {} takes me back to the salt and the wind, matey.",
    "troll": "Grr! {}? Me no like! Me eat goat, me go sleep.",
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def topic(body: Mapping[str, Any]) -> str:
    return asked_what(body).rstrip("?").rsplit(" ", 1)[1]


def in_character(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str:
    return VOICES[asked_as(body) or "clerk"].format(topic(body))


def flat(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str:
    """Everyone sounds like the clerk."""
    return VOICES["clerk"].format(topic(body))


def test_three_voices_are_told_every_time(tmp_path: Path) -> None:
    with openai_server(in_character) as server:
        config = fidelity_config(tmp_path, server.base_url)
        result = run_open_ended(config)
        assert run_open_ended(config) == result
    assert len(server.asked) == 36  # and none in the second run
    assert {asked_as(one.body) for one in server.asked} == {"clerk", "sailor", "troll"}  # nobody is asked without persona
    assert result.accuracy.value == 1.0
    assert result.chance == pytest.approx(1 / 3)
    assert result.confusion == ((12, 0, 0), (0, 12, 0), (0, 0, 12))
    assert (result.n_answered, result.n_asked, result.n_questions) == (36, 36, 12)
    assert result.persona_ids == ("clerk", "sailor", "troll")
    assert result.question_only.value is not None
    assert result.question_only.value <= 0.5  # the questions alone do not tell who is asked
    assert result.reference == "own answers"
    metrics = read_json(config.out / "metrics.json")
    assert metrics.pop("unjudged") == measure_text_metrics(config.out).model_dump(mode="json")
    assert "recognisability" in metrics  # of test_recognised_runs.py
    assert {key: metrics[key] for key in metrics if "recognisability" not in key} == result.model_dump(mode="json")
    assert measure_identifiability(config.out, None) == result


def test_who_stands_in_the_question_is_told_whatever_order_answers_came_in(tmp_path: Path) -> None:
    def by_words(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str:
        who = next(name for name in VOICES if TEXTS[name].rstrip(".") in asked_what(body))
        return VOICES[who].format(topic(body))

    values = fidelity_values(tmp_path, "http://unused")
    personas = values["personas"] | {"template": "in_question"}
    with openai_server(by_words) as server:
        runs = [
            fidelity_config(tmp_path, server.base_url, personas=personas, out=str(tmp_path / name)) for name in ("one", "two")
        ]
        found = [run_open_ended(one) for one in runs]
    assert found[0].accuracy.value == 1.0
    records = runs[1].out / "records.jsonl"
    records.write_text("".join(line + "\n" for line in reversed(records.read_text().splitlines())))
    turned = measure_identifiability(runs[1].out, None)
    assert turned.accuracy == found[0].accuracy
    assert turned.right_by_question == found[0].right_by_question


def test_one_voice_for_all_is_told_by_luck(tmp_path: Path) -> None:
    with openai_server(flat) as server:
        result = run_open_ended(fidelity_config(tmp_path, server.base_url))
    assert result.accuracy.value is not None
    assert result.accuracy.value <= 1 / 3  # every answer to a question is the same, so one of three at best


def test_thinking_is_no_part_of_an_answer(tmp_path: Path) -> None:
    """Every persona thinks in its own voice, and out of character, but gives the same answer: nothing tells them apart."""

    def thinks(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str:
        return f"<think>As an AI language model, I say: {in_character(body, nth, headers)}</think>\n\n{flat(body, nth, headers)}"

    with openai_server(thinks) as server:
        thinking = fidelity_config(tmp_path, server.base_url, out=str(tmp_path / "thinking"))
        found = run_open_ended(thinking)
    with openai_server(flat) as server:
        plain = fidelity_config(tmp_path, server.base_url, out=str(tmp_path / "plain"))
        assert found == run_open_ended(plain)
    assert found.accuracy.value == pytest.approx(found.chance, abs=0.2)
    texts = measure_text_metrics(thinking.out)
    assert texts == measure_text_metrics(plain.out)
    assert texts.break_rate.value == 0
    cells = read_cells(thinking.out / "records.jsonl").values()
    assert all("AI language model" in one.completion.thinking for one in cells if one.completion)


def test_the_reference_teaches_what_the_characters_sound_like(tmp_path: Path) -> None:
    base, flattened = tmp_path / "base", tmp_path / "flattened"
    for folder in (base, flattened):
        folder.mkdir()
    with openai_server(in_character) as server:
        run_open_ended(fidelity_config(base, server.base_url, label="base"))
        server.script = flat
        result = run_open_ended(fidelity_config(flattened, server.base_url, reference=str(base / "run")))
    # Taught by the base model's answers, the classifier takes everyone for the clerk.
    assert result.confusion == ((12, 0, 0), (12, 0, 0), (12, 0, 0))
    assert result.accuracy.value == pytest.approx(1 / 3)
    assert [one.value for one in result.per_persona] == [1.0, 0.0, 0.0]
    assert result.reference == "answers of base"


@pytest.mark.parametrize("missing", ["no run", "a question", "a persona"])
def test_a_reference_that_cannot_teach_is_refused_before_anything_is_asked(missing: str, tmp_path: Path) -> None:
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    for folder in (base, tuned):
        folder.mkdir()
    with openai_server(in_character) as server:
        values = fidelity_values(base, server.base_url)
        if missing == "a question":
            values["n_questions"] = 11
        if missing == "a persona":
            write_pool(base / "pool.toml", "clerk", "sailor")
        if missing != "no run":
            run_open_ended(build_config(FidelityConfig, values, source="test"))
        before = len(server.asked)
        with pytest.raises(DataError, match="no such file" if missing == "no run" else r"3 of 36|12 of 36"):
            run_open_ended(fidelity_config(tuned, server.base_url, reference=str(base / "run")))
        assert len(server.asked) == before
    assert not (tuned / "run").exists()


def test_missing_answers_are_owed_and_a_second_run_asks_only_them(tmp_path: Path) -> None:
    def flaky(body: dict[str, Any], nth: int, headers: Mapping[str, str]) -> str | Action:
        return (
            error(400, "no") if asked_as(body) == "troll" and topic(body) in OPEN_QUESTIONS[:3] else in_character(body, nth, {})
        )

    with openai_server(flaky) as server:
        config = fidelity_config(tmp_path, server.base_url)
        with pytest.raises(IncompleteRunError, match="3 of 36 answers are missing; run the same command again"):
            run_open_ended(config)
        assert not (config.out / "metrics.json").exists()
        assert sum(cell.completion is not None for cell in read_cells(config.out / "records.jsonl").values()) == 33
        server.script = in_character
        assert run_open_ended(config).n_answered == 36
    assert len(server.asked) == 36 + 3


def test_a_smaller_run_measures_what_it_names(tmp_path: Path) -> None:
    with openai_server(in_character) as server:
        assert run_open_ended(fidelity_config(tmp_path, server.base_url)).n_questions == 12
        assert run_open_ended(fidelity_config(tmp_path, server.base_url, n_questions=10)).n_questions == 10
        assert len(server.asked) == 36


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"n_questions": 9}, r"n_questions = 9: give 10 \(one per fold, and 10 answers per persona\) to 12"),
        ({"folds": 11, "n_questions": 10}, "n_questions = 10: give 11"),
        ({"n_questions": 13}, "n_questions = 13: give 10 .* to 12, the number in "),
    ],
)
def test_too_few_or_too_many_questions_are_refused(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    config = fidelity_config(tmp_path, "http://127.0.0.1:1/v1", **fields)
    with pytest.raises(ConfigError, match=words):
        load_open_questions(config)
    with pytest.raises(ConfigError, match=words):
        run_open_ended(config)


@pytest.mark.parametrize(("split", "count"), [("train", 48), ("dev", 20), ("heldout", 52)])
def test_the_built_in_questions_are_asked_by_side_and_a_file_without_sides_whole(split: str, count: int, tmp_path: Path) -> None:
    builtin = build_config(FidelityConfig, {"questions_split": split}, source="test")
    assert len(load_open_questions(builtin)) == count
    assert len(load_open_questions(fidelity_config(tmp_path, "http://127.0.0.1:1/v1", questions_split=split))) == 12


def test_a_single_persona_is_refused(tmp_path: Path) -> None:
    values = fidelity_values(tmp_path, "http://127.0.0.1:1/v1")
    write_pool(tmp_path / "pool.toml", "troll")
    with pytest.raises(ConfigError, match="only 'troll' is selected"):
        select_open_ended_personas(build_config(FidelityConfig, values, source="test"))


def test_the_command_reports_and_exits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def flaky(body: dict[str, Any], nth: int, headers: Mapping[str, str]) -> str | Action:
        return error(400, "no") if nth == 7 else in_character(body, nth, {})

    with openai_server(flaky) as server:
        file = tmp_path / "fidelity.toml"
        file.write_text(toml(fidelity_values(tmp_path, server.base_url, label="base")))
        assert cli.run_cli(["fidelity", str(file)]) == 3
        assert "1 of 36 answers are missing" in capsys.readouterr().err
        assert not (tmp_path / "run" / "report").exists()  # identifiability of 35 answers is another measure
        assert cli.run_cli(["fidelity", str(file)]) == 0
    report = (tmp_path / "run" / "report" / "report.md").read_text()
    assert "| base |" in report
    assert "Identifiability and controls" in report


@pytest.mark.slow
def test_measuring_needs_no_torch(tmp_path: Path) -> None:
    with openai_server(in_character) as server:
        config = fidelity_config(tmp_path, server.base_url)
        run_open_ended(config)
    script = (
        "import sys; from pathlib import Path; from permix.evals.open_ended import measure_identifiability\n"
        "measure_identifiability(Path(sys.argv[1]), None)\n"
        "assert 'torch' not in sys.modules and 'openai' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, str(config.out)], check=True, timeout=60)
