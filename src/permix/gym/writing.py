"""`permix questions`: questions for one's own personas, written by a model, checked and kept."""

from pathlib import Path

from permix.config import QuestionsStage


def write_questions(config: QuestionsStage) -> Path:
    """Have them written, or go on; returns the file of questions."""
    raise NotImplementedError
