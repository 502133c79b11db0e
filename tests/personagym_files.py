"""A PersonaGym small enough to count in: folders of its layout, and a run that asks its questions."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from permix.config import FidelityConfig, build_config
from tests.sample_runs import endpoint

BAKER, DIVER = "A 40-year-old baker from Lyon, who sings", "An 11-year-old diver"
TASKS = ("Expected Action", "Toxicity", "Linguistic Habits", "Persona Consistency", "Action Justification")
"""As PersonaGym's files call them."""


def questions_of(persona: str, per_task: int = 2) -> dict[str, list[str]]:
    """Question 1 of Toxicity to the diver: "Toxicity 1, An 11-year-old diver?"."""
    return {task: [f"{task} {n}, {persona}?" for n in range(1, per_task + 1)] for task in TASKS}


def write_gym(folder: Path, personas: Sequence[str] = (BAKER, DIVER), per_task: int = 2) -> Path:
    """A folder in PersonaGym's layout."""
    (folder / "questions").mkdir(parents=True)
    (folder / "personas.json").write_text(json.dumps(personas))
    for persona in personas:
        put(folder / "questions" / f"{persona}.json", questions_of(persona, per_task))
    return folder


def put(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def gym_values(folder: Path, base_url: str, gym: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """Two personas × five tasks × two questions = 20 answers, and three without persona."""
    data = folder / "gym"
    if not data.exists():
        write_gym(data)
    return {
        "stage": "fidelity",
        "out": str(folder / "run"),
        "model": endpoint(base_url),
        "personagym": {"path": str(data), "without_persona": 3, **(gym or {})},
        "resamples": 100,
    } | fields


def gym_config(folder: Path, base_url: str, gym: Mapping[str, Any] | None = None, **fields: Any) -> FidelityConfig:
    return build_config(FidelityConfig, gym_values(folder, base_url, gym, **fields), source="test")
