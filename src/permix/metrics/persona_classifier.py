"""The features and classifiers of `identifiability` and `right_in_character`, and the masking of persona words and of answers.

They were chosen by judgement and not tuned on results: words and word pairs for diction; character n-grams within words for
spelling, dialect and punctuation (case is kept: capitals are style); a start mark for how an answer begins; and a linear SVM,
which is stable with more features than answers. scikit-learn is imported only inside the functions that need it.
"""

import re
import unicodedata
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from permix.metrics.statistics import Array

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


MASK_TOKEN = "[persona]"

START_MARK = "^"


WORD_PATTERN = re.compile(r"[^\W_]+")

STEM_PATTERN = re.compile(r"(.{4,}?)(?:ies|ians?|ists?|ings?|ers?|ors?|ed|ly|es|s|y|e)?")

FUNCTION_WORDS = """
    a about after all also am an and any are as at be because been before being but by can could d did do does doing for from had
    has have he her hers him his how i if in into is it its ll m may me might more most must my no nor not of on one only or our
    out over re s shall she should so some such t than that the their them then there these they this those to under up us ve very
    was we were what when where which while who whom whose why will with without would you your
"""

STOP_WORDS = frozenset(FUNCTION_WORDS.split())

ANSWER_TOKEN = "[answer]"

NUMBER_WORDS = """
    zero nought naught nil one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion trillion
    dozen first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth
    sixteenth seventeenth eighteenth nineteenth twentieth thirtieth fortieth fiftieth sixtieth seventieth eightieth ninetieth
    hundredth thousandth millionth half halves quarter once twice thrice
"""

NUMBER_PATTERN = re.compile(
    r"(?:(?<![\w)\]}])[-+−])?(?:\d+(?:[.,:/⁄]\d+)*|\.\d+)(?:(?:st|nd|rd|th)\b)?"
    rf"|(?<![^\W_])(?:{'|'.join(sorted(NUMBER_WORDS.split(), key=len, reverse=True))})s?(?![^\W_])",
    re.IGNORECASE,
)
"""A number in digits, with its sign, or one number word."""

_MASKED_RUN = re.compile(rf"{re.escape(ANSWER_TOKEN)}(?:(?:\s+(?:and\s+)?|-)?{re.escape(ANSWER_TOKEN)})+")


class FeatureExtractor(Protocol):
    """Turns texts into rows of features, as in scikit-learn; fitted on training texts only."""

    def fit_transform(self, texts: Any) -> Any: ...
    def transform(self, texts: Any) -> Any: ...


class Classifier(Protocol):
    """Predicts a label for each row of features, as in scikit-learn."""

    def fit(self, rows: Any, labels: Any) -> Any: ...
    def predict(self, rows: Any) -> Any: ...


def mask_persona_words(text: str, persona_texts: Sequence[str]) -> str:
    """`text` (after NFKC) with every content word of any persona's text replaced by `MASK_TOKEN`.

    Words are compared case-folded. A persona word of four letters or more masks every word that begins with its stem: the word
    without one common ending, at least four letters. "sailor" (sail-) masks sailors, sailing and sail; "nurse" masks nursing.
    Shorter words mask only themselves; stop words are never masked. Stems mask too much rather than too little ("care" masks
    "career"), which errs towards chance. For languages that put spaces between words.
    """
    words, stems = persona_words(tuple(persona_texts))

    def replace(match: re.Match[str]) -> str:
        word = match[0].casefold()
        return MASK_TOKEN if word in words or word.startswith(stems) else match[0]

    return WORD_PATTERN.sub(replace, unicodedata.normalize("NFKC", text))


def mask_answers(text: str, answers: Collection[str]) -> str:
    """`text` (after NFKC) with each of `answers`, every number and every English number word replaced by `ANSWER_TOKEN`.

    An answer is masked where it is no part of a longer word; an answer of one letter only in the same case, as the choices of a
    question are. Several masked numbers in a row ("one hundred and five", "1 000") become one token, so neither the value nor the
    length of a number is visible. The text of a choice is masked only if `answers` has it.
    """
    normalized = unicodedata.normalize("NFKC", text)
    pattern = _answers_pattern(frozenset(unicodedata.normalize("NFKC", one).strip() for one in answers))
    masked = normalized if pattern is None else pattern.sub(ANSWER_TOKEN, normalized)
    return _MASKED_RUN.sub(ANSWER_TOKEN, NUMBER_PATTERN.sub(ANSWER_TOKEN, masked))


@lru_cache(maxsize=32)
def _answers_pattern(answers: frozenset[str]) -> re.Pattern[str] | None:
    """Finds any of the answers, the longest first; None without one."""
    in_words = {one for one in answers if one and not NUMBER_PATTERN.fullmatch(one)}
    longest_first = sorted(in_words, key=lambda one: (-len(one), one))
    return re.compile("|".join(map(_answer_pattern, longest_first))) if longest_first else None


def _answer_pattern(answer: str) -> str:
    before = r"(?<![^\W_])" if answer[0].isalnum() else ""
    after = r"(?![^\W_])" if answer[-1].isalnum() else ""
    escaped = re.escape(answer)
    return before + (escaped if len(answer) == 1 else f"(?i:{escaped})") + after


@lru_cache(maxsize=32)
def persona_words(persona_texts: tuple[str, ...]) -> tuple[frozenset[str], tuple[str, ...]]:
    """(content words, stems) of all these texts together; a word matches if it is one of the words or begins with a stem."""
    words = set(WORD_PATTERN.findall(unicodedata.normalize("NFKC", " ".join(persona_texts)).casefold())) - STOP_WORDS
    stems = {match[1] for word in words if (match := STEM_PATTERN.fullmatch(word))}
    return frozenset(words), tuple(sorted(stems))


def fit_persona_classifier(answers: Sequence[str], labels: Sequence[str], persona_texts: Sequence[str] = ()) -> "Pipeline":
    """The classifier of `identifiability` as one pipeline, trained on raw answers: it masks them itself; `predict(answers)`.

    `decision_function(answers)` gives margins [N, labels] in the order of `classes_`, [N] for two labels. The pipeline can be
    pickled. The caller must keep training and test questions apart.
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    mask = FunctionTransformer(_mask_texts, kw_args={"persona_texts": tuple(persona_texts)})
    return make_pipeline(mask, text_features(), linear_classifier()).fit(list(answers), list(labels))


def _mask_texts(texts: Sequence[str], persona_texts: Sequence[str]) -> list[str]:
    return [mask_persona_words(text, persona_texts) for text in texts]


def text_features() -> FeatureExtractor:
    """Unfitted TF-IDF of words and punctuation (1–2-grams, case-folded) and of characters within words (2–4-grams, with case)."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import FeatureUnion

    word = TfidfVectorizer(
        preprocessor=_prepend_start_mark_casefolded, token_pattern=r"\w+|[^\w\s]", ngram_range=(1, 2), sublinear_tf=True
    )
    character = TfidfVectorizer(preprocessor=_prepend_start_mark, analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    union: FeatureExtractor = FeatureUnion([("word", word), ("character", character)])
    return union


def _prepend_start_mark(text: str) -> str:
    """The text after a start mark: how it begins becomes a feature, and an empty answer still has a token."""
    return f"{START_MARK} {text}"


def _prepend_start_mark_casefolded(text: str) -> str:
    return _prepend_start_mark(text).casefold()


def linear_classifier() -> Classifier:
    """One linear SVM per persona against all others. Its solver goes through rows in random order, hence the fixed seed."""
    from sklearn.svm import LinearSVC

    classifier: Classifier = LinearSVC(dual=True, random_state=0)
    return classifier


def length_features() -> FeatureExtractor:
    """Features log(1 + characters) and log(1 + words), standardised."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    features: FeatureExtractor = make_pipeline(FunctionTransformer(_log_lengths), StandardScaler())
    return features


def _log_lengths(texts: Sequence[str]) -> Array:
    return np.log1p([[len(text), len(text.split())] for text in texts])


def score_features() -> FeatureExtractor:
    """The score of an answer as its only feature; it takes scores instead of texts."""
    from sklearn.preprocessing import FunctionTransformer

    features: FeatureExtractor = FunctionTransformer(_to_column)
    return features


def _to_column(scores: Sequence[float]) -> Array:
    return np.array([[score] for score in scores], dtype=float)


def score_classifier() -> Classifier:
    """A decision tree: for each score it names the persona that has it most often."""
    from sklearn.tree import DecisionTreeClassifier

    classifier: Classifier = DecisionTreeClassifier(random_state=0, min_samples_leaf=2)
    return classifier


def length_classifier() -> Classifier:
    """An SVM with a Gaussian kernel: from two numbers a linear one could not separate "short or long" from "medium"."""
    from sklearn.svm import SVC

    # SVC does not use the seed, but without one its fit would draw from numpy's global generator.
    classifier: Classifier = SVC(kernel="rbf", random_state=0)
    return classifier
