"""Builds the `Document` of a report, section by section, from the models and their comparisons.

Contract: all numbers come from the runs' records. A section without content is left out, and a figure that was not drawn is not
named.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from permix.rendering import table
from permix.rendering.table import SourceRun, one_line
from permix.report import excerpts, fidelity_tables, score_plots, summary_text, tables
from permix.report.claim import build_claim
from permix.report.comparisons import Comparison
from permix.report.document import Document, DocumentPart, DocumentSection, Figure, optional_section
from permix.report.judge_tables import AS_PUBLISHED_NOTE as PUBLISHED_NOTE
from permix.report.judge_tables import PublishedComparison, judge_section_parts, published_parts
from permix.report.judges import KIND_TITLES
from permix.report.methods import ReportMethod
from permix.report.pooled import MethodDifference, PooledMethod
from permix.report.runs import ModelRuns

REPORT_TITLE = "Stability and fidelity under personas"

SEEDS_NOTE = (
    "Differences of methods, as means over their training seeds. *Over questions*: other questions, the same trained models. "
    "*Over questions and seeds*: other training seeds as well. That interval, and its two-sided p for each measure alone, decide "
    "whether a difference of the methods is shown; two or three seeds show large differences only. With one seed of a trained "
    "method its seeds are not covered: the difference is that of these models."
)

MODEL_DIFFERENCES_NOTE = (
    "The first model minus the second, with 95 % intervals over the questions, paired by question (accuracies by persona and "
    "question). Bold: the interval excludes 0. Other training seeds are not covered. Differences in judges' scores are in the "
    "section on judges."
)

PERSONA_NOTE = (
    "Accuracy. Below it: the difference to no persona on questions with both scores, and the p-value of an exact McNemar test "
    "(a sign-flip test with several samples), Holm-corrected over the personas of one model."
)

GRID_NOTE = "Each cell is one persona and one question: the mean score over its samples."

BEST_OF_K_NOTE = (
    "Expected accuracy if k personas are tried and the best one is kept. The best one is chosen by the right answers to the same "
    "questions, so this is an upper bound."
)

TEMPLATE_NOTE = (
    "The same personas with several templates. Each row is one template alone; the tables above average over all templates. "
    "Where the interval of a standard deviation begins at 0, no such difference was shown."
)

CONTEXT_NOTE = (
    "The same personas and questions in several contexts: where the prompt states the persona, and what it adds (a request to "
    "stay in character, or recorded turns). Each row is one context alone; the tables above average over all contexts. The "
    "questions without a persona were asked once, without a context. The last difference is against the run's first context, "
    "paired by persona and question."
)

STRATEGY_NOTE = (
    "What personas gain without training, and at what cost. The gain is paired by question. Tokens are those read and written in "
    "all calls for one answer; next to them are the tokens of asking the same question once without a persona."
)

CONTROLS_NOTE = (
    "How often a classifier names the persona that wrote an answer, on held-out questions and with the words of the personas "
    "masked. If the test is sound, the controls are at chance; length only may be above it, since personas may differ in length."
)

RIGHT_IN_CHARACTER_NOTE = (
    "Share of the task's answers that are right and that a classifier attributes to their persona, on held-out questions and "
    "with the words of the personas, numbers and answers masked. By chance: the same with shuffled labels, about the share of "
    "right answers divided by the number of personas. Length only, score only and labels permuted are controls of recognised, to "
    "be read against chance; score only is how often right or wrong alone would name the persona."
)

RECOGNISABILITY_NOTE = (
    "How often the persona text nearest to an answer, by a sentence embedder, is that of its persona. Words of the persona texts "
    "are removed from the answers, and the mean over the personas that answered the same question is subtracted. It asks whether "
    "an answer is like the text of that character; it does not see whether the character is played well. p is from a test that "
    "assigns the texts to the personas at random."
)

JUDGE_SCORES_NOTE = (
    "Scores of 1 to 5 from a language model, as means over the scored answers; PersonaScore is the mean of the tasks' means. "
    "Intervals resample personas, each with all its answers; they do not cover the scores of another judge. An answer without a "
    "score is left out and counted."
)

DEV_EVAL_NOTE = (
    "Measured during training, on dev personas and dev questions, to choose the weights and when to stop. They are not results: "
    "the best of several noisy numbers is too high. Results on the held-out split are in the table at the top."
)


def build_document(
    models: Sequence[ModelRuns],
    comparisons: Sequence[Comparison],
    methods: Sequence[ReportMethod],
    pooled: Sequence[PooledMethod],
    figure_captions: Mapping[str, str],
    caption: str = "",
    published: PublishedComparison | None = None,
    differences: Sequence[MethodDifference] = (),
    figure_files: Collection[str] = (),
) -> Document:
    """The document. `figure_captions` says what each figure shows, by file name, and `figure_files` names those that were
    drawn; `caption` is a paragraph in Markdown from the caller; `differences` are those of `reference_differences`.
    """
    figures = {
        file: Figure(file, description, chart_name(file), is_missing=file not in figure_files)
        for file, description in figure_captions.items()
    }
    rows = [model.row for model in models]
    main_table, all_models = tables.front_table(methods, pooled, rows), tables.models_table(rows)
    return Document(
        title=REPORT_TITLE,
        caption=caption,
        claim=build_claim(methods, differences, pooled),
        warnings="\n>\n".join([*summary_text.incomplete_run_warnings(models), *summary_text.comparison_warnings(comparisons)]),
        details="\n".join(f"- {line}" for line in summary_text.result_sentences(models)),
        main_table=main_table,
        footnotes=excerpts.build_footnotes(models),
        front_figures=_figures_of_chart(figures, "tradeoff"),
        sections=tuple(_sections(models, comparisons, figures, published, differences)),
        subject=excerpts.subject_text(models),
        short_warnings=tuple(summary_text.short_warnings(models, comparisons)),
        seed_table=None if main_table.name == all_models.name else all_models,
    )


def chart_name(file: str) -> str:
    """The name of the page's chart that replaces a figure: "heatmap-3.png" gives "grid"."""
    stem = file.partition(".")[0].partition("-")[0]
    return {"heatmap": "grid", "probes": "dev_evals"}.get(stem, stem)


def _sections(
    models: Sequence[ModelRuns],
    comparisons: Sequence[Comparison],
    figures: Mapping[str, Figure],
    published: PublishedComparison | None,
    differences: Sequence[MethodDifference],
) -> Iterable[DocumentSection]:
    summaries = {model.label: model.stability for model in models if model.stability is not None}
    controls = {model.label: model.identifiability for model in models if model.identifiability is not None}
    text_metrics = {SourceRun(model.label, kind): one for model in models for kind, one in model.text_metrics.items()}
    dev_eval_figure = figures.get("probes.png")
    strategies = [tables.StrategyResult(model.label, summary) for model in models for summary in model.strategies]
    by_persona: list[DocumentPart] = list(_figures_of_chart(figures, "personas"))
    if summaries:
        cut_off = {model.label: model.cut_off for model in models if model.cut_off is not None}
        by_persona.append(tables.persona_table(summaries, cut_off))
    by_model = tables.model_difference_table(comparisons)
    differences_shown = [] if by_model is None else [by_model]
    yield from optional_section("model-differences", "Differences", differences_shown, MODEL_DIFFERENCES_NOTE)
    by_method = tables.seed_difference_table(differences)
    yield from optional_section(
        "training-seeds", "Differences of methods over training seeds", [] if by_method is None else [by_method], SEEDS_NOTE
    )
    yield from optional_section("personas", "Accuracy by persona", by_persona, PERSONA_NOTE)
    yield from optional_section("heat-map", "Heat map", _figures_of_chart(figures, "grid"), GRID_NOTE)
    yield from optional_section("best-of-k", "Best of k personas", _figures_of_chart(figures, "lottery"), BEST_OF_K_NOTE)
    yield from optional_section("templates", "Templates", _template_parts(models), TEMPLATE_NOTE)
    contexts = {model.label: model.contexts for model in models if model.contexts}
    yield from optional_section("contexts", "Contexts", [tables.context_table(contexts)] if contexts else [], CONTEXT_NOTE)
    yield from optional_section(
        "strategies", "Inference-time strategies", [tables.strategy_table(strategies)] if strategies else [], STRATEGY_NOTE
    )
    parts: list[DocumentPart] = []
    if controls:
        parts = [tables.controls_table(controls), *_figures_of_chart(figures, "learnt"), *_figures_of_chart(figures, "confusion")]
    yield from optional_section("identifiability", "Identifiability and controls", parts, CONTROLS_NOTE)
    in_character = {model.label: model.right_in_character for model in models if model.right_in_character is not None}
    yield from optional_section(
        "right-in-character",
        "Right and in character",
        [tables.right_in_character_table(in_character)] if in_character else [],
        RIGHT_IN_CHARACTER_NOTE,
    )
    yield from optional_section(
        "recognisability", "Recognisability and controls", _recognisability_parts(models), RECOGNISABILITY_NOTE
    )
    yield from optional_section(
        "judges", "Fidelity by judges", list(_judge_parts(models, comparisons, figures)), JUDGE_SCORES_NOTE
    )
    yield from optional_section("as-published", "PersonaScore as published", published_parts(published), PUBLISHED_NOTE)
    yield from optional_section(
        "text-metrics", "Text metrics", fidelity_tables.text_metric_parts(text_metrics), fidelity_tables.TEXT_METRICS_NOTE
    )
    yield from optional_section(
        "drift",
        "Drift by interview turn",
        fidelity_tables.drift_parts(models, figures.get("drift.png")),
        fidelity_tables.DRIFT_NOTE,
    )
    times = excerpts.step_time_table(models)
    yield from optional_section("training", "Training", [*_figures_of_chart(figures, "training"), *([times] if times else [])])
    yield from optional_section(
        "dev-evaluations",
        "Dev evaluations",
        [dev_eval_figure, excerpts.dev_eval_choices(models)] if dev_eval_figure else [],
        DEV_EVAL_NOTE,
    )
    completions = [part for kind in excerpts.EXCERPT_KINDS for part in excerpts.completion_excerpts(models, kind)]
    yield from optional_section("completions", "Completions", completions, chart="completions")
    yield from optional_section("provenance", "Provenance", excerpts.provenance_parts(models))


def _recognisability_parts(models: Sequence[ModelRuns]) -> list[DocumentPart]:
    results = {model.label: model.recognisability for model in models if model.recognisability is not None}
    if not results:
        return []
    pairs = {name: (one.closest_texts, one.embedder) for name, one in results.items()}
    sentences = [
        f"- **{table.md_label(name)}**: texts most alike: {table.md_label(pair.first)} and {table.md_label(pair.second)} (cosine "
        f"{pair.cosine:.2f}); embedder: {table.md_label(embedder, 200)}."
        for name, (pair, embedder) in pairs.items()
    ]
    return [tables.recognisability_table(results), tables.recognisability_persona_table(results), "\n".join(sentences)]


def _judge_parts(
    models: Sequence[ModelRuns], comparisons: Sequence[Comparison], figures: Mapping[str, Figure]
) -> Iterable[DocumentPart]:
    differences = {f"{one_line(one.label)} against {one_line(one.against)}": one.judged for one in comparisons}
    judged = {model.label: model.judged_runs for model in models if model.judged_runs}
    for kind, title in KIND_TITLES.items():
        if parts := judge_section_parts(kind, judged, differences):
            yield f"### {title[0].upper()}{title[1:]}"
            yield from (figures[file] for file in score_plots.judge_figure_files(kind) if file in figures)
            yield from parts


def _template_parts(models: Sequence[ModelRuns]) -> list[DocumentPart]:
    effects = {model.label: model.template_effects for model in models if model.template_effects is not None}
    sentences = [f"- **{table.md_label(name)}**: {tables.variance_components_text(one)}." for name, one in effects.items()]
    return [tables.template_table(effects), "\n".join(sentences)] if effects else []


def _figures_of_chart(figures: Mapping[str, Figure], chart: str) -> tuple[Figure, ...]:
    return tuple(figure for figure in figures.values() if figure.chart == chart)
