"""Hostile text is shown and never acts."""

import pytest

from permix.sanitize import escape_control, escape_for_figure, escape_markdown, truncate


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("a\u202eb", "a\\u202eb"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("over\rwrite\x00\x07", "over\\x0dwrite\\x00\\x07"),
        ("a\r\nb\tc", "a\nb   c"),
        ("lone \ud800", "lone \\ud800"),
        ("tag \U000e0041", "tag \\U000e0041"),
        ("naïve 数学 – ½", "naïve 数学 – ½"),
    ],
)
def test_visible(hostile: str, shown: str) -> None:
    assert escape_control(hostile) == shown


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("<script>&amp;</script>", "&#60;script&#62;&#38;amp;&#60;/script&#62;"),
        ("![x](y) [z](w)", "&#33;&#91;x&#93;(y) &#91;z&#93;(w)"),
        ("a | b", "a &#124; b"),
        ("**b** _i_ `c` ~~s~~ $m$", "&#42;&#42;b&#42;&#42; &#95;i&#95; &#96;c&#96; &#126;&#126;s&#126;&#126; &#36;m&#36;"),
        ("https://a.b www.c.d @me :tada:", "https&#58;//a.b www&#46;c.d &#64;me &#58;tada&#58;"),
        ("# h\n- i\n1. j\n---", "&#35; h<br>&#45; i<br>&#49;&#46; j<br>&#45;--"),
        ("3 - 1 = 2, so 2.", "3 - 1 = 2, so 2."),
    ],
)
def test_markdown(hostile: str, shown: str) -> None:
    assert escape_markdown(hostile) == shown


def test_clip_marks_what_it_cut() -> None:
    assert truncate("abcdef", 6) == "abcdef"
    assert truncate("abcdefg", 6) == "abcde…"
    assert truncate("one\ntwo\nthree", 10, lines=2) == "one\ntwo …"


def test_figure_text_starts_no_mathematics_and_hides_from_no_legend() -> None:
    assert escape_for_figure("$x$\ny", 20) == r"\$x\$ y"
    assert escape_for_figure("_base", 20) == "\u200a_base"
