"""The training log: what a dead process wrote after its last checkpoint is dropped, and hostile text is only shown."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from permix.progress import ProgressBar
from permix.training.rewards import Rollout
from permix.training.run_log import RolloutLogger, describe_training, describe_truncation, read_training_log, samples_text
from permix.types import Verdict


class Notes(ProgressBar):
    """Keeps what it was asked to show."""

    def __init__(self) -> None:
        super().__init__("train", 4, "steps")
        self.notes: list[str] = []

    def show(self, note: str) -> None:
        self.notes.append(note)


def rollout(step: int, completion: str = "12", correct: bool | None = True, persona: str | None = "sailor") -> Rollout:
    verdict = Verdict(correct=correct, error="time" if correct is None else None)
    return Rollout(step, 0, persona, "q1", "What is 7 + 5?", completion, 3, "12", verdict)


def write_steps(out: Path, steps: Sequence[int], done: int = 0, samples_every: int = 2) -> Notes:
    shown = Notes()
    log = RolloutLogger(out, done, samples_every, shown)
    for step in steps:
        log.log_rollouts(step, [rollout(step), rollout(step, "13", correct=False, persona=None)])
        log.log_metrics(step, {"reward": 0.5 if step % 2 else None, "tokens": 10})
    return shown


def test_tokens_add_up_and_progress_shows_the_reward(tmp_path: Path) -> None:
    shown = write_steps(tmp_path, [1, 2, 3])
    assert [(line["step"], line["reward"], line["tokens"]) for line in read_training_log(tmp_path / "log.jsonl")] == [
        (1, 0.5, 10), (2, None, 20), (3, 0.5, 30),
    ]  # fmt: skip
    assert shown.notes == ["reward 0.50", "", "reward 0.50"]
    assert shown.done == 3


def test_the_share_of_truncated_rollouts_is_shown_beside_the_reward(tmp_path: Path) -> None:
    shown = Notes()
    log = RolloutLogger(tmp_path, 0, 2, shown)
    log.log_metrics(1, {"reward": 0.12, "truncated": 0.75})
    assert shown.notes == ["reward 0.12, 75% cut off"]


def test_truncation_is_described_from_the_last_fifth_of_the_steps() -> None:
    """10 steps with rollouts: the last two have 0.2 and 0.4 cut off. Lines without rollouts do not count."""
    log = [{"step": step, "truncated": 0.9} for step in range(8)]
    log += [{"step": 8, "truncated": 0.2}, {"step": 9}, {"step": 10, "truncated": 0.4}]
    text = describe_truncation(log, 28)
    assert text is not None
    assert text.startswith("30% of the rollouts in the last 2 of 10 steps were cut off at train.max_new_tokens = 28.")
    assert describe_truncation([{"truncated": 0.9}] * 4 + [{"truncated": 0.05}], 28) is None
    assert describe_truncation([{"loss": 1.0}], 28) is None
    assert describe_truncation([], 28) is None


def test_a_rollout_is_a_whole_record(tmp_path: Path) -> None:
    write_steps(tmp_path, [1])
    first, second = read_training_log(tmp_path / "rollouts.jsonl")
    assert first == {
        "step": 1, "group": 0, "persona_id": "sailor", "question_id": "q1", "prompt": "What is 7 + 5?", "completion": "12",
        "tokens": 3, "gold": "12", "verdict": {"correct": True, "extracted": None, "error": None},
    }  # fmt: skip
    assert (second["persona_id"], second["verdict"]["correct"]) == (None, False)


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_steps_done_again_leave_the_same_files(tmp_path: Path, done: int) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    write_steps(tmp_path / "whole", [1, 2, 3, 4])
    write_steps(tmp_path / "killed", [1, 2, 3])
    write_steps(tmp_path / "killed", range(done + 1, 5), done=done)
    for name in ("log.jsonl", "rollouts.jsonl", "samples.md"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    write_steps(tmp_path, [1, 2])
    for name in ("log.jsonl", "rollouts.jsonl"):
        with (tmp_path / name).open("ab") as file:
            file.write(b'{"step": 2, "rew')
    write_steps(tmp_path, [3], done=2)
    assert [line["step"] for line in read_training_log(tmp_path / "log.jsonl")] == [1, 2, 3]
    assert [line["step"] for line in read_training_log(tmp_path / "rollouts.jsonl")] == [1, 1, 2, 2, 3, 3]


def test_a_log_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert read_training_log(tmp_path / "log.jsonl") == []


@pytest.mark.parametrize("hostile", ["\x1b[31mred", "lone \ud800", "\u2028 \u202e", "line\nline\r\n", "\x00"])
def test_hostile_completions_are_kept_on_one_line(tmp_path: Path, hostile: str) -> None:
    log = RolloutLogger(tmp_path, 0, 1, Notes())
    log.log_rollouts(1, [rollout(1, hostile), rollout(1, "after")])
    lines = (tmp_path / "rollouts.jsonl").read_bytes().split(b"\n")
    assert len(lines) == 3
    assert json.loads(lines[0])["completion"] == hostile.replace("\ud800", "?")
    assert len(read_training_log(tmp_path / "rollouts.jsonl")) == 2
    text = (tmp_path / "samples.md").read_text(encoding="utf-8")
    assert not set(text) & set("\x00\x1b\r\u2028\u202e")


def test_samples_are_spread_over_the_groups_and_say_what_was_right() -> None:
    lines = [
        rollout(5, f"answer {n}", correct)._asdict() | {"verdict": {"correct": correct}, "group": n // 2}
        for n, correct in enumerate([True, False, None, True, True, False, None, True])
    ]
    text = samples_text(5, lines)
    assert text.startswith("\n## Step 5\n")
    assert [line.strip() for line in text.splitlines() if "answer" in line] == [f"→ answer {n}" for n in (0, 2, 4, 6)]
    assert [line.rsplit(" · ", 1)[1] for line in text.splitlines() if "gold 12" in line] == [
        "right", "not scored", "right", "not scored",
    ]  # fmt: skip


def test_a_completion_cannot_leave_its_block() -> None:
    lines = [rollout(1, "```\n# heading\n<script>")._asdict() | {"verdict": {"correct": False}}]
    body = samples_text(1, lines).split("\n\n", 2)[2]
    assert all(line.startswith("    ") for line in body.splitlines() if line)


def test_a_training_is_described_in_one_line() -> None:
    """Ten steps: rewards 0, .1, ... .9, so .05 over the first two and .85 over the last two; every step takes 2 s and 4.5 s."""
    log = [
        {"step": n, "reward": n / 10, "loss": 1.0, "truncated": 0.5 if n < 2 else 0.1, "completion_tokens": 20.0 + n,
         "seconds": {"generation": 2.0, "training": 4.5}}
        for n in range(10)
    ]  # fmt: skip
    assert describe_training(log) == (
        "10 steps in 1:05; reward 0.05 over the first fifth of the steps, 0.85 over the last; cut off 50%, then 10%; tokens an "
        "answer 20, then 28"
    )
    with_kl = [line | {"kl": n / 100, "replay_kl": 0.25} for n, line in enumerate(log)]
    assert "; KL 0.0050, then 0.0850; KL of character replay 0.2500, then 0.2500; tokens" in (describe_training(with_kl) or "")
    supervised: list[dict[str, float | None]] = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.25, "reward": None}]
    assert describe_training(supervised) == "2 steps; loss 2.000 over the first fifth of the steps, 1.250 over the last"
    assert describe_training([]) is None
