r"""The same answer in the words of different models has the same verdict: reasons behind it, units, marks, thinking tags."""

import json
from pathlib import Path

import pytest

from permix.config import TaskConfig
from permix.errors import DataError
from permix.tasks import TASKS, verify_completion
from permix.tasks.custom import custom_questions
from permix.tasks.multiple_choice import format_choices
from permix.thinking import split_thinking
from permix.verification.math_verifier import result_of_equation
from tests.verification.test_verification_table import ROWS

NUMBER_TASKS = ("gsm8k", "arithmetic", "aime24", "own-number")

FRUIT = format_choices("Which is a fruit?", ["Rock", "Apple", "Car", "Dog"])


def is_right(task: str, completion: str, gold: str, question: str = "") -> bool:
    return verify_completion(TASKS[task], completion, gold, question).correct is True


REASONS = (
    ", since the other root was 7", ", because 7 is prime", " because the smallest was 7", ", although the better known one is 7",
    ", as the number of pears was 7", ", which is more than 7", "; the other one was 7", " (see step 7)", " \u2014 it was not 7",
)  # fmt: skip

SENTENCES = (
    *((task, "The answer is 18", "18") for task in NUMBER_TASKS),
    *((task, "Answer: 18 apples", "18") for task in NUMBER_TASKS),
    ("math", "The answer is 5", "5"), ("math", "The answer is $x^2+1$", "x^2+1"),
    ("math", "Answer: The area equals 24 square units", "24"),
    ("own-choice", "The answer is: B) Apple", "B"), ("own-choice", "The answer is B", "B"),
)  # fmt: skip


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize(("task", "sentence", "gold"), SENTENCES)
def test_a_reason_behind_the_answer_changes_no_verdict(task: str, sentence: str, gold: str, reason: str) -> None:
    question = FRUIT if task == "own-choice" else ""
    assert is_right(task, f"{sentence}{reason}.", gold, question)
    assert not is_right(task, f"{sentence}{reason}.", "D" if task == "own-choice" else "7", question)


@pytest.mark.parametrize("reason", [one for one in REASONS if "(" not in one and ";" not in one])
@pytest.mark.parametrize("gold", ["Paris", "true", "Yes", "the Nile", "Romeo and Juliet"])
def test_a_reason_behind_a_text_is_left_out(gold: str, reason: str) -> None:
    assert is_right("own-exact", f"The answer is {gold}{reason}.", gold)
    assert not is_right("own-exact", f"The answer is {gold}{reason}.", "7")


@pytest.mark.parametrize(
    "sentence",
    ["The total of 3 boxes, since each has 6, is 18.", "The sum of 10 and 8 is 18.", "9 eggs at 2 dollars is 18 dollars."],
)
def test_a_sentence_that_goes_on_names_what_is_at_its_end(sentence: str) -> None:
    assert all(is_right(task, f"Answer: {sentence}", "18") for task in NUMBER_TASKS)


NAMES = (
    "St. Louis", "Dr. Who", "J. R. R. Tolkien", "No. 5", "P.S. I love you", "Mt. Everest", "George W. Bush", "Mrs. Dalloway",
    "To be or not to be", "Paris, France", "Gone with the Wind",
)  # fmt: skip


@pytest.mark.parametrize("gold", NAMES)
def test_a_name_with_a_full_stop_is_read_whole(gold: str) -> None:
    quoted = ['The answer is "{}".'] if gold[0] == "T" else ["The answer is {}.", 'The answer is "{}".', "Answer: {}"]
    assert all(is_right("own-exact", pattern.format(gold), gold) for pattern in quoted)


def test_a_sentence_ends_before_the_next_one() -> None:
    for gold in ("Paris", "Vitamin C", "New York"):
        assert is_right("own-exact", f"The answer is {gold}. It is well known.", gold)


@pytest.mark.parametrize(
    ("completion", "gold", "wrong"),
    [
        ("The answer is 18 (see step 3).", "18", "3"),
        ("The answer is 18 [1].", "18", "1"),
        ("The answer is 18, rounded to 2 decimals.", "18", "2"),
        ("The answer is 18 dollars per day, or 126 dollars a week.", "18", "126"),
        ("2 + 2 = 4 (not 5)", "4", "5"),
        ("4, not 5.", "4", "5"),
        ("She has 15 left (18-3).", "15", "3"),
        ("It is 18 m^2.", "18", "2"),
        ("So the volume is 12 cm^{3}", "12", "3"),
        (r"It is $\frac{3}{4}$.", "0.75", "4"),
        (r"So $x=-\frac{3}{4}$.", "-0.75", "4"),
        ("It is 2 1/2.", "2.5", "2"),
        ("It is 2\u00bd.", "2.5", "2"),
        ("The answer is negative 18.", "-18", "18"),
        (r"\boxed{1.5 \text{ million}}", "1500000", "1.5"),
        (r"\boxed{5\text{ thousand}}", "5000", "5"),
        ("It costs 5 thousand dollars.", "5000", "5"),
        (r"\boxed{3 dozen}", "36", "3"),
        ("The answer is _18_.", "18", "8"),
        (r"\boxed{10+8=18}", "18", "8"),
        (r"\boxed{f(5)=18}", "18", "5"),
        (r"\boxed{1.8\times10^{1}}", "18", "1.8"),
        (r"\boxed{|AB| = 18}", "18", "1"),
        (r"\boxed{m+n=18}", "18", "1"),
    ],
)
def test_the_number_that_is_stated(completion: str, gold: str, wrong: str) -> None:
    for task in ("gsm8k", "arithmetic", "own-number"):
        assert is_right(task, completion, gold), task
        assert not is_right(task, completion, wrong), task


def test_dozens_that_are_asked_are_not_multiplied() -> None:
    assert is_right("gsm8k", r"\boxed{3 dozen}", "3", "How many dozen eggs are left?")
    assert not is_right("gsm8k", r"\boxed{3 dozen}", "3", "How many eggs are left?")


@pytest.mark.parametrize("completion", ["The answer is 3 or 4.", "The answer is 3, 4", "Answer: either 3 or 4 eggs"])
def test_alternatives_name_no_number(completion: str) -> None:
    assert not any(is_right(task, completion, gold) for task in NUMBER_TASKS for gold in "34")


def numbers_of(completion: str, golds: str = "4 5 16 17 18 20 26") -> dict[str, list[str]]:
    """The golds for which a completion is right, by task of numbers."""
    return {task: [gold for gold in golds.split() if is_right(task, completion, gold)] for task in NUMBER_TASKS}


SEVERAL = (
    "18 20", "18 to 20", "18 out of 20", "18\u00b12", "18:00", "18 R 3", "18'6\"", "18 % 20", "18 feet 6 inches",
    "18; 20", "18/x",
    "18 - x", "18 + x", "18x", "20 = 18", "18 = 20", "18,20", "(18, 20)", r"\{18, 20\}", r"18 \text{ or } 20",
    r"18 \text{ to } 20",
    r"18\quad20", "between 17 and 18", "either 17 or 18", "less than 18", "at least 18", "18 at most", "18 or more", "under 18",
    "up to 18", "nearly 18", "cannot be 18", "anything but 18", "a third of 18", "over 18", "log 18", "18 tenths", "18 halves",
)  # fmt: skip


@pytest.mark.parametrize("frame", [r"\boxed{%}", r"So the answer is $\boxed{%}$.", "The answer is %.", "<answer>%</answer>"])
@pytest.mark.parametrize("content", SEVERAL)
def test_what_is_no_number_is_none_wherever_it_stands(content: str, frame: str) -> None:
    assert not any(numbers_of(frame.replace("%", content)).values())


@pytest.mark.parametrize(
    "completion",
    ["The answer is $18$ or $20$.", "The answer is $18$ and $20$.", "The answer is $18$, $20$", "The answer is not $18$.",
     "The answer is at least $18$.", "The answer is between $17$ and $18$.", r"So the answer is not \boxed{18}.",
     "It's 17 or 18.",
     "It is either 17 or 18.", "Maybe 17, maybe 18.", "It could be 16, or 17, or 18", "<answer>I think 17, or 18</answer>",
     "\\boxed{17 or 19}\n\n18", r"\boxed{9+9}. I counted 18.", r"\boxed{I don't know} but 18 is my guess",
     r"26 - \$18", r"\$26 - \$18", "26 - $18", "26\u201018", "26\u201118", "26 \u2012 18", "26 \u2015 18", "26 \u207b 18",
     "26-\u200b18", "26\u200b-\u200b18", "26 - |18|", "26 eggs less 18 eggs", "So it isn't 18.", "It cannot be 18."],
)  # fmt: skip
def test_alternatives_denials_and_echoes_are_no_answers(completion: str) -> None:
    assert not any(numbers_of(completion).values())


@pytest.mark.parametrize(
    "completion",
    ["The answer is 6 * 3, which is 18.", 'The answer is "9 + 9 = 18."', "The answer is $2 x 9 = $18",
    "The answer is 18 = 9 * 2.",
     "The answer is nine times two, 18.", "The answer is 18 dollars for 9 eggs.", "The answer is 18 -- 9 eggs at 2 dollars.",
     "The answer is none other than 18!", "The answer is (18).", "The answer is <b>18</b>.", "The answer is not 17. It is 18.",
     "<answer>$18 per day from 9 eggs</answer>", "So it is 0.5 or 1/2 of 36, and that is 18.", "The answer is 18, 100% sure.",
     "She needs at least 18 eggs.", r"She needs at least \boxed{18} eggs.", "It took 18 more than a day.",
     r"\boxed{18 fewer apples}",
     "The answer is 17. Wait, I made a mistake. It is actually 18.", "The answer is 17? No, wait, it's 18.",
     "The answer is 17. Hmm, correction: 18.", "The answer is 18. Wait for me, I have 5 dogs!", r"\boxed{18 quarters}",
     r"\boxed{18 pairs}", r"\boxed{17}, no, it is \boxed{18}", r"\boxed{18}, not \boxed{17}",
     "The answer is 18 dollars and 0 cents."],
)  # fmt: skip
def test_right_neighbours_of_what_is_refused(completion: str) -> None:
    assert numbers_of(completion) == {task: ["18"] for task in NUMBER_TASKS}


@pytest.mark.parametrize(
    "completion",
    ["We get minus 5.", "So minus 5.", "It comes to minus 5 degrees.", "The temperature is now minus 5 degrees",
     "It fell from 3 degrees to minus 5.", "The answer is minus $5$.", "The answer is negative 5."],
)  # fmt: skip
def test_minus_is_a_sign_where_nothing_is_subtracted_from(completion: str) -> None:
    for task in (*NUMBER_TASKS, *(("math", "own-math") if "answer" in completion else ())):
        assert is_right(task, completion, "-5"), task
        assert not is_right(task, completion, "5"), task


@pytest.mark.parametrize("completion", ["26 eggs minus 5", "twenty minus 5", "26 minus 5"])
def test_minus_subtracts(completion: str) -> None:
    assert not any(is_right(task, completion, gold) for task in NUMBER_TASKS for gold in ("5", "-5"))


def test_short_magnitudes_multiply() -> None:
    for text, gold in (("$18k", "18000"), ("18K", "18000"), ("1.5 lakh", "150000"), ("2 bn", "2000000000"), ("$1.5M", "1500000")):
        for frame in (r"\boxed{%s}", "The answer is %s.", "It is %s."):
            assert is_right("gsm8k", frame % text, gold), text
    assert is_right("gsm8k", r"\boxed{15 thirds}", "15", "How many thirds are in 5?")


BEFORE_FORMULA = (
    "not", "never", "cannot be", "less than", "at most", "between $4$ and", "either $4$ or", "twice", "half of",
    "the square root of", "the negative of", "minus",
)  # fmt: skip

BEHIND_FORMULA = ("squared", "times $x$", "plus $3$", "thousand", "million", "or more", "at most")


@pytest.mark.parametrize("task", ["math", "own-math"])
def test_words_beside_a_formula_belong_to_it(task: str) -> None:
    for words in BEFORE_FORMULA:
        assert not is_right(task, f"The answer is {words} $5$.", "5"), words
    for words in BEHIND_FORMULA:
        assert not is_right(task, f"The answer is $5$ {words}.", "5"), words
    assert not is_right(task, r"So the answer is not \boxed{5}.", "5")
    assert not is_right(task, "The answer cannot be $5$.", "5")
    assert is_right(task, "The answer is $5$ million.", "5000000")
    for right in ("$5$.", "$5$ units, which is not $7$.", "the number $5$.", "what we want: it is not hard: $5$.", "$5$ cm"):
        assert is_right(task, f"The answer is {right}", "5"), right


LEFT_OF_ANOTHER_VALUE = (
    "-x", "|x|", "xy", "x^{-1}", r"\sqrt{x}", r"\log x", r"\sin x", r"\frac{x}{y}", r"\text{not } x", r"\text{twice } x",
    r"\text{half } x", r"\text{one less than the answer}", r"\lfloor x\rfloor", "ABC ABC - x",
)  # fmt: skip


@pytest.mark.parametrize("left", LEFT_OF_ANOTHER_VALUE)
def test_the_left_side_of_an_equation_must_name_the_value(left: str) -> None:
    assert not any(is_right(task, rf"\boxed{{{left}=5}}", "5") for task in ("gsm8k", "math"))


@pytest.mark.parametrize(
    "left", ["x", "m+n", "|AB|", "AB", r"\text{Total cost}", "total cost", r"\theta", "a_{10}", "f'(2)", "P(A)"]
)
def test_a_name_on_the_left_side_of_an_equation(left: str) -> None:
    assert all(is_right(task, rf"\boxed{{{left}=5}}", "5") for task in ("gsm8k", "math"))
    assert is_right("gsm8k", r"\boxed{xy=5}", "5", "Find $xy$.")


VALUE_WORDS = (
    "minus {}", "not {}", "half {}", "twice {}", "{} plus five", "{} divided by two", "square root of {}", "{} or nineteen",
    "{} dozen", "{} thousand", "{} million", "{} squared", "{} is wrong", "{} minus one", "{} times three", "negative {}",
    "{} and six", "{} hundred",
)  # fmt: skip


@pytest.mark.parametrize("pattern", VALUE_WORDS)
def test_a_word_that_changes_the_value_is_no_unit(pattern: str) -> None:
    words = pattern.format(r"} 16 \text{")
    for box in (pattern.format(16), rf"\text{{{words}}}".replace(r"\text{}", "")):
        for task in (*NUMBER_TASKS, "math", "own-math"):
            assert not is_right(task, rf"\boxed{{{box}}}", "16"), (task, box)


@pytest.mark.parametrize("unit", ["m^2", "cm^3", "m^{2}", "km/h", "dollars", "%", "\u00b0", "eggs", "m\u00b2"])
def test_a_unit_in_text_has_the_verdict_that_it_has_in_a_box(unit: str) -> None:
    for task in NUMBER_TASKS:
        assert is_right(task, rf"\boxed{{18 {unit}}}", "18")
        assert is_right(task, f"So it is 18 {unit}.", "18")
        assert is_right(task, f"The answer is 18 {unit}.", "18")
        assert not is_right(task, f"So it is 18 {unit}.", "2")


WRONG_EXPRESSIONS = [(completion, gold) for task, completion, gold, verdict in ROWS
                     if verdict == "wrong" and task in ("gsm8k", "arithmetic") and any(sign in completion for sign in "-+x")
                     and "Step" not in completion]  # fmt: skip


@pytest.mark.parametrize(("completion", "gold"), WRONG_EXPRESSIONS)
def test_an_expression_is_no_answer_however_it_is_written(completion: str, gold: str) -> None:
    forms = [completion, completion.replace(" - ", "-"), completion.replace(" - ", " -")]
    forms += [one.replace("-", dash) for one in forms for dash in "\u2212\u2013"]
    assert not any(is_right(task, form, gold) for task in NUMBER_TASKS for form in forms)


@pytest.mark.parametrize(
    "expression",
    ["**26** - **13**", "`26` - `13`", "26 eggs - 13 eggs", "26, take away 13", "26 subtract 13", "26 decreased by 13",
     "26 \u2014 13", "26 -13", "26 minus 13", "26 eggs minus 13 eggs", "half of 13", "1 \u2022 13", "1 \u2715 13", "10% of 13",
     "1 groups of 13", "1**13", r"\sqrt{13}", "2 plus 13", "the answer is 26-13"],
)  # fmt: skip
def test_more_expressions_are_no_answers(expression: str) -> None:
    assert not any(is_right(task, f"{expression}", "13") for task in NUMBER_TASKS)


@pytest.mark.parametrize(
    "gold", ["1/3", "2 1/2", "1e3", "1e-7", "1e+21", "\u00bd", r"\frac12", ".5", "-3", "1,234", "1.500", "12%"]
)
def test_a_gold_is_right_as_the_whole_completion(gold: str) -> None:
    assert is_right("own-number", gold, gold)
    assert is_right("own-number", f"It is {gold}.", gold)


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        (r"\boxed{B (Apple)}", "B"), (r"\boxed{\text{B (Apple)}}", "B"), (r"\boxed{B, Apple}", "B"),
        (r"\boxed{\textbf{B}\ \text{Apple}}", "B"), (r"\boxed{\text{B}: \text{Apple}}", "B"), ("Apple", "B"), ("b", "B"),
        ("(b)", "B"), ("It's B, not A.", "B"), ("B is the right answer; A, C and D are not.", "B"),
        ("B\n\nA: not a fruit.\nC: not a fruit", "B"), ("B\n\nBecause A is a stone.", "B"), ("The answer is B, not C.", "B"),
        ("The answer is not B.", None), ("It is not B.", None), ("B is wrong", None), (r"\boxed{B: A}", None),
        (r"\boxed{B) or maybe A}", None), (r"\boxed{B. A. C. D.}", None), ("The answer is B and C", None), ("B or C", None),
        (r"\boxed{B) Apple or A) Rock}", None),
    ],
)  # fmt: skip
def test_choices_in_the_words_of_models(completion: str, letter: str | None) -> None:
    for task in ("own-choice", "mmlu"):
        right = [one for one in "ABCD" if is_right(task, completion, one, FRUIT)]
        assert right == ([] if letter is None else [letter])


@pytest.mark.parametrize(
    "completion",
    ["B, since D is an animal.", "B because D is an animal", "I choose B, because D is an animal.", "I choose B over D.",
     "My choice is B. D is an animal.", "B is correct. D is an animal.", "I would go with B; D is a pet.",
     "**B) Apple**\n\nA) Rock is a mineral. C) Car is a machine. D) Dog is an animal.",
     "B) Apple\n\nExplanation: Rocks (A), cars (C) and dogs (D) are not fruits.", "The answer is Apple, rich in vitamin C.",
     "A) Rock\nB) Apple\nC) Car\nD) Dog\n\nIt is B.", "A) Rock: no. B) Apple: yes. So B.",
     "A) Rock\n\nNo.\n\nB) Apple\n\nYes, so B"],
)  # fmt: skip
def test_letters_of_a_reason_are_no_choice(completion: str) -> None:
    for task in ("own-choice", "mmlu"):
        assert [one for one in "ABCD" if is_right(task, completion, one, FRUIT)] == ["B"]


@pytest.mark.parametrize(
    "completion",
    ["B and D", "B, D", "A B C D", "A, B, C, D", "I cannot decide between B and D.", "None of A, B, C", "It can't be B.",
     "The answer cannot be B", "It is anything but B", "Everything except B", "The answer is never B.", "B would be wrong.",
     "B must be false."],
)  # fmt: skip
def test_several_letters_and_denied_letters_are_no_choice(completion: str) -> None:
    assert not any(is_right(task, completion, one, FRUIT) for task in ("own-choice", "mmlu") for one in "ABCD")


@pytest.mark.parametrize(
    "completion",
    ["Solution: 16 - 7 = 9. Then 9 * 2 = 18.", "Solution:\n1. 16 - 7 = 9\n2. 9 * 2 = 18", "Answer:\n1. 16 - 7 = 9\n2. 9*2 = 18",
     "**Solution:** She has 16 eggs. She eats 7. So she sells 9 and earns 18 dollars.",
     "16 - 7 = 9. This result is used in step 2. 9 * 2 = 18.", "The answer is 18. The result is checked in 2 ways.",
     "The answer is 18. Let's check the solution: 9 * 2 = 18, and 16 - 7 = 9.", "The answer is 18. My answer is based on 9 eggs.",
     "Solution: 18", "Result: 18. I'd wager 5 more.", "The solution is 18. I'd wager 5 more.", "Solution: 9 * 2 = 18"],
)  # fmt: skip
def test_work_under_a_heading_is_no_answer(completion: str) -> None:
    assert numbers_of(completion, "1 2 5 7 9 16 18") == {task: ["18"] for task in NUMBER_TASKS}


def test_mathematics_under_a_heading() -> None:
    for work in ("Let $x$ be the number. Then $2x = 10$, so $x = 5$.", "\n1. $2x=10$\n2. $x=5$"):
        assert is_right("math", f"Solution: {work}", "5")
    assert is_right("math", "The solutions are $x=2$ and $x=3$.", "2,3")


@pytest.mark.parametrize(
    "pattern",
    ["The answer be {}, matey!", "The answer would be {}, I think.", "The answer to your question is {}.",
     "The answer is definitely {}.",
     "The answer is, of course, {}.", "The answer is as follows: {}.", "The answer is {}, my friend.", "The answer is {}, sir",
     "The answer is {} (I think).", "The answer is indeed {}, of course.", "The answer was {}."],
)  # fmt: skip
def test_words_of_a_persona_around_the_answer(pattern: str) -> None:
    golds = (("own-exact", "Paris", ""), ("math", r"$\frac12$", ""), ("math", "5", ""), ("own-choice", "B", FRUIT),
             *((task, "18", "") for task in NUMBER_TASKS))  # fmt: skip
    for task, gold, question in golds:
        assert is_right(task, pattern.format(gold), gold.strip("$"), question), (task, gold)
        if task in NUMBER_TASKS:
            assert is_right(task, pattern.format(gold) + " I sailed 7 seas.", gold), task


TAGS = ("think", "thinking", "thought", "thoughts", "reasoning", "reflection", "seed:think", "longcat_think")


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("answer", ["<answer>18</answer>", r"\boxed{18}", "The answer is 18."])
def test_thinking_is_left_out_where_it_stands(tag: str, answer: str) -> None:
    block = f"<{tag}>It may be 7</{tag}>"
    for completion in (f"{block}{answer}", f"{answer}\n{block}", f"{block}\n{answer}{block}", f"7</{tag}>{answer}\n{block} Bye."):
        assert is_right("gsm8k", completion, "18")
        assert not is_right("gsm8k", completion, "7")
        assert "7" not in split_thinking(completion).answer
    assert not is_right("gsm8k", f"{answer} <{tag}>It may be 7", "18")


@pytest.mark.parametrize(
    ("equation", "result"),
    [("m+n=73", "73"), ("25+48=73", "73"), ("[ABC] = 7", "7"), (r"m\angle A=7^\circ", "7^{\\circ}"), ("f^{-1}(3)=7", "7"),
     (r"73 \pmod{1000}", "73"), (r"1073 \pmod{1000}", None), ("4=3", None), ("x=4=3", None), ("x = 5+2 = 7", "7"), ("4x=3", None),
     ("x<4=3", None), ("9^{9^{9^9}}=7", None)],
)  # fmt: skip
def test_the_result_of_an_equation(equation: str, result: str | None) -> None:
    assert result_of_equation(equation) == result
    if result == "73":
        assert is_right("aime24", rf"\boxed{{{equation}}}", "73")
        assert is_right("math", rf"\boxed{{{equation}}}", "73")


def test_a_formula_that_is_asked_may_have_a_number() -> None:
    assert is_right("aime24", r"\boxed{100m+n = 73}", "73", "Find $100m+n$.")
    assert not is_right("aime24", r"\boxed{100m+n = 73}", "73", "Let $100m+n = 73$.")


@pytest.mark.parametrize(
    ("question", "answer", "gold", "right"),
    [
        ("Factor $x^2-9$.", r"x\cdot x-3\cdot3", "(x-3)(x+3)", False),
        ("Factor $x^2-9$.", "(x)(x)-(3)(3)", "(x-3)(x+3)", False),
        ("Factor $x^2-9$.", "(x+3)(x-3)", "(x-3)(x+3)", True),
        ("Factor $x^2-1$.", r"x\cdot x-1", "(x-1)(x+1)", False),
        ("Factor $9-x^2$.", "-(x-3)(x+3)", "-(x-3)(x+3)", True),
        ("Expand $(x-1)(x+1)$.", "x^2-1", "x^2-1", True),
    ],
)
def test_a_product_is_asked(question: str, answer: str, gold: str, right: bool) -> None:
    assert is_right("math", rf"\boxed{{{answer}}}", gold, question) is right


UNION = r"(-\infty,-1)\cup(1,\infty)"


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        (r"x<-1 \text{ or } x>1", UNION, True), (UNION, r"x<-1 \text{ or } x>1", True), ("x<-1, x>1", UNION, True),
        (r"x<-1 \lor x>1", UNION, True), (r"|x|>1", UNION, True), (r"]-\infty,-1[\cup]1,\infty[", UNION, True),
        (r"(-\infty,-1) U (1,\infty)", UNION, True), (r"x\le-1\text{ or }x\ge1", UNION, False), ("x>-1, x<1", UNION, False),
        (r"|x|<1", UNION, False), (r"|x|\ge1", UNION, False), (r"x<-1\text{ or }y>1", UNION, False),
        (r"x>1\text{ and }x<3", "(1,3)", False), (r"]2,\infty[", r"(2,\infty)", True), ("[2,3[", "[2,3)", True),
        ("]2,3]", "[2,3]", False), (r"\{x\mid x>2\}", r"(2,\infty)", True), (r"\{x : x\ge2\}", r"(2,\infty)", False),
        (r"+\infty", r"\infty", True), (r"{9\over7}", r"\frac97", True), (r"111_{\text{two}}", "111_2", True),
        ("(111)_2", "111_2", True), ("(111)_3", "111_2", False), (r"111\text{ (base 2)}", "111_2", True),
        ("5 cents", "$5", False), (r"\$5", "$5", True), ("5 dollars", "$5", True), ("5", "$5", True),
    ],
)  # fmt: skip
def test_more_notations_of_mathematics(answer: str, gold: str, right: bool) -> None:
    assert is_right("own-math", rf"\boxed{{{answer}}}", gold) is right


def test_a_gold_with_a_unit_in_words_is_refused_where_only_numbers_are_compared(tmp_path: Path) -> None:
    path = tmp_path / "qa.jsonl"
    for answer in ("5 km", "5 minutes"):
        path.write_text(json.dumps({"question": "How far?", "answer": answer}))
        with pytest.raises(DataError, match=r'qa\.jsonl:1.*has a unit \((?:km|minutes)\).*task\.answer = "math"'):
            custom_questions("own-number", TaskConfig(name="own-number", path=path, split="all"))
    assert not is_right("own-number", r"\boxed{\$50}", "50%")
    assert is_right("own-number", r"\boxed{50}", "50%")
