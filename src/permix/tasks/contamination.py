"""Refuse evaluations on questions that the model was trained on.

Questions are compared by content, across tasks, files and splits: a MATH problem that MATH-500 has under another id is the same
question. permix writes the hashes of the training questions, and the personas' ids, to a file next to a model's weights.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from permix.errors import ConfigError, DataError
from permix.storage.files import read_json, write_json
from permix.types import Question


def check_contamination(evaluation: Sequence[Question], trained_hashes: Collection[str]) -> None:
    """Raise ConfigError if the content hash of a question is in `trained_hashes`; the message has their number and the first."""
    seen = set(trained_hashes)
    shared = [question for question in evaluation if question.content_hash in seen]
    if not shared:
        return
    first = shared[0]
    text = first.text if len(first.text) <= 120 else f"{first.text[:117]}..."
    raise ConfigError(
        f"{len(shared)} of {len(evaluation)} questions of this evaluation were seen in training, the first {first.id}: {text!r}; "
        f'evaluate with task.split = "heldout" or with another task, or train from a plan without these questions'
    )


TRAINED_ON_FILE = "permix_seen_questions.json"


class TrainedOn(NamedTuple):
    """The training data of a model: content hashes of its questions, and ids of its personas."""

    question_hashes: frozenset[str] = frozenset()
    persona_ids: frozenset[str] = frozenset()

    def __or__(self, other: "TrainedOn") -> "TrainedOn":
        return TrainedOn(self.question_hashes | other.question_hashes, self.persona_ids | other.persona_ids)


def write_trained_on(folder: Path, trained_on: TrainedOn) -> None:
    """Write `TRAINED_ON_FILE` into a model's folder, or into the folder that contains its checkpoints."""
    write_json(
        folder / TRAINED_ON_FILE,
        {"content_hashes": sorted(trained_on.question_hashes), "persona_ids": sorted(trained_on.persona_ids)},
    )


def read_trained_on(folder: Path) -> TrainedOn:
    """The training data of the model in a folder; empty for a model that permix did not train.

    The file of a checkpoint is in the folder above it. Raises DataError if the file is malformed.
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
