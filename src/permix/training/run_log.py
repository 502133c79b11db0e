"""Writes a training run's logs, and measures the time of its steps.

    log.jsonl         one line for each optimizer step
    rollouts.jsonl    one line for each rollout
    samples.md        some rollouts to read

`step` counts optimizer steps from 1 in all of them. A rollout is logged at the first step that trains on it. With
`train.updates_per_rollout` above 1, further steps on the same rollouts have a line in log.jsonl, without a reward.
Times are wall and CPU seconds, split into named parts of the step.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from permix.evals.grid import NOTABLE_CUT_OFF_SHARE
from permix.plan import Plan, write_plan
from permix.progress import ProgressBar, format_duration, progress_bar
from permix.sanitize import escape_control, escape_markdown, truncate
from permix.storage.files import encode_line, guard_writes, read_jsonl, replace_when_done, write_jsonl, write_text
from permix.storage.run_dir import parse_log_step
from permix.training import distributed
from permix.training.rewards import Rollout

STEP_PARTS = ("generation", "verification", "dev_eval", "saving")


class StepClock:
    """Measures the time since it was made or since the last lap. Time outside of all parts counts as training."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin a new step now."""
        self._parts = dict.fromkeys(STEP_PARTS, (0.0, 0.0))
        self._started = _now()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block's time for the part `name`, one of `STEP_PARTS`."""
        wall, cpu = _now()
        yield
        ended_wall, ended_cpu = _now()
        total_wall, total_cpu = self._parts[name]
        self._parts[name] = (total_wall + ended_wall - wall, total_cpu + ended_cpu - cpu)

    def lap(self) -> dict[str, dict[str, float]]:
        """{"seconds": wall by part, "cpu_seconds": CPU of this process by part} since the last lap; begins the next one."""
        names = ("seconds", "cpu_seconds")
        laps = {}
        for place, name in enumerate(names):
            parts = {part: spent[place] for part, spent in self._parts.items()}
            rest = _now()[place] - self._started[place] - sum(parts.values())
            laps[name] = {part: round(spent, 3) for part, spent in (parts | {"training": rest}).items()}
        self.restart()
        return laps


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


SAMPLES_PER_STEP = 4


class NullLogger:
    """The logger of a process that does not write."""

    def log_rollouts(self, step: int, rollouts: Sequence[Rollout]) -> None:
        pass

    def log_plan(self, plan: Plan, blocks: Sequence[Mapping[str, Any]]) -> None:
        pass

    def log_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        pass


class MetricsLogger:
    """Writes one line for each step to log.jsonl. Lines after step `done_steps` are dropped: those steps are trained again.

    Raises PermixError that names the file if the system refuses to write.
    """

    def __init__(self, out: Path, done_steps: int, progress_bar: ProgressBar) -> None:
        self.out, self.progress_bar = out, progress_bar
        with guard_writes(out):
            self._total_tokens = _truncate_after(out / "log.jsonl", done_steps)

    def log_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._total_tokens += metrics.get("tokens", 0)
        encodable = {name: None if _is_not_finite(value) else value for name, value in metrics.items()}
        _append_lines(self.out / "log.jsonl", [{"step": step, **encodable, "tokens": self._total_tokens}])
        self.progress_bar.advance(status=self.progress_note(metrics))

    def progress_note(self, metrics: Mapping[str, Any]) -> str:
        """The text after the count in the progress bar."""
        return "" if metrics.get("loss") is None else f"loss {metrics['loss']:.3f}"


class RolloutLogger(MetricsLogger):
    """Also writes rollouts.jsonl and samples.md; implements `permix.training.grpo_trainer.RolloutRecorder`."""

    def __init__(self, out: Path, done_steps: int, samples_every: int, progress_bar: ProgressBar) -> None:
        super().__init__(out, done_steps, progress_bar)
        self.samples_every = samples_every
        with guard_writes(out):
            _truncate_after(out / "rollouts.jsonl", done_steps)
            _rewrite_samples(out, samples_every)

    def log_rollouts(self, step: int, rollouts: Sequence[Rollout]) -> None:
        lines = [rollout._asdict() | {"verdict": rollout.verdict.model_dump()} for rollout in rollouts]
        _append_lines(self.out / "rollouts.jsonl", lines)
        if (step - 1) % self.samples_every == 0:
            path = self.out / "samples.md"
            with guard_writes(path), path.open("a", encoding="utf-8", errors="replace") as file:
                file.write(samples_text(step, lines))

    def log_plan(self, plan: Plan, blocks: Sequence[Mapping[str, Any]]) -> None:
        """Write the rows drawn so far to plan.parquet, and the records of the curriculum's blocks to plan_blocks.jsonl."""
        write_plan(plan, self.out / "plan.parquet")
        write_jsonl(self.out / "plan_blocks.jsonl", blocks)

    def progress_note(self, metrics: Mapping[str, Any]) -> str:
        if metrics.get("reward") is None:
            return ""
        truncated = metrics.get("truncated")
        return f"reward {metrics['reward']:.2f}" + ("" if truncated is None else f", {truncated:.0%} cut off")


def describe_truncation(log: Sequence[Mapping[str, Any]], max_new_tokens: int) -> str | None:
    """A sentence about the rollouts that were cut off in the last fifth of the steps; None for at most 5 %."""
    shares = [line["truncated"] for line in log if line.get("truncated") is not None]
    if not shares or (ends := first_and_last_fifth(shares)).last <= NOTABLE_CUT_OFF_SHARE:
        return None
    return (
        f"{ends.last:.0%} of the rollouts in the last {ends.n} of {len(shares)} steps were cut off at train.max_new_tokens = "
        f"{max_new_tokens}. A rollout that is cut off before its answer earns no reward, so the training also rewards brevity"
    )


def describe_training(log: Sequence[Mapping[str, Any]]) -> str | None:
    """One line on what happened in a training: its reward, or its loss without rewards; the share of rollouts that were cut off;
    the mean length of an answer in tokens; and the wall time of all steps, if it is known. None for an empty log.

    A metric is shown over the first and the last fifth of the steps that have a value of it.
    """
    metrics = {name: [float(line[name]) for line in log if line.get(name) is not None] for name in _SUMMARY_FORMATS}
    if metrics["reward"]:
        metrics["loss"] = []  # that of a policy gradient says nothing about progress
    parts = [_SUMMARY_FORMATS[name](first_and_last_fifth(values)) for name, values in metrics.items() if values]
    seconds = sum(sum(line["seconds"].values()) for line in log if line.get("seconds"))
    duration = f" in {format_duration(seconds)}" if any(line.get("seconds") for line in log) else ""
    return "; ".join([f"{len(log)} steps{duration}", *parts]) if log else None


class FirstAndLastFifth(NamedTuple):
    """Means of a metric over the first and the last fifth of its steps; `n` is the number of steps in a fifth, at least 1."""

    first: float
    last: float
    n: int


_SUMMARY_FORMATS: dict[str, Callable[[FirstAndLastFifth], str]] = {
    "reward": lambda ends: f"reward {ends.first:.2f} over the first fifth of the steps, {ends.last:.2f} over the last",
    "loss": lambda ends: f"loss {ends.first:.3f} over the first fifth of the steps, {ends.last:.3f} over the last",
    "truncated": lambda ends: f"cut off {ends.first:.0%}, then {ends.last:.0%}",
    "kl": lambda ends: f"KL {ends.first:.4f}, then {ends.last:.4f}",
    "replay_kl": lambda ends: f"KL of character replay {ends.first:.4f}, then {ends.last:.4f}",
    "completion_tokens": lambda ends: f"tokens an answer {ends.first:.0f}, then {ends.last:.0f}",
}
"""How `describe_training` shows a metric of log.jsonl, from its means over the first and the last fifth."""


def first_and_last_fifth(values: Sequence[float]) -> FirstAndLastFifth:
    n = max(1, len(values) // 5)
    return FirstAndLastFifth(sum(values[:n]) / n, sum(values[-n:]) / n, n)


@contextmanager
def open_rollout_log(
    out: Path, label: str, done_steps: int, total_steps: int, samples_every: int
) -> Iterator[RolloutLogger | NullLogger]:
    """The logger of a training with a reward, with a progress bar. Processes other than the main one get a `NullLogger`."""
    if not distributed.is_main():
        yield NullLogger()
        return
    with progress_bar(f"train {label}", total_steps, "steps") as bar:
        bar.start_at(done_steps)
        yield RolloutLogger(out, done_steps, samples_every, bar)


def _is_not_finite(value: object) -> bool:
    """Whether a value is NaN or infinite, which JSON cannot hold."""
    return isinstance(value, float) and not math.isfinite(value)


def read_training_log(path: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl, rollouts.jsonl or dev_eval.jsonl. Raises DataError that names file and line if one is not JSON."""
    return list(read_jsonl(path, json.loads, "JSON"))


def read_log_until(path: Path, last_step: int) -> list[dict[str, Any]]:
    """The lines up to a step. Raises DataError that names file and line for one that has no step, also a later one."""
    return [fields for step, fields in read_jsonl(path, parse_log_step, "a line with a step") if step <= last_step]


def _append_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    with guard_writes(path), path.open("ab") as file:
        file.write(b"".join(map(encode_line, lines)))


def _truncate_after(path: Path, last_step: int) -> int:
    """Drop the lines of later steps; returns the token count of the last line that is left."""
    kept = read_log_until(path, last_step)
    with replace_when_done(path) as scratch:
        _append_lines(scratch, kept)
    return int(kept[-1].get("tokens", 0)) if kept else 0


def _rewrite_samples(out: Path, every: int) -> None:
    by_step: dict[int, list[dict[str, Any]]] = {}
    for line in read_training_log(out / "rollouts.jsonl"):
        by_step.setdefault(line["step"], []).append(line)
    texts = [samples_text(step, lines) for step, lines in by_step.items() if (step - 1) % every == 0]
    write_text(out / "samples.md", "# Samples of the rollouts\n" + "".join(texts))


def samples_text(step: int, lines: Sequence[Mapping[str, Any]]) -> str:
    """Some rollouts of one step, spread over its groups, as Markdown. Nothing in them is rendered or run."""
    stride = max(1, len(lines) // SAMPLES_PER_STEP)
    parts = [f"\n## Step {step}\n"]
    for line in lines[::stride][:SAMPLES_PER_STEP]:
        outcome = {True: "right", False: "wrong", None: "not scored"}[line["verdict"]["correct"]]
        parts.append(
            f"\n**{escape_markdown(line['persona_id'] or 'no persona')}** · gold {escape_markdown(line['gold'])} · {outcome}\n\n"
        )
        parts.append(_code_block(f"{line['prompt']}\n→ {line['completion']}"))
    return "".join(parts)


def _code_block(text: str) -> str:
    """A Markdown code block, cut to 40 lines of 400 characters."""
    return "".join(f"    {line}\n" for line in truncate(escape_control(text), width=400, lines=40).split("\n"))
