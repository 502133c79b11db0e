"""A model of this machine behind an OpenAI-compatible endpoint: `python -m bench.serve --model FOLDER --port 8105`.

For seeing the whole way over HTTP with a real model where no inference server is at hand. Requests that wait together are decoded
together, so what their prompts share is read once. Chat completions and the list of models, nothing else; no key, localhost only.
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

TOGETHER_S = 0.05
"""How long the first request waits for others."""


class Asked(NamedTuple):
    request: Request
    sampling: Sampling
    answer: "Future[Completion | Failure]"


def answer_all(model: Model, waiting: "queue.Queue[Asked]", most: int) -> None:
    """Take what waits, decode it together by sampling, hand each its answer; for ever."""
    while True:
        batch = list(gather(waiting, most))
        for sampling in dict.fromkeys(one.sampling for one in batch):
            alike = [one for one in batch if one.sampling == sampling]
            try:
                for place, result in model.generate([one.request for one in alike], sampling):
                    alike[place].answer.set_result(result)
            except Exception as error:  # the boundary: whoever asked is told, the server goes on
                for one in alike:
                    if not one.answer.done():
                        one.answer.set_exception(error)


def gather(waiting: "queue.Queue[Asked]", most: int) -> Iterator[Asked]:
    yield waiting.get()
    for _ in range(most - 1):
        try:
            yield waiting.get(timeout=TOGETHER_S)
        except queue.Empty:
            return


def asked_of(body: dict[str, Any]) -> Asked:
    """Raises KeyError or ValueError for a body that is no chat completion."""
    sampling = Sampling(
        temperature=body.get("temperature", 1.0), top_p=body.get("top_p", 1.0), max_new_tokens=body.get("max_tokens", 256)
    )
    return Asked(Request(tuple(body["messages"]), body.get("seed") or 0), sampling, Future())


def reply_of(name: str, completion: Completion) -> dict[str, Any]:
    message = {"role": "assistant", "content": completion.text}
    read, written = completion.prompt_tokens or 0, completion.completion_tokens or 0
    return {
        "object": "chat.completion",
        "model": name,
        "choices": [{"index": 0, "message": message, "finish_reason": completion.finish}],
        "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
    }


def handler_for(name: str, waiting: "queue.Queue[Asked]") -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(200, {"object": "list", "data": [{"id": name, "object": "model"}]})

        def do_POST(self) -> None:
            try:
                asked = asked_of(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            except (KeyError, ValueError, TypeError) as error:
                self._send(400, {"error": {"message": f"not a chat completion: {error!r}"}})
                return
            waiting.put(asked)
            result = asked.answer.result()
            if isinstance(result, Failure):
                self._send(400, {"error": {"message": f"{result.type}: {result.message}"}})
            else:
                self._send(200, reply_of(name, result))

        def _send(self, status: int, value: dict[str, Any]) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    return Handler


def server_of(model: Model, name: str, port: int, most: int) -> ThreadingHTTPServer:
    """Bound to localhost, its model at work on a thread of its own; call `serve_forever`."""
    waiting: queue.Queue[Asked] = queue.Queue()
    threading.Thread(target=answer_all, args=(model, waiting, most), daemon=True).start()
    return ThreadingHTTPServer(("127.0.0.1", port), handler_for(name, waiting))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled", help='"bundled", a folder or a hub id')
    parser.add_argument("--name", default="local", help="the name it is served under")
    parser.add_argument("--port", type=int, default=8105)
    parser.add_argument("--together", type=int, default=32, help="requests decoded together")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; the machine's cores when not given")
    return parser


def main() -> None:
    args = parser().parse_args()
    model = load_model(ModelConfig(name=args.model, batch_size=args.together), args.threads)
    server = server_of(model, args.name, args.port, args.together)
    print(f"http://127.0.0.1:{server.server_port}/v1", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
