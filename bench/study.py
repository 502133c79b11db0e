"""Every method on the bundled model, seed by seed: trained alike, measured alike, one JSON line a number.

On the dev side, to choose (`--side dev`, the default), or on the held-out side, to report (`--side heldout`). An arm is one
change of the quickstart's training; all arms of a seed meet the same questions in the same steps. What is there is not done
again, so a study can be stopped, resumed and widened. Run it alone on its machine for CPU seconds that mean something.

    python -m bench.study --out runs/study --arms rlvr permix replay --seeds 1 2 3 --side heldout
    python -m bench.study --out runs/study --side heldout --page
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.study_page import BASE, knobs, table
from permix.config import FidelityConfig, ModelConfig, PersonasConfig, StabilityConfig, TaskConfig, TrainConfig, build_config
from permix.evals.stability import run_stability
from permix.inference.hardware import release_memory
from permix.pipelines.fidelity import run_fidelity
from permix.pipelines.quickstart import QUICKSTART_LEVELS
from permix.pipelines.train import run_training
from permix.progress import print_status
from permix.report.builder import build_report
from permix.report.comparisons import compare_models
from permix.report.runs import ModelRuns, collect_models
from permix.storage.files import read_json, write_text
from permix.types import Sampling, Split

BUNDLED = "bundled"
REASON_FIRST = "{question} Think it through in your own voice first, then say the result."
"""Trained with these words alone: evaluations ask every model in the same ones."""
ARMS: dict[str, dict[str, Any]] = {
    "rlvr": {"method": "rlvr"},
    "permix": {},
    "mix-0.5": {"plan": {"mix": 0.5}},
    "mix-1.0": {"plan": {"mix": 1.0}},
    "lr-1e-5": {"train": {"lr": 1e-5}},
    "lora": {"train": {"lora_rank": 16, "lr": 3e-4}},
    "kl": {"train": {"beta": 0.02}},
    "kl-no-persona": {"train": {"beta": 0.02, "kl_reference_prompt": "no-persona"}},
    "replay": {"character": {"replay": 0.5, "replay_answers": 6}},
    "replay-strong": {"character": {"replay": 2.0, "replay_answers": 6}},
    "replay-on": {"character": {"replay": 0.5, "replay_answers": 6, "replay_policy": "on"}},
    "expressive": {"character": {"expressivity": 0.5}},
    "reason": {"task": {"prompt_template": REASON_FIRST}, "train": {"max_new_tokens": 48}},
    "adaptive": {"plan": {"curriculum_strength": 4.0}},
    "spares": {"plan": {"dynamic_sampling_groups": 3}},
    "sft": {"method": "sft", "train": {"temperature": 1.0}},
    "sft-personas": {"method": "sft-personas", "train": {"temperature": 1.0}},
    "seqkd": {"method": "seqkd"},
}


class Size(NamedTuple):
    """How much of a side is asked. `kinds` are those of the personas that are told apart; the dev side has few characters."""

    questions: int
    personas: int
    kinds: tuple[str, ...]
    asked: int


EVALUATED: dict[Split, Size] = {
    "dev": Size(questions=60, personas=12, kinds=("character", "expert", "harmful"), asked=20),
    "heldout": Size(questions=100, personas=18, kinds=("character",), asked=40),
}


def training(arm: str, seed: int, steps: int, out: Path, threads: int) -> TrainConfig:
    """The quickstart's training with one thing changed."""
    sections: dict[str, dict[str, Any]] = {
        "model": {"name": BUNDLED},
        "task": {"levels": QUICKSTART_LEVELS, "n": 300, "seed": seed},
        "plan": {"steps": steps, "questions_per_step": 6, "group_size": 8, "seed": seed},
        "train": {"lr": 3e-5, "temperature": 0.7, "max_new_tokens": 28, "save_every": 10, "seed": seed},
    }
    change = ARMS[arm]
    changed = {name: sections.get(name, {}) | change.get(name, {}) for name in {*sections, *change} - {"method"}}
    head = {"out": out / f"{arm}-{seed}-train", "label": f"{arm} {seed}", "threads": threads}
    return build_config(TrainConfig, head | {"method": change.get("method", "permix")} | changed, source=f"arm {arm}")


def evaluations(
    label: str, name: str, model: str, side: Split, out: Path, threads: int
) -> tuple[StabilityConfig, FidelityConfig]:
    size = EVALUATED[side]
    own: dict[str, Any] = {"label": label, "threads": threads, "model": ModelConfig(name=model)}
    return StabilityConfig(
        out=out / f"{name}-{side}-stability", **own, sampling=Sampling(max_new_tokens=28),
        task=TaskConfig(split=side, levels=QUICKSTART_LEVELS, n=size.questions),
        personas=PersonasConfig(split=side, n=size.personas),
    ), FidelityConfig(
        out=out / f"{name}-{side}-fidelity", **own, questions_split=side, n_questions=size.asked,
        personas=PersonasConfig(split=side, include=size.kinds),
        reference=None if name == BASE else out / f"{BASE}-{side}-fidelity",
    )  # fmt: skip


def measured(label: str, name: str, model: str, side: Split, out: Path, threads: int) -> list[Path]:
    stable, distinct = evaluations(label, name, model, side, out, threads)
    if not (stable.out / "metrics.json").exists():
        run_stability(stable)
    if not (distinct.out / "metrics.json").exists():
        run_fidelity(distinct)
    release_memory()
    return [stable.out, distinct.out]


def lines(models: dict[str, ModelRuns]) -> Iterator[dict[str, Any]]:
    """Every model by itself; against the base model; and against plain RLVR of the same seed."""
    for label, model in models.items():
        row = model.row.model_dump(mode="json")
        for measure in ("pss", "worst", "mean", "baseline", "identifiability"):
            if row.get(measure):
                yield {"figure": measure, "model": label, **row[measure]}
        for other in (BASE, f"rlvr {label.split()[-1]}"):
            if other in models and other != label:
                found = compare_models(models[other], model)
                for measure, difference in (found.measures | {"identifiability": found.identifiability}).items():
                    if difference is not None:
                        yield {"figure": f"{measure} difference", "model": label, "against": other, **difference.model_dump()}
        if "train" in model.runs:
            usage = read_json(model.runs["train"].path / "usage.json")
            yield {"figure": "training", "model": label, **{key: usage[key] for key in ("cpu_seconds", "peak_mb")}}


def there(out: Path, side: Split) -> list[tuple[str, int]]:
    """Arms and seeds that have been trained and measured, in the arms' order."""
    found = []
    for metrics in out.glob(f"*-{side}-fidelity/metrics.json"):
        arm, _, seed = metrics.parent.name.removesuffix(f"-{side}-fidelity").rpartition("-")
        if arm in ARMS and seed.isdigit():
            found.append((arm, int(seed)))
    return sorted(found, key=lambda one: (list(ARMS).index(one[0]), one[1]))


def page(out: Path, side: Split) -> None:
    """The table and the figure of all that is there."""
    runs = [out / f"{BASE}-{side}-{stage}" for stage in ("stability", "fidelity")]
    for arm, seed in there(out, side):
        runs += [out / f"{arm}-{seed}-{name}" for name in ("train", f"{side}-stability", f"{side}-fidelity")]
    models = {model.label: model for model in collect_models(runs)}
    write_text(out / f"table-{side}.md", table(models))
    for seed in sorted({seed for _, seed in there(out, side)}):
        knobs(models, seed, out / f"knobs-{side}-{seed}.png")
    print(table(models))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["rlvr", "permix"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--side", choices=EVALUATED, default="dev")
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--page", action="store_true", help="train and measure nothing: a table and figures of all that is there")
    return parser


def main() -> None:
    options = parser().parse_args()
    if options.page:
        page(options.out, options.side)
        return
    runs = measured(BASE, BASE, BUNDLED, options.side, options.out, options.threads)
    for seed in options.seeds:
        for arm in options.arms:
            stage = training(arm, seed, options.steps, options.out, options.threads)
            folder = run_training(stage)
            release_memory()
            runs += [
                stage.out,
                *measured(f"{arm} {seed}", f"{arm}-{seed}", str(folder), options.side, options.out, options.threads),
            ]
            print_status(f"study: {arm} of seed {seed} is done")
    build_report(runs, options.out / f"report-{options.side}", "A study of the methods, seed by seed.")
    for line in lines({model.label: model for model in collect_models(runs)}):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
