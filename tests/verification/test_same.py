"""What counts as the same output and the same value, and that nothing a program says can count as more."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from permix.verification.guest.protocol import encode_value
from permix.verification.sandbox import same_output, same_value

LONG = "9" * 6000


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("3\n", "3", True),
        ("  1 2 \r\n3\n\n\n", "1 2\n3", True),
        ("1  2", "1 2", True),  # two spaces between numbers
        ("a  b", "a b", False),  # and between words
        ("3.0", "3", True),
        ("1e3 .5", "1000 0.50", True),
        ("0.1", "0.10000000000000001", False),
        ("50000000000000001", "50000000000000000", False),
        (f"{LONG}", f"{LONG}.0", True),
        (f"{LONG}1", f"{LONG}2", False),
        ("1e999999", "2e999999", False),
        ("nan", "NaN", False),
        ("sNaN", "1", False),
        ("Infinity", "inf", False),
        ("1 2", "1", False),
        ("1\n2", "1", False),
        ("1\n\n2", "1\n2", False),
        ("", "", True),
        ("", "0", False),
        ("YES", "yes", False),
        ("gr\u00fcn \U0001f40d", "gr\u00fcn \U0001f40d", True),
        ("\udcff", "\udcff", True),
    ],
)
def test_output_line_by_line_and_number_by_number(printed: str, expected: str, same: bool) -> None:
    assert same_output(printed, expected) is same


@pytest.mark.parametrize(
    ("value", "expected", "same"),
    [
        (3, "3", True),
        (3.0, "3", True),
        (True, "1", True),  # as Python, and so LiveCodeBench, has it
        ("3", "3", False),
        ([1, (2, 3)], "[1, [2, 3]]", True),
        ((1, 2), "[1, 2]", True),
        ({"a": [1]}, '{"a": [1]}', True),
        ({1: 2}, '{"1": 2}', False),
        ({1, 2}, "[1, 2]", False),
        (None, "null", True),
        (None, "0", False),
        (float("nan"), "NaN", False),
        (0.1 + 0.2, "0.3", False),
        (3 + 0j, "3", True),
        (3 + 1j, "3", False),
        (3 + 0j, "[3, 0]", False),
        ({}, "{}", True),
        ({}, "[]", False),
        ([], "{}", False),
        ({"a": 1, "b": {"c": ()}}, '{"b": {"c": []}, "a": 1}', True),
        ({"a": 1}, '{"a": 1, "b": 2}', False),
        (b"3", "3", False),
        (b"", "[]", False),
        (frozenset(), "[]", False),
        (10**400, "1e400", False),
        (float("inf"), "1e400", True),  # as Python reads it
        (float("-inf"), "Infinity", False),
    ],
)
def test_values_as_python_compares_them_but_for_tuples(value: object, expected: str, same: bool) -> None:
    assert same_value(encode_value(value), expected) is same


def test_integers_of_any_length_are_compared_by_their_digits() -> None:
    assert same_value(LONG.encode(), LONG)
    assert same_value(f"[-{LONG}, 1]".encode(), f"[-{LONG}, 1]")
    assert not same_value(LONG.encode(), LONG[:-1] + "8")
    assert not same_value(f'"{LONG}"'.encode(), LONG)
    assert not same_value(LONG.encode(), f'"{LONG}"')


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"{", b"\xff", b'{"eval": "1"}', b'{"tuple": 3}', b'{"tuple": "ab"}', b'{"set": [[1]]}', b"[" * 100_000,
        b'{"a": 1, "b": 2}', b"{}", b'{"dict": [1, 2]}', b'{"dict": [[1]]}', b'{"dict": {}}', b'{"dict": [["a", 1], ["a", 1]]}',
        b'{"dict": [["a", 2], ["a", 1]]}', b'{"dict": [[["a"], 1]]}', b'{"complex": []}', b'{"complex": 1}',
        b'{"complex": [1, 0]}', b'{"complex": ["1", 0]}', b'{"complex": [null, 0]}',
        b'{"bytes": "zz"}', b'{"bytes": 1}', b'{"tuple": [] } extra', b'{"dict": [[1' + b"0" * 5000 + b', 1], ["b", 2]]}',
        b'{"complex": [1' + b"0" * 400 + b', 0]}', b'{"complex": [0, 1' + b"0" * 400 + b']}', b"1" + b"0" * 400, b"-1e999",
        b'{"complex": [1' + b"0" * 5000 + b', 0]}', b'{"set": ' * 300 + b"[]" + b"}" * 300, b"[" * 5000 + b"]" * 5000,
    ],
)  # fmt: skip
@pytest.mark.parametrize("expected", ["null", "1", "[]", '{"a": 1, "b": 2}', '"ab"', "[1, 2]", "1e300"])
def test_what_is_no_value_is_the_same_as_nothing(payload: bytes, expected: str) -> None:
    assert not same_value(payload, expected)


MODULUS = 2**61 - 1
"""Python's hash of an integer is its remainder by this: all of its multiples have hash 0."""


@pytest.mark.parametrize(
    "form", ['{"set": [%s]}', '{"frozenset": [%s]}', '{"dict": [%s]}', '{"tuple": [{"set": [%s]}]}', '[{"dict": [%s]}]', "[%s]"]
)
@pytest.mark.parametrize("expected", ["[]", "3"])
def test_integers_that_collide_take_no_longer_than_others(form: str, expected: str) -> None:
    """In a set or a dict of Python 380,000 of them, 8 MB, take minutes."""
    one = "[%d, 0]" if "dict" in form else "%d"
    payload = (form % ", ".join(one % (n * MODULUS) for n in range(1, 100_000))).encode()
    began = time.process_time()
    assert not same_value(payload, expected)
    assert time.process_time() - began < 10


def test_a_long_value_is_compared_whole() -> None:
    numbers = [n * MODULUS for n in range(20_000)]
    text = json.dumps(numbers)
    assert same_value(encode_value(tuple(numbers)), text)
    assert not same_value(encode_value([*numbers[:-1], 0]), text)
    assert same_value(encode_value({str(n): [n] for n in numbers}), json.dumps({str(n): [n] for n in numbers}))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda one: st.lists(one) | st.dictionaries(st.text(), one)
    )
)
def test_a_value_of_json_is_the_same_as_itself(value: object) -> None:
    assert same_value(encode_value(value), json.dumps(value))
