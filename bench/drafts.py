"""Passes and computed tokens of a grid if answers under other personas served as drafts: a replay of recorded greedy answers.

    python -m bench.drafts runs/study/base/accuracy --longest 4 8

The answers to a question are replayed persona by persona. At each step the draft is taken from earlier answers to the same
question: the tokens that follow the longest match of the last tokens (at most 3, the newest answer first); before the first token
it is the beginning of the newest answer. One pass verifies the whole draft and adds one token of its own. So an answer takes
fewer passes, but each pass computes all tokens of its draft, also those that are rejected. One JSON line a figure:

tokens_per_pass: tokens of answers per pass of a row; without drafts it is 1
computed_per_token: tokens that are computed per token of an answer; without drafts it is 1
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.figures import show
from permix.inference.hf import resolve_model_source
from permix.storage.cells import read_run_cells

Tokens = Sequence[int]

LONGEST_MATCH = 3
"""The most tokens at the end of an answer that are looked up in earlier answers."""


class Replay(NamedTuple):
    """Counts of one or more answers: their tokens, their passes, and the tokens that the passes computed."""

    tokens: int = 0
    passes: int = 0
    computed: int = 0

    def plus(self, other: "Replay") -> "Replay":
        return Replay(*(a + b for a, b in zip(self, other, strict=True)))


def find_draft(written: Tokens, earlier: Sequence[Tokens], longest: int) -> Tokens:
    """Return a draft of at most `longest` tokens; empty if no earlier answer contains the last token."""
    if not written:
        return earlier[-1][:longest] if earlier else []
    for n in range(min(LONGEST_MATCH, len(written)), 0, -1):
        end = list(written[-n:])
        for answer in reversed(earlier):
            for start in range(len(answer) - n):
                if list(answer[start : start + n]) == end:
                    return answer[start + n : start + n + longest]
    return []


def replay_answer(answer: Tokens, earlier: Sequence[Tokens], longest: int) -> Replay:
    """Replay one answer, whose last token is its stop token, with drafts from earlier answers."""
    position, counts = 0, Replay(tokens=len(answer))
    while position < len(answer):
        draft = find_draft(answer[:position], earlier, longest)
        accepted = 0
        while accepted < min(len(draft), len(answer) - position - 1) and draft[accepted] == answer[position + accepted]:
            accepted += 1
        position += accepted + 1
        counts = counts._replace(passes=counts.passes + 1, computed=counts.computed + len(draft) + 1)
    return counts


def replay_question(answers: Sequence[Tokens], longest: int) -> Replay:
    """Replay the answers to one question in this order; each takes its drafts from those before it."""
    counts = Replay()
    for number, answer in enumerate(answers):
        counts = counts.plus(replay_answer(answer, answers[:number], longest))
    return counts


def answers_by_question(run: Path, model: str) -> Iterator[list[Tokens]]:
    """Yield the recorded answers to each question as tokens, in the order of the records."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve_model_source(model))
    texts_by_question = defaultdict[str, list[str]](list)
    cells = read_run_cells(run)
    for key in cells:
        completion = cells.parse_uncached(key).completion
        if completion is not None:
            texts_by_question[key.question_id].append(completion.text)
    for answers in texts_by_question.values():
        yield [[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in answers]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="stability runs with greedy answers")
    parser.add_argument("--longest", nargs="+", type=int, default=[4, 8], help="most tokens of a draft")
    parser.add_argument("--model", default="bundled", help="the model whose tokenizer is used")
    return parser


def main() -> None:
    options = parser().parse_args()
    for run in options.runs:
        grid = list(answers_by_question(run, options.model))
        for longest in options.longest:
            counts = Replay()
            for answers in grid:
                counts = counts.plus(replay_question(answers, longest))
            settings = {"run": str(run), "longest": longest, "n": sum(map(len, grid))}
            show("tokens_per_pass", counts.tokens / counts.passes, **settings)
            show("computed_per_token", counts.computed / counts.tokens, **settings)


if __name__ == "__main__":
    main()
