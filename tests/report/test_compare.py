"""`permix compare`, from runs on disk: refused with the reason, or tables that name both."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.errors import DataError
from permix.inference import embedder
from permix.report.comparisons import compare_runs, comparison_cautions, comparison_claim, comparison_markdown
from permix.storage.files import read_json, write_json
from tests import seeded
from tests.sample_runs import asked_as, asked_what, endpoint, solve, stability_values, toml
from tests.servers import Reply, openai_server


def run(folder: Path, wrong_as: str | None = "nobody", **fields: Any) -> Path:
    """A stability run of a model that is wrong under one persona."""
    folder.mkdir()

    def script(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str:
        return str(solve(asked_what(body)) + (asked_as(body) == wrong_as))

    with openai_server(script) as server:
        values = stability_values(folder, server.base_url, model=endpoint(server.base_url), **fields)
        (folder / "run.toml").write_text(toml(values))
        assert cli.run_cli(["stability", str(folder / "run.toml")]) == 0
    return folder / "run"


@pytest.mark.slow
def test_what_differs_is_told_by_measure_and_by_persona(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = run(tmp_path / "a", "troll", label="be|fore"), run(tmp_path / "b", label="after")
    capsys.readouterr()
    assert cli.run_cli(["compare", str(one), str(two), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "be|fore" in shown
    claim = shown.splitlines()[0]
    assert claim.startswith("after against be|fore: more stable: under its worst persona it keeps a larger share of its best")
    # No question of six is worse, but a share of 1 − .025^(1/6) of all questions may be.
    assert "; mean accuracy over personas no difference shown (+0.33 [−0.13, +0.33], p = 0." in claim
    assert claim.count(", p = 0.") == 2  # with six questions the interval of PSS excludes 0 and the test does not reject
    assert "cut off, of answered" in " ".join(shown.split())
    lines = {line.split("  ")[0].strip(): line.split() for line in shown.splitlines()}
    worst = [float(number) for number in lines["worst persona"][2:5]]
    assert worst == pytest.approx([0.06, 0.94, 0.88], abs=0.02)  # of six questions
    assert lines["troll"][1:4] == ["0.000", "1.000", "+1.00"]
    assert lines["clerk"][1:4] == ["1.000", "1.000", "+0.00"]
    found = read_json(tmp_path / "out" / "comparison.json")
    assert (found["first"], found["n_questions"], found["n_cells"]) == (str(one), 6, 18)
    assert [persona["id"] for persona in found["personas"]] == ["clerk", "sailor", "troll"]
    assert (found["cut_off"]["first"]["n_cut_off"], found["cut_off"]["other"]["n_known"]) == (0, 24)
    told = (tmp_path / "out" / "comparison.md").read_text()
    assert told.startswith("# after against be&#124;fore\n\n**after against be&#124;fore: more stable")
    assert told.index("| clerk |") < told.index("| troll |")  # what lost most stands first
    assert comparison_markdown(compare_runs(one.parent, two.parent)) == told  # a folder that holds the run will do


@pytest.mark.slow
def test_of_two_folders_the_answers_in_character_are_compared_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The noisier voices of the second model are named less often; by the base model's answers both are named alike."""
    monkeypatch.setattr(embedder, "find_bundled_embedder", lambda: None)  # then recognisability is not measured
    for name, noise in (("one", 0.0), ("two", 0.5)):
        seeded.stability_run(tmp_path / name / "stability", name, "tiny", seeded.torn)
        reference = tmp_path / "one" / "fidelity" if name == "two" else None
        seeded.fidelity_run(tmp_path / name / "fidelity", name, "tiny", reference, noise)
    found = compare_runs(tmp_path / "one", tmp_path / "two").characters
    assert found is not None
    assert [row[0] for row in found.rows] == ["identifiability"]
    assert found.rows[0][1] == "1.00 [0.83, 1.00]"  # of 20 questions, .025 ** (1 / 20)
    assert found.rows[0][3].startswith("−0.")
    told = comparison_markdown(compare_runs(tmp_path / "one", tmp_path / "two"))
    assert "| identifiability | 1.00 [0.83, 1.00] |" in told
    assert compare_runs(tmp_path / "one" / "stability", tmp_path / "two" / "stability").characters is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"task": {"name": "arithmetic", "levels": ["add-1"], "n": 7}}, r"not the same questions \(6 against 7, 6 in common\)"),
        ({"sampling": {"max_new_tokens": 17}}, r"not the same sampling \(max_new_tokens 16 against 17\)$"),
        ({"samples": 2}, r"not the same sampling \(samples 1 against 2\)"),
        (
            {"task": {"name": "arithmetic", "levels": ["add-1"], "n": 6, "prompt_template": "Well? {question}"}},
            "not asked in the same words",
        ),
    ],
)
def test_runs_that_were_asked_otherwise_are_refused(fields: dict[str, Any], reason: str, tmp_path: Path) -> None:
    one, two = run(tmp_path / "a"), run(tmp_path / "b", **fields)
    with pytest.raises(DataError, match=f"cannot be compared: .*{reason}"):
        compare_runs(one, two)


def test_runs_that_were_judged_otherwise_are_refused(tmp_path: Path) -> None:
    one, two = run(tmp_path / "a"), run(tmp_path / "b")
    born = read_json(two / "provenance.json")
    born["identity"]["verifier"] = "another"
    write_json(two / "provenance.json", born)
    with pytest.raises(DataError, match=r"not scored by the same verifier \(version \S+ against another\)"):
        compare_runs(one, two)


def test_runs_of_before_the_verifier_had_a_version_are_compared_by_the_engine_of_then(tmp_path: Path) -> None:
    one, two = run(tmp_path / "a"), run(tmp_path / "b")
    for folder, engine in ((one, "0.9.0"), (two, "0.1")):
        born = read_json(folder / "provenance.json")
        born["identity"].pop("verifier", None)
        born["packages"]["math-verify"] = engine
        write_json(folder / "provenance.json", born)
    with pytest.raises(DataError, match=r"not scored by the same verifier \(version 0.9.0 against 0.1\)"):
        compare_runs(one, two)


def test_what_is_given_must_be_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = run(tmp_path / "a")
    assert cli.run_cli(["compare", str(one)]) == 2
    assert "runs: compare takes two runs, not 1" in capsys.readouterr().err
    assert cli.run_cli(["compare", str(one), str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    run(tmp_path / "a" / "more")
    assert cli.run_cli(["compare", str(tmp_path / "a"), str(one)]) == 2
    assert "give one stability run; found:" in capsys.readouterr().err


def test_what_a_reader_must_know_of_both_runs_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every answer as the troll is cut off in the second run."""
    one = run(tmp_path / "a", label="first")
    (tmp_path / "b").mkdir()

    def cut(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> Reply:
        return Reply(str(solve(asked_what(body))), finish="length" if asked_as(body) == "troll" else "stop")

    with openai_server(cut) as server:
        values = stability_values(tmp_path / "b", server.base_url, label="second")
        (tmp_path / "b" / "run.toml").write_text(toml(values))
        assert cli.run_cli(["stability", str(tmp_path / "b" / "run.toml")]) == 0
    capsys.readouterr()
    assert cli.run_cli(["compare", str(one), str(tmp_path / "b" / "run")]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("second against first: no difference shown in stability, ")
    assert shown[1].startswith(
        "Cut off: second: 6 of 24 answers were cut off at sampling.max_new_tokens = 16 (0% to 100% by persona)"
    )
    assert next(line for line in shown if "6 of 24" in line and "0 of 24" in line)


@pytest.mark.slow
def test_nothing_is_claimed_of_incomplete_runs(tmp_path: Path) -> None:
    """Two of eighteen persona cells without a score are more than a tenth, one is not."""
    one, two = run(tmp_path / "a", label="first"), run(tmp_path / "b", label="second")
    lines = (two / "records.jsonl").read_text().splitlines(keepends=True)
    personas = [place for place, line in enumerate(lines) if json.loads(line)["persona_id"] is not None]

    def without(*places: int) -> list[str]:
        kept = [line for place, line in enumerate(lines) if place not in places]
        (two / "records.jsonl").write_text("".join(kept))
        compared = compare_runs(one, two)
        return [comparison_claim(compared), *comparison_cautions(compared)]

    claim, caution = without(personas[0])
    assert claim.startswith("second against first: no difference shown in stability, ")
    assert caution == "**Incomplete**: second has 17 of 18 persona cells scored."
    claim, caution = without(*personas[:2])
    assert claim == "second against first: not compared, because the runs are incomplete (34 of 36 persona cells scored)."
