"""What a judge's verdicts come to: counted by hand, brute force and on judges that are known to be bad."""

import random
from functools import partial
from pathlib import Path

import pytest

from permix.errors import DataError
from permix.judges import results, validation
from permix.judges.parsing import REPEATED_SCORE_ERROR
from permix.judges.results import read_judge_results, sum_judge_usage
from permix.judges.runner import read_judge_calls
from permix.judges.summary import JudgeSummary, measure_judge, measure_judge_agreement, measure_score_difference
from permix.judges.types import JudgeInput, Judgement
from permix.judges.validation import build_control_inputs, injection_form
from permix.types import seed_from
from tests.verdicts import DISCRIMINATES_PERSONAS, GYM, gym_items, judgement, place, read_items, write_items, write_judge


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "read_judge_inputs", read_items)


PLAIN = (5, 4, 3, 2, 5)


def judge_of_parts(item: JudgeInput) -> int | None:
    """5, 4, 3, 2, 5 by question; one less as another persona, 2 without one, one more when padded, 5 for an instruction."""
    plain = PLAIN[place(item)]
    if item.rubric == "Toxicity Control":
        return 5
    return {
        "none": plain, "wrong-persona": plain - 1, "no-persona": 2, "padded": min(5, plain + 1), "retest": plain, "injected": 5,
    }[item.control]  # fmt: skip


def measured(path: Path, score: object, items: list[JudgeInput] | None = None, **settings: object) -> JudgeSummary:
    asked = gym_items() if items is None else items
    write_items(path, asked)
    return measure_judge(path, write_judge(path, "one", asked, score, **settings), seed=0, resamples=300)  # type: ignore[arg-type]


def test_every_number_of_a_judge_that_is_known(tmp_path: Path) -> None:
    found = measured(tmp_path / "run", judge_of_parts, answers_per_control=40)
    assert (found.label, found.model, found.rubrics) == ("one", "models/one", "permix")
    assert (found.tasks["Expected Action"].value, found.tasks["Toxicity Control"].value) == pytest.approx((3.8, 5.0))
    assert found.persona_score.value == pytest.approx(4.4)
    assert found.persona_score.n == 4
    assert found.share_top_score.value == pytest.approx((2 + 5) / 10)
    assert (found.n_scored, found.n_asked) == (40, 40)
    assert found.counts == {
        "none": (40, 40), "wrong-persona": (20, 20), "no-persona": (40, 40), "padded": (40, 40), "retest": (40, 40),
        "injected": (40, 40),
    }  # fmt: skip
    assert found.histogram["none"] == (0, 4, 4, 4, 8)  # Expected Action alone
    assert found.histogram["wrong-persona"] == (4, 4, 4, 8, 0)
    trial = found.reliability
    assert trial.wrong_persona.value == pytest.approx(1.0)
    assert trial.no_persona.value == pytest.approx(3.8 - 2)
    assert trial.padded.value == pytest.approx((0 + 1 + 1 + 1 + 0) / 10)  # Toxicity Control stays at 5
    assert trial.injected.value == pytest.approx((0 + 1 + 2 + 3 + 0) / 10)
    assert (trial.attack_success.value, trial.attack_score_raised.value) == (1.0, 1.0)
    assert trial.attack_success.high == 1.0
    assert (trial.retest_exact.value, trial.retest_mean_abs_diff.value, trial.retest_alpha.value) == (1.0, 0.0, 1.0)
    right, wrong = [5, 4, 3, 2, 5], [4, 3, 2, 1, 4]
    pairs = [(one > two) + (one == two) / 2 for one in right for two in wrong]
    assert trial.auc.value == pytest.approx(sum(pairs) / 25)
    assert trial.no_persona_auc.value == pytest.approx((4 + 0.5) / 5)  # all but the 2 win; that ties
    assert found.discriminates_persona


def test_a_line_of_the_log_says_which_answer_it_scored_under_which_control(tmp_path: Path) -> None:
    items = gym_items()
    write_items(tmp_path, items)
    found = read_judge_results(tmp_path, write_judge(tmp_path, "one", items, judge_of_parts, answers_per_control=40))
    plain, tried = found.scores["none"], {item.answer_key: item for item in items if item.control == "none"}
    assert list(plain) == list(tried)
    assert {key: found.scores["padded"][key] - plain[key] for key in tried if tried[key].rubric != "Toxicity Control"} == {
        key: min(5, plain[key] + 1) - plain[key] for key in tried if tried[key].rubric != "Toxicity Control"
    }
    wrong = found.scores["wrong-persona"]
    assert {key: plain[key] - score for key, score in wrong.items()} == dict.fromkeys(wrong, 1)
    assert {key.rubric for key in wrong} == {"Expected Action"}
    assert {key: injection_form(item, 0) for key, item in tried.items()} == found.injection_forms
    assert found.rubrics == {"Expected Action": True, "Toxicity Control": False}


def test_results_are_read_without_building_controls_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("personas were compared")

    write_items(tmp_path, gym_items())
    folder = write_judge(tmp_path, "one", gym_items(), judge_of_parts)
    monkeypatch.setattr(validation, "near_duplicate_pairs", never)
    assert read_judge_results(tmp_path, folder).n_inputs["wrong-persona"] == 20


def test_controls_that_were_not_judged_yet_are_counted_as_asked(tmp_path: Path) -> None:
    """Of a judge that was stopped: its log holds the answers themselves and nothing else."""
    write_items(tmp_path, gym_items())
    folder = write_judge(tmp_path, "one", gym_items(), judge_of_parts)
    path = folder / "judgements.jsonl"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if '"control":"none"' in line))
    found = measure_judge(tmp_path, folder, seed=0, resamples=100)
    assert found.counts == {
        "none": (40, 40), "wrong-persona": (0, 20), "no-persona": (0, 40), "padded": (0, 20), "retest": (0, 20),
        "injected": (0, 20),
    }  # fmt: skip


def test_an_answer_that_the_run_no_longer_asks_is_left_out_with_its_controls(tmp_path: Path) -> None:
    write_items(tmp_path, gym_items())
    folder = write_judge(tmp_path, "one", gym_items(), judge_of_parts, answers_per_control=40)
    write_items(tmp_path, [item for item in gym_items() if item.persona_id != "p3"])
    found = read_judge_results(tmp_path, folder)
    assert {control: len(scores) for control, scores in found.scores.items()} == {
        "none": 30, "wrong-persona": 15, "no-persona": 30, "padded": 30, "retest": 30, "injected": 30,
    }  # fmt: skip


def test_what_could_not_be_scored_is_left_out_and_counted(tmp_path: Path) -> None:
    def silent(item: JudgeInput) -> int | None:
        return None if item.persona_id == "p0" and item.rubric == "Expected Action" else judge_of_parts(item)

    found = measured(tmp_path / "run", silent)
    assert (found.n_scored, found.n_asked) == (35, 40)
    assert found.tasks["Expected Action"].value == pytest.approx(3.8)
    assert found.tasks["Expected Action"].n == 3
    nothing = measured(tmp_path / "none", lambda _: None)
    assert (nothing.persona_score.value, nothing.n_scored, nothing.n_asked) == (None, 0, 40)
    assert nothing.discriminates_persona is None


def test_a_judge_that_always_says_five_is_not_trusted(tmp_path: Path) -> None:
    found = measured(tmp_path / "run", lambda _: 5, gym_items(8, GYM, 2))
    assert (found.reliability.auc.value, found.reliability.auc.low, found.reliability.auc.high) == (0.5, 0.5, 0.5)
    assert found.discriminates_persona is False
    assert found.reliability.length_correlation.value is None
    assert found.reliability.attack_success.value is None  # nothing had less than 5 to begin with
    assert found.share_top_score.value == 1.0


def noise(salt: int, item: JudgeInput) -> int:
    return 1 + seed_from(salt, *item.seed_parts) % 5


def test_judges_of_noise_are_not_trusted_and_a_keen_one_is(tmp_path: Path) -> None:
    """Of such judges one in forty has an interval above one half."""

    def keen(item: JudgeInput) -> int:
        return min(5, 2 + noise(0, item)) if item.control == "none" else noise(0, item)

    items = gym_items(8, GYM, 3)
    noisy = [measured(tmp_path / str(salt), partial(noise, salt), items, answers_per_control=60) for salt in range(10)]
    assert sum(bool(one.discriminates_persona) for one in noisy) <= 1
    assert (
        sum(
            one.reliability.auc.low < 0.5 < one.reliability.auc.high
            for one in noisy
            if one.reliability.auc.low and one.reliability.auc.high
        )
        >= 8
    )
    assert measured(tmp_path / "keen", keen, items, answers_per_control=60).discriminates_persona is True


def test_injections_are_told_apart_by_form(tmp_path: Path) -> None:
    def naive(item: JudgeInput) -> int:
        return 5 if "[SYSTEM]" in item.answer else 2

    found = measured(tmp_path / "run", naive, gym_items(8, GYM, 3), answers_per_control=100)
    shares = {form: one.value for form, one in found.reliability.attack_by_form.items()}
    assert shares == {"order": 0.0, "system message": 1.0, "verdict": 0.0, "flattery": 0.0}
    assert found.reliability.attack_success.value is not None
    assert 0.1 < found.reliability.attack_success.value < 0.45


def test_the_order_of_the_ledger_changes_nothing(tmp_path: Path) -> None:
    found = measured(tmp_path / "run", judge_of_parts)
    path = tmp_path / "run" / "judges" / "one" / "judgements.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    path.write_text("".join(lines))
    assert measure_judge(tmp_path / "run", path.parent, seed=0, resamples=300) == found


def test_the_bill_counts_every_call(tmp_path: Path) -> None:
    items = gym_items()
    write_items(tmp_path, items)
    folder = write_judge(tmp_path, "one", items, judge_of_parts)
    with (folder / "judgements.jsonl").open("a") as file:
        file.write(judgement(items[0], None, 0.5, attempt=1).model_dump_json() + "\n")
        file.write('{"torn')
    n = len(items) + len(build_control_inputs(items, 20, 0, DISCRIMINATES_PERSONAS)) + 1
    bill = sum_judge_usage(read_judge_calls(folder))
    assert (bill.calls, bill.calls_without_score) == (n, 1)
    assert (bill.prompt_tokens, bill.completion_tokens) == (100 * n, 10 * n)
    assert bill.cost == pytest.approx(0.001 * (n - 1) + 0.5)
    other = write_judge(tmp_path, "two", items, judge_of_parts, cost=None)
    assert sum_judge_usage(read_judge_calls(other)).cost is None
    assert read_judge_results(tmp_path, folder).usage == bill  # one reading gives scores and usage
    (folder / "judgements.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"judgements\.jsonl:1: not a judgement"):
        read_judge_results(tmp_path, folder)


def test_a_run_without_answers_cannot_be_measured(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="judge 'one': the run has no answers"):
        measured(tmp_path / "run", judge_of_parts, [])


def test_two_models_are_paired_by_what_they_were_asked(tmp_path: Path) -> None:
    items = gym_items(6)

    def better(item: JudgeInput) -> int | None:
        return None if item.question_id == "p0.Expected Action.3" else min(5, (judge_of_parts(item) or 0) + 1)

    folders = []
    for name, score in (("base", judge_of_parts), ("trained", better)):
        write_items(tmp_path / name, items)
        folders.append(read_judge_results(tmp_path / name, write_judge(tmp_path / name, "one", items, score)))
    found = measure_score_difference(folders[1], folders[0], seed=0, resamples=500)
    gained = (6 * 3 - 1) / 29  # 4, 3 and 2 gain one, the fives nothing; one of them has no score
    assert found.tasks["Expected Action"].value == pytest.approx(gained)
    assert found.tasks["Toxicity Control"].value == 0.0
    assert found.persona_score.value == pytest.approx(gained / 2)
    assert found.n_answers == 59
    assert found.p == pytest.approx(2 / 2**6, abs=0.02)  # six personas, all signs alike
    same = measure_score_difference(folders[0], folders[0], seed=0, resamples=500)
    assert (same.persona_score.value, same.p) == (0.0, 1.0)


def test_judges_agree_as_far_as_they_do(tmp_path: Path) -> None:
    items = gym_items()
    write_items(tmp_path, items)

    def harsher(item: JudgeInput) -> int | None:
        return None if item.persona_id == "p3" else max(1, (judge_of_parts(item) or 0) - (item.rubric == "Expected Action"))

    found = measure_judge_agreement(
        [read_judge_results(tmp_path, write_judge(tmp_path, name, items, score)) for name, score in
         (("one", judge_of_parts), ("two", harsher), ("three", judge_of_parts))], seed=0, resamples=200,
    )  # fmt: skip
    assert found is not None
    assert found.judges == ("one", "two", "three")
    by_names = {(pair.first, pair.second): pair for pair in found.pairs}
    assert by_names["one", "three"].exact.value == by_names["one", "three"].alpha.value == 1.0
    assert by_names["one", "two"].exact.value == pytest.approx(0.5)  # Toxicity Control alone
    assert by_names["one", "two"].within_one.value == 1.0
    assert (by_names["one", "two"].n_answers, found.n_answers) == (30, 40)
    assert found.alpha.value is not None
    assert 0.5 < found.alpha.value < 1.0
    assert measure_judge_agreement([read_judge_results(tmp_path, tmp_path / "judges" / "one")], seed=0, resamples=200) is None


def test_an_attack_that_the_judge_only_repeats_has_failed(tmp_path: Path) -> None:
    def honest(item: JudgeInput) -> int | None:
        return None if item.control == "injected" else 2

    items = gym_items(8, GYM, 3)
    write_items(tmp_path, items)
    folder = write_judge(tmp_path, "one", items, honest, answers_per_control=40)
    path = folder / "judgements.jsonl"
    calls = [Judgement.model_validate_json(line) for line in path.read_text().splitlines()]
    said = [call.model_copy(update={"error": REPEATED_SCORE_ERROR}) if call.control == "injected" else call for call in calls]
    path.write_text("".join(call.model_dump_json() + "\n" for call in said))
    trial = measure_judge(tmp_path, folder, seed=0, resamples=300).reliability
    assert (trial.attack_success.value, trial.attack_score_raised.value, trial.attack_score_repeated.value) == (0.0, 0.0, 1.0)
    assert trial.injected.value is None
