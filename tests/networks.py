"""Tiny networks of several families, untaught, with weights large enough that what they say depends on all they read."""

from collections.abc import Callable
from typing import Any

SHAPE = {
    "vocab_size": 322, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "initializer_range": 0.15, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
WINDOW = 5
"""Tokens that a sliding layer sees: fewer than the tests' prompts have."""


def _llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SHAPE, num_hidden_layers=3, tie_word_embeddings=True))


def _qwen2() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sliding = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE, **sliding, num_hidden_layers=3))


def _qwen3() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, num_hidden_layers=2, head_dim=32, tie_word_embeddings=True))


def _gemma3() -> Any:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    options = {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": WINDOW, "layer_types": kinds}
    return Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, **options, num_hidden_layers=3))


def seeded(make: Callable[[], Any]) -> Callable[[], Any]:
    def made() -> Any:
        import torch

        torch.manual_seed(0)
        return make()

    return made


NETWORKS: dict[str, Callable[[], Any]] = {
    "llama": seeded(_llama), "qwen2-sliding": seeded(_qwen2), "qwen3": seeded(_qwen3), "gemma3": seeded(_gemma3),
}  # fmt: skip
