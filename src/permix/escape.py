"""Text that others wrote, made safe to show: model output, persona texts and labels are hostile until they passed through here.

Contract: what comes back is read as text and as nothing else. `visible` serves every medium (terminal, figure, file): control
characters, terminal escapes, bidi and zero-width marks and lone surrogates become visible codes (`\\x1b`, `\\u202e`), so nothing
is hidden and nothing acts. `markdown` also takes every meaning from Markdown and HTML. `clip` keeps it short. None of them fails.
"""

import re
import unicodedata

# The ASCII marks that open Markdown, HTML, a mention, an emoji code or mathematics. As a numeric reference each is only itself.
_MARKS = re.compile(r"[&<>|`*_\[\]\\~$@:#!]")
_WWW = re.compile(r"(?i)(www)\.")  # GitHub links "www." without any mark
_BLOCK = re.compile(r"^(\s*)(\d+[.)]|[-+=])", re.MULTILINE)  # a list, a rule or a heading, where it starts a line
_MUTE = {"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"}


def visible(text: str) -> str:
    """One line or more of printable text; "\\n" alone keeps its meaning, tabs become spaces, "\\r\\n" is a line end."""
    levelled = text.replace("\r\n", "\n").expandtabs(4)
    if levelled.replace("\n", " ").isprintable():  # nearly every text, a hundred times as fast
        return levelled
    return "".join(one if one == "\n" or unicodedata.category(one) not in _MUTE else _code(one) for one in levelled)


def clip(text: str, width: int, lines: int = 1) -> str:
    """At most `lines` lines of at most `width` characters; what was cut is marked with "…"."""
    kept = text.split("\n")
    shown = [one if len(one) <= width else one[: width - 1] + "…" for one in kept[:lines]]
    if len(kept) > lines:
        shown[-1] = shown[-1][: width - 2].removesuffix("…") + " …"
    return "\n".join(shown)


def markdown(text: str) -> str:
    """Text for a Markdown table cell or sentence: marks as numeric references, line ends as <br>."""
    escaped = _MARKS.sub(_reference, visible(text))
    escaped = _WWW.sub(r"\1&#46;", escaped)
    escaped = _BLOCK.sub(lambda found: found[1] + "".join(_number(one) for one in found[2]), escaped)
    return escaped.strip("\n").replace("\n", "<br>")


def figure(text: str, width: int) -> str:
    """One line for a figure: clipped, with "$" kept from starting mathematics and "_" from hiding a legend entry."""
    line = clip(visible(text).replace("\n", " "), width).replace("$", r"\$")
    return "\u200a" + line if line.startswith("_") else line


def _reference(found: re.Match[str]) -> str:
    return _number(found[0])


def _number(character: str) -> str:
    return f"&#{ord(character)};"


def _code(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
