"""The clock of a training step: parts are kept apart, what none claims is training, a lap starts anew."""

import time

from permix.training.run_log import StepClock


def busy(seconds: float) -> None:
    """Use the processor, so that wall and CPU seconds both pass."""
    ended = time.process_time() + seconds
    while time.process_time() < ended:
        pass


def test_a_lap_splits_the_step_and_starts_the_next_one() -> None:
    clock = StepClock()
    with clock.part("generation"):
        busy(0.05)
    with clock.part("generation"):
        busy(0.05)
    busy(0.03)
    lap = clock.lap()
    assert lap["cpu_seconds"]["generation"] >= 0.1
    assert lap["cpu_seconds"]["training"] >= 0.03
    assert lap["cpu_seconds"]["verification"] == 0.0
    assert lap["seconds"]["generation"] >= 0.1
    assert clock.lap()["cpu_seconds"]["generation"] == 0.0


def test_a_part_counts_in_the_step_it_ends_in_once() -> None:
    clock = StepClock()
    with clock.part("verification"):
        busy(0.05)
    lap = clock.lap()["cpu_seconds"]
    assert lap["training"] < lap["verification"], "a part's time is not training's too"
