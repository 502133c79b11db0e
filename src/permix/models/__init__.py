"""Models behind one protocol. `open_model` is the only place that knows the engines."""

from permix.config import ModelConfig
from permix.models.base import Answer, Model
from permix.models.cache import cached

__all__ = ["Answer", "Model", "cached", "open_model"]


def open_model(config: ModelConfig, threads: int | None = None) -> Model:
    """The model a configuration names; torch is imported, and its threads pinned, only for one in this process."""
    if config.backend == "openai":
        from permix.models.openai import OpenAIModel

        return OpenAIModel(config)
    from permix.models.machine import pin_threads

    pin_threads(threads)
    from permix.models.hf import HFModel

    return HFModel(config)
