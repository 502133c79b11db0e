"""Models behind one protocol. `LOADERS` is the only place that knows the engines."""

from collections.abc import Callable

from permix.config import ModelConfig
from permix.inference.base import CompletionResult, Model
from permix.inference.cache import cached_model

__all__ = ["LOADERS", "CompletionResult", "Model", "cached_model", "check_model", "load_model"]


def _load_transformers(config: ModelConfig, threads: int | None) -> Model:
    from permix.inference.hardware import set_threads

    set_threads(threads)
    from permix.inference.hf import HFModel

    return HFModel(config)


def _load_openai(config: ModelConfig, threads: int | None) -> Model:
    from permix.inference.openai import OpenAIModel

    return OpenAIModel(config)


LOADERS: dict[str, Callable[[ModelConfig, int | None], Model]] = {
    "transformers": _load_transformers,
    "openai": _load_openai,
}
"""What opens a model of each backend in `permix.config.BACKENDS`, given CPU threads. An engine is imported when it is used."""


def load_model(config: ModelConfig, threads: int | None = None) -> Model:
    """The model a configuration names; torch is imported, and its threads pinned, only for one in this process."""
    return LOADERS[config.backend](config, threads)


def check_model(config: ModelConfig, *, contact: bool) -> None:
    """Raise ConfigError for a model that is not to be had, without loading weights.

    In this process: a name that can only be a folder and is none. Elsewhere: an address or a key that cannot be one, and with
    `contact`, which asks the endpoint, one that does not answer.
    """
    if config.capabilities.is_local:
        from permix.inference.hf import check_model_folder

        check_model_folder(config.name)
        return
    model = load_model(config)
    if contact:
        _ = model.fingerprint
