"""Recognisability of fidelity runs: vectors that are kept and found again, and runs without an embedder."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import permix
from permix.config import FidelityConfig, ReportConfig
from permix.errors import ConfigError
from permix.evals.open_ended import (
    VECTORS_FILE,
    measure_recognisability,
    read_stored_vectors,
    run_open_ended,
    try_recognisability,
)
from permix.inference import embedder
from permix.metrics.recognisability import Recognisability
from permix.progress import print_status_once
from permix.report.builder import run_report
from permix.report.comparisons import compare_models
from permix.report.runs import collect_models
from permix.storage.files import read_json, write_json
from tests.sample_runs import asked_as, fidelity_config
from tests.servers import openai_server
from tests.tiny_encoder import write_encoder

VOICES = {
    "clerk": "Kindly note that it is in perfect order as per the enclosed form",
    "sailor": "Aye it takes me back the salt the wind matey",
    "troll": "Grr me no like me eat goat me sleep",
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(embedder, "find_bundled_embedder", lambda: None)  # also where the extra is installed


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


def in_character(body: Mapping[str, Any], nth: int, headers: Mapping[str, str]) -> str:
    return VOICES[asked_as(body) or "clerk"]


def make_run(folder: Path, **fields: Any) -> FidelityConfig:
    folder.mkdir(parents=True, exist_ok=True)
    with openai_server(in_character) as server:
        config = fidelity_config(folder, server.base_url, **fields)
        run_open_ended(config)
    return config


def test_vectors_are_kept_and_need_no_embedder_afterwards(
    tmp_path: Path, encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "encoder"
    shutil.copytree(encoder, gone)
    with openai_server(in_character) as server:
        config = fidelity_config(tmp_path, server.base_url, embedder=str(gone))
        run_open_ended(config)
        shutil.rmtree(gone)
        embedder.load_embedder.cache_clear()
        metrics = read_json(config.out / "metrics.json")
        found = measure_recognisability(config.out)
    assert metrics["recognisability"] == found.model_dump(mode="json")
    assert (found.n_asked, found.n_scored, found.persona_ids) == (36, 36, ("clerk", "sailor", "troll"))
    assert found.question_only.value == pytest.approx(1 / 3)
    assert found.embedder.startswith("encoder (")
    # All answers of a persona are alike, so each persona is recognised always or never.
    assert {one.value for one in found.per_persona} <= {0.0, 1.0}

    capsys.readouterr()
    run_report(ReportConfig(runs=(config.out,), out=tmp_path / "report"))
    assert "recognisability" in capsys.readouterr().out
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Recognisability and controls" in text
    assert "Recognisability was not measured" not in text
    assert read_json(tmp_path / "report" / "table.json")["recognisability"]["test"] == metrics["recognisability"]
    rows = {row["name"]: row for row in permix.FidelityRun(config.out).measures()}
    assert rows["recognisability.accuracy"]["value"] == found.accuracy.value
    assert permix.FidelityRun(config.out).recognisability == found


def test_a_finished_run_is_measured_afterwards_and_a_second_start_embeds_nothing(tmp_path: Path, encoder: Path) -> None:
    with openai_server(in_character) as server:
        run_open_ended(fidelity_config(tmp_path, server.base_url, embedder="none"))
        config = fidelity_config(tmp_path, server.base_url, embedder=str(encoder))
        assert not (config.out / VECTORS_FILE).exists()
        run_open_ended(config)
        assert len(server.asked) == 36
        written = (config.out / VECTORS_FILE).stat().st_mtime_ns
        run_open_ended(config)
    assert (config.out / VECTORS_FILE).stat().st_mtime_ns == written
    stored = read_stored_vectors(config.out / VECTORS_FILE)
    assert stored is not None
    # Three answers, twelve questions, three persona texts, and the lengths of the answers: 13, 10 and 9 words.
    assert (stored.name, len(stored.vectors)) == (str(encoder), 21)


def test_damaged_vectors_and_those_of_another_embedder_are_made_again(tmp_path: Path, encoder: Path) -> None:
    config = make_run(tmp_path, embedder=str(encoder))
    found, path = measure_recognisability(config.out), config.out / VECTORS_FILE
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"no archive"):
        path.write_bytes(content)
        assert read_stored_vectors(path) is None
        assert measure_recognisability(config.out) == found
    path.write_bytes(whole)
    other = write_encoder(tmp_path / "other", seed=3)
    write_json(config.out / "config.json", read_json(config.out / "config.json") | {"embedder": str(other)})
    assert measure_recognisability(config.out).embedder != found.embedder


def test_without_the_extra_all_else_is_measured_and_one_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_status_once.cache_clear()
    config = make_run(tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if "recognisability" in line]
    assert len(lines) == 1
    assert "note: recognisability was not measured: the extra embed is not installed: pip install" in lines[0]
    metrics = read_json(config.out / "metrics.json")
    assert metrics["accuracy"]["value"] == 1
    assert (metrics["recognisability"], metrics["recognisability_reason"]) == (None, "the extra embed is not installed")
    run_report(ReportConfig(runs=(config.out,), out=tmp_path / "report"))
    text = (tmp_path / "report" / "report.md").read_text()
    assert text.count("Recognisability was not measured for test: ") == 1
    assert "| recognisability" not in text
    with pytest.raises(ConfigError, match="the extra embed is not installed"):
        _ = permix.FidelityRun(config.out).recognisability
    assert not any(row["name"].startswith("recognisability") for row in permix.FidelityRun(config.out).measures())


def test_a_run_of_an_older_version_is_read(tmp_path: Path) -> None:
    config = make_run(tmp_path, embedder="none")
    values = read_json(config.out / "config.json")
    del values["embedder"]
    write_json(config.out / "config.json", values)
    assert try_recognisability(config.out) == (None, "the extra embed is not installed")
    assert collect_models([config.out])[0].recognisability is None


def test_an_embedder_that_is_not_there_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    with openai_server(in_character) as server:
        config = fidelity_config(tmp_path, server.base_url, embedder=str(tmp_path / "nowhere"))
        with pytest.raises(ConfigError, match="no such folder"):
            run_open_ended(config)
        assert not server.asked
    assert not config.out.exists()


def test_models_are_compared_by_question_and_only_by_the_same_embedder(tmp_path: Path, encoder: Path) -> None:
    runs = [make_run(tmp_path / name, embedder=str(encoder), label=name).out for name in ("one", "two")]
    other = write_encoder(tmp_path / "other", seed=3)
    runs.append(make_run(tmp_path / "three", embedder=str(other), label="three").out)
    one, two, three = collect_models(runs)
    same = compare_models(two, one)
    assert same.recognisability is not None
    assert (same.recognisability.value, same.recognisability.n, same.recognisability_reasons) == (0, 12, ())
    against = compare_models(three, one)
    assert against.recognisability is None
    assert against.recognisability_reasons[0].startswith("Not the same embedder (tiny (")
    assert against.fidelity_reasons == same.fidelity_reasons  # the embedder has no part in identifiability


def test_an_embedder_of_ones_own_in_python(tmp_path: Path) -> None:
    import numpy as np

    config = make_run(tmp_path, embedder="none")
    meanings = {"clerk": 0, "form": 0, "sailor": 1, "salt": 1, "troll": 2, "goat": 2}

    def embed(texts: Any) -> Any:
        return np.array([[sum(meanings.get(word) == one for word in text.split()) for one in range(3)] for text in texts])

    found = measure_recognisability(config.out, embed=embed)
    assert isinstance(found, Recognisability)
    assert (found.accuracy.value, found.embedder) == (1, "given in Python")
