"""A model that answers from a script: for tests, examples and dry runs of a whole pipeline.

The script is a function of the request, a mapping from the last message's text, or a list of replies for the requests in order.
A reply is a text, a `Completion` or a `Failure`. An OSError that the function raises (TimeoutError, ConnectionError) becomes a
`Failure`, as with a real backend; any other exception is an error of the script and is raised.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from permix.inference.base import CompletionResult
from permix.types import Completion, Failure, Request, Sampling, digest

ScriptedReply = str | Completion | Failure

ReplyScript = Callable[[Request], ScriptedReply] | Mapping[str, ScriptedReply] | Sequence[ScriptedReply]


class ScriptedModel:
    """Implements `Model`. `requests` holds every request so far, in order. A token is a word."""

    default_system: str | None = None
    content_addressed = True

    def __init__(self, script: ReplyScript, name: str = "scripted") -> None:
        self.name = name
        self.fingerprint = digest("scripted", name)
        self.requests: list[Request] = []
        self._script = script

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[CompletionResult]:
        for index, request in enumerate(requests):
            self.requests.append(request)
            yield CompletionResult(index, self._result(request))

    def _result(self, request: Request) -> Completion | Failure:
        try:
            reply = self._look_up(request)
        except OSError as error:
            return Failure(type=type(error).__name__, message=str(error))
        if not isinstance(reply, str):
            return reply
        prompt_tokens = sum(len(message["content"].split()) for message in request.messages)
        return Completion(text=reply, prompt_tokens=prompt_tokens, completion_tokens=len(reply.split()), finish="stop")

    def _look_up(self, request: Request) -> ScriptedReply:
        if callable(self._script):
            return self._script(request)
        if isinstance(self._script, Mapping):
            return self._script[request.messages[-1]["content"]]
        if len(self.requests) > len(self._script):
            raise IndexError(f"model {self.name!r} got {len(self.requests)} requests; its script has {len(self._script)} replies")
        return self._script[len(self.requests) - 1]
