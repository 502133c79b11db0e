"""Logs to import: recorded ones of lm-evaluation-harness, edited, and a run of our own to export.

recorded/ is what lm-evaluation-harness 0.4.13 wrote for six sums of SmolLM2-135M-Instruct, a folder a persona and one without;
paths of the machine were taken out.
"""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from permix.config import ImportConfig, StabilityConfig, build_config
from permix.errors import IncompleteRunError
from permix.evals.stability import evaluate_setup, prepare_stability
from permix.inference.scripted import ScriptedModel
from permix.storage.files import write_json
from permix.types import Request
from tests.sample_runs import solve, stability_config

RIGHT = {"none": "010010", "pirate": "010011", "poet": "110011", "toddler": "011011"}
"""Right by the filter flexible-extract, question by question."""
RECORDED = Path(__file__).parent / "recorded"
Line = dict[str, Any]


def recorded(folder: Path, *names: str) -> list[str]:
    """A copy of the recorded logs, as --lm-eval wants it; of all four when none is named."""
    for name in names or RIGHT:
        shutil.copytree(RECORDED / name, folder / name)
    return [f"{name}={folder / name}" for name in names or RIGHT]


def importing(folder: Path, given: list[str], **fields: Any) -> ImportConfig:
    values = {"lm_eval": given, "out": str(folder / "run"), "filter": "flexible-extract", "resamples": 100}
    return build_config(ImportConfig, values | fields, source="test")


def lines_of(folder: Path) -> Path:
    return next(folder.glob("samples_*.jsonl"))


def edit_lines(folder: Path, change: Callable[[Line], Line | None]) -> None:
    """Every line through `change`; those it gives None for are gone."""
    path = lines_of(folder)
    changed = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in changed if line is not None))


def edit_results(folder: Path, **values: Any) -> None:
    path = next(folder.glob("results_*.json"))
    write_json(path, json.loads(path.read_text()) | values)


def reply(request: Request) -> str:
    """A clerk is right; a sailor only on even sums; a troll boxes nothing, and its server fails on sums over 8."""
    asked, who = request.messages[-1]["content"], request.messages[0]["content"]
    answer = solve(asked)
    if "troll" in who:
        if answer > 8:
            raise OSError("the bridge is down")
        return "Grr."
    return f"\\boxed{{{answer if 'sailor' not in who or answer % 2 == 0 else answer + 1}}}"


def own_run(folder: Path, **fields: Any) -> StabilityConfig:
    """Three personas and none × six sums × two samples, by a scripted model."""
    config = stability_config(folder, "http://127.0.0.1:1/v1", **{"samples": 2} | fields)
    _, task, setup = prepare_stability(config)
    with contextlib.suppress(IncompleteRunError):
        evaluate_setup(ScriptedModel(reply, name="test"), config, task, setup)
    return config
