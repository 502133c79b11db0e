"""`permix judge`: the answers of a fidelity run, judged."""

from permix.config import JudgeStage


def judge(config: JudgeStage) -> None:
    """Judge, or go on judging, every answer of the run and the controls; nothing is generated anew."""
    raise NotImplementedError
