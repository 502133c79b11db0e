"""Progress where there is no terminal: what a line says, when one is printed, and the arithmetic of the time left."""

import re
import time

import pytest

from permix.progress import PLAIN_INTERVAL_S, MultiProgress, format_duration, progress_bar


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00"), (0.4, "0:00"), (59.6, "1:00"), (75, "1:15"), (3599, "59:59"), (3661, "61:01"), (600_000, "10000:00")],
)
def test_clock(seconds: float, shown: str) -> None:
    assert format_duration(seconds) == shown


def test_one_line_at_the_end_of_quick_work(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("stability base", 300, "cells") as shown:
        for _ in range(100):
            shown.advance(3, status="2 without a result")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1  # 99 more came within PLAIN_EVERY_S
    assert re.fullmatch(r"stability base: 300/300 cells \(\d+\.\d\d/s\) 2 without a result", lines[0])
    assert PLAIN_INTERVAL_S >= 1


def test_a_finished_run_says_so_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("work", 5, "cells") as shown:
        shown.start_at(5)
    assert capsys.readouterr().err == "work: 5/5 cells (0.00/s)\n"


def test_nothing_to_do_is_no_division_by_zero(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("work", 0, "cells") as shown:
        shown.start_at(0)
    assert capsys.readouterr().err == "work: 0/0 cells (0.00/s)\n"


def test_the_rate_counts_only_what_this_process_did() -> None:
    with progress_bar("work", 100, "cells") as shown:
        began = time.monotonic()
        shown.start_at(90)
        unknown = shown.seconds_left
        time.sleep(0.05)
        shown.advance(5)
        left, ended = shown.seconds_left, time.monotonic()
        assert unknown is None  # nothing done, nothing known
        # 5 done, 5 to go: as long again as it took. Counting the 90 as done would say a nineteenth of that.
        assert left is not None
        assert 0.05 <= left <= ended - began + 0.5
        assert shown.done == 95


def in_seconds(said: str) -> int:
    found = re.search(r"(\d+):(\d\d) left in total", said)
    assert found, said
    return 60 * int(found[1]) + int(found[2])


def test_a_journey_knows_what_is_left_of_the_whole(capsys: pytest.CaptureFixture[str]) -> None:
    before = time.monotonic()
    journey = MultiProgress([1, 4999])
    after = time.monotonic()
    with journey.part(0, "first"):
        assert journey.time_left_text(0.0, 0.0) == "part 1 of 2"  # nothing done, nothing promised
        time.sleep(0.05)
        shortest = time.monotonic() - after
        said = journey.time_left_text(0.5, 0.5)
        longest = time.monotonic() - before
        # Half of weight 1 took t; 0.5 + 4999 are ahead: 9999 t.
        assert 9999 * shortest - 1 <= in_seconds(said) <= 9999 * longest + 1
        assert said.startswith("part 1 of 2, ")
        shortest = time.monotonic() - after
        said = journey.time_left_text(0.75, 0.25)
        longest = time.monotonic() - before
        # A process that found half done and did a quarter itself took t for 0.25; 0.25 + 4999 are ahead: 19997 t.
        assert 19997 * shortest - 1 <= in_seconds(said) <= 19997 * longest + 1
    assert capsys.readouterr().err == "[1/2] first\n"


def test_a_part_done_before_says_nothing_of_the_speed() -> None:
    journey = MultiProgress([10, 1])
    with journey.part(0, "found on disk"):
        pass
    with journey.part(1, "to do"):
        assert journey.time_left_text(0.0, 0.0) == "part 2 of 2"


def test_the_speed_is_that_of_the_work_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    journey = MultiProgress([100, 100, 100, 100])
    with journey.part(0, "done to 95 % by an earlier process"):
        now += 5
        with progress_bar("work", 100, "cells") as shown:
            shown.start_at(95)
            shown.advance(5)
    with journey.part(1, "begun"):
        now += 2
        assert journey.time_left_text(0.02, 0.02) == "part 2 of 4, 4:58 left in total"  # 7 s for 7 %, and 298 % are left
    journey = MultiProgress([100, 100, 100, 100])
    for number in range(2):
        with journey.part(number, "done before, by bars and all"), progress_bar("work", 100, "cells") as shown:
            shown.start_at(100)
            now += 4  # the model is loaded, to look at the run
    with journey.part(2, "begun"):
        now += 10
        assert journey.time_left_text(0.1, 0.1) == "part 3 of 4, 3:10 left in total"


def test_meters_inside_a_journey_name_the_step(capsys: pytest.CaptureFixture[str]) -> None:
    with MultiProgress([1, 1]).part(1, "second"), progress_bar("work", 1, "cells") as shown:
        shown.advance(status="loss 0.5")
    with progress_bar("alone", 1, "cells") as shown:
        shown.advance()
    place, inside, outside = capsys.readouterr().err.splitlines()
    assert place == "[2/2] second"
    assert re.fullmatch(r"work: 1/1 cells \(.*/s\) loss 0\.5; part 2 of 2, 0:00 left in total", inside)
    assert re.fullmatch(r"alone: 1/1 cells \(.*/s\)", outside)


def test_a_part_that_fails_leaves_the_journey(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), MultiProgress([1]).part(0, "only"):
        raise KeyboardInterrupt
    with progress_bar("alone", 1, "cells") as shown:
        shown.advance()
    assert "step" not in capsys.readouterr().err
