"""What drafts would save in a grid: recorded greedy answers are replayed, with the answers of other personas as drafts.

The answers to a question are replayed persona by persona. At each step the draft is what followed, in an earlier answer to the
same question, after the longest match of the last tokens (at most 3, the newest answer first); before the first token it is the
beginning of the newest answer. One pass verifies the whole draft and adds one token of its own. So an answer takes fewer passes,
but each pass computes all tokens of its draft, also those that are refused. One JSON line a figure:

tokens_per_pass: tokens of answers per pass of a row; without drafts it is 1
computed_per_token: tokens that are computed per token of an answer; without drafts it is 1

    python -m bench.drafts runs/study/base/accuracy --longest 4 8
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


class Replay(NamedTuple):
    """Counts of one or more answers: their tokens, the passes that they took, and the tokens that the passes computed."""

    tokens: int = 0
    passes: int = 0
    computed: int = 0

    def plus(self, other: "Replay") -> "Replay":
        return Replay(*(a + b for a, b in zip(self, other, strict=True)))


def find_draft(written: Tokens, earlier: Sequence[Tokens], longest: int) -> Tokens:
    """At most `longest` tokens that may follow; empty if no earlier answer has the last token."""
    if not written:
        return earlier[-1][:longest] if earlier else []
    for n in range(min(LONGEST_MATCH, len(written)), 0, -1):
        end = list(written[-n:])
        for answer in reversed(earlier):
            for at in range(len(answer) - n):
                if list(answer[at : at + n]) == end:
                    return answer[at + n : at + n + longest]
    return []


def replay_answer(answer: Tokens, earlier: Sequence[Tokens], longest: int) -> Replay:
    """Replay one answer, which ends with the token that ended it."""
    at, counts = 0, Replay(tokens=len(answer))
    while at < len(answer):
        draft = find_draft(answer[:at], earlier, longest)
        accepted = 0
        while accepted < min(len(draft), len(answer) - at - 1) and draft[accepted] == answer[at + accepted]:
            accepted += 1
        at += accepted + 1
        counts = counts._replace(passes=counts.passes + 1, computed=counts.computed + len(draft) + 1)
    return counts


def replay_question(answers: Sequence[Tokens], longest: int) -> Replay:
    """Replay the answers to one question in this order; each has those before it as drafts."""
    counts = Replay()
    for number, answer in enumerate(answers):
        counts = counts.plus(replay_answer(answer, answers[:number], longest))
    return counts


def answers_by_question(run: Path, model: str) -> Iterator[list[Tokens]]:
    """The recorded answers to each question as tokens, in the order of the records."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve_model_source(model))
    texts = defaultdict[str, list[str]](list)
    cells = read_run_cells(run)
    for key in cells:
        completion = cells.parse_uncached(key).completion
        if completion is not None:
            texts[key.question_id].append(completion.text)
    for together in texts.values():
        yield [[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in together]


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    options.add_argument("runs", nargs="+", type=Path, help="stability runs with greedy answers")
    options.add_argument("--longest", nargs="+", type=int, default=[4, 8], help="most tokens of a draft")
    options.add_argument("--model", default="bundled", help="the model whose tokenizer is used")
    return options


def main() -> None:
    given = parser().parse_args()
    for run in given.runs:
        grid = list(answers_by_question(run, given.model))
        for longest in given.longest:
            counts = Replay()
            for answers in grid:
                counts = counts.plus(replay_question(answers, longest))
            about = {"run": str(run), "longest": longest, "n": sum(map(len, grid))}
            show("tokens_per_pass", counts.tokens / counts.passes, **about)
            show("computed_per_token", counts.computed / counts.tokens, **about)


if __name__ == "__main__":
    main()
