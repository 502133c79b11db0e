"""Interviews with scripted models: what each turn is asked with, what is kept, what is owed, and what is made of it."""

import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.config import FidelityConfig, StabilityConfig, build_config
from permix.errors import ConfigError, DataError, IncompleteRunError
from permix.evals import open_ended
from permix.evals.drift_report import Drift, read_interviews, read_train_examples
from permix.evals.fidelity_records import AskedQuestion
from permix.evals.interview import EMPTY_ANSWER_TEXT, INTERVIEWER_PROMPT, evaluate_interview, prepare_interview, run_interview
from permix.evals.stability import run_stability
from permix.inference.scripted import ScriptedModel, ScriptedReply
from permix.judges.results import read_judge_inputs
from permix.pipelines.preflight import check_config
from permix.storage.cells import read_run_cells
from permix.storage.files import read_json, write_json
from permix.types import Completion, Failure, Message, Request, canonical_text
from tests.cell_files import read_cells
from tests.killable import Moment, command
from tests.sample_runs import SYSTEM, TEXTS, asked_as, endpoint, fidelity_values, stability_values, toml, write_pool
from tests.servers import Action, error, openai_server

VOICES = {"clerk": "Kindly note, as per form {}.", "sailor": "Aye matey, salt and wind {}!", "troll": "Grr! Me eat goat {}. Grr!"}
SCRIPT = ("Who are you?", "What of bread?", "What of rain?", "What of music?")


def config_of(folder: Path, **fields: Any) -> FidelityConfig:
    """Three personas × four turns of a script of their own."""
    (folder / "script.txt").write_text("\n".join(SCRIPT))
    values = fidelity_values(folder, "http://127.0.0.1:9/v1", interview={"turns": 4, "script": str(folder / "script.txt")})
    return build_config(FidelityConfig, values | fields, source="test")


def run(
    config: FidelityConfig, script: Callable[[Request], ScriptedReply], asks: Callable[[Request], ScriptedReply] | None = None
) -> Drift:
    other = None if asks is None else ScriptedModel(asks, name="interviewer")
    return evaluate_interview(ScriptedModel(script), config, prepare_interview(config), other)


def who(request: Request) -> str:
    return SYSTEM[request.messages[0]["content"]]


def turn(request: Request) -> int:
    return sum(message["role"] == "user" for message in request.messages)


def plainly(request: Request) -> str:
    return f"{who(request)} answers {turn(request)}"


def user(text: str) -> Message:
    return Message(role="user", content=text)


def said(text: str) -> Message:
    return Message(role="assistant", content=text)


def test_each_turn_is_asked_with_the_persona_and_all_that_was_said(tmp_path: Path) -> None:
    config = config_of(tmp_path, interview={"turns": 3, "script": str(tmp_path / "script.txt"), "order": "written"})
    model = ScriptedModel(plainly)
    result = evaluate_interview(model, config, prepare_interview(config))
    assert [(who(one), turn(one)) for one in model.requests] == [
        (name, n) for n in (1, 2, 3) for name in ("clerk", "sailor", "troll")
    ]
    assert model.requests[7].messages == (
        Message(role="system", content="You are a retired sailor."),
        user("Who are you?"), said("sailor answers 1"), user("What of bread?"), said("sailor answers 2"), user("What of rain?"),
    )  # fmt: skip
    assert len({one.seed for one in model.requests}) == 9
    assert (result.n_answered, result.n_asked, result.question_order, result.first_slope_turn) == (9, 9, "written", 1)


def test_thinking_is_left_out_of_what_is_sent_back_and_of_what_a_judge_is_shown(tmp_path: Path) -> None:
    config = config_of(tmp_path, interview={"turns": 3, "script": str(tmp_path / "script.txt"), "order": "written"})
    model = ScriptedModel(lambda request: f"<think>\nWho am I?\n</think>\n\n{plainly(request)}")
    evaluate_interview(model, config, prepare_interview(config))
    assert model.requests[3].messages[1:] == (user("Who are you?"), said("clerk answers 1"), user("What of bread?"))
    items = read_judge_inputs(config.out)
    assert len(items) == 9
    assert all("Who am I" not in repr(item) for item in items)
    assert {item.answer for item in items} >= {"clerk answers 1", "troll answers 2"}


def test_a_template_that_stands_in_the_question_brings_the_persona_in_once(tmp_path: Path) -> None:
    personas = {"pool": str(write_pool(tmp_path / "two.toml", "clerk", "troll")), "template": "in_question"}
    model = ScriptedModel(lambda request: "Yes.")
    config = config_of(tmp_path, personas=personas)
    evaluate_interview(model, config, prepare_interview(config))
    last = model.requests[-1].messages
    assert last[0]["content"] == f"You are {TEXTS['troll']}.\n\nWho are you?"
    assert [message["role"] for message in last] == ["user", "assistant"] * 3 + ["user"]
    assert all(message["content"] in SCRIPT for message in last[2::2])


def test_what_was_asked_stands_in_the_run(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    run(config, plainly)
    asked = read_json(config.out / "grid.json")
    assert asked["persona_texts"] == {"clerk": "a careful clerk", "sailor": "a retired sailor", "troll": "a troll under a bridge"}
    words = {one["id"]: one["text"] for one in asked["questions_asked"]}
    assert all(one["task"] is None and one["persona_id"] is None for one in asked["questions_asked"])
    for persona, turns in asked["turns_asked"].items():
        assert words[turns[0]] == "Who are you?"
        assert sorted(words[one] for one in turns) == sorted(SCRIPT)
        assert [one[:7] for one in turns] == ["turn-01", "turn-02", "turn-03", "turn-04"]
        cells = [one for one in read_cells(config.out / "records.jsonl").values() if one.persona_id == persona]
        assert [one.question_id for one in cells] == turns
    assert set(asked["question_ids"]) == set(words)


def test_what_a_judge_is_shown_is_what_was_asked_up_to_the_answer(tmp_path: Path) -> None:
    config = config_of(tmp_path, interview={"turns": 3, "script": str(tmp_path / "script.txt"), "order": "written"})
    run(config, plainly)
    items = read_judge_inputs(config.out)
    assert len(items) == 9
    last = next(one for one in items if one.answer == "troll answers 3")
    assert last.question.splitlines() == [
        "Interviewer: Who are you?", "Interviewer: What of bread?", "Interviewer: What of rain?",
    ]  # fmt: skip


@pytest.mark.parametrize("after", [1, 4, 8])
def test_a_run_that_was_stopped_goes_on_with_the_same_words(after: int, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    run(config_of(whole), plainly)
    config, asked = config_of(cut), list[Request]()

    def stops(request: Request) -> str:
        if len(asked) == after:
            raise KeyboardInterrupt
        asked.append(request)
        return plainly(request)

    with pytest.raises(KeyboardInterrupt):
        run(config, stops)
    rest = ScriptedModel(plainly)
    evaluate_interview(rest, config, prepare_interview(config))
    assert len(asked) == after
    assert len(rest.requests) == 12 - after
    one, other = (read_cells(folder / "run" / "records.jsonl") for folder in (whole, cut))
    assert dict(one) == dict(other)
    assert (whole / "run" / "metrics.json").read_bytes() == (cut / "run" / "metrics.json").read_bytes()


def drift_of(run: Path) -> Drift:
    """What metrics.json says of drift."""
    values = read_json(run / "metrics.json")
    del values["unjudged"]
    return Drift.model_validate(values)


def test_nobody_is_asked_on_a_gap(tmp_path: Path) -> None:
    def sailor_chokes(request: Request) -> ScriptedReply:
        chokes = who(request) == "sailor" and turn(request) == 2
        return Failure(type="BadRequest", message="too long") if chokes else plainly(request)

    config, model = config_of(tmp_path), ScriptedModel(sailor_chokes)
    with pytest.raises(
        IncompleteRunError, match=r"3 of 12 turns are missing; running .* does not help.*: 1 × BadRequest: too long"
    ):
        evaluate_interview(model, config, prepare_interview(config))
    assert [turn(one) for one in model.requests if who(one) == "sailor"] == [1, 2]
    metrics = drift_of(config.out)
    assert (metrics.n_answered, metrics.n_asked) == (9, 12)
    words = metrics.find_series("words")
    assert words is not None
    assert [one.n for one in words.by_turn] == [3, 2, 2, 2]
    again = ScriptedModel(plainly)
    evaluate_interview(again, config, prepare_interview(config))
    assert [(who(one), turn(one)) for one in again.requests] == [("sailor", 2), ("sailor", 3), ("sailor", 4)]


def test_when_nothing_is_answered_turns_are_owed(tmp_path: Path) -> None:
    with pytest.raises(IncompleteRunError, match="12 of 12 turns are missing"):
        run(config_of(tmp_path), lambda request: Failure(type="Down", message="no"))


def test_a_run_is_gone_on_with_only_as_it_was_begun(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    run(config, plainly)
    (tmp_path / "script.txt").write_text("\n".join([*SCRIPT[:3], "What of something else?"]))
    with pytest.raises(ConfigError, match="this run was made with another interviewer, or other questions of its script; give"):
        run(config, plainly)
    fewer = config.model_copy(update={"interview": config.interview.model_copy(update={"turns": 3})})
    with pytest.raises(ConfigError, match=r"this run was made with interview.turns = 4, not 3; give"):
        run(fewer, plainly)


def test_drift_is_found_where_it_is(tmp_path: Path) -> None:
    """From turn 3 on everybody says what they are, in the same words."""
    config = config_of(tmp_path)
    broken = "As an AI language model, I have no opinions."
    result = run(config, lambda request: plainly(request) if turn(request) < 3 else broken)
    breaks, repetition = result.find_series("breaks"), result.find_series("repetition")
    assert breaks is not None
    assert repetition is not None
    assert [one.value for one in breaks.by_turn] == [0, 0, 1, 1]
    assert (result.question_order, result.first_slope_turn) == ("balanced", 2)
    assert breaks.slope.value == pytest.approx(0.5)  # turns 2, 3, 4: 0, 1, 1
    assert breaks.late_minus_early.value == pytest.approx(1.0)  # turn 4 − turn 2
    assert [one.value for one in repetition.by_turn] == [None, None, 0, 1]  # three words at first: no run of four
    assert result.find_series("identifiability") is None
    assert result.n_truncated == 0


def test_a_reference_teaches_who_is_who_and_tells_when_they_are_gone(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    plain = build_config(FidelityConfig, fidelity_values(base, "http://127.0.0.1:9/v1", label="fresh"), source="test")
    voice = ScriptedModel(lambda request: VOICES[who(request)].format(turn(request)))
    open_ended.evaluate_open_ended(
        voice, plain, open_ended.select_open_ended_personas(plain), open_ended.load_open_questions(plain)
    )

    config = config_of(tmp_path, reference=str(plain.out))
    result = run(config, lambda request: VOICES[who(request) if turn(request) < 4 else "clerk"].format(turn(request)))
    told = result.find_series("identifiability")
    assert told is not None
    assert [one.value for one in told.by_turn] == pytest.approx([1, 1, 1, 1 / 3])
    assert result.chance == pytest.approx(1 / 3)
    assert result.reference == "fresh"
    assert result.permuted is not None
    assert result.permuted.value is not None
    assert told.overall.value is not None
    assert result.permuted.value < told.overall.value
    with pytest.raises(DataError, match=r"reference = .*: has 0 answers of persona 'clerk' to questions that the"):
        prepare_interview(config_of(tmp_path, reference=str(config.out)))


@pytest.mark.parametrize("has_texts", [True, False])
@pytest.mark.parametrize("template", ["you_are", "in_question"])
def test_a_question_of_both_runs_teaches_nothing_wherever_the_persona_stands(
    template: str, has_texts: bool, tmp_path: Path
) -> None:
    values = fidelity_values(tmp_path, "http://127.0.0.1:9/v1")
    plain = build_config(FidelityConfig, values | {"personas": values["personas"] | {"template": template}}, source="test")
    questions = open_ended.load_open_questions(plain)
    open_ended.evaluate_open_ended(
        ScriptedModel(lambda request: "Yes."), plain, open_ended.select_open_ended_personas(plain), questions
    )
    if not has_texts:
        grid = read_json(plain.out / "grid.json")
        write_json(plain.out / "grid.json", {key: grid[key] for key in grid if key != "questions_asked"})

    def learnt(id: str, text: str) -> Counter[str]:
        return Counter(one.question for one in read_train_examples(plain.out, list(VOICES), [AskedQuestion(id=id, text=text)]))

    same = learnt(f"turn-02-{questions[0].id}", questions[0].text)
    assert list(same.values()) == [3] * 11  # a name of a question is the same under all three personas
    assert not {questions[0].id, canonical_text(questions[0].text)} & set(same)
    assert len(learnt("turn-02-other", "What else?")) == 12
    if has_texts:  # the text alone says whether a question is the same
        assert learnt("turn-02-other", f" {questions[0].text}") == same
        assert len(learnt(questions[0].id, "What else?")) == 12


def test_a_stability_run_as_reference_says_by_its_cells_without_persona_what_it_asked(tmp_path: Path) -> None:
    config = build_config(
        StabilityConfig, stability_values(tmp_path, "http://127.0.0.1:9/v1", contexts=["system", "user"]), source="test"
    )
    run_stability(config, ScriptedModel(lambda request: "12"))
    cells = read_run_cells(config.out)
    baseline = next(cell for cell in cells.values() if cell.persona_id is None)
    asked = [AskedQuestion(id="turn-01-other", text=baseline.prompt)]
    learnt = Counter(one.question for one in read_train_examples(config.out, list(VOICES), asked))
    assert learnt == {cell.question_id: 6 for cell in cells.values() if cell.question_id != baseline.question_id}


def asks(request: Request) -> str:
    """The interviewer's question: how many answers it has heard."""
    return f"What is number {len(request.messages) // 2}?"


def model_asks(folder: Path) -> FidelityConfig:
    values = fidelity_values(
        folder, "http://127.0.0.1:9/v1", interview={"turns": 3}, interviewer=endpoint("http://127.0.0.1:9/v1")
    )
    return build_config(FidelityConfig, values, source="test")


def test_a_model_that_asks_sees_its_own_side_and_is_told_neither_who_nor_why(tmp_path: Path) -> None:
    config, other = model_asks(tmp_path), ScriptedModel(asks, name="interviewer")
    model = ScriptedModel(lambda request: "" if turn(request) == 1 else plainly(request))
    result = evaluate_interview(model, config, prepare_interview(config), other)
    assert len(other.requests) == len(model.requests) == 9
    assert other.requests[8].messages == (
        Message(role="system", content=INTERVIEWER_PROMPT), user("Hello."), said("What is number 1?"), user(EMPTY_ANSWER_TEXT),
        said("What is number 2?"), user("troll answers 2"),
    )  # fmt: skip
    assert not any(word in INTERVIEWER_PROMPT.lower() for word in ("test", "persona", "role", "character", "model", *VOICES))
    assert model.requests[8].messages[1:] == (
        user("What is number 1?"), said(""), user("What is number 2?"), said("troll answers 2"), user("What is number 3?"),
    )  # fmt: skip
    assert result.question_order == "model"
    assert read_interviews(config.out).questions_P_I[0] == ("What is number 1?", "What is number 2?", "What is number 3?")
    assert {one.question_id for one in read_judge_inputs(config.out)} == {
        "turn-01",
        "turn-02",
        "turn-03",
    }  # no question is judged
    asked = read_json(config.out / "grid.json")["questions_asked"]
    assert {"id": "turn-02", "text": "What is number 2?", "task": None, "persona_id": "sailor"} in asked

    nobody = ScriptedModel(lambda request: pytest.fail("asked again"), name="interviewer")
    assert (
        evaluate_interview(ScriptedModel(lambda request: pytest.fail("asked again")), config, prepare_interview(config), nobody)
        == result
    )


UNUSABLE = ["  \n", "why " * 200, Completion(text="And then", prompt_tokens=1, completion_tokens=1, finish="length")]


@pytest.mark.parametrize("unusable", UNUSABLE, ids=["nothing", "a speech", "cut off"])
def test_what_is_no_question_is_asked_for_again(unusable: ScriptedReply, tmp_path: Path) -> None:
    config, seeds = model_asks(tmp_path), dict[int, int]()

    def stumbles(request: Request) -> ScriptedReply:
        seeds[request.seed] = len(request.messages)
        return asks(request) if list(seeds.values()).count(len(request.messages)) > 3 else unusable  # three personas

    assert run(config, plainly, stumbles).n_answered == 9
    assert len(seeds) == 18  # every question twice, each with a seed of its own


def test_an_interviewer_that_never_asks_leaves_the_turns_owed_and_is_asked_anew_next_time(tmp_path: Path) -> None:
    config, other = model_asks(tmp_path), ScriptedModel(lambda request: "", name="interviewer")
    with pytest.raises(IncompleteRunError, match="9 of 9 turns are missing"):
        evaluate_interview(ScriptedModel(plainly), config, prepare_interview(config), other)
    assert len(other.requests) == 9  # three personas, three times
    assert run(config, plainly, asks).n_answered == 9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"interview": {"turns": 2}}, "turns = 2: too few to measure drift; give 3 or more"),
        ({"interview": {"order": "written"}}, "interview.order: has no effect without interview.turns"),
        ({"interviewer": {"name": "bundled"}}, 'interviewer.name = "bundled": has no effect without interview.turns'),
        (
            {"interview": {"turns": 3, "order": "written"}, "interviewer": {"name": "bundled"}},
            'interviewer.name = "bundled": the model asks its own questions; leave interview.order out',
        ),
        ({"interview": {"turns": 3}, "n_questions": 12}, "n_questions = 12: has no effect with interview.turns"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(FidelityConfig, fidelity_values(tmp_path, "http://127.0.0.1:9/v1", **fields), source="test")


def test_one_persona_has_no_interval(tmp_path: Path) -> None:
    config = config_of(tmp_path, personas={"pool": str(write_pool(tmp_path / "alone.toml", "clerk"))})
    with pytest.raises(ConfigError, match="only 'clerk' is selected"):
        prepare_interview(config)


def in_words(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str | Action:
    """What the model says over HTTP; hostile on the second turn."""
    turns = sum(message["role"] == "user" for message in body["messages"])
    return "<script>alert(1)</script> | \x1b[31m" if turns == 2 else f"{asked_as(body)} says {turns}"


def config_file(folder: Path, base_url: str) -> str:
    (folder / "script.txt").write_text("\n".join(SCRIPT))
    interview = {"turns": 4, "script": str(folder / "script.txt")}
    path = folder / "interview.toml"
    path.write_text(toml(fidelity_values(folder, base_url, interview=interview, label="one|two")))
    return str(path)


def test_the_command_line_leaves_a_report_to_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with openai_server(in_words) as server:
        assert cli.run_cli(["fidelity", config_file(tmp_path, server.base_url)]) == 0
    assert len(server.asked) == 12
    assert "change per turn" in capfd.readouterr().out
    report = (tmp_path / "run" / "report" / "report.md").read_text()
    assert "## Drift by interview turn" in report
    assert "| one&#124;two | words<br>" in report
    assert "clerk says 4" in report
    assert "<script>" not in report
    assert "\x1b" not in report
    assert (tmp_path / "run" / "report" / "drift.png").read_bytes().startswith(b"\x89PNG")
    assert len(read_json(tmp_path / "run" / "report" / "table.json")["drift"]["one|two"]["series"]) == 4
    facts = check_config(tmp_path / "interview.toml")
    assert (facts["personas"], facts["turns"], facts["answers"]) == ("3", "4, asked by a script", "12")
    assert (facts["requests"], facts["new tokens"]) == ("0; 12 more are recorded already", "at most 0")


def test_owed_turns_exit_with_3_and_are_filled_by_the_same_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with openai_server(lambda body, nth, headers: error(400) if nth == 4 else in_words(body, nth, headers)) as server:
        file = config_file(tmp_path, server.base_url)
        assert cli.run_cli(["fidelity", file]) == 3
        assert "3 of 12 turns are missing" in capfd.readouterr().err
        assert len(server.asked) == 10
        assert cli.run_cli(["fidelity", file]) == 0
        assert len(server.asked) == 13


def test_a_killed_run_asks_nothing_twice(tmp_path: Path) -> None:
    with openai_server(in_words) as server:
        file = config_file(tmp_path, server.base_url)
        assert command("fidelity", file, dies=Moment("permix.storage.run_dir:RunDir.append", call=5)) == -9
        kept = len(read_cells(tmp_path / "run" / "records.jsonl"))
        before = len(server.asked)
        assert command("fidelity", file) == 0
    assert kept == 5
    assert len(server.asked) - before == 12 - kept


def test_an_interview_that_may_outgrow_the_model_is_refused_before_its_weights_are_read(tmp_path: Path, tiny_model: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "tiny", ignore=shutil.ignore_patterns("*.safetensors"))
    config = config_of(tmp_path, model={"name": str(folder)}, sampling={"max_new_tokens": 100_000})
    with pytest.raises(ConfigError, match=r"interview\.turns = 4: with persona 'clerk' and .* up to 400\d\d\d tokens;"):
        run_interview(config)
