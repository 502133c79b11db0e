"""A question seen in training is never asked in an evaluation.

Content is what counts, across tasks, files and splits: a MATH problem that stands in MATH-500 under another id is the same
question. A model that permix trained carries the hashes of its questions in a file beside its weights.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

from permix.errors import ConfigError, DataError
from permix.records import read_json, write_json
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


SEEN = "permix_seen_questions.json"


def write_seen(folder: Path, plan_hash: str, content_hashes: Collection[str]) -> None:
    """Leave beside a model's weights what it was trained on."""
    write_json(folder / SEEN, {"plan": plan_hash, "content_hashes": sorted(content_hashes)})


def read_seen(folder: Path) -> frozenset[str]:
    """Content hashes of the questions a model folder was trained on; empty for a model that permix did not train."""
    if not (folder / SEEN).exists():
        return frozenset()
    hashes = read_json(folder / SEEN).get("content_hashes")
    if not isinstance(hashes, list):
        raise DataError(f"{folder / SEEN}: content_hashes is not a list; train the model again or remove the file")
    return frozenset(hashes)
