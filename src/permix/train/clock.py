"""Where a training step's time goes: wall and CPU seconds, split into named parts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

PARTS = ("generation", "verification", "probe", "saving")


class StepClock:
    """Runs from its making, or from the end of the last step. What no part claims is training."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._parts = dict.fromkeys(PARTS, (0.0, 0.0))
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


class ClockStarter(TrainerCallback):  # type: ignore[misc]
    """Keeps setting up and loading a checkpoint out of the first step's time."""

    def __init__(self, clock: StepClock) -> None:
        self._clock = clock

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._clock.restart()
