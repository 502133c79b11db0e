"""The vocabulary: what is refused, what is equal, and the hashes that records on disk depend on."""

import pytest
from pydantic import ValidationError

from permix.types import (
    CellKey,
    Completion,
    Estimate,
    Persona,
    Question,
    Sampling,
    Verdict,
    canonical_text,
    count_text,
    digest,
    last_user_text,
    require_unique,
    seed_from,
)
from tests.sample_runs import cell


def test_records_are_frozen_and_refuse_unknown_keys_and_nan() -> None:
    persona = Persona(id="a", text="a sailor")
    with pytest.raises(ValidationError, match="frozen"):
        persona.text = "a clerk"
    with pytest.raises(ValidationError, match="colour"):
        Persona.model_validate({"id": "a", "text": "a sailor", "colour": "red"})
    with pytest.raises(ValidationError, match="finite"):
        Estimate(value=float("nan"), n=1)
    with pytest.raises(ValidationError, match="finite"):
        Persona(id="a", text="a sailor", weight=float("inf"))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Persona, {"id": "", "text": "x"}),  # "" is what a cell's seed uses for no persona
        (Persona, {"id": "a", "text": ""}),
        (Persona, {"id": "a", "text": "x", "weight": 0}),
        (Persona, {"id": "a", "text": "x", "split": "test"}),
        (Question, {"id": "a", "task": "t", "text": "", "gold": "1"}),
        (Sampling, {"temperature": -0.1}),
        (Sampling, {"top_p": 0}),
        (Sampling, {"top_p": 1.1}),
        (Sampling, {"max_new_tokens": 0}),
        (Completion, {"text": "x", "prompt_tokens": -1, "completion_tokens": 0, "finish": "stop"}),
        (Completion, {"text": "x", "prompt_tokens": 0, "completion_tokens": 0, "finish": "eos"}),
    ],
)
def test_values_out_of_range_are_refused(kind: type[Persona], values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(values)


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([{"role": "user", "content": "1?"}, {"role": "assistant", "content": "2"}], "1?"),
        ([{"role": "user", "content": "1?"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "3?"}], "3?"),
        ([{"role": "system", "content": "a"}], ""),
        ([{"role": "user", "content": None}], ""),
        ([], ""),
    ],
)
def test_the_question_is_in_the_last_message_of_the_user(messages: list[dict[str, object]], text: str) -> None:
    assert last_user_text(messages) == text


def test_no_verdict_is_not_zero() -> None:
    assert [Verdict(correct=one).reward for one in (True, False, None)] == [1.0, 0.0, None]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("What is  7 + 5?\n", "what is 7 + 5?"),
        ("ＷＨＡＴ is ７ + ５?", "what is 7 + 5?"),  # full-width
        ("Stra\u00dfe", "strasse"),
        ("cafe\u0301", "caf\u00e9"),
        ("a\u00a0b\u2003c", "a b c"),
    ],
)
def test_equal_questions_have_one_hash(text: str, same: str) -> None:
    assert canonical_text(text) == same
    one, two = (Question(id=str(n), task=f"t{n}", text=each, gold="1") for n, each in enumerate((text, same)))
    assert one.content_hash == two.content_hash
    assert one.content_hash != Question(id="0", task="t0", text=f"{text} again", gold="1").content_hash


def test_digest_is_sha256_of_lengths_and_parts() -> None:
    # printf '\0\0\0\0\0\0\0\1a\0\0\0\0\0\0\0\2bc' | sha256sum
    assert digest("a", "bc") == "3fafa1cf2f19a7c1"
    assert digest("a", "bc") != digest("ab", "c") != digest("abc")
    assert digest("a", "bc", length=4) == "3faf"
    assert len(digest("\ud800")) == 16  # a lone surrogate has a hash too


def test_seeds_are_63_bits_and_depend_on_every_part() -> None:
    # The same sum over "cell", "0", "", "1", halved. A change here would ask every cell on disk anew.
    assert seed_from("cell", 0, "", 1) == 7762075738027138138
    seeds = {seed_from("cell", seed, persona, question) for seed in range(3) for persona in ("", "a") for question in ("a", "b")}
    assert len(seeds) == 12
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_cell_is_known_by_persona_question_and_sample() -> None:
    assert cell("q1").key == CellKey(None, "q1", 0) != cell("q1", "sailor").key
    assert cell("q1", sample=2, seed=99).key == CellKey(None, "q1", 2)


def test_an_estimate_is_ordered_and_readable() -> None:
    with pytest.raises(ValidationError, match=r"the interval is reversed: low 0\.6 > high 0\.5"):
        Estimate(value=0.5, low=0.6, high=0.5, n=3)
    assert str(Estimate(value=0.12345, low=0.1, high=0.2, n=3)) == "0.123 [0.10, 0.20]"
    assert str(Estimate(value=0.12345, low=0.1, high=0.25, n=3)) == "0.12 [0.10, 0.25]"
    assert str(Estimate(value=-0.001, low=-0.3, high=0.25, n=3)) == "0.00 [−0.30, 0.25]"
    assert str(Estimate(value=0.0, n=3)) == "0.00"  # a true zero, unlike
    assert str(Estimate(value=None, n=0)) == "–"


def test_a_difference_carries_its_sign_and_nothing_has_none() -> None:
    assert Estimate(value=-0.25, low=-0.5, high=0.125, n=3).format_difference() == "−0.25 [−0.50, +0.12]"
    assert Estimate(value=0.5, n=1).format_difference() == "+0.50"
    assert Estimate(value=-0.004, low=-0.2, high=0.2, n=3).format_difference() == "+0.00 [−0.20, +0.20]"
    assert Estimate(value=-1e-17, n=1).format_difference() == "+0.00"
    assert Estimate(value=None, n=0).format_difference() == "–"


@pytest.mark.parametrize(
    ("low", "high", "n", "decimals"),
    [(0.4, 0.5, 3, 3), (0.4, 0.51, 9999, 2), (None, None, 399, 2), (None, None, 400, 3), (0.5, 0.5, 1, 3), (1.0, 5.0, 8, 2)],
)
def test_a_value_has_as_many_decimals_as_n_supports(low: float | None, high: float | None, n: int, decimals: int) -> None:
    one = Estimate(value=0.4444, low=low, high=high, n=n)
    assert one.decimals == decimals
    assert one.format_value() == {2: "0.44", 3: "0.444"}[decimals]


def test_values_beside_each_other_have_equally_many_decimals() -> None:
    narrow, wide = Estimate(value=0.4415, low=0.4, high=0.48, n=360), Estimate(value=0.4108, low=0.36, high=0.47, n=360)
    assert [one.format_value(min(narrow.decimals, wide.decimals)) for one in (narrow, wide)] == ["0.44", "0.41"]
    assert narrow.format_value(2) == "0.44"
    assert wide.format_value(3) == "0.41"
    assert Estimate(value=-0.0147, low=-0.15, high=0.09, n=100).format_difference(3) == "−0.015 [−0.15, +0.09]"


def test_the_first_repeated_id_is_named() -> None:
    require_unique(["a", "b"], "persona")
    with pytest.raises(ValueError, match="persona id 'b' occurs twice"):
        require_unique(["a", "b", "c", "b", "a"], "persona")


def test_one_thing_is_not_a_plural() -> None:
    assert [count_text(n, "persona") for n in (0, 1, 2)] == ["0 personas", "1 persona", "2 personas"]
