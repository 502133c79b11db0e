"""A plan in verifiers' own evaluation, against a server on this machine: what is asked, and what the answers are worth."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import permix
from permix.config import ExportConfig
from permix.errors import ConfigError, DataError
from permix.pipelines.engine_export import export_plan
from permix.plan import Plan, read_plan, write_plan
from permix.types import Message, PlanRow
from tests.servers import OpenAIServer, Raw, error, openai_server

vf: Any = pytest.importorskip("verifiers.v1", reason="verifiers is not installed: make test-engines")

PACKAGE = """
from pathlib import Path
from permix.interop.verifiers_taskset import InProcessHarness, PlanTaskset

class Plan(PlanTaskset):
    plan_file = Path(__file__).with_name("plan.parquet")

__all__ = ["InProcessHarness", "Plan"]
"""


def message(role: str, content: str) -> Message:
    return Message(role=role, content=content)


def row(step: int, group: int, *messages: Message, gold: str = "5", **fields: Any) -> PlanRow:
    question_id = f"q-{step}-{group}"
    return PlanRow(
        **{
            "step": step, "group": group, "rollouts": 2, "task": "arithmetic", "question_id": question_id, "persona_id": None,
            "question_hash": question_id, "seed": 10 * step + group, "messages": messages, "gold": gold, **fields,
        }
    )  # fmt: skip


SAILOR: dict[str, Any] = {"persona_id": "sailor", "persona_tags": ("character", "sea")}

ROWS = (
    row(0, 0, message("system", "You are a sailor."), message("user", "What is 2 + 3?"), **SAILOR),
    row(0, 1, message("user", "What is 1 + 4?")),
    row(1, 0, message("user", "You are a sailor.\n\nWhat is 5 + 0?"), **SAILOR),  # a template with the question in it
    row(
        1, 1, message("system", "You are a sailor."), message("user", "Can you add?"), message("assistant", "Aye."),
        message("user", "What is 4 + 1?"), **SAILOR,
    ),
    row(2, 0, message("system", ""), message("user", "What is 3 + 2?")),
)  # fmt: skip


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write a package with these rows into Python's path; returns its id."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(rows: Sequence[PlanRow] = ROWS, init: str = PACKAGE) -> str:
        name = f"permix_test_{abs(hash(tmp_path))}"  # a module is imported once a process
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(init)
        write_plan(Plan(tuple(rows), {}), tmp_path / name / "plan.parquet")
        return name.replace("_", "-")

    return write


def reply(text: str, finish: str = "stop", **more: Any) -> Raw:
    """A completion with every field that verifiers reads."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **more}, "finish_reason": finish}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    body = {"id": "x", "object": "chat.completion", "created": 1, "model": "served", "choices": [choice], "usage": usage}
    return Raw(json.dumps(body).encode())


def evaluate(env_id: str, server: OpenAIServer, out: Path, rollouts: int = 1, **taskset: Any) -> dict[str, list[Any]]:
    """Evaluate with verifiers' runner, one rollout after the other; returns the traces of each task by its key."""
    from verifiers.v1.cli.eval.runner import run_eval
    from verifiers.v1.configs.cli.eval import EvalConfig

    agent = {"harness": {"id": env_id}, "runtime": {"type": "subprocess"}}
    config = EvalConfig.model_validate(
        {
            "model": "served", "push": False, "rich": None, "max_concurrent": 1, "num_rollouts": rollouts, "output_dir": out,
            "env": {"taskset": {"id": env_id, **taskset}, "agent": agent},
            "client": {"base_url": server.base_url, "api_key_var": "PATH"},
            "sampling": {"temperature": 0.5, "max_completion_tokens": 17},
        }
    )  # fmt: skip
    traces: dict[str, list[Any]] = {}
    for episode in asyncio.run(run_eval(config)):
        for trace in episode.traces:
            traces.setdefault(trace.task.key, []).append(trace)
    return traces


def score(trace: Any) -> float | None:
    """The reward of a trace; None if it has none."""
    reward = trace.rewards.get("right")
    return None if reward is None else reward.score


def test_the_messages_of_every_row_are_sent_as_they_are_in_the_plans_order(
    tmp_path: Path, environment: Callable[..., str]
) -> None:
    with openai_server(lambda body, n, headers: reply("\\boxed{5}")) as server:
        evaluate(environment(), server, tmp_path / "out")
        assert [asked.body["messages"] for asked in server.asked] == [list(one.messages) for one in ROWS]
    for asked in server.asked:
        assert (asked.body["max_tokens"], asked.body["temperature"], asked.body["model"]) == (17, 0.5, "served")


def test_right_is_1_wrong_is_0_and_the_metrics_are_by_kind_of_persona(tmp_path: Path, environment: Callable[..., str]) -> None:
    # Two rollouts of each row, one after the other: the first is right, the second wrong; of the last row both have no answer.
    replies = ["\\boxed{5}", "\\boxed{6}"] * 4 + ["", "I will not count."]
    with openai_server(lambda body, n, headers: reply(replies[n])) as server:
        traces = evaluate(environment(), server, tmp_path / "out", rollouts=2)
    assert list(traces) == ["0/0", "0/1", "1/0", "1/1", "2/0"]
    assert [[score(one) for one in own] for own in traces.values()] == [[1.0, 0.0]] * 4 + [[0.0, 0.0]]
    assert [one.metrics for one in traces["0/0"]] == [{"right/character": x, "right/sea": x} for x in (1.0, 0.0)]
    assert [one.metrics for one in traces["0/1"]] == [{"right/none": x} for x in (1.0, 0.0)]
    data = traces["1/1"][0].task.data
    assert (data.gold, data.persona_id, data.step, data.group, data.seed) == ("5", "sailor", 1, 1, 11)
    assert all(trace.ok for own in traces.values() for trace in own)


@pytest.mark.parametrize("opens", [True, False])
def test_thinking_that_the_prompt_opened_and_the_limit_cut_off_is_no_answer(
    tmp_path: Path, environment: Callable[..., str], opens: bool
) -> None:
    rows = [row(0, group, message("user", "What is 2 + 3?")) for group in range(4)]
    replies = [
        reply("2 + 3 is 5, but", "length"),
        reply("Hm.</think>It is 5.", "length"),
        reply("It is 5.", "length", reasoning_content="Hm."),
        reply("It is 5."),
    ]
    with openai_server(lambda body, n, headers: replies[n]) as server:
        traces = evaluate(environment(rows), server, tmp_path / "out", opens_thinking=opens)
    assert [score(one) for (one,) in traces.values()] == [0.0 if opens else 1.0, 1.0, 1.0, 1.0]


def test_a_persona_without_tags_is_not_no_persona(tmp_path: Path, environment: Callable[..., str]) -> None:
    rows = (row(0, 0, message("system", "You are a poet."), message("user", "What is 2 + 3?"), persona_id="poet"),)
    with openai_server(lambda body, n, headers: reply("\\boxed{5}")) as server:
        traces = evaluate(environment(rows), server, tmp_path / "out")
    assert [one.metrics for one in traces["0/0"]] == [{"right/untagged": 1.0}]


SCORER = """
def picky(answer, gold):
    if "?" in answer:
        raise ValueError("a question is no answer")
    return gold in answer
"""


@pytest.fixture
def picky_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[PlanRow, ...]:
    (tmp_path / "picky_scorer.py").write_text(SCORER)
    monkeypatch.chdir(tmp_path)
    return tuple(one.model_copy(update={"task": "own-picky_scorer:picky"}) for one in ROWS[:3])


def test_an_answer_that_cannot_be_verified_is_an_error_and_has_no_reward(
    tmp_path: Path, environment: Callable[..., str], picky_rows: tuple[PlanRow, ...]
) -> None:
    replies = ["5", "why?", "6"]
    with openai_server(lambda body, n, headers: reply(replies[n])) as server:
        traces = evaluate(environment(picky_rows), server, tmp_path / "out", own_task="own-picky_scorer:picky")
    assert [score(one) for (one,) in traces.values()] == [1.0, None, 0.0]
    (failed,) = traces["0/1"]
    assert failed.has_error  # prime-rl leaves such a trace out of its group
    assert failed.last_error.type == "TaskError"
    assert "the answer could not be verified" in failed.last_error.message
    assert "a question is no answer" in failed.last_error.message
    assert failed.metrics == {}


def test_the_module_of_a_task_of_ones_own_is_imported_only_if_it_is_named(
    tmp_path: Path, environment: Callable[..., str], picky_rows: tuple[PlanRow, ...]
) -> None:
    (tmp_path / "picky_scorer.py").write_text("raise SystemExit('imported')")
    with pytest.raises(ConfigError, match=r"^own_task = '': .* give own_task = \"own-picky_scorer:picky\" too, if you trust"):
        load_tasks(environment(picky_rows))


def test_a_request_that_fails_for_a_moment_is_sent_again_and_one_that_fails_for_good_has_no_reward(
    tmp_path: Path, environment: Callable[..., str]
) -> None:
    script = [error(503), reply("\\boxed{5}"), error(400)]
    with openai_server(lambda body, n, headers: script[n]) as server:
        traces = evaluate(environment(ROWS[:2]), server, tmp_path / "out")
    assert len(server.asked) == 3
    assert [score(one) for (one,) in traces.values()] == [1.0, None]
    assert traces["0/0"][0].ok
    assert traces["0/1"][0].last_error.type == "ProviderError"


def load_tasks(env_id: str, **options: Any) -> list[Any]:
    from verifiers.v1.utils.loaders import load_taskset, taskset_config_type

    return list(load_taskset(taskset_config_type(env_id).model_validate({"id": env_id, **options})))


def test_keys_are_unique_and_those_of_the_plan(environment: Callable[..., str]) -> None:
    tasks = load_tasks(environment())
    assert [(task.key, task.data.id, task.data.idx) for task in tasks] == [
        ("0/0", "0/0", 0), ("0/1", "0/1", 1), ("1/0", "1/0", 2), ("1/1", "1/1", 3), ("2/0", "2/0", 4)
    ]  # fmt: skip


def test_spare_groups_are_left_out(environment: Callable[..., str]) -> None:
    spare = row(0, 2, message("user", "What is 0 + 5?"), spare=True)
    assert [task.key for task in load_tasks(environment((*ROWS[:2], spare)))] == ["0/0", "0/1"]


def test_another_plan_may_be_named(tmp_path: Path, environment: Callable[..., str]) -> None:
    write_plan(Plan(ROWS[:1], {}), tmp_path / "other.parquet")
    assert [task.key for task in load_tasks(environment(), plan=str(tmp_path / "other.parquet"))] == ["0/0"]


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ((ROWS[0], ROWS[0].model_copy(update={"seed": 9})), {}, "its rollouts have prompts of their own"),
        ((row(0, 0, message("tool", "x")),), {}, "step 0, group 0: role = 'tool': valid roles: system, user, assistant"),
        ((row(0, 0, message("system", "x")),), {}, "step 0, group 0: has no user message"),
        ((row(0, 0),), {}, "step 0, group 0: has no user message"),
        (ROWS, {"plan": "none.parquet"}, "none.parquet: no such file"),
        (ROWS, {"dev": True}, "dev = true: this package has no dev evaluation; give --env.taskset.plan"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_asked(
    environment: Callable[..., str], rows: Sequence[PlanRow], options: dict[str, Any], words: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=re.escape(words)):
        load_tasks(environment(rows), **options)


def test_a_package_without_a_plan_says_how_to_name_one(environment: Callable[..., str]) -> None:
    bare = PACKAGE.replace('plan_file = Path(__file__).with_name("plan.parquet")', "pass")
    with pytest.raises(ConfigError, match=r"this package has no plan; give --env\.taskset\.plan"):
        load_tasks(environment(init=bare))


# The exported package

TRAINING = """
stage = "train"
[task]
name = "arithmetic"
levels = ["add-1"]
n = 40
[plan]
steps = 2
questions_per_step = 2
group_size = 2
mix = 0.5
[train]
scale_rewards = "none"
max_new_tokens = 64
[dev_eval]
every = 2
personas = 2
questions = 2
metric = "worst"
characters = 0
"""


@pytest.fixture(params=["default"])
def thinking(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def exported(tmp_path: Path, thinking: str) -> Path:
    model = "" if thinking == "default" else f'[model]\nname = "org/model"\nthinking = "{thinking}"\n'
    (tmp_path / "train.toml").write_text(TRAINING + model)
    export_plan(ExportConfig(plan=tmp_path / "train.toml", format="verifiers", out=tmp_path / "package"))
    return tmp_path / "package"


def add(body: dict[str, Any], n: int, headers: object) -> Raw:
    """The right sum on every other call."""
    numbers = re.findall(r"\d+", body["messages"][-1]["content"])
    return reply(f"\\boxed{{{sum(map(int, numbers)) + n % 2}}}")


@pytest.mark.parametrize(("dev", "thinking"), [(False, "default"), (True, "default"), (False, "off")], indirect=["thinking"])
def test_the_exported_package_runs_in_verifiers_own_command(exported: Path, dev: bool, thinking: str) -> None:
    """It is imported by its id, its harness is found, and half of the answers are right."""
    (module,) = (one.name for one in exported.iterdir() if one.is_dir())
    command = [str(Path(sys.executable).with_name("vf-eval")), "@", "eval.toml", "--no-rich", "--max-concurrent", "1"]
    env = os.environ | {"PYTHONPATH": f"{exported}{os.pathsep}{Path(permix.__file__).parents[1]}", "OPENAI_API_KEY": "x"}
    with openai_server(add) as server:
        options = ["--client.base-url", server.base_url, *(["--env.taskset.dev", "true"] if dev else [])]
        done = subprocess.run([*command, *options], cwd=exported, env=env, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        rows = read_plan(exported / module / ("dev.parquet" if dev else "plan.parquet")).rows
        assert [asked.body["messages"] for asked in server.asked] == [list(row.messages) for row in rows for _ in range(2)]
    switches = [asked.body.get("chat_template_kwargs") for asked in server.asked]
    assert switches == [{"enable_thinking": False, "thinking": False} if thinking == "off" else None] * len(switches)
    (written,) = exported.glob("outputs/*/traces.jsonl")
    episodes = [json.loads(line) for line in written.read_text().splitlines()]
    rewards = [trace["rewards"]["right"]["score"] for episode in episodes for trace in episode["traces"]]
    assert sorted(rewards) == [0.0] * len(rows) + [1.0] * len(rows)


def test_the_harness_of_the_package_is_the_default(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from verifiers.v1.utils.loaders import default_harness_id

    monkeypatch.syspath_prepend(exported)
    (module,) = (one.name for one in exported.iterdir() if one.is_dir())
    assert default_harness_id(module.replace("_", "-")) == module.replace("_", "-")
