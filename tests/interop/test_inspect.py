"""inspect_ai's logs, read and written by its own library, its task that asks our grid, and what is said without the library."""

import os
import re
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.config import ExportConfig, ImportConfig, build_config
from permix.errors import ConfigError, DataError
from permix.evals.stability import evaluate_setup, measure_stability, prepare_stability
from permix.inference.scripted import ScriptedModel
from permix.interop.inspect_logs import to_chat_message
from permix.interop.stage import export_run, import_run, read_import_logs
from permix.storage.files import read_json
from permix.types import CellKey, Completion, Message
from tests.cell_files import read_cells
from tests.interop.logs import own_run
from tests.sample_runs import solve, stability_config, write_pool


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_run(tmp_path)
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    for run in (lambda: imported(tmp_path), lambda: export_run(ExportConfig(run=tmp_path / "run", out=tmp_path / "logs"))):
        with pytest.raises(ConfigError, match=r"needs inspect_ai, which is not installed: pip install .*\[inspect\]"):
            run()
    assert cli.run_cli(["import", "--inspect", str(tmp_path), "--out", str(tmp_path / "x")]) == 2


def imported(folder: Path, *given: str, **fields: Any) -> Any:
    logs = given or (str(folder / "logs"),)
    values = {"inspect": logs, "out": folder / "again", "resamples": 100}
    return import_run(build_config(ImportConfig, values | fields, source="test"))


@pytest.fixture
def library() -> Any:
    return pytest.importorskip("inspect_ai", reason="the extra inspect is not installed")


# Round trip


@pytest.mark.slow
def test_a_round_trip_gives_the_same_metrics_and_cells(tmp_path: Path, library: Any) -> None:
    own_run(tmp_path)
    export_run(ExportConfig(run=tmp_path / "run", out=tmp_path / "logs"))
    assert imported(tmp_path) == measure_stability(tmp_path / "run")
    before, after = (read_cells(tmp_path / name / "records.jsonl") for name in ("run", "again"))
    assert before.keys() == after.keys()
    for key, cell in before.items():
        if cell.failure is None:
            assert after[key] == cell
    failed = after[CellKey(persona_id="troll", question_id=failing(before), sample=0)]
    assert failed.failure is not None
    assert "the bridge is down" in failed.failure.message
    assert (failed.completion, failed.verdict) == (None, None)


def failing(cells: Any) -> str:
    return str(next(key.question_id for key, cell in cells.items() if cell.failure is not None))


def test_the_log_opens_with_the_library_s_reader(tmp_path: Path, library: Any) -> None:
    from inspect_ai.log import read_eval_log

    own_run(tmp_path)
    export_run(ExportConfig(run=tmp_path / "run", out=tmp_path / "logs"))
    log = read_eval_log(str(next((tmp_path / "logs").iterdir())))
    assert (log.status, log.eval.model, log.eval.task, log.eval.config.epochs) == ("success", "test", "arithmetic", 2)
    samples = {(sample.metadata["persona"], sample.epoch): sample for sample in log.samples or []}
    assert len(log.samples or []) == 4 * 6 * 2
    assert samples[("clerk", 2)].scores["verify"].value == "C"
    assert samples[(None, 1)].messages[0].role == "user"
    found = measure_stability(tmp_path / "run")
    cells = found.n_scored + found.baseline.n * 2
    right = sum(sample.scores["verify"].value == "C" for sample in log.samples or [] if sample.scores)
    assert log.results.scores[0].metrics["accuracy"].value == right / cells


# The task


def answering(reply: Callable[[str | None, str], str]) -> Any:
    """inspect_ai's mock model, which answers by system and user message; None fails."""
    from inspect_ai.model import ModelOutput, ModelUsage, get_model

    def outputs(messages: Sequence[Any], tools: Any, choice: Any, config: Any) -> Any:
        system = messages[0].text if messages[0].role == "system" else None
        output = ModelOutput.from_content("mockllm/model", reply(system, messages[-1].text))
        output.usage = ModelUsage(input_tokens=7, output_tokens=3, total_tokens=10)
        return output

    return get_model("mockllm/model", custom_outputs=outputs)


def ran(folder: Path, task: Any, reply: Callable[[str | None, str], str]) -> Any:
    from inspect_ai import eval

    return eval(task, model=answering(reply), log_dir=str(folder / "logs"), display="none", fail_on_error=False)[0]


def sailors_are_half_right(system: str | None, question: str) -> str:
    if system and "troll" in system and solve(question) > 8:
        raise OSError("the bridge is down")
    if system and "sailor" in system and solve(question) % 2:
        return "Arr, \\boxed{0}"
    return f"\\boxed{{{solve(question)}}}"


@pytest.mark.slow
def test_the_task_asks_what_permix_stability_asks_and_scores_it_so(tmp_path: Path, library: Any) -> None:
    from permix.interop.inspect_task import stability_task

    config = stability_config(tmp_path, "http://127.0.0.1:1/v1", samples=2)
    file = tmp_path / "grid.toml"
    file.write_text(
        f'samples = 2\n[task]\nlevels = ["add-1"]\nn = 6\n[sampling]\nmax_new_tokens = 16\n'
        f'[personas]\npool = "{tmp_path / "pool.toml"}"\n'
    )
    log = ran(tmp_path, stability_task(config=str(file)), sailors_are_half_right)
    assert log.status == "success"
    found = imported(tmp_path, seed=0)
    _, task, setup = prepare_stability(config)
    with pytest.raises(Exception, match="cells, with or without a persona, have no score"):
        evaluate_setup(ScriptedModel(scripted), config, task, setup)
    assert found == measure_stability(config.out)
    own, theirs = (read_cells(folder / "records.jsonl") for folder in (config.out, tmp_path / "again"))
    assert own.keys() == theirs.keys()
    for key, cell in own.items():
        assert (theirs[key].messages, theirs[key].seed, theirs[key].gold) == (cell.messages, cell.seed, cell.gold)
        assert theirs[key].verdict == cell.verdict
        assert (theirs[key].failure is None) == (cell.failure is None)
    assert cli.run_cli(["compare", str(config.out), str(tmp_path / "again")]) == 0
    assert read_json(tmp_path / "again" / "config.json")["sampling"] == config.sampling.model_dump()


def scripted(request: Any) -> str:
    system = request.messages[0]["content"] if request.messages[0]["role"] == "system" else None
    return sailors_are_half_right(system, request.messages[-1]["content"])


def test_the_task_takes_what_is_given_beside_the_configuration(tmp_path: Path, library: Any) -> None:
    from permix.interop.inspect_task import stability_task

    pool = write_pool(tmp_path / "pool.toml", "clerk", "sailor")
    made = stability_task(task="arithmetic", n=5, personas=str(pool), samples=3)
    assert len(made.dataset) == 3 * 5
    assert made.epochs == 3
    assert [sample.metadata["persona"] for sample in made.dataset][::5] == [None, "clerk", "sailor"]
    with pytest.raises(ConfigError, match=r"task\.name = 'gsm9k'"):
        stability_task(task="gsm9k")


# Logs of others


def made(folder: Path, name: str, samples: Sequence[Any], **fields: Any) -> Path:
    """A small log: `samples` as (id, system, question, target, score or None for an error, metadata)."""
    from inspect_ai.log import EvalConfig, EvalDataset, EvalError, EvalLog, EvalSample, EvalSpec, write_eval_log
    from inspect_ai.model import ChatMessageSystem, ChatMessageUser, ModelOutput
    from inspect_ai.scorer import Score

    def sample(id: Any, system: str | None, question: str, target: str, scores: Any, metadata: dict[str, Any]) -> Any:
        asked = [*([ChatMessageSystem(content=system)] if system else []), ChatMessageUser(content=question)]
        failed = scores is None
        output = ModelOutput() if failed else ModelOutput.from_content("m", "So it is.")
        return EvalSample(
            id=id, epoch=1, input=question, target=target, metadata=metadata, output=output,
            messages=asked + [choice.message for choice in output.choices],
            scores=None if failed else {name: Score(value=value) for name, value in scores.items()},
            error=EvalError(message="out of time", traceback="", traceback_ansi="") if failed else None,
        )  # fmt: skip

    values: dict[str, Any] = {"task": "riddles", "model": "openai/m", "dataset": EvalDataset(sample_ids=[1, 2, 3])} | fields
    path = folder / f"{name}.json"
    status, words = values.pop("status", "success"), values.pop("error", None)
    error = EvalError(message=words, traceback="", traceback_ansi="") if words else None
    spec = EvalSpec(created="2026-01-01T00:00:00+00:00", config=EvalConfig(epochs=1), **values)
    write_eval_log(EvalLog(status=status, error=error, eval=spec, samples=[sample(*one) for one in samples]), str(path))
    return path


def riddles(system: str | None, *scores: Any, **metadata: Any) -> list[Any]:
    return [(id, system, f"Riddle {id}?", f"t{id}", score, metadata) for id, score in enumerate(scores, 1)]


C, I = {"match": "C"}, {"match": "I"}  # noqa: E741


def test_a_log_for_each_persona_is_a_run(tmp_path: Path, library: Any) -> None:
    none = made(tmp_path, "none", riddles(None, C, C, C))
    troll = made(tmp_path, "troll", riddles("You are a troll.", C, None))
    clerk = made(tmp_path, "clerk", riddles("You are a clerk.", C, I, C))
    found = imported(tmp_path, f"none={none}", f"troll={troll}", f"clerk={clerk}")
    assert {one.id: (one.accuracy.value, one.n) for one in found.personas} == {
        "troll": (1.0, 1),
        "clerk": (pytest.approx(2 / 3), 3),
    }
    assert (found.baseline.value, found.n_scored, found.n_asked) == (1.0, 4, 6)
    cells = read_cells(tmp_path / "again" / "records.jsonl")
    failure = cells[CellKey(persona_id="troll", question_id="2", sample=0)].failure
    assert failure is not None
    assert failure.message == "out of time"
    by_text = imported(tmp_path, str(none), str(troll), str(clerk), out=tmp_path / "named")
    assert [one.id for one in by_text.personas] == ["You are a troll.", "You are a clerk."]
    assert by_text.n_scored == 4


def test_one_log_with_personas_in_its_metadata_is_a_run(tmp_path: Path, library: Any) -> None:
    rows = [
        *riddles(None, C, I, who=None),
        *((f"{id}-p", *rest) for id, *rest in riddles("Arr.", C, C, who="pirate")),
        *((f"{id}-q", *rest) for id, *rest in riddles("Be a poet.", I, C, who="poet")),
    ]
    log = made(tmp_path, "all", rows)
    found = imported(tmp_path, str(log), persona_key="who")
    assert [(one.id, one.accuracy.value) for one in found.personas] == [("pirate", 1.0), ("poet", 0.5)]
    assert (found.baseline.value, found.n_asked) == (0.5, 4)


def test_scores_that_are_no_verdicts_are_refused_or_missing(tmp_path: Path, library: Any) -> None:
    none = made(tmp_path, "none", riddles(None, C, C))
    with pytest.raises(DataError, match=r"sample 2, epoch 1: scores.match = 'P': a verdict is right or wrong"):
        imported(tmp_path, f"none={none}", f"poet={made(tmp_path, 'poet', riddles('Be.', C, {'match': 'P'}))}")
    with pytest.raises(DataError, match=r"scores.match = 0.5: a verdict is right or wrong"):
        imported(tmp_path, f"none={none}", f"poet={made(tmp_path, 'poet', riddles('Be.', C, {'match': 0.5}))}")
    poet = made(tmp_path, "poet", riddles("Be.", {"match": 1.0}, {"match": float("nan")}))
    found = imported(tmp_path, f"none={none}", f"poet={poet}")
    assert (found.mean.value, found.n_scored, found.n_asked) == (1.0, 1, 3)


def test_of_several_scorers_one_is_chosen_by_name(tmp_path: Path, library: Any) -> None:
    both = {"match": "C", "model_graded": "I"}
    given = [f"none={made(tmp_path, 'none', riddles(None, both))}", f"poet={made(tmp_path, 'poet', riddles('Be.', both))}"]
    with pytest.raises(DataError, match=r"more than one metric: match, model_graded; choose with --metric"):
        imported(tmp_path, *given)
    assert imported(tmp_path, *given, metric="model_graded").mean.value == 0.0
    with pytest.raises(ConfigError, match="inspect_ai has no filters"):
        imported(tmp_path, *given, metric="match", filter="x")


def test_mixtures_are_refused(tmp_path: Path, library: Any) -> None:
    none = f"none={made(tmp_path, 'none', riddles(None, C, C))}"
    with pytest.raises(DataError, match=r"poet.json: model = 'openai/other', and .*none.json has 'openai/m'"):
        imported(tmp_path, none, f"poet={made(tmp_path, 'poet', riddles('Be.', C, C), model='openai/other')}")
    with pytest.raises(DataError, match=r"poet.json: task = 'jokes', and"):
        imported(tmp_path, none, f"poet={made(tmp_path, 'poet', riddles('Be.', C, C), task='jokes')}")
    from inspect_ai.model import GenerateConfig

    warm = made(tmp_path, "poet", riddles("Be.", C, C), model_generate_config=GenerateConfig(temperature=1.0))
    with pytest.raises(DataError, match=r"poet.json: sampling.temperature = 1.0, and .*none.json has None"):
        imported(tmp_path, none, f"poet={warm}")
    other = [(id, system, words.replace("Riddle", "Joke"), *rest) for id, system, words, *rest in riddles("Be.", C, C)]
    with pytest.raises(DataError, match=r"question '1': question = 'Joke 1\?', and .* has 'Riddle 1\?'"):
        imported(tmp_path, none, f"poet={made(tmp_path, 'poet', other)}")
    with pytest.raises(DataError, match=r"sample 1 has no system message, so it was not asked with the persona 'poet'"):
        imported(tmp_path, f"poet={made(tmp_path, 'poet', riddles(None, C, C))}")


def test_what_is_no_log_is_said_to_be_none(tmp_path: Path, library: Any) -> None:
    (tmp_path / "broken.eval").write_bytes(b"PK\x03\x04 torn")
    (tmp_path / "broken.json").write_text("{")
    for name in ("broken.eval", "broken.json"):
        with pytest.raises(DataError, match=rf"{re.escape(name)}: not a log of inspect_ai"):
            imported(tmp_path, str(tmp_path / name))
    with pytest.raises(DataError, match=r"nowhere: no such log"):
        imported(tmp_path, str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"has no samples \(status success\)"):
        imported(tmp_path, str(made(tmp_path, "empty", [])))


def test_of_a_folder_the_logs_are_read_and_not_what_is_beside_them(tmp_path: Path, library: Any) -> None:
    """What `inspect eval-set` writes, with a log under a name of the user's own."""
    logs = tmp_path / "logs"
    logs.mkdir()
    made(logs, "2026-01-01T00-00-00-00-00_riddles_a", riddles(None, C, C))
    made(logs, "my own", riddles("You are a poet.", C, I))
    (logs / "eval-set.json").write_text('{\n  "eval_set_id": "abc",\n  "tasks": []\n}')
    (logs / "logs.json").write_text('{\n  "2026-01-01T00-00-00-00-00_riddles_a.json": {\n    "version": 2\n  }\n}')
    (logs / ".eval-set-id").write_text("abc")
    assert [(one.id, one.accuracy.value) for one in imported(tmp_path).personas] == [("You are a poet.", 0.5)]
    for one in logs.glob("*riddles*"):
        one.write_text("{")
    with pytest.raises(DataError, match=r"riddles_a.json: not a log of inspect_ai"):
        imported(tmp_path)
    for one in [*logs.glob("*riddles*"), logs / "my own.json"]:
        one.unlink()
    with pytest.raises(DataError, match=r"logs: no such log, or a folder without logs"):
        imported(tmp_path)


def test_a_message_keeps_its_role_and_another_role_is_refused(library: Any) -> None:
    roles = ("system", "user", "assistant")
    assert [to_chat_message(Message(role=role, content="a")).role for role in roles] == list(roles)
    with pytest.raises(DataError, match="role = 'tool': the role of a message to export must be one of system, user, assistant"):
        to_chat_message(Message(role="tool", content="a"))


def test_an_eval_that_failed_says_so_first(tmp_path: Path, library: Any) -> None:
    failed = made(tmp_path, "failed", riddles("You are a poet.", None, None), status="error", error="CUDA out of memory\nat 0x1")
    with pytest.raises(DataError, match=r"failed.json: status error: CUDA out of memory; it ended before anything was scored"):
        imported(tmp_path, f"poet={failed}")
    empty = made(tmp_path, "empty", [], status="cancelled")
    with pytest.raises(DataError, match=r"has no samples \(status cancelled\)"):
        imported(tmp_path, str(empty))


def test_an_eval_that_was_cancelled_is_read_as_far_as_it_went(
    tmp_path: Path, library: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    none = made(tmp_path, "none", riddles(None, C, I))
    poet = made(tmp_path, "poet", riddles("You are a poet.", C, None), status="cancelled")
    summary = imported(tmp_path, f"none={none}", f"poet={poet}")
    assert summary.n_scored < summary.n_asked
    assert "poet.json: status cancelled; answers may be missing" in " ".join(capsys.readouterr().err.split())


def test_a_zip_that_unpacks_to_more_than_memory_is_refused_unread(
    tmp_path: Path, library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = tmp_path / "bomb.eval"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", b" " * 5_000_000)
        archive.writestr("../../outside.json", b"{}")
    monkeypatch.setattr("permix.interop.inspect_logs.MAX_UNPACKED_BYTES", 4_000_000)
    with pytest.raises(DataError, match=r"bomb.eval: has 2 members of 5,000,002 bytes unpacked; at most 1,000,000 and 4,000,000"):
        imported(tmp_path, str(bomb))
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"bomb.eval: not a log of inspect_ai"):
        imported(tmp_path, str(bomb))
    assert not (tmp_path.parent / "outside.json").exists()


def test_a_log_that_is_deep_or_a_pipe_is_refused(tmp_path: Path, library: Any) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"deep.json: not a log of inspect_ai"):
        imported(tmp_path, str(tmp_path / "deep.json"))
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(DataError, match=r"pipe.json: "):
        imported(tmp_path, str(tmp_path / "pipe.json"))


# What is no answer, and what belongs to one


def outputs(folder: Path, *given: tuple[str | None, Any, str], extra_body: Any = None) -> Any:
    """A log of one question; `given` are the personas, each with an output and its score."""
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalPlan, EvalSample, EvalSpec, write_eval_log
    from inspect_ai.model import ChatMessageSystem, ChatMessageUser, GenerateConfig
    from inspect_ai.scorer import Score

    samples = []
    for id, (persona, output, grade) in enumerate(given, 1):
        system = [] if persona is None else [ChatMessageSystem(content=f"You are {persona}.")]
        asked = [*system, ChatMessageUser(content="What is 2 + 2?")]
        samples.append(
            EvalSample(
                id=id, epoch=1, input=asked, target="4", metadata={"persona": persona}, output=output,
                messages=[*asked, *(choice.message for choice in output.choices)], scores={"match": Score(value=grade)},
            )
        )  # fmt: skip
    spec = EvalSpec(
        created="2026-01-01T00:00:00+00:00", task="sums", model="openai/m", config=EvalConfig(epochs=1),
        dataset=EvalDataset(sample_ids=[one.id for one in samples]),
    )  # fmt: skip
    path, plan = folder / "outputs.json", EvalPlan(config=GenerateConfig(extra_body=extra_body))
    write_eval_log(EvalLog(status="success", eval=spec, plan=plan, samples=samples), str(path))
    return path


def an_output(text: Any, stop_reason: str, *, has_usage: bool = True, **fields: Any) -> Any:
    from inspect_ai.model import ModelOutput, ModelUsage

    output = ModelOutput.from_content("m", text, stop_reason, **fields)
    output.usage = ModelUsage(input_tokens=7, output_tokens=3, total_tokens=10) if has_usage else None
    return output


STOPPED = [
    # What the provider gave, the finish of the completion, and the words of the failure.
    ("4", "stop", {}, "stop", None),
    ("4", "max_tokens", {}, "length", None),
    ("4", "model_length", {}, "length", None),
    ("4", "tool_calls", {}, None, None),
    ("4", "unknown", {}, None, None),
    ("", "content_filter", {}, None, "a content filter stopped the reply"),
    ("Sorry, 4", "content_filter", {"error": "safety"}, None, "a content filter stopped the reply: safety"),
    (
        "This model's maximum context length is 4 tokens.", "model_length", {"has_usage": False}, None,
        "the provider refused the request: This model's maximum context length is 4 tokens.",
    ),
    ("4", "model_length", {"error": "too long"}, None, "the provider refused the request: too long"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "stop_reason", "fields", "finish", "failure"), STOPPED)
def test_what_is_no_answer_of_the_model_is_a_failure(
    tmp_path: Path, library: Any, text: str, stop_reason: str, fields: dict[str, Any], finish: str | None, failure: str | None
) -> None:
    log = outputs(
        tmp_path, (None, an_output("4", "stop"), "C"), ("a clerk", an_output("4", "stop"), "C"),
        ("a troll", an_output(text, stop_reason, **fields), "I"),
    )  # fmt: skip
    found = imported(tmp_path, str(log))
    cells = read_cells(tmp_path / "again" / "records.jsonl")
    (troll,) = (cell for key, cell in cells.items() if key.persona_id == "a troll")
    if failure is None:
        assert troll.completion is not None
        assert (troll.completion.text, troll.completion.finish, troll.failure) == (text, finish, None)
        assert troll.verdict is not None
        assert troll.verdict.correct is False
        return
    assert (troll.completion, troll.verdict) == (None, None)
    assert troll.failure is not None
    assert troll.failure.message == failure
    assert {one.id: one.accuracy.value for one in found.personas if one.n}.keys() == {"a clerk"}


@pytest.mark.parametrize(("text", "stop_reason", "fields", "finish", "failure"), STOPPED)
def test_the_scorer_leaves_what_is_no_answer_unscored(
    library: Any, text: str, stop_reason: str, fields: dict[str, Any], finish: str | None, failure: str | None
) -> None:
    score = scored(an_output(text, stop_reason, **fields))
    if failure is None:
        assert score.value == "C"
    else:
        assert score.value != score.value  # NaN
        assert failure == score.reason


def scored(output: Any, thinking: Any = "default") -> Any:
    """The score that the task gives to this output for 2 + 2."""
    import asyncio

    from inspect_ai.model import ModelName
    from inspect_ai.scorer import Target
    from inspect_ai.solver import TaskState

    from permix.interop.inspect_task import permix_scorer

    state = TaskState(ModelName("mockllm/model"), 1, 1, "What is 2 + 2?", [], output=output)
    return asyncio.run(permix_scorer("arithmetic", thinking)(state, Target("4")))


def test_the_scorer_takes_no_thinking_for_an_answer(library: Any) -> None:
    from inspect_ai.model import ContentReasoning, ContentText

    thought = an_output("2 + 2 is 4, but", "max_tokens")
    assert [scored(thought, thinking).value for thinking in ("on", "default", "off")] == ["I", "C", "C"]
    assert scored(an_output("<think>2 + 2 is 4, but", "max_tokens")).value == "I"
    apart = [ContentReasoning(reasoning="Is it 5?"), ContentText(text="It is 4.")]
    assert scored(an_output(apart, "max_tokens"), "on").value == "C"


def test_reasoning_apart_from_the_text_is_read(tmp_path: Path, library: Any) -> None:
    from inspect_ai.model import ContentReasoning, ContentText

    def reasoning(*parts: Any) -> Any:
        return an_output([*parts, ContentText(text="4")], "stop")

    log = outputs(
        tmp_path,
        (None, reasoning(ContentReasoning(reasoning="two"), ContentReasoning(reasoning="and two")), "C"),
        ("a clerk", reasoning(ContentReasoning(reasoning="x7f", redacted=True, summary="adds")), "C"),
        ("a poet", reasoning(ContentReasoning(reasoning="x7f", redacted=True)), "C"),
        ("a nurse", reasoning(), "C"),
    )
    imported(tmp_path, str(log))
    cells = {key.persona_id: cell.completion for key, cell in read_cells(tmp_path / "again" / "records.jsonl").items()}
    assert {id: completion and completion.reasoning for id, completion in cells.items()} == {
        None: "two\nand two", "a clerk": "adds", "a poet": None, "a nurse": None,
    }  # fmt: skip
    assert {completion and completion.text for completion in cells.values()} == {"4"}


@pytest.mark.parametrize(
    "completion",
    [
        Completion(text="4", prompt_tokens=5, completion_tokens=9, finish="stop", reasoning="two and two"),
        Completion(text="", prompt_tokens=5, completion_tokens=9, finish="length", reasoning="two and"),
        Completion(text="<think>two and two</think>4", prompt_tokens=5, completion_tokens=9, finish="stop"),
        Completion(text="4", prompt_tokens=None, completion_tokens=None, finish=None),
    ],
)
def test_a_completion_comes_back_with_its_reasoning(library: Any, completion: Completion) -> None:
    from inspect_ai.model import ModelOutput

    from permix.interop.inspect_logs import _to_model_output, output_problem, to_completion

    written = ModelOutput.model_validate_json(_to_model_output(completion).model_dump_json())
    assert output_problem(written) is None
    assert to_completion(written) == completion


# Personas in the user's message


def in_the_question(*personas: str | None, **metadata: Any) -> list[Any]:
    """Samples of one log, two riddles a persona, whose persona is in the user's message."""
    return [
        (f"{persona}-{number}", None, (f"You are {persona}.\n\n" if persona else "") + f"Riddle {number}?", f"t{number}", C,
         {"persona": persona} | {name: value(number) for name, value in metadata.items()})
        for persona in personas for number in (1, 2)
    ]  # fmt: skip


def test_personas_that_share_no_question_are_refused(tmp_path: Path, library: Any) -> None:
    log = made(tmp_path, "all", in_the_question(None, "a pirate", "a clerk"))
    with pytest.raises(DataError, match=r"no persona: no question .* nothing to compare; .*permix = \{\"question_id\": ID\}"):
        imported(tmp_path, str(log))
    assert not (tmp_path / "again").exists()
    one = [*riddles(None, C, C, persona=None), *riddles("Arr.", C, C, persona="a pirate"), *in_the_question("a clerk")]
    with pytest.raises(DataError, match=r"persona 'a clerk': no question that was asked with it was asked with another persona"):
        imported(tmp_path, str(made(tmp_path, "one", one)))


def test_logs_of_a_persona_each_with_other_ids_are_refused(tmp_path: Path, library: Any) -> None:
    none = made(tmp_path, "none", riddles(None, C, C))
    other = [(id + 10, *rest) for id, *rest in riddles("Be a poet.", C, C)]
    with pytest.raises(DataError, match="nothing to compare; two samples ask the same question if their ids are equal"):
        imported(tmp_path, f"none={none}", f"poet={made(tmp_path, 'poet', other)}")


def test_the_metadata_may_name_the_question_of_a_persona_in_the_users_message(tmp_path: Path, library: Any) -> None:
    rows = in_the_question(None, "a pirate", "a clerk", permix=lambda number: {"question_id": f"riddle-{number}"})
    found = imported(tmp_path, str(made(tmp_path, "all", rows)))
    assert (found.n_questions, found.n_asked, found.n_scored, found.baseline.n) == (2, 4, 4, 2)


@pytest.mark.parametrize("persona", ["You are a chef.", None])
def test_where_the_text_is_the_question_alone_it_is_kept_and_compared(persona: str | None, tmp_path: Path, library: Any) -> None:
    """The metadata names the question, and the persona is in the system message, or there is none."""
    names = {"permix": {"question_id": "q1"}}

    def merged(name: str, first: str, second: str) -> Any:
        third = "You are a pirate.\n\nWhat is 6 + 6?"
        rows = [
            ("first", persona, first, "12", C, {"persona": persona and "chef", **names}),
            ("second", "You are a clerk.", second, "12", C, {"persona": "clerk", **names}),
            ("third", None, third, "12", C, {"persona": "pirate", **names}),
        ]
        return read_import_logs(ImportConfig(inspect=(str(made(tmp_path, name, rows)),), out=tmp_path / "again"))

    with pytest.raises(DataError, match=r"question 'q1': question = 'What is 7 \+ 5\?', and .* has 'What is 6 \+ 6\?'"):
        merged("other", "What is 6 + 6?", "What is 7 + 5?")
    assert [one.text for one in merged("same", "What is 6 + 6?", "What is 6 + 6?").questions] == ["What is 6 + 6?"]


@pytest.mark.parametrize(
    ("switch", "expected"),
    [
        ({"enable_thinking": True}, ("", "The final answer is \\boxed{4}", False)),
        ({"enable_thinking": True, "thinking": True}, ("", "The final answer is \\boxed{4}", False)),
        ({"enable_thinking": False, "thinking": False}, ("The final answer is \\boxed{4}", None, True)),
        (None, ("The final answer is \\boxed{4}", None, True)),
    ],
)
def test_thinking_that_the_limit_cut_off_is_no_answer_of_an_import(
    switch: Any, expected: tuple[str, str | None, bool], tmp_path: Path, library: Any
) -> None:
    cut_off = an_output("The final answer is \\boxed{4}", "max_tokens")
    whole = an_output("It is 4.", "stop")
    body = None if switch is None else {"chat_template_kwargs": switch}
    log = outputs(tmp_path, (None, whole, "C"), ("a clerk", cut_off, "I"), extra_body=body)
    imported(tmp_path, str(log), answer="number")
    cells = {key.persona_id: cell for key, cell in read_cells(tmp_path / "again" / "records.jsonl").items()}
    found = cells["a clerk"]
    assert found.completion is not None
    assert found.verdict is not None
    assert (found.completion.text, found.completion.reasoning, found.verdict.correct) == expected
    without = cells[None].completion
    assert without is not None
    assert without.text == "It is 4."


# What the task sends


@pytest.mark.parametrize(
    ("model", "extra_body"),
    [
        ("", None),
        ('thinking = "off"', {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}),
        ('thinking = "on"', {"chat_template_kwargs": {"enable_thinking": True, "thinking": True}}),
        ("extra_body = '{\"top_k\": 20}'", {"top_k": 20}),
    ],
)
def test_the_task_sends_the_fields_of_the_model(tmp_path: Path, library: Any, model: str, extra_body: Any) -> None:
    from permix.interop.inspect_task import stability_task

    file = tmp_path / "grid.toml"
    file.write_text(
        f'[model]\nname = "m"\nbase_url = "http://127.0.0.1:1/v1"\n{model}\n[task]\nname = "arithmetic"\nn = 2\n'
        f'[personas]\npool = "{write_pool(tmp_path / "pool.toml", "clerk")}"\n'
    )
    task = stability_task(config=str(file))
    assert task.config.extra_body == extra_body


def test_what_the_task_cannot_send_is_refused(tmp_path: Path, library: Any) -> None:
    from permix.interop.inspect_task import stability_task

    file = tmp_path / "grid.toml"
    file.write_text('[model]\nthinking_budget = 9\n[task]\nname = "arithmetic"\nn = 2\n')
    with pytest.raises(ConfigError, match=r"model\.thinking_budget = 9: inspect_ai's providers cannot close the thinking"):
        stability_task(config=str(file))
