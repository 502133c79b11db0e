"""The newest completions of a run, as text that may be shown: read from the end of its file, however long that is."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from permix.escape import clip, visible
from permix.view.growing import last_lines

COUNT = 12
CHARS, LINES = 1500, 30
SCANNED_CHARS = 4 * CHARS

Shown = dict[str, str]
Line = Mapping[str, Any]


def newest(run: Path, stage: str) -> list[Shown]:
    """Newest first. What cannot be read, a line or a whole file, is passed over here; the run's troubles name it."""
    for name, tell in _FILES[stage]:
        if lines := _lines(run / name):
            return [told for line in reversed(lines) if (told := _told(line, tell)) is not None]
    return []


def _lines(path: Path) -> list[bytes]:
    try:
        return last_lines(path, COUNT)
    except OSError:
        return []


def _told(line: bytes, tell: Callable[[Line], Shown]) -> Shown | None:
    try:
        return tell(json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, IndexError):
        return None


def _cell(cell: Line) -> Shown:
    failure, completion = cell.get("failure"), cell.get("completion")
    answered = completion is not None
    return {
        "persona": _line(cell["persona_id"] or "no persona"),
        "asked": _text(cell["messages"][-1]["content"]),
        "said": _text(completion["text"] if completion else f"{failure['type']}: {failure['message']}" if failure else ""),
        "kind": "completion" if answered else "failure",
        "verdict": _verdict(cell) if answered else "no completion",
    }


def _verdict(cell: Line) -> str:
    verdict, gold = cell.get("verdict"), cell.get("gold")
    if gold is None:
        return "open-ended"
    if verdict is None or verdict["correct"] is None:
        return "not scored"
    read = "nothing" if verdict.get("extracted") is None else _line(verdict["extracted"])
    return f"{'right' if verdict['correct'] else 'wrong'}: read {read}, gold {_line(gold)}"


def _rollout(line: Line) -> Shown:
    return {
        "persona": _line(line["persona_id"] or "no persona"),
        "asked": _text(line["prompt"]),
        "said": _text(line["completion"]),
        "kind": "completion",
        "verdict": f"step {int(line['step'])}, {_verdict(line)}",
    }


def _call(call: Line) -> Shown:
    reply, failure, score = call.get("reply"), call.get("failure"), call.get("score")
    control = call.get("control", "none")
    return {
        "persona": _line(call["persona_id"]),
        "asked": _line(f"{call['rubric']}, {call['question_id']}" + ("" if control == "none" else f" (control: {control})")),
        "said": _text(reply["text"] if reply else f"{failure['type']}: {failure['message']}" if failure else ""),
        "kind": "completion" if reply else "failure",
        "verdict": _line(f"no score: {call.get('error') or 'no reason given'}" if score is None else f"score {int(score)} of 5"),
    }


_RECORDS = ("records.jsonl", _cell)
_FILES: dict[str, tuple[tuple[str, Callable[[Line], Shown]], ...]] = {
    "stability": (_RECORDS,),
    "fidelity": (_RECORDS,),
    "questions": (_RECORDS,),
    "train": (("rollouts.jsonl", _rollout), _RECORDS),
    "judge": (("judgements.jsonl", _call),),
}


def _text(text: str) -> str:
    """A few lines; cut before anything else is done with them, as a completion may be a megabyte."""
    return clip(visible(text[:SCANNED_CHARS]), CHARS, LINES)


def _line(text: str) -> str:
    return clip(visible(str(text)[:SCANNED_CHARS]).replace("\n", " "), 200)
