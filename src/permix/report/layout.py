"""The order of a report: turns the models and their comparisons into one `Document`.

Contract: everything comes from the runs' records, and a section without content is left out. Only figures that were drawn are
named.
"""

from collections.abc import Iterable, Mapping, Sequence

from permix.rendering import table
from permix.rendering.table import SourceRun, one_line
from permix.report import excerpts, fidelity_tables, score_plots, summary_text, tables
from permix.report.comparisons import Comparison
from permix.report.document import Document, DocumentPart, DocumentSection, Figure, optional_section
from permix.report.judge_tables import judge_section_parts
from permix.report.judges import KIND_TITLES
from permix.report.methods import PooledMethod, ReportMethod
from permix.report.published import AS_PUBLISHED_NOTE as PUBLISHED_NOTE
from permix.report.published import PublishedComparison, published_parts
from permix.report.runs import ModelRuns
from permix.report.summary_text import build_claim
from permix.report.tables import method_table

REPORT_TITLE = "Personas: what they cost, and what is left of them"

MODELS_NOTE = (
    "A line a model, each training seed by itself. PSS as observed is to be read beside its value if personas did nothing."
)

PERSONA_NOTE = (
    "Accuracy; below it the difference to no persona on the questions scored both ways, and the p of an exact McNemar test "
    "(sign flips where there are several samples), Holm-adjusted over the personas of one model."
)

GRID_NOTE = "One cell a persona and question: the mean score over its samples."

LOTTERY_NOTE = (
    "What trying k personas and keeping the best would be expected to give. The best is chosen with the answers known, so this "
    "is what a perfect chooser could get, not what anybody gets."
)

TEMPLATE_NOTE = (
    "The same personas brought in by several wordings. Each line is one wording by itself; the tables above average over all of "
    "them. An interval of a standard deviation that begins at 0 says that no such difference was shown."
)

STRATEGY_NOTE = (
    "What personas buy without any training, and what that costs. The gain is paired by question. Tokens are those of every call "
    "behind one answer, read and written, beside those of asking the same question once without a persona."
)

CONTROLS_NOTE = (
    "How often a classifier, held out by question and with persona words masked, tells which persona wrote an answer. The "
    "controls stand at chance if the test is sound; length only may lie above it, since personas may differ in length."
)

JUDGE_SCORES_NOTE = (
    "Scores of 1 to 5 that a language model gave, mean over the answers scored; PersonaScore is the mean of the tasks' means. "
    "Intervals draw personas, each with all its answers; they do not cover what another judge would say. An answer without a "
    "score is left out and counted."
)

DEV_EVAL_NOTE = (
    "Measured while training, on personas and questions of the dev side, to choose weights and when to stop. What chooses is no "
    "result: the best of several noisy numbers is too high. Results stand in the table at the top, from the held-out side."
)


def build_document(
    models: Sequence[ModelRuns],
    comparisons: Sequence[Comparison],
    methods: Sequence[ReportMethod],
    pooled: Sequence[PooledMethod],
    figure_captions: Mapping[str, str],
    caption: str = "",
    published: PublishedComparison | None = None,
) -> Document:
    """Return the document. `figure_captions` says what each figure shows, by file name; `caption` is a Markdown paragraph of the
    caller.
    """
    figures = {file: Figure(file, what, chart_name(file)) for file, what in figure_captions.items()}
    headline, *details = summary_text.result_sentences(models, comparisons)
    return Document(
        title=REPORT_TITLE,
        caption=caption,
        claim=build_claim(methods),
        warnings="\n>\n".join([*summary_text.incomplete_run_warnings(models), *summary_text.comparison_warnings(comparisons)]),
        details="\n\n".join([headline, "\n".join(details)]).rstrip(),
        main_table=method_table(methods, pooled),
        footnotes=excerpts.build_footnotes(models),
        front_figures=_figures_of_chart(figures, "tradeoff"),
        sections=tuple(_sections(models, comparisons, figures, published)),
    )


def chart_name(file: str) -> str:
    """Return the name of the page's chart that replaces a figure: "heatmap-3.png" belongs to the chart "grid"."""
    stem = file.partition(".")[0].partition("-")[0]
    return {"heatmap": "grid"}.get(stem, stem)


def _sections(
    models: Sequence[ModelRuns],
    comparisons: Sequence[Comparison],
    figures: Mapping[str, Figure],
    published: PublishedComparison | None,
) -> Iterable[DocumentSection]:
    summaries = {model.label: model.stability for model in models if model.stability is not None}
    controls = {model.label: model.identifiability for model in models if model.identifiability is not None}
    texts = {SourceRun(model.label, kind): found for model in models for kind, found in model.text_metrics.items()}
    probes = figures.get("probes.png")
    strategies = [tables.StrategyResult(model.label, found) for model in models for found in model.strategies]
    yield from optional_section(
        "models", "Every model, every number", [tables.models_table([model.row for model in models])], MODELS_NOTE
    )
    table: list[DocumentPart] = [tables.persona_table(summaries)] if summaries else []
    yield from optional_section("personas", "Each persona", [*_figures_of_chart(figures, "personas"), *table], PERSONA_NOTE)
    yield from optional_section("grid", "Who answers what", _figures_of_chart(figures, "grid"), GRID_NOTE)
    yield from optional_section("lottery", "The persona lottery", _figures_of_chart(figures, "lottery"), LOTTERY_NOTE)
    yield from optional_section("wordings", "Wordings of the personas", _template_parts(models), TEMPLATE_NOTE)
    yield from optional_section(
        "strategies", "Inference-time strategies", [tables.strategy_table(strategies)] if strategies else [], STRATEGY_NOTE
    )
    told: list[DocumentPart] = []
    if controls:
        told = [tables.controls_table(controls), *_figures_of_chart(figures, "learnt"), *_figures_of_chart(figures, "confusion")]
    yield from optional_section("identifiability", "Identifiability and its controls", told, CONTROLS_NOTE)
    yield from optional_section(
        "judges", "Fidelity by judges", list(_judge_parts(models, comparisons, figures)), JUDGE_SCORES_NOTE
    )
    yield from optional_section("as-published", "As published", published_parts(published), PUBLISHED_NOTE)
    yield from optional_section(
        "unjudged", "Without a judge", fidelity_tables.text_metric_parts(texts), fidelity_tables.TEXT_METRICS_NOTE
    )
    yield from optional_section(
        "drift",
        "Drift over an interview",
        fidelity_tables.drift_parts(models, figures.get("drift.png")),
        fidelity_tables.DRIFT_NOTE,
    )
    times = excerpts.step_time_table(models)
    yield from optional_section("training", "Training", [*_figures_of_chart(figures, "training"), *([times] if times else [])])
    yield from optional_section(
        "probes", "Probes on the dev side", [probes, excerpts.dev_eval_choices(models)] if probes else [], DEV_EVAL_NOTE
    )
    said = [part for kind in excerpts.EXCERPT_KINDS for part in excerpts.completion_excerpts(models, kind)]
    yield from optional_section("completions", "What they say", said, chart="completions")
    yield from optional_section("runs", "Where the numbers come from", [excerpts.provenance_table(models)])


def _judge_parts(
    models: Sequence[ModelRuns], comparisons: Sequence[Comparison], figures: Mapping[str, Figure]
) -> Iterable[DocumentPart]:
    found = {f"{one_line(one.label)} against {one_line(one.against)}": one.judged for one in comparisons}
    judged = {model.label: model.judged_runs for model in models if model.judged_runs}
    for kind, title in KIND_TITLES.items():
        if parts := judge_section_parts(kind, judged, found):
            yield f"### {title[0].upper()}{title[1:]}"
            yield from (figures[file] for file in score_plots.judge_figure_files(kind) if file in figures)
            yield from parts


def _template_parts(models: Sequence[ModelRuns]) -> list[DocumentPart]:
    found = {model.label: model.template_effects for model in models if model.template_effects is not None}
    said = [f"- **{table.md_label(name)}**: {tables.variance_components_text(one)}." for name, one in found.items()]
    return [tables.template_table(found), "\n".join(said)] if found else []


def _figures_of_chart(figures: Mapping[str, Figure], chart: str) -> tuple[Figure, ...]:
    return tuple(picture for picture in figures.values() if picture.chart == chart)
