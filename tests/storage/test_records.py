"""The run directory: what was written is read back, whatever it holds and whenever the process was killed."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from permix.config import ModelConfig, StabilityConfig, build_config
from permix.errors import ConfigError, DataError, PermixError
from permix.storage.files import guard_writes, read_json, write_json, write_text
from permix.storage.run_dir import RunDir, collect_provenance, source_revision
from permix.types import Cell, CellKey, Failure
from tests.cell_files import read_cells
from tests.sample_runs import answered, cell

CONFIG = StabilityConfig(label="base")
IDENTITY = {"model": "abc", "seed": 0}


def write(path: Path, *cells: Cell, identity: dict[str, Any] | None = None) -> None:
    with RunDir.open(path, CONFIG, identity or IDENTITY) as run:
        run.append(cells)


def on_disk(path: Path) -> list[Cell]:
    return list(read_cells(path / "records.jsonl").values())


# Cells


def test_cells_come_back_as_they_were(tmp_path: Path) -> None:
    failed = cell("q3", "sailor", failure=Failure(type="TimeoutError", message="too slow"))
    cells = [answered("q1"), answered("q2", "no idea", False, persona_id="sailor"), failed, answered("q4", correct=None)]
    write(tmp_path, *cells)
    assert on_disk(tmp_path) == cells
    assert (tmp_path / "records.jsonl").read_bytes().count(b"\n") == 4


@pytest.mark.parametrize(
    "text",
    ["", "\x00", "a\u2028b\u2029c\x85d", "a\nb\r\nc", '"\\u0041\\', "\x1b[31m", "\U0001f600 é", "x" * 1_000_000, "\ufeff"],
    ids=lambda text: ascii(text)[:24],
)
def test_hostile_text_comes_back_on_one_line(text: str, tmp_path: Path) -> None:
    cells = [answered("q1", text), answered("q2")]
    write(tmp_path, *cells)
    assert on_disk(tmp_path) == cells
    assert (tmp_path / "records.jsonl").read_bytes().count(b"\n") == 2


def test_a_lone_surrogate_becomes_a_question_mark(tmp_path: Path) -> None:
    write(tmp_path, cell("q1", failure=Failure(type="x", message="a\ud800b")), answered("q2"))
    first, second = on_disk(tmp_path)
    assert first.failure == Failure(type="x", message="a?b")
    assert second == answered("q2")


def test_the_last_record_of_a_cell_wins_and_the_first_keeps_its_place(tmp_path: Path) -> None:
    write(tmp_path, cell("q1"), answered("q2"), answered("q1", "13", False), answered("q1", "12"))
    assert on_disk(tmp_path) == [answered("q1", "12"), answered("q2")]
    assert list(read_cells(tmp_path / "records.jsonl")) == [CellKey(None, "q1", 0), CellKey(None, "q2", 0)]


def test_a_run_without_records_is_empty(tmp_path: Path) -> None:
    assert read_cells(tmp_path / "records.jsonl") == {}
    write(tmp_path)
    assert on_disk(tmp_path) == []


# A kill at any moment


@pytest.mark.slow
def test_a_line_torn_anywhere_is_dropped_and_redone(tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    first, last = answered("q1", "é\u2028"), answered("q2", "ü")
    write(tmp_path, first, last)
    whole = records.read_bytes()
    line_end = whole.index(b"\n") + 1
    for cut in range(line_end, len(whole)):
        records.write_bytes(whole[:cut])
        assert on_disk(tmp_path) == [first], cut
        write(tmp_path, last)
        assert records.read_bytes() == whole, cut


def test_a_torn_first_line_leaves_nothing(tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    write(tmp_path, answered("q1"))
    records.write_bytes(records.read_bytes()[:-1])  # a whole record, but for the newline: it may be the start of a longer one
    assert on_disk(tmp_path) == []
    write(tmp_path, answered("q2"))
    assert on_disk(tmp_path) == [answered("q2")]


@pytest.mark.parametrize("length", [65_535, 65_536, 65_537, 200_000])
def test_a_torn_line_longer_than_a_block_is_dropped(length: int, tmp_path: Path) -> None:
    write(tmp_path, answered("q1"))
    with (tmp_path / "records.jsonl").open("ab") as file:
        file.write(b"x" * length)
    write(tmp_path, answered("q2"))
    assert on_disk(tmp_path) == [answered("q1"), answered("q2")]


@pytest.mark.parametrize("broken", [b"{}", b"", b"\x00\x00", b'{"persona_id": nul', b"\xff\xfe", b"[1]"], ids=repr)
def test_a_broken_line_in_the_middle_is_named(broken: bytes, tmp_path: Path) -> None:
    write(tmp_path, answered("q1"), answered("q2"))
    records = tmp_path / "records.jsonl"
    first, second = records.read_bytes().splitlines()
    records.write_bytes(b"\n".join([first, broken, second]) + b"\n")
    with pytest.raises(DataError, match=r"records\.jsonl:2: not a cell record: "):
        on_disk(tmp_path)


def test_what_was_appended_is_there_before_the_run_is_closed(tmp_path: Path) -> None:
    with RunDir.open(tmp_path, CONFIG, IDENTITY) as run:
        run.append([answered("q1")])
        assert on_disk(tmp_path) == [answered("q1")]
        run.append([answered("q2")])
        assert run.cells() == read_cells(tmp_path / "records.jsonl")
        assert len(run.cells()) == 2


# One process, one identity


def test_two_processes_cannot_write_one_run(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from permix.config import StabilityConfig; from permix.storage.run_dir import RunDir\n"
        "with RunDir.open(Path(sys.argv[1]), StabilityConfig(label='base'), {'model': 'abc', 'seed': 0}):\n"
        "    print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(ConfigError, match=rf"process {other.pid} is writing this run"):
            write(tmp_path, answered("q1"))
        other.kill()
    assert on_disk(tmp_path) == []
    write(tmp_path, answered("q1"))  # a killed process holds nothing
    assert on_disk(tmp_path) == [answered("q1")]


def test_one_process_cannot_open_a_run_twice(tmp_path: Path) -> None:
    with RunDir.open(tmp_path, CONFIG, IDENTITY):
        with pytest.raises(ConfigError, match=rf"process {os.getpid()} is writing this run"):
            write(tmp_path)
        with pytest.raises(ConfigError):  # nor did the first refusal break the lock
            write(tmp_path)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"model": "abd", "seed": 0}, "model = 'abc', not 'abd'"),
        ({"model": "abc", "seed": 1}, "seed = 0, not 1"),
        ({"model": "abc"}, "seed = 0, not none"),
        ({"model": "abc", "seed": 0, "empty_system_prompt": True}, "empty_system_prompt = none, not True"),
    ],
)
def test_another_identity_is_refused_by_name_and_both_values(other: dict[str, Any], named: str, tmp_path: Path) -> None:
    write(tmp_path, answered("q1"))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=f"this run was made with {named}"):
        write(tmp_path, identity=other)
    before.pop(".lock")
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def refusal(path: Path, config: StabilityConfig, identity: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as refused, RunDir.open(path, config, identity):
        pass
    assert "\n" not in str(refused.value)
    return str(refused.value).partition("this run was made with ")[2].partition("; give another folder")[0]


def test_a_refusal_names_the_values_that_differ_and_no_others(tmp_path: Path) -> None:
    sampling = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 256}
    write(tmp_path, identity=IDENTITY | {"sampling": sampling, "order": ["a", "b"]})
    asked = IDENTITY | {"sampling": sampling | {"max_new_tokens": 16}, "seed": 1, "order": ["b"]}
    assert (
        refusal(tmp_path, CONFIG, asked)
        == "order = ['a', 'b'], not ['b']; sampling.max_new_tokens = 256, not 16; seed = 0, not 1"
    )


def test_a_refusal_has_a_bounded_length(tmp_path: Path) -> None:
    write(tmp_path, identity={f"k{number}": "x" * 500 for number in range(9)} | {"key": "sk-" + "a" * 20, "z": "\x1b[31m"})
    said = refusal(tmp_path, CONFIG, {"key": "other", "z": "plain"})
    assert said.startswith(f"k0 = '{'x' * 79}…', not none; k1 = ")
    assert said.endswith("; and 5 more")
    assert len(said) < 800
    again = refusal(tmp_path, CONFIG, {f"k{number}": "x" * 500 for number in range(9)} | {"key": "other", "z": "plain"})
    assert again == r"key = '(hidden)', not 'other'; z = '\x1b[31m', not 'plain'"


A, B = "0123456789abcdef", "fedcba9876543210"


@pytest.mark.parametrize(
    ("key", "model", "said"),
    [
        ("model", {"name": "other"}, "model.name = 'bundled', not 'other'"),
        ("model", {"dtype": "bfloat16", "batch_size": 4}, "model.dtype = 'auto', not 'bfloat16'"),
        ("model", {"batch_size": 4}, "other weights, another tokenizer, chat template or precision, under the same model.name"),
        ("template", {"batch_size": 4}, "another text of personas.template"),
        ("surprise", {"batch_size": 4}, "another value behind surprise"),
    ],
)
def test_a_hash_is_named_by_the_settings_that_it_stands_for(key: str, model: dict[str, Any], said: str, tmp_path: Path) -> None:
    write(tmp_path, identity={key: A})
    other = build_config(StabilityConfig, {"label": "base", "model": model}, source="test")
    assert refusal(tmp_path, other, {key: B}) == said


def test_a_hash_without_a_readable_config_has_words(tmp_path: Path) -> None:
    write(tmp_path, identity={"model": A})
    for damage in (lambda file: file.write_text("{"), Path.unlink):
        damage(tmp_path / "config.json")
        assert refusal(tmp_path, CONFIG, {"model": B}).startswith("other weights, another tokenizer")
        write(tmp_path, identity={"model": A})  # the file is written anew
        assert read_json(tmp_path / "config.json")["label"] == "base"


def test_another_model_at_another_address_is_named_with_both(tmp_path: Path) -> None:
    one, two = (
        build_config(
            StabilityConfig,
            {"model": {"backend": "openai", "name": "m", "base_url": f"http://h:{port}/v1", "concurrency": port}},
            source="test",
        )
        for port in (1, 2)
    )
    with RunDir.open(tmp_path, one, {"model": A}):
        pass
    assert refusal(tmp_path, two, {"model": B}) == (
        "other weights, another tokenizer, chat template or precision, under the same model.name; "
        "model.base_url = 'http://h:1/v1', not 'http://h:2/v1'"
    )


def test_keys_that_earlier_versions_counted_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path, identity=IDENTITY | {"train": {"lr": 0.1, "save_every": 10}, "teacher": {"base_url": "http://h:1"}})
    before = (tmp_path / "provenance.json").read_bytes()
    former = ("train.save_every", "teacher.base_url")
    now = IDENTITY | {"train": {"lr": 0.1}, "teacher": {}}
    with RunDir.open(tmp_path, CONFIG, now, former_identity_keys=former):
        pass
    assert (tmp_path / "provenance.json").read_bytes() == before, "checkpoints hold a hash of it"
    with (
        pytest.raises(ConfigError, match=r"made with train.lr = 0.1, not 0.2; give"),
        RunDir.open(tmp_path, CONFIG, now | {"train": {"lr": 0.2}}, former_identity_keys=former),
    ):
        pass


class Checked:
    """A model behind an endpoint that the run knows by `fingerprint`."""

    def __init__(self, identity_key: str, fingerprint: str | None) -> None:
        self.identity_key, self.fingerprint = identity_key, fingerprint
        self.recorded: list[Path] = []

    def record(self, folder: Path) -> None:
        self.recorded.append(folder)


def test_the_fingerprint_by_which_a_run_knows_a_model_takes_its_place_in_the_identity(tmp_path: Path) -> None:
    def identity(model: str, asker: str, seed: int = 0) -> dict[str, Any]:
        return {"model": model, "interview": {"asked by": asker, "turns": 3}, "seed": seed}

    known = [Checked("model", B), Checked("interview.asked by", A), Checked("nothing.here", A)]
    with RunDir.open(tmp_path, CONFIG, identity(A, A), endpoints=[Checked("model", None)]):
        pass
    with RunDir.open(tmp_path, CONFIG, identity("c", B), endpoints=known):
        pass
    assert read_json(tmp_path / "provenance.json")["identity"] == identity(B, A)
    assert [one.recorded for one in known] == [[tmp_path]] * 3
    with pytest.raises(ConfigError), RunDir.open(tmp_path, CONFIG, identity(B, A, seed=1), endpoints=known):
        pass
    assert [one.recorded for one in known] == [[tmp_path]] * 3, "a refused start records nothing"
    with pytest.raises(ConfigError), RunDir.open(tmp_path, CONFIG, identity(A, A), endpoints=[Checked("model", None)]):
        pass


def test_a_run_is_given_a_key_that_it_may_gain_and_keeps_it(tmp_path: Path) -> None:
    write(tmp_path, answered("q1"))
    born = read_json(tmp_path / "provenance.json")
    with RunDir.open(tmp_path, CONFIG, IDENTITY | {"strategy": "vote"}, new_identity_keys=("strategy",)) as run:
        assert list(run.cells().values()) == [answered("q1")]
    assert read_json(tmp_path / "provenance.json") == born | {"identity": IDENTITY | {"strategy": "vote"}}
    for other, named in (({}, "'vote', not none"), ({"strategy": "search"}, "'vote', not 'search'")):
        with (
            pytest.raises(ConfigError, match=f"strategy = {named}"),
            RunDir.open(tmp_path, CONFIG, IDENTITY | other, new_identity_keys=("strategy",)),
        ):
            pass


def test_a_run_that_is_refused_gains_nothing(tmp_path: Path) -> None:
    write(tmp_path, answered("q1"))
    before = (tmp_path / "provenance.json").read_bytes()
    gains = IDENTITY | {"strategy": "vote"}
    for identity, asked in ((gains | {"seed": 1}, []), (gains, [cell("q1", seed=8)])):
        with pytest.raises(ConfigError), RunDir.open(tmp_path, CONFIG, identity, asked, new_identity_keys=("strategy",)):
            pass
        assert (tmp_path / "provenance.json").read_bytes() == before


def test_an_identity_is_compared_as_json_reads_it(tmp_path: Path) -> None:
    for _ in range(2):
        write(tmp_path, identity={"levels": ("a", "b"), "of": {1: 0.5}})  # a tuple comes back as a list, 1 as "1"


def test_cells_asked_otherwise_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    write(tmp_path, answered("q1"))
    before = (tmp_path / "config.json").read_bytes()
    for changed in (cell("q1", seed=8), cell("q1", gold="13"), cell("q1", messages=())):
        with (
            pytest.raises(ConfigError, match=r"cell None × 'q1', sample 0: this run asked it with another prompt"),
            RunDir.open(tmp_path, StabilityConfig(label="other"), IDENTITY, [cell("q2"), changed]),
        ):
            pass
    assert (tmp_path / "config.json").read_bytes() == before


# The files beside the records


def test_config_and_provenance_say_where_the_run_was_born(tmp_path: Path) -> None:
    write(tmp_path)
    assert StabilityConfig.model_validate(read_json(tmp_path / "config.json")) == CONFIG
    born = read_json(tmp_path / "provenance.json")
    assert born["identity"] == IDENTITY
    assert born["python"] == ".".join(map(str, sys.version_info[:3]))
    assert born["command"] == [Path(sys.argv[0]).name, *sys.argv[1:]]
    assert {"permix", "numpy", "scikit-learn"} <= set(born["packages"])
    assert born["packages"]["permix"] == born["permix"]
    assert born["revision"] == source_revision()
    assert born["created"].endswith("+00:00")


def test_going_on_keeps_the_provenance_and_takes_the_new_config(tmp_path: Path) -> None:
    write(tmp_path)
    born = (tmp_path / "provenance.json").read_bytes()
    with RunDir.open(tmp_path, StabilityConfig(label="renamed"), IDENTITY):
        pass
    assert (tmp_path / "provenance.json").read_bytes() == born
    assert read_json(tmp_path / "config.json")["label"] == "renamed"


def test_provenance_is_json() -> None:
    assert json.loads(json.dumps(collect_provenance()))["cpus"] == os.cpu_count()


def test_usage_adds_up_over_starts_and_counts_one_that_fails(tmp_path: Path) -> None:
    for start in range(3):
        with RunDir.open(tmp_path, CONFIG, IDENTITY) as run:
            try:
                with run.track_usage():
                    time.sleep(0.1)
                    sum(range(3_000_000))
                    if start == 1:
                        raise KeyboardInterrupt
            except KeyboardInterrupt:
                pass
        usage = read_json(tmp_path / "usage.json")
        assert usage["starts"] == start + 1
        assert usage["wall_seconds"] >= 0.1 * (start + 1)
        assert usage["cpu_seconds"] > 0.01 * start  # the clock ticks in hundredths


def test_usage_counts_those_who_worked_together_and_never_hides_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunDir.open(tmp_path, CONFIG, IDENTITY) as run:
        with run.track_usage(lambda own: own + 100):
            pass
        assert 100 <= read_json(tmp_path / "usage.json")["cpu_seconds"] < 110

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("permix.storage.run_dir.write_json", full)
        with pytest.raises(KeyError, match="the error itself"), run.track_usage(lambda own: own + 100):
            raise KeyError("the error itself")
        with pytest.raises(OSError, match="No space left"), run.track_usage():
            pass


def test_what_cannot_be_written_says_where_and_why(tmp_path: Path) -> None:
    with pytest.raises(PermixError) as refused, guard_writes(tmp_path / "log", ArithmeticError):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    assert str(refused.value).startswith(f"{tmp_path / 'log'}: cannot be written: Disk quota exceeded; make room, then run")
    with pytest.raises(PermixError, match="cannot be written: out of room;"), guard_writes(tmp_path / "log", ArithmeticError):
        raise ArithmeticError("out of room\nand a long tail")
    with pytest.raises(ValueError, match="another matter"), guard_writes(tmp_path / "log"):
        raise ValueError("another matter")


def test_a_failing_write_leaves_the_old_file_and_no_scratch(tmp_path: Path) -> None:
    target = tmp_path / "metrics.json"
    write_json(target, {"pss": 0.5})
    with pytest.raises(TypeError):
        write_json(target, {"pss": 0.75, "bad": object()})
    with pytest.raises(TypeError):
        write_text(target, b"bytes")  # type: ignore[arg-type]
    assert read_json(target) == {"pss": 0.5}
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_what_a_reader_sees_is_whole_and_readable_by_others(tmp_path: Path) -> None:
    target = tmp_path / "new" / "metrics.json"
    write_json(target, {"text": "é\u2028\ud800"})
    assert read_json(target) == {"text": "é\u2028?"}
    assert target.stat().st_mode & 0o777 == 0o644


def test_a_config_with_bytes_that_are_no_text_is_written_too(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", StabilityConfig(label="caf\udce9"))  # argv in another encoding
    assert read_json(tmp_path / "config.json")["label"] == "caf?"


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file; is this a run directory"), (b"{", "not JSON"), (b"\xff", "not JSON"), (b"[]", "contains list")],
)
def test_a_json_file_that_cannot_be_used_is_named(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"config\.json: {words}"):
        read_json(path)


# Secrets


@pytest.mark.parametrize("address", ["http://ann:hunter2@h/v1", "http://hunter2@h/v1", "http://ann:hunter2%40@h:1/v1"])
def test_credentials_in_an_address_are_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(ValueError, match="base_url holds credentials; put the key into the environment variable") as caught:
        ModelConfig(backend="openai", base_url=address)
    assert "hunter2" not in str(caught.value)


def test_a_key_in_place_of_its_variable_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="api_key_env is not the name of an environment variable") as caught:
        ModelConfig(backend="openai", base_url="http://h/v1", api_key_env="sk-hunter2")
    assert "hunter2" not in str(caught.value)
