"""What a report says, in which order: from the models and their comparisons to one `Document`.

Contract: everything comes from the runs' records; a section without content is left out. `figures` are those that were drawn.
"""

from collections.abc import Iterable, Mapping, Sequence

from permix.rendering import table
from permix.rendering.table import Source, one_line
from permix.report import excerpts, fidelity_tables, score_plots, summary_text, tables
from permix.report.comparisons import Comparison
from permix.report.document import Document, Part, Picture, Section, section
from permix.report.judge_tables import judged_parts
from permix.report.judges import TITLES
from permix.report.methods import Method, Pooled
from permix.report.published import NOTE as PUBLISHED_NOTE
from permix.report.published import Published, published_parts
from permix.report.runs import ModelRuns
from permix.report.summary_text import claim
from permix.report.tables import method_table

TITLE = "Personas: what they cost, and what is left of them"

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

CROSSED_NOTE = (
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

JUDGED_NOTE = (
    "Scores of 1 to 5 that a language model gave, mean over the answers scored; PersonaScore is the mean of the tasks' means. "
    "Intervals draw personas, each with all its answers; they do not cover what another judge would say. An answer without a "
    "score is left out and counted."
)

PROBE_NOTE = (
    "Measured while training, on personas and questions of the dev side, to choose weights and when to stop. What chooses is no "
    "result: the best of several noisy numbers is too high. Results stand in the table at the top, from the held-out side."
)


def lay_out(
    models: Sequence[ModelRuns],
    comparisons: Sequence[Comparison],
    methods: Sequence[Method],
    pooled: Sequence[Pooled],
    drawn: Mapping[str, str],
    caption: str = "",
    aside: Published | None = None,
) -> Document:
    """`drawn`: what each figure shows, by file name; `caption` is a paragraph of the caller's own, in Markdown."""
    figures = {file: Picture(file, what, chart_of(file)) for file, what in drawn.items()}
    headline, *details = summary_text.readings(models, comparisons)
    return Document(
        title=TITLE,
        caption=caption,
        claim=claim(methods),
        warnings="\n>\n".join([*summary_text.unfinished(models), *summary_text.warnings(comparisons)]),
        details="\n\n".join([headline, "\n".join(details)]).rstrip(),
        main=method_table(methods, pooled),
        rests_on=excerpts.caption(models),
        front=_pictures(figures, "tradeoff"),
        sections=tuple(_sections(models, comparisons, figures, aside)),
    )


def chart_of(file: str) -> str:
    """What draws the same on the page: "heatmap-3.png" is one of the charts "grid"."""
    stem = file.partition(".")[0].partition("-")[0]
    return {"heatmap": "grid"}.get(stem, stem)


def _sections(
    models: Sequence[ModelRuns], comparisons: Sequence[Comparison], figures: Mapping[str, Picture], aside: Published | None
) -> Iterable[Section]:
    summaries = {model.label: model.stability for model in models if model.stability is not None}
    controls = {model.label: model.fidelity for model in models if model.fidelity is not None}
    texts = {Source(model.label, kind): found for model in models for kind, found in model.unjudged.items()}
    probes = figures.get("probes.png")
    strategies = [tables.Strategic(model.label, found) for model in models for found in model.strategies]
    yield from section("models", "Every model, every number", [tables.main_table([model.row for model in models])], MODELS_NOTE)
    table: list[Part] = [tables.persona_table(summaries)] if summaries else []
    yield from section("personas", "Each persona", [*_pictures(figures, "personas"), *table], PERSONA_NOTE)
    yield from section("grid", "Who answers what", _pictures(figures, "grid"), GRID_NOTE)
    yield from section("lottery", "The persona lottery", _pictures(figures, "lottery"), LOTTERY_NOTE)
    yield from section("wordings", "Wordings of the personas", _crossed(models), CROSSED_NOTE)
    yield from section(
        "strategies", "Inference-time strategies", [tables.strategy_table(strategies)] if strategies else [], STRATEGY_NOTE
    )
    told: list[Part] = []
    if controls:
        told = [tables.controls_table(controls), *_pictures(figures, "learnt"), *_pictures(figures, "confusion")]
    yield from section("identifiability", "Identifiability and its controls", told, CONTROLS_NOTE)
    yield from section("judges", "Fidelity by judges", list(_by_judges(models, comparisons, figures)), JUDGED_NOTE)
    yield from section("as-published", "As published", published_parts(aside), PUBLISHED_NOTE)
    yield from section("unjudged", "Without a judge", fidelity_tables.parts(texts), fidelity_tables.TEXT_NOTE)
    yield from section(
        "drift",
        "Drift over an interview",
        fidelity_tables.drift_parts(models, figures.get("drift.png")),
        fidelity_tables.DRIFT_NOTE,
    )
    times = excerpts.step_times(models)
    yield from section("training", "Training", [*_pictures(figures, "training"), *([times] if times else [])])
    yield from section("probes", "Probes on the dev side", [probes, excerpts.choices(models)] if probes else [], PROBE_NOTE)
    said = [part for kind in excerpts.KINDS for part in excerpts.completions(models, kind)]
    yield from section("completions", "What they say", said, chart="completions")
    yield from section("runs", "Where the numbers come from", [excerpts.provenance(models)])


def _by_judges(models: Sequence[ModelRuns], comparisons: Sequence[Comparison], figures: Mapping[str, Picture]) -> Iterable[Part]:
    found = {f"{one_line(one.label)} against {one_line(one.against)}": one.judged for one in comparisons}
    judged = {model.label: model.judged for model in models if model.judged}
    for kind, title in TITLES.items():
        if parts := judged_parts(kind, judged, found):
            yield f"### {title[0].upper()}{title[1:]}"
            yield from (figures[file] for file in score_plots.files(kind) if file in figures)
            yield from parts


def _crossed(models: Sequence[ModelRuns]) -> list[Part]:
    found = {model.label: model.crossed for model in models if model.crossed is not None}
    said = [f"- **{table.md_label(name)}**: {tables.components_of(one)}." for name, one in found.items()]
    return [tables.crossed_table(found), "\n".join(said)] if found else []


def _pictures(figures: Mapping[str, Picture], chart: str) -> tuple[Picture, ...]:
    return tuple(picture for picture in figures.values() if picture.chart == chart)
