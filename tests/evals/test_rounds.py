"""A sequential run end to end over HTTP: what it asks, where it ends, and that it may be killed, refused and gone on with."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.config import ExportConfig, StabilityConfig, TaskConfig, build_config
from permix.errors import ConfigError, DataError, IncompleteRunError
from permix.evals.stability import measure_stability, read_rounds, run_stability
from permix.interop.stage import export_run
from permix.pipelines.preflight import check_config
from permix.report.builder import build_report
from permix.report.comparisons import compare_runs
from permix.storage.files import read_json
from permix.tasks import load_questions
from permix.types import digest
from tests.cell_files import read_cells
from tests.killable import Moment, command
from tests.sample_runs import asked_as, asked_what, solve, stability_values, toml, write_pool
from tests.servers import Action, error, openai_server

RIGHT = {None: 70, "clerk": 90, "nurse": 55, "sailor": 55, "troll": 15}
"""In a hundred, as whom."""


def reply(body: Mapping[str, Any], nth: int = 0, headers: Mapping[str, str] | None = None) -> str:
    """By the words alone, whatever was asked before."""
    question, who = asked_what(body), asked_as(body)
    lucky = int(digest(str(who), question), 16) % 100 < RIGHT[who]
    return f"It is {solve(question) + (not lucky)}."


def values(folder: Path, url: str, **fields: Any) -> dict[str, Any]:
    """Four personas and none × 120 sums = 600 cells, were all asked."""
    task = {"name": "arithmetic", "levels": ["add-2"], "n": 120}
    found = stability_values(folder, url, **{"task": task, "personas": {"pool": str(folder / "pool.toml")}} | fields)
    write_pool(folder / "pool.toml")
    return found


def config(folder: Path, url: str, **fields: Any) -> StabilityConfig:
    return build_config(StabilityConfig, values(folder, url, **fields), source="test")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def asked_of(run: Path) -> Counter[str | None]:
    return Counter(key.persona_id for key in read_cells(run / "records.jsonl"))


def test_cells_go_where_they_decide(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        found = run_stability(config(tmp_path, server.base_url, precision=0.1))
        assert len(server.asked) < 600
    rounds = read_rounds(tmp_path / "run")
    assert rounds[0].personas == ("clerk", "nurse", "sailor", "troll")
    assert all("troll" in one.personas for one in rounds)
    asked = asked_of(tmp_path / "run")
    assert asked["troll"] == asked[None] == rounds[-1].until > min(asked.values())
    assert (found.n_asked, found.n_scored) == (asked.total() - asked[None], asked.total() - asked[None])
    assert found.pss.low is not None
    assert found.pss.high is not None
    assert (found.pss.high - found.pss.low) / 2 <= 0.1 or rounds[-1].until == 120
    assert measure_stability(tmp_path / "run") == found
    assert found.model_dump(mode="json").items() <= read_json(tmp_path / "run" / "metrics.json").items()
    build_report([tmp_path / "run"], tmp_path / "report")
    said = (tmp_path / "report" / "report.md").read_text()
    assert f"cells were allocated in {len(rounds)} rounds to the personas that may be worst or best" in said


def test_the_budget_is_kept_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        run_stability(config(tmp_path, server.base_url, budget=170))  # the opening takes 5 × 30
        assert 165 <= len(server.asked) <= 170
        first = read_rounds(tmp_path / "run")
        run_stability(config(tmp_path, server.base_url, budget=260))
        assert 255 <= len(server.asked) <= 260
    assert read_rounds(tmp_path / "run")[: len(first)] == first
    assert set(asked_of(tmp_path / "run").values()) <= set(range(30, 121))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"personas": {"pool": "POOL"}}, "personas: differs from the earlier rounds of .*; give the same personas to resume it"),
        ({"task": {"name": "arithmetic", "levels": ["add-2"], "n": 119}}, "task: differs from the earlier rounds of"),
        ({"samples": 2}, "samples: differs from the earlier rounds of"),
    ],
    ids=["personas", "questions", "samples"],
)
def test_rounds_go_on_with_what_they_began_with(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    with openai_server(reply) as server:
        run_stability(config(tmp_path, server.base_url, budget=160))
        before = {one.name: one.read_bytes() for one in (tmp_path / "run").iterdir() if one.is_file() and one.name != ".lock"}
        if "personas" in fields:
            fields = {"personas": {"pool": str(write_pool(tmp_path / "fewer.toml", "clerk", "troll"))}}
        with pytest.raises(ConfigError, match=said):
            run_stability(config(tmp_path, server.base_url, budget=300, label="second", **fields))
    assert {name: (tmp_path / "run" / name).read_bytes() for name in before} == before


def test_questions_come_in_a_drawn_order_and_not_level_by_level(tmp_path: Path) -> None:
    """A task may give easy questions first; then later rounds, which only some are asked, would be the harder ones."""
    task = {"name": "arithmetic", "levels": ["add-1", "add-2"], "n": 90}
    with openai_server(reply) as server:
        run_stability(config(tmp_path, server.base_url, budget=160, task=task))
    given = [one.id for one in load_questions(TaskConfig.model_validate(task))[1]]
    asked = read_json(tmp_path / "run" / "grid.json")["question_ids"]
    assert set(asked) < set(given)
    assert asked != given[: len(asked)]


def test_a_run_in_rounds_may_be_made_whole_and_not_the_other_way_round(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        run_stability(config(tmp_path, server.base_url, budget=160))
        found = run_stability(config(tmp_path, server.base_url))
        assert len(server.asked) == 600  # nothing twice
        assert (found.n_asked, found.n_scored, read_rounds(tmp_path / "run")) == (480, 480, ())
        with pytest.raises(ConfigError, match="this run asks its whole grid; leave budget and precision out"):
            run_stability(config(tmp_path, server.base_url, budget=300, label="second"))
        assert len(server.asked) == 600
        assert read_json(tmp_path / "run" / "config.json")["label"] is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [
        Moment("permix.storage.run_dir:RunDir.append", call=77),  # in the opening
        Moment("permix.storage.run_dir:RunDir.append", call=170, torn=False),  # in the second round
        Moment("permix.metrics.sequential:next_round"),  # a round was settled and not written
        Moment("permix.evals.stability:_cells_of_rounds", call=2),  # written, and not asked
    ],
    ids=lambda moment: f"{moment.function}-{moment.call}",
)
def test_a_killed_run_settles_the_same_rounds(moment: Moment, tmp_path: Path) -> None:
    with openai_server(reply) as server:
        whole = run_stability(config(tmp_path, server.base_url, budget=220, out=str(tmp_path / "whole")))
        asked = len(server.asked)
        file = tmp_path / "stability.toml"
        file.write_text(toml(values(tmp_path, server.base_url, budget=220)))
        assert command("stability", str(file), dies=moment) == -9
        assert command("stability", str(file)) == 0
        # Only what was answered and not yet recorded is asked again: few cells, and never a whole round.
        assert len(server.asked) <= 2 * asked + asked // 10
    assert read_rounds(tmp_path / "run") == read_rounds(tmp_path / "whole")
    assert measure_stability(tmp_path / "run") == whole


def test_a_round_waits_for_what_is_owed(tmp_path: Path) -> None:
    def flaky(body: dict[str, Any], nth: int, headers: Mapping[str, str]) -> str | Action:
        return error(400, "no") if nth == 7 else reply(body)

    with openai_server(flaky) as server:
        stage = config(tmp_path, server.base_url, budget=220)
        with pytest.raises(IncompleteRunError, match="1 of 150 cells, with or without a persona, have no score"):
            run_stability(stage)
        assert len(server.asked) == 150  # no further round in the dark
        assert run_stability(stage).n_scored == asked_of(stage.out).total() - asked_of(stage.out)[None]


def test_too_small_a_budget_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        with pytest.raises(
            ConfigError, match=r"budget = 149: the first round has 150 cells \(30 questions with each of 4 personas and without a"
        ):
            run_stability(config(tmp_path, server.base_url, budget=149))
        assert (server.asked, (tmp_path / "run").exists()) == ([], False)
        file = tmp_path / "stability.toml"
        file.write_text(toml(values(tmp_path, server.base_url, budget=300)))
        assert check_config(file)["cells"] == "150 first, at most 300"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"budget": 99, "strategy": "persona-vote"}, 'budget = 99: strategy = "persona-vote" asks the whole grid'),
        ({"precision": 0.1, "templates": ["adopt", "you_are"]}, "precision = 0.1: templates asks the whole grid"),
    ],
)
def test_what_asks_everything_cannot_be_sequential(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_config(StabilityConfig, {"stage": "stability"} | fields, source="test")


def test_it_is_not_held_against_another_run(tmp_path: Path) -> None:
    with openai_server(reply) as server:
        run_stability(config(tmp_path, server.base_url, budget=160))
        run_stability(config(tmp_path, server.base_url, out=str(tmp_path / "whole"), label="whole"))
    with pytest.raises(DataError, match="cells were allocated adaptively"):
        compare_runs(tmp_path / "run", tmp_path / "whole", resamples=100)
    with pytest.raises(DataError, match=r"sequential run \(budget, precision\)"):
        export_run(ExportConfig(run=tmp_path / "run", format="lm-eval", out=tmp_path / "exported"))


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with openai_server(reply) as server:
        file = tmp_path / "stability.toml"
        file.write_text(toml(values(tmp_path, server.base_url)))
        assert cli.run_cli(["stability", str(file), "--budget", "200"]) == 0
    shown = capsys.readouterr()
    assert "round 1: 30 questions, 150 cells; PSS 0." in shown.err + shown.out
