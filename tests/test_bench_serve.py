"""The endpoint that serves a local model, asked by our own client; and the agreement of a judge with a classifier."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.judge_agreement import correlation
from bench.serve import make_server
from permix.config import ModelConfig
from permix.inference.openai import OpenAIModel
from permix.inference.scripted import ScriptedModel
from permix.types import Completion, Failure, Message, Request, Sampling


def echo(request: Request) -> str | Failure:
    said = request.messages[-1]["content"]
    return Failure(type="TooLong", message="too long") if said == "too much" else f"{said}!"


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with make_server(ScriptedModel(echo), "parrot", 0, max_batch=4) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def test_every_request_gets_its_own_answer_or_its_own_failure(endpoint: str) -> None:
    model = OpenAIModel(ModelConfig(name="parrot", backend="openai", base_url=endpoint, retries=0))
    words = [f"word {number}" for number in range(9)] + ["too much"]
    asked = [Request((Message(role="user", content=word),), seed) for seed, word in enumerate(words)]
    found = {words[answer.request_index]: answer.result for answer in model.generate(asked, Sampling())}
    refused = found.pop("too much")
    assert isinstance(refused, Failure)
    assert "TooLong: too long" in refused.message
    assert {word: one.text for word, one in found.items() if isinstance(one, Completion)} == {
        word: f"{word}!" for word in words[:-1]
    }


def test_personas_that_are_named_and_scored_alike_correlate(tmp_path: Path) -> None:
    share_P_M = np.array([[0.1, 0.3], [0.2, 0.4], [0.6, 0.8]])  # the second run lies 0.2 above the first, which is subtracted
    counts_R_P = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [3.0, 0.0, 0.0]])
    same, opposite = (correlation(share_P_M, sign * share_P_M + 3, counts_R_P) for sign in (2.0, -1.0))
    assert same[:2] == pytest.approx([1.0, 1.0])
    assert opposite[:2] == pytest.approx([-1.0, -1.0])
    assert np.isnan(same[2])  # one persona alone varies with nothing
