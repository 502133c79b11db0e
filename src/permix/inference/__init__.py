"""Models behind one protocol. `load_model` is the only place that knows the engines."""

from permix.config import ModelConfig
from permix.inference.base import CompletionResult, Model
from permix.inference.cache import cached_model

__all__ = ["CompletionResult", "Model", "cached_model", "load_model"]


def load_model(config: ModelConfig, threads: int | None = None) -> Model:
    """The model a configuration names; torch is imported, and its threads pinned, only for one in this process."""
    if config.backend == "openai":
        from permix.inference.openai import OpenAIModel

        return OpenAIModel(config)
    from permix.inference.hardware import set_threads

    set_threads(threads)
    from permix.inference.hf import HFModel

    return HFModel(config)
