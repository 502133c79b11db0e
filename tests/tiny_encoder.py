"""A sentence encoder small enough to make in a test: BERT with one layer and seeded random weights, one token a word."""

import json
from pathlib import Path

WORDS = (
    "a", "aye", "back", "bridge", "clerk", "eat", "enclosed", "form", "goat", "grr", "in", "is", "it", "kindly", "like", "matey",
    "me", "no", "note", "order", "per", "perfect", "rain", "sailor", "salt", "sea", "sleep", "takes", "that", "the", "troll",
    "wind",
)  # fmt: skip
MAX_TOKENS = 12


def write_encoder(folder: Path, *, seed: int = 0, pooling: str = "mean_tokens", module: str = "Pooling") -> Path:
    """A folder as sentence-transformers writes it."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    parts = [{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}]
    parts.append({"idx": 1, "path": "1_Pooling", "type": f"sentence_transformers.models.{module}"})
    (folder / "modules.json").write_text(json.dumps(parts))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": MAX_TOKENS}))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({f"pooling_mode_{pooling}": True, "pooling_mode_max_tokens": False})
    )
    return folder
