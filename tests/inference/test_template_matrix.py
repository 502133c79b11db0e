"""What public chat templates do, each in a few lines of its own, and what permix does with each.

Every template here has the behaviour of its namesake that matters to a prompt, and nothing else of it: roles that it refuses or
folds, default system texts, dates, thinking that it opens or strips, and the token that ends a turn.
"""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from permix.errors import ConfigError
from permix.inference.chat_template import (
    default_system_text,
    encode_chat,
    end_of_turn_ids,
    opened_thinking,
    takes_system_message,
)
from permix.inference.generation import end_of_turn_id, stop_token_ids
from permix.inference.hf import load_tokenizer
from permix.prompts import build_messages
from permix.thinking import split_thinking
from permix.training.sft_data import SFTExample
from permix.training.sft_trainer import tokenize_example
from permix.types import Message, Persona
from tests.tiny import make_tokenizer

SAILOR = Persona(id="sailor", text="a retired sailor who distrusts numbers")
QUESTION, SOLUTION = "What is 7 + 5?", "7 + 5 = 12."

EACH, REST, END = "{% for m in messages %}", "{% for m in rest %}", "{% endfor %}"


def opening(text: str) -> str:
    """What is written where the answer is to begin."""
    return "{% if add_generation_prompt %}" + text + "{% endif %}"


SPLIT_SYSTEM = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
)
ALTERNATE = (
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant must take turns') }}{% endif %}"
)
CHATML_TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
CHATML_OPEN = opening("<|im_start|>assistant\n")
CHATML = EACH + CHATML_TURN + END + CHATML_OPEN
WITHOUT_THINKING = "{{ m.content.split('</think>')[-1].lstrip('\n') }}"
SYSTEM = SPLIT_SYSTEM + "{{ system }}"
DEEPSEEK_USER = "{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% else %}<｜Assistant｜>"
DEEPSEEK_END = "<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
DEEPSEEK: dict[str, Any] = {
    "end": "<｜end▁of▁sentence｜>", "eos": "<｜end▁of▁sentence｜>", "bos": "<｜begin▁of▁sentence｜>",
    "tokens": ("<｜User｜>", "<｜Assistant｜>"),
}  # fmt: skip
MISTRAL: dict[str, Any] = {
    "end": "</s>", "eos": "</s>", "bos": "<s>",
    "tokens": ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[THINK]", "[/THINK]"),
}  # fmt: skip
MISTRAL_ANSWER = "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
MISTRAL_TURNS = REST + "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]" + MISTRAL_ANSWER
MISTRAL_SYSTEM = "{% if system %}[SYSTEM_PROMPT]{{ system }}[/SYSTEM_PROMPT]{% endif %}"
LLAMA_HEADER = "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
LLAMA_OPEN = opening("<|start_header_id|>assistant<|end_header_id|>\n\n")
LLAMA: dict[str, Any] = {"end": "<|eot_id|>", "tokens": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")}
GEMMA_HEADER = "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
GEMMA: dict[str, Any] = {
    "end": "<end_of_turn>", "eos": "<eos>", "bos": "<bos>", "tokens": ("<start_of_turn>", "<end_of_turn>")
}  # fmt: skip
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
GLM: dict[str, Any] = {"end": "<|user|>", "eos": "<|endoftext|>", "tokens": ("[gMASK]", "<sop>", *ROLES)}
COHERE: dict[str, Any] = {
    "end": "<|END_OF_TURN_TOKEN|>", "eos": "<|END_OF_TURN_TOKEN|>", "bos": "<BOS_TOKEN>",
    "tokens": ("<|START_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|START_RESPONSE|>",
               "<|END_RESPONSE|>", "<|START_THINKING|>", "<|END_THINKING|>"),
}  # fmt: skip


def chatml_default(text: str, rest: str = CHATML) -> str:
    return "{% if messages[0].role != 'system' %}<|im_start|>system\n" + text + "<|im_end|>\n{% endif %}" + rest


@dataclass
class Case:
    """A template and its tokens, and what is to be found out about it."""

    template: str | dict[str, str]
    end: str | None = "<|im_end|>"
    """The token that ends an answer; None if there is none but the tokenizer's end of text."""
    eos: str = "<|im_end|>"
    tokens: tuple[str, ...] = ()
    """Further special tokens."""
    bos: str | None = None
    system: bool = True
    empty_system: bool = True
    default: str | None = None
    opens: str = ""
    switch: bool = False
    date: str = ""


CASES: dict[str, Case] = {
    "chatml": Case(CHATML),
    "chatml of a base model": Case(CHATML, eos="<|endoftext|>", tokens=("<|im_end|>",)),
    "chatml that closes all but the last turn": Case(
        EACH + "<|im_start|>{{ m.role }}\n{{ m.content }}{% if not loop.last %}<|im_end|>\n{% endif %}" + END + CHATML_OPEN,
        eos="<|endoftext|>", tokens=("<|im_end|>",),
    ),
    "qwen2.5": Case(chatml_default("You are a helpful model."), default="You are a helpful model."),
    "smollm2": Case(chatml_default("You are small."), default="You are small."),
    "qwen3": Case(
        EACH + "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
        + WITHOUT_THINKING + "<|im_end|>\n" + END + CHATML_OPEN
        + opening("{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"),
        switch=True,
    ),
    "qwen3.5, qwq": Case(
        EACH + "<|im_start|>{{ m.role }}\n" + WITHOUT_THINKING + "<|im_end|>\n" + END + CHATML_OPEN + opening("<think>\n"),
        opens="<think>\n",
    ),
    "deepseek-v3": Case(
        "{{ bos_token }}" + SYSTEM + REST + DEEPSEEK_USER + "{{ m.content }}" + DEEPSEEK_END + opening("<｜Assistant｜>"),
        **DEEPSEEK,
    ),
    "deepseek-r1": Case(
        "{{ bos_token }}" + SYSTEM + REST + DEEPSEEK_USER + WITHOUT_THINKING + DEEPSEEK_END + opening("<｜Assistant｜><think>\n"),
        opens="<think>\n", **DEEPSEEK,
    ),
    "deepseek-v3.1": Case(
        "{{ bos_token }}" + SYSTEM + REST + DEEPSEEK_USER + "</think>{{ m.content }}" + DEEPSEEK_END
        + opening("<｜Assistant｜>{% if thinking is defined and thinking %}<think>{% else %}</think>{% endif %}"),
        switch=True, **DEEPSEEK,
    ),
    "llama-2": Case(
        SPLIT_SYSTEM + ALTERNATE + "{% if m.role == 'user' %}{{ bos_token }}[INST] {% if loop.first and system %}<<SYS>>\n"
        "{{ system }}\n<</SYS>>\n\n{% endif %}{{ m.content.strip() }} [/INST]{% else %} {{ m.content.strip() }} {{ eos_token }}"
        "{% endif %}{% endfor %}",
        end="</s>", eos="</s>", bos="<s>",
    ),
    "llama-3": Case(
        EACH + "{% if loop.first %}{{ bos_token }}{% endif %}" + LLAMA_HEADER + "{{ m.content | trim }}<|eot_id|>" + END
        + LLAMA_OPEN,
        eos="<|end_of_text|>", bos="<|begin_of_text|>", **LLAMA,
    ),
    "llama-3.1": Case(
        "{{ bos_token }}{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        + SPLIT_SYSTEM + "<|start_header_id|>system<|end_header_id|>\n\nToday: {{ date_string }}\n\n{{ system.strip() }}"
        "<|eot_id|>" + REST + LLAMA_HEADER + "{{ m.content | trim }}<|eot_id|>" + END + LLAMA_OPEN,
        eos="<|eot_id|>", bos="<|begin_of_text|>", date="Today: 26 Jul 2024", **LLAMA,
    ),
    "mistral-v0.1": Case(
        "{{ bos_token }}{% set rest = messages %}" + ALTERNATE + "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        + MISTRAL_ANSWER,
        end="</s>", eos="</s>", bos="<s>", system=False,
    ),
    "mistral-v3, system in the last question": Case(
        "{{ bos_token }}" + SPLIT_SYSTEM + ALTERNATE + "{% if m.role == 'user' %}[INST]{% if loop.last and system %}{{ system }}"
        "\n\n{% endif %}{{ m.content }}[/INST]" + MISTRAL_ANSWER,
        **MISTRAL,
    ),
    "mistral-v7": Case("{{ bos_token }}" + SPLIT_SYSTEM + MISTRAL_SYSTEM + MISTRAL_TURNS, **MISTRAL),
    "mistral-small-3.1, a default with the date": Case(
        "{{ bos_token }}" + SPLIT_SYSTEM + "{% if not system and rest == messages %}"
        "{% set system = 'You are M. It is ' + strftime_now('%Y-%m-%d') + '.' %}{% endif %}" + MISTRAL_SYSTEM + MISTRAL_TURNS,
        default="You are M. It is 2024-07-26.", date="2024-07-26", **MISTRAL,
    ),
    "magistral": Case(
        "{{ bos_token }}" + SPLIT_SYSTEM + MISTRAL_SYSTEM + MISTRAL_TURNS + opening("[THINK]"), opens="[THINK]", **MISTRAL
    ),
    "mixtral": Case(
        "{{ bos_token }}{% set rest = messages %}" + ALTERNATE + "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% else %}{{ raise_exception('no role') }}{% endif %}"
        "{% endfor %}",
        end="</s>", eos="</s>", bos="<s>", system=False,
    ),
    "gemma-2": Case(
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + EACH + GEMMA_HEADER + "{{ m.content | trim }}<end_of_turn>\n" + END + opening("<start_of_turn>model\n"),
        system=False, **GEMMA,
    ),
    "gemma-3, system in the first question": Case(
        "{{ bos_token }}" + SPLIT_SYSTEM + REST + GEMMA_HEADER + "{% if loop.first and system %}{{ system }}\n\n{% endif %}"
        "{% if m.content is string %}{{ m.content | trim }}{% else %}{{ m.content[0].text }}{% endif %}<end_of_turn>\n" + END
        + opening("<start_of_turn>model\n"),
        **GEMMA,
    ),
    "phi-3": Case(
        EACH + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n" + END
        + "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        end="<|end|>", eos="<|endoftext|>", tokens=(*ROLES, "<|end|>"),
    ),
    "phi-4": Case(
        EACH + "<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>" + END + opening("<|im_start|>assistant<|im_sep|>"),
        tokens=("<|im_sep|>",),
    ),
    "glm-4": Case("[gMASK]<sop>" + EACH + "<|{{ m.role }}|>\n{{ m.content }}" + END + opening("<|assistant|>\n"), **GLM),
    "glm-4.5": Case(
        "[gMASK]<sop>" + EACH + "<|{{ m.role }}|>\n{% if m.role == 'assistant' %}<think></think>\n{% endif %}{{ m.content }}"
        + END + opening("<|assistant|>{% if enable_thinking is defined and not enable_thinking %}\n<think></think>{% endif %}"),
        switch=True, **GLM,
    ),
    "gpt-oss": Case(
        "<|start|>system<|message|>Current date: {{ strftime_now('%Y-%m-%d') }}\n\nReasoning: medium<|end|>" + SPLIT_SYSTEM
        + "{% if system %}<|start|>developer<|message|># Instructions\n\n{{ system }}\n\n<|end|>{% endif %}" + REST
        + "{% if m.role == 'user' %}<|start|>user<|message|>{{ m.content }}<|end|>{% else %}<|start|>assistant<|channel|>final"
        "<|message|>{{ m.content }}{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% endif %}" + END
        + opening("<|start|>assistant"),
        end="<|return|>", eos="<|return|>", tokens=("<|start|>", "<|message|>", "<|end|>", "<|channel|>"),
        date="Current date: 2024-07-26",
    ),
    "command-r, named templates": Case(
        {
            "default": "{{ bos_token }}" + SPLIT_SYSTEM + "{% if system %}<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{{ system }}"
            "<|END_OF_TURN_TOKEN|>{% endif %}" + REST + "<|START_OF_TURN_TOKEN|>"
            "{{ '<|USER_TOKEN|>' if m.role == 'user' else '<|CHATBOT_TOKEN|>' }}{{ m.content.strip() }}<|END_OF_TURN_TOKEN|>"
            + END + opening("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"),
            "tool_use": "no chat",
            "rag": "no chat",
        },
        **COHERE,
    ),
    "command-a-reasoning, a preamble": Case(
        "{{ bos_token }}" + SPLIT_SYSTEM + "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|># Preamble\nBe safe.\n"
        "{% if system %}# Developer\n{{ system }}{% endif %}<|END_OF_TURN_TOKEN|>" + REST + "<|START_OF_TURN_TOKEN|>"
        "{% if m.role == 'user' %}<|USER_TOKEN|>{{ m.content }}{% else %}<|CHATBOT_TOKEN|><|START_RESPONSE|>{{ m.content }}"
        "<|END_RESPONSE|>{% endif %}<|END_OF_TURN_TOKEN|>" + END
        + opening("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_THINKING|>"),
        opens="<|START_THINKING|>", **COHERE,
    ),
    "granite-3, a default with the date": Case(
        SPLIT_SYSTEM + "{% if rest == messages %}{% set system = 'Today is ' + strftime_now('%B %d, %Y') + '. You are G.' %}"
        "{% if thinking %}{% set system = system + ' Think first.' %}{% endif %}{% endif %}"
        "<|start_of_role|>system<|end_of_role|>{{ system }}<|end_of_text|>\n" + REST
        + "<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}<|end_of_text|>\n" + END
        + opening("<|start_of_role|>assistant<|end_of_role|>"),
        end="<|end_of_text|>", eos="<|end_of_text|>", tokens=("<|start_of_role|>", "<|end_of_role|>"), switch=True,
        default="Today is July 26, 2024. You are G.", date="July 26, 2024",
    ),
    "nemotron, detailed thinking on": Case(
        SPLIT_SYSTEM + "<|start_header_id|>system<|end_header_id|>\n\n{{ system or 'detailed thinking on' }}<|eot_id|>"
        + REST + LLAMA_HEADER + WITHOUT_THINKING + "<|eot_id|>" + END + LLAMA_OPEN,
        eos="<|eot_id|>", default="detailed thinking on", empty_system=False, **LLAMA,
    ),
    "smollm3, flags of thinking": Case(
        SPLIT_SYSTEM + "{% set mode = '/think' if enable_thinking is not defined or enable_thinking else '/no_think' %}"
        "{% if '/no_think' in system %}{% set mode = '/no_think' %}{% endif %}<|im_start|>system\nToday Date: "
        "{{ strftime_now('%d %B %Y') }}\nReasoning Mode: {{ mode }}\n\n## Custom Instructions\n\n"
        "{{ system or 'You are S.' }}\n\n<|im_end|>\n" + REST + CHATML_TURN + END + CHATML_OPEN
        + opening("{% if mode == '/no_think' %}<think>\n\n</think>\n{% endif %}"),
        switch=True, date="26 July 2024", default="You are S.", empty_system=False,
    ),
    "yi": Case(CHATML, eos="<|endoftext|>", tokens=("<|im_end|>",), bos="<|startoftext|>"),
    "zephyr": Case(
        EACH + "<|{{ m.role }}|>\n{{ m.content + eos_token }}\n" + END + opening("<|assistant|>\n"), end="</s>", eos="</s>"
    ),
    "vicuna": Case(
        SPLIT_SYSTEM + "{{ system or 'A chat.' }} " + REST + "{% if m.role == 'user' %}USER: {{ m.content }} "
        "{% else %}ASSISTANT: {{ m.content }}{{ eos_token }}{% endif %}" + END + opening("ASSISTANT: "),
        end="</s>", eos="</s>", default="A chat.", empty_system=False,
    ),
    "alpaca": Case(
        SPLIT_SYSTEM + "{% if system %}{{ system }}\n\n{% endif %}" + REST + "### "
        "{{ 'Instruction' if m.role == 'user' else 'Response' }}:\n{{ m.content }}\n\n" + END + opening("### Response:\n"),
        end=None, eos="</s>",
    ),
    "olmo-2": Case(
        "{{ bos_token }}" + EACH + "<|{{ m.role }}|>\n{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
        "{% if not loop.last %}\n{% endif %}" + END + opening("\n<|assistant|>\n"),
        end="<|endoftext|>", eos="<|endoftext|>", bos="<|endoftext|>",
    ),
    "falcon-3": Case(
        EACH + "<|{{ m.role }}|>\n{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n" + END
        + opening("<|assistant|>\n"),
        end="<|endoftext|>", eos="<|endoftext|>", tokens=ROLES,
    ),
    "starchat, an empty system turn": Case(
        "{% if messages[0].role != 'system' %}<|system|>\n<|end|>\n{% endif %}" + EACH
        + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n" + END + opening("<|assistant|>\n"),
        end="<|end|>", eos="<|endoftext|>", tokens=(*ROLES, "<|end|>"),
    ),
    "internlm": Case("{{ bos_token }}" + CHATML, eos="</s>", bos="<s>", tokens=("<|im_end|>",)),
    "baichuan": Case(
        SYSTEM + REST + "{{ '<reserved_106>' if m.role == 'user' else '<reserved_107>' }}{{ m.content }}" + END
        + opening("<reserved_107>"),
        end="<reserved_106>", eos="</s>", tokens=("<reserved_106>", "<reserved_107>"),
    ),
    "openchat": Case(
        "{{ bos_token }}" + EACH + "{{ 'GPT4 Correct ' + m.role.title() + ': ' + m.content + '<|end_of_turn|>' }}" + END
        + opening("GPT4 Correct Assistant:"),
        end="<|end_of_turn|>", eos="</s>", bos="<s>", tokens=("<|end_of_turn|>",),
    ),
    "hermes, tools": Case({"default": CHATML, "tool_use": "{{ tools }}"}),
    "content as parts": Case(
        EACH + "<|im_start|>{{ m.role }}\n{% for part in m.content %}{% if part.type == 'image' %}<image>{% endif %}"
        "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n" + END + CHATML_OPEN,
    ),
    "content as parts, read by name": Case(
        SPLIT_SYSTEM + "{% if system %}<|im_start|>system\n{{ system[0]['text'] }}<|im_end|>\n{% endif %}" + REST
        + "<|im_start|>{{ m.role }}\n{{ m.content[0]['text'] + '<|im_end|>\n' }}" + END + CHATML_OPEN,
    ),
    "an empty system message is refused": Case(
        EACH + "{% if m.role == 'system' and not m.content %}{{ raise_exception('empty') }}{% endif %}" + CHATML_TURN + END
        + CHATML_OPEN,
        empty_system=False,
    ),
    "the system message is dropped": Case(
        "{% for m in messages if m.role != 'system' %}" + CHATML_TURN + END + CHATML_OPEN, system=False
    ),
    "the system message cannot be added to": Case(
        EACH + "{% if m.role == 'system' %}{{ 'Rules: ' + m.content + 1 }}{% endif %}" + CHATML_TURN + END + CHATML_OPEN,
        system=False,
    ),
}  # fmt: skip


class StandIn:
    """A network as far as its stop tokens go: they name the end of a text alone."""

    def __init__(self, eos: int) -> None:
        self.generation_config = type("Config", (), {"eos_token_id": eos})()


def save_case(case: Case, folder: Path) -> str:
    tokenizer = make_tokenizer(None)
    tokenizer.add_special_tokens({"eos_token": case.eos, "additional_special_tokens": list(case.tokens)})
    if case.bos:
        tokenizer.add_special_tokens({"bos_token": case.bos})
    tokenizer.chat_template = case.template
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def tokenizer(case: Case, tmp_path: Path) -> Any:
    return load_tokenizer(save_case(case, tmp_path))


def prompt(tokenizer: Any, messages: Any) -> str:
    return str(tokenizer.decode(encode_chat(tokenizer, messages)))


def test_persona_is_in_the_prompt_or_the_cure_is_named(case: Case, tokenizer: Any) -> None:
    assert takes_system_message(tokenizer) == case.system
    messages = build_messages(SAILOR, QUESTION)
    if not case.system:
        with pytest.raises(ConfigError, match=r"takes no system message.*give --personas\.template in_question"):
            encode_chat(tokenizer, messages)
        messages = build_messages(SAILOR, QUESTION, template="in_question")
    text = prompt(tokenizer, messages)
    assert (text.count(f"You are {SAILOR.text}."), text.count(QUESTION)) == (1, 1)


def test_without_a_persona_there_is_only_what_the_template_inserts(case: Case, tokenizer: Any) -> None:
    text = prompt(tokenizer, build_messages(None, QUESTION))
    assert QUESTION in text
    assert SAILOR.text not in text
    assert default_system_text(tokenizer) == case.default
    assert (case.default or "") in text


def test_an_empty_system_message_replaces_the_default_or_is_refused(case: Case, tokenizer: Any) -> None:
    messages = build_messages(None, QUESTION, empty_system_prompt=True)
    if case.system and case.empty_system:
        text = prompt(tokenizer, messages)
        assert QUESTION in text
        assert case.default is None or case.default not in text
    else:
        with pytest.raises(ConfigError, match=r"personas\.empty_system_prompt = true.*leave it out"):
            encode_chat(tokenizer, messages)


def test_an_interview_shows_every_turn_in_order(case: Case, tokenizer: Any) -> None:
    asked = build_messages(SAILOR, "Who are you?", template="you_are" if case.system else "in_question")
    turns = [("I sailed.", "Where to?"), ("To Java.", "And then?")]
    replies = chain.from_iterable(
        (Message(role="assistant", content=answer), Message(role="user", content=question)) for answer, question in turns
    )
    text = prompt(tokenizer, [*asked, *replies])
    said = ["Who are you?", "I sailed.", "Where to?", "To Java.", "And then?"]
    assert SAILOR.text in text
    assert [text.count(one) for one in said] == [1] * 5
    assert sorted(said, key=text.index) == said


def test_answers_end_where_the_template_ends_a_turn(case: Case, tokenizer: Any) -> None:
    network = StandIn(tokenizer.eos_token_id)
    end = tokenizer.convert_tokens_to_ids(case.end or case.eos)
    assert end_of_turn_id(network, tokenizer) == end
    assert set(stop_token_ids(network, tokenizer)) == {end, tokenizer.eos_token_id}
    assert bool(end_of_turn_ids(tokenizer)) == (case.end is not None)


def test_an_example_to_learn_closes_the_thinking_and_ends_the_turn(case: Case, tokenizer: Any) -> None:
    messages = build_messages(SAILOR, QUESTION, template="you_are" if case.system else "in_question")
    example = SFTExample(step=0, group=0, persona_id="sailor", question_id="q", gold="12", messages=messages, completion=SOLUTION)
    ids, labels = tokenize_example(example, tokenizer, end_of_turn_id(StandIn(tokenizer.eos_token_id), tokenizer))
    learnt = [one for one in labels if one >= 0]
    assert ids[: len(ids) - len(learnt)] == encode_chat(tokenizer, messages)
    assert tokenizer.convert_ids_to_tokens(learnt[-1]) == (case.end or case.eos)
    assert opened_thinking(tokenizer) == case.opens
    assert split_thinking(case.opens + tokenizer.decode(learnt[:-1])) == split_thinking(SOLUTION)


def test_the_switch_of_thinking_switches_or_is_refused(case: Case, tmp_path: Path) -> None:
    source = save_case(case, tmp_path)
    if not case.switch:
        with pytest.raises(ConfigError, match="has no switch of thinking"):
            load_tokenizer(source, "off")
        return
    messages = build_messages(None, QUESTION)
    assert prompt(load_tokenizer(source, "on"), messages) != prompt(load_tokenizer(source, "off"), messages)


def test_a_date_in_the_prompt_is_always_the_same(case: Case, tokenizer: Any) -> None:
    assert case.date in prompt(tokenizer, build_messages(None, QUESTION))
    assert ("strftime_now" in str(case.template)) == bool(case.date)
