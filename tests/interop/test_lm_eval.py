"""lm-evaluation-harness's own output, imported: numbers counted by hand, and what does not belong together refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from permix import cli
from permix.errors import ConfigError, DataError
from permix.evals.stability import read_stability_grid
from permix.interop.stage import import_run
from permix.storage.files import read_json
from permix.types import Cell
from tests.cell_files import read_cells
from tests.interop.logs import RIGHT, Line, edit_lines, edit_results, importing, lines_of, recorded


def cells(folder: Path) -> list[Cell]:
    return list(read_cells(folder / "run" / "records.jsonl").values())


# Numbers


def test_the_recorded_scores_are_the_runs_scores(tmp_path: Path) -> None:
    summary = import_run(importing(tmp_path, recorded(tmp_path)))
    grid = read_stability_grid(tmp_path / "run")
    found = {"none": grid.baseline_Q_S, **dict(zip(grid.persona_ids, grid.correct_P_Q_S, strict=True))}
    assert {name: "".join(str(int(score)) for score in scores[:, 0]) for name, scores in found.items()} == RIGHT
    assert summary.baseline.value == pytest.approx(2 / 6)
    assert summary.mean.value == pytest.approx((3 + 4 + 4) / 18)
    assert summary.pss_observed.value == pytest.approx(3 / 4)
    assert (summary.n_scored, summary.n_asked) == (18, 18)


def test_a_cell_has_the_words_the_answer_and_the_target(tmp_path: Path) -> None:
    import_run(importing(tmp_path, recorded(tmp_path)))
    none, pirate = (next(one for one in cells(tmp_path) if one.persona_id == who) for who in (None, "pirate"))
    assert pirate.messages[0] == {"role": "system", "content": "You are a pirate."}
    assert "What is 8 + 8?\nAnswer:" in pirate.messages[1]["content"]
    assert "pirate" not in pirate.messages[1]["content"]
    assert [message["role"] for message in none.messages] == ["user"]
    assert (pirate.gold, none.question_id) == ("16", pirate.question_id)
    assert pirate.completion is not None
    assert (pirate.completion.prompt_tokens, pirate.completion.finish) == (None, None)
    identity = read_json(tmp_path / "run" / "provenance.json")["identity"]
    assert (identity["task"], identity["judge"]) == ("sums", "lm-eval exact_match, flexible-extract")
    assert identity["sampling"] == {"temperature": 0.0, "top_p": None, "max_new_tokens": 16}


def test_logs_without_names_are_named_by_their_instruction(tmp_path: Path) -> None:
    given = [one.partition("=")[2] for one in recorded(tmp_path)]
    summary = import_run(importing(tmp_path, given))
    assert [one.id for one in summary.personas] == ["You are a pirate.", "You are a poet.", "You are a toddler."]
    assert summary.baseline.value == pytest.approx(2 / 6)


def test_every_answer_can_be_judged_anew_by_permix_and_then_no_filter_is_chosen(tmp_path: Path) -> None:
    def says(line: Line) -> Line:
        return line | {"resps": [[f"Arr, \\boxed{{{line['target']}}} it is, all 99 of us"]]}

    given = recorded(tmp_path, "none", "pirate")
    edit_lines(tmp_path / "pirate", says)
    summary = import_run(importing(tmp_path, given, filter=None, answer="number"))
    assert summary.mean.value == 1.0
    assert read_json(tmp_path / "run" / "provenance.json")["identity"]["judge"] == "permix own-number"


def test_nothing_is_written_before_every_answer_is_judged_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("permix.interop.stage.verify_completion", stopped)
    with pytest.raises(KeyboardInterrupt):
        import_run(importing(tmp_path, recorded(tmp_path), filter=None, answer="number"))
    assert not (tmp_path / "run").exists()


def test_repeats_are_samples_when_permix_judges_and_are_refused_where_they_share_a_score(tmp_path: Path) -> None:
    given = recorded(tmp_path, "none", "pirate")
    for name in ("none", "pirate"):
        edit_lines(tmp_path / name, lambda line: line | {"resps": [[line["target"], "0", line["target"], "0"]]})
    with pytest.raises(DataError, match=r"samples_sums_.*jsonl:\d+: resps = .*4 answers share one score; .*--answer"):
        import_run(importing(tmp_path, given))
    summary = import_run(importing(tmp_path, given, filter=None, answer="number"))
    assert (summary.mean.value, summary.n_asked) == (0.5, 6 * 4)


def choices(line: Line) -> Line:
    """The line of a multiple-choice document: a request a choice, each with its log-likelihood."""
    prompt = line["arguments"]["gen_args_0"]["arg_0"]
    likelihoods = [["-1.0", "False"], ["-2.0", "False"]]
    return line | {
        "arguments": {f"gen_args_{place}": {"arg_0": prompt, "arg_1": f" {place + 3}"} for place in range(2)},
        "resps": [[one] for one in likelihoods],
        "filtered_resps": likelihoods,
        "target": "1",
    }


def rolling(line: Line) -> Line:
    """The line of a document whose own text has a log-likelihood."""
    prompt = line["arguments"]["gen_args_0"]["arg_0"]
    return line | {"arguments": {"gen_args_0": {"arg_0": prompt}}, "resps": [["-12.5"]], "filtered_resps": ["-12.5"]}


@pytest.mark.parametrize("answer", ["number", "math", "exact", "choice"])
@pytest.mark.parametrize("change", [choices, rolling])
def test_log_likelihoods_are_no_answers_that_could_be_judged_anew(
    tmp_path: Path, answer: str, change: Callable[[Line], Line]
) -> None:
    given = recorded(tmp_path, "none", "pirate")
    edit_lines(tmp_path / "pirate", change)
    words = (
        rf"samples_sums_.*jsonl:\d+: answer = '{answer}': nothing was generated here.*; choose a score of the log with --metric"
    )
    with pytest.raises(DataError, match=words):
        import_run(importing(tmp_path, given, filter=None, answer=answer))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", [choices, rolling])
def test_where_nothing_was_generated_no_error_advises_to_judge_anew(tmp_path: Path, change: Callable[[Line], Line]) -> None:
    given = recorded(tmp_path, "none", "pirate")
    edit_lines(tmp_path / "pirate", lambda line: change(line) | {"exact_match": 0.5})
    with pytest.raises(DataError, match=r"exact_match = 0\.5: .*choose another score with --metric$"):
        import_run(importing(tmp_path, given))


def test_what_one_persona_was_not_asked_is_missing_and_not_wrong(tmp_path: Path) -> None:
    given = recorded(tmp_path, "none", "pirate", "poet")
    edit_lines(tmp_path / "pirate", lambda line: line if line["doc_id"] < 5 else None)
    edit_lines(tmp_path / "poet", lambda line: line | ({"exact_match": float("nan")} if line["doc_id"] == 8 else {}))
    summary = import_run(importing(tmp_path, given))
    assert (summary.n_scored, summary.n_asked) == (2 + 5, 12)
    assert [one.accuracy.value for one in summary.personas] == pytest.approx([1 / 2, 3 / 5])
    unscored = [
        one.verdict for one in cells(tmp_path) if one.persona_id == "poet" and one.verdict and one.verdict.correct is None
    ]
    assert [one.error for one in unscored] == ["exact_match is nan: not scored"]


def test_choices_are_recorded_by_their_likelihood(tmp_path: Path) -> None:
    def chosen(line: Line) -> Line:
        prompt = line["arguments"]["gen_args_0"]["arg_0"]
        requests = {f"gen_args_{place}": {"arg_0": prompt, "arg_1": f" {choice}"} for place, choice in enumerate("AB")}
        likely = [[["-2.5", "False"]], [["-0.25", "True"]]]
        return line | {"arguments": requests, "resps": likely, "filtered_resps": [one[0] for one in likely], "target": "1"}

    given = recorded(tmp_path, "none", "pirate")
    for name in ("none", "pirate"):
        edit_lines(tmp_path / name, chosen)
    import_run(importing(tmp_path, given))
    assert {one.completion.text for one in cells(tmp_path) if one.completion} == {"-0.2500\t B\n-2.5000\t A"}


def test_an_endpoints_prompts_are_chat_messages(tmp_path: Path) -> None:
    def chat(system: str | None) -> Callable[[Line], Line]:
        def change(line: Line) -> Line:
            said = [{"role": "system", "content": system}] if system else []
            sent = json.dumps([*said, {"role": "user", "content": line["doc"]["question"], "type": "text"}])
            return line | {"arguments": {"gen_args_0": {"arg_0": [sent], "arg_1": {"max_gen_toks": 16}}}}

        return change

    given = recorded(tmp_path, "none", "pirate")
    edit_lines(tmp_path / "none", chat(None))
    edit_lines(tmp_path / "pirate", chat("You are a pirate."))
    import_run(importing(tmp_path, given))
    pirate = next(one for one in cells(tmp_path) if one.persona_id == "pirate")
    assert [one["content"] for one in pirate.messages] == ["You are a pirate.", "What is 8 + 8?"]


def test_equal_documents_are_told_apart_by_their_order(tmp_path: Path) -> None:
    given = recorded(tmp_path, "none", "pirate")
    for name in ("none", "pirate"):
        edit_lines(
            tmp_path / name, lambda line: line | {"doc_hash": "same" * 16, "target": "16", "arguments": first_arguments(line)}
        )
    import_run(importing(tmp_path, given))
    assert {one.question_id.partition("samesame")[2] for one in cells(tmp_path)} == {
        "samesame",
        *(f"samesame#{n}" for n in range(2, 7)),
    }


def first_arguments(line: Line) -> Any:
    prompt = line["arguments"]["gen_args_0"]["arg_0"]
    return {"gen_args_0": line["arguments"]["gen_args_0"] | {"arg_0": prompt.replace(line["doc"]["question"], "What is 8 + 8?")}}


# What must be chosen


def test_of_several_filters_metrics_and_tasks_one_is_chosen_by_name(tmp_path: Path) -> None:
    given = recorded(tmp_path, "none", "pirate")
    with pytest.raises(DataError, match=r"more than one filter: strict-match, flexible-extract; choose with --filter"):
        import_run(importing(tmp_path, given, filter=None))
    with pytest.raises(DataError, match=r"filter = 'strict': is not in the log; it has strict-match, flexible-extract"):
        import_run(importing(tmp_path, given, filter="strict"))
    edit_lines(tmp_path / "none", lambda line: line | {"f1": 0.25})
    with pytest.raises(DataError, match=r"more than one metric: exact_match, f1; choose with --metric"):
        import_run(importing(tmp_path, given))
    lines_of(tmp_path / "none").with_name("samples_other_2026-11-23T16-04-44.154027.jsonl").write_text("")
    with pytest.raises(DataError, match=r"more than one task: other, sums; choose with --task"):
        import_run(importing(tmp_path, given, metric="exact_match"))
    assert import_run(importing(tmp_path, given, metric="exact_match", task="sums")).mean.value == 0.5


def test_what_would_do_nothing_is_refused(tmp_path: Path) -> None:
    given = recorded(tmp_path, "none", "pirate")
    with pytest.raises(ConfigError, match=r"answer = 'number': permix scores every answer again; leave metric and filter out"):
        import_run(importing(tmp_path, given, answer="number"))
    with pytest.raises(ConfigError, match=r"give one of these four to import: --lm-eval none=DIR"):
        import_run(importing(tmp_path, []))
    with pytest.raises(ConfigError, match=r"no log has a persona: name the persona of a log with NAME=PATH"):
        import_run(importing(tmp_path, given[:1]))


# What cannot be used


MALFORMED: list[tuple[Callable[[Line], Line], str]] = [
    (lambda line: line | {"exact_match": 0.5}, r":\d+: exact_match = 0.5: a verdict is right or wrong .*--answer"),
    (lambda line: {key: value for key, value in line.items() if key != "doc_hash"}, r":\d+: field 'doc_hash' is missing"),
    (lambda line: {key: value for key, value in line.items() if key != "filter"}, r":\d+: field 'filter' is missing"),
    (lambda line: line | {"doc_id": "0"}, r":\d+: doc_id = '0': must be a whole number"),
    (lambda line: line | {"resps": "12"}, r":\d+: resps = '12': must be a list of lists of answers"),
    (lambda line: line | {"arguments": []}, r":\d+: arguments = \[\]: must be"),
    (lambda line: line | {"permix": {"sample": 1}}, r":\d+: permix = .*must be as permix export wrote it"),
]


@pytest.mark.parametrize(("change", "words"), MALFORMED, ids=[words[6:20] for _, words in MALFORMED])
def test_a_line_that_cannot_be_used_is_named_with_field_and_value(
    tmp_path: Path, change: Callable[[Line], Line], words: str
) -> None:
    given = recorded(tmp_path, "none", "pirate")
    edit_lines(tmp_path / "pirate", change)
    with pytest.raises(DataError, match=words):
        import_run(importing(tmp_path, given))
    assert not (tmp_path / "run").exists()


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    given = recorded(tmp_path, "none", "pirate")
    path = lines_of(tmp_path / "pirate")
    path.write_text(path.read_text()[:-40] + "\n")
    with pytest.raises(DataError, match=r"samples_sums_.*jsonl:12: not JSON"):
        import_run(importing(tmp_path, given))


# What does not belong together


def test_mixtures_are_refused_with_the_field_that_differs(tmp_path: Path) -> None:
    given = recorded(tmp_path)
    edit_results(tmp_path / "poet", model_name="another")
    with pytest.raises(DataError, match=r"poet/.*: model = 'another', and .*none/.* has 'HuggingFaceTB/SmolLM2-135M-Instruct'"):
        import_run(importing(tmp_path, given))
    edit_results(tmp_path / "toddler", lm_eval_version="0.4.2")
    with pytest.raises(DataError, match=r"toddler/.*: lm_eval_version = '0.4.2', and"):
        import_run(importing(tmp_path, [given[0], given[3]]))


def test_another_temperature_or_prompt_or_target_is_a_mixture(tmp_path: Path) -> None:
    def warmer(line: Line) -> Line:
        one = line["arguments"]["gen_args_0"]
        return line | {"arguments": {"gen_args_0": one | {"arg_1": one["arg_1"] | {"temperature": 1.0}}}}

    def asks_otherwise(line: Line) -> Line:
        one = line["arguments"]["gen_args_0"]
        return line | {"arguments": {"gen_args_0": one | {"arg_0": one["arg_0"].replace("What is", "Compute")}}}

    given = recorded(tmp_path)
    edit_lines(tmp_path / "pirate", warmer)
    with pytest.raises(DataError, match=r"pirate/.*: generation.temperature = 1.0, and .*none/.* has None"):
        import_run(importing(tmp_path, given[:2]))
    edit_lines(tmp_path / "poet", asks_otherwise)
    with pytest.raises(DataError, match=r"toddler/.*: question 'sums:\w+': question = .*, and .*poet/.* has "):
        import_run(importing(tmp_path, given[2:]))
    edit_lines(tmp_path / "toddler", lambda line: line | {"target": "7"})
    with pytest.raises(DataError, match=r"toddler/.*: question 'sums:\w+': target = '7', and .*none/.* has '16'"):
        import_run(importing(tmp_path, [given[0], given[3]]))


def test_one_log_cannot_be_two_personas(tmp_path: Path) -> None:
    given = recorded(tmp_path, "none", "pirate")
    path = tmp_path / "pirate"
    with pytest.raises(ConfigError, match=r"lm_eval: the path '.*pirate' is given twice"):
        import_run(importing(tmp_path, [*given, f"sailor={path}"]))
    with pytest.raises(ConfigError, match=r"lm_eval: the name 'pirate' is given twice"):
        import_run(importing(tmp_path, [*given, f"pirate={tmp_path}"]))
    with pytest.raises(DataError, match=r"personas 'pirate' and 'sailor' have the same text: 'You are a pirate.'"):
        import_run(importing(tmp_path, [*given, f"sailor={lines_of(path)}"]))
    with pytest.raises(DataError, match=r"system_instruction is missing, so nothing was asked with the persona 'pirate'"):
        import_run(importing(tmp_path, [f"pirate={tmp_path / 'none'}"]))
    with pytest.raises(ConfigError, match=r"lm_eval = '=x': give NAME=PATH"):
        import_run(importing(tmp_path, ["=x"]))


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    given = recorded(tmp_path, "none", "pirate")
    again = lines_of(tmp_path / "none").with_name("samples_sums_2026-11-24T16-04-44.154027.jsonl")
    again.write_text("")
    with pytest.raises(DataError, match=r"has 2 runs of sums: .*; give one of these files"):
        import_run(importing(tmp_path, given))
    with pytest.raises(DataError, match=r"samples_sums_2026-11-24T16-04-44.154027.jsonl: contains no rows"):
        import_run(importing(tmp_path, [f"none={again}", given[1]]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: has no samples_TASK_DATE.jsonl; the harness writes it with --log_samples"):
        import_run(importing(tmp_path, [str(tmp_path / "empty")]))


# Samples alone, groups of tasks, damaged files


def test_an_instruction_that_the_template_trimmed_is_found(tmp_path: Path) -> None:
    given = recorded(tmp_path, "none", "pirate")
    edit_results(tmp_path / "pirate", system_instruction="  You are a pirate.\r\n")
    summary = import_run(importing(tmp_path, given))
    assert summary.mean.value == pytest.approx(3 / 6)
    pirate = next(one for one in cells(tmp_path) if one.persona_id == "pirate")
    assert pirate.messages[0]["content"] == "You are a pirate."
    edit_results(tmp_path / "pirate", system_instruction="You are a pirat.\n")
    with pytest.raises(DataError, match=r"the prompt does not contain the system_instruction 'You are a pirat"):
        import_run(importing(tmp_path, given, out=str(tmp_path / "other")))


def test_samples_without_results_are_read_and_what_is_unknown_is_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = recorded(tmp_path)
    for results in tmp_path.glob("*/results_*.json"):
        results.unlink()
    summary = import_run(importing(tmp_path, given))
    assert summary.pss_observed.value == pytest.approx(3 / 4)
    assert read_json(tmp_path / "run" / "config.json")["model"]["name"] is None
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("samples without their results_DATE.json: the model's name") == 1
    assert "'You are a pirate.'" in said


def test_samples_without_results_and_without_a_name_need_an_instruction_in_the_prompts(tmp_path: Path) -> None:
    recorded(tmp_path, "none", "pirate")
    for results in tmp_path.glob("*/results_*.json"):
        results.unlink()

    def bare(line: Line) -> Line:
        request = line["arguments"]["gen_args_0"]
        return line | {"arguments": {"gen_args_0": request | {"arg_0": "Arr! " + line["doc"]["question"]}}}

    edit_lines(tmp_path / "pirate", bare)
    with pytest.raises(DataError, match=r"its results_DATE.json is missing and the prompts .* give NAME=PATH"):
        import_run(importing(tmp_path, [f"none={tmp_path / 'none'}", str(tmp_path / "pirate")]))


def as_group(folder: Path) -> None:
    """The recorded task twice, as two tasks of a group."""
    samples, results = lines_of(folder), next(folder.glob("results_*.json"))
    values = json.loads(results.read_text())
    for task in ("sums_easy", "sums_hard"):
        samples.with_name(samples.name.replace("samples_sums_", f"samples_{task}_")).write_text(samples.read_text())
        for field in ("configs", "versions", "n-shot"):
            values.setdefault(field, {})[task] = values.get(field, {}).get("sums")
    values["group_subtasks"] = {"all_sums": ["sums_easy", "sums_hard"], "sums_easy": [], "sums_hard": []}
    results.write_text(json.dumps(values))
    samples.unlink()


def test_a_group_is_imported_as_one_run_and_equal_documents_of_its_tasks_are_two_questions(tmp_path: Path) -> None:
    given = recorded(tmp_path, "none", "pirate")
    for name in ("none", "pirate"):
        as_group(tmp_path / name)
    with pytest.raises(DataError, match=r"more than one task: all_sums \(a group of 2\).*sums_easy.*sums_hard"):
        import_run(importing(tmp_path, given))
    summary = import_run(importing(tmp_path, given, task="all_sums"))
    assert (summary.n_questions, summary.n_asked) == (12, 12)
    assert summary.mean.value == pytest.approx(3 / 6)
    alone = import_run(importing(tmp_path, given, task="sums_hard", out=str(tmp_path / "alone")))
    assert alone.n_questions == 6


def test_a_log_that_is_a_pipe_deep_or_endless_is_refused_by_name(tmp_path: Path) -> None:
    given = recorded(tmp_path, "none", "pirate")
    path = lines_of(tmp_path / "pirate")
    good = path.read_text()
    for content, words in [
        ('{"doc": ' + "[" * 100_000, r"samples_sums_.*jsonl:1: cannot be read as JSON"),
        (good + "[]\n", r"jsonl:\d+: must be a JSON object"),
        (good.replace('"resps": ', '"resps": 3, "old": '), r"jsonl:\d+: resps"),
        (good + "\udcff", r"jsonl:\d+: not UTF-8"),
    ]:
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
        with pytest.raises(DataError, match=words):
            import_run(importing(tmp_path, given, metric="exact_match"))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"samples_sums_.*jsonl: is not a regular file"):
        import_run(importing(tmp_path, given))
    assert not (tmp_path / "run").exists()


def test_a_line_of_extreme_length_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = recorded(tmp_path, "none", "pirate")
    monkeypatch.setattr("permix.interop.lm_eval.MAX_SAMPLE_LINE_BYTES", 100)
    with pytest.raises(DataError, match=r"jsonl:1: the line has more than 100 bytes"):
        import_run(importing(tmp_path, given))


# The run directory


def test_importing_again_changes_nothing_and_another_origin_is_refused(tmp_path: Path) -> None:
    given = recorded(tmp_path)
    config = importing(tmp_path, given[:3])
    import_run(config)
    records = (tmp_path / "run" / "records.jsonl").read_bytes()
    import_run(config)
    assert (tmp_path / "run" / "records.jsonl").read_bytes() == records
    with pytest.raises(ConfigError, match=r"this run was made with judge = 'lm-eval exact_match, flexible-extract', not"):
        import_run(importing(tmp_path, given[:3], filter="strict-match"))
    assert import_run(importing(tmp_path, given)).n_personas == 3


def test_hostile_names_stay_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    none, pirate = recorded(tmp_path, "none", "pirate")
    evil = "../../x\x1b[31m<b>"
    import_run(importing(tmp_path, [none, f"{evil}={pirate.partition('=')[2]}"]))
    assert cli.run_cli(["report", str(tmp_path / "run"), "--out", str(tmp_path / "report")]) == 0
    assert "\x1b[31m" not in (tmp_path / "report" / "report.md").read_text()
    assert "\x1b[31m" not in capsys.readouterr().out


def test_the_command_imports_reports_and_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = recorded(tmp_path)
    out = ["--out", str(tmp_path / "run"), "--resamples", "100"]
    assert cli.run_cli(["import", "--lm-eval", *given, *out]) == 2
    assert "permix import: " in capsys.readouterr().err
    assert cli.run_cli(["import", "--lm-eval", *given, "--filter", "flexible-extract", "--label", "smol", *out]) == 0
    shown = capsys.readouterr()
    assert "imported 24 answers: 3 personas × 6 questions × 1 sample" in shown.err
    assert "18 of 18" in shown.out
    assert (tmp_path / "run" / "report" / "report.md").exists()
    assert cli.run_cli(["compare", str(tmp_path / "run"), str(tmp_path / "run")]) == 0
    file = tmp_path / "import.toml"
    file.write_text(f'lm_eval = {json.dumps(given)}\nfilter = "flexible-extract"\nstage = "import"\n')
    assert cli.run_cli(["check", str(file)]) == 0
    assert "pirate, poet, toddler" in capsys.readouterr().out
