"""Sections for models, questions and personas: `[model]`, `[task]`, `[personas]`, `[judge]`, `[personagym]`, `[interview]`,
`[interviewer]`. Validators raise ValueError, naming the field, its value and what to change.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from permix.config.base import ConfigSection, quote_input
from permix.errors import closest_match
from permix.sanitize import redact_secrets
from permix.types import Split

OWN_OBJECT_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
"""The name of a Python object of the user's own: "package.module:NAME"."""

TRACKER_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio>=0.21", "mlflow": "mlflow"}
"""For each experiment tracker that `report_to` may name: what pip installs for it."""


def _check_tracker_names(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in TRACKER_PACKAGES:
            near = closest_match(name.lower(), TRACKER_PACKAGES)
            hint = f"did you mean {near}? " if near else ""
            raise ValueError(f"no tracker is named {quote_input(name)}; {hint}valid: {', '.join(TRACKER_PACKAGES)}")
    return tuple(dict.fromkeys(names))


TrackerNames = Annotated[tuple[str, ...], AfterValidator(_check_tracker_names)]
"""Names of experiment trackers, each once."""


def normalize_address(base_url: str) -> str:
    """HOST:PORT/PATH of a URL, in small letters up to the path: without scheme, login, the scheme's own port and a last slash."""
    parts = urlsplit(base_url)
    own_port = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    host = parts.netloc.rpartition("@")[2].lower()
    return (host.removesuffix(own_port) if own_port else host) + parts.path.rstrip("/")


def _find_server(base_url: str) -> str:
    """The normalized address; a text that is not an address as it is, which is refused where it is used."""
    try:
        return normalize_address(base_url)
    except ValueError:
        return base_url


class BackendCapabilities(NamedTuple):
    """Properties of a backend.

    `is_local`: it runs in this process, on the weights that the model's name refers to (a folder, a hub id or "bundled"), so its
    files can be checked before they are loaded. `is_priced`: requests may cost money. `needs_base_url`: it has an address.
    `content_addressed`: equal fingerprints can mean equal weights, so completions may be cached. `configurable`: a configuration
    file or a flag may name it. `bounds_thinking`: it can close a completion's thinking after a number of tokens. `answers_later`:
    it is asked by batch files alone, in a start with --batch-out or --batch-in. `packages`: the packages that it needs besides
    those of every model in this process. `runs_engine`: it takes `ENGINE_FIELDS`.
    """

    is_local: bool
    is_priced: bool
    needs_base_url: bool
    content_addressed: bool
    configurable: bool = True
    bounds_thinking: bool = False
    answers_later: bool = False
    packages: tuple[str, ...] = ()
    runs_engine: bool = False


BACKENDS: dict[str, BackendCapabilities] = {
    "transformers": BackendCapabilities(
        is_local=True, is_priced=False, needs_base_url=False, content_addressed=True, bounds_thinking=True
    ),
    "openai": BackendCapabilities(is_local=False, is_priced=True, needs_base_url=True, content_addressed=False),
    "batch": BackendCapabilities(
        is_local=False, is_priced=True, needs_base_url=False, content_addressed=False, answers_later=True
    ),
    "vllm": BackendCapabilities(
        is_local=True, is_priced=False, needs_base_url=False, content_addressed=True, packages=("vllm",), runs_engine=True
    ),
    "python": BackendCapabilities(
        is_local=False, is_priced=False, needs_base_url=False, content_addressed=False, configurable=False
    ),
}
"""Every backend, by the name that a configuration gives it; `LOADERS` in `permix.inference` opens its models."""


ENGINE_FIELDS = ("tensor_parallel_size", "data_parallel_size", "gpu_memory_utilization", "max_model_len")
"""Fields of a model, named as in vLLM, that say how an engine in this process uses the GPUs. They change no answer, but for the
last bits of logits, and `max_model_len` for prompts that are too long."""


ENDPOINT_BACKEND = "openai"
"""The backend of a model that has a `base_url`, if none is given."""


BATCH_BACKEND = "batch"
"""The backend of a model that batch files ask, where the configuration names no other."""


def configurable_backends() -> tuple[str, ...]:
    """The backends that a configuration file or a flag may name."""
    return tuple(name for name, backend in BACKENDS.items() if backend.configurable)


ThinkingSwitch = Literal["default", "on", "off"]
"""Whether a thinking model is to think: as its chat template does by default, or switched on or off."""


_SECRET_FIELD = re.compile(r"(?i)api[-_]?key|secret|passw(or)?d|authorization|credentials?|(access|auth|bearer)[-_]?token")


def _find_secret(fields: Any) -> str | None:
    """The name of a field, at any depth, that holds a secret: by its name, or by a value that looks like a key.

    Raises ValueError for more than `MAX_EXTRA_BODY_DEPTH` levels.
    """
    waiting = [("the object", fields, 0)]
    while waiting:
        name, value, depth = waiting.pop()
        if depth > MAX_EXTRA_BODY_DEPTH:
            raise ValueError(f"nested too deeply; no more than {MAX_EXTRA_BODY_DEPTH} levels")
        if _SECRET_FIELD.fullmatch(name) or (isinstance(value, str) and redact_secrets(value) != value):
            return name
        inner = value.items() if isinstance(value, dict) else ((name, one) for one in value) if isinstance(value, list) else ()
        waiting += [(key, one, depth + 1) for key, one in inner]
    return None


MAX_EXTRA_BODY_DEPTH = 50
"""Levels of `extra_body`; JSON schemas, which may be in it, have fewer."""


_OWN_HEADERS = frozenset(
    (
        *("authorization", "proxy-authorization", "content-type", "content-length", "content-encoding", "accept-encoding"),
        *("host", "connection", "transfer-encoding", "expect", "te", "trailer", "upgrade"),
    )
)
"""Headers that `ModelConfig.headers` cannot set: the key's, and those that say how a body is sent."""


def _names_variable(name: str) -> bool:
    """Whether a text can be the name of an environment variable, and does not look like a key."""
    looks_like_key = len(name) >= 20 and re.search("[a-z]", name) and re.search("[0-9]", name)
    return bool(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)) and not looks_like_key and redact_secrets(name) == name


_SAMPLING_FIELDS = {
    "temperature": "give sampling.temperature, or judge.temperature for a judge",
    "top_p": "give sampling.top_p, which a judge does not have",
    **dict.fromkeys(("max_tokens", "max_completion_tokens"), "give sampling.max_new_tokens, or judge.max_new_tokens for a judge"),
    "seed": "each request has a seed of its own, which depends on the option seed; leave it out",
}
"""Fields of a request that `extra_body` cannot hold, since other options set them: for each what to do."""


class ModelConfig(ConfigSection):
    """The model that answers, and how to reach it."""

    name: str = "bundled"
    """"bundled" (SmolLM2-135M-Instruct), a model folder, a hub id, or the name an endpoint serves."""
    backend: str = "transformers"
    """Where completions come from: transformers in this process, an OpenAI-compatible HTTP endpoint (openai), vLLM's engine in
    this process (vllm), or batch files (batch). With a base_url the default is the endpoint; with --batch-out or --batch-in and
    without an address, batch files."""
    base_url: str | tuple[str, ...] | None = None
    """The endpoint's URL up to /v1, such as http://127.0.0.1:8000/v1 (backend "openai"). With several URLs of the same model,
    requests are spread over them; all requests of a persona go to one URL."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the endpoint's API key; the key itself must not be in a file."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the weights; auto takes bfloat16 on hardware that multiplies it natively, else float32. With backend "vllm",
    auto takes the precision in which the weights are stored, and 16 bits if they are stored in float32."""
    batch_size: int | None = Field(default=None, gt=0)
    """Maximum number of requests generated together (backend "transformers"). When not given: on a CPU as many as fit into a
    quarter of the free memory, 16 to 128; on a GPU as many as fit into half of it, 16 to 512; 64 for a network without shared
    prefixes. In bfloat16 some answers depend on the batch through rounding: give a number if two runs must agree."""
    concurrency: int | None = Field(default=None, gt=0)
    """Maximum number of requests sent at the same time to each endpoint (backend "openai"). When not given, permix begins with
    16, and sends more, up to 512, while that gets more answers per second. An overloaded server (429) gets fewer."""
    tensor_parallel_size: int = Field(default=1, gt=0)
    """Number of GPUs that the weights are divided among (backend "vllm")."""
    data_parallel_size: int = Field(default=1, gt=0)
    """Number of copies of the weights, each on tensor_parallel_size GPUs, which share the requests (backend "vllm")."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    """Share of a GPU's memory that the engine may take; its own default, about 0.9, when not given (backend "vllm")."""
    max_model_len: int | None = Field(default=None, gt=0)
    """Most tokens of a prompt and its completion together; as the model's configuration says when not given (backend "vllm")."""
    timeout_s: float = Field(default=120, gt=0)
    """Maximum duration of one HTTP request, in seconds (backend "openai")."""
    thinking: ThinkingSwitch = "default"
    """Switch a thinking model's thinking on or off, where its chat template has such a switch (`enable_thinking`)."""
    thinking_budget: int | None = Field(default=None, ge=0)
    """Close the thinking of a completion after this many tokens, so that the answer follows (backend "transformers"); no bound
    when not given. It counts towards max_new_tokens. An endpoint takes a field of its own for it, in extra_body."""
    headers: tuple[str, ...] = ()
    """Further headers of every HTTP request, as NAME=VARIABLE: the value is that of the environment variable, so that it is in no
    file (backend "openai")."""
    extra_body: str = ""
    """A JSON object whose fields are added to every HTTP request, such as {"reasoning_effort": "low"} (backend "openai")."""
    retries: int = Field(default=6, ge=0)
    """How many times a request is repeated after HTTP status 429 or 5xx or a timeout (backend "openai")."""
    prices: Path | None = None
    """A TOML file of prices by model (example: configs/prices.toml), from which --dry-run estimates the cost."""
    same_weights: bool = Field(default=False, exclude=True)
    """Confirm that the model at a new address has the weights that answered the run so far, where its server does not say so. It
    is needed once: the run records the address."""

    @property
    def capabilities(self) -> BackendCapabilities:
        return BACKENDS[self.backend]

    @property
    def base_urls(self) -> tuple[str, ...]:
        """The addresses of the endpoint: those of `base_url`."""
        return (self.base_url,) if isinstance(self.base_url, str) else self.base_url or ()

    @model_validator(mode="before")
    @classmethod
    def _backend_from_base_url(cls, values: Any) -> Any:
        """Set `backend` to that of endpoints if `base_url` is given and `backend` is not."""
        if isinstance(values, Mapping) and values.get("base_url") and "backend" not in values:
            return {**values, "backend": ENDPOINT_BACKEND}
        return values

    @field_validator("backend")
    @classmethod
    def _check_known_backend(cls, name: str) -> str:
        if name not in BACKENDS:
            near = closest_match(name, BACKENDS)
            hint = f"; did you mean {near}?" if near else ""
            raise ValueError(f"must be one of {', '.join(configurable_backends())}{hint}")
        return name

    @model_validator(mode="after")
    def _check_endpoint(self) -> "ModelConfig":
        if self.base_url == ():
            raise ValueError("base_url = []: names no address; give one such as http://127.0.0.1:8000/v1, or leave it out")
        if self.capabilities.needs_base_url and not self.base_url:
            raise ValueError(f'base_url is missing: backend "{self.backend}" needs one, such as http://127.0.0.1:8000/v1')
        if self.base_url and not self.capabilities.needs_base_url:
            raise ValueError(
                f'base_url is given, but backend "{self.backend}" asks no endpoint; give backend = "{ENDPOINT_BACKEND}", or '
                "leave base_url out"
            )
        addresses = [url.rstrip("/") for url in self.base_urls]
        if "" in addresses:
            raise ValueError("base_url: an address is empty; give one such as http://127.0.0.1:8000/v1")
        servers = [_find_server(url) for url in addresses]
        for place, url in enumerate(addresses):
            if (first := servers.index(servers[place])) < place:
                as_well = "" if addresses[first] == url else f", as {redact_secrets(addresses[first])} as well"
                raise ValueError(f"base_url: {redact_secrets(url)} is given twice{as_well}; give it once")
        return self

    @model_validator(mode="after")
    def _check_thinking_budget(self) -> "ModelConfig":
        if self.thinking_budget is not None and not self.capabilities.bounds_thinking:
            budget = self.thinking_budget
            raise ValueError(
                f'thinking_budget = {budget}: backend "{self.backend}" cannot bound the thinking; leave it out. An endpoint has '
                f'a field of its own for it, which model.extra_body adds: {{"thinking_token_budget": {budget}}} (vLLM), '
                f'{{"thinking_budget": {budget}}} (Qwen) or {{"reasoning_effort": "low"}}'
            )
        return self

    @model_validator(mode="after")
    def _check_engine_fields(self) -> "ModelConfig":
        for name in () if self.capabilities.runs_engine else ENGINE_FIELDS:
            if (value := getattr(self, name)) != type(self).model_fields[name].default:
                engines = " or ".join(f'"{one}"' for one, backend in BACKENDS.items() if backend.runs_engine)
                raise ValueError(
                    f'{name} = {value}: backend "{self.backend}" has no such setting; give backend = {engines}, or leave it out'
                )
        return self

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, headers: tuple[str, ...]) -> tuple[str, ...]:
        # An entry may be a secret, so the messages repeat none that is not known to be valid.
        for number, header in enumerate(headers, 1):
            name, equals, variable = header.partition("=")
            if not equals or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
                raise ValueError(f"entry {number} must be NAME=VARIABLE, such as X-Project=MY_PROJECT")
            if name.lower() in _OWN_HEADERS:
                is_key = "auth" in name.lower()
                instead = "; the key belongs into the environment variable that api_key_env names" if is_key else ""
                raise ValueError(f"{name} is set by permix itself; leave it out{instead}")
            if not _names_variable(variable):
                raise ValueError(
                    f"entry {number}: after = must be the name of an environment variable; the value itself must not be in a "
                    "file or a command line"
                )
        names = [header.partition("=")[0].lower() for header in headers]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{repeated} is given twice; give it once")
        return headers

    @model_validator(mode="after")
    def _check_headers_are_sent(self) -> "ModelConfig":
        if self.headers and not self.capabilities.needs_base_url:
            raise ValueError(f'headers: backend "{self.backend}" sends no HTTP request; leave headers out')
        return self

    @model_validator(mode="after")
    def _check_has_address(self) -> "ModelConfig":
        if self.same_weights and not (self.capabilities.needs_base_url or self.capabilities.answers_later):
            raise ValueError(f'same_weights: backend "{self.backend}" has no address; leave same_weights out')
        return self

    @property
    def header_variables(self) -> dict[str, str]:
        """For each of `headers`: its name, and the environment variable that holds its value."""
        return {name: variable for name, _, variable in (header.partition("=") for header in self.headers)}

    @property
    def extra_fields(self) -> dict[str, Any]:
        """The fields that are added to every HTTP request: those of `extra_body`, and the switch of thinking."""
        fields: dict[str, Any] = json.loads(self.extra_body) if self.extra_body else {}
        if self.thinking == "default":
            return fields
        # Qwen, GLM and others read the first name, DeepSeek and Granite the second.
        switch = dict.fromkeys(("enable_thinking", "thinking"), self.thinking == "on")
        return {**fields, "chat_template_kwargs": {**switch, **fields.get("chat_template_kwargs", {})}}

    @field_validator("extra_body")
    @classmethod
    def _check_extra_body(cls, text: str) -> str:
        try:
            fields = json.loads(text) if text else {}
        except (ValueError, RecursionError) as error:
            raise ValueError(f'must be a JSON object such as {{"reasoning_effort": "low"}}: {error}') from None
        if (secret := _find_secret(fields)) is not None:
            raise ValueError(
                f"holds a secret in {secret[:40]!r}, and the run records it; put the key into the environment variable that "
                "api_key_env names"
            )
        if not isinstance(fields, dict) or not isinstance(fields.get("chat_template_kwargs", {}), dict):
            raise ValueError('must be a JSON object such as {"reasoning_effort": "low"}')
        if taken := {"model", "messages", "n", "stream"} & set(fields):
            raise ValueError(f"holds {', '.join(sorted(taken))}, which permix sets itself; leave it out")
        for name in sorted(_SAMPLING_FIELDS.keys() & set(fields)):
            raise ValueError(f"holds {name}, which would replace what the run records; {_SAMPLING_FIELDS[name]}")
        return text

    @model_validator(mode="after")
    def _check_no_secrets(self) -> "ModelConfig":
        # A value here may be a secret, so the messages do not repeat it.
        name = self.api_key_env
        if any("@" in url or redact_secrets(url) != url for url in self.base_urls):
            raise ValueError("base_url holds credentials; put the key into the environment variable that api_key_env names")
        if any("?" in url or "#" in url for url in self.base_urls):
            raise ValueError(
                "base_url must be an address such as http://127.0.0.1:8000/v1, without a query; put a key into the environment "
                "variable that api_key_env names"
            )
        if not _names_variable(name):
            raise ValueError("api_key_env is not the name of an environment variable; the key itself must not be in a file")
        return self


def check_room_for_answer(model: ModelConfig, field: str, max_new_tokens: int) -> None:
    """Raise ValueError if the thinking may use all tokens of a completion. `field` names the limit of its tokens."""
    if model.thinking_budget is not None and model.thinking_budget >= max_new_tokens:
        raise ValueError(
            f"thinking_budget = {model.thinking_budget}: leaves no token for the answer; give less, or more than that as {field} "
            f"(now {max_new_tokens})"
        )


ANSWER_KINDS = ("number", "math", "exact", "choice")
"""How permix itself compares the answers to your own questions."""


def require_answer_kind(answer: object) -> None:
    """Raise ValueError, which says what is valid, unless `answer` is one of `ANSWER_KINDS` or names a function."""
    if isinstance(answer, str) and (answer in ANSWER_KINDS or OWN_OBJECT_NAME.fullmatch(answer)):
        return
    near = closest_match(answer, ANSWER_KINDS) if isinstance(answer, str) else None
    hint = f"; did you mean {near}?" if near else ""
    raise ValueError(f"must be one of {', '.join(ANSWER_KINDS)}, or a function of your own, package.module:function{hint}")


class TaskConfig(ConfigSection):
    """The questions: which task they come from, and how many.

    `split` and `n`, where they are not given (`model_fields_set`), depend on the questions: `permix.tasks.load_selection` fills
    them in, and a run records the values that it used.
    """

    name: str = "arithmetic"  # checked by `permix.tasks.check_task_name`, in whose layer the tasks are known
    """Name of the task. The tasks own-* read your own questions from --task.path; package.module:NAME is a permix.Task of your
    own."""
    path: Path | None = None
    """A local copy (file or folder) of the task's data set, instead of the one on the hub; or a file with your own questions (its
    format: `permix.tasks.custom`)."""
    answer: str | None = None
    """How answers to your own questions are compared: as numbers (number), as mathematical expressions (math), as texts that must
    be equal (exact), as letters of choices (choice), or by your own function (package.module:function). It selects the task
    own-ANSWER."""
    split: Literal[Split, "all"] = "heldout"
    """Split of the questions: train for training, dev for choosing settings, heldout for the final measurement, or all questions
    of your own file. When not given: train in training, else heldout, or all of your own file if no row names its split."""
    n: int = Field(default=100, gt=0)
    """Number of questions; when not given, 1000 in training, else 100, or all of your own file."""
    levels: tuple[str, ...] = ()
    """Only questions of these levels; when empty, the task's default levels. Arithmetic has levels such as add-1 and mul-2x1
    (all: `permix.tasks.arithmetic`), math the levels 1 to 5, mmlu its subjects, code its difficulties."""
    seed: int = Field(default=0, ge=0)
    """Seed for choosing the questions."""
    prompt_template: str | None = None
    """The prompt, with {question} in it, such as "Think aloud, then answer. {question}"; the task's own when not given."""
    question_column: str | None = None
    """The column of your own file that holds the questions, such as problem or extra_info.question; not needed for the names that
    `permix.tasks.custom` lists."""
    context_column: str | None = None
    """The column of a text that the question is about, such as passage; it is put before the question."""
    answer_column: str | None = None
    """The column that holds the right answers."""
    choices_column: str | None = None
    """The column that holds the choices (answer "choice")."""

    @model_validator(mode="before")
    @classmethod
    def _name_from_answer_type(cls, values: Any) -> Any:
        """Set `name` to own-ANSWER if `answer` is given and `name` is not."""
        if isinstance(values, Mapping) and values.get("answer") and values.get("name", "arithmetic") == "arithmetic":
            return {**values, "name": f"own-{values['answer']}"}
        return values

    @field_validator("answer")
    @classmethod
    def _check_answer_kind(cls, answer: str | None) -> str | None:
        if answer is not None:
            require_answer_kind(answer)
        return answer

    @property
    def reads_own_file(self) -> bool:
        """Whether the task is one of own-*, which read the user's own questions."""
        return self.name.startswith("own-")

    @model_validator(mode="after")
    def _check_custom_task(self) -> "TaskConfig":
        if self.answer is not None and self.name != f"own-{self.answer}":
            raise ValueError(
                f'answer = "{self.answer}": applies to your own questions only; leave out either answer or name = "{self.name}"'
            )
        is_own = self.reads_own_file
        if is_own and self.path is None:
            raise ValueError(f'path is missing: name = "{self.name}" reads your own questions from a file; give the file')
        columns = [
            name
            for name in ("question_column", "context_column", "answer_column", "choices_column")
            if getattr(self, name) is not None
        ]
        if columns and not is_own:
            raise ValueError(f'{columns[0]}: applies to your own questions only, not to name = "{self.name}"; leave it out')
        return self

    @field_validator("split")
    @classmethod
    def _check_all_splits(cls, split: str, info: ValidationInfo) -> str:
        if split == "all" and not info.data.get("name", "").startswith("own-"):
            raise ValueError(
                "Input should be 'train', 'dev' or 'heldout'; 'all' is for your own questions (task.path, task.answer)"
            )
        return split

    @property
    def single_split(self) -> Split:
        """The split, of a task that has no "all"."""
        assert self.split != "all"
        return self.split

    @model_validator(mode="after")
    def _check_prompt_template(self) -> "TaskConfig":
        if self.prompt_template is not None and "{question}" not in self.prompt_template:
            raise ValueError(f"prompt_template = {self.prompt_template!r}: must contain {{question}}")
        return self


class PersonasConfig(ConfigSection):
    """The personas: which pool they come from, how many, and how the prompt states them."""

    pool: str = "builtin"
    """"builtin", or a file of personas: JSONL, CSV, TSV, JSON, Parquet, TOML, or a character card (JSON, PNG) or a folder of them
    (the forms that are read: `permix.personas.published`)."""
    column: str | None = None
    """The column of the pool that holds the texts, such as persona or data.bio; not needed for the known forms."""
    split: Literal[Split, "all"] = "heldout"
    """Split of the pool: train for training, dev for choosing settings, heldout for the final measurement, or all. When not
    given: train in training, else heldout, or all of your own pool if no persona has a split."""
    include: tuple[str, ...] = ()
    """Only personas that have one of these tags."""
    exclude: tuple[str, ...] = ()
    """Leave out personas that have one of these tags."""
    n: int | None = Field(default=None, gt=0)
    """Number of personas, chosen in proportion from each kind (first tag); all when not given."""
    seed: int = Field(default=0, ge=0)
    """Seed for choosing the `n` personas."""
    template: str = "you_are"
    """How the prompt states the persona: you_are, adopt, second_person or in_question, or your own text with {persona} in it. It
    is the system message; a text with {question} in it too is the user message. "{persona}" sends the texts as they are, for
    pools of whole system prompts."""
    empty_system_prompt: bool = False
    """In cells without persona send an empty system message, so that the model's default system message is not used."""


PersonaGymTask = Literal[
    "Expected Action", "Toxicity Control", "Linguistic Habits", "Persona Consistency", "Action Justification"
]
"""PersonaGym's five tasks, named as in its paper."""


def rubric_entries(rubrics: str | Sequence[str]) -> tuple[str, ...]:
    """The entries of `judge.rubrics`; a text is one entry."""
    return (rubrics,) if isinstance(rubrics, str) else tuple(rubrics)


class JudgeModelConfig(ModelConfig):
    """The judge: a model that scores the answers."""

    name: str = "none"
    """The judge model: "none" for no judge, "bundled", a model folder, a hub id, or the name that an endpoint serves it under."""
    label: str | None = None
    """Name of the judge in tables and of its folder in the run; the model's name when not given."""
    rubrics: str | tuple[str, ...] = "permix"
    """"permix" for permix's own rubrics, or a PersonaGym folder that contains rubrics/. Open-ended answers and interviews can be
    judged by one or more rubrics: permix's own by name ("In Character"), yours by the path of a file (warmth.toml)."""
    reasons: bool = True
    """Ask the judge for one sentence of reasons before the score; without reasons a judge is cheaper but explains nothing."""
    examples: Path | None = None
    """A file of example answers for each score, which the judge sees: examples.jsonl of `permix questions --examples`."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature of the judge; 0 is greedy decoding."""
    max_new_tokens: int = Field(default=256, gt=0)
    """Maximum length of one reply of the judge, in tokens."""
    attempts: int = Field(default=2, gt=0)
    """How many times one start of the command asks for a score if replies cannot be read, each time with another seed."""
    answers_per_control: int = Field(default=100, ge=20)
    """Number of answers in each control: to test the judge, they are judged again with a wrong persona, without persona, padded,
    unchanged, or with an instruction to the judge."""
    prices: Path | None = None
    """A TOML file of prices by model (example: configs/prices.toml); without it costs are unknown."""
    max_cost: float | None = Field(default=None, gt=0)
    """Stop calling the judge when this many US dollars are spent; needs --judge.prices."""

    @model_validator(mode="after")
    def _check_room_for_a_score(self) -> "JudgeModelConfig":
        check_room_for_answer(self, "max_new_tokens", self.max_new_tokens)
        return self

    @model_validator(mode="after")
    def _check_rubrics(self) -> "JudgeModelConfig":
        if not rubric_entries(self.rubrics):
            raise ValueError('rubrics = []: names no rubric; give "permix", a folder of PersonaGym, or one or more rubrics')
        return self

    @model_validator(mode="after")
    def _check_prices(self) -> "JudgeModelConfig":
        if self.max_cost is not None and self.prices is None:
            raise ValueError(f"max_cost = {self.max_cost:g}: needs the prices of models; give prices, a TOML file")
        return self


class PersonaGymConfig(ConfigSection):
    """PersonaGym's questions, which differ from persona to persona."""

    path: Path | None = None
    """A PersonaGym folder (personas.json, questions/, rubrics/), or the questions.jsonl that `permix questions` writes."""
    hub: str | None = None
    """The hub id of a data set that contains a PersonaGym folder, in place of --personagym.path."""
    light: bool = False
    """Ask each persona only the first question of each task (PersonaGym-light, as in the OpenCharacter evaluation)."""
    tasks: tuple[PersonaGymTask, ...] = ()
    """Only these tasks; all five when not given."""
    without_persona: int = Field(default=100, ge=0)
    """Number of questions that are also asked without persona; these answers are a control that tests the judge."""

    @model_validator(mode="after")
    def _check_one_source(self) -> "PersonaGymConfig":
        if self.path is not None and self.hub is not None:
            raise ValueError(f'path = {self.path}, hub = "{self.hub}": give one of the two')
        return self


class InterviewConfig(ConfigSection):
    """A conversation of several turns with each persona."""

    turns: int = Field(default=0, ge=0)
    """Turns (questions with answers) of each interview, 3 or more; 0 for no interview."""
    script: Path | None = None
    """A text file with one question per line; the built-in script when not given. Every interview starts with the first one."""
    order: Literal["balanced", "written"] = "balanced"
    """Order of the questions. "balanced": another order for each persona, so that effects of the turn and of the question can be
    separated. "written": the order of the script, for questions that build on each other."""

    @model_validator(mode="after")
    def _check_turns(self) -> "InterviewConfig":
        if self.turns in (1, 2):
            raise ValueError(f"turns = {self.turns}: too few to measure drift; give 3 or more, or 0 for no interview")
        return self


class InterviewerConfig(ModelConfig):
    """Who asks the interview's questions: a script or a model."""

    name: str = "script"
    """"script" for the questions of interview.script, or a model as in --model.name, which asks its own questions."""

    @property
    def is_model(self) -> bool:
        """Whether a model asks the questions instead of a script."""
        return self.name != "script"
