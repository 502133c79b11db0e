"""A world small enough to count in: four personas, arithmetic, open questions, and a server that answers as it is told."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from permix.config import FidelityConfig, StabilityConfig, build_config
from permix.inference.openai import OpenAIModel
from permix.personas.pool import PersonaPool, load_pool
from permix.types import Cell, Completion, Message, Persona, Verdict

TEXTS = {
    "clerk": "a careful clerk",
    "nurse": "a night nurse.",
    "sailor": "a retired sailor",
    "troll": "a troll under a bridge",
}
SYSTEM = {f"You are {text.rstrip('.')}.": name for name, text in TEXTS.items()}
OPEN_QUESTIONS = (
    "morning", "rain", "bread", "music", "winter", "friends", "windows", "travel", "sleep", "colours", "letters", "gardens",
)  # fmt: skip


def write_pool(path: Path, *names: str) -> Path:
    """A pool of these personas (all, when none is named), every one held out."""
    rows = [f'[[persona]]\nid = "{name}"\ntext = "{TEXTS[name]}"\nsplit = "heldout"\n' for name in names or TEXTS]
    path.write_text("\n".join(rows))
    return path


def pool(path: Path) -> PersonaPool:
    return load_pool(write_pool(path))


def persona(name: str) -> Persona:
    return Persona(id=name, text=TEXTS[name])


def solve(question: str) -> int:
    """The answer to "What is 7 + 5 + 1?"; multiplication stands alone in a question."""
    numbers = [int(one) for one in re.findall(r"\d+", question)]
    if "*" in question:
        return math.prod(numbers)
    return numbers[0] - numbers[1] if "-" in question else sum(numbers)


def asked_as(body: Mapping[str, Any]) -> str | None:
    """Who a chat request speaks as: an id of `TEXTS`; None for no system message or an empty one."""
    first = body["messages"][0]
    return SYSTEM[first["content"]] if first["role"] == "system" and first["content"] else None


def asked_what(body: Mapping[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def endpoint(base_url: str, **fields: Any) -> dict[str, Any]:
    """A model section: one request at a time, never tried again."""
    return {"name": "test", "backend": "openai", "base_url": base_url, "concurrency": 1, "retries": 0, "timeout_s": 20} | fields


def stability_values(folder: Path, base_url: str, **fields: Any) -> dict[str, Any]:
    """Three personas and none × six one-digit sums = 24 cells, as a TOML file would say it."""
    return {
        "stage": "stability",
        "out": str(folder / "run"),
        "model": endpoint(base_url),
        "task": {"name": "arithmetic", "levels": ["add-1"], "n": 6},
        "personas": {"pool": str(write_pool(folder / "pool.toml", "clerk", "sailor", "troll"))},
        "sampling": {"max_new_tokens": 16},
        "resamples": 100,
    } | fields


def stability_config(folder: Path, base_url: str, **fields: Any) -> StabilityConfig:
    return build_config(StabilityConfig, stability_values(folder, base_url, **fields), source="test")


def fidelity_values(folder: Path, base_url: str, **fields: Any) -> dict[str, Any]:
    """Three personas × twelve open questions = 36 answers; of an interview none of these questions."""
    questions = folder / "questions.txt"
    questions.write_text("".join(f"What do you think of {one}?\n" for one in OPEN_QUESTIONS))
    shared = {} if "interview" in fields else {"questions": str(questions), "folds": 3}
    return (
        {
            "stage": "fidelity",
            "out": str(folder / "run"),
            "model": endpoint(base_url),
            "personas": {"pool": str(write_pool(folder / "pool.toml", "clerk", "sailor", "troll"))},
            "resamples": 100,
        }
        | shared
        | fields
    )


def fidelity_config(folder: Path, base_url: str, **fields: Any) -> FidelityConfig:
    return build_config(FidelityConfig, fidelity_values(folder, base_url, **fields), source="test")


def toml(values: Mapping[str, Any], prefix: str = "") -> str:
    """TOML of texts, numbers, truths, lists of them, and sections of those."""
    import json

    plain = [f"{key} = {json.dumps(value)}" for key, value in values.items() if not isinstance(value, Mapping)]
    sections = [
        f"\n[{prefix}{key}]\n{toml(value, f'{prefix}{key}.')}" for key, value in values.items() if isinstance(value, Mapping)
    ]
    return "\n".join(plain + sections) + "\n"


def cell(question_id: str = "q1", persona_id: str | None = None, **fields: Any) -> Cell:
    """A cell nobody has asked yet."""
    messages = (Message(role="user", content=f"What is {question_id}?"),)
    values: dict[str, Any] = {"persona_id": persona_id, "question_id": question_id, "seed": 7, "messages": messages, "gold": "12"}
    return Cell(**values | fields)


def answered(question_id: str = "q1", text: str = "12", correct: bool | None = True, **fields: Any) -> Cell:
    """A cell with a completion and a verdict."""
    completion = Completion(text=text, prompt_tokens=5, completion_tokens=1, finish="stop")
    return cell(question_id, completion=completion, verdict=Verdict(correct=correct, extracted=text), **fields)


def former_fingerprint(model: OpenAIModel, base_url: str) -> str:
    """The fingerprint that earlier versions of permix recorded for the model at `base_url`: they counted the address."""
    _, with_address, *_ = model.recorded_forms(base_url)
    return with_address.recorded
