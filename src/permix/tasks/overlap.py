"""A question seen in training is never asked in an evaluation.

Content is what counts, across tasks, files and splits: a MATH problem that stands in MATH-500 under another id is the same
question.
"""

from collections.abc import Collection, Sequence

from permix.errors import ConfigError
from permix.types import Question


def refuse_overlap(evaluation: Sequence[Question], seen_hashes: Collection[str]) -> None:
    """Raise ConfigError if any question's content hash was seen, naming how many were, and the first."""
    seen = set(seen_hashes)
    shared = [question for question in evaluation if question.content_hash in seen]
    if not shared:
        return
    first = shared[0]
    text = first.text if len(first.text) <= 120 else f"{first.text[:117]}..."
    raise ConfigError(
        f"{len(shared)} of {len(evaluation)} questions of this evaluation were seen in training, the first {first.id}: {text!r}; "
        f'evaluate with task.split = "heldout", with another task, or from a plan whose questions are not these'
    )
