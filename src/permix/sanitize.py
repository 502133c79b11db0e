r"""Text that others wrote, made safe to show: model output, persona texts and labels are hostile until they passed through here.

Contract: what comes back is read as text and as nothing else. `visible` serves every medium (terminal, figure, file): control
characters, terminal escapes, bidi and zero-width marks and lone surrogates become visible codes (`\\x1b`, `\\u202e`), so nothing
is hidden and nothing acts. `markdown` also takes every meaning from Markdown and HTML. `clip` keeps it short. None of them fails.

Commands as they may be shown: what looks like a key or a password in them is left out.

permix writes no secret into a run directory, but whoever typed one on a command line finds it in provenance.json.
"""

import re
import shlex
import unicodedata
from collections.abc import Iterator, Sequence

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


HIDDEN = "(hidden)"

COMMAND_CHARS = 2000

_SECRET = re.compile(r"(?i)(^|[-_.])(api[-_]?key|secret|passw(or)?d|token|credentials?)$")

_LOGIN = re.compile(r"(//)[^/@\s]+@")

_KEY = re.compile(r"\b(sk|hf|ghp|xox[abp])[-_][A-Za-z0-9_-]{16,}")


def shown(words: Sequence[object]) -> str:
    """A command line as it would be typed, with its secrets hidden; control characters visible."""
    return clip(visible(shlex.join(_without_secrets([str(word) for word in words]))), COMMAND_CHARS)


def without_secrets(text: str) -> str:
    """Text with logins in addresses, and keys that show what they are, hidden."""
    return _KEY.sub(HIDDEN, _LOGIN.sub(rf"\1{HIDDEN}@", text))


def _without_secrets(words: Sequence[str]) -> Iterator[str]:
    follows = False
    for word in words:
        name, equals, _ = word.partition("=")
        is_secret = word.startswith("-") and _SECRET.search(name) is not None
        if follows and not word.startswith("-"):
            yield HIDDEN
        else:
            yield f"{name}={HIDDEN}" if is_secret and equals else without_secrets(word)
        follows = is_secret and not equals
