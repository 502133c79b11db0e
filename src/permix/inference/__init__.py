"""Models behind one protocol. `load_model` is the only place that knows the engines."""

from permix.config import ModelConfig
from permix.inference.base import CompletionResult, Model
from permix.inference.cache import cached_model

__all__ = ["CompletionResult", "Model", "cached_model", "check_model", "load_model"]


def check_model(config: ModelConfig, *, contact: bool) -> None:
    """Raise ConfigError for a model that is not to be had, without loading weights.

    In this process: a name that can only be a folder and is none. Elsewhere: an address or a key that cannot be one, and with
    `contact`, which asks the endpoint, one that does not answer.
    """
    if config.backend == "transformers":
        from permix.inference.hf import check_model_folder

        check_model_folder(config.name)
        return
    model = load_model(config)
    if contact:
        _ = model.fingerprint


def load_model(config: ModelConfig, threads: int | None = None) -> Model:
    """The model a configuration names; torch is imported, and its threads pinned, only for one in this process."""
    if config.backend == "openai":
        from permix.inference.openai import OpenAIModel

        return OpenAIModel(config)
    from permix.inference.hardware import set_threads

    set_threads(threads)
    from permix.inference.hf import HFModel

    return HFModel(config)
