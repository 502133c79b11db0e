"""An engine that answers batch files, as `vllm run-batch` and hosted batch APIs do: it reads request files and writes results."""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.servers import Reply

Answer = Callable[[dict[str, Any]], Mapping[str, Any]]
"""(body of a request) -> the part of the result line without its ids."""


def requests_in(folder: Path) -> list[dict[str, Any]]:
    """The lines of the request files, in order."""
    return [json.loads(line) for path in sorted(folder.glob("requests-*.jsonl")) for line in path.read_text().splitlines()]


def completed(reply: str | Reply) -> dict[str, Any]:
    """A completion, as OpenAI and vLLM write it."""
    body = json.loads((Reply(reply) if isinstance(reply, str) else reply).body)
    return {"response": {"status_code": 200, "request_id": "req_1", "body": body}, "error": None}


def refused_by_openai(status: int, message: str, **fields: Any) -> dict[str, Any]:
    """An error as OpenAI writes it to the error file: in the body of the response."""
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None} | fields}
    return {"response": {"status_code": status, "request_id": "req_1", "body": body}, "error": None}


def refused_by_vllm(status: int, message: str) -> dict[str, Any]:
    """An error as vLLM writes it: apart from the response, which has the status."""
    error = {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}
    return {"response": {"status_code": status, "request_id": "vllm-batch-1", "body": None}, "error": error}


def expired() -> dict[str, Any]:
    """A request that OpenAI did not come to within the time of the batch."""
    return {"response": None, "error": {"code": "batch_expired", "message": "The completion window expired."}}


def result_line(custom_id: str, result: Mapping[str, Any]) -> str:
    return json.dumps({"id": "batch_req_1", "custom_id": custom_id, **result}) + "\n"


def run_batch(folder: Path, answer: Answer, *, files: int = 1, seed: int = 0, out: Path | None = None) -> list[Path]:
    """Answer every request of the folder: results in a shuffled order, in this number of files."""
    lines = [result_line(one["custom_id"], answer(one["body"])) for one in requests_in(folder)]
    random.Random(seed).shuffle(lines)
    paths = [(out or folder) / f"results-{number}.jsonl" for number in range(files)]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines[number::files]))
    return paths
