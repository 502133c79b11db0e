"""A training small enough to check by hand, and its export: 3 steps of 4 sums of two digits, groups of 2, four personas."""

import json
from pathlib import Path
from typing import Any

from permix.config import ExportConfig, TrainConfig, build_config
from permix.pipelines.engine_export import export_plan
from permix.plan import Plan, read_plan
from permix.storage.files import read_json

PERSONAS = {
    "clerk": ("a careful clerk", "neutral", "train"),
    "sailor": ("a retired sailor", "character", "train"),
    "poet": ("a poet who never counts", "character", "dev"),
    "nurse": ("a night nurse", "neutral", "dev"),
}
"""Id: text, kind, split."""


def write_personas(folder: Path) -> Path:
    path = folder / "personas.jsonl"
    path.write_text(
        "".join(
            json.dumps({"id": name, "text": text, "tags": [kind], "split": split}) + "\n"
            for name, (text, kind, split) in PERSONAS.items()
        )
    )
    return path


def training_values(folder: Path, model: str | Path, /, **sections: Any) -> dict[str, Any]:
    """The sections of a training configuration; `sections` are merged over these."""
    values: dict[str, Any] = {
        "stage": "train",
        "out": str(folder / "run"),
        "model": {"name": str(model)},
        "task": {"name": "arithmetic", "levels": ["add-1"], "n": 20},
        "personas": {"pool": str(write_personas(folder)), "split": "train"},
        "plan": {"steps": 3, "questions_per_step": 4, "group_size": 2, "mix": 0.5},
        "train": {"max_new_tokens": 32, "max_prompt_tokens": 200},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section if isinstance(section, dict) else section
    return values


def write_training(folder: Path, model: str | Path, /, **sections: Any) -> Path:
    """A configuration file of `permix train`, as JSON."""
    path = folder / "training.json"
    path.write_text(json.dumps(training_values(folder, model, **sections)))
    build_config(TrainConfig, read_json(path), source=str(path))
    return path


def export_training(folder: Path, model: str | Path, /, *, options: dict[str, Any] | None = None, **sections: Any) -> Path:
    """Export the training to `folder`/export for verl on one GPU; returns that folder. `options` are those of the command."""
    out = folder / "export"
    values = {"plan": write_training(folder, model, **sections), "format": "verl", "out": out, "n_gpus_per_node": 1}
    export_plan(ExportConfig.model_validate(values | (options or {})))
    return out


def exported_plan(out: Path) -> Plan:
    return read_plan(out / "plan.parquet")
