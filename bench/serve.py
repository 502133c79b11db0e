"""Serves a local model behind an OpenAI-compatible endpoint: `python -m bench.serve --model FOLDER --port 8105`.

It replaces an inference server where none is at hand, to try permix over HTTP with a real model. Requests that wait at the same
time are decoded together, so a prefix that their prompts share is computed once. It offers chat completions and the list of
models, without a key, on 127.0.0.1 only.
"""

import argparse
import json
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from permix.config import ModelConfig
from permix.inference import load_model
from permix.inference.base import Model
from permix.types import Completion, Failure, Request, Sampling

BATCH_WAIT_S = 0.05
"""Seconds to wait for each further request of a batch."""


class PendingRequest(NamedTuple):
    """A request that waits for its result."""

    request: Request
    sampling: Sampling
    result: "Future[Completion | Failure]"


def serve_batches(model: Model, waiting: "queue.Queue[PendingRequest]", max_batch: int) -> None:
    """Answer the waiting requests in batches, endlessly. Requests of a batch with equal sampling are decoded together."""
    while True:
        batch = list(collect_batch(waiting, max_batch))
        for sampling in dict.fromkeys(pending.sampling for pending in batch):
            together = [pending for pending in batch if pending.sampling == sampling]
            try:
                for index, result in model.generate([pending.request for pending in together], sampling):
                    together[index].result.set_result(result)
            except Exception as error:  # the boundary: each client gets the error, and the server goes on
                for pending in together:
                    if not pending.result.done():
                        pending.result.set_exception(error)


def collect_batch(waiting: "queue.Queue[PendingRequest]", max_batch: int) -> Iterator[PendingRequest]:
    """Wait for a request and yield it; then yield up to `max_batch` - 1 others, until none comes for `BATCH_WAIT_S`."""
    yield waiting.get()
    for _ in range(max_batch - 1):
        try:
            yield waiting.get(timeout=BATCH_WAIT_S)
        except queue.Empty:
            return


def parse_request(body: dict[str, Any]) -> PendingRequest:
    """Read the body of a request for a chat completion. Raises KeyError or ValueError if it is none."""
    sampling = Sampling(
        temperature=body.get("temperature", 1.0), top_p=body.get("top_p", 1.0), max_new_tokens=body.get("max_tokens", 256)
    )
    return PendingRequest(Request(tuple(body["messages"]), body.get("seed") or 0), sampling, Future())


def completion_body(name: str, completion: Completion) -> dict[str, Any]:
    """Return the body of the response."""
    message = {"role": "assistant", "content": completion.text}
    prompt_tokens, completion_tokens = completion.prompt_tokens or 0, completion.completion_tokens or 0
    return {
        "object": "chat.completion",
        "model": name,
        "choices": [{"index": 0, "message": message, "finish_reason": completion.finish}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


def handler_class(name: str, waiting: "queue.Queue[PendingRequest]") -> type[BaseHTTPRequestHandler]:
    """Return the handler of HTTP requests. It puts each into the queue and waits for the result."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(200, {"object": "list", "data": [{"id": name, "object": "model"}]})

        def do_POST(self) -> None:
            try:
                pending = parse_request(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            except (KeyError, ValueError, TypeError) as error:
                self._send(400, {"error": {"message": f"not a chat completion: {error!r}"}})
                return
            waiting.put(pending)
            result = pending.result.result()
            if isinstance(result, Failure):
                self._send(400, {"error": {"message": f"{result.type}: {result.message}"}})
            else:
                self._send(200, completion_body(name, result))

        def _send(self, status: int, value: dict[str, Any]) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    return Handler


def make_server(model: Model, name: str, port: int, max_batch: int) -> ThreadingHTTPServer:
    """Return a server on 127.0.0.1, whose model already runs in another thread; the caller calls `serve_forever`."""
    waiting: queue.Queue[PendingRequest] = queue.Queue()
    threading.Thread(target=serve_batches, args=(model, waiting, max_batch), daemon=True).start()
    return ThreadingHTTPServer(("127.0.0.1", port), handler_class(name, waiting))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled", help='"bundled", a folder or a hub id')
    parser.add_argument("--name", default="local", help="the name that requests use")
    parser.add_argument("--port", type=int, default=8105, help="the port on 127.0.0.1")
    parser.add_argument("--together", type=int, default=32, help="most requests that are decoded together")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; by default all cores")
    return parser


def main() -> None:
    options = parser().parse_args()
    model = load_model(ModelConfig(name=options.model, batch_size=options.together), options.threads)
    server = make_server(model, options.name, options.port, options.together)
    print(f"http://127.0.0.1:{server.server_port}/v1", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
