"""Arithmetic on scores and texts: no model, no files.

The functions of `__all__` are the part of it that the Python API offers; each is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from permix.metrics.identifiability import summarize_identifiability as summarize_identifiability
    from permix.metrics.judge_scores import estimate_persona_score as estimate_persona_score
    from permix.metrics.model_comparison import compare_scores as compare_scores
    from permix.metrics.recognisability import summarize_recognisability as summarize_recognisability
    from permix.metrics.right_in_character import summarize_right_in_character as summarize_right_in_character
    from permix.metrics.stability import summarize_stability as summarize_stability
    from permix.metrics.statistics import pss as pss

_MODULES = {
    "compare_scores": "permix.metrics.model_comparison",
    "estimate_persona_score": "permix.metrics.judge_scores",
    "pss": "permix.metrics.statistics",
    "summarize_identifiability": "permix.metrics.identifiability",
    "summarize_recognisability": "permix.metrics.recognisability",
    "summarize_right_in_character": "permix.metrics.right_in_character",
    "summarize_stability": "permix.metrics.stability",
}

__all__ = [
    "compare_scores",
    "estimate_persona_score",
    "pss",
    "summarize_identifiability",
    "summarize_recognisability",
    "summarize_right_in_character",
    "summarize_stability",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
