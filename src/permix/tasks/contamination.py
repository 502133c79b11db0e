"""A question seen in training is never asked in an evaluation.

Content is what counts, across tasks, files and splits: a MATH problem that stands in MATH-500 under another id is the same
question. A model that permix trained carries the hashes of its questions in a file beside its weights.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from permix.errors import ConfigError, DataError
from permix.storage.files import read_json, write_json
from permix.types import Question


def check_contamination(evaluation: Sequence[Question], trained_hashes: Collection[str]) -> None:
    """Raise ConfigError if any question's content hash was seen, naming how many were, and the first."""
    seen = set(trained_hashes)
    shared = [question for question in evaluation if question.content_hash in seen]
    if not shared:
        return
    first = shared[0]
    text = first.text if len(first.text) <= 120 else f"{first.text[:117]}..."
    raise ConfigError(
        f"{len(shared)} of {len(evaluation)} questions of this evaluation were seen in training, the first {first.id}: {text!r}; "
        f'evaluate with task.split = "heldout", with another task, or from a plan whose questions are not these'
    )


TRAINED_ON_FILE = "permix_seen_questions.json"


class TrainedOn(NamedTuple):
    """What a model was trained on: content hashes of questions, and ids of personas."""

    question_hashes: frozenset[str] = frozenset()
    persona_ids: frozenset[str] = frozenset()

    def __or__(self, other: "TrainedOn") -> "TrainedOn":
        return TrainedOn(self.question_hashes | other.question_hashes, self.persona_ids | other.persona_ids)


def write_trained_on(folder: Path, trained_on: TrainedOn) -> None:
    """Leave beside a model's weights, or above its checkpoints, what it was trained on."""
    write_json(
        folder / TRAINED_ON_FILE,
        {"content_hashes": sorted(trained_on.question_hashes), "persona_ids": sorted(trained_on.persona_ids)},
    )


def read_trained_on(folder: Path) -> TrainedOn:
    """What a model folder was trained on; nothing for a model that permix did not train.

    A checkpoint has its file in the folder above it.
    """
    found = TrainedOn()
    for place in (folder / TRAINED_ON_FILE, folder.parent / TRAINED_ON_FILE):
        if place.exists():
            content = read_json(place)
            lists = [content.get("content_hashes"), content.get("persona_ids", [])]
            if not all(isinstance(one, list) for one in lists):
                raise DataError(
                    f"{place}: content_hashes and persona_ids must be lists; train the model again or remove the file"
                )
            found |= TrainedOn(*map(frozenset, lists))
    return found
