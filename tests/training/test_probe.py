"""The probe without a model: what it asks, what it refuses, how points come from records, and what is chosen by them."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from permix.config import (
    ConfigSection,
    DevEvalConfig,
    DevMetric,
    OptimConfig,
    PersonasConfig,
    RolloutPlanConfig,
    TaskConfig,
    TrainConfig,
    build_config,
)
from permix.errors import ConfigError
from permix.evals import stability
from permix.evals.grid import describe_grid
from permix.metrics.dev_curve import (
    DevCurve,
    DevEvalPoint,
    DevSelection,
    select_checkpoint,
    selected_step,
    selection_scores,
    selection_text,
)
from permix.personas.loading import load_roleplay
from permix.personas.pool import PersonaSource, load_pool
from permix.plan import Plan, compile_plan_from_config, write_plan
from permix.tasks import load_questions
from permix.tasks.base import TrainedOn, write_trained_on
from permix.training.dev_eval import DevEval, build_dev_eval, describe_dev_eval, dev_eval_steps, load_dev_curve
from permix.training.job import prepare_training
from permix.types import Cell, Completion, Estimate, Message, Persona, Question, Verdict
from tests.sample_runs import write_pool

LEVELS = ("add-1", "sub-1")
"""On the dev side 12 and 5 questions."""
SMALL = {"every": 5, "personas": 3, "questions": 15, "characters": 2}


def stage(out: Path = Path("run"), **sections: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "out": out,
        "task": TaskConfig(split="train", levels=LEVELS, n=20),
        "personas": PersonasConfig(split="train", n=4),
        "plan": RolloutPlanConfig(steps=3, questions_per_step=2, group_size=2, mix=0.8),
        "dev_eval": DevEvalConfig.model_validate(SMALL),
    }
    return TrainConfig(**values | sections)


def probing(**settings: Any) -> DevEvalConfig:
    return DevEvalConfig.model_validate(SMALL | settings)


def probe_of(config: TrainConfig) -> DevEval:
    probe = prepare_training(config).dev_eval
    assert probe is not None
    return probe


# What is asked


def test_everything_it_asks_stands_on_the_dev_side() -> None:
    probe = probe_of(stage(dev_eval=DevEvalConfig(every=5, questions=17)))
    sides = {persona.id: persona.split for persona in load_pool().personas}
    assert probe.open_ended_set is not None
    asked = [*probe.setup.pool.personas, *probe.open_ended_set.personas.personas]
    assert {sides[persona.id] for persona in asked} == {"dev"}
    assert (len(probe.setup.pool), len(probe.open_ended_set.personas), len(probe.open_ended_set.questions)) == (8, 6, 10)
    assert {persona.tags[0] for persona in probe.open_ended_set.personas.personas} == {"character"}
    assert set(probe.open_ended_set.questions) <= set(load_roleplay("builtin", "dev"))
    _, dev = load_questions(TaskConfig(split="dev", levels=LEVELS, n=17))
    assert set(probe.setup.questions) == set(dev)
    assert len(probe.cells()) == (8 + 1) * 17 + 6 * 10
    assert describe_dev_eval(probe).startswith("213 answers before training, every 5 steps and at the end")


def test_it_asks_in_the_words_that_are_trained_on() -> None:
    worded = TaskConfig(split="train", levels=LEVELS, n=20, prompt_template="Briefly: {question}")
    personas = PersonasConfig(split="train", n=4, template="adopt", empty_system_prompt=True)
    probe = probe_of(stage(task=worded, personas=personas, train=OptimConfig(max_new_tokens=77)))
    cells = [cell for cell, _ in probe.cells()]
    without, with_one, in_character = cells[0], cells[15], cells[-1]
    assert without.messages[0] == {"role": "system", "content": ""}
    assert without.messages[1]["content"].startswith("Briefly: What is")
    assert with_one.messages[0]["content"].startswith("Adopt the identity of")
    assert in_character.messages[0]["content"].startswith("Adopt the identity of")
    assert in_character.gold is None
    assert [sampling.max_new_tokens for _, sampling in (probe.cells()[0], probe.cells()[-1])] == [77, 48]
    assert [sampling.temperature for _, sampling in (probe.cells()[0], probe.cells()[-1])] == [0, 0.7]


def test_every_step_asks_the_same_and_each_in_its_own_place() -> None:
    probe = probe_of(stage())
    assert probe.open_ended_set is not None
    one, two = probe.stability_config_at(0), probe.stability_config_at(20)
    assert one.model_copy(update={"out": two.out, "label": two.label}) == two
    assert (two.out, two.label) == (Path("run/dev_eval/step-0020/stability"), "run, step 20")
    assert probe.fidelity_config_at(0, probe.open_ended_set).reference is None
    assert probe.fidelity_config_at(20, probe.open_ended_set).reference == probe.fidelity_config_at(0, probe.open_ended_set).out


def test_the_tags_of_training_choose_who_asks_but_characters_stay_the_ones_told_apart() -> None:
    personas = PersonasConfig(split="train", include=("expert", "neutral"), exclude=("games",))
    probe = probe_of(stage(personas=personas))
    assert probe.open_ended_set is not None
    assert all({"expert", "neutral"} & set(one.tags) for one in probe.setup.pool.personas)
    assert all("character" in one.tags for one in probe.open_ended_set.personas.personas)


def test_a_pool_without_characters_tells_any_of_its_personas_apart(tmp_path: Path) -> None:
    rows = "".join(f"a {colour} {one},{side}\n" for side, colour in (("train", "red"), ("dev", "blue")) for one in NOUNS)
    (tmp_path / "pool.csv").write_text(f"text,split\n{rows}")
    probe = probe_of(stage(personas=PersonasConfig(pool=str(tmp_path / "pool.csv"), split="train")))
    assert probe.open_ended_set is not None
    assert {persona.text.split()[1] for persona in probe.open_ended_set.personas.personas} == {"blue"}


NOUNS = ("teapot", "glacier", "umbrella", "violin")


@pytest.mark.parametrize(
    ("every", "last", "steps"),
    [(5, 12, [0, 5, 10, 12]), (5, 10, [0, 5, 10]), (20, 12, [0, 12]), (1, 2, [0, 1, 2]), (0, 12, [])],
)
def test_when_it_probes(every: int, last: int, steps: list[int]) -> None:
    assert dev_eval_steps(DevEvalConfig(every=every), last) == steps


def test_without_every_there_is_no_probe() -> None:
    config = stage(dev_eval=DevEvalConfig())
    assert prepare_training(config).dev_eval is None


@pytest.mark.slow
def test_import_is_light() -> None:
    """Reports and `permix check` read it."""
    code = "import sys, permix.training.dev_eval; sys.exit(bool({'torch', 'transformers', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"questions": 18}, r"dev_eval.questions = 18: arithmetic has 17 distinct .* give dev_eval.questions = 17 or less"),
        ({"personas": 25}, "dev_eval.personas = 25: the dev split has 24 such personas; give 24 or less"),
        ({"characters": 7}, "dev_eval.characters = 7: the dev split has 6 such personas; give 6 or less"),
        ({"roleplay_questions": 21}, "dev_eval.roleplay_questions = 21: give 10 .* to 20"),
    ],
)
def test_more_than_the_dev_side_has_is_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^\[dev_eval\] uses the dev split: {message}"):
        probe_of(stage(dev_eval=probing(**settings)))


def test_a_pool_without_a_dev_side_is_refused(tmp_path: Path) -> None:
    pool = PersonasConfig(pool=str(write_pool(tmp_path / "pool.toml")), split="all")
    with pytest.raises(ConfigError, match=r"\[dev_eval\] uses the dev split: split = 'dev': has none of the 4 personas"):
        probe_of(stage(personas=pool))


def test_a_task_without_a_dev_side_is_refused() -> None:
    """Such a task cannot be compiled into a plan; a plan made in Python can say that it was."""
    config = stage(task=TaskConfig(name="math500", split="train"))
    plan = prepare_training(stage()).plan
    with pytest.raises(
        ConfigError,
        match=r"task.split = \"dev\": math500 is for evaluation only.*task.name = \"math\"",
    ):
        build_dev_eval(config, Plan(plan.rows, {}), PersonaSource(config.personas.pool), ())


def test_a_plan_that_trains_under_its_personas_is_refused(tmp_path: Path) -> None:
    rows = "".join(f"a {one},{side}\n" for side, one in zip(("train", "dev", "dev", "dev"), NOUNS, strict=True))
    (tmp_path / "pool.csv").write_text(f"text,split\n{rows}")
    everyone = PersonasConfig(pool=str(tmp_path / "pool.csv"), split="all")
    with pytest.raises(ConfigError, match=r"the plan trains under \d of its 3 personas, such as .*; train with personas.split"):
        probe_of(stage(personas=everyone, plan=RolloutPlanConfig(mix=1, steps=10, questions_per_step=2)))


def test_a_plan_that_trains_on_its_questions_is_refused() -> None:
    dev = TaskConfig(split="dev", levels=LEVELS, n=17)
    plan = compile_plan_from_config(dev, PersonasConfig(split="train"), RolloutPlanConfig(steps=4, questions_per_step=4))
    with pytest.raises(ConfigError, match=r"the plan trains on \d+ of its 15 questions, such as 'arithmetic:"):
        build_dev_eval(stage(), plan, PersonaSource("builtin"), ())


def test_a_model_that_learnt_its_questions_before_is_refused(tmp_path: Path) -> None:
    _, questions = load_questions(TaskConfig(split="dev", levels=LEVELS, n=17))
    write_trained_on(tmp_path, TrainedOn(frozenset(question.content_hash for question in questions)))
    with pytest.raises(ConfigError, match="15 of 15 questions of this evaluation were seen in training"):
        probe_of(stage(model={"name": str(tmp_path)}))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"task": TaskConfig(split="train", levels=("add-2",))},
            r"task.levels = \['add-2'\]: plan_file = .* compiled with \['add-1'",
        ),
        (
            {"task": TaskConfig(split="train", levels=LEVELS, prompt_template="{question}!")},
            r"task.prompt_template = '\{question\}!'",
        ),
        ({"personas": PersonasConfig(split="train", template="adopt")}, "personas.template = 'adopt'.*another template"),
        (
            {"personas": PersonasConfig(split="train", empty_system_prompt=True)},
            "personas.empty_system_prompt = True: .* compiled with False",
        ),
    ],
)
def test_sections_that_are_not_those_of_the_plan_file_are_refused(sections: Any, message: str, tmp_path: Path) -> None:
    config = stage()
    write_plan(prepare_training(config).plan, tmp_path / "plan.parquet")
    assert prepare_training(stage(plan_file=tmp_path / "plan.parquet")).dev_eval is not None
    with pytest.raises(ConfigError, match=message):
        probe_of(stage(plan_file=tmp_path / "plan.parquet", **sections))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"select": "best"}, r"every = 0: select = \"best\" and patience need dev evaluations"),
        ({"patience": 2}, "give dev_eval.every = 10"),
        ({"every": 5, "characters": 1}, "identifiability compares personas"),
        ({"every": 5, "characters": 0}, "take worst, mean or pss"),
        ({"every": 5, "metric": "best"}, "dev_eval.metric = 'best'"),
        ({"every": 5, "roleplay_questions": 9}, "dev_eval.roleplay_questions = 9"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    class Holder(ConfigSection):
        dev_eval: DevEvalConfig = DevEvalConfig()

    with pytest.raises(ConfigError, match=message):
        build_config(Holder, {"dev_eval": settings}, source="test")


# What is measured


def cell(persona: int | None, question: int, correct: bool | None, tokens: int, *, checked: bool = True) -> Cell:
    system = [] if persona is None else [Message(role="system", content=f"You are persona {persona}.")]
    text = VOICES[persona or 0] if not checked else "4"
    return Cell(
        persona_id=None if persona is None else f"p{persona}", question_id=f"q{question}", seed=1, gold="4" if checked else None,
        messages=(*system, Message(role="user", content=f"What of {question}?")),
        completion=Completion(text=text, prompt_tokens=9, completion_tokens=tokens, finish="stop"),
        verdict=Verdict(correct=correct) if checked else None,
    )  # fmt: skip


VOICES = ("arr matey", "beep boop")


def write_run(folder: Path, config: dict[str, Any], cells: Sequence[Cell], questions: int) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"seed": 0, "resamples": 100, "folds": 5} | config))
    (folder / "records.jsonl").write_text("".join(one.model_dump_json() + "\n" for one in cells))
    personas = [Persona(id=f"p{p}", text=f"persona {p}") for p in range(2)]
    asked = [Question(id=f"q{q}", task="t", text=f"What of {q}?", gold="4") for q in range(questions)]
    (folder / "grid.json").write_text(json.dumps(describe_grid(personas, asked, 1)))


def write_probe(out: Path, step: int, right: tuple[int, int, int], voices: bool = True) -> None:
    """Ten questions; no persona, p0 and p1 are right on so many of them, with 2, 4 and 6 tokens an answer."""
    folder = out / "dev_eval" / f"step-{step:04d}"
    grid = [cell(p, q, q < right[n], 2 + 2 * n) for n, p in enumerate((None, 0, 1)) for q in range(10)]
    write_run(folder / "stability", {"stage": "stability"}, grid, 10)
    if voices:
        talk = [cell(p, q, None, 3, checked=False) for p in range(2) for q in range(10)]
        write_run(folder / "fidelity", {"stage": "fidelity"}, talk, 10)
    with (out / "dev_eval.jsonl").open("a") as lines:
        lines.write(json.dumps({"step": step}) + "\n")


def test_points_come_from_the_records(tmp_path: Path) -> None:
    write_probe(tmp_path, 0, (5, 8, 4))
    write_probe(tmp_path, 10, (6, 9, 9))
    curve = load_dev_curve(tmp_path, DevEvalConfig(every=10))
    assert curve is not None
    first, second = curve.points
    assert (first.step, second.step) == (0, 10)
    assert [one.value for one in (first.measures["baseline"], first.measures["mean"])] == pytest.approx([0.5, 0.6])
    stable = stability.measure_stability(tmp_path / "dev_eval" / "step-0000" / "stability")
    assert (first.measures["worst"], first.measures["best"], first.measures["pss"]) == (stable.worst, stable.best, stable.pss)
    assert (first.completion_tokens, first.n_questions, first.n_scored, first.n_asked) == (4.0, 10, 20, 20)
    assert first.identifiability is not None
    assert (first.identifiability.value, first.chance) == (1.0, 0.5)
    assert second.measures["mean"].value == 0.9
    told = f"mean 0.600, worst {first.measures['worst'].value:.3f}, PSS {first.measures['pss'].value:.3f}, no persona 0.500, "
    assert str(first) == told + "identifiability 1.000 (chance 0.500)"


def test_without_characters_there_is_no_identifiability(tmp_path: Path) -> None:
    write_probe(tmp_path, 0, (5, 8, 4), voices=False)
    curve = load_dev_curve(tmp_path, DevEvalConfig(every=10, characters=0, metric="mean"))
    assert curve is not None
    assert (curve.points[0].identifiability, curve.points[0].chance) == (None, None)


def test_records_that_no_line_names_are_no_points(tmp_path: Path) -> None:
    """As those of a process that died further on."""
    assert load_dev_curve(tmp_path, DevEvalConfig(every=10)) is None
    for step in (0, 10, 20):
        write_probe(tmp_path, step, (5, 8, 4))
    (tmp_path / "dev_eval.jsonl").write_text('{"step": 0}\n{"step": 10}\n')
    curve = load_dev_curve(tmp_path, DevEvalConfig(every=10))
    assert curve is not None
    assert [point.step for point in curve.points] == [0, 10]


def test_a_cell_without_a_score_is_counted_and_not_zero(tmp_path: Path) -> None:
    write_probe(tmp_path, 0, (5, 8, 4))
    records = tmp_path / "dev_eval" / "step-0000" / "stability" / "records.jsonl"
    with records.open("a") as file:
        file.write(cell(0, 9, None, 4).model_dump_json() + "\n")
    curve = load_dev_curve(tmp_path, DevEvalConfig(every=10))
    assert curve is not None
    (point,) = curve.points
    assert (point.n_scored, point.n_asked) == (19, 20)
    assert point.measures["mean"].value == pytest.approx((8 / 9 + 4 / 10) / 2)
    assert str(point).endswith("19 of 20 cells scored")


def test_the_share_of_answers_cut_off_is_in_the_line() -> None:
    assert "cut off" not in str(point(0, 0.5).model_copy(update={"cut_off": 0.0}))
    assert str(point(0, 0.5).model_copy(update={"cut_off": 0.25})).endswith(", cut off 25%")


# What is chosen


def estimate(value: float | None) -> Estimate:
    return Estimate(value=value, n=10)


def point(step: int, worst: float | None, identifiability: float | None = 0.5, mean: float | None = None) -> DevEvalPoint:
    return DevEvalPoint(
        step=step,
        measures={
            "worst": estimate(worst),
            "mean": estimate(mean),
            "best": estimate(1),
            "pss": estimate(worst),
            "baseline": estimate(0.5),
        },
        identifiability=None if identifiability is None else estimate(identifiability),
        chance=0.1,
        completion_tokens=5,
        n_questions=10,
        n_scored=20,
        n_asked=20,
    )


def curve(*points: DevEvalPoint, **settings: Any) -> DevCurve:
    return DevCurve(points, DevEvalConfig.model_validate({"every": 10, "metric": "worst"} | settings))


def test_balanced_pays_for_what_identifiability_lost_and_earns_nothing_by_a_gain() -> None:
    points = [point(0, 0.2, 0.6), point(10, 0.5, 0.5), point(20, 0.5, 0.9), point(30, 0.7, 0.1), point(40, 0.6, None)]
    found = selection_scores(points, "balanced")
    assert found[:4] == pytest.approx([0.2, 0.4, 0.5, 0.2])
    assert found[4] is None
    assert select_checkpoint(points, "balanced").best_step == 20
    assert select_checkpoint(points, "worst").best_step == 30


@pytest.mark.parametrize("metric", ["mean", "worst", "pss"])
def test_the_other_metrics_are_the_measures_themselves(metric: DevMetric) -> None:
    points = [point(0, 0.2, mean=0.2), point(10, None), point(20, 0.3, mean=0.3)]
    assert selection_scores(points, metric) == [0.2, None, 0.3]


def test_a_tie_goes_to_the_earlier_probe() -> None:
    assert select_checkpoint([point(0, 0.2), point(10, 0.4), point(20, 0.4)], "worst").best_step == 10


@pytest.mark.parametrize(
    ("worst", "patience", "stale", "stop"),
    [
        ([0.2], 1, 0, False),
        ([0.2, 0.1], 1, 1, True),
        ([0.2, 0.2], 1, 1, True),  # no better is not better
        ([0.2, 0.1, 0.3], 2, 0, False),
        ([0.2, 0.3, 0.1], 2, 1, False),
        ([0.2, 0.3, 0.1, 0.3], 2, 2, True),
        ([0.2, 0.3, 0.1, 0.4], 2, 0, False),
        ([0.2, 0.3, None, None], 2, 0, False),  # no score says nothing
        ([0.2, 0.3, None, 0.1, 0.1], 2, 2, True),
        ([0.2, 0.1, 0.1, 0.1], None, 3, False),
        ([None, None], 1, 0, False),
    ],
)
def test_patience_counts_the_scored_probes_since_the_best(
    worst: list[float | None], patience: int | None, stale: int, stop: bool
) -> None:
    choice = select_checkpoint([point(10 * n, one) for n, one in enumerate(worst)], "worst", patience)
    assert (choice.n_since_best, choice.should_stop) == (stale, stop)


def test_a_choice_holds_what_it_rests_on() -> None:
    found = select_checkpoint([point(0, 0.2), point(10, None), point(20, 0.4), point(30, 0.1)], "worst", patience=1)
    assert found == DevSelection(
        metric="worst", best_step=20, best_score=0.4, last_step=30, last_score=0.1, n_scored=3, n_since_best=1, should_stop=True
    )


def test_the_last_weights_are_taken_unless_the_best_are_asked_for() -> None:
    points = (point(0, 0.2), point(10, 0.4), point(20, 0.3))
    assert (selected_step(curve(*points)), selected_step(curve(*points, select="best"))) == (20, 10)
    assert selected_step(curve(point(0, None), point(10, None), select="best")) == 10


def test_what_is_told() -> None:
    points = (point(0, 0.2), point(10, 0.4), point(20, 0.3))
    assert selection_text(curve(*points)) == (
        "The weights are those of step 20, the last (select = last; "
        "of 3 dev evaluations the best by worst is that of step 10, 0.400; "
        "step 20, the last, has 0.300)."
    )
    assert selection_text(curve(*points, select="best", patience=1)) == (
        "The weights are those of step 10 (select = best; of 3 dev evaluations the best by worst is that of step 10, 0.400; "
        "step 20, the last, has 0.300). Training ended at step 20: no dev evaluation after step 10 was better (patience = 1)."
    )
    assert selection_text(curve(*points[:2], select="best")) == (
        "The weights are those of step 10, the last (select = best; "
        "of 2 dev evaluations the best by worst is that of step 10, 0.400)."
    )
    assert "No dev evaluation was better than that of the model before training." in selection_text(
        curve(points[0], point(10, 0.1), select="best")
    )
    assert (
        selection_text(curve(point(0, None)))
        == "The weights are those of step 0, the last (select = last; no dev evaluation has a score)."
    )
