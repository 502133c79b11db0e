"""Models behind one protocol. `open_model` is the only place that knows the engines."""

from permix.config import ModelConfig
from permix.inference.base import Answer, Model
from permix.inference.cache import cached

__all__ = ["Answer", "Model", "cached", "open_model"]


def open_model(config: ModelConfig, threads: int | None = None) -> Model:
    """The model a configuration names; torch is imported, and its threads pinned, only for one in this process."""
    if config.backend == "openai":
        from permix.inference.openai import OpenAIModel

        return OpenAIModel(config)
    from permix.inference.hardware import pin_threads

    pin_threads(threads)
    from permix.inference.hf import HFModel

    return HFModel(config)
