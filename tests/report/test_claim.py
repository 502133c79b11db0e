"""The claim, word for word; numbers in it are those that the seeds' tests check by hand."""

from pathlib import Path
from typing import NamedTuple

import pytest

from permix.evals.text_metrics import PersonaAnswer, TextMetrics, compute_text_metrics
from permix.report.claim import build_claim, choose_comparison
from permix.report.excerpts import subject_text
from permix.report.judges import PERSONAGYM_KIND
from permix.report.methods import ReportMethod, group_methods
from permix.report.pooled import method_difference, pool_seeds
from permix.report.runs import ModelRuns, collect_models
from permix.storage.files import read_json, write_json
from permix.storage.run_dir import RUN_FORMAT
from permix.types import Estimate
from tests.seeded import estimate_of, fidelity_run, share, stability_run, torn, train_run, write_study


def grid(cells: int) -> str:
    return f"20 questions, 4 personas, {cells} of {cells} persona cells scored"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ReportMethod]:
    return {one.name: one for one in group_methods(collect_models([write_study(tmp_path_factory.mktemp("study"))]))}


def signed(one: Estimate | None) -> str:
    assert one is not None
    return one.format_difference()


class Values(NamedTuple):
    both: str
    difference: str


def values(one: ReportMethod, other: ReportMethod, name: str) -> Values:
    pair = [found for each in (one, other) if (found := estimate_of(pool_seeds(each), name)) is not None]
    decimals = min(one.decimals for one in pair)
    return Values(
        " against ".join(one.format_value(decimals) for one in pair), signed(estimate_of(method_difference(one, other), name))
    )


def over(one: ReportMethod, other: ReportMethod, name: str) -> str:
    """The difference with its interval over questions and training seeds."""
    return method_difference(one, other).over_seeds[name].over_seeds.format_difference()


@pytest.mark.slow
def test_personas_mixed_in_against_rlvr_over_seeds(study: dict[str, ReportMethod]) -> None:
    """Two seeds each: over the questions alone all three measures would be better."""
    mixed, plain, base = study["PerMix-RLVR"], study["RLVR"], study["base"]
    pss, told = values(mixed, plain, "pss"), values(mixed, plain, "identifiability")
    mean = method_difference(mixed, plain).over_seeds["mean"].over_questions
    assert build_claim(list(study.values()))[:2] == (
        "PerMix-RLVR is better than RLVR in character; no difference is shown in stability or accuracy.",
        "PerMix-RLVR (trained by reward, with personas mixed in) against RLVR (trained by reward, without personas): no "
        "difference shown in stability, the share of its best persona's accuracy that a model keeps under its worst "
        f"(PSS {over(mixed, plain, 'pss')}); its personas are easier to distinguish by their answers (identifiability "
        f"{over(mixed, plain, 'identifiability')}). "
        f"Persona stability score (PSS) {pss.both}, {grid(320)}; identifiability {told.both} (chance 0.250 among 4 "
        f"personas), 20 open-ended questions. PerMix-RLVR against base, before training: PSS {over(mixed, base, 'pss')}, "
        f"identifiability {over(mixed, base, 'identifiability')}. Brackets are 95 % intervals over questions and training seeds, "
        "of means over 2 training seeds each; each seed is shown below. Over the questions alone, which says nothing of other "
        f"seeds: PSS {pss.difference}, higher; identifiability {told.difference}, higher; mean accuracy over personas "
        f"{mean.format_difference()}, higher.",
    )


def test_which_methods_are_compared(study: dict[str, ReportMethod]) -> None:
    base, plain, mixed = study["base"], study["RLVR"], study["PerMix-RLVR"]
    sft, distilled = (mixed._replace(name=name, role="other") for name in ("sft", "seqkd"))

    def compared(*methods: ReportMethod) -> tuple[str, str] | None:
        pair = choose_comparison(methods)
        return None if pair is None else (pair.method.name, pair.against.name)

    assert compared(base, plain, sft, mixed) == ("PerMix-RLVR", "RLVR")
    assert compared(base, plain, sft, distilled) == ("seqkd", "RLVR")
    assert compared(base, plain) == ("RLVR", "base")
    assert compared(base, sft, distilled) == ("seqkd", "base")
    assert compared(sft, plain) == ("RLVR", "sft")
    assert compared(base) is None


def test_lower_is_said_as_plainly(study: dict[str, ReportMethod]) -> None:
    swapped = [study["RLVR"]._replace(role="permix"), study["PerMix-RLVR"]._replace(role="rlvr")]
    headline, said, cards = build_claim(swapped)
    assert headline == "RLVR is worse than PerMix-RLVR in character; no difference is shown in stability or accuracy."
    assert [card.outcome for card in cards] == ["no difference shown", "worse", "no difference shown"]
    assert "its personas are harder to distinguish by their answers (identifiability −" in said
    assert said.endswith(", lower.")


def test_a_measure_without_an_interval_over_seeds_is_judged_over_the_questions(study: dict[str, ReportMethod]) -> None:
    """Seeds of one method have no fidelity run: of character there is one model each."""
    mixed, plain = (
        study[name]._replace(models=(first, second._replace(identifiability=None)))
        for name in ("PerMix-RLVR", "RLVR")
        for first, second in [study[name].models]
    )
    headline, said, cards = build_claim([mixed, plain])
    assert headline == "PerMix-RLVR is better than RLVR in character; no difference is shown in stability or accuracy."
    assert ", of means over 2 training seeds each, of identifiability over the questions alone; each seed is shown below." in said
    assert cards[1].difference is not None
    assert f"(identifiability {cards[1].difference.format_difference()})" in said


def test_the_last_method_against_the_base_without_a_pair(study: dict[str, ReportMethod]) -> None:
    _, basis, _ = build_claim([study["RLVR"], study["base"]])
    assert basis.startswith("RLVR (trained by reward, without personas) against base (before training): ")
    assert f"(PSS {over(study['RLVR'], study['base'], 'pss')})" in basis
    assert (
        "Brackets are 95 % intervals over questions and training seeds, of means over 2 training seeds; each seed is shown "
        "below. Over the questions alone, which says nothing of other seeds: PSS "
    ) in basis


def test_one_seed_each_and_no_difference(tmp_path: Path) -> None:
    for label, method in (("plain", "rlvr"), ("mixed", "permix")):
        asked = str(train_run(tmp_path / label, label, 1, method=method) / "model")
        stability_run(tmp_path / f"{label}-stability", label, asked, torn)
    mixed, plain = group_methods(collect_models([tmp_path]))
    pss = values(mixed, plain, "pss")
    assert build_claim([plain, mixed])[:2] == (
        "No difference between mixed and plain is shown in stability or accuracy.",
        "mixed (trained by reward, with personas mixed in) against plain (trained by reward, without personas): no difference "
        "shown in stability, the share of its best persona's accuracy that a model keeps under its worst "
        f"(PSS {pss.difference}). "
        f"Persona stability score (PSS) {pss.both}, {grid(160)}. Brackets are 95 % intervals over the questions. One training "
        "seed each; other seeds are not covered.",
    )


def test_a_difference_between_single_seeds_says_so_first(study: dict[str, ReportMethod]) -> None:
    mixed, plain = (study[name]._replace(models=study[name].models[:1]) for name in ("PerMix-RLVR", "RLVR"))
    headline, _, cards = build_claim([mixed, plain])
    assert "better" in [card.outcome for card in cards]
    assert headline.startswith("With one training seed each, PerMix-RLVR is better than RLVR in ")
    headline, _, _ = build_claim([study["base"], plain])
    assert headline.startswith("With one training seed, RLVR is ")
    headline, _, _ = build_claim([mixed, study["RLVR"]])
    assert headline.startswith("PerMix-RLVR is better than RLVR in "), "one of them has two"


def test_variants_that_were_passed_over_are_named(study: dict[str, ReportMethod]) -> None:
    """The one of most training seeds is spoken of, wherever it stands."""
    lone = study["PerMix-RLVR"]._replace(name="re|play", models=study["PerMix-RLVR"].models[:1])
    _, basis, _ = build_claim([study["RLVR"], lone, study["PerMix-RLVR"]])
    assert basis.startswith("PerMix-RLVR (trained by reward, with personas mixed in) against RLVR")
    others = "Other variants with personas mixed in, with fewer seeds or listed later, are in the table: re&#124;play."
    assert basis.endswith(others)
    _, basis, _ = build_claim([study["RLVR"], lone])
    assert "of means over 1 training seed of re&#124;play and 2 training seeds of RLVR; other seeds are not covered; " in basis


def test_models_that_were_not_asked_the_same_are_not_compared(tmp_path: Path) -> None:
    stability_run(tmp_path / "a", "a", "x", share(4))
    stability_run(tmp_path / "b", "b", "x", share(4), questions=15)
    said = "b against a: not comparable in accuracy (not the same questions (20 against 15, 15 in common))."
    headline, basis, cards = build_claim(group_methods(collect_models([tmp_path])))
    assert headline == "b and a are not compared: not the same questions (20 against 15, 15 in common)."
    assert basis == said
    assert [card.outcome for card in cards] == ["not compared", "not measured", "not compared"]
    assert [one.name for one in cards[0].values] == ["b", "a"]  # the numbers are shown, their difference is not
    assert cards[0].difference is None


def test_a_model_alone(study: dict[str, ReportMethod]) -> None:
    found = pool_seeds(study["base"])
    headline, basis, cards = build_claim([study["base"]])
    assert headline == "Personas change the accuracy of base, and its personas are distinguished by their answers."
    assert basis == (
        "base (before training): a persona effect is shown; accuracy under its worst persona is "
        f"{found.pss} of that under its best (PSS); personas are distinguished by their answers (identifiability "
        f"{found.identifiability}). "
        f"Accuracy {found.worst} under the worst persona and {found.mean} on average, {grid(80)}; identifiability: chance "
        "0.250 among 4 personas, 80 answers. Brackets are 95 % intervals over the questions."
    )
    assert [card.outcome for card in cards] == [
        "personas change the accuracy", "personas are distinguished", "worse than without a persona",
    ]  # fmt: skip
    assert cards[1].mark is not None
    assert cards[1].mark.estimate.value == 0.25
    assert cards[2].markdown == (
        f"- **Accuracy (mean over personas)**: worse than without a persona; base {found.mean}; no persona "
        f"{found.measures['baseline']}"
    )


def test_a_model_alone_that_personas_do_nothing_to(tmp_path: Path) -> None:
    stability_run(tmp_path / "a", "a", "x", share(4))
    fidelity_run(tmp_path / "f", "a", "x", noise=1.0)
    headline, said, cards = build_claim(group_methods(collect_models([tmp_path])))
    assert headline == (
        "No effect of personas on the accuracy of a is shown, "
        "and its personas are not shown to be distinguished by their answers."
    )
    assert [card.outcome for card in cards] == [
        "no persona effect shown", "personas are not shown to be distinguished", "no difference to no persona shown",
    ]  # fmt: skip
    assert said.startswith("a: no persona effect is shown; accuracy under its worst persona is ")
    assert "personas are not shown to be distinguished by their answers" in said


def test_seeds_of_a_method_alone_are_counted(study: dict[str, ReportMethod]) -> None:
    headline, said, _ = build_claim([study["RLVR"]])
    assert headline.startswith("Personas change the accuracy of RLVR in 1 of 2 training seeds, and its personas are ")
    assert "a persona effect is shown in 1 of 2 training seeds; " in said


def test_nothing_measured(tmp_path: Path) -> None:
    train_run(tmp_path / "t", "t", 1)
    nothing = "Nothing here measures accuracy under personas, or how well personas are distinguished."
    assert build_claim(group_methods(collect_models([tmp_path]))) == build_claim([]) == (nothing, "", ())


def test_no_right_answer_leaves_no_pss_and_says_so(tmp_path: Path) -> None:
    """0 / 0 is no stability of 0. One model alone, and against one that is right."""
    reason = "no answer was right under any persona, so PSS has no value"
    stability_run(tmp_path / "a", "a|b", "x", share(0))
    stability_run(tmp_path / "c", "c", "x", share(4))
    (never, right) = group_methods(collect_models([tmp_path]))
    said, basis, cards = build_claim([never])
    assert said == f"a&#124;b: {reason}."
    assert basis == f"a&#124;b: {reason}. {grid(80)[0].upper()}{grid(80)[1:]}. Brackets are 95 % intervals over the questions."
    assert (cards[0].outcome, cards[0].reason, cards[0].values) == ("not compared", reason, ())
    said, basis, cards = build_claim([right, never])
    assert said == "a&#124;b is worse than c in accuracy."
    assert basis.startswith(f"a&#124;b against c: of a&#124;b {reason}.")
    assert (cards[0].outcome, cards[0].reason) == ("not compared", f"of a|b {reason}")
    summary = never.models[0].stability
    assert summary is not None
    assert (summary.pss_reason, summary.pss.value, summary.mean.value) == (reason, None, 0.0)
    assert right.models[0].stability is not None
    assert right.models[0].stability.pss_reason is None


def test_answers_without_a_judge_are_claimed_as_what_they_are() -> None:
    """Ten answers of two personas to twelve questions: two out of character, one cut off. Of another model no end is known."""
    answers = [
        PersonaAnswer("p" if n % 2 else "q", f"q{n}", "As an AI language model, no." if n < 2 else "Aye.", n == 5)
        for n in range(10)
    ]
    texts = {"p": "a sailor", "q": "a cook"}
    measured = compute_text_metrics(answers, texts, unit="personas", n_asked=12, resamples=100)
    unknown = compute_text_metrics([one._replace(truncated=None) for one in answers], texts, unit="personas", resamples=100)

    def claim(**metrics: TextMetrics) -> str:
        kinds = {label: {PERSONAGYM_KIND: one} for label, one in metrics.items()}
        models = [ModelRuns(label, {}, None, None, None, (), text_metrics=one) for label, one in kinds.items()]
        return build_claim([ReportMethod("m", "other", tuple(models))]).sentence

    known = "a answered 10 of 12 questions of 2 personas (20% out of character, 10% cut off)"
    assert claim(a=measured) == f"{known}; no judge has scored the answers."
    assert claim(a=measured, b=unknown) == (
        f"{known}; b answered 10 of 10 questions of 2 personas (20% out of character); no judge has scored the answers."
    )


def test_what_was_measured_is_one_line(tmp_path: Path) -> None:
    """A day is shown where a run has one. The name of a stranger's file is escaped."""
    for name, questions in (("a", 20), ("b", 15)):
        stability_run(tmp_path / name, name, "x", share(4), questions=questions)
        config = read_json(tmp_path / name / "config.json")
        write_json(tmp_path / name / "config.json", config | {"task": {"name": "own-number", "path": "folder/q*a.jsonl"}})
    assert subject_text(collect_models([tmp_path / "a"])) == "q&#42;a.jsonl · 20 questions × 4 personas"
    write_json(tmp_path / "b" / "provenance.json", {"format": RUN_FORMAT, "created": "2026-11-29T08:38:09+00:00"})
    assert subject_text(collect_models([tmp_path])) == "q&#42;a.jsonl · 2026-11-29"  # the sizes differ
    fidelity_run(tmp_path / "f", "f", "x")
    assert subject_text(collect_models([tmp_path / "f"])) == "open-ended questions"
    assert subject_text([]) == ""
