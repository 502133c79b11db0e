"""For users of TRL: mix personas into a data set of prompts, and use the verifier as a reward function.

    dataset = permix.mix_personas(dataset, mix=0.8, seed=0)
    trainer = GRPOTrainer(model=..., train_dataset=dataset, reward_funcs=permix.verifiable_reward("gsm8k"))

A row has TRL's conversational prompt format: `{"prompt": [{"role": "user", "content": "..."}], "answer": "72"}`. All columns but
the prompt reach the reward function. This module does not import trl, and it imports datasets only for a `datasets.Dataset`.

Contract of `mix_personas`: a row's draw depends on the seed and the row's own prompt, not on other rows, their order or the
process. So shards and streams get the same personas as the whole data set, and a larger `mix` only adds personas. GRPO samples
all completions of a row under the row's one persona.

Contract of the reward: it is the evaluation's score. It is 1 for a right answer, 0 for a wrong or missing one, and None if the
verifier failed; TRL leaves None out of the group's advantages.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Protocol, TypeVar, overload

from permix.errors import ConfigError, DataError
from permix.personas.pool import PersonasLike, resolve_pool
from permix.plan import PersonaSampler, sample_persona
from permix.progress import print_status
from permix.prompts import persona_message, template_text
from permix.storage.rows import is_data_frame, is_real_number, quote_value
from permix.tasks import LoadedTask, find_task, is_permix_task, own_task
from permix.tasks.base import Task, verify_completion
from permix.tasks.custom import ACCEPTED_ANSWERS_COLUMN, find_gold
from permix.types import Persona, digest, last_user_text, seed_from

PERSONA_COLUMNS = ("persona_id", "persona_tags")

OnSystem = Literal["refuse", "append"]


class MappableDataset(Protocol):
    """`datasets.Dataset` and `datasets.IterableDataset`."""

    column_names: Any
    features: Any

    def map(self, function: Callable[[dict[str, Any]], dict[str, Any]], *, features: Any = None) -> Any: ...


_DatasetT = TypeVar("_DatasetT", bound=MappableDataset)


@overload
def mix_personas(
    dataset: Sequence[Mapping[str, Any]],
    personas: PersonasLike = ...,
    mix: float = ...,
    seed: int = ...,
    *,
    template: str = ...,
    tag_weights: Mapping[str, float] | None = ...,
    on_system: OnSystem = ...,
) -> list[dict[str, Any]]: ...
@overload
def mix_personas(
    dataset: _DatasetT,
    personas: PersonasLike = ...,
    mix: float = ...,
    seed: int = ...,
    *,
    template: str = ...,
    tag_weights: Mapping[str, float] | None = ...,
    on_system: OnSystem = ...,
) -> _DatasetT: ...
def mix_personas(
    dataset: Any,
    personas: PersonasLike = "builtin",
    mix: float = 0.8,
    seed: int = 0,
    *,
    template: str = "you_are",
    tag_weights: Mapping[str, float] | None = None,
    on_system: OnSystem = "refuse",
) -> Any:
    """Put a persona into the prompts of a share `mix` of the rows (0 to 1), and name it in `persona_id` and `persona_tags`.

    `dataset`: a `datasets.Dataset` or `IterableDataset` with a column `prompt` of messages, or a list of such rows. Returns the
    same kind, with the other columns unchanged. Rows without a persona have `persona_id` None. `personas`: "builtin" or a file,
    of which only the train split is used (the other splits are for evaluation); or a pool or a list, used as a whole.
    `template`: like `personas.template`. `tag_weights`: like `plan.tag_weights`. A prompt has the same persona in every epoch;
    to vary it, concatenate copies that were mixed with different seeds.

    `on_system`: "refuse" refuses rows that already have a system message, since it may name another persona. "append" puts that
    message after the persona's sentence, which suits instructions such as the format of the answer.

    Raises ConfigError for bad arguments and for a dict of data sets (mix its training split only). Raises DataError for a row
    without a conversational prompt or, with on_system "refuse", with a system message.
    """
    _check_arguments(dataset, mix, template, on_system)
    pool = resolve_pool(personas, "train")
    sampler = PersonaSampler(pool.personas, pool.sampling_weights(tag_weights))
    mix_row = partial(_mix_row, sampler=sampler, mix=mix, seed=seed, template=template, on_system=on_system)
    if not hasattr(dataset, "map"):
        _check_columns(dataset[0] if dataset else ())
        return [dict(row) | mix_row(row) for row in dataset]
    _check_columns(dataset.column_names or ())
    if dataset.features is None:  # a stream whose columns are unknown until its first row is read
        return dataset.map(mix_row)
    return dataset.map(mix_row, features=_add_persona_features(dataset.features))


def _check_arguments(dataset: Any, mix: float, template: str, on_system: str) -> None:
    if is_data_frame(dataset) and not hasattr(dataset, "features"):  # pandas' frames have a map of their own
        raise ConfigError('dataset: is a data frame; give dataset.to_dict("records"), or datasets.Dataset.from_pandas(dataset)')
    if isinstance(dataset, dict):
        raise ConfigError(
            f"dataset: is a dict of data sets ({', '.join(map(str, dataset))}); give only the one to train on, such as "
            'mix_personas(dataset["train"]): evaluation uses personas that the model was not trained with'
        )
    if not hasattr(dataset, "map") and (not isinstance(dataset, Sequence) or isinstance(dataset, str)):
        raise ConfigError(f"dataset = {quote_value(dataset)}: must be a list of rows, or a data set of datasets")
    if not is_real_number(mix) or not 0 <= mix <= 1:
        raise ConfigError(f"mix = {mix!r}: must be a share of the rows, from 0 to 1")
    if on_system not in ("refuse", "append"):
        raise ConfigError(f'on_system = {on_system!r}: give "refuse" or "append"')
    template_text(template, "template")
    for index, row in enumerate([] if hasattr(dataset, "map") else dataset):
        if not isinstance(row, Mapping):
            raise DataError(f"dataset[{index}] = {quote_value(row)}: must be a row, a dict with a prompt")


def _check_columns(columns: Any) -> None:
    if existing := [name for name in PERSONA_COLUMNS if name in columns]:
        raise ConfigError(f"dataset: has a column {existing[0]} already; personas can be mixed in only once")


def _add_persona_features(features: Any) -> Any:
    """The data set's features and those of the new columns. datasets infers a wrong type for a column that begins with None."""
    from datasets import List, Value

    both = features.copy()
    both.update({"persona_id": Value("string"), "persona_tags": List(Value("string"))})
    return both


def _mix_row(
    row: Mapping[str, Any], *, sampler: PersonaSampler, mix: float, seed: int, template: str, on_system: OnSystem
) -> dict[str, Any]:
    """The new values of one row: its prompt, and the persona's id and tags."""
    prompt = _check_prompt(row.get("prompt"), on_system)
    persona = sample_persona(seed_from("mix", seed, _prompt_hash(prompt)), sampler, mix)
    return {
        "prompt": prompt if persona is None else _add_persona(persona, prompt, template),
        "persona_id": None if persona is None else persona.id,
        "persona_tags": [] if persona is None else list(persona.tags),
    }


def _check_prompt(prompt: Any, on_system: OnSystem) -> list[dict[str, Any]]:
    if not isinstance(prompt, list) or not prompt or not all(isinstance(one, Mapping) and "role" in one for one in prompt):
        raise DataError(
            f"prompt = {quote_value(prompt)}: is not in TRL's conversational format; give a list of messages, such as "
            '[{"role": "user", "content": "What is 7 + 5?"}]'
        )
    if (silent := next((one for one in prompt if one["role"] in ("system", "user") and "content" not in one), None)) is not None:
        raise DataError(f"prompt: the message {quote_value(dict(silent))} has no content")
    if on_system == "refuse" and (system_texts := _system_texts(prompt)):
        raise DataError(
            f"prompt: has a system message of its own, {quote_value(system_texts[0])}; leave it out, or give "
            'on_system="append" to put it after the persona\'s sentence'
        )
    return [dict(message) for message in prompt]


def _system_texts(prompt: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [one["content"] for one in prompt if one["role"] == "system" and one["content"]]


def _prompt_hash(prompt: Sequence[Mapping[str, Any]]) -> str:
    """Hash of the roles and contents of a prompt. Other fields are ignored, since datasets pads messages with empty fields."""
    return digest(json.dumps([[one["role"], one.get("content")] for one in prompt], sort_keys=True))


def _add_persona(persona: Persona, prompt: list[dict[str, Any]], template: str) -> list[dict[str, Any]]:
    """The prompt with the persona in a system message, or in the first user message if the template contains the question."""
    index = next((index for index, one in enumerate(prompt) if one["role"] == "user"), len(prompt))
    question = prompt[index]["content"] if index < len(prompt) else None
    message = persona_message(persona, question if isinstance(question, str) else "", template)
    if message["role"] == "user":
        if not isinstance(question, str):
            raise DataError(f"template = {template!r}: puts the persona into the user's text, but this prompt has no such text")
        return [*prompt[:index], {**prompt[index], "content": message["content"]}, *prompt[index + 1 :]]
    system = "\n\n".join([message["content"], *_system_texts(prompt)])
    return [{"role": "system", "content": system}, *(one for one in prompt if one["role"] != "system")]


class VerifiableReward:
    """A reward function with TRL's signature. It can be pickled. `__name__` is its name in TRL's logs."""

    def __init__(self, task: Task, answer_column: str) -> None:
        self.task, self.answer_column = task, answer_column
        self.__name__ = f"{task.name}_reward"
        self._gold_by_answer: dict[str, str | None] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return VerifiableReward, (self.task, self.answer_column)

    def __call__(self, prompts: Sequence[Any] | None, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """One reward for each completion: 1.0, 0.0, or None if the verifier failed or the answer column has no answer.

        `completions`: texts, or lists of messages of which the last one counts. Raises DataError if the answer column is missing,
        if the numbers of prompts, completions and answers differ, or if it has had no usable answer so far.
        """
        asked = [None] * len(completions) if prompts is None or len(prompts) == 0 else prompts
        if len(asked) != len(completions):
            raise DataError(f"{self.__name__}: {len(asked)} prompts for {len(completions)} completions")
        rewards = [
            None
            if gold is None
            else verify_completion(self.task, _completion_text(completion), gold, _question_text(prompt)).reward
            for prompt, completion, gold in zip(asked, completions, self._golds(len(completions), columns), strict=True)
        ]
        if (log_metric := columns.get("log_metric")) is not None:
            log_metric(f"{self.__name__}/unscored", float(rewards.count(None)))
        return rewards

    def _golds(self, n_completions: int, columns: Mapping[str, Any]) -> list[str | None]:
        name = self.answer_column
        if name not in columns:
            others = ", ".join(key for key, value in columns.items() if isinstance(value, list)) or "none"
            raise DataError(f"{self.__name__}: the data set has no column {name!r}; answer_column may be one of: {others}")
        answers = list(columns[name])
        if len(answers) != n_completions:
            raise DataError(f"{self.__name__}: {len(answers)} answers in {name!r} for {n_completions} completions")
        golds = [self._gold(answer) for answer in answers]
        if answers and all(gold is None for gold in self._gold_by_answer.values()):
            raise DataError(
                f"{self.__name__}: {name} = {quote_value(answers[0])}: is not an answer that the task {self.task.name} can verify"
            )
        return golds

    def _gold(self, answer: object) -> str | None:
        known = repr(answer)
        if known not in self._gold_by_answer:
            gold = find_gold(self.task, answer, any_of=self.answer_column == ACCEPTED_ANSWERS_COLUMN)
            self._gold_by_answer[known] = gold
            if gold is None:
                print_status(
                    f"note: {self.__name__}: {quote_value(answer)} is not an answer that can be verified; its rewards are None"
                )
        return self._gold_by_answer[known]


def _question_text(prompt: Any) -> str:
    """The text of a prompt, or the content of its last user message."""
    return prompt or "" if prompt is None or isinstance(prompt, str) else last_user_text(prompt)


def _completion_text(completion: Any) -> str:
    """A completion's text, or the content of its last message; "" if that has no content, like a tool call."""
    if isinstance(completion, str):
        return completion
    if not isinstance(completion, Sequence) or not all(isinstance(one, Mapping) for one in completion):
        raise DataError(f"completion = {quote_value(completion)}: must be a text, or a list of messages")
    content = completion[-1].get("content") if completion else None
    return content if isinstance(content, str) else ""


def verifiable_reward(task: str | Task | LoadedTask, answer_column: str = "answer") -> VerifiableReward:
    """A reward function for TRL's `GRPOTrainer`: 1 for a right answer, 0 for a wrong one, None if the verifier fails.

    `task`: a name such as "gsm8k", "math" or "own-exact", or a task. It defines how an answer is extracted from a completion and
    compared. `answer_column`: the data set's column of right answers; of a worked solution the final answer counts.

    Raises ConfigError for an unknown task, or if nothing can be verified (the task "code" without bubblewrap).
    """
    if isinstance(task, LoadedTask):
        task = task.task
    found = task if isinstance(task, Task) else find_task(task)
    if found.source is None and not is_permix_task(found):
        found = own_task(found, "python")
    found.require_environment()
    return VerifiableReward(found, answer_column)
