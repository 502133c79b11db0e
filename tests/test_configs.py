"""Every shipped configuration says what it is for, is valid, and mirrors the quickstart where it says so.

What a configuration needs and a test must not have (a data set of the hub, a file of the user's, earlier runs) is replaced:
by rows made here in the published format, and by empty runs. So all of it is checked but the data themselves.
"""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from permix import config
from permix.inference.cost import FREE, load_prices
from permix.pipelines.preflight import check_config, read_stage_config
from permix.pipelines.quickstart import quickstart_configs
from tests.personagym_files import write_gym

ROOT = Path(__file__).resolve().parents[1]
PRICES = ROOT / "configs" / "prices.toml"
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.toml") if path != PRICES)
HUB = ("gsm8k", "math", "math500")

by_name = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def header(path: Path) -> str:
    """The comment before the first setting."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next(place for place, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(lines[:end])


def needed(stage: config.AnyConfig) -> list[str]:
    """What the stage reads besides itself: a data set of the hub, a local file, earlier runs."""
    task = getattr(stage, "task", None)
    found = []
    if task is not None and task.name in HUB:
        found.append(str(task.path or "hub"))
    if isinstance(stage, config.FidelityConfig) and stage.personagym.path:
        found.append(str(stage.personagym.path))
    return found + [str(run) for run in (*getattr(stage, "runs", ()), getattr(stage, "reference", None)) if run]


def rows(task: config.TaskConfig) -> Iterator[dict[str, str]]:
    """Twice as many rows as asked, in the task's published format; of MATH a quarter falls to the other side."""
    levels = task.levels or ("1",)
    for n in range(2 * task.n):
        if task.name == "gsm8k":
            yield {"question": f"{n} plus none?", "answer": f"#### {n}"}
        else:
            level = f"Level {levels[n % len(levels)]}"
            yield {"problem": f"{n} plus none?", "answer": str(n), "level": level, "type": "Algebra", "subject": "Algebra"} | {
                "unique_id": str(n)
            }


def with_stand_ins(path: Path, folder: Path) -> Path:
    """A copy of the configuration in `folder`, and there what it reads: run the check from inside it."""
    stage, text = read_stage_config(path), path.read_text(encoding="utf-8")
    task = getattr(stage, "task", None)
    if task is not None and task.name in HUB:
        file = task.path or Path(f"{'train' if task.split == 'train' or task.name == 'math' else 'test'}.jsonl")
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows(task)), encoding="utf-8")
        if task.path is None:
            text = re.sub(r"^\[task\]$", f'[task]\npath = "{file}"', text, flags=re.MULTILINE)
    if isinstance(stage, config.FidelityConfig) and stage.personagym.path:
        write_gym(folder / stage.personagym.path)
    for run in (*getattr(stage, "runs", ()), getattr(stage, "reference", None)):
        if run:
            (folder / run).mkdir(parents=True)
            (folder / run / "config.json").write_text('{"stage": "fidelity"}', encoding="utf-8")
    copy = folder / path.name
    copy.write_text(text, encoding="utf-8")
    return copy


@by_name
def test_the_header_says_purpose_hardware_time_and_needs(path: Path) -> None:
    said = re.findall(r"^# (\w+):", header(path), re.MULTILINE)
    assert said[:3] == ["Purpose", "Hardware", "Time"]
    assert ("Needs" in said) == bool(needed(read_stage_config(path))), needed(read_stage_config(path))


@pytest.mark.slow
@by_name
def test_the_configuration_is_valid(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_config(with_stand_ins(path, tmp_path))["result"] == "valid"


@by_name
def test_what_was_not_run_says_so_and_nothing_asks_for_an_unlisted_gpu(path: Path) -> None:
    gpu = "GPU" in header(path)
    assert gpu == path.stem.endswith("-gpu")
    assert not gpu or path.name in (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")


def test_the_prices_that_are_shipped_are_those_of_nobody_but_oneself() -> None:
    assert set(load_prices(PRICES).values()) == {FREE}


def test_the_arithmetic_configurations_are_the_quickstarts() -> None:
    stable, distinct, trained = quickstart_configs(config.QuickstartConfig())
    mirrored = {
        "arithmetic-rlvr": trained[0], "arithmetic-permix": trained[1],
        "stability-arithmetic": stable[0], "fidelity-builtin": distinct[0],
    }  # fmt: skip
    for name, theirs in mirrored.items():
        ours = read_stage_config(ROOT / "configs" / f"{name}.toml")
        assert ours.model_dump(exclude={"out"}) == theirs.model_dump(exclude={"out"}), name


TRAININGS = {"rlvr": 0.0, "permix": 0.8, "sft": 0.0, "sft-personas": 0.8, "seqkd": 0.8}


def test_the_arithmetic_trainings_differ_in_their_method_alone() -> None:
    """In what the files say, but for what each needs; and where two of them mix alike, their plans are the same."""
    files = {name: ROOT / "configs" / f"arithmetic-{name}.toml" for name in TRAININGS}
    said = {name: tomllib.loads(path.read_text()) for name, path in files.items()}
    assert {name: run.pop("method") for name, run in said.items()} == {name: name for name in TRAININGS}
    assert said["seqkd"].pop("teacher") == {"name": "self"}
    assert said["permix"].pop("character") == {"replay": 0.5, "replay_answers": 6}
    for name in ("rlvr", "permix", "seqkd"):
        assert said[name]["train"].pop("temperature") == 0.7
    for run in said.values():
        del run["out"], run["label"]
    assert all(run == said["permix"] for run in said.values())
    loaded = {name: config.load_config(config.TrainConfig, path) for name, path in files.items()}
    assert {name: run.plan.mix for name, run in loaded.items()} == TRAININGS


def test_the_report_names_the_runs_that_the_configurations_make() -> None:
    report = read_stage_config(ROOT / "configs" / "report-arithmetic.toml")
    assert isinstance(report, config.ReportConfig)
    names = ("stability-arithmetic", "fidelity-builtin", "arithmetic-rlvr", "arithmetic-permix")
    stages = [read_stage_config(ROOT / "configs" / f"{name}.toml") for name in names]
    made = [stage.out for stage in stages if isinstance(stage, config.RunConfig)]
    assert len(made) == len(names)
    assert set(made) <= set(report.runs)
    assert list(report.runs[:2]) == made[:2]
