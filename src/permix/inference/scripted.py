"""Make models from Python: from a function or object of the user (`wrap_model`), or from a script (`ScriptedModel`).

`ScriptedModel` is for tests, examples and dry runs of a whole pipeline. Its script is a function of the request, a mapping from
the last message's text to a reply, or a list of replies, used in order. A reply is a text, a `Completion` or a `Failure`. If the
function raises an OSError (TimeoutError, ConnectionError), the result is a `Failure`, as behind a real backend; any other
exception is an error of the script and propagates.
"""

import ast
import functools
import inspect
import textwrap
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import CodeType, FunctionType
from typing import Any

from permix.errors import ConfigError, EndpointStoppedError
from permix.inference.base import CompletionResult, Model
from permix.inference.pacing import MAX_FAILURES_IN_A_ROW
from permix.storage.rows import is_whole_number, quote_value
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
    """Implements `Model` with a function of the user. It is called once for each request, without the sampling.

    If it raises an exception or returns something other than a text, the result is a `Failure` of that request alone. Requests
    are asked in order; after a failure the next ones are taken from all over the pending requests, as behind an endpoint, since
    those of one persona may fail for a reason of their own. `MAX_FAILURES_IN_A_ROW` failures without a text in between end the
    run: `generate` raises EndpointStoppedError.
    """

    default_system: str | None = None
    content_addressed = False

    def __init__(self, function: MessageFunction, name: str | None = None) -> None:
        """`name` identifies the function when a run is resumed; without it, its qualified name and source do, and the values that
        it carries. `former_fingerprint` is the one of earlier versions, without these values, where the source says them all.

        Raises ConfigError for a function that can never work, and without a `name` for one whose source does not identify it.
        """
        self.name = name or _qualified_name(function)
        _require_callable(
            function, 1, f"model: {_qualified_name(function)}", "the messages alone; give a function messages -> text"
        )
        self.fingerprint = digest("function", self.name, "" if name else _source_identity(function))
        self.former_fingerprint = None if name else _former_fingerprint(self.name, function)
        self._function = function
        self._n_failures = 0  # since the last text

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[CompletionResult]:
        waiting = deque(range(len(requests)))
        while waiting:
            place = min(self._n_failures * len(waiting) // MAX_FAILURES_IN_A_ROW, len(waiting) - 1)
            index = waiting[place]
            del waiting[place]
            result = self._call(requests[index])
            self._n_failures = self._n_failures + 1 if isinstance(result, Failure) else 0
            yield CompletionResult(index, result)
            if isinstance(result, Failure) and self._n_failures >= MAX_FAILURES_IN_A_ROW and waiting:
                n_failures, self._n_failures = self._n_failures, 0
                raise EndpointStoppedError(
                    f"the function {self.name} was asked no more after {n_failures} failures in a row", result.message
                )

    def _call(self, request: Request) -> Completion | Failure:
        try:
            return _to_completion(self._function([message.copy() for message in request.messages]))
        except Exception as error:  # a user's function may raise anything; only this cell fails, not the run
            return Failure(type=type(error).__name__, message=_exception_text(error))


class GeneratorModel:
    """Implements `Model` with an object of the user that has `generate(requests, sampling)`.

    `generate` yields pairs (index of the request, result) in any order, where a result is a `Completion`, a `Failure` or a text;
    or it yields texts in the order of the requests. Any other result of a pair is a `Failure` of its request. `name` and
    `fingerprint` are those of the object if it has them.
    """

    default_system: str | None = None
    content_addressed = False

    def __init__(self, engine: Any, name: str | None = None) -> None:
        """`name` and `fingerprint` identify the object when a run is resumed; without them, its class's source does.

        Raises ConfigError for a `generate` that can never work, and for an object that its class's source does not identify.
        """
        self.name = str(name or getattr(engine, "name", None) or _qualified_name(engine))
        self._place = f"model: generate of {_qualified_name(engine)}"
        _require_callable(engine.generate, 2, self._place, "requests and sampling: generate(requests, sampling)")
        own = getattr(engine, "fingerprint", None)
        self.fingerprint = str(own) if own else digest("generator", self.name, "" if name else _source_identity(engine))
        self._engine = engine

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[CompletionResult]:
        """Raises ConfigError if the object yields something that belongs to no request."""
        results = self._engine.generate(requests, sampling)
        if not isinstance(results, Iterable):
            raise ConfigError(f"{self._place}: returned {type(results).__name__}; {_WHAT_GENERATE_YIELDS}")
        answered = set[int]()
        for place, item in enumerate(results):
            is_pair = isinstance(item, tuple | list) and len(item) == 2
            index, result = item if is_pair else (place, item)
            if not (is_pair or isinstance(item, str | Completion | Failure)):
                raise ConfigError(f"{self._place}: item {place} is {type(item).__name__}; {_WHAT_GENERATE_YIELDS}")
            if not is_whole_number(index):
                wrong = f"item {place} begins with {quote_value(index)}, which is no index of a request"
                raise ConfigError(f"{self._place}: {wrong}; {_WHAT_GENERATE_YIELDS}")
            index = int(index)
            if not 0 <= index < len(requests):
                raise ConfigError(
                    f"{self._place}: item {place} is for the request {index}, of {len(requests)}, whose indices begin with 0; "
                    "give one answer for each"
                )
            if index in answered:
                raise ConfigError(
                    f"{self._place}: item {place} is for the request {index}, which has an answer already; give each one"
                )
            answered.add(index)
            yield CompletionResult(index, result if isinstance(result, Completion | Failure) else _completion_or_failure(result))


_WHAT_GENERATE_YIELDS = "it must yield the answers' texts in order, or pairs (index of a request, text)"


MODEL_ATTRIBUTES = ("name", "fingerprint", "content_addressed", "default_system", "generate")


def wrap_model(model: Any, name: str | None = None) -> Model:
    """Wrap a function, or an object with `generate`, as a `Model`; a `Model` is returned unchanged.

    Raises ConfigError for any other object, for a function that can never work, and without a `name` for a function or an object
    that its source does not identify.
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
    if callable(getattr(model, "generate", None)):
        return GeneratorModel(model, name)
    if callable(model):
        return FunctionModel(model, name)
    raise ConfigError(
        f"model: {type(model).__name__} is not a model; give a folder, a hub id, what permix.load_model returns, a function "
        "messages -> text, or an object with generate(requests, sampling)"
    )


def _to_completion(text: object) -> Completion:
    if inspect.iscoroutine(text):
        text.close()  # nobody will await it, and Python would print a warning for each
        raise TypeError("the answer is a coroutine, not a text; call the async function by asyncio.run")
    if not isinstance(text, str):
        raise TypeError(f"the answer is {type(text).__name__}, not a text")
    return Completion(text=text, prompt_tokens=None, completion_tokens=None, finish=None)


def _completion_or_failure(text: object) -> Completion | Failure:
    try:
        return _to_completion(text)
    except TypeError as error:
        return Failure(type="TypeError", message=str(error))


def _exception_text(error: Exception) -> str:
    try:
        return str(error)
    except Exception as inner:  # a user's exception may not even have a text
        return f"(its text cannot be read: {type(inner).__name__})"


def _require_callable(function: Any, n_arguments: int, name: str, what: str) -> None:
    """Raise ConfigError for an async function, and for one that cannot take `n_arguments`; a function that yields cannot answer a
    single request either. `what` says what it is called with."""
    code = _unwrap_partial(function)
    code = code if inspect.isroutine(code) or inspect.isclass(code) else type(code).__call__
    if inspect.iscoroutinefunction(code) or inspect.isasyncgenfunction(code):
        instead = (
            'such as lambda messages: asyncio.run(agent(messages)), with name="..."' if n_arguments == 1 else "and yields texts"
        )
        raise ConfigError(f"{name} is an async function, which nobody awaits; give a plain function that runs it, {instead}")
    if n_arguments == 1 and inspect.isgeneratorfunction(code):
        raise ConfigError(f"{name} yields, so it returns no text; give a function messages -> text")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of code that is not Python
        return
    try:
        signature.bind(*[None] * n_arguments)
    except TypeError as error:
        raise ConfigError(f"{name} cannot be called ({error}) with {what}") from error


def _unwrap_partial(function: Any) -> Any:
    while isinstance(function, partial):
        function = function.func
    return function


def _unwrap(function: Any) -> Any:
    """The function or class whose source defines `function`: without partials, and the class of a callable object."""
    function = _unwrap_partial(function)
    return function if inspect.isroutine(function) or inspect.isclass(function) else type(function)


def _qualified_name(function: Any) -> str:
    return str(_unwrap_transparent(function).__qualname__)


def _source_identity(function: Any) -> str:
    """What identifies a function, or an object by its class: its source, and the values that it carries, which are plain.

    Raises ConfigError, which asks for a name, if it carries other values, for code without a source file, and for a lambda, whose
    source is the whole line around it.
    """
    name = _qualified_name(function)
    if (hidden := _hidden_state(function)) is not None:
        raise ConfigError(
            f'model: the source of {name} does not tell what it answers, since {hidden}; give name="...", and another name to '
            "whatever answers otherwise"
        )
    if not name.endswith("<lambda>"):
        try:
            return _identity_text(function, _own_source)
        except (OSError, TypeError):
            pass
    raise ConfigError(
        f'model: the source of {name} cannot be read, so it cannot be distinguished from another function; give name="..."'
    )


def _former_fingerprint(name: str, function: Any) -> str | None:
    """The fingerprint that earlier versions of permix gave a function: without the defaults of its parameters.

    None if a default is no literal of the source, such as the value of a loop: the former fingerprint says nothing of it.
    """
    inner = _unwrap(function)
    if not (isinstance(inner, FunctionType) and _wrapped(inner) is None and _says_its_defaults(inner)):
        return None
    bound = repr((function.args, function.keywords)) if isinstance(function, partial) else ""
    return digest("function", name, inspect.getsource(inner) + bound)


def _says_its_defaults(function: FunctionType) -> bool:
    """Whether every default of a function's parameters is a literal of its source."""
    try:
        node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
        given = [*node.args.defaults, *node.args.kw_defaults] if isinstance(node, ast.FunctionDef) else []
        literals = tuple(ast.literal_eval(one) for one in given if one is not None)
    except (OSError, TypeError, SyntaxError, ValueError, IndexError):
        return False
    return repr(literals) == repr(_defaults(function))


def code_identity(function: Callable[..., Any] | None, name: str) -> str:
    """What identifies a function by its code, also a lambda; "" for None. A function of permix is identified by its name.

    `name` is the function's in the ConfigError that is raised if the function carries values that are not plain, or is not
    written in Python.
    """
    if function is None:
        return ""
    inner = _unwrap(function)
    if _is_of_permix(inner):
        own = f"{inner.__module__}.{inner.__qualname__}"
        values = [*function.args, *function.keywords.items()] if isinstance(function, partial) else []
        return own + repr([code_identity(one, name) if callable(one) else one for one in values] or "")
    hidden = _hidden_state(function)
    if hidden is None:
        try:
            return _identity_text(function, _own_source_or_code)
        except (OSError, TypeError):
            hidden = _NOT_PYTHON
    raise ConfigError(
        f'{name}: its source does not tell how it scores, since {hidden}; give the task source="...", a text that you change '
        "together with the scoring"
    )


_NOT_PYTHON = "it is not written in Python"

_TRANSPARENT_TYPES = (functools._lru_cache_wrapper, staticmethod)
"""Types of functions that answer what the function answers that they wrap, and have no source of their own."""


def _unwrap_transparent(function: Any) -> Any:
    """`_unwrap`, also of functions behind functools.cache and staticmethod."""
    inner = _unwrap(function)
    while isinstance(inner, _TRANSPARENT_TYPES):
        inner = _unwrap(inner.__wrapped__)
    return inner


def _is_of_permix(inner: Any) -> bool:
    """Whether the code of a function or class is permix's: functools.wraps gives a function the `__module__` of another one."""
    inner = _unwrap_transparent(inner)
    module = getattr(inner, "__globals__", {}).get("__name__") or getattr(inner, "__module__", "")
    return str(module).partition(".")[0] == "permix"


def _identity_text(function: Any, own_text: Callable[[Any], str]) -> str:
    """`own_text` of a function or class with the values that it carries, and likewise of the function that it wraps."""
    inner = _unwrap(function)
    own, wrapped = "" if isinstance(inner, _TRANSPARENT_TYPES) else own_text(inner), _wrapped(inner)
    return own + _carried_values(function) + ("" if wrapped is None else _identity_text(wrapped, own_text))


def _wrapped(function: Any) -> Any:
    """The function that another one says to wrap, as functools.wraps and functools.cache set it; None without one."""
    return getattr(function, "__wrapped__", None) if inspect.isroutine(function) else None


def _own_source(inner: Any) -> str:
    """The source of a function or class; of a wrapper its own, and not that of what it wraps. Raises OSError or TypeError."""
    return inspect.getsource(inner if _wrapped(inner) is None else inner.__code__)


def _own_source_or_code(inner: Any) -> str:
    """The source of a function or class, or the code of a lambda and of a function without source."""
    code = getattr(inner, "__code__", None)
    if isinstance(code, CodeType) and str(inner.__qualname__).endswith("<lambda>"):
        return _code_text(code)
    try:
        return _own_source(inner)
    except (OSError, TypeError):
        if isinstance(code, CodeType):  # of a notebook or an interpreter that keeps no lines
            return _code_text(code)
        raise


def _code_text(code: CodeType) -> str:
    """A text of what code does: of the same version of Python, equal code has equal texts."""
    return repr((code.co_code.hex(), code.co_names, code.co_varnames, list(map(_constant_text, code.co_consts))))


def _constant_text(constant: object) -> str:
    if isinstance(constant, frozenset):  # the order of its repr is another one in each process
        return repr(sorted(map(repr, constant)))
    return _code_text(constant) if isinstance(constant, CodeType) else repr(constant)


_PLAIN_TYPES = (str, bytes, int, float, bool, type(None))


def _is_plain(value: object) -> bool:
    """Whether a value is a text, a number, or lists and dicts of these: its repr says all of it, in every process."""
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))  # type: ignore[call-overload]
    if type(value) is dict:
        return all(_is_plain(key) and _is_plain(one) for key, one in value.items())
    return type(value) in _PLAIN_TYPES


def _defaults(function: Any) -> tuple[Any, ...]:
    """The values of a function's parameters that have one: of a loop's function (`def agent(messages, model=model)`) no text of
    the source says them."""
    return (*(getattr(function, "__defaults__", None) or ()), *(getattr(function, "__kwdefaults__", None) or {}).values())


def _carried_values(function: Any) -> str:
    """The plain values that a function or an object carries: the arguments of partials, the defaults of its parameters, and the
    attributes of a class that a function made; "" if there are none."""
    parts = []
    while isinstance(function, partial):
        parts.append(repr((function.args, function.keywords)))
        function = function.func
    values = _defaults(function) if inspect.isroutine(function) else _made_values(_unwrap(function))
    return "".join([*parts, *([repr(values)] if values else [])])


def _made_values(cls: type) -> tuple[Any, ...]:
    """The values of a class that is defined in a function, which may differ from call to call: attributes, and defaults of
    methods where the source does not say them."""
    if "<locals>" not in cls.__qualname__:
        return ()
    methods = [one for value in vars(cls).values() for one in _functions_of(value) if one.__module__ == cls.__module__]
    defaults = [(one.__name__, _defaults(one)) for one in methods if _defaults(one) and not _says_its_defaults(one)]
    return (*_made_attributes(cls).items(), *defaults)


def _made_attributes(cls: type) -> dict[str, Any]:
    """The values among the attributes of a class that is defined in a function: they may differ from call to call."""
    if "<locals>" not in cls.__qualname__:
        return {}
    described = (classmethod, staticmethod, property)
    return {
        name: one
        for name, one in vars(cls).items()
        if not (name.startswith("__") or inspect.isroutine(one) or inspect.isdatadescriptor(one) or isinstance(one, described))
    }


def _hidden_state(function: Any) -> str | None:
    """What a function or an object carries that its source does not say, in words; None if there is nothing."""
    while isinstance(function, partial):
        arguments = [*((f"argument {place}", one) for place, one in enumerate(function.args)), *function.keywords.items()]
        if (name := next((name for name, one in arguments if not _is_plain(one)), None)) is not None:
            return f"functools.partial gives it {name}, which is no text, number or list of these"
        function = function.func
    if inspect.ismethod(function):
        return "it is a method, and its object may differ"
    if inspect.isroutine(function):
        return _hidden_in_code(function)
    cls = function if inspect.isclass(function) else type(function)
    if function is not cls and (attributes := _attributes(function)):
        return f"its object has the attribute{'s' * (len(attributes) > 1)} {', '.join(attributes)}"
    if (name := next((name for name, one in _made_attributes(cls).items() if not _is_plain(one)), None)) is not None:
        return f"the attribute {name} of its class is no text, number or list of these"
    if any("__wrapped__" in vars(base) for base in cls.__mro__):
        return "its class says to wrap another one"
    methods = [(base, one) for base in cls.__mro__[:-1] for value in vars(base).values() for one in _functions_of(value)]
    # typing puts functions of its own into a Protocol.
    return next(filter(None, (_hidden_in_code(one) for base, one in methods if one.__module__ == base.__module__)), None)


def _functions_of(attribute: Any) -> Iterator[Any]:
    """The functions behind an attribute of a class: a method, or those of a property."""
    if isinstance(attribute, property):
        found: list[Any] = [attribute.fget, attribute.fset, attribute.fdel]
    elif isinstance(attribute, functools.cached_property):
        found = [attribute.func]
    else:
        found = [getattr(attribute, "__func__", attribute)]
    return (one for one in found if isinstance(one, FunctionType | functools._lru_cache_wrapper))


def _hidden_in_code(function: Any) -> str | None:
    code = getattr(function, "__code__", None)
    around = [name for name in code.co_freevars if name != "__class__"] if isinstance(code, CodeType) else []
    if around:
        return f"it uses {', '.join(around)} of the function around it"
    if not all(map(_is_plain, _defaults(function))):
        return "the default of a parameter is no text, number or list of these"
    wrapped = _wrapped(function)
    if wrapped is None:
        return None
    is_read = isinstance(code, CodeType) or isinstance(function, _TRANSPARENT_TYPES)
    return _hidden_state(wrapped) if is_read else _NOT_PYTHON


def _attributes(instance: Any) -> list[str]:
    slots = [vars(cls).get("__slots__", ()) for cls in type(instance).__mro__]
    names = [name for one in slots for name in ((one,) if isinstance(one, str) else one)]
    return [*getattr(instance, "__dict__", {}), *(name for name in names if hasattr(instance, name))]
