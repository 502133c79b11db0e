"""Final answers are found in what models write, by kind of answer."""

import time

import pytest

from permix.tasks.answers import (
    extract_choice,
    extract_expression,
    extract_marked_number,
    extract_number,
    extract_number_as_written,
    extract_text,
    same_text,
)
from permix.tasks.base import MAX_COMPLETION_CHARS
from permix.verification.extraction import number_readings, offered_choices
from permix.verification.latex import words_as_digits
from permix.verification.math_verifier import check_answer

QUESTION = "Which is prime?\nA) 4\nB) 5\nC) six\nD) 8"


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"\boxed{18}", "18"),
        (r"\boxed{18 doubloons}, matey! I'd wager 5 more.", "18"),
        (r"\boxed{18 cups}. 3 left", "18"),
        (r"\boxed{€18}. 3 left", "18"),
        (r"\boxed{\textbf{18}} and 2 for luck", r"\textbf{18}"),
        (r"\boxed{x = 18}. 3 left", "18"),
        (r"\boxed{\text{Total: } 18 \text{ apples}}. 3 left", "18"),
        (r"\boxed{18 😀} 3", "18"),
        (r"\boxed{18 \text{ m}^2} 3", "18 \\text{ m}^2"),
        (r"\boxed{18 km/h} 3", "18"),
        (r"\boxed{18 m/s} 3", "18"),
        (r"\boxed{\$18/hour} 3", "18"),
        (r"\boxed{US\$18} 3", "18"),
        (r"\boxed{18 zł} 3", "18"),
        (r"\boxed{\bf 18} 3", r"\bf 18"),
        (r"\boxed{\underline{18} zł} 3", "18"),
        (r"\boxed{18 \text{ (dollars)}} 3", "18"),
        (r"\boxed{18~zł} 3", "18"),
        (r"\boxed{12~000} 3", "12~000"),
        (r"\boxed{18 x/y}", None),
        (r"\boxed{18/x}", None),
        (r"\boxed{18 (x)}", None),
        (r"\boxed{18 (sin x)}", None),
        (r"\boxed{18 pi}", None),
        (r"\boxed{18π}", None),
        (r"\boxed{12\,000}", "12\\,000"),
        (r"\boxed{-\$18}", r"-\$18"),
        (r"\boxed{26-13}", None),
        (r"\boxed{12*13}", None),
        (r"\boxed{2^{7}}", None),
        (r"\boxed{\sqrt{9}}", None),
        (r"\boxed{18x}", None),
        (r"\boxed{3 or 4}", None),
        (r"\boxed{1} and \boxed{2}", None),
        (r"\boxed{2} \text{ or } \boxed{2}", "2"),
        (r"\boxed{} The answer is 18.", "18"),
        (r"\boxed{?} so 18", "18"),
        (r"So 26 - 13 = 13", "13"),
        ("What is 26 - 13?", None),
        ("It is 18 (2 × 9).", "18"),
        ("It is 7 + 5", None),
        ("12 x 13 = ?", None),
        ("13x1", None),
        ("26 take away 13", None),
        ("8 plus 0", None),
        ("13 less than 26", None),
        ("The sum of 5 and 8", None),
        ("the product of 1, 1 and 8", None),
        ("The difference between 26 and 13.", None),
        ("Subtract 13 from 26.", None),
        ("12 x 13 = 156", "156"),
        ("26 take away 13 is 13", "13"),
        ("The sum of 5 and 8 is 13.", "13"),
        ("The sum of 5 and 8, 13", "13"),
        ("If you add 5 to 8 you get 13", "13"),
        ("A total of 13 apples", "13"),
        ("(3)(4)", "4"),
        ("The answer is 18. I'd wager 5 more.", "18"),
        ("<answer>18</answer> 3", "18"),
        ("The answer is $18$, and 3 are left.", "$18$"),
        ("１２", "12"),
        ("no number", None),
    ],
)
def test_numbers(completion: str, answer: str | None) -> None:
    assert extract_number(completion) == answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("48+96 #### 144\n\nQuestion: Tom has 5.\n#### 7", "144"),
        ("#### $1,200.00", "1200"),
        ("#### none\n18", "18"),
        (r"#### 7 \boxed{18}", "18"),
        ("#### 8 plus 0", None),
        ("#### 26 - 13 = 13", "13"),
        ("#### Step 2: money\n9*2 = 18\nThe answer is 18.", "18"),
        ("#### Step 2: 9 eggs\n9*2 = 18\n#### 18\n\nQuestion: 5+2=7", "18"),
        ("#### Step 1: eggs left\nI do not know.", None),
        ("## **Part 1**\nI do not know.", None),
        ("#### Cost of 2 shirts\n2 * 9 = 18", "18"),
        ("#### 1. Eggs left\n16-7 = 9\n\n#### 2. Money\n9*2 = 18", "18"),
        ("#### 1) Eggs left\nI do not know.", None),
        ("#### **1.** Eggs left\nI do not know.", None),
        # A heading has text under it, and counts.
        ("#### 1. That is all.", "1"),
        ("#### 18. Arrr, matey!\nThat is 2 less than I had.", "18"),
        ("#### Total: 18\n\nQuestion: Tom has 5.", "18"),
        ("#### x = 18\n\nQuestion: Tom has 5.", "18"),
        ("#### **\u20ac18**\n\nQuestion: Tom has 5.", "18"),
        ("####\n18\n\nQuestion: Tom has 5.", "18"),
        ("#### .5 of 3", "0.5"),
    ],
)
def test_marked_numbers(completion: str, answer: str | None) -> None:
    assert extract_marked_number(completion) == answer


@pytest.mark.parametrize(
    ("written", "readings"),
    [
        ("1,234.5", {"1234.5"}),
        ("1.234,5", {"1234.5"}),
        ("1.500", {"1.5", "1500"}),
        ("2,5", {"2.5"}),
        ("1 500", {"1500", "500"}),
        ("1\u202f500,25", {"1500.25"}),
        ("1'234'567", {"1234567"}),
        ("1,50,000", {"150000"}),
        ("12%", {"12%"}),
        ("-3", {"-3"}),
        ("1.2.3", set()),
    ],
)
def test_number_notations(written: str, readings: set[str]) -> None:
    assert number_readings(written) == readings


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("Es bleiben 1.500 Euro.", "1.500"),
        ("Die Antwort ist 2,5.", "2,5"),
        ("Il reste 1 500 euros.", "1 500"),
        (r"\boxed{1.500}", "1.500"),
        (r"\boxed{18 km/h} 3", "18"),
        (r"\boxed{US\$18} 3", "18"),
        (r"\boxed{2,5 zł} 3", "2,5"),
        (r"\boxed{\underline{2,5}} 3", "2,5"),
        (r"\boxed{12~000} 3", "12000"),
    ],
)
def test_numbers_as_they_are_written(completion: str, answer: str) -> None:
    assert extract_number_as_written(completion) == answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"The roots are $\boxed{-3}$ and $\boxed{8}$.", "-3, 8"),
        (r"First \boxed{2}. Later we find \boxed{3}", "3"),
        (r"x = \boxed{2}, y = \boxed{3}", "2, 3"),
        (r"$(x,y)=\boxed{(1,2)}$ and $(x, y) = \boxed{(3,4)}$", "(1,2), (3,4)"),
        ("The roots are\n- $x = \\boxed{2}$\n- $x = \\boxed{3}$\n", "2, 3"),
        ("The roots are:\n\n1. \\(\\boxed{2}\\)\n\n2. \\(\\boxed{3}\\)", "2, 3"),
        ("We find \\boxed{2}.\n- \\boxed{3}", "3"),  # only one of them is in the list
        ("- First \\boxed{2}\n- $x = \\boxed{3}$", "3"),
        ("Final Answer: The final answer is $x^2+1$. I hope it is correct.", "$x^2+1$"),
        ("**Final Answer**\n\\[\n\\frac{3}{7}\n\\]", "\\[\n\\frac{3}{7}\n\\]"),
        ("The answer is therefore $7$", "$7$"),
        ("The answer is $2$ or $3$", "$2$, $3$"),
        ("Answer $9$", "$9$"),
        ("Final Answer: The volume of $ABC$ is 120. I hope it is correct.", "120"),
        ("Answer: The area equals 24 square units.", "24 square units"),
        ("It is \\(18\\).", "\\(18\\)"),
        ("no formula here", None),
    ],
)
def test_expressions(completion: str, answer: str | None) -> None:
    assert extract_expression(completion) == answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"\boxed{\text{C}}", "C"),
        (r"\boxed{\textbf{(C)}}", "C"),
        (r"\boxed{C) six}", "C"),
        (r"\boxed{\text{Option C}}", "C"),
        (r"\boxed{\mathbf{C}}", "C"),
        (r"\boxed{{\bf (C)}}", "C"),
        (r"\boxed{\bf C}", "C"),
        (r"\boxed{\large C}", "C"),
        (r"\boxed{\underline{C}}", "C"),
        (r"\boxed{[C]}", "C"),
        (r"\boxed{C - six}", "C"),
        (r"\boxed{C – six}", "C"),
        (r"\boxed{A — 4}", "A"),
        (r"\boxed{C - D}", "C - D"),  # two letters
        (r"\boxed{[C] or [D]}", "[C] or [D]"),
        (r"\boxed{(C), (D)}", "(C), (D)"),
        (r"\boxed{(C), A fine number}", "C"),
        (r"\boxed{(C) and E}", "C"),  # E is not offered
        (r"\boxed{six}", "C"),
        (r"\boxed{E}", "E"),  # not offered: wrong, and kept for the record
        (r"\boxed{BC}", "BC"),
        ("Aye, 'tis B. I be sure of it.", "B"),
        ("C. A fine riddle", "C"),
        ("The answer is (B), since A is even.", "B"),
        ("The answer is six.", "C"),
        ("I think so", None),
        ("A fine riddle", None),
        ("E", None),
        ("Answer: **D**", "D"),
        ("a) b) c)", None),
    ],
)
def test_choices(completion: str, answer: str | None) -> None:
    assert extract_choice(completion, QUESTION) == answer


def test_offered_choices() -> None:
    assert offered_choices(QUESTION) == {"A": "4", "B": "5", "C": "six", "D": "8"}
    assert offered_choices("A) is not a list") == {}
    assert offered_choices(f"Read this.\nB) stray\n{QUESTION}\n\nEnd with the letter.") == offered_choices(QUESTION)


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        (r"\text{Paris}", "Paris", True),
        ("**Paris**", "paris", True),
        ('"Paris."', "Paris", True),
        ("O’Neil", "O'Neil", True),
        ("New   York", "new york", True),
        ("Paris, France", "Paris", False),
        (r"10\%", "10%", True),
        (r"AT\&T", "AT&T", True),
        (r"C\#", "C#", True),
        (r"a\_b", "a_b", True),
        (r"\$5", "$5", True),
        ("5", "$5", False),
        ("New~York", "new york", True),
        ("5", "~5", False),
        (r"\mathbf{Paris}", "Paris", True),
        (r"\boldsymbol{Paris}", "Paris", True),
        (r"{\bf Paris}", "Paris", True),
        (r"\mathbf{v}", "v", False),  # a vector and its length
        ("„Paris“", "Paris", True),
        ("«Paris»", "Paris", True),
        ("", "", False),
    ],
)
def test_texts(answer: str, gold: str, same: bool) -> None:
    assert same_text(answer, gold) is same


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        ("Three hundred and twenty-three.", "323."),
        ("Twenty-one, aye, and Zero", "21, aye, and 0"),
        ("one thousand two hundred and six apples", "1206 apples"),
        ("fifty-one thousand, three hundred", "51300"),
        ("two hundred thousand and five", "200005"),
        ("nine hundred ninety-nine thousand nine hundred ninety-nine", "999999"),
        ("eighteen hundred", "1800"),
        ("a hundred and one", "101"),
        ("a thousand", "1000"),
        ("four - one = three", "4 - 1 = 3"),
        ("two point five", "2.5"),
        ("twenty-one point zero five metres", "21.05 metres"),
        ("two point twenty", "two point twenty"),
        ("three one", "three one"),
        ("nineteen ninety", "nineteen ninety"),
        ("seven and six", "seven and six"),
        ("twenty-first", "twenty-first"),
        ("two and a half", "two and a half"),
        ("three-one, someone often", "three-one, someone often"),
        ("thousands", "thousands"),
        ("the one", "the one"),
        ("one of them is one", "one of them is 1"),
    ],
)
def test_numbers_in_words_as_digits(text: str, digits: str) -> None:
    assert words_as_digits(text) == digits


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("Eighteen!", "18"),
        ("**Eighteen**", "18"),
        ("#### Eighteen", "18"),
        ("Why, it's eighteen, my dear!", "18"),
        ("Six times three equals eighteen.", "18"),
        ('The answer is "eighteen"', "18"),
        ("<answer>Eighteen eggs</answer>", "18"),
        ("Minus eighteen.", "-18"),
        ("Four minus three is one.", "1"),
        ("The answer is two point five.", "2.5"),
        ("It be two point five, arr!", "2.5"),
        ("I reckon it's about eighteen.", "18"),
        ("The total comes to forty-two dollars.", "42"),
        ("It adds up to eighteen.", "18"),
        ("Why, eighteen!", "18"),
        ("Eighteen it is!", "18"),
        ("Eighteen is the answer.", "18"),
        ("Oh! Eighteen eggs left.", "18"),
        ("There are three kinds of people in this world.", None),
        ("Three, four, and one", None),
        ("The answer is six. Wait, no, it is seven.", "7"),
        ("The answer is in three steps:\n1. 16-7=9\n2. 9*2=18\nTotal: 18", "18"),
        ("9 * 2 = 18. The answer is a hundred times true!", "18"),
        ("So me gots 18 cookies! The answer is me eat two cookies!", "18"),
        ("First it is eight. Then it is eighteen. Arr!", "18"),
        ("9 + 9 = 18. That is the one, one of many!", "18"),
        ("I counted three ships, and the answer is eighteen or nineteen.", None),
        ("Eighteen and a half.", None),
        ("It is twice eighteen.", None),
        ("It is three times six.", None),
        ("Nine and eighteen.", None),
        ("Three is not a number.", None),
        ("I am the one who sails.", None),
        ("The answer is one of many.", None),
        ("The answer is a tough one.", None),
        ("the eighteenth", None),
    ],
)
def test_a_number_that_is_stated_in_words(completion: str, answer: str | None) -> None:
    assert extract_number(completion) == answer
    assert extract_number_as_written(completion) == answer


@pytest.mark.parametrize(("answer", "gold", "right"), [("two", "2", True), ("two", "two", True), ("2", "two", False)])
def test_a_gold_in_words_is_compared_as_it_is_written(answer: str, gold: str, right: bool) -> None:
    assert check_answer(f"\\text{{{answer}}}", gold).correct is right


@pytest.mark.parametrize(
    "unit",
    [
        r"\boxed{",
        r"\boxed{1} and ",
        "The answer is ",
        "$",
        r"\[",
        r"\(",
        "<answer>",
        "1 - ",
        "A) ",
        "#### ",
        "1.",
        "1 ",
        "# 1. a\n",
        "A, ",
        "not A or ",
        "one ",
        "three one ",
        "= nine ",
        "Nine! ",
        "a hundred ",
        "five five-",
        "five and a ",
    ],
)
def test_a_long_answer_takes_linear_time(unit: str) -> None:
    text = unit * (MAX_COMPLETION_CHARS // len(unit))
    start = time.process_time()
    for extract in (
        extract_number,
        extract_marked_number,
        extract_number_as_written,
        extract_expression,
        extract_text,
        extract_choice,
    ):
        extract(text, QUESTION)
    assert time.process_time() - start < 60  # a few seconds; quadratic would be hours
