"""From the arguments of a command to its configuration: options before tyro sees them, tyro's rules, and errors in one line."""

import io
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, suppress
from functools import partial
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, cast, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from permix import config
from permix.errors import ConfigError, closest_match
from permix.sanitize import escape_control, names_secret, truncate

if TYPE_CHECKING:
    from tyro.constructors import ConstructorRegistry

_ConfigT = TypeVar("_ConfigT", bound=BaseModel)


class CommandUsage(NamedTuple):
    """What the help of a command says besides its options. `all_names`: the names of all commands."""

    name: str
    arguments: str
    description: str
    all_names: Collection[str]


def parse_flags(
    cls: type[_ConfigT], args: Sequence[str], command: CommandUsage, overrides: Mapping[str, Any] | None = None
) -> _ConfigT:
    """Build the command's configuration from flags and an optional file, the first argument.

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
    path: Path | None = None
    if rest and rest[0].endswith(config.CONFIG_SUFFIXES):
        path = Path(rest.pop(0))
        values = config.read_config_values(path)
        stage = values.get("stage", command.name)
        if stage != command.name:
            shown = stage if isinstance(stage, str) and stage in command.all_names else config.quote_input(stage)
            raise ConfigError(f'{path}: configures "permix {shown}", not "permix {command.name}"')
        base = config.build_config(cls, config.merge_values(values, overrides or {}), source=str(path), partial=True)
        check_task_name(base, str(path))
    elif overrides:
        base = config.build_config(cls, overrides, source="flags", partial=True)
    options: dict[str, Any] = {} if base is None else {"default": base}
    _check_known_options(cls, rest)
    _check_no_blank_values(cls, rest)
    try:
        settings = _run_tyro(
            cls,
            args=rest,
            prog=f"permix {command.name} {command.arguments}".strip(),
            description=command.description,
            registry=_section_rules(cls, rest),
            **options,
        )
    except ValidationError as error:
        raise ConfigError(config.format_validation_error(error)) from error
    check_task_name(settings)
    given = {*(overrides or {}), *(option.removeprefix("--") for option, _ in _option_values(rest))}
    if path is not None and not given & {"out", "run"}:
        config.require_own_folder(path, settings)
    return settings


def _run_tyro(cls: type[_ConfigT], *, args: Sequence[str], **options: Any) -> _ConfigT:
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


def insert_run_option(args: Sequence[str], option: str = "--run") -> Sequence[str]:
    """Insert `option` before the first argument if that is a run directory: neither a flag nor a configuration file."""
    starts_with_run = bool(args) and not args[0].startswith("-") and not args[0].endswith(config.CONFIG_SUFFIXES)
    return [option, *args] if starts_with_run else args


def insert_runs_option(args: Sequence[str]) -> Sequence[str]:
    """Insert --runs before the leading arguments if they are run directories."""
    runs = list(args[: next((place for place, word in enumerate(args) if word.startswith("-")), len(args))])
    return ["--runs", *runs, *args[len(runs) :]] if runs and not runs[0].endswith(config.CONFIG_SUFFIXES) else args
