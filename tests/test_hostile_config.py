"""Configurations of any kind, in files and flags: a valid configuration, or one clear error; never a traceback, never a wait."""

import json
import math
import re
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from permix import cli, config
from permix.cli import commands
from permix.config import CONFIGS_BY_STAGE, StabilityConfig, build_config, read_config_values
from permix.errors import ConfigError, PermixError
from permix.pipelines.preflight import read_stage_config
from tests.sample_runs import toml

STAGES = sorted(CONFIGS_BY_STAGE)
DEEP = 100_000


def fields(section: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every field of a stage, sections too."""
    for name, field in section.model_fields.items():
        yield (*prefix, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, (*prefix, name))


def nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    return dict(value)


def refusal(function: Callable[..., object], *arguments: Any, **named: Any) -> str:
    """What the function says when it refuses its arguments; "" if it takes them. Any other exception fails the test."""
    try:
        function(*arguments, **named)
    except PermixError as error:
        return str(error)
    return ""


# Files


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.toml", b"", ""),
        ("a.toml", b"\x00\x01\xff\xfe", "not a TOML file"),
        ("a.json", b"\xff\xfe{}", "not a JSON file"),
        ("a.toml", b"x = " + b"[" * DEEP + b"]" * DEEP, "nested too deeply"),
        ("a.toml", b"x = " + b"{a = " * DEEP + b"1" + b"}" * DEEP, "nested too deeply"),
        ("a.toml", b"[" + b".".join([b"a"] * 5000) + b"]", "unknown key a"),
        ("a.json", b"[" * DEEP, "nested too deeply"),
        ("a.json", b'{"task": ' * 900 + b"1" + b"}" * 900, "a.json: "),
        ("a.json", b"[]", "contains a list, not an object"),
        ("a.json", b"NaN", "contains a float, not an object"),
        ("a.json", b'{"samples": NaN}', "samples = nan: must be a finite number"),
        ("a.json", b'{"samples": 1e400}', "samples = inf: must be a finite number"),
        ("a.json", b'{"samples": ' + b"9" * 10**6 + b"}", "not a JSON file"),
        ("a.toml", b"samples = " + b"9" * 10**6, "not a TOML file"),
        ("a.toml", b"samples = 0x" + b"f" * 10**6, "samples: must be an integer between"),
        ("a.toml", b"samples = 99999999999999999999", "samples: must be an integer between"),
        ("a.toml", b"sampling.temperature = nan", "sampling.temperature = nan: must be a finite number"),
        ("a.toml", b"samples = 1\nsamples = 2", "not a TOML file"),
        ("a.toml", b"samples = 1979-05-27", "samples = datetime.date(1979, 5, 27): must be"),
        ("a.toml", b'samples = "1\\u0000"', "samples = '1\\x00': holds a NUL"),
        ("a.json", b'{"samples": "\\ud800"}', "samples = '\\ud800': must be a text"),
        ("a.toml", b'out = "' + b"x" * 10**6 + b'"\nsamples = 0', "samples = 0: must be greater than 0"),
        ("a.toml", b'samples = "' + b"x" * 10**6 + b'"', "samples = 'xxx"),
        ("a.toml", b'"' + b"k" * 10**6 + b'" = 1', "unknown key kkk"),
        ("a.toml", b'"\\u001b[2J\\u202e" = 1', "unknown key \\x1b[2J\\u202e"),
        ("a.toml", b'"" = 1', "unknown key ;"),
        ("a.toml", b"#" * 11_000_000, "longer than 10 MB"),
        ("a.toml", b"model = [1, 2]", "model = [1, 2]: must be a section of fields"),
        ("a.toml", b"model = []", "model = []: must be a section of fields"),
        ("a.toml", b"stage = ['stability']", 'configures "permix [\'stability\']", not "permix stability"'),
        ("a.toml", b"stage = {a = 1}", "configures \"permix {'a': 1}\""),
        ("a.toml", b'[model]\nextra_body = "' + b"[" * DEEP + b'"', "model.extra_body: must be a JSON object"),
        (
            "a.toml",
            b"[model]\nextra_body = '" + b'{"a": ' * 900 + b"1" + b"}" * 900 + b"'",
            "model.extra_body: nested too deeply",
        ),
        ("a.toml", b"[task]\nprompt_template = 'none'", "prompt_template = 'none': must contain {question}"),
        ("a.toml", b"[task]\nname = '\xe2\x80\xae'", "task.name = '\\u202e': must be one of arithmetic"),
    ],
    ids=range(35),
)
def test_hostile_files(name: str, content: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(content)
    if not words:
        assert commands.parse_config("stability", StabilityConfig, [str(tmp_path / name)]) == StabilityConfig()
        return
    assert cli.run_cli(["stability", str(tmp_path / name)]) == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert "pydantic" not in shown
    assert len(shown) < 2000
    assert shown[:-1].isprintable()


@pytest.mark.parametrize(
    "name", ["folder.toml", "none.toml", "x" * 300 + ".toml", "a\x00b.toml", "\udcff.toml", "/dev/full/a.toml"]
)
def test_paths_that_are_no_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.toml").mkdir()
    with pytest.raises(ConfigError):
        read_config_values(Path(name))


def test_an_endless_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "a.toml").symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="not a TOML file but a folder, a pipe or a device"):
        read_config_values(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_bytes(b"# " + b"x" * 10_000_000)
    with pytest.raises(ConfigError, match="longer than 10 MB"):
        read_config_values(tmp_path / "b.toml")


@pytest.mark.parametrize("stage", ["[]", "{}", "3", '"\\u202e"', "NaN", '"nothing"'])
def test_check_names_the_stages(stage: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(f'{{"stage": {stage}}}')
    with pytest.raises(ConfigError, match=r"stage = .*: must be one of plan, train, stability"):
        read_stage_config(tmp_path / "a.json")


WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    10**19,
    1.5,
    -0.0,
    math.nan,
    math.inf,
    "",
    "\x00",
    "\ud800",
    "x" * 10_000,
    [],
    [[]],
    [None],
    {},
    {"": {}},
    {"a": 1},
)


@pytest.mark.parametrize("stage", STAGES)
def test_every_field_with_every_kind_of_wrong_value(stage: str) -> None:
    for path in fields(CONFIGS_BY_STAGE[stage]):
        for value in WRONG:
            said = refusal(build_config, CONFIGS_BY_STAGE[stage], nested(path, value), source="x")
            assert len(said) < 3000
            assert "pydantic" not in said


# Mutations

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["openai", "gsm8k", "you_are"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def load(stage: str, found: dict[str, Any], folder: Path) -> None:
    """Through the command line's loader, as a file; a refusal is a PermixError with words."""
    path = folder / "mutated.json"
    path.write_text(json.dumps(found))
    said = refusal(commands.parse_config, stage, CONFIGS_BY_STAGE[stage], [str(path)])
    assert said == "" or ": " in said
    assert "pydantic" not in said


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), stage=st.sampled_from(STAGES))
def test_mutated_configurations(data: st.DataObject, stage: str, tmp_path: Path) -> None:
    found: dict[str, Any] = {}
    for path in data.draw(st.lists(st.sampled_from(list(fields(CONFIGS_BY_STAGE[stage]))), max_size=4)):
        place = found
        for name in path[:-1]:
            inner = place.setdefault(name, {})
            place = inner if isinstance(inner, dict) else {}
        place[path[-1]] = data.draw(values)
    load(stage, found, tmp_path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=200) | st.text(alphabet=string.printable, max_size=200).map(str.encode),
    suffix=st.sampled_from([".toml", ".json"]),
)
def test_random_files(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"random{suffix}"
    path.write_bytes(content)
    said = refusal(commands.parse_config, "stability", StabilityConfig, [str(path)])
    assert said == "" or str(path) in said


FLAGS = [f"--{'.'.join(path).replace('_', '-')}" for path in fields(StabilityConfig)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(FLAGS) | st.text(max_size=8),
            st.text(max_size=8) | st.sampled_from(["-1", "nan", "9" * 5000, "--", "x"]),
        ),
        max_size=3,
    )
)
def test_random_flags(pairs: list[tuple[str, str]]) -> None:
    words = [
        word for pair in pairs for word in pair if not word.endswith(config.CONFIG_SUFFIXES) and word not in ("-h", "--help")
    ]
    said = refusal(commands.parse_config, "stability", StabilityConfig, words)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]|╭─ ", said), "control characters or a box"


def test_what_is_right_stays_right(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        toml({"stage": "stability", "seed": 2**63 - 1, "label": "é – 数", "model": {"extra_body": '{"a": [[1]]}'}})
    )
    read = commands.parse_config("stability", StabilityConfig, [str(tmp_path / "a.toml")])
    assert (read.seed, read.label, read.model.extra_fields) == (2**63 - 1, "é – 数", {"a": [[1]]})
