"""The measures of a run as it stands, in the words and order of the page: computed from the records, as a report would.

Contract: pure reading. What cannot be measured yet (too few answers, a reference run that is gone) is said in `note` and is no
error. While a run goes on its intervals stand on fewer resamples, which is said; once it has ended they are the report's.

The newest completions of a run, as text that may be shown: read from the end of its file, however long that is.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from permix.errors import PermixError
from permix.sanitize import clip, visible
from permix.storage.jsonl import last_lines
from permix.types import Estimate

LIVE_RESAMPLES = 300

MOST_PERSONAS = 300


class Line(NamedTuple):
    """One number: what it is, and beside what it must be read. `signed`: it is a difference."""

    name: str
    estimate: Estimate
    beside: str = ""
    signed: bool = False


class Measured(NamedTuple):
    """`asked`: of a judge, how many scores it is to give. `personas`: (id, accuracy), worst first. `note`: what else there is to
    say. `trouble`: what is broken."""

    lines: tuple[Line, ...] = ()
    personas: tuple[tuple[str, Estimate], ...] = ()
    asked: int | None = None
    note: str = ""
    trouble: str = ""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "lines": [{"name": one.name, "beside": one.beside} | _plain(one.estimate, one.signed) for one in self.lines],
            "personas": [{"id": clip(visible(id), 80)} | _plain(estimate) for id, estimate in self.personas[:MOST_PERSONAS]],
            "note": self.note,
        }


def measure(run: Path, stage: str, *, live: bool) -> Measured:
    """Everything that the page shows of a run. `live`: it still goes on."""
    resamples = LIVE_RESAMPLES if live else None
    try:
        found = _BY_STAGE[stage](run, resamples)
    except (PermixError, OSError, ValueError, KeyError, TypeError, IndexError, StopIteration) as error:
        return Measured(note=f"not measured: {clip(visible(_said(error)), 300)}")
    if live and found.lines:
        return found._replace(note=f"{found.note}; intervals from {LIVE_RESAMPLES} resamples while the run goes on")
    return found


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, PermixError) else f"{type(error).__name__}: {error}"


def _plain(estimate: Estimate, signed: bool = False) -> dict[str, Any]:
    return estimate.model_dump() | {"text": estimate.signed() if signed else str(estimate)}


def _stability(run: Path, resamples: int | None) -> Measured:
    from permix.evals.stability import measure

    found = measure(run, resamples=resamples)
    p = found.permutation_p.value
    lines = (
        Line("no persona", found.baseline),
        Line("mean over personas", found.mean, f"{found.n_personas} personas"),
        Line("worst persona", found.worst),
        Line("best persona", found.best),
        Line("PSS", found.pss, _or_unknown("observed {:.3f}", found.pss_observed.value)),
        Line("mean − no persona", found.shift, _or_unknown("any persona effect: p = {:.3g}", p), signed=True),
    )
    personas = sorted(((one.id, one.accuracy) for one in found.personas), key=lambda one: (one[1].value is None, one[1].value))
    note = f"{found.n_scored} of {found.n_asked} cells of personas scored"
    return Measured(lines, tuple(personas), note=note)


def _fidelity(run: Path, resamples: int | None) -> Measured:
    from permix.evals.fidelity_records import kind_of
    from permix.evals.text_metrics import measure_unjudged
    from permix.storage.files import read_json

    found = measure_unjudged(run, resamples)
    lines = [
        Line("leaves the character", found.broke, "share of answers, by rules"),
        Line("words an answer", found.words),
        Line("cut off", found.cut_off, "share of answers"),
    ]
    note = f"{found.n_answers} of {found.n_asked} answers"
    if kind_of(read_json(run / "config.json")) == "open":
        try:
            lines[:0] = _identified(run, resamples)
        except PermixError as error:
            note = f"{note}; identifiability: {clip(visible(str(error)), 200)}"
    return Measured(tuple(lines), note=note)


def _identified(run: Path, resamples: int | None) -> Iterator[Line]:
    from permix.evals import open_ended
    from permix.report.runs import Run, reference_of

    found = open_ended.measure(run, reference_of(Run(run)), resamples)
    yield Line("identifiability", found.accuracy, f"chance {found.chance:.3f}")


def _judge(folder: Path, resamples: int | None) -> Measured:
    from permix.judges.results import read_bill, read_verdicts
    from permix.judges.summary import measured

    verdicts = read_verdicts(folder.parent.parent, folder)
    asked = len(verdicts.items)
    try:
        found = measured(verdicts, read_bill(folder), seed=verdicts.seed, resamples=resamples or 2000)
    except PermixError as error:
        return Measured(asked=asked, note=clip(visible(str(error)), 300))
    trusted = {
        None: "not known yet whether it tells personas apart",
        True: "above one half: trusted",
        False: "NOT above one half",
    }
    lines = (
        Line("PersonaScore", found.persona_score, f"{found.n_scored} of {found.n_asked} answers scored"),
        Line("AUC, right against wrong persona", found.trial.auc, trusted[found.trusted]),
        *(Line(clip(visible(task), 60), estimate) for task, estimate in found.tasks.items()),
    )
    bill = found.bill
    cost = "cost unknown" if bill.cost is None else f"{bill.cost:.4f} US dollars"
    controls = "; ".join(f"{control} {scored} of {wanted}" for control, (scored, wanted) in found.counts.items() if wanted)
    note = f"{bill.calls} calls, {bill.without_score} without a score, {cost}. Scored: {controls}"
    return Measured(lines, asked=asked, note=note)


def _or_unknown(words: str, value: float | None) -> str:
    return "" if value is None else words.format(value)


_BY_STAGE: dict[str, Callable[[Path, int | None], Measured]] = {
    "stability": _stability,
    "fidelity": _fidelity,
    "judge": _judge,
}

MEASURED = frozenset(_BY_STAGE)
"""Stages that have measures of their own; what a training measures stands in its log."""


COUNT = 12

CHARS, LINES = 1500, 30

SCANNED_CHARS = 4 * CHARS


Shown = dict[str, str]

JsonLine = Mapping[str, Any]


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


def _told(line: bytes, tell: Callable[[JsonLine], Shown]) -> Shown | None:
    try:
        return tell(json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, IndexError):
        return None


def _cell(cell: JsonLine) -> Shown:
    failure, completion = cell.get("failure"), cell.get("completion")
    answered = completion is not None
    return {
        "persona": _line(cell["persona_id"] or "no persona"),
        "asked": _text(cell["messages"][-1]["content"]),
        "said": _text(completion["text"] if completion else f"{failure['type']}: {failure['message']}" if failure else ""),
        "kind": "completion" if answered else "failure",
        "verdict": _verdict(cell) if answered else "no completion",
    }


def _verdict(cell: JsonLine) -> str:
    verdict, gold = cell.get("verdict"), cell.get("gold")
    if gold is None:
        return "open-ended"
    if verdict is None or verdict["correct"] is None:
        return "not scored"
    read = "nothing" if verdict.get("extracted") is None else _line(verdict["extracted"])
    return f"{'right' if verdict['correct'] else 'wrong'}: read {read}, gold {_line(gold)}"


def _rollout(line: JsonLine) -> Shown:
    return {
        "persona": _line(line["persona_id"] or "no persona"),
        "asked": _text(line["prompt"]),
        "said": _text(line["completion"]),
        "kind": "completion",
        "verdict": f"step {int(line['step'])}, {_verdict(line)}",
    }


def _call(call: JsonLine) -> Shown:
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

_FILES: dict[str, tuple[tuple[str, Callable[[JsonLine], Shown]], ...]] = {
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
