"""The report: run directories in; the page, report.md, table.json, a CSV of every table and the figures out.

Contract: everything is computed anew from the runs' records, so a report can be rebuilt anywhere, and rebuilding writes the same
bytes. Models keep the order of their first run: the others are held against the first, and each against the one before. Only
`out` is written to.

A report's result in the cards of the models that it is about: README.md of every model trained in its runs.

Contract: what stands between the two markers is the report's and is written anew each time, at the end of a card that has none
yet; everything else in a card stays as it is. All cards are found and read before the first is written, and each is whole or as
it was.
"""

import os
import re
import shutil
from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path

from rich.console import Console

from permix.config import ReportStage
from permix.errors import DataError
from permix.evals.stability import opening
from permix.metrics import statistics
from permix.metrics.dev_curve import taken
from permix.rendering import plots, table, theme
from permix.rendering.plots import drift_curves
from permix.rendering.table import one_line
from permix.report import fidelity_tables, score_plots, tables
from permix.report.comparisons import Comparison, compare_models
from permix.report.document import Document, front, markdown
from permix.report.html.charts import build_charts, people
from permix.report.html.page import Runs, write_page
from permix.report.html.transcripts import write_transcripts
from permix.report.html.values import looks, names, text
from permix.report.judges import JudgedRun
from permix.report.layout import lay_out
from permix.report.methods import Method, Pooled, arrows, methods, names_of, pool
from permix.report.published import Published, published, published_data
from permix.report.runs import ModelRuns, Row, collect
from permix.report.score_plots import chance_of, points_of, tradeoff
from permix.report.tables import Strategic
from permix.storage.files import write_json, write_text, writing

BEGIN, END = "<!-- permix report: begin -->", "<!-- permix report: end -->"


def write_cards(models: Sequence[ModelRuns], markdown: str, figure: Path | None) -> list[Path]:
    """Put `markdown` (escaped already) and a copy of `figure` into every card; return the cards. Errors as `cards_of`."""
    cards = cards_of(models)
    shown = "" if figure is None else f"\n\n![Stability against distinctness]({figure.name})"
    renewed = {card: _renewed(card, f"{BEGIN}\n{markdown}{shown}\n{END}") for card in cards}
    for card, words in renewed.items():
        with writing(card):
            if figure is not None:
                _copy(figure, card.with_name(figure.name))
            write_text(card, words)
    return cards


def cards_of(models: Sequence[ModelRuns]) -> list[Path]:
    """The cards of the models trained in these runs. Raises DataError when no run is a training, or a card is not there."""
    trained = [model.runs["train"].path for model in models if "train" in model.runs]
    if not trained:
        raise DataError("cards: none of these runs is a training, so there is no card to write into; give the training runs too")
    cards = [run / "model" / "README.md" for run in trained]
    if missing := [card for card in cards if not card.is_file()]:
        raise DataError(f"cards: {missing[0]} is not there; its training has not ended, or the model was moved away")
    return cards


def _renewed(card: Path, ours: str) -> str:
    """The card with what is ours in it. Raises DataError when it cannot be told where that stood."""
    try:
        text = card.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"cards: {card} is not UTF-8: {error}") from error
    begin, end = text.find(BEGIN), text.find(END)
    if begin == end == -1:
        return f"{text.rstrip()}\n\n{ours}\n"
    if begin == -1 or end < begin or text.count(BEGIN) > 1 or text.count(END) > 1:
        raise DataError(f"cards: {card} must hold {BEGIN} and after it {END}, once each, or neither")
    return text[:begin] + ours + text[end + len(END) :]


def _copy(source: Path, target: Path) -> None:
    scratch = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, scratch)
    os.replace(scratch, target)


FIGURE = re.compile(r"(tradeoff|personas|lottery|learnt|training|probes|drift|(heatmap|confusion|judged|trial)-\w+)\.(png|svg)")
"""The figures that a report may have."""

TABLE = re.compile(
    r"methods|models|personas|wordings|strategies|identifiability|as-published|unjudged|drift|step-times|runs"
    r"|(scores|differences|trial|agreement|interview|said)(-.+)?"
)
"""The tables that a report may have."""


def report_stage(config: ReportStage) -> None:
    """The command: build the report, print its table and where it stands."""
    models = collect(config.runs)
    if config.cards:
        cards_of(models)  # whatever is wrong with them is said before anything is drawn
    rows = _write(models, methods(models, config.methods), config.out, aside=published(models, config), cards=config.cards)
    console, strategies = Console(), _strategies(models)
    if any(model.stability or model.fidelity or model.judged or "train" in model.runs for model in models):
        console.print(tables.terminal_table(rows))
    if strategies:
        console.print(tables.terminal_strategy_table(strategies))
    if interviewed := {model.label: model.drift for model in models if model.drift is not None}:
        console.print(fidelity_tables.terminal_drift_table(interviewed))
    for model in models:
        if model.crossed is not None:
            console.print(f"{one_line(model.label)}: {tables.components_of(model.crossed)}", markup=False)
    for file in ("report.md", "index.html"):
        console.print(str(config.out / file), markup=False, highlight=False, soft_wrap=True)


def build_report(runs: Sequence[Path], out: Path, caption: str = "") -> list[Row]:
    """Write the report on `runs` (run directories, or folders that hold some) into `out`; return the rows of its main table.

    `caption` is a paragraph of the caller's own, in Markdown. Raises DataError when there is no run, a folder is none and holds
    none, or two runs of one stage have one label.
    """
    models = collect(runs)
    return _write(models, methods(models), out, caption)


def _write(
    models: Sequence[ModelRuns],
    known: Sequence[Method],
    out: Path,
    caption: str = "",
    aside: Published | None = None,
    *,
    cards: bool = False,
) -> list[Row]:
    comparisons = [compare_models(one, other) for one, other in held_against(models)]
    pooled = [pool(method) for method in known]
    figures = draw(models, known, pooled, comparisons, out)
    document = lay_out(models, comparisons, known, pooled, figures, caption, aside)
    _remove_stale(out, {*figures, *(name.replace(".png", ".svg") for name in figures)}, {table.name for table in document.tables})
    write_text(out / "report.md", markdown(document))
    _write_page(models, known, pooled, comparisons, document, out)
    for one in document.tables:
        write_text(out / "tables" / f"{one.name}.csv", one.csv)
    seeds = {"methods": [one.model_dump(mode="json") for one in pooled]}
    write_json(out / "table.json", _data(models, comparisons, caption) | seeds | published_data(aside))
    if cards:
        write_cards(models, front(document), out / "tradeoff.png" if "tradeoff.png" in figures else None)
    return [model.row for model in models]


def _remove_stale(out: Path, figures: Collection[str], tables: Collection[str]) -> None:
    """Figures and tables of an earlier report in this folder that this one does not have."""
    for path in out.glob("*.[ps][nv]g"):
        if path.name not in figures and FIGURE.fullmatch(path.name):
            path.unlink()
    for path in (out / "tables").glob("*.csv"):
        if path.stem not in tables and TABLE.fullmatch(path.stem):
            path.unlink()


def _write_page(
    models: Sequence[ModelRuns],
    known: Sequence[Method],
    pooled: Sequence[Pooled],
    comparisons: Sequence[Comparison],
    document: Document,
    out: Path,
) -> None:
    shown = names(model.label for model in models)
    method_of = {shown[label]: text(method.name) for method in known for label in method.labels}
    styles = {shown[label]: style for label, style in theme.styles_for(shown, names_of(known)).items()}
    tags = {one_line(person.id): [text(tag) for tag in person.tags] for person in people(models).values()}
    drawn, cells = build_charts(models, known, pooled, comparisons), write_transcripts(models, out)
    write_page(out / "index.html", document, drawn, looks(styles, method_of), Runs(models), tags, cells)


def _strategies(models: Sequence[ModelRuns]) -> list[Strategic]:
    return [Strategic(model.label, found) for model in models for found in model.strategies]


def held_against(models: Sequence[ModelRuns]) -> list[tuple[ModelRuns, ModelRuns]]:
    """Every other model against the first, and then each against the one before it."""
    return [*((models[0], other) for other in models[1:]), *pairwise(models[1:])]


def draw(
    models: Sequence[ModelRuns], known: Sequence[Method], pooled: Sequence[Pooled], comparisons: Sequence[Comparison], out: Path
) -> dict[str, str]:
    """Draw every figure that the runs allow; {file name: what it shows}, in the order of the report.

    The trade-off leaves out methods with a model that may not be held against the first: an arrow to them would do just that.
    """
    styles = theme.styles_for((model.label for model in models), names_of(known))
    summaries = {model.label: model.stability for model in models if model.stability is not None}
    apart = {one.label for one in comparisons if one.against == models[0].label and (one.reasons or one.fidelity_reasons)}
    logs = {model.label: model.runs["train"].log for model in models if "train" in model.runs}
    rewarded = {name: log for name, log in logs.items() if any("reward" in step for step in log)}
    figures: dict[str, str] = {}
    if points := points_of(known, pooled, apart):
        looks_of = {method.name: styles[method.labels[0]] for method in known}
        tradeoff(points, arrows(known), chance_of(pooled), out / "tradeoff.png", looks_of)
        figures["tradeoff.png"] = "PSS against identifiability"
    if summaries:
        plots.persona_accuracy(summaries, out / "personas.png", styles)
        plots.lottery(summaries, out / "lottery.png", styles)
        figures |= {"personas.png": "accuracy under each persona", "lottery.png": "expected best of k personas"}
    for place, model in enumerate(models, start=1):
        if model.grid is not None:
            name = f"heatmap-{place}.png"
            _heatmap(model, out / name)
            figures[name] = f"persona × question, {table.md_label(model.label)}"
    figures |= score_plots.draw({model.label: model.judged for model in models if model.judged}, out, styles)
    if rewarded:
        plots.learning_curves(rewarded, out / "training.png", styles)
        figures["training.png"] = "learning curves"
    if interviewed := {model.label: model.drift for model in models if model.drift is not None}:
        drift_curves(interviewed, out / "drift.png", styles)
        figures["drift.png"] = "an interview, turn by turn"
    if curves := {model.label: model.curve for model in models if model.curve is not None}:
        plots.probe_curves(curves, out / "probes.png", styles)
        figures["probes.png"] = "probes while training"
    told = {model.label: model.fidelity for model in models if model.fidelity is not None}
    return figures | plots.draw(told, out, styles)


def _heatmap(model: ModelRuns, path: Path) -> None:
    assert model.grid is not None
    grid = opening(model.runs["stability"].path, model.grid)
    mean_P_Q, baseline_Q = statistics.sample_mean(grid.correct_P_Q_S), statistics.sample_mean(grid.baseline_Q_S)
    plots.heatmap(mean_P_Q, grid.persona_ids, path, f"{model.label}: who answers what", baseline_Q)


def _data(models: Sequence[ModelRuns], comparisons: Sequence[Comparison], caption: str) -> dict[str, object]:
    """table.json: every number of the report, by label."""
    return {
        "caption": caption,
        "rows": [model.row.model_dump(mode="json") for model in models],
        "stability": {model.label: model.stability.model_dump(mode="json") for model in models if model.stability is not None},
        "identifiability": {
            model.label: model.fidelity.model_dump(mode="json") for model in models if model.fidelity is not None
        },
        "judged": {model.label: {run.kind: _judged(run) for run in model.judged} for model in models if model.judged},
        "unjudged": {
            model.label: {kind: found.model_dump(mode="json") for kind, found in model.unjudged.items()}
            for model in models
            if model.unjudged
        },
        "drift": {model.label: model.drift.model_dump(mode="json") for model in models if model.drift is not None},
        "strategies": {
            model.label: [found.model_dump(mode="json") for found in model.strategies] for model in models if model.strategies
        },
        "crossed": {model.label: model.crossed.model_dump(mode="json") for model in models if model.crossed is not None},
        "probes": {
            model.label: {
                "weights_of_step": taken(model.curve),
                "choice": model.curve.choice.model_dump(mode="json"),
                "points": [point.model_dump(mode="json") for point in model.curve.points],
            }
            for model in models
            if model.curve is not None
        },
        "comparisons": [one.model_dump(mode="json") for one in comparisons],
        "runs": {model.label: {stage: str(run.path) for stage, run in model.runs.items()} for model in models},
    }


def _judged(run: JudgedRun) -> dict[str, object]:
    """A run's judges, and how far they agree where there are two."""
    agreed = None if run.agreement is None else run.agreement.model_dump(mode="json")
    return {"judges": {name: one.model_dump(mode="json") for name, one in run.judges.items()}, "agreement": agreed}
