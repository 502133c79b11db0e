"""Which models are one method: training runs written here as configurations, found through the report and through evaluations."""

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from permix.errors import ConfigError
from permix.report.methods import ReportMethod, common_label_prefix, find_training_run, group_methods
from permix.report.pooled import ComparedSeeds, pair_models
from permix.report.runs import ModelRuns, Run

RECORDED = Path(__file__).resolve().parents[2] / "docs/recorded"


def train_run(path: Path, label: str, seed: int = 1, **sections: Any) -> Path:
    path.mkdir(parents=True)
    (path / "model").mkdir()
    config: dict[str, Any] = {
        "stage": "train",
        "out": str(path),
        "label": label,
        "model": {"name": "tiny"},
        "plan": {"seed": seed},
    }
    config |= {"train": {"seed": seed}, "task": {"split": "train", "seed": seed, "n": 100}} | sections
    (path / "config.json").write_text(json.dumps(config))
    return path


def model(label: str, path: Path | None = None, kind: str = "train", asked: str = "tiny") -> ModelRuns:
    """A model with one run: its training at `path`, or an evaluation of the model named `asked`."""
    if path is None or kind != "train":
        path = (path or Path("nowhere")) / f"{label}-{kind}"
    runs = {kind: evaluation(path, label, asked)} if kind != "train" else {kind: Run(path)}
    return ModelRuns(label, runs, None, None, None, ())


def evaluation(path: Path, label: str, asked: str) -> Run:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"stage": "stability", "label": label, "model": {"name": asked}}))
    return Run(path)


def told(found: list[ReportMethod]) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(one.name, one.role, one.labels) for one in found]


def test_trainings_that_differ_in_seeds_alone_are_one_method(tmp_path: Path) -> None:
    base = model("base", tmp_path, "stability")
    plain = [model(f"rlvr {n}", train_run(tmp_path / f"r{n}", f"rlvr {n}", n, method="rlvr")) for n in (1, 2)]
    mixed = [model(f"mixed {n}", train_run(tmp_path / f"p{n}", f"mixed {n}", n, threads=n)) for n in (1, 2, 3)]
    assert told(group_methods([base, mixed[0], *plain, *mixed[1:]])) == [
        ("base", "base", ("base",)),
        ("PerMix-RLVR", "permix", ("mixed 1", "mixed 2", "mixed 3")),
        ("RLVR", "rlvr", ("rlvr 1", "rlvr 2")),
    ]


def test_what_changes_the_weights_makes_another_method_and_labels_name_variants(tmp_path: Path) -> None:
    plain = [model(f"mix-{n}", train_run(tmp_path / f"m{n}", f"mix-{n}", n)) for n in (1, 2)]
    replay = [model(f"replay {n}", train_run(tmp_path / f"r{n}", f"replay {n}", n, character={"replay": 0.5})) for n in (1, 2)]
    faster = [model("lr 1e-4", train_run(tmp_path / "lr", "lr 1e-4", train={"lr": 1e-4, "seed": 1}))]
    assert told(group_methods([*plain, *replay, *faster])) == [
        ("mix", "permix", ("mix-1", "mix-2")),
        ("replay", "permix", ("replay 1", "replay 2")),
        ("lr 1e-4", "permix", ("lr 1e-4",)),
    ]


def test_settings_that_leave_the_weights_alone_do_not_part_seeds(tmp_path: Path) -> None:
    idle = {"microbatch_tokens": 4096, "save_every": 3, "report_to": ["wandb"], "vllm_server_host": "here"}
    one = model("a 1", train_run(tmp_path / "a1", "a 1"))
    two = model("a 2", train_run(tmp_path / "a2", "a 2", 2, train={"seed": 2} | idle, dev_eval={"every": 5}))
    chosen = model("a 3", train_run(tmp_path / "a3", "a 3", 3, dev_eval={"every": 5, "select": "best"}))
    assert told(group_methods([one, two, chosen])) == [("a", "permix", ("a 1", "a 2")), ("a 3", "permix", ("a 3",))]


def test_no_personas_by_a_share_of_nothing_is_rlvr_and_gold_answers_are_neither(tmp_path: Path) -> None:
    nobody = model("nobody", train_run(tmp_path / "n", "nobody", plan={"mix": 0.0}))
    gold = model("gold", train_run(tmp_path / "g", "gold", method="sft"))
    assert [one.role for one in group_methods([nobody, gold])] == ["rlvr", "other"]


def test_an_evaluation_leads_to_the_training_of_its_model_also_when_both_were_moved(tmp_path: Path) -> None:
    for n in (1, 2):
        away = train_run(tmp_path / "away" / f"r{n}", f"r{n}", n, method="rlvr")
        evaluation(tmp_path / "away" / f"r{n}-stability", f"r{n}", str(away / "model"))
    base = evaluation(tmp_path / "away" / "base-stability", "base", "tiny")
    shutil.move(tmp_path / "away", tmp_path / "here")
    runs = [Run(tmp_path / "here" / f"{name}-stability") for name in ("r1", "r2", "base")]
    assert base.model_name == "tiny"
    found = group_methods([ModelRuns(str(run.config["label"]), {"stability": run}, None, None, None, ()) for run in runs])
    assert told(found) == [("RLVR", "rlvr", ("r1", "r2")), ("base", "base", ("base",))]


def test_a_model_whose_training_cannot_be_read_is_a_method_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "broken" / "model").mkdir(parents=True)
    (tmp_path / "broken" / "config.json").write_text("{")
    lost = [model(f"lost {n}", tmp_path, "stability", str(tmp_path / where / "model")) for n, where in enumerate(("broken", "x"))]
    assert told(group_methods(lost)) == [("lost 0", "other", ("lost 0",)), ("lost 1", "other", ("lost 1",))]


def test_the_user_may_say_which_are_one(tmp_path: Path) -> None:
    models = [model(f"m{n}", tmp_path, "stability", "somewhere") for n in (1, 2, 3)]
    assert told(group_methods(models, ["mine = m3, m1"])) == [("mine", "other", ("m1", "m3")), ("m2", "other", ("m2",))]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (["m1,m2"], "is not NAME=LABEL,LABEL"),
        (["=m1"], "is not NAME=LABEL,LABEL"),
        (["a="], "is not NAME=LABEL,LABEL"),
        (["a=m1,m9"], "no model has the label 'm9'; labels are 'm1', 'm2'"),
        (["a=m1,m1"], "'m1' is in 'a' and in 'a'"),
        (["a=m1", "b=m1"], "'m1' is in 'a' and in 'b'; a model belongs to one method"),
        (["a=m1", "a=m2"], "'a' is given twice"),
        (["m2=m1"], "'m2' is also the label of a model outside this method"),
    ],
)
def test_what_the_user_says_wrongly_is_refused(tmp_path: Path, said: list[str], message: str) -> None:
    models = [model(f"m{n}", tmp_path, "stability", "somewhere") for n in (1, 2)]
    with pytest.raises(ConfigError, match=message):
        group_methods(models, said)


def test_a_name_that_is_taken_is_not_given_twice(tmp_path: Path) -> None:
    lone = model("RLVR", tmp_path, "stability", "somewhere")
    seeds = [model(f"run {n}", train_run(tmp_path / f"r{n}", f"run {n}", n, method="rlvr")) for n in (1, 2)]
    assert [one.name for one in group_methods([lone, *seeds])] == ["RLVR", "run"]


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        (("replay 1", "replay 2"), "replay"),
        (("rlvr-10", "rlvr-11"), "rlvr"),
        (("lr-1e-5-1", "lr-1e-5-2"), "lr-1e-5"),
        (("RLVR seed 1", "RLVR seed 2"), "RLVR"),
        (("seed 1", "seed 2"), ""),
        (("one", "other"), ""),
    ],
)
def test_a_shared_name_is_whole_words(labels: tuple[str, ...], name: str) -> None:
    assert common_label_prefix(labels) == name


@pytest.mark.parametrize(
    ("method", "sections"),
    [
        ("rlvr", {"teacher": {"batch_size": 64}}),
        ("rlvr", {"plan": {"seed": 1, "mix": 0.0, "tag_weights": {"character": 2.0}}}),
        ("permix", {"teacher": {"name": "bundled"}, "train": {"seed": 1, "an_old_setting": 3}}),
        ("permix", {"model": {"name": "tiny", "an_old_setting": 3}}),
    ],
)
def test_a_recorded_training_is_known_also_if_a_new_one_would_be_refused(
    tmp_path: Path, method: str, sections: dict[str, Any]
) -> None:
    base = model("base", tmp_path, "stability")
    trained = model("trained", train_run(tmp_path / "t", "trained", method=method, **sections))
    assert told(group_methods([base, trained])) == [("base", "base", ("base",)), ("trained", method, ("trained",))]


def test_settings_without_effect_do_not_part_seeds(tmp_path: Path) -> None:
    """Two revisions record other defaults of what the method does not use."""
    idle = {"teacher": {"batch_size": 64, "name": "bundled"}, "plan": {"seed": 2, "mix": 0.0, "tag_weights": {"x": 2.0}}}
    one = model("a 1", train_run(tmp_path / "a1", "a 1", method="rlvr", plan={"seed": 1, "mix": 0.0}))
    two = model("a 2", train_run(tmp_path / "a2", "a 2", 2, method="rlvr", **idle))
    assert told(group_methods([one, two])) == [("RLVR", "rlvr", ("a 1", "a 2"))]


def recorded_trainings() -> list[tuple[str, dict[str, Any]]]:
    """(name, config.json) of every training in docs/recorded: of the quickstart, and of the study's packed units."""
    found = [(path.parent.name, json.loads(path.read_text())) for path in RECORDED.glob("quickstart/*-train/config.json")]
    for archive in sorted(RECORDED.glob("study/*.tar.xz")):
        with tarfile.open(archive) as packed:
            for member in packed:
                if member.name.endswith("/train/config.json") and (file := packed.extractfile(member)) is not None:
                    found.append((archive.name.split(".")[0], json.load(file)))
                    break
    return found


def test_every_recorded_training_is_read_and_the_seeds_of_the_primary_comparison_are_paired(tmp_path: Path) -> None:
    models: dict[str, ModelRuns] = {}
    for name, config in recorded_trainings():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        models[name] = model(name, tmp_path / name)
        training = find_training_run(models[name])
        assert training is not None, name
        assert training.method == config["method"], name
        assert training.seed == config["plan"]["seed"], name
        arm = name.removesuffix("-train").rsplit("-", 1)[0]
        assert training.role == {"rlvr": "rlvr", "permix": "permix"}.get(config["method"], "other"), arm
    assert len(models) >= 2 + 30
    arms = [[models[f"{arm}-{seed}"] for seed in range(1, 9)] for arm in ("permix", "rlvr")]
    assert pair_models(*arms).seeds == ComparedSeeds(pairing="paired", n=(8, 8))
    replay = [models[f"permix-replay-{seed}"] for seed in range(1, 6)]
    assert pair_models(replay, arms[1]).seeds == ComparedSeeds(pairing="paired", n=(5, 5), n_left_out=(0, 3))
    assert [one.labels for one in group_methods([model for arm in arms for model in arm])] == [
        tuple(f"permix-{seed}" for seed in range(1, 9)), tuple(f"rlvr-{seed}" for seed in range(1, 9))
    ]  # fmt: skip
