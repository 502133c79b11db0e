"""A training that verl dumped becomes a training run: curves by kind of persona, provenance, report, viewer, growth, damage."""

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import permix
from permix import cli
from permix.config import ImportConfig, ImportedTrainConfig, build_config
from permix.dashboard.live_metrics import newest_completions
from permix.dashboard.run_monitor import RunMonitor
from permix.errors import ConfigError, DataError
from permix.interop.verl_dump import MAX_KNOWN_PROMPTS, PromptIndex, StepFile, compact_text, read_step, read_trained_plan
from permix.pipelines import verl_import
from permix.pipelines.preflight import check_config
from permix.pipelines.verl_import import import_verl_training
from permix.report.builder import build_report
from permix.report.methods import find_training_run
from permix.report.runs import collect_models
from permix.storage.run_dir import RunReader
from permix.tasks.base import read_trained_on
from permix.types import PlanRow
from tests.interop import verl_dumps as dumps
from tests.interop.verl_dumps import GROUP_SIZE, Line, importing, read_lines
from tests.sample_runs import toml

RECORDED = Path(__file__).parents[2] / "docs" / "recorded" / "quickstart"


def run_import(folder: Path, **fields: Any) -> Path:
    config = importing(folder, **fields)
    assert config.verl is not None
    import_verl_training(config, config.verl)
    return config.out


@pytest.fixture
def dumped(tmp_path: Path) -> Path:
    """A folder with a dump and the plan file."""
    dumps.write_dump(tmp_path)
    dumps.write_plan_file(tmp_path)
    return tmp_path


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A folder with a dump, validations, and the folder of the export."""
    dumps.write_dump(tmp_path)
    dumps.write_export(tmp_path, dev=dumps.dev_rows())
    validations = {step: dumps.validation_lines(step, marks) for step, marks in dumps.DEV_SCORES.items()}
    dumps.write_dump(tmp_path, validations, "validation")
    return tmp_path


def from_export(folder: Path, **fields: Any) -> Path:
    return run_import(folder, plan=str(folder / "export"), validation=str(folder / "validation"), **fields)


# What is read


def test_a_step_has_the_reward_of_each_kind_of_persona(dumped: Path) -> None:
    assert read_lines(run_import(dumped) / "log.jsonl") == [
        {
            "step": 1,
            "reward": 6 / 8,
            "reward_by_tag": {"expert": 0.5, "none": 1.0, "work": 0.5},
            "frac_nonzero_advantage_groups": 0.5,
            "unscored": 0,
        },
        {
            "step": 2,
            "reward": 1 / 7,
            "reward_by_tag": {"harmful": 1 / 3, "none": 0.0},
            "frac_nonzero_advantage_groups": 0.5,
            "unscored": 1,
        },
        {
            "step": 3,
            "reward": 5 / 8,
            "reward_by_tag": {"expert": 1.0, "none": 0.25, "work": 1.0},
            "frac_nonzero_advantage_groups": 0.5,
            "unscored": 0,
        },
    ]


def test_rollouts_are_in_the_order_of_the_plan_and_padding_is_none(dumped: Path) -> None:
    """Without padding: it would be a wrong answer of a persona that gave none."""
    lines = read_lines(run_import(dumped) / "rollouts.jsonl")
    scores = "".join(str(int(line["verdict"]["correct"])) for line in lines)
    assert scores == "".join(dumps.SCORES).replace("-", "")
    assert [(line["step"], line["group"]) for line in lines] == sorted((line["step"], line["group"]) for line in lines)
    assert lines[8] == {
        "step": 2,
        "group": 0,
        "persona_id": "troll",
        "question_id": "What is 1 + 3?",
        "prompt": "What is 1 + 3?",
        "completion": "\\boxed{4}",
        "gold": "4",
        "verdict": {"correct": True, "extracted": None, "error": None},
    }


def test_provenance_names_engine_release_plan_and_files(exported: Path) -> None:
    run = RunReader(from_export(exported, label="PerMix on verl"))
    identity = run.identity
    assert {name: identity[name] for name in ("imported", "engine", "engine_version", "plan", "model")} == {
        "imported": "verl",
        "engine": "verl",
        "engine_version": "0.9.1",
        "plan": dumps.plan().hash,
        "model": "Qwen/Qwen3-0.6B",
    }
    assert identity["train"]["lr"] == 2e-6
    config = ImportedTrainConfig.model_validate(run.config)
    assert (config.label, config.method, config.plan.steps) == ("PerMix on verl", "permix", 3)
    files = json.loads((run.path / "imported.json").read_text())
    assert sorted(files["rollouts"]) == ["1.jsonl", "2.jsonl", "3.jsonl"]
    assert sorted(files["validation"]) == ["0.jsonl", "2.jsonl"]
    assert files["rollouts"]["1.jsonl"]["bytes"] == (exported / "rollouts" / "1.jsonl").stat().st_size
    assert files["counts"] == {"rollouts": 23, "unscored": 1, "moved": 0}


def test_nothing_is_invented(dumped: Path) -> None:
    """verl gives no tokens, no times and no model with the rollouts alone; a plan without personas is plain RLVR."""
    run = run_import(dumped)
    fields = set(read_lines(run / "log.jsonl")[0])
    assert fields == {"step", "reward", "reward_by_tag", "frac_nonzero_advantage_groups", "unscored"}
    assert not (run / "usage.json").exists()
    assert not (run / "dev_eval.jsonl").exists()
    config = json.loads((run / "config.json").read_text())
    assert config["model"] == {"name": None}
    assert "train" not in config
    assert permix.open_run(run).config["method"] == "permix"


def test_a_model_in_the_run_carries_what_it_was_trained_on(dumped: Path) -> None:
    found = read_trained_on(run_import(dumped) / "model")
    assert found.question_hashes == {one.question_hash for one in dumps.plan().rows}
    assert found.persona_ids == {"clerk", "troll"}


def test_a_plan_without_personas_is_rlvr(tmp_path: Path) -> None:
    rows = [dumps.row(0, 0, None, "What is 1 + 1?", "2"), dumps.row(0, 1, None, "What is 2 + 2?", "4")]
    dumps.write_plan_file(tmp_path, dumps.plan(rows))
    dumps.write_dump(tmp_path, dumps.training_lines(rows, ("1100", "0001")))
    run = run_import(tmp_path)
    assert json.loads((run / "config.json").read_text())["method"] == "rlvr"
    assert read_lines(run / "log.jsonl")[0]["reward_by_tag"] == {"none": 3 / 8}


def test_a_persona_without_tags_is_not_no_persona(tmp_path: Path) -> None:
    asked = [dumps.row(0, group, who, f"What is 1 + {group}?", str(1 + group)) for group, who in enumerate(("clerk", None))]
    rows = [asked[0].model_copy(update={"persona_tags": ()}), asked[1]]
    dumps.write_plan_file(tmp_path, dumps.plan(rows))
    dumps.write_dump(tmp_path, dumps.training_lines(rows, ("1100", "0001")))
    assert read_lines(run_import(tmp_path) / "log.jsonl")[0]["reward_by_tag"] == {"none": 0.25, "untagged": 0.5}


def test_a_run_is_opened_from_python(exported: Path) -> None:
    run = permix.open_run(from_export(exported))
    assert isinstance(run, permix.TrainRun)
    assert [step["reward"] for step in run.steps()] == [6 / 8, 1 / 7, 5 / 8]
    assert sum(1 for _ in run.rollouts()) == 23
    assert [one["step"] for one in run.dev_evaluations()] == [0, 2]


def test_a_dump_of_the_legacy_trainer_has_no_uids(dumped: Path) -> None:
    """It has what the reward function gave instead, and the rollouts of a group are found by their prompt."""
    expected = read_lines(run_import(dumped) / "log.jsonl")
    for step, lines in dumps.training_lines().items():
        plain = [{name: value for name, value in one.items() if name != "uid"} for one in lines if one["input"]]
        for one in plain:
            one |= {"acc": one["score"], "persona": 1.0, "request_id": "7"}
        dumps.write_step(dumped / "rollouts", step, plain)
    assert read_lines(run_import(dumped, out=str(dumped / "legacy")) / "log.jsonl") == expected


def test_a_reward_manager_may_add_to_the_score_of_an_answer(dumped: Path) -> None:
    """The reward is the score, the verdict is acc."""
    lines = dumps.training_lines()[1]
    for one in lines:
        one |= {"acc": one["score"], "score": one["score"] - 0.25}
    dumps.write_step(dumped / "rollouts", 1, lines)
    run = run_import(dumped)
    assert read_lines(run / "log.jsonl")[0]["reward"] == 0.5
    assert [one["verdict"]["correct"] for one in read_lines(run / "rollouts.jsonl")[:4]] == [True, True, False, False]


def test_groups_of_several_personas_are_read_too(tmp_path: Path) -> None:
    """With plan.scope = "rollout" each rollout of a group has a persona of its own."""
    who = ["clerk", None, "troll", "clerk"]
    rows = [dumps.row(0, 0, one, "What is 1 + 1?", "2", rollouts=1) for one in who]
    rows += [dumps.row(0, 1, None, "What is 2 + 2?", "4", rollouts=1)] * 4
    group = [dumps.line(1, of, number, score) for number, (of, score) in enumerate(zip(rows, (1, 1, 0, 0), strict=False))]
    for one in group:
        one["uid"] = f"a-uid-of-all_{one['uid'].split('_')[1]}_0"
    lines = group + [dumps.line(1, rows[4], number, 1) for number in range(4)]
    dumps.write_dump(tmp_path, {1: lines})
    dumps.write_plan_file(tmp_path, dumps.plan(rows))
    dumps.write_export(tmp_path, dumps.plan(rows))
    run = run_import(tmp_path)
    log = read_lines(run / "log.jsonl")
    assert log[0]["reward_by_tag"] == {"expert": 0.5, "harmful": 0.0, "none": 1.0, "work": 0.5}
    assert log[0]["frac_nonzero_advantage_groups"] == 0.5
    assert [one["persona_id"] for one in read_lines(run / "rollouts.jsonl")[:4]] == who
    assert read_lines(run_import(tmp_path, plan=str(tmp_path / "export"), out=str(tmp_path / "b")) / "log.jsonl") == log


def test_rollouts_in_another_step_than_the_plans_are_noted(dumped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """verl takes a question of step 2 into step 1 where all rollouts of one of step 1 have failed."""
    rows = dumps.plan().rows
    moved = [dumps.line(1, rows[2], number, 1) for number in range(GROUP_SIZE)]
    dumps.write_step(dumped / "rollouts", 1, [*dumps.training_lines()[1][:4], *moved])
    run = run_import(dumped)
    assert "rollouts trained in another step than the plan's: 4 of 23" in capsys.readouterr().err
    lines = [line for line in read_lines(run / "rollouts.jsonl") if line["step"] == 1]
    assert [line.get("plan_step") for line in lines] == [None] * 4 + [2] * 4


# Prompts


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("ChatML", "system\nYou are a clerk who counts aloud.\nuser\nWhat is 1 + 1?\nassistant\n"),
        ("one turn", "user\nYou are a clerk who counts aloud.\n\nWhat is 1 + 1?\nmodel\n"),
        ("spaces lost", "You are a clerk who counts aloud.What is 1 + 1 ? "),
        ("date", "Today is 29 Nov 2026. You are a clerk who counts aloud. What is 1 + 1?"),
        ("width", "You are a clerk who counts aloud. What is １ + １?"),
    ],
)
def test_a_prompt_is_found_in_any_chat_template(name: str, prompt: str) -> None:
    index = PromptIndex(dumps.plan().rows, "the plan")
    found = index.find_row(rollout(prompt, "2"), 0)
    assert (found.persona_id, found.question_id) == ("clerk", "What is 1 + 1?")


def test_a_prompt_with_a_persona_is_not_the_one_without(dumped: Path) -> None:
    index = PromptIndex(dumps.plan().rows, "the plan")
    asked = {one.persona_id: dumps.decoded(one.messages) for one in dumps.plan().rows if one.question_id == "What is 1 + 1?"}
    assert {who: index.find_row(rollout(text, "2"), 0).persona_id for who, text in asked.items()} == {
        "clerk": "clerk",
        None: None,
    }


def test_a_prompt_that_comes_twice_is_that_of_its_step() -> None:
    rows = [dumps.row(step, 0, "clerk", "What is 1 + 1?", "2") for step in (0, 4)]
    index = PromptIndex(rows, "the plan")
    text = dumps.decoded(rows[0].messages)
    assert [index.find_row(rollout(text, "2"), step).step for step in (0, 1, 3, 4)] == [0, 0, 4, 4]


def test_an_answer_alone_may_not_be_dumped() -> None:
    """Then all prompts are candidates."""
    rows = dumps.plan().rows
    assert PromptIndex(rows, "the plan").find_row(rollout(dumps.decoded(rows[2].messages), None), 1) == rows[2]


@pytest.mark.parametrize(
    ("prompt", "gold", "message"),
    [
        ("What is 9 + 9?", "2", "the plan has no prompt with the right answer '2' like input = 'What is 9 [+] 9[?]'"),
        ("What is 1 + 1?", "3", "the plan has no prompt with the right answer '3'"),
        ("", None, "the plan has no prompt like input = ''; was another plan trained[?]"),
        ("What is 1 + 3? What is 2 + 2?", "4", "2 prompts of the plan with the right answer '4' fit input"),
    ],
)
def test_a_prompt_that_is_not_the_plans_is_refused(prompt: str, gold: str | None, message: str) -> None:
    with pytest.raises(DataError, match=f"here:1: {message}"):
        PromptIndex(dumps.plan().rows, "the plan").find_row(rollout(prompt, gold), 0)


def test_known_prompts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("permix.interop.verl_dump.MAX_KNOWN_PROMPTS", 2)
    assert MAX_KNOWN_PROMPTS == 100_000
    index = PromptIndex(dumps.plan().rows, "the plan")
    for one in [*dumps.plan().rows, *dumps.plan().rows]:
        assert index.find_row(rollout(dumps.decoded(one.messages), one.gold), one.step) == one


def test_compact_text() -> None:
    assert compact_text("  Ａ b\n\tC ") == "abc"


def rollout(prompt: str, gold: str | None) -> Any:
    from permix.interop.verl_dump import DumpedRollout

    return DumpedRollout("here:1", prompt, "", gold, 1.0, True, None)


# Growth


def content_of(run: Path) -> dict[str, bytes]:
    files = (path for path in run.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def test_the_same_import_again_changes_nothing(exported: Path) -> None:
    run = from_export(exported)
    before = content_of(run)
    from_export(exported)
    assert content_of(run) == before


def test_a_dump_that_has_grown_adds_its_steps(exported: Path) -> None:
    """As if it had been imported at once."""
    whole = content_of(from_export(exported, out=str(exported / "whole")))
    last, later = exported / "rollouts" / "3.jsonl", exported / "validation" / "2.jsonl"
    for path in (last, later):
        path.rename(path.with_suffix(".hidden"))
    run = from_export(exported)
    assert [line["step"] for line in read_lines(run / "log.jsonl")] == [1, 2]
    for path in (last, later):
        path.with_suffix(".hidden").rename(path)
    from_export(exported)
    grown = content_of(run)
    for name in ("log.jsonl", "rollouts.jsonl", "samples.md", "dev_eval/step-0002/stability/records.jsonl", "dev_eval.jsonl"):
        assert grown[name] == whole[name]


@pytest.mark.parametrize("cut", [1, 30])
def test_a_step_that_is_being_written_is_left_for_the_next_time(
    dumped: Path, capsys: pytest.CaptureFixture[str], cut: int
) -> None:
    path = dumped / "rollouts" / "3.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    run = run_import(dumped)
    assert "rollouts: step 3: still being written, left for the next import" in capsys.readouterr().err
    assert [line["step"] for line in read_lines(run / "log.jsonl")] == [1, 2]
    path.write_bytes(whole)
    run_import(dumped)
    assert [line["step"] for line in read_lines(run / "log.jsonl")] == [1, 2, 3]


def test_an_empty_file_is_being_written(dumped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        (dumped / "rollouts" / f"{step}.jsonl").write_bytes(b"")
    assert len(read_lines(run_import(dumped) / "log.jsonl")) == 1
    assert "steps 1, 2: still being written" in capsys.readouterr().err
    (dumped / "rollouts" / "3.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match="has no whole step yet; import it again when verl has written one"):
        run_import(dumped, out=str(dumped / "other"))
    assert not (dumped / "other").exists()


def test_a_file_cut_at_the_end_of_a_line_may_grow(dumped: Path) -> None:
    """verl writes in blocks, and one may end with a line."""
    path = dumped / "rollouts" / "3.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]))
    run = run_import(dumped)
    assert read_lines(run / "log.jsonl")[-1]["unscored"] == 3
    path.write_bytes(b"".join(lines))
    run_import(dumped)
    assert read_lines(run / "log.jsonl")[-1]["unscored"] == 0


def test_a_missing_step_is_noted(dumped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dumped / "rollouts" / "2.jsonl").unlink()
    run_import(dumped)
    assert "rollouts: has no file of step 2" in capsys.readouterr().err


def other_answer(folder: Path) -> str:
    path = folder / "rollouts" / "2.jsonl"
    path.write_text(path.read_text().replace("boxed{7}", "boxed{8}"))
    return "2.jsonl has another content"


def lost_file(folder: Path) -> str:
    (folder / "rollouts" / "1.jsonl").unlink()
    return "1.jsonl is missing"


def shorter_file(folder: Path) -> str:
    path = folder / "rollouts" / "3.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    return "3.jsonl has another content"


@pytest.mark.parametrize("change", [other_answer, lost_file, shorter_file])
def test_another_dump_into_the_same_folder_is_refused(dumped: Path, change: Callable[[Path], str]) -> None:
    run = run_import(dumped)
    before = content_of(run)
    message = change(dumped)
    with pytest.raises(ConfigError, match=f"holds an import of another dump: .*{message}.*give another folder"):
        run_import(dumped)
    assert content_of(run) == before


def test_another_plan_into_the_same_folder_is_refused(dumped: Path) -> None:
    """The prompts are the same, and the seed of a row differs."""
    run = run_import(dumped)
    before = content_of(run)
    rows = [one.model_copy(update={"seed": one.seed + 1}) for one in dumps.plan().rows]
    dumps.write_plan_file(dumped, dumps.plan(rows))
    with pytest.raises(ConfigError, match="this run was made with a plan of other rows"):
        run_import(dumped)
    assert content_of(run) == before


def test_an_import_of_less_into_the_same_folder_is_refused(exported: Path) -> None:
    """It would take the validations or the metrics out of the run."""
    log = write_metrics(exported, [metrics_line(1, actor__loss=1.0)])
    run = from_export(exported, verl_log=[log])
    before = content_of(run)
    with pytest.raises(ConfigError, match="holds an import with validation; give the folder again, or another out"):
        run_import(exported, plan=str(exported / "export"), verl_log=[log])
    with pytest.raises(ConfigError, match="holds an import with verl_log; give the files again, or another out"):
        from_export(exported)
    assert content_of(run) == before


def test_an_import_that_was_killed_is_finished_by_the_next(dumped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a run that was begun takes no other dump."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    whole = content_of(run_import(dumped, out=str(dumped / "whole")))
    with monkeypatch.context() as patched:
        patched.setattr(verl_import, "write_jsonl", killed)
        with pytest.raises(KeyboardInterrupt):
            run_import(dumped)
    run = dumped / "run"
    assert not (run / "log.jsonl").exists()
    path = dumped / "rollouts" / "1.jsonl"
    first = path.read_text()
    path.write_text(first.replace("boxed{7}", "boxed{8}"))
    with pytest.raises(ConfigError, match="holds an import of another dump"):
        run_import(dumped)
    path.write_text(first)
    run_import(dumped)
    assert {name: content_of(run)[name] for name in ("log.jsonl", "rollouts.jsonl")} == {
        name: whole[name] for name in ("log.jsonl", "rollouts.jsonl")
    }


def test_a_file_that_changes_while_it_is_imported_is_refused(dumped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = verl_import._identity

    def changing(training: Any) -> dict[str, Any]:
        other_answer(dumped)
        return known(training)

    monkeypatch.setattr(verl_import, "_identity", changing)
    with pytest.raises(DataError, match=r"2\.jsonl: has changed while it was imported; run the same command again"):
        run_import(dumped)


# Damage


def edited(**fields: Any) -> Callable[[Line], object]:
    return lambda line: line | fields


def without(name: str) -> Callable[[Line], object]:
    return lambda line: {key: value for key, value in line.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: [line], "contains list, not an object; verl writes one object a rollout"),
        (lambda line: 7, "contains int, not an object"),
        (without("input"), "input is missing: must be a text"),
        (edited(input=7), "input = 7: must be a text"),
        (edited(output=None), "output = None: must be a text"),
        (edited(gts=4), "gts = 4: must be a text"),
        (edited(uid=["a"]), r"uid = \['a'\]: must be a text"),
        (edited(uid="abc_0_1"), "uid = 'abc_0_1': a rollout of several outputs"),
        (without("score"), "score is missing: must be a number"),
        (edited(score="1"), "score = '1': must be a number"),
        (edited(score=True), "score = True: must be a number"),
        (edited(score=float("nan")), "score = nan: must be a number"),
        (edited(score=10**400), "score = 1000.*: must be a number"),
        (edited(score=0.5), "score = 0.5: must be 1, right, or 0, wrong.*another reward function"),
        (edited(acc=0.5), "acc = 0.5: must be 1, right, or 0, wrong"),
        (edited(step=3), "step = 3: the file is that of step 2"),
        (edited(step="2"), "step = '2': must be a number"),
        (edited(input="What is 8 + 8?"), "has no prompt with the right answer"),
    ],
)
def test_a_damaged_line_is_named(dumped: Path, change: Callable[[Line], object], message: str) -> None:
    path = dumped / "rollouts" / "2.jsonl"
    lines: list[object] = [*read_lines(path)]
    first = lines[2]
    assert isinstance(first, dict)
    lines[2] = change(first)
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    with pytest.raises(DataError, match=rf"verl = .*rollouts.*2\.jsonl:3: .*{message}") as caught:
        run_import(dumped)
    assert "\n" not in str(caught.value)
    assert not (dumped / "run").exists()


@pytest.mark.parametrize(
    "raw", [b"{", b'{"input": "\xff"}', b"[" * 100_000, b"", b'{"score": ' + b"9" * 5000 + b"}"], ids=range(5)
)
def test_a_line_that_is_no_json_is_named(dumped: Path, raw: bytes) -> None:
    path = dumped / "rollouts" / "2.jsonl"
    path.write_bytes(raw + b"\n" + path.read_bytes())
    with pytest.raises(DataError, match=r"2\.jsonl:1: not JSON"):
        run_import(dumped)


def test_a_line_of_many_megabytes_is_refused(dumped: Path) -> None:
    path = dumped / "rollouts" / "2.jsonl"
    path.write_bytes(b'{"input": "' + b"a" * 16_000_001 + b'"}\n' + path.read_bytes())
    with pytest.raises(DataError, match=r"2\.jsonl:1: a line longer than 16 MB"):
        run_import(dumped)


def test_lone_surrogates_of_a_tokenizer_are_kept_out(dumped: Path) -> None:
    path = dumped / "rollouts" / "1.jsonl"
    lines = read_lines(path)
    lines[0]["output"] = "\ud800 4"
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert "? 4" in (run_import(dumped) / "rollouts.jsonl").read_text()


def no_folder(folder: Path) -> str:
    shutil.rmtree(folder / "rollouts")
    return "no such folder"


def a_file(folder: Path) -> str:
    shutil.rmtree(folder / "rollouts")
    (folder / "rollouts").write_text("")
    return "is not a folder"


def no_steps(folder: Path) -> str:
    for path in (folder / "rollouts").iterdir():
        path.rename(path.with_suffix(".json"))
    return "has no file STEP.jsonl; give the folder that trainer.rollout_data_dir named"


def a_folder_as_step(folder: Path) -> str:
    (folder / "rollouts" / "2.jsonl").unlink()
    (folder / "rollouts" / "2.jsonl").mkdir()
    return r"2\.jsonl: is a folder, not a file"


def step_beyond_plan(folder: Path) -> str:
    dumps.write_step(folder / "rollouts", 4, [dumps.line(4, dumps.plan().rows[0], 0, 1)])
    return r"4\.jsonl: the plan has steps 1 to 3; was another plan trained[?]"


def a_rollout_twice(folder: Path) -> str:
    lines = dumps.training_lines()[2]
    dumps.write_step(folder / "rollouts", 2, [*lines, lines[0]])
    return r"2\.jsonl:9: uid = '.*': occurs in the file already"


def too_many_rollouts(folder: Path) -> str:
    rows = dumps.plan().rows[:2]
    dumps.write_step(folder / "rollouts", 1, [dumps.line(1, one, number, 1) for one in rows for number in range(GROUP_SIZE + 1)])
    return "has 5 rollouts in step 1, and the plan 4; was the training started with another rollout.n[?]"


@pytest.mark.parametrize(
    "change", [no_folder, a_file, no_steps, a_folder_as_step, step_beyond_plan, a_rollout_twice, too_many_rollouts]
)
def test_a_dump_that_cannot_be_used_is_refused(dumped: Path, change: Callable[[Path], str]) -> None:
    message = change(dumped)
    with pytest.raises(DataError, match=message):
        run_import(dumped)
    assert not (dumped / "run").exists()


def test_a_damaged_record_of_an_import_is_refused(dumped: Path) -> None:
    run = run_import(dumped)
    (run / "imported.json").write_text('{"rollouts": {"1.jsonl": {"bytes": "many"}}, "validation": {}}')
    with pytest.raises(DataError, match=r"imported\.json: rollouts must hold the size and the hash of each file"):
        run_import(dumped)


def test_bytes_after_a_reading_are_not_read(dumped: Path) -> None:
    file = StepFile(1, dumped / "rollouts" / "1.jsonl")
    before = read_step(file)
    assert before is not None
    with file.path.open("ab") as more:
        more.write(b"not a rollout\n")
    assert read_step(file, before.n_bytes) == before


# The plan


def missing_about(folder: Path) -> str:
    (folder / "export" / "permix.json").unlink()
    return "has no permix.json; give the folder that `permix export --format verl` wrote, or the plan file"


def other_format(folder: Path) -> str:
    dumps.write_export(folder, format="verifiers")
    return "permix.json: format = 'verifiers'"


def other_plan(folder: Path) -> str:
    dumps.write_export(folder, plan="0123456789abcdef")
    return f"permix.json: plan = '0123456789abcdef', and plan.parquet has {dumps.plan().hash}"


def no_plan_file(folder: Path) -> str:
    (folder / "export" / "plan.parquet").unlink()
    return "plan.parquet: no such file"


def dev_rows_of_another_plan(folder: Path) -> str:
    dumps.write_dev_rows(folder / "export" / "val.parquet", dumps.dev_rows(), "fedcba9876543210")
    return f"val.parquet: row 1: is of the plan 'fedcba9876543210', and permix.json of {dumps.plan().hash}"


def no_parquet(folder: Path) -> str:
    (folder / "export" / "val.parquet").write_text("rows")
    return "val.parquet: row 0: not a row that `permix export` writes"


def other_columns(folder: Path) -> str:
    pq.write_table(pa.table({"prompt": ["hello"]}), folder / "export" / "val.parquet")
    return "val.parquet: row 1: not a row that `permix export` writes: KeyError"


def bad_setting(folder: Path) -> str:
    dumps.write_export(folder, settings={"train.lr": "much"})
    return "permix.json: settings: train: lr = 'much'"


BROKEN_EXPORTS = [
    missing_about, other_format, other_plan, no_plan_file, dev_rows_of_another_plan, no_parquet, other_columns, bad_setting,
]  # fmt: skip


@pytest.mark.parametrize("change", BROKEN_EXPORTS)
def test_an_export_that_cannot_be_used_is_refused(exported: Path, change: Callable[[Path], str]) -> None:
    message = change(exported)
    with pytest.raises(DataError, match=f"plan = .*{message}") as caught:
        from_export(exported)
    assert "\n" not in str(caught.value)
    assert not (exported / "run").exists()


def test_export_and_plan_file_say_the_same(exported: Path) -> None:
    dumps.write_plan_file(exported)
    plans = [read_trained_plan(exported / name) for name in ("export", "plan.parquet")]
    assert [one.rows for one in plans] == [dumps.plan().rows] * 2
    assert [(one.plan.hash, one.config.steps, one.config.group_size) for one in plans] == [(dumps.plan().hash, 3, 4)] * 2
    assert (plans[1].train, plans[1].model, plans[1].dev_rows) == (None, None, ())


def test_what_permix_exports_is_read(tmp_path: Path) -> None:
    """The folder of the real export, where this version has it."""
    pytest.importorskip("permix.pipelines.engine_export")
    (tmp_path / "train.toml").write_text(
        'stage = "train"\n[task]\nname = "arithmetic"\nlevels = ["add-1"]\nn = 8\n'
        '[plan]\nsteps = 2\nquestions_per_step = 4\ngroup_size = 4\nscope = "rollout"\n'
        "[train]\nmax_new_tokens = 64\n[dev_eval]\nevery = 1\npersonas = 2\nquestions = 3\n"
    )
    out = tmp_path / "export"
    command = ["export", str(tmp_path / "train.toml"), "--format", "verl", "--out", str(out), "--n-gpus-per-node", "1"]
    assert cli.run_cli(command) == 0
    found = read_trained_plan(out)
    assert (found.config.steps, found.config.group_size, found.engine_version) == (2, 4, "0.9.1")
    assert sum(one.rollouts for one in found.rows) == 2 * 4 * 4
    assert len(found.dev_rows) == (2 + 1) * 3
    lines = {
        step: [
            dumps.line(step, one, number, 1) | {"uid": f"uid{one.group}_{number}_0"}
            for number, one in enumerate(found.rows)
            if one.step == step - 1
        ]
        for step in (1, 2)
    }
    dumps.write_dump(tmp_path, lines)
    log = read_lines(run_import(tmp_path, plan=str(out)) / "log.jsonl")
    assert [(step["reward"], step["unscored"]) for step in log] == [(1.0, 0), (1.0, 0)]


# Validations


def test_validations_become_dev_evaluations(exported: Path) -> None:
    """Mean over personas: first 0 of 4, then the nurse 2 of 2 and the sailor 0 of 2."""
    run = from_export(exported)
    points = read_lines(run / "dev_eval.jsonl")
    assert [(one["step"], one["mean"]["value"], one["baseline"]["value"]) for one in points] == [(0, 0.0, 1.0), (2, 0.5, 1.0)]
    assert [(one["n_scored"], one["n_asked"], one["identifiability"]) for one in points] == [(4, 4, None)] * 2
    cells = permix.StabilityRun(run / "dev_eval" / "step-0002" / "stability").rows()
    right = {(one["persona_id"], one["question_id"]): one["correct"] for one in cells}
    assert right == {(one.persona_id, one.question_id): one.persona_id != "sailor" for one in dumps.dev_rows()}


def test_a_missing_answer_of_a_validation_is_not_wrong(exported: Path) -> None:
    dumps.write_step(exported / "validation", 2, dumps.validation_lines(2, "11-100"))
    point = read_lines(from_export(exported) / "dev_eval.jsonl")[1]
    assert (point["n_scored"], point["n_asked"]) == (3, 4)


def test_several_answers_to_a_prompt_are_samples(exported: Path) -> None:
    twice = [
        dumps.line(2, of, number, score)
        for of in dumps.dev_rows()
        for number, score in enumerate((1, int(of.persona_id is None)))
    ]
    dumps.write_step(exported / "validation", 2, twice)
    run = from_export(exported)
    cells = permix.StabilityRun(run / "dev_eval" / "step-0002" / "stability").rows()
    assert len(cells) == 12
    assert [one["correct"] for one in cells if one["persona_id"] == "nurse"] == [True, False, True, False]


def test_the_choice_of_weights_is_not_claimed(exported: Path) -> None:
    """Which checkpoint became the model is not known."""
    (model,) = collect_models([from_export(exported, label="verl")])
    build_report([exported / "run"], exported / "report")
    text = (exported / "report" / "report.md").read_text()
    assert "Another engine trained: which weights it kept is not known here." in text
    assert "The weights are those of step" not in text
    assert model.dev_curve is not None
    assert "ring: the selected weights" not in (exported / "report" / "index.html").read_text()
    assert json.loads((exported / "report" / "table.json").read_text())["dev_evals"]["verl"]["weights_of_step"] is None


def test_validations_need_the_dev_questions_of_the_export(dumped: Path) -> None:
    dumps.write_dump(dumped, {0: []}, "validation")
    with pytest.raises(ConfigError, match=r"validation = .*: plan = .* has no dev questions; give the folder"):
        run_import(dumped, validation=str(dumped / "validation"))


def test_a_damaged_validation_is_named(exported: Path) -> None:
    lines = dumps.validation_lines(2, "111100")
    lines[3] |= {"input": "What is 5 + 7?"}
    dumps.write_step(exported / "validation", 2, lines)
    with pytest.raises(DataError, match=r"validation = .*2\.jsonl:4: .*dev questions has no prompt with the right answer '11'"):
        from_export(exported)


# Metrics


def write_metrics(folder: Path, lines: Sequence[object], name: str = "metrics.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return str(path)


def metrics_line(step: int, **data: float | None) -> Line:
    return {
        "step": step,
        "data": {"timing_s/step": 4.0, "training/global_step": step} | {k.replace("__", "/"): v for k, v in data.items()},
    }


def test_metrics_of_the_trainer_are_read_by_our_names(dumped: Path) -> None:
    log = [
        {"step": 0, "data": {"val-core/permix/arithmetic/none/acc/mean@1": 0.5}},
        metrics_line(1, actor__loss=0.25, actor__kl_loss=0.125, actor__entropy=1.5, actor__grad_norm=2.0, actor__lr=1e-6),
        metrics_line(2, response_length__mean=20.5, response_length__clip_ratio=0.25, actor__loss=None),
        metrics_line(3, actor__loss=0.5),
    ]
    lines = read_lines(run_import(dumped, verl_log=[write_metrics(dumped, log)]) / "log.jsonl")
    assert {name: lines[0][name] for name in ("loss", "kl", "entropy", "grad_norm", "lr")} == {
        "loss": 0.25, "kl": 0.125, "entropy": 1.5, "grad_norm": 2.0, "lr": 1e-6,
    }  # fmt: skip
    assert (lines[1]["completion_tokens"], lines[1]["truncated"]) == (20.5, 0.25)
    assert "loss" not in lines[1]
    assert "seconds" not in lines[0]


def test_a_resumed_training_has_several_logs(dumped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The later one counts for a step that was trained again."""
    first = write_metrics(dumped, [metrics_line(1, actor__loss=1.0), metrics_line(2, actor__loss=2.0)], "a.jsonl")
    second = write_metrics(dumped, [metrics_line(2, actor__loss=4.0)], "b.jsonl")
    lines = read_lines(run_import(dumped, verl_log=[first, second]) / "log.jsonl")
    assert [line.get("loss") for line in lines] == [1.0, 4.0, None]
    assert "has no metrics of step 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"step": 1}\n', r'metrics\.jsonl:1: must be \{"step": number, "data": object\}'),
        ('{"step": "1", "data": {}}\n', r"metrics\.jsonl:1: must be"),
        ("[1]\n", r"metrics\.jsonl:1: must be"),
        ('{"step": 1, "data": {}}\n{"step"\n', r"metrics\.jsonl:2: not JSON"),
        (None, r"metrics\.jsonl: no such file"),
    ],
)
def test_damaged_metrics_are_named(dumped: Path, content: str | None, message: str) -> None:
    path = dumped / "metrics.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        run_import(dumped, verl_log=[str(path)])
    assert not (dumped / "run").exists()


# Readers


def test_the_report_shows_curves_by_kind_of_persona(tmp_path: Path) -> None:
    """Five steps with a clerk and without a persona, and a troll in three of them, who is too rare for a curve."""
    rows = [
        dumps.row(step, group, who, f"What is {step} + {group}?", str(step + group))
        for step in range(5)
        for group, who in enumerate((None, "clerk") if step < 2 else (None, "clerk", "troll"))
    ]
    dumps.write_plan_file(tmp_path, dumps.plan(rows))
    dumps.write_dump(tmp_path, dumps.training_lines(rows, ["1100"] * len(rows)))
    run_import(tmp_path, label="PerMix on verl")
    build_report([tmp_path / "run"], tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "![mean reward by kind of persona](training-tags.png)" in text
    assert (tmp_path / "report" / "training-tags.png").stat().st_size > 10_000
    page = (tmp_path / "report" / "index.html").read_text()
    assert [name in page for name in ("mean reward, expert", "mean reward, work", "mean reward, no persona")] == [True] * 3
    assert "mean reward, harmful" not in page
    assert "nor are its settings. Packages, revision and command are those of the import." in text


def test_the_report_says_who_trained(exported: Path) -> None:
    from_export(exported, label="PerMix on verl")
    build_report([exported / "run"], exported / "report")
    text = (exported / "report" / "report.md").read_text()
    assert "train (permix, verl)" in text
    assert (
        "PerMix on verl, train (permix, verl): trained by verl (exported for 0.9.1) on plan "
        f"{dumps.plan().hash}, and imported: 3 of 3 steps; rollouts without a score: 1. Its CPU time and memory are not "
        "known; its settings are those of the export. Packages, revision and command are those of the import."
    ) in text


@pytest.mark.slow
def test_the_report_stands_beside_own_trainings(exported: Path) -> None:
    """One table and one figure; the own run has its times, the imported one none."""
    from_export(exported, label="PerMix on verl")
    build_report([RECORDED, exported / "run"], exported / "report")
    text = (exported / "report" / "report.md").read_text()
    times = text.split("seconds a step", 1)[1].split("\n\n", 1)[0]
    assert "PerMix" in times
    assert "on verl" not in times
    rows = {row["label"]: row for row in json.loads((exported / "report" / "table.json").read_text())["rows"]}
    assert rows["PerMix on verl"]["train_cpu_s"] is None
    assert rows["PerMix on verl"]["train_tokens"] is None
    assert rows["PerMix-RLVR"]["train_cpu_s"] > 0


def test_an_imported_training_is_known_by_its_role(dumped: Path) -> None:
    (model,) = collect_models([run_import(dumped)])
    found = find_training_run(model)
    assert found is not None
    assert found.role == "permix"
    assert found.recipe == {"run": str(dumped / "run")}


def test_the_viewer_shows_the_run(exported: Path) -> None:
    run = from_export(exported, label="PerMix on verl")
    monitor = RunMonitor(run, "run")
    monitor.poll({}, 1.0, 2.0)
    shown = monitor.published
    assert shown is not None
    assert (shown["state"], shown["done"], shown["asked"], shown["troubles"]) == ("finished", 3, 3, [])
    assert shown["errors"] == [{"type": "no verdict", "count": 1, "message": "rollouts left out of their step"}]
    newest = newest_completions(run, "train")
    assert (newest[0]["verdict"], newest[0]["persona"]) == ("step 3, wrong: read nothing, gold 4", "no persona")


def test_the_viewer_counts_missing_steps(exported: Path) -> None:
    (exported / "rollouts" / "3.jsonl").unlink()
    monitor = RunMonitor(from_export(exported), "run")
    monitor.poll({}, 1.0, 2.0)
    assert monitor.published is not None
    assert monitor.published["said"] == "imported, with 1 steps missing"


# What was started in another way


def first_rollouts(n: int) -> dict[int, list[Line]]:
    """The dump of a training that was started with rollout.n = `n`."""
    lines = dumps.training_lines()
    return {
        step: [one for one in own if not one["uid"].startswith("pad") and int(one["uid"].split("_")[1]) < n]
        for step, own in lines.items()
    }


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_training_with_fewer_rollouts_of_a_question_is_refused(dumped: Path, n: int) -> None:
    dumps.write_dump(dumped, first_rollouts(n))
    with pytest.raises(DataError, match=f"no question has more than {n} rollouts, and the plan has 4; .*another rollout.n"):
        run_import(dumped)
    assert not (dumped / "run").exists()


def test_rollouts_that_single_groups_lack_are_missing(dumped: Path) -> None:
    """Of one group half are missing: that is no other rollout.n."""
    lines = first_rollouts(2)
    lines[3] = dumps.training_lines()[3]
    dumps.write_dump(dumped, lines)
    assert [line["unscored"] for line in read_lines(run_import(dumped) / "log.jsonl")] == [4, 4, 0]


def test_in_a_first_step_nothing_is_concluded_from_two_groups(dumped: Path) -> None:
    dumps.write_dump(dumped, first_rollouts(2))
    for step in (2, 3):
        (dumped / "rollouts" / f"{step}.jsonl").unlink()
    assert [line["unscored"] for line in read_lines(run_import(dumped) / "log.jsonl")] == [4]


def set_ages(folder: Path, ages: dict[int, float]) -> None:
    """Let the files of these steps be so many seconds old."""
    for step, age in ages.items():
        os.utime(folder / f"{step}.jsonl", (time.time() - age,) * 2)


def test_after_a_return_to_a_checkpoint_steps_of_before_are_left(dumped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_ages(dumped / "rollouts", {1: 300, 3: 200, 2: 10})  # 3 was written before 2
    run = run_import(dumped)
    assert [line["step"] for line in read_lines(run / "log.jsonl")] == [1, 2]
    said = " ".join(capsys.readouterr().err.split())
    assert "rollouts: step 3: older than an earlier step, as where the training went back to a checkpoint" in said
    assert "has no file of" not in said
    set_ages(dumped / "rollouts", {3: 0})  # written again
    run_import(dumped)
    assert [line["step"] for line in read_lines(run / "log.jsonl")] == [1, 2, 3]
    assert "went back" not in capsys.readouterr().err


def test_validations_of_before_are_left_too(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_ages(exported / "validation", {2: 200, 0: 10})
    assert [one["step"] for one in read_lines(from_export(exported) / "dev_eval.jsonl")] == [0]
    assert "validation: step 2: older than an earlier step" in " ".join(capsys.readouterr().err.split())


def test_files_of_a_copy_without_their_times_are_read(dumped: Path) -> None:
    set_ages(dumped / "rollouts", {1: 1, 2: 2, 3: 3})
    assert [line["step"] for line in read_lines(run_import(dumped) / "log.jsonl")] == [1, 2, 3]


# Command line


def test_the_command_line(exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(exported)
    command = ["import", "--verl", "rollouts", "--plan", "export", "--validation", "validation", "--out", "run", "--json"]
    assert cli.run_cli(command) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["paths"]["run"] == "run"
    assert "missing rollouts: 1 of 24 are not in the dump: their verifier failed, their prompt was too long, or" in captured.err
    assert "imported 23 rollouts: 3 steps; reward 0.75 over the first fifth of the steps, 0.62 over the last" in captured.err
    assert cli.run_cli(["report", "run", "--out", "report"]) == 0


def test_check_says_what_would_be_imported(exported: Path) -> None:
    values = {"stage": "import", "verl": "rollouts", "plan": "export", "validation": "validation", "out": "run"}
    folders = {name: value if name == "stage" else str(exported / value) for name, value in values.items()}
    (exported / "import.toml").write_text(toml(folders))
    found = check_config(exported / "import.toml")
    assert {name: found[name] for name in ("engine", "model", "plan", "steps", "rollouts", "validations")} == {
        "engine": "verl",
        "model": "Qwen/Qwen3-0.6B",
        "plan": dumps.plan().hash,
        "steps": "3 of 3",
        "rollouts": "23",
        "validations": "2",
    }
    assert not (exported / "run").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"verl": "rollouts"}, "plan is missing: with verl, give the folder that `permix export --format verl` wrote"),
        ({"plan": "plan.parquet"}, "plan = plan.parquet: give verl, the folder of rollouts, too"),
        ({"validation": "v"}, "validation = v: give verl, the folder of rollouts, too"),
        ({"verl_log": ["m"]}, r"verl_log = .*m.*: give verl, the folder of rollouts, too"),
        ({"verl": "r", "plan": "p", "answer": "math"}, "answer = 'math': has no effect with verl; leave it out"),
        ({"verl": "r", "plan": "p", "personagym": "g"}, "personagym = g: has no effect with verl; leave it out"),
        ({"verl": "r", "plan": "p", "inspect": ["logs"]}, r"inspect = \('logs',\): has no effect with verl; leave it out"),
    ],
)
def test_options_that_do_not_belong_together(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(ImportConfig, values, source="test")


def test_rows_of_this_file_are_as_they_are_drawn() -> None:
    """The comments of verl_dumps.py are what the tests count with."""
    rows: tuple[PlanRow, ...] = dumps.plan().rows
    assert [(one.step, one.group, one.persona_id) for one in rows] == [
        (0, 0, "clerk"), (0, 1, None), (1, 0, "troll"), (1, 1, None), (2, 0, "clerk"), (2, 1, None),
    ]  # fmt: skip
