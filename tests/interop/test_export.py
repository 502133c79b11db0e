"""A run of our own, exported as lm-evaluation-harness writes one and imported again: the same numbers, the harness's fields."""

import hashlib
import json
from pathlib import Path

import pytest

from permix import cli
from permix.config import ExportConfig
from permix.errors import ConfigError, DataError
from permix.evals.stability import measure_stability
from permix.interop.stage import export_run, import_run
from permix.storage.files import read_json
from tests.cell_files import read_cells
from tests.interop.logs import RECORDED, importing, lines_of, own_run
from tests.sample_runs import write_pool

HOSTILE = '../up "q" | ☃ <b>'


def exported(folder: Path) -> list[str]:
    own_run(folder)
    export_run(ExportConfig(run=folder / "run", format="lm-eval", out=folder / "exported"))
    return [str(one) for one in sorted((folder / "exported").iterdir())]


def test_a_round_trip_gives_the_same_metrics(tmp_path: Path) -> None:
    given = exported(tmp_path)
    assert [Path(one).name for one in given] == ["001-clerk", "002-sailor", "003-troll", "none"]
    again = import_run(importing(tmp_path, given, out=tmp_path / "again", filter=None))
    first = measure_stability(tmp_path / "run")
    assert first.n_scored < first.n_asked, "the troll's server failed"
    assert again == first
    grid = read_cells(tmp_path / "again" / "records.jsonl")
    for key, cell in read_cells(tmp_path / "run" / "records.jsonl").items():
        if cell.verdict is not None:
            assert (grid[key].messages, grid[key].seed, grid[key].gold) == (cell.messages, cell.seed, cell.gold)
            assert grid[key].verdict == cell.verdict


def test_personas_in_the_users_message_come_back(tmp_path: Path) -> None:
    pool = str(write_pool(tmp_path / "pool.toml", "clerk", "sailor", "troll"))
    own_run(tmp_path, personas={"pool": pool, "template": "in_question"})
    export_run(ExportConfig(run=tmp_path / "run", format="lm-eval", out=tmp_path / "exported"))
    given = [str(one) for one in sorted((tmp_path / "exported").iterdir())]
    again = import_run(importing(tmp_path, given, out=tmp_path / "again", filter=None))
    assert [one.id for one in again.personas] == ["clerk", "sailor", "troll"]
    assert [one.accuracy.value for one in again.personas] == [
        one.accuracy.value for one in measure_stability(tmp_path / "run").personas
    ]


def test_what_was_imported_again_is_compared_as_the_run_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import_run(importing(tmp_path, exported(tmp_path), out=tmp_path / "again", filter=None))
    assert cli.run_cli(["compare", str(tmp_path / "run"), str(tmp_path / "again")]) == 0
    assert "+0.000" in capsys.readouterr().out


def test_the_files_have_the_harness_s_fields_and_hashes(tmp_path: Path) -> None:
    clerk, *_, none = exported(tmp_path)
    ours, theirs = (json.loads(lines_of(folder).read_text().splitlines()[0]) for folder in (Path(clerk), RECORDED / "pirate"))
    assert ours.keys() == theirs.keys() | {"permix"}
    for name, part in (("doc_hash", json.dumps(ours["doc"], indent=2)), ("target_hash", ours["target"])):
        assert ours[name] == hashlib.sha256(part.encode()).hexdigest()
    assert ours["doc_hash"] == json.loads(lines_of(Path(none)).read_text().splitlines()[0])["doc_hash"]
    results = read_json(next(Path(clerk).glob("results_*.json")))
    assert results["system_instruction"] == "You are a careful clerk."
    assert results["results"]["arithmetic"]["exact_match,none"] == 1.0
    assert results["n-samples"] == {"arithmetic": {"original": 12, "effective": 12}}


def test_the_recorded_files_give_the_same_hashes() -> None:
    line = json.loads(lines_of(RECORDED / "pirate").read_text().splitlines()[0])
    assert line["doc_hash"] == hashlib.sha256(json.dumps(line["doc"], indent=2).encode()).hexdigest()
    assert line["prompt_hash"] == hashlib.sha256(line["arguments"]["gen_args_0"]["arg_0"].encode()).hexdigest()


def test_writing_twice_gives_the_same_files(tmp_path: Path) -> None:
    first = {one: lines_of(Path(one)).read_bytes() for one in exported(tmp_path)}
    export_run(ExportConfig(run=tmp_path / "run", format="lm-eval", out=tmp_path / "exported"))
    assert {one: lines_of(Path(one)).read_bytes() for one in first} == first


def test_hostile_ids_come_back_and_name_no_path(tmp_path: Path) -> None:
    pool = tmp_path / "hostile.jsonl"
    rows = [{"id": HOSTILE, "text": "a careful clerk"}, {"id": "none", "text": "a retired sailor"}]
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own_run(tmp_path, personas={"pool": str(pool), "split": "all"})
    out = tmp_path / "exported"
    export_run(ExportConfig(run=tmp_path / "run", format="lm-eval", out=out))
    assert sorted(one.name for one in out.iterdir()) == ["001-up-q-b", "002-none", "none"]
    again = import_run(importing(tmp_path, [str(one) for one in out.iterdir()], out=tmp_path / "again", filter=None))
    assert {one.id: one.accuracy.value for one in again.personas} == {HOSTILE: 1.0, "none": pytest.approx(measure_of(tmp_path))}


def measure_of(folder: Path) -> float | None:
    return next(one.accuracy.value for one in measure_stability(folder / "run").personas if one.id == "none")


def test_a_run_of_our_own_is_never_imported_over(tmp_path: Path) -> None:
    given = exported(tmp_path)
    before = (tmp_path / "run" / "records.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="this run was made with imported = none, not 'lm-eval'"):
        import_run(importing(tmp_path, given, filter=None))
    assert (tmp_path / "run" / "records.jsonl").read_bytes() == before


def test_only_a_stability_run_with_records_is_exported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config\.json: no such file"):
        export_run(ExportConfig(run=tmp_path))
    own_run(tmp_path)
    (tmp_path / "run" / "records.jsonl").unlink()
    with pytest.raises(DataError, match="has no records yet"):
        export_run(ExportConfig(run=tmp_path / "run"))
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"stage": "stability"', '"stage": "fidelity"'))
    with pytest.raises(DataError, match=r"config\.json has stage 'fidelity'; only stability runs can be exported"):
        export_run(ExportConfig(run=tmp_path / "run"))


def test_the_command_exports_what_is_named_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own_run(tmp_path)
    assert cli.run_cli(["export", str(tmp_path / "run"), "--format", "lm-eval", "--out", str(tmp_path / "exported")]) == 0
    assert "permix import --lm-eval" in capsys.readouterr().out
    assert (tmp_path / "exported" / "none").is_dir()
