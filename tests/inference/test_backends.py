"""The registry of backends: what it holds, that nothing else tells them apart, and that a new one is a module and two entries."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import permix
from permix import cli
from permix.config import BACKENDS, BackendCapabilities, JudgeModelConfig, ModelConfig, StabilityConfig, TeacherConfig
from permix.errors import ConfigError
from permix.evals.stability import measure_stability
from permix.inference import LOADERS, Model, check_model, load_model
from permix.inference.base import CompletionResult
from permix.inference.cost import FREE
from permix.judges.runner import load_judge_price
from permix.storage.files import read_json
from permix.types import Completion, Failure, Request, Sampling, digest
from tests.sample_runs import solve, stability_values, toml

SOURCE = Path(permix.__file__).parent


def test_every_backend_has_a_loader_and_every_loader_a_backend() -> None:
    assert list(BACKENDS) == list(LOADERS)
    assert StabilityConfig().model.backend in BACKENDS


def test_no_file_tells_backends_apart_by_their_names() -> None:
    compared = re.compile(r"\.backend\s*(==|!=|in\b|not in\b)|(==|!=)\s*[\w.]+\.backend\b|match\s+[\w.]+\.backend\b")
    hits = {
        f"{path.relative_to(SOURCE)}:{number}: {line.strip()}"
        for path in SOURCE.rglob("*.py")
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
        if compared.search(line)
    }
    assert hits == set()


def test_what_is_asked_of_the_backends_there_are() -> None:
    assert BACKENDS["transformers"] == (True, False, False, True, True, True, False, (), False)
    assert BACKENDS["openai"] == (False, True, True, False, True, False, False, (), False)
    assert BACKENDS["batch"] == (False, True, False, False, True, False, True, (), False)
    assert BACKENDS["vllm"] == (True, False, False, True, True, False, False, ("vllm",), True)
    assert ModelConfig(backend="openai", base_url="http://h/v1").capabilities is BACKENDS["openai"]


def test_a_model_is_looked_at_without_being_loaded_or_asked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        check_model(ModelConfig(name=str(tmp_path / "nowhere")), contact=False)
    (tmp_path / "folder").mkdir()
    check_model(ModelConfig(name=str(tmp_path / "folder")), contact=True)  # what is in it is found when it is loaded
    nobody = ModelConfig(name="x", backend="openai", base_url="http://127.0.0.1:1/v1", retries=0)
    check_model(nobody, contact=False)
    with pytest.raises(ConfigError, match="no endpoint there"):
        check_model(nobody, contact=True)
    with pytest.raises(ConfigError, match="must be an http or https address"):
        check_model(nobody.model_copy(update={"base_url": "ftp://h/v1"}), contact=False)


# A backend added as CONTRIBUTING.md says: its module, its capabilities in `BACKENDS`, its loader in `LOADERS`


class AbacusModel:
    """Implements `Model`: it can only do sums, and at `retries = 0` it drops what it is asked under a persona."""

    default_system: str | None = None
    content_addressed = True

    def __init__(self, config: ModelConfig) -> None:
        self.name, self.fingerprint = config.name, digest("abacus", config.name)
        self._drops = config.retries == 0

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[CompletionResult]:
        for index, request in enumerate(requests):
            if self._drops and len(request.messages) > 1:
                yield CompletionResult(index, Failure(type="BeadLost", message="a bead rolled away"))
                continue
            text = str(solve(request.messages[-1]["content"]))
            yield CompletionResult(index, Completion(text=text, prompt_tokens=9, completion_tokens=1, finish="stop"))


@pytest.fixture
def abacus(monkeypatch: pytest.MonkeyPatch) -> list[ModelConfig]:
    """The backend "abacus"; every configuration that a model was loaded from, in order."""
    loaded: list[ModelConfig] = []

    def load_abacus(config: ModelConfig, threads: int | None) -> Model:
        loaded.append(config)
        return AbacusModel(config)

    capabilities = BackendCapabilities(is_local=False, is_priced=False, needs_base_url=False, content_addressed=True)
    monkeypatch.setitem(BACKENDS, "abacus", capabilities)
    monkeypatch.setitem(LOADERS, "abacus", load_abacus)
    return loaded


def config_file(folder: Path, **fields: Any) -> Path:
    path = folder / "config.toml"
    path.write_text(toml(stability_values(folder, "", model={"name": "beads", "backend": "abacus"} | fields)))
    return path


@pytest.mark.slow
def test_a_new_backend_is_measured_like_any_other(
    tmp_path: Path, abacus: list[ModelConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    path = config_file(tmp_path, retries=0)
    assert cli.run_cli(["check", str(path)]) == 0
    assert cli.run_cli(["stability", str(path)]) == 3  # 18 of 24 cells stay pending
    assert "BeadLost" in (tmp_path / "run/records.jsonl").read_text()
    more = ("--model.retries", "1", "--cache", str(tmp_path / "cache"))
    assert cli.run_cli(["stability", str(path), *more]) == 0
    assert measure_stability(tmp_path / "run").baseline.value == measure_stability(tmp_path / "run").mean.value == 1.0
    assert read_json(tmp_path / "run/config.json")["model"]["backend"] == "abacus"
    assert cli.run_cli(["stability", str(path), *more, "--out", str(tmp_path / "again")]) == 0
    assert "18 of 24 answers were cached" in capsys.readouterr().err
    assert [one.name for one in abacus] == ["beads"] * 4


def test_a_new_backend_is_named_on_the_command_line(
    tmp_path: Path, abacus: list[ModelConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(toml(stability_values(tmp_path, "", model={"name": "beads"})))
    assert cli.run_cli(["stability", str(path), "--model.backend", "abacus"]) == 0
    assert len(abacus) == 1
    with pytest.raises(SystemExit):
        cli.run_cli(["stability", "--help"])
    assert "--model.backend {transformers,openai,batch,vllm,abacus}" in capsys.readouterr().out


def test_capabilities_decide_what_a_configuration_may_say(abacus: list[ModelConfig]) -> None:
    judge = JudgeModelConfig(name="beads", backend="abacus")
    assert load_judge_price(judge) == FREE
    assert load_judge_price(JudgeModelConfig(name="beads", backend="openai", base_url="http://h/v1")) is None
    with pytest.raises(ValidationError, match='with backend "abacus" give the name that the endpoint serves'):
        TeacherConfig(backend="abacus")
    assert load_model(judge).name == "beads"
