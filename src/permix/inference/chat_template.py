"""Chat templates of tokenizers: what permix changes in them, what they do, and messages to token ids and back.

`prepare_template` changes a template at its start, so that every use of the tokenizer has the same prompt: text is written as
parts where the template wants it, the date is fixed, and thinking is switched on or off. The other functions read from a
template, by rendering it, which turns it opens, ends or inserts.
"""

import datetime
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby, takewhile
from typing import Any, NamedTuple

from permix.config import ThinkingSwitch
from permix.errors import ConfigError
from permix.progress import print_status_once
from permix.thinking import closing_text, opening_tag_at_end, split_thinking, thinking_tags
from permix.types import Message


def prepare_template(tokenizer: Any, thinking: ThinkingSwitch, source: str) -> None:
    """Make the template take text, have a fixed date, and, unless `thinking` is "default", have thinking switched on or off.

    Raises ConfigError, which names the model `source`, when the template is missing, writes no question, or has no switch.
    """
    if not tokenizer.chat_template:
        raise ConfigError(f"model.name = {source!r}: its tokenizer has no chat template, so it cannot be given a persona")
    if isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
        names = ", ".join(tokenizer.chat_template)
        raise ConfigError(f"model.name = {source!r}: none of its chat templates ({names}) is named default")
    _write_text_as_parts_if_needed(tokenizer, source)
    _pin_date(tokenizer)
    if thinking != "default":
        _set_thinking(tokenizer, thinking, source)


def _default_template(tokenizer: Any) -> str:
    """The template that chats use: of several named ones the one named default."""
    template = tokenizer.chat_template
    return str(template["default"] if isinstance(template, dict) else template)


def writes_date(tokenizer: Any) -> bool:
    """Whether the template writes a date: the fixed one, after `prepare_template`."""
    return DATE_MACRO in _default_template(tokenizer)


def _prepend_to_template(tokenizer: Any, block: str) -> None:
    """Write Jinja before the template that chats use. Templates are rendered with `trim_blocks`, which drops the line break."""
    template, changed = tokenizer.chat_template, f"{block}\n{_default_template(tokenizer)}"
    tokenizer.chat_template = {**template, "default": changed} if isinstance(template, dict) else changed


def _render(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **options: Any) -> str | None:
    """The text of the chat; None if the template refuses it."""
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **options))
    except (TemplateError, TypeError):  # the latter where a template adds a text and something else
        return None


def _set_thinking(tokenizer: Any, thinking: ThinkingSwitch, source: str) -> None:
    question = [{"role": "user", "content": TEMPLATE_MARKER}]

    def is_switch(name: str) -> bool:
        on, off = (_render(tokenizer, question, add_generation_prompt=True, **{name: value}) for value in (True, False))
        return on != off

    names = list(filter(is_switch, THINKING_VARIABLES))
    if not names:
        raise ConfigError(
            f"model.thinking = {thinking!r}: the chat template of {source} has no switch of thinking; leave it out (a model that "
            "is switched by words in its system message can be given them in personas.template)"
        )
    value = "true" if thinking == "on" else "false"
    _prepend_to_template(tokenizer, "".join(f"{{% set {name} = {value} %}}" for name in names))


PINNED_DATE = datetime.datetime(2024, 7, 26)
"""The date that every chat template writes, so that prompts do not change from day to day: the one that Llama 3.1's template
writes where it has no clock."""


def _pin_date(tokenizer: Any) -> None:
    """Replace `strftime_now`, the clock of chat templates, by a macro that writes `PINNED_DATE`."""
    template = _default_template(tokenizer)
    if "strftime_now" not in template or DATE_MACRO in template:
        return
    values = {f"%{pad}{one}": PINNED_DATE.strftime(f"%{one}") for one in "aAbBdHIjmMpSUwWyYcxX" for pad in ("", "-")}
    values |= {key: value.lstrip("0") for key, value in values.items() if key.startswith("%-") and value.isdigit()}
    replaced = "".join(f" | replace('{key}', '{value}')" for key, value in values.items())
    _prepend_to_template(tokenizer, f"{{% {DATE_MACRO}(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}")
    print_status_once(
        f"note: the chat template writes the date; it always writes {PINNED_DATE:%d %B %Y}, so that prompts stay the same"
    )


def _write_text_as_parts_if_needed(tokenizer: Any, source: str) -> None:
    """Let a template that takes content only as a list of parts (of images and texts) take a text as well."""
    question = [{"role": "user", "content": TEMPLATE_MARKER}]
    if TEMPLATE_MARKER in (_render(tokenizer, question) or ""):
        return
    _prepend_to_template(tokenizer, TEXT_TO_PARTS)
    if TEMPLATE_MARKER not in (_render(tokenizer, question) or ""):
        raise ConfigError(f"model.name = {source!r}: its chat template refuses or leaves out the user's message")


class _TemplateFacts(NamedTuple):
    """What a chat template does with a system message, before an answer and after it."""

    template: Any
    takes_system: bool
    takes_empty_system: bool
    opened_thinking: str
    end_of_turn_ids: tuple[int, ...]
    thinking_tag_ids: frozenset[int]
    """The special tokens among `thinking_tags`."""


def _template_facts(tokenizer: Any) -> _TemplateFacts:
    """Found out once for each tokenizer and template."""
    template = getattr(tokenizer, "chat_template", None)
    facts: _TemplateFacts | None = getattr(tokenizer, "_permix_template_facts", None)
    if facts is None or facts.template != template:
        question = [{"role": "user", "content": TEMPLATE_MARKER}]
        prompt = _render(tokenizer, question, add_generation_prompt=True) or ""
        takes_system = _system_frame(tokenizer) is not None
        special = {str(token): index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        facts = _TemplateFacts(
            template,
            takes_system,
            takes_empty_system=takes_system and _takes_empty_system(tokenizer),
            opened_thinking=opening_tag_at_end(prompt.rpartition(TEMPLATE_MARKER)[2]),
            end_of_turn_ids=_find_end_of_turn(tokenizer),
            thinking_tag_ids=frozenset(map(special.__getitem__, thinking_tags(special.keys()))),
        )
        tokenizer._permix_template_facts = facts
    return facts


def takes_system_message(tokenizer: Any) -> bool:
    """Whether the chat template writes a system message's text. Gemma's and Mistral's first ones refuse or drop it."""
    return _template_facts(tokenizer).takes_system


def _takes_empty_system(tokenizer: Any) -> bool:
    """Whether an empty system message keeps the template from inserting its own system text."""
    text = _render(tokenizer, [{"role": "system", "content": ""}, {"role": "user", "content": TEMPLATE_MARKER}])
    default = default_system_text(tokenizer)
    return text is not None and (default is None or default not in text)


def opened_thinking(tokenizer: Any) -> str:
    """The tag with which the chat template opens the answer's thinking in the prompt; empty for most templates.

    A completion then starts inside its thinking, so the tag must be put before its text: without it thinking that never ends
    would look like an answer.
    """
    return _template_facts(tokenizer).opened_thinking


def end_of_turn_ids(tokenizer: Any) -> tuple[int, ...]:
    """The special tokens that the chat template writes directly after an answer, in their order; empty if it writes none.

    Where it writes none after the last message of a chat, those between an answer and the next question count.
    """
    return _template_facts(tokenizer).end_of_turn_ids


def _find_end_of_turn(tokenizer: Any) -> tuple[int, ...]:
    question, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": TEMPLATE_MARKER}
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    if tokenizer.bos_token_id != tokenizer.eos_token_id:
        special.discard(tokenizer.bos_token_id)  # some templates write it before every question
    for chat in ([question, answer], [question, answer, question]):
        _, _, text_after = (_render(tokenizer, chat) or "").partition(TEMPLATE_MARKER)
        ids = tokenizer(text_after.lstrip(), add_special_tokens=False)["input_ids"]
        if found := tuple(takewhile(special.__contains__, ids)):
            return found
    return ()


def encode_chat(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of the chat, up to where the answer begins.

    Raises ConfigError if the chat template refuses the chat, drops its system message, or writes its own instead of an empty one.
    """
    from jinja2 import TemplateError

    _check_system_message(tokenizer, messages)
    try:
        return list(tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=True)["input_ids"])
    except (TemplateError, TypeError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ConfigError(f"the model's chat template refuses a chat of the messages {roles}: {error}") from error


def _check_system_message(tokenizer: Any, messages: Sequence[Message]) -> None:
    for message in messages:
        if message["role"] != "system":
            continue
        if not message["content"] and not _template_facts(tokenizer).takes_empty_system:
            raise ConfigError(
                "personas.empty_system_prompt = true: the model's chat template refuses an empty system message, or writes its "
                "own system text all the same; leave it out"
            )
        if not takes_system_message(tokenizer):
            raise ConfigError(
                "the model's chat template takes no system message, so it cannot be given a persona there; give "
                "--personas.template in_question, which puts the persona into the user's message"
            )


def encode_completion(text: str, tokenizer: Any) -> list[int]:
    """Token ids of a completion after its prompt, without any special token such as the end of the turn.

    Where the template opens the thinking in the prompt, the opening tag is left out of the completion, and a text without
    thinking closes it first: a model that learnt `<think>` and then the solution would never say an answer.
    """
    if opened := opened_thinking(tokenizer):
        tag = opened.strip()
        if text.startswith(tag):
            text = text.removeprefix(opened if text.startswith(opened) else tag)
        elif not split_thinking(text).thinking:
            text = closing_text(tag) + text
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def decode_completion(
    tokenizer: Any, token_ids: Sequence[int], stops: Collection[int], prompt_ids: Sequence[int] | None = None
) -> str:
    """The text of a completion, with the tag that the prompt opened, without stop token and special tokens.

    `thinking_tags` that are special tokens stay: without them thinking would look like an answer. prompt_ids: the prompt, for an
    engine that may have written it in another way than the tokenizer's template does by itself.
    """
    opened = opened_thinking(tokenizer) if prompt_ids is None else opening_tag_at_end(tokenizer.decode(list(prompt_ids)))
    tags = _template_facts(tokenizer).thinking_tag_ids
    ids = token_ids[:-1] if token_ids and token_ids[-1] in stops else token_ids
    runs = groupby(ids, key=tags.__contains__)
    return opened + "".join(tokenizer.decode(list(run), skip_special_tokens=not is_tag) for is_tag, run in runs)


class _Frame(NamedTuple):
    """The text that a chat template writes before the system text, and between the system text and the user's."""

    before: str
    after: str


def _system_frame(tokenizer: Any) -> _Frame | None:
    """The frame that the template puts around a system text; None when it refuses a system message or drops its text."""
    messages = [{"role": "system", "content": SYSTEM_MARKER}, {"role": "user", "content": TEMPLATE_MARKER}]
    before, marker, rest = (_render(tokenizer, messages) or "").partition(SYSTEM_MARKER)
    return _Frame(before, rest.partition(TEMPLATE_MARKER)[0]) if marker else None


def default_system_text(tokenizer: Any) -> str | None:
    """The system text that a chat template inserts when no system message is sent; None if it inserts none."""
    frame = _system_frame(tokenizer)
    if frame is None:
        return None
    without_system = _render(tokenizer, [{"role": "user", "content": TEMPLATE_MARKER}]) or ""
    head, _, _ = without_system.partition(TEMPLATE_MARKER)
    if not (head.startswith(frame.before) and head.endswith(frame.after)) or len(head) < len(frame.before) + len(frame.after):
        return None
    return head[len(frame.before) : len(head) - len(frame.after)] or None


THINKING_VARIABLES = ("enable_thinking", "thinking")
"""The names under which public chat templates read whether the model is to think."""


TEMPLATE_MARKER, SYSTEM_MARKER = "\x00probe\x00", "\x01"
"""Texts that no chat template contains; where they come out shows what the template writes around a message."""


DATE_MACRO = "macro strftime_now"
"""Where it is in a template, the date is pinned already, as in the folder of a trained model."""


TEXT_TO_PARTS = (
    "{% set with_parts = namespace(messages=[]) %}{% for message in messages %}"
    "{% set parts = [{'type': 'text', 'text': message.content}] if message.content is string else message.content %}"
    "{% set with_parts.messages = with_parts.messages + [dict(message, content=parts)] %}"
    "{% endfor %}{% set messages = with_parts.messages %}"
)
"""Jinja that makes every text of the messages a list of one part."""
