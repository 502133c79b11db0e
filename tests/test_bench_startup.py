"""The benchmark of starting prints its figures; no time is asserted."""

import json
import sys

import pytest

from bench import bench_startup


@pytest.mark.slow
def test_its_figures_are_those_of_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_startup", "--starts", "1", "--commands", "check"])
    bench_startup.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["figure"] for one in lines] == ["startup_help_cpu_s", "startup_verb_help_cpu_s", "report_of_recorded_runs_cpu_s"]
    assert all(one["value"] > 0 for one in lines)


def test_a_command_that_fails_is_no_figure() -> None:
    with pytest.raises(SystemExit, match="permix nonsense: exit code 2"):
        bench_startup.cpu_seconds(["nonsense"])
