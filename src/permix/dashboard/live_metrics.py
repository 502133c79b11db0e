"""Compute the current measures of a run and read its newest completions, for the live page.

Contract: this module only reads; measures come from the records, as in a report. If a measure cannot be computed yet (too few
answers, a missing reference run), `note` gives the reason and no error is raised. While a run goes on, its intervals use fewer
resamples and the note says so; once it has ended, they are the report's intervals. The newest completions are read from the end
of the file, so the cost does not depend on its length.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from permix.errors import PermixError
from permix.sanitize import escape_control, truncate
from permix.storage.files import last_lines, read_file_state
from permix.storage.workers import worker_files
from permix.types import Estimate, count_text

LIVE_RESAMPLES = 300

_MAX_PERSONAS = 300


class LiveMeasure(NamedTuple):
    """One number. `context` is the text that a reader needs next to it; `is_difference` marks a difference."""

    name: str
    estimate: Estimate
    context: str = ""
    is_difference: bool = False


class LiveMeasures(NamedTuple):
    """All measures of a run. `personas` are (id, accuracy), worst first. `n_scores_asked`: the number of scores asked of a judge.

    `note` has further remarks. `error` describes a broken file.
    """

    lines: tuple[LiveMeasure, ...] = ()
    personas: tuple[tuple[str, Estimate], ...] = ()
    n_scores_asked: int | None = None
    note: str = ""
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """The measures as data for JSON."""
        return {
            "lines": [
                {"name": one.name, "beside": one.context} | _estimate_json(one.estimate, one.is_difference) for one in self.lines
            ],
            "personas": [
                {"id": truncate(escape_control(id), 80)} | _estimate_json(estimate)
                for id, estimate in self.personas[:_MAX_PERSONAS]
            ],
            "note": self.note,
        }


def measure_live(run: Path, stage: str, *, live: bool) -> LiveMeasures:
    """Compute all measures of a run for the page. `live`: the run still goes on, so the intervals use fewer resamples."""
    resamples = LIVE_RESAMPLES if live else None
    try:
        found = _MEASURE_BY_STAGE[stage](run, resamples)
    except (PermixError, OSError, ValueError, KeyError, TypeError, IndexError, StopIteration) as error:
        return LiveMeasures(note=f"not measured: {truncate(escape_control(_error_text(error)), 300)}")
    if live and found.lines:
        return found._replace(note=f"{found.note}; intervals from {LIVE_RESAMPLES} resamples while the run goes on")
    return found


def _error_text(error: Exception) -> str:
    return str(error) if isinstance(error, PermixError) else f"{type(error).__name__}: {error}"


def _estimate_json(estimate: Estimate, is_difference: bool = False) -> dict[str, Any]:
    return estimate.model_dump() | {"text": estimate.format_difference() if is_difference else str(estimate)}


def _stability_measures(run: Path, resamples: int | None) -> LiveMeasures:
    from permix.evals.grid import count_cut_off, read_grid_results
    from permix.evals.stability import measure_stability
    from permix.metrics.measures import measures_in

    answers = read_grid_results(run)
    summary = measure_stability(run, answers, resamples)
    cut_off = count_cut_off(answers)
    contexts = {
        "mean": count_text(summary.n_personas, "persona"),
        "pss": summary.pss_reason or _format_if_known("observed {:.3f}", summary.pss_observed.value),
        "mean_minus_baseline": _format_if_known("any persona effect: p = {:.3g}", summary.permutation_p.value),
    }
    lines = [
        LiveMeasure(one.label, summary.measures[one.name], contexts.get(one.name, ""), one.is_difference)
        for one in measures_in("live_page")
    ]
    if cut_off.n_known:
        share = Estimate(value=cut_off.n_cut_off / cut_off.n_known, n=cut_off.n_known)
        others = _format_if_known("accuracy of the others {:.3f}", cut_off.accuracy_of_others if cut_off.n_cut_off else None)
        lines.append(LiveMeasure("cut off, of answered", share, others))
    if resamples is None:  # its classifiers take too long for a run that still goes on
        lines += _right_in_character_measures(run)
    personas = sorted(((one.id, one.accuracy) for one in summary.personas), key=lambda one: (one[1].value is None, one[1].value))
    note = f"{summary.n_scored} of {summary.n_asked} cells of personas scored"
    return LiveMeasures(tuple(lines), tuple(personas), note=note)


def _right_in_character_measures(run: Path) -> Iterator[LiveMeasure]:
    """Right and in character, if the run asks for it and its answers allow it."""
    from permix.evals.in_character import measure_right_in_character
    from permix.report.runs import Run, find_reference_run

    read = Run(run)
    if read.config.get("right_in_character"):
        with suppress(PermixError):
            found = measure_right_in_character(run, find_reference_run(read, "character_reference"), read.grid_results)
            yield LiveMeasure(
                "right and in character", found.share, _format_if_known("by chance {:.3f}", found.share_by_chance.value)
            )


def _fidelity_measures(run: Path, resamples: int | None) -> LiveMeasures:
    from permix.config import fidelity_kind
    from permix.evals.text_metrics import measure_text_metrics
    from permix.storage.run_dir import RunReader

    metrics = measure_text_metrics(run, resamples)
    lines = [
        LiveMeasure("character breaks", metrics.break_rate, "share of answers, by rules"),
        LiveMeasure("words per answer", metrics.words),
        LiveMeasure("cut off", metrics.truncated_share, "share of answers"),
    ]
    note = f"{metrics.n_answers} of {metrics.n_asked} answers"
    if fidelity_kind(RunReader(run).config) == "open":
        try:
            lines[:0] = _identifiability_measures(run, resamples)
        except PermixError as error:
            note = f"{note}; identifiability: {truncate(escape_control(str(error)), 200)}"
    return LiveMeasures(tuple(lines), note=note)


def _identifiability_measures(run: Path, resamples: int | None) -> Iterator[LiveMeasure]:
    from permix.evals import open_ended
    from permix.report.runs import Run, find_reference_run

    found = open_ended.measure_identifiability(run, find_reference_run(Run(run)), resamples)
    yield LiveMeasure("identifiability", found.accuracy, f"chance {found.chance:.3f}")


def _judge_measures(folder: Path, resamples: int | None) -> LiveMeasures:
    from permix.config import fidelity_kind
    from permix.judges.results import read_judge_results
    from permix.judges.summary import summarize_judge
    from permix.report.judges import RUN_KIND_OF_FIDELITY, bootstrap_settings, listed_rubrics, score_name
    from permix.storage.run_dir import RunReader

    run = folder.parent.parent
    results = read_judge_results(run, folder)
    n_asked = sum(results.n_inputs.values())
    resamples = resamples or bootstrap_settings(RunReader(folder).config).resamples
    try:
        summary = summarize_judge(results, seed=results.seed, resamples=resamples)
    except PermixError as error:
        return LiveMeasures(n_scores_asked=n_asked, note=truncate(escape_control(str(error)), 300))
    trust_text = {
        None: "no interval yet",
        True: "interval above 0.5: the judge distinguishes personas",
        False: "interval NOT above 0.5",
    }
    kind = RUN_KIND_OF_FIDELITY[fidelity_kind(RunReader(run).config)]
    lines = (
        LiveMeasure(
            score_name(kind, summary.tasks), summary.persona_score, f"{summary.n_scored} of {summary.n_asked} answers scored"
        ),
        LiveMeasure("AUC, right against wrong persona", summary.reliability.auc, trust_text[summary.discriminates_persona]),
        *(LiveMeasure(truncate(escape_control(one), 60), summary.tasks[one]) for one in listed_rubrics(kind, summary.tasks)),
    )
    usage = summary.usage
    cost = "cost unknown" if usage.cost is None else f"{usage.cost:.4f} US dollars"
    controls = "; ".join(f"{control} {scored} of {wanted}" for control, (scored, wanted) in summary.counts.items() if wanted)
    note = f"{usage.calls} calls, {usage.calls_without_score} without a score, {cost}. Scored: {controls}"
    return LiveMeasures(lines, n_scores_asked=n_asked, note=note)


def _format_if_known(template: str, value: float | None) -> str:
    return "" if value is None else template.format(value)


_MEASURE_BY_STAGE: dict[str, Callable[[Path, int | None], LiveMeasures]] = {
    "stability": _stability_measures,
    "fidelity": _fidelity_measures,
    "judge": _judge_measures,
}

MEASURED_STAGES = frozenset(_MEASURE_BY_STAGE)
"""Stages with measures of their own. The measures of a training are in its log."""


_NEWEST_COUNT = 12

_MAX_CHARS, _MAX_LINES = 1500, 30

_SCANNED_CHARS = 4 * _MAX_CHARS


CompletionView = dict[str, str]

JsonLine = Mapping[str, Any]


def newest_completions(run: Path, stage: str) -> list[CompletionView]:
    """The newest completions, newest first. Unreadable lines and files are skipped; `RunMonitor.errors` reports them."""
    for name, to_view in _NEWEST_FILES.get(stage, ()):
        if lines := _last_lines(run / name):
            return [view for line in reversed(lines) if (view := _view_or_none(line, to_view)) is not None]
    return []


def _last_lines(path: Path) -> list[bytes]:
    """The last lines of the file, or of the files of all workers: of the file that changed last first."""
    found: list[bytes] = []
    changed = {one: state.modified for one in worker_files(path) if (state := read_file_state(one)) is not None}
    for one in sorted(changed, key=lambda one: -changed[one]):
        with suppress(OSError, PermixError):
            found = last_lines(one, _NEWEST_COUNT - len(found)) + found
        if len(found) == _NEWEST_COUNT:
            break
    return found


def _view_or_none(line: bytes, to_view: Callable[[JsonLine], CompletionView]) -> CompletionView | None:
    try:
        return to_view(json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, IndexError):
        return None


def _cell_view(cell: JsonLine) -> CompletionView:
    failure, completion = cell.get("failure"), cell.get("completion")
    answered = completion is not None
    return {
        "persona": _cut_line(cell["persona_id"] or "no persona"),
        "asked": _cut_text(cell["messages"][-1]["content"]),
        "said": _cut_text(completion["text"] if completion else f"{failure['type']}: {failure['message']}" if failure else ""),
        "kind": "completion" if answered else "failure",
        "verdict": _verdict_text(cell) if answered else "no completion",
    }


def _verdict_text(cell: JsonLine) -> str:
    verdict, gold = cell.get("verdict"), cell.get("gold")
    if gold is None:
        return "open-ended"
    if verdict is None or verdict["correct"] is None:
        return "not scored"
    read = "nothing" if verdict.get("extracted") is None else _cut_line(verdict["extracted"])
    return f"{'right' if verdict['correct'] else 'wrong'}: read {read}, gold {_cut_line(gold)}"


def _rollout_view(line: JsonLine) -> CompletionView:
    return {
        "persona": _cut_line(line["persona_id"] or "no persona"),
        "asked": _cut_text(line["prompt"]),
        "said": _cut_text(line["completion"]),
        "kind": "completion",
        "verdict": f"step {int(line['step'])}, {_verdict_text(line)}",
    }


def _judge_call_view(call: JsonLine) -> CompletionView:
    reply, failure, score = call.get("reply"), call.get("failure"), call.get("score")
    control = call.get("control", "none")
    return {
        "persona": _cut_line(call["persona_id"]),
        "asked": _cut_line(f"{call['rubric']}, {call['question_id']}" + ("" if control == "none" else f" (control: {control})")),
        "said": _cut_text(reply["text"] if reply else f"{failure['type']}: {failure['message']}" if failure else ""),
        "kind": "completion" if reply else "failure",
        "verdict": _cut_line(
            f"no score: {call.get('error') or 'no reason given'}" if score is None else f"score {int(score)} of 5"
        ),
    }


_RECORDS = ("records.jsonl", _cell_view)

_NEWEST_FILES: dict[str, tuple[tuple[str, Callable[[JsonLine], CompletionView]], ...]] = {
    "stability": (_RECORDS,),
    "fidelity": (_RECORDS,),
    "questions": (_RECORDS,),
    "train": (("rollouts.jsonl", _rollout_view), _RECORDS),
    "judge": (("judgements.jsonl", _judge_call_view),),
}


def _cut_text(text: str) -> str:
    """A few printable lines. The text is cut before it is escaped, since a completion can have a megabyte."""
    return truncate(escape_control(text[:_SCANNED_CHARS]), _MAX_CHARS, _MAX_LINES)


def _cut_line(text: str) -> str:
    return truncate(escape_control(str(text)[:_SCANNED_CHARS]).replace("\n", " "), 200)
