"""Make models from Python: from a function or object of the user (`wrap_model`), or from a script (`ScriptedModel`).

`ScriptedModel` is for tests, examples and dry runs of a whole pipeline. Its script is a function of the request, a mapping from
the last message's text to a reply, or a list of replies, used in order. A reply is a text, a `Completion` or a `Failure`. If the
function raises an OSError (TimeoutError, ConnectionError), the result is a `Failure`, as behind a real backend; any other
exception is an error of the script and propagates.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from permix.errors import ConfigError
from permix.inference.base import CompletionResult, Model
from permix.types import Completion, Failure, Message, Request, Sampling, digest

ScriptedReply = str | Completion | Failure

ReplyScript = Callable[[Request], ScriptedReply] | Mapping[str, ScriptedReply] | Sequence[ScriptedReply]


class ScriptedModel:
    """Implements `Model`. `requests` lists every request so far, in order. Words count as tokens."""

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


MessageFunction = Callable[[list[Message]], str]
"""(messages) -> the text of the answer."""


class FunctionModel:
    """Implements `Model` with a function of the user. It is called once for each request, in order, without the sampling.

    If it raises an exception or returns something other than a text, the result is a `Failure` of that request alone.
    """

    default_system: str | None = None
    content_addressed = False

    def __init__(self, function: MessageFunction, name: str | None = None) -> None:
        """`name` identifies the function when a run is resumed; without it, its qualified name and source do."""
        self.name = name or _qualified_name(function)
        self.fingerprint = digest("function", self.name, "" if name else _source_code(function))
        self._function = function

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[CompletionResult]:
        for index, request in enumerate(requests):
            yield CompletionResult(index, self._call(request))

    def _call(self, request: Request) -> Completion | Failure:
        try:
            return _to_completion(self._function([message.copy() for message in request.messages]))
        except Exception as error:  # a user's function may raise anything; only this cell fails, not the run
            return Failure(type=type(error).__name__, message=str(error))


class GeneratorModel:
    """Implements `Model` with an object of the user that has `generate(requests, sampling)`.

    `generate` yields pairs (index of the request, result) in any order, where a result is a `Completion`, a `Failure` or a text;
    or it yields texts in the order of the requests. `name` and `fingerprint` are those of the object if it has them.
    """

    default_system: str | None = None
    content_addressed = False

    def __init__(self, engine: Any, name: str | None = None) -> None:
        self.name = str(name or getattr(engine, "name", None) or _qualified_name(engine))
        own = getattr(engine, "fingerprint", None)
        self.fingerprint = str(own) if own else digest("generator", self.name, "" if name else _source_code(engine))
        self._engine = engine

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[CompletionResult]:
        for place, item in enumerate(self._engine.generate(requests, sampling)):
            index, result = (place, item) if isinstance(item, str) else item
            yield CompletionResult(index, result if isinstance(result, Completion | Failure) else _to_completion(result))


MODEL_ATTRIBUTES = ("name", "fingerprint", "content_addressed", "default_system", "generate")


def wrap_model(model: Any, name: str | None = None) -> Model:
    """Wrap a function, or an object with `generate`, as a `Model`; a `Model` is returned unchanged.

    Raises ConfigError for any other object, and without a `name` for a function whose source cannot be read.
    """
    if all(hasattr(model, attribute) for attribute in MODEL_ATTRIBUTES):
        if name is not None:
            raise ConfigError(f"name = {name!r}: the model {model.name!r} has its own name; leave name out")
        wrapped: Model = model
        return wrapped
    if hasattr(model, "save_pretrained"):
        raise ConfigError(
            "model: a network without its tokenizer cannot answer; save both into a folder and give its path, or give a "
            "function messages -> text"
        )
    if hasattr(model, "generate"):
        return GeneratorModel(model, name)
    if callable(model):
        return FunctionModel(model, name)
    raise ConfigError(
        f"model: {type(model).__name__} is not a model; give a folder, a hub id, what permix.load_model returns, a function "
        "messages -> text, or an object with generate(requests, sampling)"
    )


def _to_completion(text: object) -> Completion:
    if not isinstance(text, str):
        raise TypeError(f"the answer is {type(text).__name__}, not a text")
    return Completion(text=text, prompt_tokens=None, completion_tokens=None, finish=None)


def _unwrap(function: Any) -> Any:
    """The function or class whose source defines `function`: without partials, and the class of a callable object."""
    while isinstance(function, partial):
        function = function.func
    return function if inspect.isroutine(function) or inspect.isclass(function) else type(function)


def _qualified_name(function: Any) -> str:
    return str(_unwrap(function).__qualname__)


def _source_code(function: Any) -> str:
    """The source of a function or of an object's class. Raises ConfigError for code without a source file, and for a lambda,
    whose source is the whole line around it."""
    name = _qualified_name(function)
    bound = repr((function.args, function.keywords)) if isinstance(function, partial) else ""
    if not name.endswith("<lambda>"):
        try:
            return inspect.getsource(_unwrap(function)) + bound
        except (OSError, TypeError):
            pass
    raise ConfigError(
        f'model: the source of {name} cannot be read, so it cannot be distinguished from another function; give name="..."'
    )
