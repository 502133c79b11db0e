"""A model run in this process by transformers: batched, left-padded, sorted by length.

Every request is sampled from its own stream of uniform numbers, so a cell's draws do not depend on the batch it travels in. What
can still differ with the batch is the last bits of the logits (another padding means another order of floating-point additions),
which flips a token only when a draw, or two nearly equal logits, stand within them.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from permix.config import ModelConfig
from permix.errors import ConfigError, PermixError
from permix.models.base import Answer
from permix.models.bundled import bundled_folder
from permix.models.machine import pick_device, pick_dtype
from permix.types import Completion, Failure, Message, Request, Sampling, digest

if TYPE_CHECKING:
    import torch

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "*.txt")


def refuse_missing_folder(name: str) -> None:
    """Raise ConfigError for a name that can only be a folder and is none: hub ids have at most one slash and none in front."""
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not Path(name).is_dir():
        raise ConfigError(f"model.name = {name!r}: no such folder")


def resolve(name: str) -> str:
    """The folder or hub id behind a model name; "bundled" is converted on first use."""
    refuse_missing_folder(name)
    return str(bundled_folder()) if name == "bundled" else name


def folder_fingerprint(folder: Path) -> str:
    """Hash of a model folder's weights, configuration, tokenizer and chat template."""
    sha = hashlib.sha256()
    for file in sorted({path for pattern in WEIGHT_FILES for path in folder.glob(pattern)}):
        with file.open("rb") as content:
            sha.update(f"{file.name}:{hashlib.file_digest(content, 'sha256').hexdigest()};".encode())
    return sha.hexdigest()[:16]


def load_tokenizer(source: str) -> Any:
    """The tokenizer, padding on the left. Raises ConfigError when its chat template is missing or drops system messages."""
    from transformers import AutoTokenizer

    tokenizer = _load(AutoTokenizer, source)
    if not tokenizer.chat_template:
        raise ConfigError(f"model.name = {source!r}: its tokenizer has no chat template, so it cannot be given a persona")
    if _system_frame(tokenizer) is None:
        raise ConfigError(f"model.name = {source!r}: its chat template takes no system message, so it cannot be given a persona")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_weights(source: str, dtype: "torch.dtype", device: str) -> Any:
    """The causal language model, in evaluation mode."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return _load(AutoModelForCausalLM, source, dtype=dtype).to(device).eval()


def _load(cls: Any, source: str, **options: Any) -> Any:
    try:
        return cls.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.name = {source!r}: cannot be loaded: {error}") from error


def encode_chat(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of the chat up to where the answer begins."""
    return list(tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=True)["input_ids"])


def completion_ids(text: str, tokenizer: Any) -> list[int]:
    """A completion's own tokens, without its end."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


class _Frame(NamedTuple):
    """What a chat template writes before the system text, and between it and the user's."""

    before: str
    after: str


def _system_frame(tokenizer: Any) -> _Frame | None:
    """None when the template refuses a system message or leaves its text out."""
    from jinja2 import TemplateError

    messages = [{"role": "system", "content": "\x01"}, {"role": "user", "content": PROBE}]
    try:
        marked = tokenizer.apply_chat_template(messages, tokenize=False)
    except TemplateError:
        return None
    before, found, rest = marked.partition("\x01")
    return _Frame(before, rest[: rest.index(PROBE)]) if found else None


def default_system_text(tokenizer: Any) -> str | None:
    """The system text a chat template inserts by itself: what stands where an explicit one would."""
    frame = _system_frame(tokenizer)
    if frame is None:
        return None
    alone = tokenizer.apply_chat_template([{"role": "user", "content": PROBE}], tokenize=False)
    head = alone[: alone.index(PROBE)]
    if not (head.startswith(frame.before) and head.endswith(frame.after)) or len(head) < len(frame.before) + len(frame.after):
        return None
    return head[len(frame.before) : len(head) - len(frame.after)] or None


PROBE = "\x00probe\x00"


class HFModel:
    """`permix.models.base.Model` over a local folder or hub id."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.source = resolve(config.name)
        self.device = pick_device()
        self.dtype = pick_dtype(config.dtype, self.device)
        self.tokenizer = load_tokenizer(self.source)
        self.network = load_weights(self.source, self.dtype, self.device)

    @property
    def name(self) -> str:
        return self.config.name

    @cached_property
    def fingerprint(self) -> str:
        folder = Path(self.source)
        content = folder_fingerprint(folder) if folder.is_dir() else f"{self.source}@{self.network.config._commit_hash}"
        return digest(content, str(self.dtype))

    @cached_property
    def default_system(self) -> str | None:
        return default_system_text(self.tokenizer)

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Answer]:
        prompts = [encode_chat(self.tokenizer, request.messages) for request in requests]
        limit = self.network.config.max_position_embeddings - sampling.max_new_tokens
        fitting = []
        for index, prompt in enumerate(prompts):
            if len(prompt) > limit:
                message = f"the prompt has {len(prompt)} tokens; {limit} fit beside {sampling.max_new_tokens} new ones"
                yield Answer(index, Failure(type="PromptTooLong", message=message))
            else:
                fitting.append(index)
        fitting.sort(key=lambda index: len(prompts[index]), reverse=True)
        for start in range(0, len(fitting), self.config.batch_size):
            batch = fitting[start : start + self.config.batch_size]
            completions = self._decode([prompts[i] for i in batch], [requests[i].seed for i in batch], sampling)
            yield from map(Answer, batch, completions)

    def _decode(self, prompts: list[list[int]], seeds: list[int], sampling: Sampling) -> list[Completion]:
        completions = decode(self.network, self.tokenizer, prompts, seeds, sampling)
        return [self._completion(len(prompt), ids) for prompt, ids in zip(prompts, completions, strict=True)]

    def _completion(self, prompt_tokens: int, ids: list[int]) -> Completion:
        stopped = bool(ids) and ids[-1] in stop_ids(self.network, self.tokenizer)
        text = self.tokenizer.decode(ids[:-1] if stopped else ids, skip_special_tokens=True)
        return Completion(
            text=text, prompt_tokens=prompt_tokens, completion_tokens=len(ids), finish="stop" if stopped else "length"
        )


def stop_ids(network: Any, tokenizer: Any) -> list[int]:
    """Token ids that end a completion: the generation config's, and the tokenizer's own."""
    configured = network.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({one for one in (*ids, tokenizer.eos_token_id) if one is not None})


def decode(
    network: Any, tokenizer: Any, prompts: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling
) -> list[list[int]]:
    """Complete token-id prompts in one batch. Each completion ends with its stop token, or has `max_new_tokens` tokens."""
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    batch = tokenizer.pad({"input_ids": list(prompts)}, padding=True, return_tensors="pt").to(network.device)
    width = batch["input_ids"].shape[1]
    processors = LogitsProcessorList([SeededSampler(seeds, sampling, width)] if sampling.temperature > 0 else [])
    stops = stop_ids(network, tokenizer)
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=sampling.max_new_tokens, eos_token_id=stops, pad_token_id=tokenizer.pad_token_id
    )
    with torch.inference_mode(), _without_defaults(network):
        output_B_T = network.generate(**batch, generation_config=settings, logits_processor=processors)
    return [_until_stop(ids, set(stops)) for ids in output_B_T[:, width:].tolist()]


@contextmanager
def _without_defaults(network: Any) -> Iterator[None]:
    """Only what is asked for counts: a model's own generation defaults (a repetition penalty, say) would change what is drawn."""
    from transformers import GenerationConfig

    own, network.generation_config = network.generation_config, GenerationConfig()
    try:
        yield
    finally:
        network.generation_config = own


def _until_stop(ids: list[int], stops: set[int]) -> list[int]:
    """Cut after the first stop token: padding is often that same token, so counting pads would miscount."""
    end = next((place for place, one in enumerate(ids) if one in stops), None)
    return ids if end is None else ids[: end + 1]


class SeededSampler:
    """A logits processor that draws each row's next token from that row's own uniform stream, by inverting the distribution.

    It leaves only the drawn token possible, so greedy decoding after it picks exactly that one.
    """

    def __init__(self, seeds: Sequence[int], sampling: Sampling, prompt_width: int) -> None:
        import torch

        self.sampling, self.prompt_width = sampling, prompt_width
        # NumPy's generators take all 63 bits of a seed; torch's on the CPU would keep 32.
        draws_B_T = np.stack([np.random.default_rng(seed).random(sampling.max_new_tokens) for seed in seeds])
        self.uniform_B_T = torch.from_numpy(draws_B_T)

    def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        import torch

        uniform_B = self.uniform_B_T[:, input_ids.shape[1] - self.prompt_width].to(scores.device)
        chosen_B = draw(torch.softmax(scores.float() / self.sampling.temperature, dim=-1), uniform_B, self.sampling.top_p)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen_B[:, None], 0.0)


def draw(probs_B_V: "torch.Tensor", uniform_B: "torch.Tensor", top_p: float) -> "torch.Tensor":
    """The token whose share of the (nucleus-cut) cumulative distribution each uniform number falls into; shape [B]."""
    import torch

    if top_p >= 1:
        return _invert(probs_B_V, uniform_B)
    ordered_B_V, order_B_V = probs_B_V.sort(dim=-1, descending=True, stable=True)
    # A token stays when the mass before it is still short of top_p: the first one always does.
    before_B_V = ordered_B_V.cumsum(-1) - ordered_B_V
    rank_B = _invert(torch.where(before_B_V < top_p, ordered_B_V, 0.0), uniform_B)
    return order_B_V.gather(1, rank_B[:, None])[:, 0]


def _invert(mass_B_V: "torch.Tensor", uniform_B: "torch.Tensor") -> "torch.Tensor":
    """Find each target first among blocks of the vocabulary, then inside its block: a running sum over all of it is slow."""
    import torch

    padded_B_V = torch.nn.functional.pad(mass_B_V, (0, -mass_B_V.shape[1] % BLOCK))
    blocks_B_N_K = padded_B_V.double().view(len(mass_B_V), -1, BLOCK)
    cumulative_B_N = blocks_B_N_K.sum(-1).cumsum(-1)
    if not bool((cumulative_B_N[:, -1] > 0).all()):
        raise PermixError("the model's probabilities are not numbers: its weights have diverged, or its precision is too low")
    target_B = uniform_B * cumulative_B_N[:, -1]
    block_B = _first_above(cumulative_B_N, target_B)
    row_B = torch.arange(len(block_B), device=block_B.device)
    before_B = torch.where(block_B > 0, cumulative_B_N[row_B, (block_B - 1).clamp(min=0)], 0.0)
    inside_B = _first_above(blocks_B_N_K[row_B, block_B].cumsum(-1), target_B - before_B)
    return block_B * BLOCK + inside_B


def _first_above(cumulative_B_N: "torch.Tensor", target_B: "torch.Tensor") -> "torch.Tensor":
    """Index of the first running sum above the target; by rounding a target may reach the last one, which then it is.

    The last one that grew, that is: an entry of no mass, such as padding or a token cut from the nucleus, is never drawn.
    """
    import torch

    place_B = torch.searchsorted(cumulative_B_N, target_B[:, None], right=True)[:, 0]
    last_B = torch.searchsorted(cumulative_B_N, cumulative_B_N[:, -1:].contiguous(), right=False)[:, 0]
    return torch.minimum(place_B, last_B)


BLOCK = 256
