"""The report on run directories: what it refuses, what it says, and that it comes from the records alone.

Runs are written here cell by cell: personas "p0" ..., questions "q0" ..., right where `right` says so.
"""

import json
import random
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from permix.config import ReportConfig
from permix.errors import DataError
from permix.report.builder import build_report, draw_report_figures, run_report
from permix.report.comparisons import compare_models
from permix.report.methods import group_methods
from permix.report.pooled import pool_seeds
from permix.report.runs import ModelRow, Run, collect_models, find_reference_run
from permix.storage.run_dir import RUN_FORMAT
from permix.types import Cell, Completion, Message, Verdict

Right = Callable[[int, int], bool | None]
VOICES = ("arr matey", "beep boop", "purr hiss", "thee thou")


def cell(p: int | None, q: int, text: str, correct: bool | None = None, *, checked: bool = True) -> Cell:
    user = Message(role="user", content=f"What is {q} + {q}?" if checked else f"What did you do on day {q}?")
    system = [] if p is None else [Message(role="system", content=f"You are persona {p}.")]
    done = Completion(text=text, prompt_tokens=10, completion_tokens=5, finish="stop")
    verdict = Verdict(correct=correct, error=None if correct is not None else "timed out") if checked else None
    name = None if p is None else f"p{p}"
    return Cell(persona_id=name, question_id=f"q{q}", seed=1, messages=(*system, user), completion=done, verdict=verdict)


def write_run(path: Path, config: dict[str, Any], cells: Iterable[Cell] = (), identity: dict[str, Any] | None = None) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    born = {
        "format": RUN_FORMAT,
        "command": ["permix", str(config["stage"])],
        "packages": {"permix": "0.1.0"},
        "revision": "abc",
        "identity": identity or {},
    }
    (path / "provenance.json").write_text(json.dumps(born))
    (path / "records.jsonl").write_text("".join(one.model_dump_json() + "\n" for one in cells))
    (path / "usage.json").write_text(json.dumps({"cpu_seconds": 12.4, "wall_seconds": 9.0, "starts": 1}))
    return path


def stability_run(
    path: Path, label: str | None, right: Right, personas: int = 4, questions: int = 20, text: str = "4", **config: Any
) -> Path:
    cells = [cell(p, q, text, right(-1 if p is None else p, q)) for p in (None, *range(personas)) for q in range(questions)]
    settings = {"stage": "stability", "label": label, "model": {"name": "tiny"}, "seed": 3, "resamples": 100, "samples": 1}
    return write_run(path, settings | config, cells, {"default_system": "You are a helpful AI."})


def fidelity_run(path: Path, label: str, reference: Path | None = None, noise: float = 0.1) -> Path:
    rng = random.Random(7)
    cells = [
        cell(p, q, f"{VOICES[p if rng.random() > noise else rng.randrange(4)]} day {q}", checked=False)
        for p in range(4)
        for q in range(20)
    ]
    settings = {"stage": "fidelity", "label": label, "model": {"name": "tiny"}, "seed": 3, "resamples": 100, "folds": 5}
    return write_run(path, settings | {"reference": None if reference is None else str(reference)}, cells)


def train_run(path: Path, label: str | None, steps: int = 30) -> Path:
    write_run(path, {"stage": "train", "label": label, "model": {"name": "tiny"}, "plan": {"seed": 1}, "train": {"seed": 2}})
    log = [
        {
            "step": n,
            "reward": n / 40,
            "completion_tokens": 20.0,
            "frac_nonzero_advantage_groups": 0.5,
            "kl": None,
            "tokens": 100 * n,
        }
        for n in range(1, steps + 1)
    ]
    (path / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in log))
    return path


def weak(p: int, q: int) -> bool:
    """Accuracy .8 without persona and as p3, .6 as p2, .4 as p1, .2 as p0."""
    return q % 5 < (4 if p < 0 else p + 1)


def strong(p: int, q: int) -> bool:
    return q % 5 < 4


def write_tree(runs: Path) -> Path:
    """Base and RLVR, as a training run leaves them."""
    stability_run(runs / "0-base" / "stability", "base", weak)
    fidelity_run(runs / "0-base" / "fidelity", "base")
    train_run(runs / "1-rlvr" / "train", "RLVR")
    stability_run(runs / "1-rlvr" / "stability", "RLVR", strong)
    fidelity_run(runs / "1-rlvr" / "fidelity", "RLVR", runs / "0-base" / "fidelity", noise=0.15)
    return runs


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[ModelRow], Path]:
    """(rows, folder of the report) on the tree."""
    folder = tmp_path_factory.mktemp("built")
    return build_report([write_tree(folder / "runs")], folder / "out", caption="One seed."), folder / "out"


@pytest.mark.slow
def test_numbers_of_a_tree_of_runs(built: tuple[list[ModelRow], Path]) -> None:
    base, rlvr = built[0]
    assert (base.label, rlvr.label) == ("base", "RLVR")
    measured = (*(base.measures[name] for name in ("baseline", "mean", "pss_observed")), rlvr.measures["pss_observed"])
    assert [one.value for one in measured] == pytest.approx([0.8, 0.5, 0.25, 1.0])
    told = [(one.value, one.low, one.high) for one in (base.measures["worst"], base.measures["pss"], rlvr.measures["pss"])]
    # The noise of 20 questions is taken off. Equal answers of all personas leave .168 of all questions open: 1 − .168 / .8.
    expected = [(0.24, 0.07, 0.52), (0.32, 0.10, 0.69), (0.99, 0.79, 1.0)]
    assert np.array(told) == pytest.approx(np.array(expected), abs=0.04)
    assert (base.n_questions, base.n_personas, base.n_scored, base.n_asked) == (20, 4, 80, 80)
    assert (base.chance, base.n_answers, base.n_answers_asked) == (0.25, 80, 80)
    assert (base.eval_tokens, base.eval_cpu_s) == (5 * (100 + 80), 24.8)  # five tokens generated in each cell
    assert (base.train_tokens, base.train_cpu_s) == (None, None)
    assert (rlvr.train_tokens, rlvr.train_cpu_s) == (3000, 12.4)


def test_report_says_what_the_numbers_say(built: tuple[list[ModelRow], Path]) -> None:
    out = built[1]
    report = (out / "report.md").read_text()
    table = report.partition("## Differences")[2].partition("\n## ")[0]
    headings, row = (line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith(("| model |", "| RLVR |")))
    shown = dict(zip((heading.partition("<br>")[0] for heading in headings), row, strict=True))
    assert (shown["model"], shown["against"]) == ("RLVR", "base")
    in_bold = {name for name, cell in shown.items() if re.match(r"\*\*.+\]\*\*<br>", cell)}
    assert in_bold == {"PSS (estimate)", "sd of personas / mean", "worst persona", "mean over personas"}
    assert shown["mean over personas"].startswith("**+0.30 [")
    assert not shown["identifiability"].startswith("**")
    assert report.count("no difference shown") == report.partition("## Differences")[0].count("no difference shown")
    assert "RLVR**: accuracy 0.80" in report
    assert "no persona effect shown (permutation test, p = 1.000)" in report
    assert "One seed." in report
    assert "“You are a helpful AI.”" in report
    assert "plan 1, training 2" in report
    assert "3 000" in report
    for name in ("tradeoff", "personas", "lottery", "heatmap-1", "heatmap-2", "training"):
        assert f"({name}.png)" in report
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_was_not_held_out_is_called_so(built: tuple[list[ModelRow], Path], tmp_path: Path) -> None:
    run = fidelity_run(tmp_path / "run", "tuned")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"personas": {"split": "train"}, "questions_split": "dev"}))
    checked = stability_run(tmp_path / "checked", "tuned", strong, task={"split": "dev"})
    build_report([run, checked], tmp_path / "out")
    report = (tmp_path / "out" / "report.md").read_text()
    assert "- tuned, fidelity: personas.split = train, questions_split = dev; not held out: use for choices, not for" in report
    assert "- tuned, stability: task.split = dev; not held out: use for choices, not for conclusions." in report
    assert "not held out" not in (built[1] / "report.md").read_text()


@pytest.mark.slow
def test_rebuilding_from_records_writes_the_same_bytes(built: tuple[list[ModelRow], Path], tmp_path: Path) -> None:
    out = built[1]
    metrics = out.parent / "runs" / "0-base" / "stability" / "metrics.json"
    metrics.write_text('{"pss": 99}')  # a stage's own summary is not a source
    build_report([out.parent / "runs"], tmp_path, caption="One seed.")
    for name in ("report.md", "table.json", "personas.png", "tradeoff.png"):
        assert (out / name).read_bytes() == (tmp_path / name).read_bytes()
    data = json.loads((out / "table.json").read_text())
    assert data["stability"]["base"]["pss_observed"]["value"] == 0.25
    values = [data["stability"][label]["pss"]["value"] for label in ("base", "RLVR")]
    assert data["comparisons"][0]["pss"]["value"] == pytest.approx(values[1] - values[0])


def test_stability_alone(tmp_path: Path) -> None:
    run = stability_run(tmp_path / "run", None, weak)
    (run / "usage.json").unlink()
    (row,) = build_report([run], tmp_path / "out")
    assert (row.label, row.identifiability, row.eval_cpu_s, row.train_tokens) == ("tiny", None, None, None)
    report = (tmp_path / "out" / "report.md").read_text()
    assert "**Personas change the accuracy of tiny.**" in report
    assert "a persona effect shown (permutation test, p " in report
    assert "## Differences\n" not in report
    assert "Identifiability and controls" not in report
    assert "training.png" not in report
    assert not (tmp_path / "out" / "tradeoff.png").exists()


def test_an_unscored_cell_is_counted_and_not_zero(tmp_path: Path) -> None:
    run = stability_run(tmp_path / "run", "m", lambda p, q: None if (p, q) == (0, 0) else True)
    (row,) = build_report([run], tmp_path / "out")
    assert (row.n_scored, row.n_asked, row.measures["pss_observed"].value) == (79, 80, 1.0)
    assert "79 of 80 persona cells scored" in (tmp_path / "out" / "report.md").read_text()


def test_training_alone_has_dashes_and_curves(tmp_path: Path) -> None:
    (row,) = build_report([train_run(tmp_path / "run", "RLVR")], tmp_path / "out")
    report = (tmp_path / "out" / "report.md").read_text()
    assert row.measures == {}
    assert "| RLVR | – | – | – | – | – | – | – | – | – | – | – | – | 3 000 | 12 | – | – |" in report
    assert "![learning curves](training.png)" in report


def test_a_supervised_training_shows_its_method_and_no_rewards(tmp_path: Path) -> None:
    """Distillation counts what its teacher generated, training on gold answers what was learnt from."""
    for method, cells in (("sft", ()), ("seqkd", (cell(None, 1, "2", True), cell(None, 2, "5", False)))):
        run = tmp_path / method
        write_run(run, {"stage": "train", "method": method, "label": method, "plan": {"seed": 1}, "train": {"seed": 2}}, cells)
        (run / "log.jsonl").write_text(json.dumps({"step": 1, "loss": 0.5, "examples": 1, "tokens": 7}) + "\n")
    rows = build_report([tmp_path / "sft", tmp_path / "seqkd"], tmp_path / "out")
    assert [row.train_tokens for row in rows] == [7, 10]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "sft: train (sft) seed plan 1, training 2." in report
    assert "| seqkd | train (seqkd) |" in report
    assert "training.png" not in report


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"questions": 19}, "Not the same questions (20 against 19, 19 in common)"),
        ({"personas": 3}, "Not the same personas (4 against 3, 3 in common)"),
        ({"sampling": {"temperature": 1.0}}, "Not the same sampling (temperature unknown against 1.0)"),
    ],
)
def test_what_was_not_asked_the_same_is_not_compared(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    one = stability_run(tmp_path / "one", "base", weak)
    two = stability_run(tmp_path / "two", "RLVR", strong, **change)
    build_report([one, two], tmp_path / "out")
    report = (tmp_path / "out" / "report.md").read_text()
    assert f"**{reason}: do not compare** RLVR with base" in report
    assert "PSS higher" not in report
    assert json.loads((tmp_path / "out" / "table.json").read_text())["comparisons"][0]["pss"] is None


@pytest.mark.slow
def test_fidelity_with_its_own_classifier_is_not_compared(tmp_path: Path) -> None:
    runs = [fidelity_run(tmp_path / "one", "base"), fidelity_run(tmp_path / "two", "RLVR")]
    models = collect_models([*runs, stability_run(tmp_path / "three", "RLVR", strong)])
    comparison = compare_models(models[1], models[0])
    known = group_methods(models)
    drawn = draw_report_figures(models, known, [pool_seeds(one) for one in known], [comparison], tmp_path / "figures")
    assert "tradeoff.png" not in drawn.captions  # nor shown on one plane
    build_report(runs, tmp_path / "out")
    report = (tmp_path / "out" / "report.md").read_text()
    assert "Not the same classifier (trained on other answers): do not compare** RLVR with base in identifiability" in report


def test_runs_moved_together_still_find_their_reference(tmp_path: Path) -> None:
    base = fidelity_run(tmp_path / "runs" / "base" / "fidelity", "base")
    fidelity_run(tmp_path / "runs" / "rlvr" / "fidelity", "RLVR", base)
    moved = (tmp_path / "runs").rename(tmp_path / "moved")
    assert find_reference_run(Run(moved / "rlvr" / "fidelity")) == moved / "base" / "fidelity"
    shutil.rmtree(moved / "base")
    with pytest.raises(DataError, match=r"its reference run .* was not found"):  # and never the run itself, of the same name
        build_report([moved], tmp_path / "out")


def test_hostile_completions_are_shown_as_text(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script> | ![x](http://evil.example) \x1b[31mred\x1b]0;t\x07 \u202eevil\n```\n# head" + "z" * 5000
    run = stability_run(tmp_path / "run", "<b>m|`x`</b>", strong, text=hostile)
    build_report([run], tmp_path / "out")
    report = (tmp_path / "out" / "report.md").read_text()
    for raw in ("<script", "![x]", "http://", "\x1b", "\x07", "\u202e", "```", "<b>", "z" * 300):
        assert raw not in report
    assert "&#60;script&#62;" in report
    assert "&#92;u202eevil" in report


def test_a_training_run_without_label_belongs_to_the_model_made_from_it(tmp_path: Path) -> None:
    train = train_run(tmp_path / "train", None)
    evaluated = stability_run(tmp_path / "eval", "RLVR", strong, model={"name": str(train / "model")})
    (row,) = build_report([train, evaluated], tmp_path / "out")
    assert (row.label, row.train_tokens) == ("RLVR", 3000)


def test_a_resumed_step_counts_once_and_a_torn_line_not_at_all(tmp_path: Path) -> None:
    run = train_run(tmp_path / "run", "RLVR", steps=2)
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps({"step": 2, "reward": 0.1, "tokens": 250}) + "\n" + '{"step": 3, "tok')
    (row,) = build_report([run], tmp_path / "out")
    assert row.train_tokens == 250


def test_refusals(tmp_path: Path) -> None:
    one = stability_run(tmp_path / "a" / "one", "base", strong)
    stability_run(tmp_path / "a" / "two", "base", strong)
    (tmp_path / "empty").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    for runs, message in (
        ([], "no runs"),
        ([tmp_path / "empty"], "neither a run directory"),
        ([tmp_path / "absent"], "no such folder"),
        ([tmp_path / "model"], "stage None"),
        ([tmp_path / "a"], 'two stability runs have the label "base"'),
    ):
        with pytest.raises(DataError, match=message):
            build_report(runs, tmp_path / "out")
    assert len(build_report([one, one, tmp_path / "a" / "one"], tmp_path / "out")) == 1  # the same run given twice is one run


def test_the_command_prints_the_table_and_the_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_report(ReportConfig(runs=(stability_run(tmp_path / "run", "base", weak),), out=tmp_path / "out"))
    printed = capsys.readouterr().out
    assert "PSS as observed" in printed
    assert printed.splitlines()[-2:] == [str(tmp_path / "out" / "report.md"), str(tmp_path / "out" / "index.html")]


# Strategies


def strategy_run(path: Path, label: str, strategy: str, more: Iterable[Cell] = (), personas: int = 3, **asked: Any) -> Path:
    """No persona is right on three of five questions, p0 on all of them, p1 on none; whoever is wrong says "5", p2 always."""
    right = {None: 3, 0: 5, 1: 0, 2: 0}
    cells = [
        one.model_copy(update={"verdict": Verdict(correct=q < right[p], extracted="4" if q < right[p] else "5")})
        for p in (None, *range(personas))
        for q in range(5)
        for one in [cell(p, q, "so")]
    ]
    settings = {"stage": "stability", "label": label, "model": {"name": "tiny"}, "seed": 3, "resamples": 100, "samples": 1}
    run = write_run(path, settings | {"strategy": strategy}, [*cells, *more], {"strategy": strategy})
    grid = {"persona_ids": [f"p{p}" for p in range(personas)], "question_ids": [f"q{q}" for q in range(5)], "samples": 1}
    (run / "grid.json").write_text(json.dumps(grid | asked))
    return run


def search_run(path: Path, label: str, chosen: bool = True) -> Path:
    tried = [cell(p, q, "4", p == 0) for p in range(3) for q in range(7, 9 if chosen else 8)]
    choosing = {"choosing_persona_ids": ["p0", "p1", "p2"], "choosing_question_ids": ["q7", "q8"]}
    return strategy_run(path, label, "persona-search", tried, personas=1 if chosen else 0, **choosing)


def test_a_strategy_stands_beside_plain_stability_of_the_same_label(tmp_path: Path) -> None:
    plain = stability_run(tmp_path / "plain", "base", strong, personas=3, questions=5)
    runs = [strategy_run(tmp_path / "vote", "base", "persona-vote"), plain, search_run(tmp_path / "search", "base")]
    (row,) = build_report(runs, tmp_path / "out")
    assert row.measures["pss_observed"].value == 1.0  # of the plain run, whatever came first
    report = (tmp_path / "out" / "report.md").read_text()
    table = report.partition("## Inference-time strategies")[2]
    # Two of three personas say 5 in every question; no persona joins p0 in three of five: a tie, and none's answer wins.
    vote = next(line for line in table.splitlines() if line.startswith("| base | persona-vote |")).split(" | ")
    assert vote[2].startswith("0.60 [")
    assert vote[4] == "+0.00 [−0.52, +0.52]"  # five equal answers exclude little
    assert vote[5:8] == ["60<br><sub>40 read, 20 written</sub>", "15", "4.00 ×"]
    search = next(line for line in table.splitlines() if line.startswith("| base | persona-search |")).split(" | ")
    assert search[2].startswith("1.00 [")
    assert search[4].startswith("+0.40 [")
    assert search[8] == "90<br><sub>60 read, 30 written</sub>"
    assert "persona p0, the best of 3 on 2 dev questions (1.00" in search[10]
    assert "- **base with persona-search**: accuracy 1.00 [0.48, 1.00], " in report
    assert "15 tokens per answer, 1.00 times the cost of asking once, and 90 tokens before the first; n = 5 questions." in report
    data = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [one["strategy"] for one in data["strategies"]["base"]] == ["persona-vote", "persona-search"]
    assert set(data["runs"]["base"]) == {"stability", "stability, persona-vote", "stability, persona-search"}
    assert "| base | stability, persona-vote | " in report  # provenance


def test_a_run_that_asked_the_whole_grid_stands_for_plain_stability_too(tmp_path: Path) -> None:
    choice = cell(None, 99, "A").model_copy(update={"question_id": 'choice:["p0", "q4"]', "verdict": None})
    both = strategy_run(tmp_path / "both", "RLVR", "persona-ensemble", [choice])
    plain = strategy_run(tmp_path / "plain", "base", "none")
    base, other = build_report([plain, both], tmp_path / "out")
    assert base.measures["pss"] == other.measures["pss"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "do not compare" not in report  # its choices are no questions of the evaluation
    assert "RLVR with persona-ensemble" in report
    assert json.loads((tmp_path / "out" / "table.json").read_text())["comparisons"][0]["pss"]["value"] == 0.0


@pytest.mark.parametrize("chosen", [True, False])
def test_a_search_alone_is_no_measurement_of_stability(chosen: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_report(ReportConfig(runs=(search_run(tmp_path / "run", "base", chosen),), out=tmp_path / "out"))
    shown, report = capsys.readouterr().out, (tmp_path / "out" / "report.md").read_text()
    assert "PSS" not in shown
    assert "base, persona-search" in shown
    assert ("**base with persona-search**: accuracy –, not measured against no persona" in report) == (not chosen)
    assert ("no persona chosen yet, of 3" in report) == (not chosen)


def test_two_runs_of_one_strategy_and_label_are_refused(tmp_path: Path) -> None:
    runs = [strategy_run(tmp_path / name, "base", "persona-vote") for name in ("one", "two")]
    with pytest.raises(DataError, match='two stability, persona-vote runs have the label "base"'):
        build_report(runs, tmp_path / "out")


def test_a_strategy_with_a_hostile_persona_is_shown_as_text(tmp_path: Path) -> None:
    run = search_run(tmp_path / "run", "base")
    for name in ("records.jsonl", "grid.json"):
        (run / name).write_text((run / name).read_text().replace('"p0"', '"<b>p|0"'))
    build_report([run], tmp_path / "out")
    report = (tmp_path / "out" / "report.md").read_text()
    assert "<b>" not in report
    assert "persona &#60;b&#62;p&#124;0, the best" in report
