"""The numbers of a run do not depend on the folder in which they are computed: its reference run is always the same one."""

import random
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import permix
from permix.api import FidelityRun, StabilityRun
from permix.errors import DataError
from permix.evals.reference_runs import find_reference
from permix.metrics.identifiability import Identifiability
from permix.report.runs import Run, collect_models, find_reference_run
from permix.storage.files import read_json, write_json
from permix.types import Message

PERSONAS = {"poet": "a poet", "sailor": "a retired sailor", "nurse": "a night nurse"}
VOICES = {"poet": "rhyme verse moon soul", "sailor": "anchor tide deck wind", "nurse": "ward night pulse care"}
ROWS = [{"id": id, "text": text} for id, text in PERSONAS.items()]
QUESTIONS = [f"Question number {n} about your day?" for n in range(12)]
SUMS = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(12)]


def speak(shift: int) -> Callable[[Sequence[Message]], str]:
    """Each persona speaks with the voice of the one `shift` places on, and answers every sum."""

    def reply(messages: Sequence[Message]) -> str:
        ids, asked = list(PERSONAS), messages[-1]["content"]
        at = next((place for place, id in enumerate(ids) if PERSONAS[id] in messages[0]["content"]), 0)
        rng = random.Random(asked + str(at))
        words = " ".join(rng.choice(VOICES[ids[(at + shift) % 3]].split()) for _ in range(12))
        sums = re.search(r"(\d+) \+ 1", asked)
        return f"{words} {int(sums[1]) + 1}" if sums else words

    return reply


def make(kind: str, shift: int, label: str, out: str, reference: str | None = None) -> None:
    common: dict[str, Any] = {"name": f"{label} {shift}", "label": label, "out": out, "personas": ROWS, "resamples": 100}
    if kind == "fidelity":
        permix.evaluate_fidelity(speak(shift), questions=QUESTIONS, embedder="none", reference=reference, **common)
    else:
        permix.evaluate_stability(
            speak(shift), task=SUMS, answer="number", right_in_character=True, character_reference=reference, **common
        )  # fmt: skip


def number(kind: str, run: Path | str) -> float | None:
    opened = permix.open_run(run)
    if kind == "fidelity":
        assert isinstance(opened, FidelityRun)
        assert isinstance(opened.summary, Identifiability)
        return opened.summary.accuracy.value
    assert isinstance(opened, StabilityRun)
    return opened.right_in_character().share.value


def reported(kind: str, run: Path | str) -> float | None:
    (model,) = collect_models([Path(run)])
    if kind == "fidelity":
        assert model.identifiability is not None, model.unmeasured_reasons
        return model.identifiability.accuracy.value
    assert model.right_in_character is not None, model.unmeasured_reasons
    return model.right_in_character.share.value


@pytest.fixture(params=["fidelity", "stability"])
def projects(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """Two projects, each with a run runs/base of its own; the one in A is the reference of A/runs/tuned."""
    for name, shift in (("A", 0), ("B", 1)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        make(request.param, shift, "base", "runs/base")
    monkeypatch.chdir(tmp_path / "A")
    make(request.param, 0, "tuned", "runs/tuned", "runs/base")
    return request.param, tmp_path


def test_the_number_of_a_run_is_the_same_from_every_folder(projects: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    kind, folder = projects
    here = number(kind, "runs/tuned")
    assert here is not None
    assert here > 0.5
    assert reported(kind, "runs/tuned") == here
    for name in ("B", ".", "B/runs"):
        monkeypatch.chdir(folder / name)
        assert number(kind, folder / "A" / "runs" / "tuned") == here
        assert reported(kind, folder / "A" / "runs" / "tuned") == here
    monkeypatch.chdir(folder / "B")
    shutil.copytree(folder / "A" / "runs", "copied")  # moved together
    assert number(kind, "copied/tuned") == here


def test_another_run_in_the_place_of_the_reference_is_not_taken(
    projects: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, folder = projects
    field = "reference" if kind == "fidelity" else "character_reference"
    monkeypatch.chdir(folder / "B")
    shutil.copytree(folder / "A" / "runs" / "tuned", "runs/tuned")  # moved alone, beside another run of this name
    assert not (Path("runs/base")).samefile(folder / "A" / "runs" / "base")
    for find in (lambda: find_reference(Path("runs/tuned"), read_json(Path("runs/tuned/config.json")), field),
                 lambda: find_reference_run(Run(Path("runs/tuned")), field), lambda: number(kind, "runs/tuned")):  # fmt: skip
        with pytest.raises(DataError, match="runs/base is another run than the reference run that it was measured with"):
            find()
    # A run of an earlier version has no mark, so the run beside it is taken.
    metrics = read_json(Path("runs/tuned/metrics.json"))
    write_json(Path("runs/tuned/metrics.json"), {key: one for key, one in metrics.items() if not key.endswith("_mark")})
    assert find_reference_run(Run(Path("runs/tuned")), field) == Path("runs/base").absolute()
