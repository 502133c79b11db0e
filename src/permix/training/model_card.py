"""Writes the card of a trained model: method, plan, settings, and the curves of its training and of its dev evaluations.

Contract: curves and numbers come from the run's logs and records, as in a report on it. Labels are escaped. matplotlib is
imported only when curves are drawn, after the training.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from permix.config import IGNORED_FIELDS, SUPERVISED_METHODS, TrainConfig
from permix.inference.hf import BUNDLED_HUB_ID
from permix.metrics.dev_curve import DevCurve, DevEvalPoint, selection_text
from permix.metrics.measures import measures_in
from permix.plan import Plan, describe_plan
from permix.sanitize import escape_markdown
from permix.storage.files import read_json, write_text
from permix.training.dev_eval import load_dev_curve
from permix.training.run_log import describe_truncation, first_and_last_fifth, read_training_log
from permix.training.sft_data import SFT_COUNTS_FILE


def draw_curves(folder: Path, name: str, log: Sequence[Mapping[str, Any]], curve: DevCurve | None) -> list[str]:
    """Write training.png (if there are rewards) and probes.png (the dev evaluations) into `folder`; returns paragraphs."""
    from permix.rendering import plots

    parts = []
    if any(line.get("reward") is not None for line in log):
        plots.plot_learning_curves({name: log}, folder / "training.png")
        parts.append("![Learning curves](training.png)")
    if curve is not None and curve.points:
        plots.plot_dev_curves({name: curve}, folder / "probes.png")
        parts += ["![Dev evaluations while training](probes.png)", _points_table(curve.points)]
    return ["## Learning curves", *parts] if parts else []


def _points_table(points: Sequence[DevEvalPoint]) -> str:
    from permix.rendering.table import estimate_cell, format_ratio, markdown_table

    measures = measures_in("dev_eval_card")
    headings = ["step", *(measure.label for measure in measures), "identifiability", "cut off", "scored of asked"]
    rows = [
        [
            str(point.step),
            *(estimate_cell(point.measures[measure.name]).markdown for measure in measures),
            estimate_cell(point.identifiability).markdown,
            "–" if point.cut_off is None else f"{point.cut_off:.0%}",
            format_ratio(point.n_scored, point.n_asked),
        ]
        for point in points
    ]
    return markdown_table(headings, rows)


def write_model_card(folder: Path, config: TrainConfig, plan: Plan, log_path: Path, source: str) -> None:
    """Write README.md and its figures into the model's `folder`.

    `log_path` is log.jsonl of the training run. `source` is the folder of the model that the training began with.
    """
    lines, name = read_training_log(log_path), config.label or config.out.name
    curve = load_dev_curve(config.out, config.dev_eval) if config.dev_eval.every else None
    settings = config.train.model_dump(mode="json", exclude=set(IGNORED_FIELDS[config.method]))
    parts = [
        f"# {escape_markdown(name)}",
        f"{training_method_text(config, plan)}, trained by permix from `{config.model.name}`.",
        (_loss_summary if config.method in SUPERVISED_METHODS else _reward_summary)(config, lines),
        *_selected_weights_text(curve),
        *draw_curves(folder, name, lines, curve),
        "## Plan\n\n" + _table(describe_plan(plan)),
    ]
    counts = log_path.with_name(SFT_COUNTS_FILE)
    if counts.exists():
        parts.append("## Training examples\n\n" + _table(read_json(counts)))
    parts.append("## Training\n\n" + _table(settings))
    tags = ["permix", *(("sft",) if config.method in SUPERVISED_METHODS else ("reinforcement-learning", "grpo"))]
    facts = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": tags} | _origin(config.model.name, source)
    # JSON is YAML, and quotes what a source's card holds.
    lines_of_facts = "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in facts.items())
    write_text(folder / "README.md", f"---\n{lines_of_facts}---\n" + "\n\n".join(parts) + "\n")


LICENCE_FIELDS = ("license", "license_name", "license_link")


def _origin(name: str, source: str) -> dict[str, str]:
    """`base_model` and the licence of a trained model, by the name and the folder of the model that the training began with.

    Without a hub id the base model is that of a source trained by permix, else it is unknown. The licence is the source's.
    """
    card = _front_matter(Path(source) / "README.md")
    licence = {field: card[field] for field in LICENCE_FIELDS if isinstance(card.get(field), str)}
    if name == "bundled":
        return {"base_model": BUNDLED_HUB_ID, "license": "apache-2.0"}
    if not Path(name).is_dir():
        return {"base_model": name} | licence
    tags, base = card.get("tags"), card.get("base_model")
    is_ours = isinstance(tags, list) and "permix" in tags
    return ({"base_model": base} if is_ours and isinstance(base, str) else {}) | licence


MAX_CARD_BYTES = 1_000_000


def _front_matter(card: Path) -> dict[str, Any]:
    """The fields between the `---` lines at the start of a model card; empty if there are none or they cannot be read."""
    if not card.is_file() or card.stat().st_size > MAX_CARD_BYTES:
        return {}
    import yaml  # transformers brings it

    text = card.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n")
    match = re.match(r"---\n(.*?)\n---(?:\n|$)", text, re.DOTALL)
    try:
        fields = yaml.safe_load(match[1]) if match else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def training_method_text(config: TrainConfig, plan: Plan) -> str:
    """The method in words. The plan decides: PerMix-RLVR with a plan without personas is plain RLVR."""
    personas = any(row.persona_id is not None for row in plan.rows)
    match config.method:
        case "permix" | "rlvr":
            return "PerMix-RLVR (persona-mixed RLVR)" if personas else "RLVR (no personas)"
        case "sft" | "sft-personas":
            return f"SFT on gold answers ({'personas mixed in' if personas else 'no personas'})"
        case "seqkd":
            teacher = "itself" if config.teacher.name == "self" else f"`{config.teacher.name}`"
            return f"Sequence-level distillation (SFT on verified samples of {teacher})"


def _reward_summary(config: TrainConfig, lines: Sequence[Mapping[str, Any]]) -> str:
    rewards = [line["reward"] for line in lines if line.get("reward") is not None]
    truncation = describe_truncation(lines, config.train.max_new_tokens)
    return f"""Mean reward of the rollouts: {_first_and_last_means(rewards)}
(sampled at temperature {config.train.temperature}; {lines[-1]["tokens"] if lines else 0} tokens generated).
{"" if truncation is None else f"{truncation}.{chr(10)}"}\
Rewards on training questions are no evaluation: run `permix stability` on held-out personas and questions."""


def _loss_summary(config: TrainConfig, lines: Sequence[Mapping[str, Any]]) -> str:
    losses = [line["loss"] for line in lines if line.get("loss") is not None]
    return f"""Mean loss of a completion's token: {_first_and_last_means(losses)}
({lines[-1]["tokens"] if lines else 0} tokens trained on in {len(lines)} steps).
A loss on training questions is no evaluation: run `permix stability` on held-out personas and questions."""


def _selected_weights_text(curve: DevCurve | None) -> list[str]:
    """Which weights the model has and why; empty without dev evaluations."""
    if curve is None:
        return []
    return [f"{selection_text(curve)} Dev evaluations choose the weights, so their numbers are no results either."]


def _table(facts: Mapping[str, object]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())])


def _first_and_last_means(values: Sequence[float]) -> str:
    """The means over the first and the last fifth of the steps, as text."""
    if not values:
        return "no rollout was scored"
    first, last, n = first_and_last_fifth(values)
    return f"{first:.3f} over the first {n} steps, {last:.3f} over the last {n}"
