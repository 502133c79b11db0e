"""Load models behind one protocol. `LOADERS` is the only place that names the engines."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from permix.config import ModelConfig, build_config
from permix.errors import ConfigError, require_packages
from permix.inference.base import CompletionResult, Model
from permix.inference.cache import cached_model
from permix.sanitize import truncate

__all__ = [
    "LOADERS",
    "CompletionResult",
    "Model",
    "build_model_config",
    "cached_model",
    "check_model",
    "load_model",
    "require_model_packages",
]


def _load_transformers(config: ModelConfig, threads: int | None) -> Model:
    from permix.inference.hardware import set_threads
    from permix.inference.hf import HFModel

    require_model_packages(config)
    set_threads(threads)
    return HFModel(config)


def _load_vllm(config: ModelConfig, threads: int | None) -> Model:
    require_model_packages(config)
    from permix.inference.vllm import VLLMModel

    return VLLMModel(config)


def _load_openai(config: ModelConfig, threads: int | None) -> Model:
    from permix.inference.openai import OpenAIModel

    return OpenAIModel(config)


def _refuse_function(config: ModelConfig, threads: int | None) -> Model:
    raise ConfigError(f'model.backend = "python": {config.name!r} is a function; give it to permix.evaluate_stability again')


def _refuse_batch(config: ModelConfig, threads: int | None) -> Model:
    raise ConfigError(
        f'model.backend = "batch": {config.name!r} was asked by batch files; give --batch-out or --batch-in, or the address of '
        'an endpoint and backend = "openai"'
    )


LOADERS: dict[str, Callable[[ModelConfig, int | None], Model]] = {
    "transformers": _load_transformers,
    "openai": _load_openai,
    "batch": _refuse_batch,
    "vllm": _load_vllm,
    "python": _refuse_function,
}
"""For each backend in `permix.config.BACKENDS`: (config, CPU threads) -> model. An engine is imported when it is first used."""


def load_model(source: str | Path | ModelConfig, threads: int | None = None, *, name: str | None = None, **fields: Any) -> Model:
    """Load a model: "bundled", a folder, a hub id, or the URL of an OpenAI-compatible endpoint and the `name` that it serves.

    `fields`: other fields of the configuration's [model] section (`batch_size`, `dtype`, `concurrency`, `api_key_env` ...). They
    and `name` are ignored if `source` is a `ModelConfig`. Only a model in this process imports torch, and sets its CPU threads to
    `threads`. Raises ConfigError if the model cannot be loaded.
    """
    config = source if isinstance(source, ModelConfig) else build_model_config(source, name, **fields)
    return LOADERS[config.backend](config, threads)


def build_model_config(source: str | Path, name: str | None = None, **fields: Any) -> ModelConfig:
    """The [model] section for a folder, a hub id or an endpoint's URL. Raises ConfigError for an invalid field."""
    if not isinstance(source, str | Path):
        raise ConfigError(f"model = {truncate(repr(source), 80)}: must be a folder, a hub id, or the URL of an endpoint")
    if str(source).startswith(("http://", "https://")):
        if name is None:
            raise ConfigError(f"model = {str(source)!r}: is an endpoint; name one of the models that it serves with name=...")
        section: dict[str, Any] = {"backend": "openai", "base_url": str(source), "name": name}
    elif name is not None:
        raise ConfigError(
            f"name = {name!r}: the model {str(source)!r} has its own name; leave name out (label=... names it in tables)"
        )
    else:
        section = {"name": str(source)}
    return build_config(ModelConfig, section | fields, source="model")


def require_model_packages(config: ModelConfig) -> None:
    """Raise ConfigError, with the command that installs them, if packages that run the model in this process are missing."""
    from permix.inference.hf import require_local_packages

    require_local_packages(config.name)
    instead = "leave backend out, and transformers runs the model"
    require_packages(config.capabilities.packages, f'model.backend = "{config.backend}"', instead)


def check_model(config: ModelConfig, *, contact: bool) -> None:
    """Raise ConfigError if the model cannot be used, without loading weights.

    A model in this process cannot be used if its name can only be a folder and there is no such folder or, with `contact`, if a
    package is not installed; an endpoint, if its URL or key is malformed or, with `contact`, if it does not answer.
    """
    if config.capabilities.is_local:
        from permix.inference.hf import check_model_folder

        check_model_folder(config.name)
        if contact:
            require_model_packages(config)
        return
    if not contact and config.capabilities.answers_later:
        return  # nothing can be checked without the files
    model = load_model(config)
    if contact:
        _ = model.fingerprint
