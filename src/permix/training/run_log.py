"""What a training run leaves for people: log.jsonl (a line a step), rollouts.jsonl (a line a rollout), samples.md (to read).

`step` counts optimizer steps from 1 in all of them. A rollout stands under the first step that trains on it; with
`train.updates_per_rollout` above 1 the steps that train on it again have lines in log.jsonl, without a reward, and no rollouts.

Where a training step's time goes: wall and CPU seconds, split into named parts.
"""

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from permix.plan import Plan, write_plan
from permix.progress import ProgressBar, progress_bar
from permix.sanitize import escape_control, escape_markdown, truncate
from permix.storage.files import guard_writes, replace_when_done, write_text
from permix.storage.jsonl import encode_line, read_jsonl, write_jsonl
from permix.training import distributed
from permix.training.rewards import Rollout

STEP_PARTS = ("generation", "verification", "dev_eval", "saving")


class StepClock:
    """Runs from its making, or from the end of the last step. What no part claims is training."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._parts = dict.fromkeys(STEP_PARTS, (0.0, 0.0))
        self._started = _now()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        wall, cpu = _now()
        yield
        ended_wall, ended_cpu = _now()
        known_wall, known_cpu = self._parts[name]
        self._parts[name] = (known_wall + ended_wall - wall, known_cpu + ended_cpu - cpu)

    def lap(self) -> dict[str, dict[str, float]]:
        """{"seconds": wall by part, "cpu_seconds": CPU of this process by part} since the last lap; starts the next one."""
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
    """The recorder of a process that does not write."""

    def log_rollouts(self, step: int, rollouts: Sequence[Rollout]) -> None:
        pass

    def log_plan(self, plan: Plan, blocks: Sequence[Mapping[str, Any]]) -> None:
        pass

    def log_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        pass


class MetricsLogger:
    """A line a step in log.jsonl. Lines after step `done_steps` are of a process that died, and are dropped.

    Raises PermixError naming the file where the system refuses to write.
    """

    def __init__(self, out: Path, done_steps: int, progress_bar: ProgressBar) -> None:
        self.out, self.progress_bar = out, progress_bar
        with guard_writes(out):
            self._total_tokens = _truncate_after(out / "log.jsonl", done_steps)

    def log_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._total_tokens += metrics.get("tokens", 0)
        finite = {name: None if _is_not_finite(value) else value for name, value in metrics.items()}
        _append_lines(self.out / "log.jsonl", [{"step": step, **finite, "tokens": self._total_tokens}])
        self.progress_bar.advance(status=self.progress_note(metrics))

    def progress_note(self, metrics: Mapping[str, Any]) -> str:
        """What progress shows beside the count."""
        return "" if metrics.get("loss") is None else f"loss {metrics['loss']:.3f}"


class RolloutLogger(MetricsLogger):
    """`permix.training.grpo_trainer.RolloutRecorder` into a run directory: rollouts.jsonl and samples.md too."""

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
        """Keep the rows as they are drawn now, and how each block of them was weighted."""
        write_plan(plan, self.out / "plan.parquet")
        write_jsonl(self.out / "plan_blocks.jsonl", blocks)

    def progress_note(self, metrics: Mapping[str, Any]) -> str:
        return "" if metrics.get("reward") is None else f"reward {metrics['reward']:.2f}"


@contextmanager
def open_rollout_log(
    out: Path, label: str, done_steps: int, total_steps: int, samples_every: int
) -> Iterator[RolloutLogger | NullLogger]:
    """The log of a training by reward, with its progress bar, in the main process; a logger that writes nothing in the others."""
    if not distributed.is_main():
        yield NullLogger()
        return
    with progress_bar(f"train {label}", total_steps, "steps") as shown:
        shown.start_at(done_steps)
        yield RolloutLogger(out, done_steps, samples_every, shown)


def _is_not_finite(value: object) -> bool:
    """NaN and infinity are no JSON, and no measurement either."""
    return isinstance(value, float) and not math.isfinite(value)


def read_training_log(path: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl, rollouts.jsonl or dev_eval.jsonl. Raises DataError naming file and line for one that is no JSON."""
    return list(read_jsonl(path, json.loads, "JSON"))


def _append_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    with guard_writes(path), path.open("ab") as file:
        file.write(b"".join(map(encode_line, lines)))


def _truncate_after(path: Path, last_step: int) -> int:
    """Drop lines of later steps; returns the tokens counted on the last line kept."""
    kept = [line for line in read_training_log(path) if line["step"] <= last_step]
    with replace_when_done(path) as scratch:
        _append_lines(scratch, kept)  # whose errors name the file that was being written
    return int(kept[-1].get("tokens", 0)) if kept else 0


def _rewrite_samples(out: Path, every: int) -> None:
    by_step: dict[int, list[dict[str, Any]]] = {}
    for line in read_training_log(out / "rollouts.jsonl"):
        by_step.setdefault(line["step"], []).append(line)
    texts = [samples_text(step, lines) for step, lines in by_step.items() if (step - 1) % every == 0]
    write_text(out / "samples.md", "# Samples of the rollouts\n" + "".join(texts))


def samples_text(step: int, lines: Sequence[Mapping[str, Any]]) -> str:
    """A few rollouts of one step, spread over its groups, as text a person can read and a browser cannot run."""
    stride = max(1, len(lines) // SAMPLES_PER_STEP)
    parts = [f"\n## Step {step}\n"]
    for line in lines[::stride][:SAMPLES_PER_STEP]:
        said = {True: "right", False: "wrong", None: "not scored"}[line["verdict"]["correct"]]
        parts.append(
            f"\n**{escape_markdown(line['persona_id'] or 'no persona')}** · gold {escape_markdown(line['gold'])} · {said}\n\n"
        )
        parts.append(_code_block(f"{line['prompt']}\n→ {line['completion']}"))
    return "".join(parts)


def _code_block(text: str) -> str:
    """A Markdown code block, which shows text and does nothing else."""
    return "".join(f"    {line}\n" for line in truncate(escape_control(text), width=400, lines=40).split("\n"))
