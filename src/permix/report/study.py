"""The report of a study: every model that is finished so far, arms pooled over training seeds, each arm compared with the chosen
arm and with the untrained model, and published figures next to those of the study.

A page shows one run of each kind for a model, all of the same splits of personas and questions. The first page is that of the
report, and each further one has a folder of the name of its first evaluation. The tables of differences and of published figures
are on the first page, and cover all evaluations.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table as TerminalTable
from rich.text import Text

from permix.config import (
    BASE_UNIT,
    TRAIN_PART,
    FidelityConfig,
    HeadlineConfig,
    PartConfig,
    StabilityConfig,
    StudyConfig,
    StudyUnit,
)
from permix.errors import ConfigError, DataError
from permix.metrics import statistics
from permix.metrics.measures import character_measures_of, measures_in
from permix.progress import MultiProgress, add_result, separate_result
from permix.rendering.table import (
    MISSING_CELL,
    NOT_SIGNIFICANT,
    SourceRun,
    Table,
    TableCell,
    count_cell,
    difference_direction,
    estimate_cell,
    label_cell,
    md_label,
    one_line,
    plain_text,
    tabulate,
    terminal_table,
    trusted_cell,
)
from permix.report.arm_differences import (
    INTERVAL_INCLUDES_ZERO,
    JUDGE_SCORE_MEASURE,
    SEEDS_NOT_COVERED,
    ArmDifference,
    arm_difference_table,
    compare_arms,
    compare_arms_by_context,
    pooled_context_table,
)
from permix.report.builder import ReportAdditions, print_conclusion, write_pooled_report
from permix.report.document import DocumentPart, DocumentSection, optional_section
from permix.report.judges import OPEN_ENDED_KIND, RUN_KIND_OF_FIDELITY, UNTRUSTED_MARK
from permix.report.methods import ReportMethod, group_assigned_methods
from permix.report.pooled import MethodNumbers, PooledContext, PooledMethod, divide_by_context, pool_context
from permix.report.runs import ModelRuns, collect_models, strategy_kind, with_default_stability
from permix.report.tables import front_table, pooled_character_cell, pooled_measure_cell
from permix.types import Estimate, true_minus

UNTRUSTED_JUDGE_TEXT = (
    "the judge does not tell an answer's persona from a wrong one on all of these models, so the score means nothing"
)

DIFFERENCES_NOTE = (
    "Arm − against, as means over the training seeds, paired by persona and question (a judge's scores by persona), with 95 % "
    "intervals over questions (over personas). If the seeds of two arms differ, those that both have are compared. From two "
    "seeds on, the interval over training seeds too is below with its p; where a measure has none, the note says "
    f'"{SEEDS_NOT_COVERED}". Where the widest interval includes 0, no difference was shown. '
    f"{UNTRUSTED_MARK}: {UNTRUSTED_JUDGE_TEXT}."
)

HEADLINES_NOTE = (
    "Relative change (arm − against) / against of the means over the training seeds, next to the published figure. From two "
    "seeds on, the interval is over questions (personas, for a judge's score) and training seeds. Models, sizes and data may "
    "differ from those of the publication."
)

PARTIAL_STUDY_NOTE = "Only the arms and seeds that --only and --seeds chose; the report of the whole study is in report/."

CONTEXTS_NOTE = "Within each context of the evaluation; the numbers of the arms are means over their training seeds."

OVERVIEW_NOTE = (
    "Every evaluation of the study, as means over an arm's training seeds. *Best of k*: the accuracy of the best persona if all "
    "k are tried. Costs are those of one training, as means over the seeds."
)

PROGRESS_NOTE = "Every unit of the study, with its finished parts. The tables of this report hold what is finished."


class StudyPage(NamedTuple):
    """The models of one page of the report, and the evaluations that it shows, by kind of run."""

    folder: Path
    evaluations: Mapping[str, str]
    models: Sequence[ModelRuns]
    methods: Sequence[ReportMethod]
    numbers: MethodNumbers

    @property
    def title(self) -> str:
        """The names of the page's evaluations."""
        return ", ".join(self.evaluations.values())

    @property
    def pooled(self) -> list[PooledMethod]:
        return [self.numbers.pooled(one) for one in self.methods]

    def method(self, name: str) -> ReportMethod | None:
        return next((one for one in self.methods if one.name == name), None)


def evaluation_kind(evaluation: PartConfig) -> str:
    """The kind of run that an evaluation makes, as a report names it."""
    if isinstance(evaluation, FidelityConfig):
        return RUN_KIND_OF_FIDELITY[evaluation.kind]
    return strategy_kind(evaluation.strategy if isinstance(evaluation, StabilityConfig) else "none")


def check_headlines(config: StudyConfig) -> None:
    """Raise ConfigError for a headline whose measure its evaluation does not have."""
    base = config.units()[0]
    kind_of = {name: kind for page in divide_into_pages(base) for kind, name in page.items()}
    for number, one in enumerate(config.headlines, 1):
        known = headline_measures(base.parts[one.evaluation], kind_of[one.evaluation])
        if one.measure not in known:
            raise ConfigError(
                f"headlines: measure = {one.measure!r} (headline {number}): {one.evaluation} has {', '.join(known) or 'none'}"
            )


def headline_measures(evaluation: PartConfig, kind: str) -> list[str]:
    """The measures of an evaluation, which its page shows as this kind of run, that can be compared between arms."""
    if not isinstance(evaluation, FidelityConfig):
        return [measure.name for measure in measures_in("differences")] if kind == "stability" else []
    judged = [JUDGE_SCORE_MEASURE] if evaluation.judge.name != "none" else []
    character = [measure.name for measure in character_measures_of(kind)]
    if evaluation.embedder == "none":
        character = [name for name in character if name != "recognisability"]
    return [*character, *judged]


def write_study_report(
    config: StudyConfig, finished: Mapping[str, Sequence[str]], out: Path, units: Sequence[StudyUnit] | None = None
) -> None:
    """Write the report into `out`, and print its conclusion.

    `finished`: for each unit, by name, its finished parts. `units`: those that the report has, the untrained model first; all if
    not given. Raises DataError if no evaluation is finished.
    """
    report = _StudyReport(config, finished, out, config.units() if units is None else units)
    if not report.pages:
        raise DataError(f"{config.out}: no evaluation is finished yet, so there is nothing to report")
    first, *others = report.pages
    progress = MultiProgress([1.0] * len(report.pages))
    results: dict[str, dict[str, Any]] = {}
    for number, page in enumerate(others):
        with progress.part(number, f"page of {page.title}"), separate_result() as results[page.title]:
            caption = f"Evaluation {md_label(page.title)} of the study."
            write_pooled_report(page.models, page.methods, page.folder, caption, numbers=page.numbers)
    with progress.part(len(others), f"page of {first.title}, and all comparisons"), separate_result() as results[first.title]:
        document = write_pooled_report(
            first.models, first.methods, first.folder, report.caption, report.additions, numbers=first.numbers
        )
    console = Console()
    print_conclusion(document, console)
    for page in report.pages:
        if len(report.pages) > 1:
            console.print(page.title, markup=False, highlight=False)
        console.print(terminal_arms_table(page))
    for line in (*report.headline_sentences, *(str(page.folder / "index.html") for page in report.pages)):
        console.print(plain_text(line), markup=False, highlight=False, soft_wrap=True)
    add_result(
        **results[first.title],
        headlines=[plain_text(line) for line in report.headline_sentences],
        pages=[{"title": page.title, **results[page.title], "arms": _arms_rows(page)} for page in report.pages],
    )
    add_result(paths={"report": out / "report.md", "page": out / "index.html", "table": out / "table.json"})


def _arms_rows(page: StudyPage) -> list[dict[str, str]]:
    """The rows of `terminal_arms_table`: the text of each cell by its heading."""
    shown = front_table(page.methods, page.pooled, [model.row for model in page.models])
    columns = [(at, heading) for at, heading in enumerate(shown.headings) if heading not in shown.folded]
    return [{heading: row[at].text for at, heading in columns} for row in shown.rows]


def terminal_arms_table(page: StudyPage) -> TerminalTable:
    """A table for a terminal: a row for each arm, or each model if no arm has several, without the folded columns."""
    shown = front_table(page.methods, page.pooled, [model.row for model in page.models])
    columns = [at for at, heading in enumerate(shown.headings) if heading not in shown.folded]
    table = terminal_table()
    for at in columns:
        table.add_column(Text(shown.headings[at]), overflow="fold")
    for row in shown.rows:
        table.add_row(*(Text(row[at].text) for at in columns))
    return table


class _StudyReport:
    def __init__(self, config: StudyConfig, finished: Mapping[str, Sequence[str]], out: Path, units: Sequence[StudyUnit]) -> None:
        self.config, self.finished, self.out, self.units = config, finished, out, units
        self.arms = [arm for arm in config.arms if any(unit.arm == arm for unit in units)]
        self.untrusted_headlines: set[HeadlineConfig] = set()
        self.headlines_without_seeds: set[HeadlineConfig] = set()
        self.arm_names = {BASE_UNIT: config.base.label, **{arm: config.label_of(arm) for arm in config.arms}}

    @cached_property
    def pages(self) -> list[StudyPage]:
        pages = list[StudyPage]()
        for number, evaluations in enumerate(divide_into_pages(self.units[0])):
            names = list(evaluations.values())
            runs = list(self._finished_runs(names, with_training=number == 0))
            if runs:
                models = collect_models(runs, f"measures of {', '.join(names)}")
                methods = group_assigned_methods(models, self._arm_of_label())
                folder = self.out / names[0] if pages else self.out
                pages.append(StudyPage(folder, evaluations, models, methods, MethodNumbers()))
        return pages

    def _finished_runs(self, evaluations: Sequence[str], *, with_training: bool) -> Iterator[Path]:
        """The finished runs of these evaluations, arm by arm, the untrained model's first."""
        order = {arm: place for place, arm in enumerate(self.config.arms)}
        for unit in sorted(self.units, key=lambda one: -1 if one.arm is None else order[one.arm]):
            finished = self.finished.get(unit.name, ())
            measured = [unit.parts[name].out for name in evaluations if name in finished]
            if measured and with_training and TRAIN_PART in finished:
                yield unit.parts[TRAIN_PART].out
            yield from measured

    def _arm_of_label(self) -> dict[str, str]:
        return {unit.label: self.arm_names[unit.arm or BASE_UNIT] for unit in self.units}

    @property
    def caption(self) -> str:
        arms = ", ".join(md_label(self.arm_names[arm]) for arm in self.arms)
        seeds = sorted({unit.seed for unit in self.units if unit.seed is not None})
        further = "".join(f" Evaluation {md_label(page.title)}: {page.folder.name}/index.html." for page in self.pages[1:])
        partial = "" if len(self.units) == len(self.config.units()) else f" {PARTIAL_STUDY_NOTE}"
        return (
            f"A study: {arms} and the untrained model {md_label(self.arm_names[BASE_UNIT])}, training seeds "
            f"{', '.join(map(str, seeds))}.{partial}{further}"
        )

    @property
    def additions(self) -> ReportAdditions:
        sections = [
            DocumentSection("study-overview", "All evaluations", OVERVIEW_NOTE, (self._overview_table(),)),
            *optional_section("published", "Published figures", self._headline_parts(), HEADLINES_NOTE),
            *optional_section(
                "study-differences", "Differences between the arms", list(self._difference_parts()), DIFFERENCES_NOTE
            ),
            *self._further_sections(),
            DocumentSection("study-progress", "Units of the study", PROGRESS_NOTE, (self._progress_table(),)),
        ]
        return ReportAdditions(tuple(sections), {"study": self._json()})

    # Differences

    @cached_property
    def differences(self) -> list[ArmDifference]:
        """The differences of each arm to the chosen arm and to the untrained model, for every evaluation."""
        found = []
        for page in self.pages:
            for name in (self.config.against_arm, BASE_UNIT):
                against = None if name is None else page.method(self.arm_names[name])
                for arm in self.arms:
                    method = page.method(self.arm_names[arm])
                    if method is not None and against is not None and method is not against:
                        difference = page.numbers.difference(method, against)
                        found += [
                            compare_arms(method, against, evaluation, kind, difference=difference)
                            for kind, evaluation in page.evaluations.items()
                        ]
        return found

    @cached_property
    def arms_by_context(self) -> dict[str, dict[str, dict[str, ReportMethod]]]:
        """Of each stability evaluation with contexts: the arms by name, each by context."""
        found = dict[str, dict[str, dict[str, ReportMethod]]]()
        for page in self.pages:
            if "stability" in page.evaluations:
                divided = {method.name: divide_by_context(method) for method in page.methods}
                if by_context := {name: one for name, one in divided.items() if one}:
                    found[page.evaluations["stability"]] = by_context
        return found

    @cached_property
    def context_differences(self) -> list[ArmDifference]:
        """The differences within each context, context by context."""
        found = []
        for evaluation, arms in self.arms_by_context.items():
            pairs = [(one.arm, one.against) for one in self.differences if one.evaluation == evaluation]
            rows = [
                each
                for arm, against in pairs
                if arm in arms and against in arms
                for each in compare_arms_by_context(arms[arm], arms[against], evaluation)
            ]
            contexts = list(dict.fromkeys(one.context for one in rows))
            found += sorted(rows, key=lambda one: contexts.index(one.context))
        return found

    @cached_property
    def pooled_contexts(self) -> dict[str, dict[tuple[str, str], PooledContext]]:
        """Of each stability evaluation with contexts: the pooled numbers by (context, arm)."""
        return {
            evaluation: {
                (context, arm): pool_context(arms[arm][context], context)
                for context in dict.fromkeys(context for by_context in arms.values() for context in by_context)
                for arm in arms
                if context in arms[arm]
            }
            for evaluation, arms in self.arms_by_context.items()
        }

    def unfinished_seeds(self, evaluation: str) -> dict[str, tuple[int, int]]:
        """The compared arms of which a seed is not measured by this evaluation: how many seeds are, and how many there are."""
        compared = {name for one in self.differences if one.evaluation == evaluation for name in (one.arm, one.against)}
        found = {}
        for arm in self.arms:
            units = [unit for unit in self.units if unit.arm == arm]
            done = sum(evaluation in self.finished.get(unit.name, ()) for unit in units)
            if self.arm_names[arm] in compared and done < len(units):
                found[self.arm_names[arm]] = (done, len(units))
        return found

    def _difference_parts(self) -> Iterator[DocumentPart]:
        for evaluation in dict.fromkeys(one.evaluation for one in self.differences):
            rows = [one for one in self.differences if one.evaluation == evaluation]
            yield f"### {md_label(evaluation)}"
            if counts := self.unfinished_seeds(evaluation):
                texts = (f"{done} of {total} seeds of {md_label(arm)}" for arm, (done, total) in counts.items())
                yield f"**Interim**: {', '.join(texts)} are finished."
            yield arm_difference_table(f"differences-study-{evaluation}", rows)
            if by_context := [one for one in self.context_differences if one.evaluation == evaluation and one.measures]:
                yield CONTEXTS_NOTE
                yield arm_difference_table(f"differences-study-{evaluation}-contexts", by_context)
            if evaluation in self.pooled_contexts:
                yield pooled_context_table(f"scores-study-{evaluation}-contexts", self.pooled_contexts[evaluation])
            if reasons := [
                f"- {md_label(one.arm)} against {md_label(one.against)}: {md_label(reason, 200)}."
                for one in rows
                for reason in one.reasons
            ]:
                yield "\n".join(["Not compared:", "", *reasons])

    # Headlines

    @cached_property
    def headlines(self) -> list[tuple[HeadlineConfig, Estimate | None]]:
        """Each published figure of the report's arms with the study's own; None for what is not measured yet, or what no judge
        tells.
        """
        arms = {BASE_UNIT, *self.arms}
        return [(one, self._headline(one)) for one in self.config.headlines if {one.arm, one.against} <= arms]

    def _headline(self, headline: HeadlineConfig) -> Estimate | None:
        for page in self.pages:
            for kind, evaluation in page.evaluations.items():
                if evaluation == headline.evaluation:
                    arm, against = (page.method(self.arm_names[name]) for name in (headline.arm, headline.against))
                    if arm is None or against is None:
                        return None
                    difference = compare_arms(arm, against, evaluation, kind, statistics.relative_change)
                    if headline.measure == JUDGE_SCORE_MEASURE and any(UNTRUSTED_MARK in name for name in difference.scores):
                        self.untrusted_headlines.add(headline)
                    if not difference.covers_seeds(headline.measure):
                        self.headlines_without_seeds.add(headline)
                    return difference.of_measure(headline.measure)
        return None

    def _headline_parts(self) -> list[DocumentPart]:
        if not self.headlines:
            return []
        rows = [
            [
                label_cell(one.evaluation),
                label_cell(one.measure),
                label_cell(f"{self.arm_names[one.arm]} against {self.arm_names[one.against]}"),
                _change_cell(found),
                trusted_cell(format_change(one.published), number=one.published),
                label_cell(one.source),
            ]
            for one, found in self.headlines
        ]
        headings = ("evaluation", "measure", "arms", "this study", "published", "source")
        return [
            tabulate("differences-published", headings, rows, n_label_columns=3),
            "\n".join(f"- {line}" for line in self.headline_sentences),
        ]

    @property
    def headline_sentences(self) -> list[str]:
        return [self._headline_sentence(one, found) for one, found in self.headlines]

    def _headline_sentence(self, headline: HeadlineConfig, found: Estimate | None) -> str:
        arms = f"{md_label(self.arm_names[headline.arm])} against {md_label(self.arm_names[headline.against])}"
        what = f"{md_label(headline.measure)} on {md_label(headline.evaluation)}, {arms}"
        published = f"published {format_change(headline.published)}"
        if found is None or found.value is None:
            return f"{what}: not measured; {published}."
        if found.low is None or found.high is None:
            return f"{what}: {format_change(found.value)}, without an interval; {published}."
        inside = "in" if found.low <= headline.published <= found.high else "outside"
        zero = f"; {INTERVAL_INCLUDES_ZERO}: {NOT_SIGNIFICANT}" if found.low <= 0 <= found.high else ""
        untrusted = f"; {UNTRUSTED_JUDGE_TEXT}" if headline in self.untrusted_headlines else ""
        seeds = f" ({SEEDS_NOT_COVERED})" if headline in self.headlines_without_seeds else ""
        return f"{what}: {format_changes(found)}{seeds}{zero}; {published}, {inside} this interval{untrusted}."

    # Other parts

    def _overview_table(self) -> Table:
        """A row for each arm, and the main measures of each evaluation as columns."""
        arms = [self.arm_names[name] for name in (BASE_UNIT, *self.arms)]
        found: dict[str, dict[str, TableCell]] = {arm: {} for arm in arms}
        headings: dict[str, None] = {}
        for page in self.pages:
            for kind, evaluation in page.evaluations.items():
                for arm in arms:
                    if (method := page.method(arm)) is not None:
                        cells = _overview_cells(method, page.numbers.pooled(method), kind, one_line(evaluation))
                        found[arm] |= cells
                        headings |= dict.fromkeys(cells)
        costs = {arm: _cost_cells(method) for arm in arms if (method := self.pages[0].method(arm)) is not None}
        names = [*headings, *dict.fromkeys(name for cells in costs.values() for name in cells)]
        rows = [
            [label_cell(arm), *((found[arm] | costs.get(arm, {})).get(name, MISSING_CELL) for name in names)]
            for arm in arms
            if found[arm]
        ]
        return tabulate("study-overview", ["arm", *names], rows)

    def _further_sections(self) -> Iterator[DocumentSection]:
        for page in self.pages[1:]:
            table = front_table(page.methods, page.pooled, [model.row for model in page.models])
            named = table._replace(name=f"scores-study-{next(iter(page.evaluations.values()))}")
            note = f"The page {page.folder.name}/index.html has the whole evaluation."
            yield DocumentSection(f"study-{page.folder.name}", f"Evaluation {page.title}", note, (_without_sources(named),))

    def _progress_table(self) -> Table:
        rows = []
        for unit in self.units:
            finished = self.finished.get(unit.name, ())
            pending = [name for name in unit.parts if name not in finished]
            seed = MISSING_CELL if unit.seed is None else trusted_cell(str(unit.seed), number=float(unit.seed))
            rows.append(
                [
                    label_cell(self.arm_names[unit.arm or BASE_UNIT]),
                    seed,
                    label_cell(", ".join(finished) or "–"),
                    label_cell(", ".join(pending) or "–"),
                ]
            )
        return tabulate("runs-study", ("arm", "seed", "finished", "pending"), rows, n_label_columns=2)

    def _json(self) -> dict[str, Any]:
        return {
            "arms": {
                arm: {"label": self.arm_names[arm], "seeds": [unit.seed for unit in self.units if unit.arm == arm]}
                for arm in self.arms
            },
            "differences": [one.to_json() for one in self.differences],
            "interim": {
                evaluation: {arm: list(counts) for arm, counts in found.items()}
                for evaluation in dict.fromkeys(one.evaluation for one in self.differences)
                if (found := self.unfinished_seeds(evaluation))
            },
            "context_differences": [one.to_json() for one in self.context_differences],
            "contexts": {
                evaluation: {
                    context: {arm: one.model_dump(mode="json") for (of, arm), one in pooled.items() if of == context}
                    for context in dict.fromkeys(context for context, _ in pooled)
                }
                for evaluation, pooled in self.pooled_contexts.items()
            },
            "headlines": [
                one.model_dump(mode="json")
                | {
                    "ours": None if found is None else found.model_dump(mode="json"),
                    "covers_seeds": found is not None and one not in self.headlines_without_seeds,
                }
                for one, found in self.headlines
            ],
            "evaluations": {
                evaluation: {one.name: _measures_of_kind(one, kind) for one in page.pooled}
                for page in self.pages
                for kind, evaluation in page.evaluations.items()
            },
            "units": {unit.name: list(self.finished.get(unit.name, ())) for unit in self.units},
        }


CHARACTER_FIELDS = ("identifiability", "chance", "recognisability", "n_fidelity", "fidelity_reasons")
"""The fields of `PooledMethod` that come from open-ended questions; the others but its name and labels come from a task."""


def _measures_of_kind(pooled: PooledMethod, kind: str) -> dict[str, Any]:
    """The numbers in JSON that come from runs of this kind."""
    values = pooled.model_dump(mode="json")
    over_seeds = values.pop("over_seeds")
    named = {name: values.pop(name) for name in ("name", "labels")}
    of_character = {name: values.pop(name) for name in CHARACTER_FIELDS}
    if kind == OPEN_ENDED_KIND:
        return named | of_character | {"over_seeds": {name: one for name, one in over_seeds.items() if name in of_character}}
    if kind == "stability":
        return named | values | {"over_seeds": {name: one for name, one in over_seeds.items() if name not in of_character}}
    return named


def _overview_cells(method: ReportMethod, pooled: PooledMethod, kind: str, evaluation: str) -> dict[str, TableCell]:
    """The main measures of an evaluation of an arm, by heading. Those of a strategy are in the section of strategies."""
    if kind == "stability":
        curves = [model.stability.expected_best_of_k for model in method.models if model.stability is not None]
        best = {f"best of {len(curves[0])}, {evaluation}": _mean_cell([curve[-1] for curve in curves])} if curves else {}
        return {
            f"PSS, {evaluation}": pooled_measure_cell(pooled, "pss"),
            f"mean, {evaluation}": pooled_measure_cell(pooled, "mean"),
            **best,
        }
    cells = {}
    if kind == OPEN_ENDED_KIND:
        cells[f"identifiability, {evaluation}"] = pooled_character_cell(pooled, "identifiability")
    judged = [entry for model in method.models for entry in model.row.judged if entry.kind == kind]
    for name in dict.fromkeys(entry.name for entry in judged):
        scores = [entry for entry in judged if entry.name == name]
        mark = "" if all(entry.discriminates_persona for entry in scores) else f" {UNTRUSTED_MARK}"
        cells[f"{one_line(name)}{mark}, {evaluation}"] = _mean_cell([entry.persona_score for entry in scores])
    return cells


def _cost_cells(method: ReportMethod) -> dict[str, TableCell]:
    """What a training of the arm took, as means over its seeds; nothing for the untrained model."""
    rows = [model.row for model in method.models]
    found: dict[str, list[float]] = {
        "training tokens": [row.train_tokens for row in rows if row.train_tokens is not None],
        "training CPU s": [row.train_cpu_s for row in rows if row.train_cpu_s is not None],
    }
    return {name: count_cell(sum(values) / len(values)) for name, values in found.items() if values}


def _mean_cell(estimates: Sequence[Estimate]) -> TableCell:
    """The estimate of one model with its interval, or the mean over several models without one."""
    values = [one.value for one in estimates if one.value is not None]
    if len(estimates) == 1 or not values:
        return estimate_cell(estimates[0] if estimates else None)
    mean = Estimate(value=sum(values) / len(values), n=max(one.n for one in estimates))
    note = f"mean of {len(values)} training seeds, {min(values):.2f} to {max(values):.2f}"
    return trusted_cell(mean.format_value(2), note, mean)


def divide_into_pages(base: StudyUnit) -> list[dict[str, str]]:
    """The evaluations of each page, by kind of run: each on the first page that has none of its kind, and whose evaluations have
    the same splits of personas and questions.
    """
    pages: list[tuple[tuple[str, str], dict[str, str]]] = []
    for name, part in base.parts.items():
        kind, splits = evaluation_kind(part), evaluation_splits(part)
        page = next((one for of, one in pages if of == splits and kind not in one), None)
        if page is None:
            pages.append((splits, page := {}))
        page[kind] = name
    return [with_default_stability(page) for _, page in pages]


def evaluation_splits(evaluation: PartConfig) -> tuple[str, str]:
    """The splits of an evaluation's personas and questions. All questions of a file count as held-out: most have no splits."""
    questions = evaluation.questions_split if isinstance(evaluation, FidelityConfig) else evaluation.task.split
    return evaluation.personas.split, "heldout" if questions == "all" else questions


def _change_cell(change: Estimate | None) -> TableCell:
    if change is None or change.value is None:
        return MISSING_CELL
    zero = f"; {INTERVAL_INCLUDES_ZERO}" if difference_direction(change) == NOT_SIGNIFICANT else ""
    return trusted_cell(format_changes(change), f"n = {change.n}{zero}", change)


def format_change(value: float) -> str:
    """0.212 -> "+21.2 %"."""
    return true_minus(f"{100 * value:+.1f} %")


def format_changes(change: Estimate) -> str:
    """A relative change with its interval: "+21.2 % [+3.0 %, +40.1 %]"."""
    if change.value is None:
        return "–"
    ends = "" if change.low is None or change.high is None else f" [{format_change(change.low)}, {format_change(change.high)}]"
    return format_change(change.value) + ends


def _without_sources(table: Table) -> Table:
    """The table without links to runs: they are on another page."""
    empty: tuple[SourceRun, ...] = ()
    return table._replace(rows=tuple(tuple(cell._replace(sources=empty) for cell in row) for row in table.rows))
