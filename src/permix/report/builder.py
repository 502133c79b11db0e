"""Builds a report: reads run directories and writes the page, report.md, table.json, a CSV file of every table, and the figures.

Contract: every number is computed from the runs' records, so a report can be rebuilt anywhere, and rebuilding it writes the same
bytes. Models keep the order of their first run; every other model is compared with the first one and with the one before it.

`update_model_cards` also writes the results into the model cards: the README.md of every model that was trained in these runs.
Only the text between the two markers `CARD_BEGIN` and `CARD_END` is replaced; a card without markers gets them at its end, and
everything else in a card is kept. All cards are found and read before the first one is written, and each card is written whole or
not at all. Apart from the cards, only `out` is written to.
"""

import itertools
import re
import shlex
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from rich.console import Console

from permix.config import ReportConfig
from permix.errors import DataError
from permix.evals.stability import first_round_grid
from permix.metrics import statistics
from permix.metrics.dev_curve import marked_step
from permix.progress import add_result, print_status_once
from permix.rendering import plots, table, theme
from permix.rendering.plots import plot_drift
from permix.rendering.table import SourceRun, one_line, plain_text
from permix.report import fidelity_tables, score_plots, tables
from permix.report.comparisons import Comparison, compare_models
from permix.report.document import Document, DocumentSection, render_card_results, render_report_markdown
from permix.report.html.charts import build_charts, persona_infos
from permix.report.html.page import RunIndex, write_page
from permix.report.html.transcripts import write_transcripts
from permix.report.html.values import model_looks, printable_text, unique_display_names
from permix.report.judge_tables import PublishedComparison, collect_published, published_json
from permix.report.judges import PERSONAGYM_KIND, JudgedRun
from permix.report.layout import build_document
from permix.report.methods import ReportMethod, group_methods, method_names
from permix.report.pooled import MethodNumbers, PooledMethod, reference_differences
from permix.report.runs import ModelRow, ModelRuns, collect_models
from permix.report.score_plots import plot_tradeoff
from permix.report.tables import StrategyResult
from permix.report.tradeoff import build_tradeoffs
from permix.storage.files import guard_writes, replace_when_done, write_json, write_text

CARD_BEGIN, CARD_END = "<!-- permix report: begin -->", "<!-- permix report: end -->"


def update_model_cards(models: Sequence[ModelRuns], markdown: str, figure: Path | None) -> list[Path]:
    """Put `markdown` (already escaped) and a copy of `figure` into every card; return the paths of the cards.

    Raises DataError as `model_card_paths` does, and for a card that is not UTF-8 or has unpaired markers.
    """
    cards = model_card_paths(models)
    image = "" if figure is None else f"\n\n![PSS against identifiability]({figure.name})"
    new_texts = {card: _with_report_block(card, f"{CARD_BEGIN}\n{markdown}{image}\n{CARD_END}") for card in cards}
    for card, text in new_texts.items():
        with guard_writes(card):
            if figure is not None:
                with replace_when_done(card.with_name(figure.name)) as scratch:
                    shutil.copyfile(figure, scratch)
            write_text(card, text)
    return cards


def model_card_paths(models: Sequence[ModelRuns]) -> list[Path]:
    """The paths of the cards of the models trained in these runs. Raises DataError when no run is a training or a card is
    missing.
    """
    trained = [model.runs["train"].path for model in models if "train" in model.runs]
    if not trained:
        raise DataError("cards: none of these runs is a training run, so there is no model card to update; add the training runs")
    cards = [run / "model" / "README.md" for run in trained]
    if missing := [card for card in cards if not card.is_file()]:
        raise DataError(f"cards: {missing[0]} does not exist; its training has not ended, or the model was moved")
    return cards


def _with_report_block(card: Path, block: str) -> str:
    """The card's text with `block` between the markers. Raises DataError when the card is not UTF-8 or its markers are
    unpaired.
    """
    try:
        text = card.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"cards: {card} is not UTF-8: {error}") from error
    begin, end = text.find(CARD_BEGIN), text.find(CARD_END)
    if begin == end == -1:
        return f"{text.rstrip()}\n\n{block}\n"
    if begin == -1 or end < begin or text.count(CARD_BEGIN) > 1 or text.count(CARD_END) > 1:
        raise DataError(f"cards: {card} must hold {CARD_BEGIN} and after it {CARD_END}, once each, or neither")
    return text[:begin] + block + text[end + len(CARD_END) :]


REPORT_FIGURE_FILES = re.compile(
    r"(tradeoff|tradeoff-right-in-character|personas|lottery|learnt|training|training-tags|probes|drift|(heatmap|confusion|judged|trial)-\w+)\.(png|svg)"
)
"""Names of the figures that a report may have."""

REPORT_TABLE_NAMES = re.compile(
    r"methods|method-differences|model-differences|models|cells|personas_tidy|personas|wordings|contexts|strategies|identifiability|right-in-character"
    r"|recognisability|recognised|as-published|unjudged|drift|step-times|runs|addresses"
    r"|(scores|differences|trial|agreement|interview|said)(-.+)?|runs-study|study-overview"
)
"""Names of the tables that a report may have."""


def run_report(config: ReportConfig, caption: str = "") -> None:
    """Run `permix report`: build the report, then print its claim, its warnings, its main tables and the paths of its two main
    files. `caption` as in `build_report`.
    """
    models = collect_models(config.runs)
    if config.cards:
        model_card_paths(models)  # errors in the cards are raised before any figure is drawn
    methods, published = group_methods(models, config.methods), collect_published(models, config)
    document = write_pooled_report(models, methods, config.out, caption, published=published, cards=config.cards)
    console, strategies = Console(), _strategy_results(models)
    print_conclusion(document, console)
    if any(model.stability or model.identifiability or model.judged_runs or "train" in model.runs for model in models):
        console.print(tables.terminal_models_table([model.row for model in models]))
    text_metrics = {SourceRun(model.label, kind): one for model in models for kind, one in model.text_metrics.items()}
    if text_metrics:
        console.print(fidelity_tables.terminal_text_metrics_table(text_metrics))
    if strategies:
        console.print(tables.terminal_strategy_table(strategies))
    if drift_by_model := {model.label: model.drift for model in models if model.drift is not None}:
        console.print(fidelity_tables.terminal_drift_table(drift_by_model))
    if contexts := {model.label: model.contexts for model in models if model.contexts}:
        for one in tables.terminal_context_tables(contexts):
            console.print(one)
    for model in models:
        if model.template_effects is not None:
            console.print(f"{one_line(model.label)}: {tables.variance_components_text(model.template_effects)}", markup=False)
    for model in models:
        if PERSONAGYM_KIND in model.runs and model.runs[PERSONAGYM_KIND].judged_run is None:
            run = shlex.quote(str(model.runs[PERSONAGYM_KIND].path))
            command = f"next, have a judge score the answers: permix judge {run} --judge.name NAME"
            console.print(command, markup=False, highlight=False, soft_wrap=True)
    for file in ("report.md", "index.html"):
        console.print(str(config.out / file), markup=False, highlight=False, soft_wrap=True)


def print_conclusion(document: Document, console: Console) -> None:
    """Print the claim and the warnings of a report, as plain text."""
    for line in (document.claim.sentence, *document.warnings.split("\n")):
        if text := plain_text(line).strip():
            console.print(text, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def build_report(runs: Sequence[Path], out: Path, caption: str = "") -> list[ModelRow]:
    """Write the report on `runs` (run directories, or folders that contain some) into `out`; return the rows of its main table.

    `caption` is a Markdown paragraph from the caller. Raises DataError when there is no run, when a folder neither is nor
    contains a run, or when two runs of one kind have the same label.
    """
    models = collect_models(runs)
    write_pooled_report(models, group_methods(models), out, caption)
    return [model.row for model in models]


class ReportAdditions(NamedTuple):
    """What a caller adds to a report: sections before all others, and fields of table.json."""

    sections: tuple[DocumentSection, ...] = ()
    json: Mapping[str, Any] = MappingProxyType({})


def write_pooled_report(
    models: Sequence[ModelRuns],
    methods: Sequence[ReportMethod],
    out: Path,
    caption: str = "",
    additions: ReportAdditions | None = None,
    published: PublishedComparison | None = None,
    *,
    cards: bool = False,
    numbers: MethodNumbers | None = None,
) -> Document:
    """Write the report on these models, pooled by these methods, into `out`. `caption` as in `build_report`; `numbers` of these
    methods, which the caller uses too.
    """
    numbers = numbers or MethodNumbers()
    comparisons = [compare_models(model, against) for model, against in comparison_pairs(models)]
    pooled = [numbers.pooled(method) for method in methods]
    captions, figures = draw_report_figures(models, methods, pooled, comparisons, out)
    differences = reference_differences(methods, numbers)
    document = build_document(models, comparisons, methods, pooled, captions, caption, published, differences, figures)
    added = additions or ReportAdditions()
    document = document._replace(sections=(*added.sections, *document.sections))
    add_result(
        claim=plain_text(document.claim.sentence),
        claim_support=plain_text(document.claim.support),
        rows=[model.row.model_dump(mode="json") for model in models],
        warnings=[plain_text(line) for line in document.warnings.splitlines() if line != ">"],
        paths={"report": out / "report.md", "page": out / "index.html", "table": out / "table.json", "tables": out / "tables"},
    )
    _remove_stale_files(
        out,
        {*figures, *(name.replace(".png", ".svg") for name in figures)},
        {*TIDY_TABLES, *(table.name for table in document.tables)},
    )
    write_text(out / "report.md", render_report_markdown(document))
    _write_html(models, methods, pooled, comparisons, document, out)
    for one in document.tables:
        write_text(out / "tables" / f"{one.name}.csv", one.csv)
    _write_tidy_tables(models, out / "tables")
    seeds = {
        "methods": [one.model_dump(mode="json") for one in pooled],
        "method_differences": [one.model_dump(mode="json") for one in differences],
    }
    write_json(
        out / "table.json", _report_json(models, comparisons, caption) | seeds | published_json(published) | dict(added.json)
    )
    if cards:
        update_model_cards(models, render_card_results(document), out / "tradeoff.png" if "tradeoff.png" in figures else None)
    return document


TIDY_TABLES = {
    "cells": (tables.TIDY_CELL_COLUMNS, tables.tidy_cell_rows),
    "personas_tidy": (tables.TIDY_PERSONA_COLUMNS, tables.tidy_persona_rows),
}
"""For each table for programs: its columns, and a function that makes its rows from the models."""


def _write_tidy_tables(models: Sequence[ModelRuns], folder: Path) -> None:
    """Write the tables for programs that have rows, as CSV and Parquet, and delete those that an earlier report left."""
    written: list[Path] = []
    for name, (columns, make_rows) in TIDY_TABLES.items():
        rows = make_rows(models)
        if (first := next(rows, None)) is not None:
            written += table.write_rows(folder / f"{name}.csv", columns, itertools.chain([first], rows))
    for path in (folder / f"{name}{suffix}" for name in TIDY_TABLES for suffix in (".csv", ".parquet")):
        if path not in written:
            path.unlink(missing_ok=True)


def _remove_stale_files(out: Path, figures: Collection[str], tables: Collection[str]) -> None:
    """Delete figures and tables that an earlier report left in this folder and this report does not have."""
    for path in out.glob("*.[ps][nv]g"):
        if path.name not in figures and REPORT_FIGURE_FILES.fullmatch(path.name):
            path.unlink()
    for path in (out / "tables").glob("*.csv"):
        if path.stem not in tables and REPORT_TABLE_NAMES.fullmatch(path.stem):
            path.unlink()


def _write_html(
    models: Sequence[ModelRuns],
    methods: Sequence[ReportMethod],
    pooled: Sequence[PooledMethod],
    comparisons: Sequence[Comparison],
    document: Document,
    out: Path,
) -> None:
    names = unique_display_names(model.label for model in models)
    method_of = {names[label]: printable_text(method.name) for method in methods for label in method.labels}
    styles = {names[label]: style for label, style in theme.styles_for(names, method_names(methods)).items()}
    tags = {one_line(person.id): [printable_text(tag) for tag in person.tags] for person in persona_infos(models).values()}
    charts, transcripts = build_charts(models, methods, pooled, comparisons), write_transcripts(models, out)
    write_page(out / "index.html", document, charts, model_looks(styles, method_of), RunIndex(models), tags, transcripts)


def _strategy_results(models: Sequence[ModelRuns]) -> list[StrategyResult]:
    return [StrategyResult(model.label, summary) for model in models for summary in model.strategies]


def comparison_pairs(models: Sequence[ModelRuns]) -> list[tuple[ModelRuns, ModelRuns]]:
    """Pairs (model, against): every other model against the first, then each model against the one before it."""
    return [*((model, models[0]) for model in models[1:]), *((model, before) for before, model in pairwise(models[1:]))]


class ReportFigures(NamedTuple):
    """What each figure of a report shows, by file name, in the order of the report; and the files that were drawn."""

    captions: dict[str, str]
    files: frozenset[str]


def draw_report_figures(
    models: Sequence[ModelRuns],
    methods: Sequence[ReportMethod],
    pooled: Sequence[PooledMethod],
    comparisons: Sequence[Comparison],
    out: Path,
) -> ReportFigures:
    """Draw every figure that the runs allow; without matplotlib none."""
    can_draw = find_spec("matplotlib") is not None
    if not can_draw:
        print_status_once("note: no figures as PNG and SVG files, since matplotlib is not installed; index.html draws its own")

    def draw(plot: Callable[..., None], *given: Any) -> None:
        if can_draw:
            plot(*given)

    styles = theme.styles_for((model.label for model in models), method_names(methods))
    summaries = {model.label: model.stability for model in models if model.stability is not None}
    logs = {model.label: model.runs["train"].log for model in models if "train" in model.runs}
    reward_logs = {name: log for name, log in logs.items() if any("reward" in step for step in log)}
    figures: dict[str, str] = {}
    looks_of = {method.name: styles[method.labels[0]] for method in methods}
    for tradeoff in build_tradeoffs(models, methods, pooled, comparisons).tradeoffs:
        if tradeoff.view.file is not None:
            draw(plot_tradeoff, tradeoff, out / tradeoff.view.file, looks_of)
            figures[tradeoff.view.file] = tradeoff.view.title
    if summaries:
        draw(plots.plot_persona_accuracy, summaries, out / "personas.png", styles)
        draw(plots.plot_best_of_k, summaries, out / "lottery.png", styles)
        figures |= {"personas.png": "accuracy by persona", "lottery.png": "expected best of k personas"}
    for place, model in enumerate(models, start=1):
        if model.grid is not None:
            name = f"heatmap-{place}.png"
            draw(_plot_model_heatmap, model, out / name)
            figures[name] = f"mean score by persona and question, {table.md_label(model.label)}"
    figures |= score_plots.plot_judge_figures(
        {model.label: model.judged_runs for model in models if model.judged_runs}, out, styles, draw
    )
    if reward_logs:
        draw(plots.plot_learning_curves, reward_logs, out / "training.png", styles)
        figures["training.png"] = "learning curves"
        if plots.frequent_tags(reward_logs.values())[0]:
            draw(plots.plot_reward_by_tag, reward_logs, out / "training-tags.png", styles)
            figures["training-tags.png"] = "mean reward by kind of persona"
    if drift_by_model := {model.label: model.drift for model in models if model.drift is not None}:
        draw(plot_drift, drift_by_model, out / "drift.png", styles)
        figures["drift.png"] = "measures by interview turn"
    if curves := {model.label: model.dev_curve for model in models if model.dev_curve is not None}:
        draw(plots.plot_dev_curves, curves, out / "probes.png", styles)
        figures["probes.png"] = "dev evaluations during training"
    identifiability = {model.label: model.identifiability for model in models if model.identifiability is not None}
    figures |= plots.plot_identifiability_figures(identifiability, out, styles, draw)
    return ReportFigures(figures, frozenset(figures if can_draw else ()))


def _plot_model_heatmap(model: ModelRuns, path: Path) -> None:
    assert model.grid is not None
    grid = first_round_grid(model.runs["stability"].path, model.grid)
    mean_P_Q, baseline_Q = statistics.mean_over_samples(grid.correct_P_Q_S), statistics.mean_over_samples(grid.baseline_Q_S)
    plots.plot_heatmap(mean_P_Q, grid.persona_ids, path, f"{model.label}: mean score by persona and question", baseline_Q)


def _report_json(models: Sequence[ModelRuns], comparisons: Sequence[Comparison], caption: str) -> dict[str, object]:
    """The content of table.json: every number of the report, by label."""
    return {
        "caption": caption,
        "rows": [model.row.model_dump(mode="json") for model in models],
        "stability": {model.label: model.stability.model_dump(mode="json") for model in models if model.stability is not None},
        "identifiability": {
            model.label: model.identifiability.model_dump(mode="json") for model in models if model.identifiability is not None
        },
        **_right_in_character_json(models),
        "recognisability": {
            model.label: model.recognisability.model_dump(mode="json") for model in models if model.recognisability is not None
        },
        "judged": {
            model.label: {run.kind: _judges_json(run) for run in model.judged_runs} for model in models if model.judged_runs
        },
        "not_judged": {
            model.label: {kind: metrics.model_dump(mode="json") for kind, metrics in model.text_metrics.items()}
            for model in models
            if model.text_metrics
        },
        "drift": {model.label: model.drift.model_dump(mode="json") for model in models if model.drift is not None},
        "strategies": {
            model.label: [summary.model_dump(mode="json") for summary in model.strategies] for model in models if model.strategies
        },
        "template_effects": {
            model.label: model.template_effects.model_dump(mode="json") for model in models if model.template_effects is not None
        },
        "contexts": {
            model.label: {one.id: one.model_dump(mode="json") for one in model.contexts} for model in models if model.contexts
        },
        "dev_evals": {
            model.label: {
                "weights_of_step": marked_step(model.dev_curve),
                "choice": model.dev_curve.selection.model_dump(mode="json"),
                "points": [point.model_dump(mode="json") for point in model.dev_curve.points],
            }
            for model in models
            if model.dev_curve is not None
        },
        "failures": {
            model.label: {kind: [one._asdict() for one in found] for kind, found in reasons.items()}
            for model in models
            if (reasons := model.failure_reasons)
        },
        "comparisons": [one.model_dump(mode="json") for one in comparisons],
        "runs": {model.label: {stage: str(run.path) for stage, run in model.runs.items()} for model in models},
    }


def _right_in_character_json(models: Sequence[ModelRuns]) -> dict[str, object]:
    """Right and in character by label, under its name; empty when no model has it."""
    found = {model.label: model.right_in_character for model in models if model.right_in_character is not None}
    return {"right_in_character": {label: one.model_dump(mode="json") for label, one in found.items()}} if found else {}


def _judges_json(run: JudgedRun) -> dict[str, object]:
    """The results of a run's judges, and their agreement when there are at least two judges."""
    agreement = None if run.agreement is None else run.agreement.model_dump(mode="json")
    return {"judges": {name: one.model_dump(mode="json") for name, one in run.judges.items()}, "agreement": agreement}
