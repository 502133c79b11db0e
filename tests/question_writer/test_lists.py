"""Lists and objects out of replies: as asked for, as models like to give them, cut off, and hostile."""

import pytest

from permix.question_writer.parsing import MAX_REPLY_CHARS, parse_list, parse_object

TWO = ["Who are you?", "What do you do?"]


@pytest.mark.parametrize(
    "reply",
    [
        '{"questions": ["Who are you?", "What do you do?"]}',
        '["Who are you?", "What do you do?"]',
        'Sure! Here [as asked] they are:\n```json\n{"questions": ["Who are you?", "What do you do?"]}\n```\nAnything else?',
        "['Who are you?', 'What do you do?']",
        "{'questions': ['Who are you?', \"What do you do?\"]}",
        '[{"question": "Who are you?"}, {"situation": "a funeral", "question": "What do you do?"}]',
        '{"task": "x", "questions": [{"text": "Who are you?"}, {"q": "What do you do?"}]}',
        '"Who are you?",\n"What do you do?"',
        "1. Who are you?\n2. What do you do?",
        "Here they are:\n\n 1) **Who are you?**\n 2) *What do you do?*\n\nEnjoy!",
        "- Who are you?\n• What do you do?",
        '1. "Who are you?"\n2. "What do you do?"',
        '{"questions": ["Who are you?", "What do you do?", "And how do y',
        '{\n "questions": [\n  "Who are you?",\n  "What do you do?",\n  "And how do y',
        '{"questions": ["Who are you?", "What do you do?",]}',
    ],
)
def test_two_questions_however_they_are_given(reply: str) -> None:
    assert parse_list(reply) == TWO


def test_what_is_not_text_is_left_to_the_caller_to_refuse() -> None:
    assert parse_list('["Who are you?", 3, null, ["x"], {"a": 1}]') == ["Who are you?", 3, None, ["x"], {"a": 1}]


def test_quotes_inside_a_line_do_not_part_it() -> None:
    assert parse_list('{"questions": [\n "A man says "hello". Why?",\n "And you?"\n]}') == [
        'A man says "hello". Why?',
        "And you?",
    ]


@pytest.mark.parametrize("reply", ["", "   ", "I am sorry, but I cannot.", "{}", "[]", '{"questions": []}', "[1, 2]", "42"])
def test_no_list(reply: str) -> None:
    assert parse_list(reply) is None


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ('{"1": "a", "2": "b"}', {"1": "a", "2": "b"}),
        ("{1: 'a', 2: 'b'}", {"1": "a", "2": "b"}),
        ('Here:\n```\n{"1": "a",\n "2": "line\nbreak"}\n```', {"1": "a", "2": "line\nbreak"}),
        ('{"1": {"answer": "a"}, "2": "b"}', {"1": "a", "2": "b"}),
        ('{"1": "a", "2": "say \\"b\\"", "3": "cut o', {"1": "a", "2": 'say "b"'}),
        ("no object", None),
        ("{}", None),
    ],
)
def test_objects(reply: str, found: dict[str, object] | None) -> None:
    assert parse_object(reply) == found


@pytest.mark.parametrize(
    "reply",
    [
        "[" * MAX_REPLY_CHARS, "{" * MAX_REPLY_CHARS, '{"1":' * 8000, "[" + "-" * (MAX_REPLY_CHARS - 3) + "1]",
        '["a", ' + "9" * 9000 + "]", '"\\' * (MAX_REPLY_CHARS // 2),
        '"a"' + " " * MAX_REPLY_CHARS, "\n" * MAX_REPLY_CHARS, "- " * MAX_REPLY_CHARS,
        '["' + '\\"' * MAX_REPLY_CHARS, "[" + "1e999," * 900 + "'x']",
        "[*'ab']", "[b'a' 'b']",
        "[{[]: 1}]", "['\\ud800']",
    ],
)  # fmt: skip
def test_hostile_replies_end_as_data_or_as_nothing(reply: str) -> None:
    assert isinstance(parse_list(reply), list | None)
    assert isinstance(parse_object(reply), dict | None)


def test_nothing_is_run() -> None:
    calls = '[__import__("os").abort(), "x"]'
    assert parse_list(calls) == ["os", "x"]
    assert parse_object('{"1": open("/etc/passwd").read()}') is None


def test_no_more_than_a_bounded_part_is_read() -> None:
    assert parse_list(" " * MAX_REPLY_CHARS + '["Who are you?"]') is None
