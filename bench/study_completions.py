"""Answers of every arm of a study to the same questions under the same personas, as a page of Markdown.

    python -m bench.study_completions runs/study --arms rlvr permix --personas 3

The first seed of each arm is shown. Personas and questions are drawn with a fixed seed from those that all of these models were
asked; answers play no part in the choice. Printed are, for each persona: sums of *accuracy*, a sum after two turns in character
(*contexts*), sums of *voice* with the request to stay in character, and open questions of *character*.
"""

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from permix.sanitize import escape_markdown
from permix.storage.cells import read_run_cells
from permix.types import Cell


class Part(NamedTuple):
    """A group of questions: its title, evaluation and context, and the number of questions for each persona."""

    title: str
    evaluation: str
    context: str
    n_questions: int


PARTS = (
    Part("Sums; the question ends with: Answer with a number only.", "accuracy", "", 2),
    Part("A sum after two turns in character", "contexts", "turns-2", 1),
    Part("Sums; the question ends with: Answer in one sentence. Stay in character while you answer.", "voice", "in-character", 2),
    Part("Open questions", "character", "", 2),
)

AnswerKey = tuple[str, str]
"""(persona id, question id)"""

AnswersByModel = dict[str, dict[AnswerKey, Cell]]


def read_answers(study: Path, units: Sequence[str], part: Part) -> AnswersByModel:
    """The answered cells of a part under personas, by unit. Raises DataError if a run of the study is missing."""
    return {
        unit: {
            (cell.persona_id, cell.question_id): cell
            for cell in read_run_cells(study / unit / part.evaluation).values()
            if cell.persona_id is not None and cell.completion is not None and cell.context == part.context
        }
        for unit in units
    }


def common_questions(answers: AnswersByModel) -> set[AnswerKey]:
    """The personas and questions that all models answered."""
    return set.intersection(*(set(cells) for cells in answers.values()))


def choose_personas(answers_by_part: Sequence[AnswersByModel], count: int, seed: int) -> list[str]:
    """Personas that every part has. Raises SystemExit if there are fewer than `count`."""
    shared = set.intersection(*({persona for persona, _ in common_questions(answers)} for answers in answers_by_part))
    if len(shared) < count:
        raise SystemExit(f"--personas = {count}: all parts and models have {len(shared)} personas in common")
    return sorted(random.Random(seed).sample(sorted(shared), count))


def page_lines(study: Path, units: Sequence[str], n_personas: int, seed: int) -> Iterator[str]:
    """The lines of the page: a heading for each persona, and a table for each part with a row for each model."""
    answers_by_part = [read_answers(study, units, part) for part in PARTS]
    rng = random.Random(seed)
    for persona in choose_personas(answers_by_part, n_personas, seed):
        first = answers_by_part[0][units[0]]
        text = next(str(cell.messages[0]["content"]) for (one, _), cell in sorted(first.items()) if one == persona)
        yield from ("", f"## {persona}", "", escape_markdown(text))
        for part, answers in zip(PARTS, answers_by_part, strict=True):
            questions = sorted(question for one, question in common_questions(answers) if one == persona)
            chosen = rng.sample(questions, min(part.n_questions, len(questions)))
            prompts = [answers[units[0]][persona, question].prompt.splitlines()[0] for question in chosen]
            shown = [
                prompt.removesuffix(" Answer with a number only.").removesuffix(" Answer in one sentence.") for prompt in prompts
            ]
            yield from ("", f"**{part.title}**", "", "| | " + " | ".join(map(escape_markdown, shown)) + " |")
            yield "|---" * (len(chosen) + 1) + "|"
            for unit in units:
                cells = (answer_text(answers[unit][persona, question]) for question in chosen)
                yield f"| {unit} | " + " | ".join(cells) + " |"


def answer_text(cell: Cell) -> str:
    """The answer for a table cell: with the verdict where it has one, and with "…" where the limit of tokens cut it off."""
    completion = cell.completion
    assert completion is not None
    text = escape_markdown(completion.text) + (" …" if completion.finish == "length" else "")
    return text if cell.verdict is None else f"{text} ({'right' if cell.verdict.correct else 'wrong'})"


def parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--arms", nargs="+", required=True)
    parser.add_argument("--personas", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main() -> None:
    options = parser().parse_args()
    units = ["base", *(f"{arm}-1" for arm in options.arms)]
    print("\n".join(page_lines(options.study, units, options.personas, options.seed)).lstrip("\n"))


if __name__ == "__main__":
    main()
