"""Contexts: the messages of each, accuracies by context worked out by hand, recorded turns, resume, and what is refused."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import permix
from permix.config import ExportConfig, FidelityConfig, PersonasConfig, ReportConfig, StabilityConfig, build_config
from permix.dashboard.progress import CellTally
from permix.errors import ConfigError, DataError, OtherShardsPendingError
from permix.evals.grid import GridResults, PromptFormat, build_grid, cell_row, read_expected_cells, read_grid_results
from permix.evals.interview import run_interview
from permix.evals.open_ended import run_open_ended
from permix.evals.shards import assign_shards
from permix.evals.stability import measure_contexts, measure_stability, preflight_stability, run_stability
from permix.interop.stage import export_run
from permix.metrics.linear_models import paired_difference, split_by_context, summarize_contexts
from permix.personas.recorded_turns import RecordedTurns, read_recorded_turns
from permix.prompts import build_messages
from permix.report.builder import build_report, run_report
from permix.report.comparisons import compare_runs, comparison_markdown, terminal_comparison_tables
from permix.report.html.transcripts import build_sheet, write_transcripts
from permix.report.runs import Run, collect_models
from permix.storage.cells import read_run_cells
from permix.storage.files import read_json
from permix.storage.run_dir import RunReader
from permix.types import Cell, CellKey, Persona, Question, RecordedTurn, n_context_turns
from tests.sample_runs import answered, asked_what, fidelity_values, persona, solve, stability_values
from tests.servers import OpenAIServer, openai_server

CONTEXTS = ("system", "user", "in-character", "turns-2")
CLERK = persona("clerk")
TURNS = (RecordedTurn("How was your day?", "Orderly."), RecordedTurn("What do you eat?", "Toast."), RecordedTurn("Why?", "So."))


def recorded(**turns: tuple[RecordedTurn, ...]) -> RecordedTurns:
    return RecordedTurns(Path("turns"), turns, {}, is_conversation=True)


# Messages


@pytest.mark.parametrize(
    ("context", "n_turns", "expected"),
    [
        ("", 0, [("system", "You are a careful clerk."), ("user", "What is 1 + 1?")]),
        ("system", 0, [("system", "You are a careful clerk."), ("user", "What is 1 + 1?")]),
        ("user", 0, [("user", "You are a careful clerk.\n\nWhat is 1 + 1?")]),
        (
            "in-character", 0,
            [("system", "You are a careful clerk."), ("user", "What is 1 + 1?\n\nStay in character while you answer.")],
        ),
        (
            "turns-2", 2,
            [
                ("system", "You are a careful clerk."), ("user", "How was your day?"), ("assistant", "Orderly."),
                ("user", "What do you eat?"), ("assistant", "Toast."), ("user", "What is 1 + 1?"),
            ],
        ),
    ],
)  # fmt: skip
def test_the_messages_of_each_context(context: str, n_turns: int, expected: list[tuple[str, str]]) -> None:
    built = build_messages(CLERK, "What is 1 + 1?", context=context, turns=TURNS[:n_turns])
    assert [(one["role"], one["content"]) for one in built] == expected


def test_the_context_user_sends_a_whole_prompt_and_braces_as_they_are() -> None:
    whole = Persona(id="w", text="You are {question}. Say {persona}.", whole_prompt=True)
    (message,) = build_messages(whole, "What is {persona}?", context="user")
    assert message == {"role": "user", "content": "You are {question}. Say {persona}.\n\nWhat is {persona}?"}


def test_a_context_changes_nothing_without_a_persona() -> None:
    for context in CONTEXTS:
        assert build_messages(None, "1?", context=context, turns=TURNS) == ({"role": "user", "content": "1?"},)


@pytest.mark.parametrize(("context", "n"), [("system", 0), ("user", 0), ("in-character", 0), ("turns-1", 1), ("turns-100", 100)])
def test_names_of_contexts(context: str, n: int) -> None:
    assert n_context_turns(context) == n


@pytest.mark.parametrize("context", ["", "System", "turns", "turns-0", "turns-01", "turns-101", "turns-2 ", "turns--1"])
def test_other_names_are_refused(context: str) -> None:
    with pytest.raises(ValueError, match="give system, user, in-character, or turns-K"):
        n_context_turns(context)


# The grid

QUESTION = Question(id="q", task="t", text="What is 1 + 1?", gold="2")


def format_of(*contexts: str, **fields: Any) -> PromptFormat:
    turns = recorded(clerk=TURNS)
    return PromptFormat(lambda one: one.text, "you_are", empty_system_prompt=False, contexts=contexts, turns=turns, **fields)


def test_every_context_is_a_cell_of_its_own_and_none_is_asked_once() -> None:
    cells = build_grid([None, CLERK], [QUESTION], format_of("system", "turns-1"), samples=2, seed=0)
    assert [(cell.persona_id, cell.context, cell.sample) for cell in cells] == [
        (None, "", 0), (None, "", 1), ("clerk", "system", 0), ("clerk", "system", 1), ("clerk", "turns-1", 0),
        ("clerk", "turns-1", 1),
    ]  # fmt: skip
    assert len({cell.key for cell in cells}) == len({cell.seed for cell in cells}) == 6
    assert len(cells[4].messages) == 4
    assert str(cells[4].key) == "'clerk' × 'q', sample 0 in context 'turns-1'"


def test_contexts_and_templates_are_crossed() -> None:
    wording = format_of("system", "user", crossed_templates=("you_are", "adopt"))
    cells = build_grid([CLERK], [QUESTION], wording, samples=1, seed=0)
    assert [(cell.template, cell.context, cell.messages[0]["role"]) for cell in cells] == [
        ("you_are", "system", "system"), ("you_are", "user", "user"), ("adopt", "system", "system"), ("adopt", "user", "user"),
    ]  # fmt: skip
    assert cells[3].messages[0]["content"].startswith("Adopt the identity of a careful clerk.")


def test_a_run_without_contexts_has_the_records_and_seeds_it_always_had() -> None:
    (cell,) = build_grid([CLERK], [QUESTION], format_of(), samples=1, seed=0)
    assert cell.seed == 5145874237983884085
    assert "context" not in cell.model_dump_json()
    assert Cell.model_validate_json(cell.model_dump_json()).key == CellKey("clerk", "q", 0)
    keys = [CellKey(name, f"q{i}", 0, template) for name in ("a", "b", None) for template in ("", "adopt") for i in range(4)]
    parts = assign_shards(keys, 5)
    assert "".join(str(parts[key]) for key in keys) == "332255551111221244443433"  # as before there were contexts
    assert cell_row(cell)["context"] == ""


def test_shards_keep_the_cells_of_a_context_together() -> None:
    keys = [CellKey("a", f"q{i}", 0, "", context) for context in ("system", "user") for i in range(5)]
    parts = assign_shards(keys, 2)
    assert {len({parts[key] for key in keys if key.context == one}) for one in ("system", "user")} == {1}


# Measures


def scored(persona_id: str | None, question: str, correct: bool | None, context: str = "") -> Cell:
    return answered(question, correct=correct, persona_id=persona_id, context=context)


def test_accuracies_by_context_by_hand() -> None:
    # Personas a, b; questions 0 to 3; contexts x, y. In x all is right. In y a is right in 0 and 1, b in 0 alone; b's question 3
    # has no score.
    right_in_y = {("a", 0), ("a", 1), ("b", 0)}
    cells = [scored(None, f"q{q}", q < 2) for q in range(4)]
    for who in ("a", "b"):
        for q in range(4):
            cells.append(scored(who, f"q{q}", True, "x"))
            cells.append(scored(who, f"q{q}", None if (who, q) == ("b", 3) else (who, q) in right_in_y, "y"))
    by_key = {cell.key: cell for cell in cells}
    results = GridResults(by_key, ("a", "b"), ("q0", "q1", "q2", "q3"), 1, contexts=("x", "y"))
    assert len(results.grid_summaries) == 4 + 16
    correct = results.scores(("a", "b"), results.question_ids)
    assert correct.shape == (2, 4, 2)
    assert correct[0, 2].tolist() == [1, 0]
    split = split_by_context(correct, 1, results.contexts)
    x, y = summarize_contexts(split, results.scores([None], results.question_ids)[0], results.contexts, resamples=100)
    assert (x.id, x.measures["baseline"].value, x.measures["mean"].value) == ("x", 0.5, 1.0)
    assert x.measures["mean_minus_baseline"].value == 0.5
    assert (x.mean_minus_first.value, x.n_scored, x.n_asked) == (None, 8, 8)
    # a: 2/4, b: 1/3; their mean is 5/12. Differences to x: a -1/2, b -2/3 (questions 0 to 2): -7/12.
    assert y.measures["mean"].value == pytest.approx(5 / 12)
    assert y.mean_minus_first.value == pytest.approx(-7 / 12)
    assert (y.mean_minus_first.n, y.n_scored, y.n_asked) == (4, 7, 8)
    assert y.mean_minus_first.low is not None
    assert y.mean_minus_first.low <= -7 / 12
    assert y.measures["pss"].low is not None


def test_samples_stand_template_by_template_and_context_by_context() -> None:
    scores = np.arange(8.0).reshape(1, 1, 8)  # 2 templates, 2 contexts, 2 samples
    assert split_by_context(scores, 2, ("x", "y"))[:, 0, 0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_a_difference_counts_only_what_has_both_scores() -> None:
    first, other = np.array([[1, 1, np.nan], [np.nan] * 3]), np.array([[0, np.nan, 1], [1, 1, 1]])
    found = paired_difference(first, other, seed=0, resamples=100)
    assert (found.value, found.n) == (-1.0, 1)
    assert paired_difference(first, np.full((2, 3), np.nan), seed=0, resamples=100).value is None


# Recorded turns


def reply(body: Mapping[str, Any], nth: int = 0, headers: Mapping[str, str] | None = None) -> str:
    """Sums are right but for the troll in the user's message, and for sailor and troll after two turns. Else: who speaks."""
    asked, messages = asked_what(body), body["messages"]
    who = messages[0]["content"].partition(".")[0].removeprefix("You are ")
    if not any(char.isdigit() for char in asked):
        return f"As {who}: {asked}"
    wrong = ("troll" in who and asked.startswith("You are")) or (len(messages) == 6 and "clerk" not in who)
    return f"It is {solve(asked) + wrong}."


def fidelity(folder: Path, url: str, **fields: Any) -> FidelityConfig:
    return build_config(FidelityConfig, fidelity_values(folder, url, out=str(folder / "turns"), **fields), source="test")


def record_turns(folder: Path, server: OpenAIServer) -> Path:
    config = fidelity(folder, server.base_url)
    run_open_ended(config)
    return config.out


def in_contexts(folder: Path, url: str, *contexts: str, **fields: Any) -> StabilityConfig:
    values = stability_values(folder, url, contexts=list(contexts), **fields)
    return build_config(StabilityConfig, values, source="test")


def test_turns_depend_on_content_and_seed_alone() -> None:
    turns = tuple(RecordedTurn(f"question {i}?", f"answer {i}") for i in range(12))
    open_run = RecordedTurns(Path("a"), {"clerk": turns, "sailor": turns}, {}, is_conversation=False)
    other_order = open_run._replace(turns_by_persona={"sailor": turns[::-1], "clerk": turns[::-1]})
    chosen = open_run.choose("clerk", 4, seed=0)
    assert other_order.choose("clerk", 4, seed=0) == chosen
    assert [one.question for one in open_run.choose("sailor", 4, seed=0)] == [one.question for one in chosen]
    assert open_run.choose("clerk", 2, seed=0) == chosen[:2]
    assert open_run.choose("clerk", 4, seed=1) != chosen
    assert open_run.content_hash == other_order.content_hash
    changed = open_run._replace(turns_by_persona={"clerk": turns, "sailor": (*turns[:-1], turns[0])})
    assert changed.content_hash != open_run.content_hash


def test_an_interview_is_taken_in_order() -> None:
    assert recorded(clerk=TURNS).choose("clerk", 2, seed=3) == TURNS[:2]
    assert recorded(clerk=TURNS).content_hash != recorded(clerk=TURNS[::-1]).content_hash


def test_a_run_in_four_contexts(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        turns = record_turns(tmp_path, server)
        config = in_contexts(tmp_path, server.base_url, *CONTEXTS, context_turns=str(turns))
        before = len(server.asked)
        assert preflight_stability(config)["cells"] == str(6 + 4 * 3 * 6)
        summary = run_stability(config)
        assert len(server.asked) - before == 78
        assert run_stability(config) == summary
        assert len(server.asked) - before == 78  # nothing is asked twice
    # 1, 2/3, 1 and 1/3 in the contexts.
    assert (summary.baseline.value, summary.mean.value, summary.n_asked) == (1.0, 0.75, 72)
    found = measure_contexts(config.out)
    assert [(one.id, round(one.measures["mean"].value or 0, 6), one.mean_minus_first.value) for one in found] == [
        ("system", 1.0, None), ("user", 0.666667, pytest.approx(-1 / 3)), ("in-character", 1.0, 0.0),
        ("turns-2", 0.333333, pytest.approx(-2 / 3)),
    ]  # fmt: skip
    assert all(one.measures["baseline"].value == 1 for one in found)
    rows = read_json(config.out / "metrics.json")["contexts"]
    assert rows == {one.id: one.model_dump(mode="json") for one in found}
    assert list(rows) == list(CONTEXTS)
    measures = ["baseline", "mean", "worst", "pss", "mean_minus_baseline"]
    assert list(rows["user"]) == ["id", *measures, "mean_minus_first", "n_scored", "n_asked"]
    expected, cells = read_expected_cells(RunReader(config.out)), read_run_cells(config.out)
    assert expected.total == len(cells) == 78
    assert all(expected.contains(key) for key in cells)
    assert not expected.contains(next(key for key in cells if key.persona_id)._replace(context=""))
    tally = CellTally("records.jsonl", expected)
    tally.add_lines((config.out / "records.jsonl").read_bytes().splitlines())
    assert (tally.done, tally.n_outside_grid) == (78, 0)
    one = cells[next(key for key in cells if key.context == "turns-2" and key.persona_id == "sailor")]
    roles = [message["role"] for message in one.messages]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    for asked, said in (one.messages[1:3], one.messages[3:5]):
        assert said["content"] == f"As a retired sailor: {asked['content']}"
    with pytest.raises(DataError, match="uses 4 contexts"):
        export_run(ExportConfig(run=config.out, format="lm-eval", out=tmp_path / "exported"))


def test_other_turns_or_contexts_are_another_run(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        turns = record_turns(tmp_path, server)
        config = in_contexts(tmp_path, server.base_url, "system", "turns-1", context_turns=str(turns))
        run_stability(config)
        asked = len(server.asked)
        with pytest.raises(ConfigError, match=r"contexts = \['system', 'turns-1'\], not \['system'\]"):
            run_stability(in_contexts(tmp_path, server.base_url, "system"))
        records = turns / "records.jsonl"
        records.write_text(records.read_text().replace("As a careful clerk", "Says a careful clerk"))
        with pytest.raises(ConfigError, match="other recorded turns behind context_turns"):
            run_stability(config)
        assert len(server.asked) == asked


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        turns = record_turns(tmp_path, server)
        config = in_contexts(tmp_path, server.base_url, *CONTEXTS, context_turns=str(turns))
        whole = run_stability(config)
        records = config.out / "records.jsonl"
        lines = records.read_text().splitlines(keepends=True)
        records.write_text("".join(lines[:40]) + lines[40][:30])
        asked = len(server.asked)
        assert run_stability(config) == whole
        assert len(server.asked) == asked + 38


def test_an_interview_gives_turns_in_its_order(tmp_path: Path) -> None:
    script = tmp_path / "script.txt"
    script.write_text("How was your day?\nWhat do you eat?\nWhy?\nWhere to?\n")
    with openai_server(reply) as server:
        config = fidelity(tmp_path, server.base_url, interview={"turns": 3, "script": str(script), "order": "written"})
        run_interview(config)
    found = read_recorded_turns(config.out)
    assert found.is_conversation
    assert [one.question for one in found.choose("troll", 2, seed=5)] == ["How was your day?", "What do you eat?"]
    assert found.choose("troll", 1, seed=5)[0].answer == "As a troll under a bridge: How was your day?"


def test_missing_answers_are_one_error_before_anything_is_asked(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        turns = record_turns(tmp_path, server)
        asked = len(server.asked)
        records = turns / "records.jsonl"
        kept = [line for line in records.read_text().splitlines(keepends=True) if json.loads(line)["persona_id"] != "troll"]
        records.write_text("".join(kept[:-1]))
        for check in (run_stability, preflight_stability):
            config = in_contexts(tmp_path, server.base_url, "turns-12", context_turns=str(turns))
            with pytest.raises(DataError) as caught:
                check(config)
            text = str(caught.value)
            assert "turns-12 needs 12 recorded answers of each persona; 2 of 3 have fewer" in text
            assert "troll (0)" in text
            assert "permix fidelity --model.name BASE_MODEL --personas.pool" in text
        assert len(server.asked) == asked


def test_turns_of_another_persona_of_that_name_are_refused(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        turns = record_turns(tmp_path, server)
        config = in_contexts(tmp_path, server.base_url, "turns-1", context_turns=str(turns))
        pool = tmp_path / "pool.toml"
        pool.write_text(pool.read_text().replace("a retired sailor", "a young sailor"))
        with pytest.raises(DataError, match="1 of 3 personas answered there under another text: sailor"):
            run_stability(config)


def test_what_is_no_fidelity_run_is_refused(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        plain = build_config(
            StabilityConfig, stability_values(tmp_path, server.base_url, out=str(tmp_path / "plain")), source="t"
        )
        run_stability(plain)
        with pytest.raises(DataError, match="has stage 'stability'; give a run of permix fidelity"):
            run_stability(in_contexts(tmp_path, server.base_url, "turns-1", context_turns=str(plain.out)))
        with pytest.raises(DataError, match="context_turns"):
            run_stability(in_contexts(tmp_path, server.base_url, "turns-1", context_turns=str(tmp_path / "nowhere")))


def test_a_run_without_contexts_says_nothing_of_them(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        config = build_config(StabilityConfig, stability_values(tmp_path, server.base_url), source="test")
        run_stability(config)
    assert measure_contexts(config.out) == ()
    assert "contexts" not in read_json(config.out / "metrics.json")
    assert "contexts" not in read_json(config.out / "grid.json")
    assert not {"contexts", "context_turns"} & set(RunReader(config.out).identity)
    # A run of an earlier version, whose config.json does not know the fields.
    values = read_json(config.out / "config.json")
    (config.out / "config.json").write_text(
        json.dumps({key: one for key, one in values.items() if not key.startswith("context")})
    )
    assert measure_stability(config.out).mean.value == 1.0
    assert measure_contexts(config.out) == ()
    assert read_grid_results(config.out).contexts == ("",)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"contexts": ["sistem"]}, "contexts = 'sistem': give system, user, in-character, or turns-K"),
        ({"contexts": ["user", "user"]}, "contexts: 'user' occurs twice"),
        ({"contexts": ["turns-2"]}, "needs context_turns, a fidelity run of the base model"),
        ({"contexts": ["user"], "context_turns": "runs/x"}, "no context of contexts has turns"),
        ({"contexts": ["user"], "strategy": "persona-vote"}, 'strategy = "persona-vote" asks in one context'),
        ({"contexts": ["user"], "budget": 100}, "budget = 100: contexts asks the whole grid"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(StabilityConfig, {"stage": "stability"} | fields, source="test")
    assert said in str(caught.value)


def test_flags_may_add_what_a_file_lacks() -> None:
    values = {"stage": "stability", "contexts": ["turns-2"]}
    assert build_config(StabilityConfig, values, source="test", partial=True).contexts == ("turns-2",)


def test_a_template_in_the_question_does_not_go_with_contexts(tmp_path: Path) -> None:
    for fields in ({"personas": {"template": "in_question"}}, {"templates": ["adopt", "in_question"]}):
        config = build_config(StabilityConfig, {"stage": "stability", "contexts": ["system"]} | fields, source="test")
        with pytest.raises(ConfigError, match="contexts: the template 'in_question' puts the persona into the user's message"):
            preflight_stability(config)
    assert PersonasConfig().template == "you_are"


# The report


def test_the_report_has_a_row_for_each_context(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        turns = record_turns(tmp_path, server)
        for name in ("one", "two"):
            config = in_contexts(
                tmp_path, server.base_url, "user", "turns-2", context_turns=str(turns), out=str(tmp_path / name), label=name
            )
            run_stability(config)
        plain = build_config(StabilityConfig, stability_values(tmp_path, server.base_url), source="test")
        run_stability(plain)
    build_report([tmp_path / "one"], tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "## Contexts" in text
    table = list(csv.reader((tmp_path / "report" / "tables" / "contexts.csv").read_text().splitlines()))
    assert [line[:2] for line in table[1:]] == [["one", "user"], ["one", "turns-2"]]
    found = read_json(tmp_path / "report" / "table.json")["contexts"]["one"]
    assert found["turns-2"]["mean_minus_first"]["value"] == pytest.approx(-1 / 3)
    rows = list(csv.DictReader((tmp_path / "report" / "tables" / "cells.csv").read_text().splitlines()))
    assert {row["context"] for row in rows} == {"", "user", "turns-2"}
    run = permix.open_run(tmp_path / "one")
    assert isinstance(run, permix.StabilityRun)
    assert {row["context"] for row in run.rows()} == {"", "user", "turns-2"}
    assert [one.id for one in run.contexts] == ["user", "turns-2"]

    compared = compare_runs(tmp_path / "one", tmp_path / "two", resamples=100)
    assert list(compared.contexts) == ["user", "turns-2"]
    (mean,) = [one for one in compared.contexts["turns-2"].measures if one.name == "mean"]
    assert mean.first == mean.other == pytest.approx(1 / 3)
    assert "turns-2, mean over personas" in comparison_markdown(compared)
    assert len(terminal_comparison_tables(compared)) == 3
    with pytest.raises(DataError, match="not asked in the same words"):
        compare_runs(tmp_path / "one", plain.out, resamples=100)
    assert len(terminal_comparison_tables(compare_runs(plain.out, plain.out, resamples=100))) == 2


def test_a_transcript_names_its_context(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        config = in_contexts(tmp_path, server.base_url, "system", "user")
        run_stability(config)
    written = write_transcripts(collect_models([config.out]), tmp_path / "page")
    (sheet,) = written["sheets"]
    assert sheet["contexts"] == ["system", "user"]
    sheet = build_sheet("test", "stability", Run(config.out), 0)
    keys = [list(sheet.cell_keys(row, 0)) for row in (0, 1)]
    assert [[key.context for key in some] for some in keys] == [[""], ["system", "user"]]


def test_the_terminal_says_each_context(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with openai_server(reply) as server:
        turns = record_turns(tmp_path, server)
        config = in_contexts(tmp_path, server.base_url, *CONTEXTS, context_turns=str(turns))
        run_stability(config)
    run_report(ReportConfig(runs=(config.out,), out=tmp_path / "report"))
    said = capsys.readouterr().out
    assert said.count("mean − first") == 2  # three contexts fit beside each other
    for context in CONTEXTS:
        assert context in said


# Several workers, batch files, inspect_ai


def test_workers_share_a_run_with_contexts(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        whole = run_stability(in_contexts(tmp_path, server.base_url, "system", "user", out=str(tmp_path / "whole")))
        config = in_contexts(tmp_path, server.base_url, "system", "user")
        with pytest.raises(OtherShardsPendingError):
            run_stability(config.model_copy(update={"shard": "1/2"}))
        assert run_stability(config.model_copy(update={"shard": "2/2"})) == whole
    assert len(read_run_cells(config.out)) == 6 + 2 * 18


def test_a_task_of_inspect_refuses_contexts(tmp_path: Path) -> None:
    pytest.importorskip("inspect_ai")
    from permix.interop.inspect_task import stability_task

    (tmp_path / "run.toml").write_text('stage = "stability"\ncontexts = ["system", "user"]\n')
    with pytest.raises(ConfigError, match=r"contexts = \('system', 'user'\): a task of inspect_ai asks only the full grid"):
        stability_task(config=str(tmp_path / "run.toml"))
