"""Runs whose models can be asked: at a scripted endpoint, and a small one on disk; and the requests of the page, by hand."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from permix.dashboard.folder import RunFolder
from permix.dashboard.server import TOKEN_HEADER, ViewerServer
from permix.dashboard.try_it import ASK_S, TryIt
from permix.storage.run_dir import RUN_FORMAT
from permix.types import Cell, Message
from tests.dashboard.fake_runs import line, put, stability_run
from tests.dashboard.test_view_server import Reply
from tests.sample_runs import OPEN_QUESTIONS, TEXTS, answered, endpoint

KEY = "PERMIX_TEST_KEY"


def cells_with_prompts() -> list[Cell]:
    """A clerk, a sailor and no persona × two sums: six cells, whose system messages are those that a run sends."""
    return [
        answered(
            id,
            "12",
            persona_id=persona,
            gold="12",
            messages=(
                *([Message(role="system", content=f"You are {TEXTS[persona]}.")] if persona else []),
                Message(role="user", content=text),
            ),
        )
        for persona in (None, "clerk", "sailor")
        for id, text in (("sum-a", "What is 7 + 5?"), ("sum-b", "What is 9 + 3?"))
    ]


def endpoint_run(run: Path, base_url: str, *, label: str = "served", **config: Any) -> Path:
    """A stability run whose model is at an endpoint, with the cells of `cells_with_prompts`."""
    section = endpoint(base_url, api_key_env=KEY)
    return stability_run(run, cells_with_prompts(), label=label, ended=True, model=section, task={"name": "arithmetic"}, **config)


def fidelity_run(run: Path, base_url: str) -> Path:
    """An open-ended fidelity run of the same endpoint: clerk and sailor × twelve questions, who cannot be mistaken."""
    said = {"clerk": "Kindly fill in the form, and sign it twice, please.", "sailor": "Arr! The wind be high, arr!"}
    cells = [
        answered(
            f"open-{number}",
            f"{said[persona]} {topic}",
            persona_id=persona,
            gold=None,
            messages=(
                Message(role="system", content=f"You are {TEXTS[persona]}."),
                Message(role="user", content=f"What do you think of {topic}?"),
            ),
        ).model_copy(update={"verdict": None})
        for persona in said
        for number, topic in enumerate(OPEN_QUESTIONS)
    ]
    config = {"stage": "fidelity", "label": "served", "model": endpoint(base_url, api_key_env=KEY), "seed": 0, "folds": 3}
    put(run, "config.json", config)
    put(run, "provenance.json", {"format": RUN_FORMAT, "command": ["permix", "fidelity"]})
    put(
        run,
        "grid.json",
        {"persona_ids": list(said), "question_ids": [f"open-{number}" for number in range(len(OPEN_QUESTIONS))], "samples": 1},
    )
    (run / "records.jsonl").write_bytes(b"".join(map(line, cells)))
    (run / ".lock").write_text("0")
    return run


def trained_run(run: Path, model: Path, *, label: str = "taught") -> Path:
    """A training that ended, with the files of `model` as its trained model."""
    settings = {"stage": "train", "method": "permix", "label": label, "model": {"name": "gone/base"}, "plan": {"steps": 1}}
    put(run, "config.json", settings | {"train": {"updates_per_rollout": 1}})
    put(run, "provenance.json", {"format": RUN_FORMAT, "command": ["permix", "train"]})
    (run / "log.jsonl").write_text('{"step": 1, "reward": 0.5}\n')
    (run / "model").mkdir()
    for file in model.iterdir():
        (run / "model" / file.name).symlink_to(file)
    return run


@contextmanager
def trying(root: Path) -> Iterator[TryIt]:
    """The tab's state over a folder that has been looked at once."""
    folder = RunFolder(root)
    folder.rescan()
    folder.poll()
    try_it = TryIt(folder)
    try:
        yield try_it
    finally:
        try_it.stop()


def question(*models: str, **fields: Any) -> dict[str, Any]:
    """A valid request with the user's own question, and other fields."""
    return {"models": list(models), "question_kind": "own", "question": "What is 7 + 5?"} | fields


def encode(value: Any) -> bytes:
    return json.dumps(value).encode()


def wait_for_answers(try_it: TryIt) -> dict[str, Any]:
    """What the page is sent once the question is answered. A loaded machine needs minutes: the process is niced."""
    end = time.monotonic() + ASK_S + 60
    while (found := try_it.answers())["busy"]:
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def asked(try_it: TryIt, *models: str, **fields: Any) -> dict[str, Any]:
    """Ask, and wait for the answers."""
    try_it.ask(encode(question(*models, **fields)))
    return wait_for_answers(try_it)


def post(server: ViewerServer, target: str, body: bytes, headers: Mapping[str, str] | None = None) -> Reply:
    """A POST as the page sends it, but for `headers`, of which an empty one is left out."""
    import http.client

    token = server.try_it.token if server.try_it else "x" * 43
    usual = {"Origin": server.url.rstrip("/"), TOKEN_HEADER: token, "Content-Type": "application/json"}
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        given = {name: value for name, value in (usual | dict(headers or {})).items() if value}
        connection.request("POST", target, body=body, headers=given)
        answer = connection.getresponse()
        return Reply(answer.status, dict(answer.getheaders()), answer.read())
    finally:
        connection.close()
