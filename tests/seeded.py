"""Runs of a small study with training seeds, cell by cell: personas "p0" ..., questions "q0" ..., right where `right` says."""

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from permix.report.pooled import MethodDifference, PooledMethod
from permix.types import Cell, Completion, Estimate, Message, Verdict

Right = Callable[[int, int], bool]
VOICES = ("arr matey", "beep boop", "purr hiss", "thee thou")
PERSONAS, QUESTIONS = 4, 20


def share(fifths: int) -> Right:
    """Right on so many of five questions, whoever asks."""
    return lambda p, q: q % 5 < fifths


def torn(p: int, q: int) -> bool:
    """Accuracy .8 without persona (p = −1) and as p3, .6 as p2, .4 as p1, .2 as p0."""
    return q % 5 < (4 if p < 0 else p + 1)


def cell(p: int | None, q: int, asked: str, text: str, verdict: Verdict | None = None) -> Cell:
    system = [] if p is None else [Message(role="system", content=f"You are persona {p}.")]
    done = Completion(text=text, prompt_tokens=10, completion_tokens=5, finish="stop")
    messages = (*system, Message(role="user", content=asked))
    id = None if p is None else f"p{p}"
    return Cell(persona_id=id, question_id=f"q{q}", seed=1, messages=messages, completion=done, verdict=verdict)


def write_run(path: Path, config: dict[str, Any], cells: Iterable[Cell] = ()) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "records.jsonl").write_text("".join(one.model_dump_json() + "\n" for one in cells))
    return path


def stability_run(path: Path, label: str, asked: str, right: Right, questions: int = QUESTIONS, **config: Any) -> Path:
    cells = [
        cell(p, q, f"What is {q} + {q}?", "4", Verdict(correct=right(-1 if p is None else p, q)))
        for p in (None, *range(PERSONAS))
        for q in range(questions)
    ]
    settings = {"stage": "stability", "label": label, "model": {"name": asked}, "seed": 3, "resamples": 100, "samples": 1}
    return write_run(path, settings | config, cells)


def fidelity_run(path: Path, label: str, asked: str, reference: Path | None = None, noise: float = 0.1, seed: int = 7) -> Path:
    """Each persona has a voice of its own, and `noise` is how often it speaks with any of the four."""
    rng = random.Random(seed)
    voices = [[VOICES[p if rng.random() > noise else rng.randrange(4)] for q in range(QUESTIONS)] for p in range(PERSONAS)]
    cells = [
        cell(p, q, f"What did you do on day {q}?", f"{voices[p][q]} day {q}") for p in range(PERSONAS) for q in range(QUESTIONS)
    ]
    settings = {"stage": "fidelity", "label": label, "model": {"name": asked}, "seed": 3, "resamples": 100, "folds": 5}
    return write_run(path, settings | {"reference": None if reference is None else str(reference)}, cells)


def train_run(path: Path, label: str, seed: int, **config: Any) -> Path:
    write_run(path, {"stage": "train", "label": label, "model": {"name": "tiny"}, "plan": {"seed": seed}, **config})
    (path / "model").mkdir()
    return path


def write_study(folder: Path) -> Path:
    """Base; RLVR and PerMix-RLVR, each by two seeds, trained from it."""
    stability_run(folder / "base-stability", "base", "tiny", torn)
    base = fidelity_run(folder / "base-fidelity", "base", "tiny", noise=0.0)
    arms: tuple[tuple[str, str, tuple[Right, Right], float], ...] = (
        ("rlvr", "rlvr", (torn, share(3)), 0.9), ("mixed", "permix", (share(4), share(4)), 0.1),
    )  # fmt: skip
    for label, method, rights, noise in arms:
        for seed, right in enumerate(rights, start=1):
            name, stem = f"{label} {seed}", f"{label}-{seed}"
            asked = str(train_run(folder / f"{stem}-train", name, seed, method=method) / "model")
            stability_run(folder / f"{stem}-stability", name, asked, right)
            fidelity_run(folder / f"{stem}-fidelity", name, asked, base, noise, seed)
    return folder


def estimate_of(record: PooledMethod | MethodDifference, name: str) -> Estimate | None:
    return record.identifiability if name == "identifiability" else record.measures.get(name)
