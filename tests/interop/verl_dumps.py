"""A training of three steps that verl could have dumped, small enough to count in: a plan, its export, rollouts and validations.

    step 1   clerk: 1 + 1 right, right, wrong, wrong     nobody: 2 + 2 right four times
    step 2   troll: 1 + 3 right, wrong, wrong, failed    nobody: 1 + 1 wrong four times
    step 3   clerk: 2 + 2 right four times               nobody: 1 + 3 right, wrong, wrong, wrong

The lines have the fields and the order that verl 0.9.1 gives them, and a step with a failed verifier is filled up as there.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from permix.config import ImportConfig, OptimConfig, RolloutPlanConfig, build_config
from permix.plan import Plan, write_plan
from permix.types import Message, PlanRow, digest

PERSONAS = {"clerk": ("expert", "work"), "troll": ("harmful",), "nurse": ("expert",), "sailor": ("neutral",), None: ()}
GROUP_SIZE = 4
Line = dict[str, Any]

ASKED: tuple[tuple[int, int, str | None, str, str], ...] = (
    (0, 0, "clerk", "What is 1 + 1?", "2"),
    (0, 1, None, "What is 2 + 2?", "4"),
    (1, 0, "troll", "What is 1 + 3?", "4"),
    (1, 1, None, "What is 1 + 1?", "2"),
    (2, 0, "clerk", "What is 2 + 2?", "4"),
    (2, 1, None, "What is 1 + 3?", "4"),
)
SCORES = ("1100", "1111", "100-", "0000", "1111", "1000")
"""Of each group in the order of its rollouts; a rollout whose verifier failed is "-"."""


def messages(persona_id: str | None, question: str) -> tuple[Message, ...]:
    system = () if persona_id is None else (Message(role="system", content=f"You are a {persona_id} who counts aloud."),)
    return (*system, Message(role="user", content=question))


def row(step: int, group: int, persona_id: str | None, question: str, gold: str, rollouts: int = GROUP_SIZE) -> PlanRow:
    return PlanRow(
        step=step, group=group, rollouts=rollouts, task="arithmetic", question_id=question, question_hash=digest(question),
        persona_id=persona_id, persona_tags=PERSONAS[persona_id], seed=100 * step + group,
        messages=messages(persona_id, question), gold=gold,
    )  # fmt: skip


def plan(rows: Sequence[PlanRow] = ()) -> Plan:
    found = tuple(rows or (row(*one) for one in ASKED))
    config = RolloutPlanConfig(steps=found[-1].step + 1, questions_per_step=2, group_size=GROUP_SIZE, mix=0.5, seed=3)
    return Plan(found, {"format": "permix-plan-3", "plan": config.model_dump(mode="json")})


def dev_rows() -> list[PlanRow]:
    """Two sums under two personas and without one."""
    sums = (("What is 5 + 5?", "10"), ("What is 5 + 6?", "11"))
    asked = [(persona, *one) for persona in (None, "nurse", "sailor") for one in sums]
    return [row(0, place, *one, rollouts=1) for place, one in enumerate(asked)]


def write_plan_file(folder: Path, of: Plan | None = None) -> Path:
    path = folder / "plan.parquet"
    write_plan(of or plan(), path)
    return path


def write_export(folder: Path, of: Plan | None = None, dev: Sequence[PlanRow] = (), **about: Any) -> Path:
    """A folder as `permix export --format verl` writes it, without what a reader of rollouts does not need."""
    made = of or plan()
    out = folder / "export"
    out.mkdir(parents=True, exist_ok=True)
    write_plan(made, out / "plan.parquet")
    if dev:
        write_dev_rows(out / "val.parquet", dev, made.hash)
    settings = {f"plan.{name}": value for name, value in made.metadata["plan"].items()}
    settings |= {f"train.{name}": value for name, value in OptimConfig(lr=2e-6, seed=7).model_dump(mode="json").items()}
    fields = {
        "format": "verl", "plan": made.hash, "export": "0" * 16, "settings": settings,
        "written_against": {"verl": "0.9.1"}, "model": "Qwen/Qwen3-0.6B", "method": "permix",
    }  # fmt: skip
    (out / "permix.json").write_text(json.dumps(fields | about))
    return out


def write_dev_rows(path: Path, rows: Sequence[PlanRow], plan_hash: str) -> None:
    fields = [
        {
            "data_source": "permix/arithmetic/none",
            "prompt": [dict(message) for message in one.messages],
            "reward_model": {"style": "rule", "ground_truth": one.gold},
            "extra_info": {
                "index": index, "split": "dev", "plan": plan_hash, "step": one.step, "group": one.group, "task": one.task,
                "question_id": one.question_id, "question_hash": one.question_hash, "persona_id": one.persona_id,
                "persona_tags": list(one.persona_tags),
                "rollouts": json.dumps([{
                    "persona_id": one.persona_id, "seed": one.seed, "messages": [dict(message) for message in one.messages],
                }]),
            },
        }
        for index, one in enumerate(rows)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(fields), path)


def decoded(prompt: Iterable[Message]) -> str:
    """A prompt in ChatML after decoding without special tokens."""
    return "".join(f"{one['role']}\n{one['content']}\n" for one in prompt) + "assistant\n"


def line(step: int, of: PlanRow, number: int, score: float, **fields: Any) -> Line:
    """A line of a training's dump: rollout `number` of a group."""
    answer = of.gold if score else "7"
    values = {
        "input": decoded(of.messages), "output": f"\\boxed{{{answer}}}", "gts": of.gold, "score": float(score), "step": step,
        "uid": f"{prompt_uid(step, of)}_{number}_0",
    }  # fmt: skip
    return values | fields


def prompt_uid(step: int, of: PlanRow) -> str:
    """As verl draws it, but the same in every run; the order of uids is not that of the groups."""
    name = digest("uid", str(step), str(of.group), str(of.persona_id), of.question_id, length=32)
    return f"{name[:8]}-{name[8:12]}-4{name[13:16]}-a{name[17:20]}-{name[20:]}"


def padding(step: int, number: int = 0, gold: str = "2") -> Line:
    """What verl adds to a step whose rollouts cannot be shared evenly by the GPUs."""
    return {"input": "", "output": "", "gts": gold, "score": 0.0, "step": step, "uid": f"pad{'c0ffee' * 5}ab_{number}_0"}


def training_lines(rows: Sequence[PlanRow] = (), scores: Sequence[str] = SCORES) -> dict[int, list[Line]]:
    """The lines of each step, sorted by uid as verl does; a step with a failed rollout is filled up."""
    found: dict[int, list[Line]] = {}
    for of, marks in zip(rows or plan().rows, scores, strict=True):
        lines = found.setdefault(of.step + 1, [])
        lines += [line(of.step + 1, of, number, int(mark)) for number, mark in enumerate(marks) if mark != "-"]
        lines += [padding(of.step + 1) for mark in marks if mark == "-"]
    return {step: sorted(lines, key=lambda one: one["uid"]) for step, lines in found.items()}


DEV_SCORES = {0: "110000", 2: "111100"}
"""By step, for each row of `dev_rows`: without a persona right; then the nurse learns both sums, the sailor none."""


def validation_lines(step: int, marks: str) -> list[Line]:
    rows = [(of, mark) for of, mark in zip(dev_rows(), marks, strict=True) if mark != "-"]
    return [
        line(step, of, 0, int(mark)) | {"reward": float(mark), "acc": float(mark), "persona": float(of.persona_id is not None)}
        for of, mark in rows
    ]


def write_dump(folder: Path, lines: dict[int, list[Line]] | None = None, name: str = "rollouts") -> Path:
    out = folder / name
    out.mkdir(parents=True, exist_ok=True)
    for step, own in (training_lines() if lines is None else lines).items():
        write_step(out, step, own)
    return out


def write_step(folder: Path, step: int, lines: Sequence[Line]) -> Path:
    path = folder / f"{step}.jsonl"
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines))
    return path


def importing(folder: Path, **fields: Any) -> ImportConfig:
    """An import of `folder`/rollouts by `folder`/plan.parquet into `folder`/run."""
    values = {
        "verl": str(folder / "rollouts"), "plan": str(folder / "plan.parquet"), "out": str(folder / "run"), "resamples": 100,
    }  # fmt: skip
    return build_config(ImportConfig, values | fields, source="test")


def read_lines(path: Path) -> list[Line]:
    return [json.loads(one) for one in path.read_text().splitlines()]
