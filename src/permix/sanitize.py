r"""Text that others wrote, made safe to show: model output, persona texts and labels are hostile until they passed through here.

Contract: what comes back is read as text and as nothing else. `escape_control` serves every medium (terminal, figure, file):
control
characters, terminal escapes, bidi and zero-width marks and lone surrogates become visible codes (`\\x1b`, `\\u202e`), so nothing
is hidden and nothing acts. `escape_markdown` also takes every meaning from Markdown and HTML. `truncate` keeps it short.
None of them fails.

Commands as they may be shown: what looks like a key or a password in them is left out.

permix writes no secret into a run directory, but whoever typed one on a command line finds it in provenance.json.
"""

import re
import shlex
import unicodedata
from collections.abc import Iterator, Sequence

# The ASCII marks that open Markdown, HTML, a mention, an emoji code or mathematics. As a numeric reference each is only itself.
_MARKUP_CHARS = re.compile(r"[&<>|`*_\[\]\\~$@:#!]")

_WWW_LINK = re.compile(r"(?i)(www)\.")  # GitHub links "www." without any mark

_BLOCK_START = re.compile(r"^(\s*)(\d+[.)]|[-+=])", re.MULTILINE)  # a list, a rule or a heading, where it starts a line

_UNPRINTABLE_CATEGORIES = {"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"}


def escape_control(text: str) -> str:
    """One line or more of printable text; "\\n" alone keeps its meaning, tabs become spaces, "\\r\\n" is a line end."""
    levelled = text.replace("\r\n", "\n").expandtabs(4)
    if levelled.replace("\n", " ").isprintable():  # nearly every text, a hundred times as fast
        return levelled
    return "".join(
        one if one == "\n" or unicodedata.category(one) not in _UNPRINTABLE_CATEGORIES else _escape_code(one) for one in levelled
    )


def truncate(text: str, width: int, lines: int = 1) -> str:
    """At most `lines` lines of at most `width` characters; what was cut is marked with "…"."""
    kept = text.split("\n")
    shown = [one if len(one) <= width else one[: width - 1] + "…" for one in kept[:lines]]
    if len(kept) > lines:
        shown[-1] = shown[-1][: width - 2].removesuffix("…") + " …"
    return "\n".join(shown)


def escape_markdown(text: str) -> str:
    """Text for a Markdown table cell or sentence: marks as numeric references, line ends as <br>."""
    escaped = _MARKUP_CHARS.sub(_match_to_reference, escape_control(text))
    escaped = _WWW_LINK.sub(r"\1&#46;", escaped)
    escaped = _BLOCK_START.sub(lambda found: found[1] + "".join(_numeric_reference(one) for one in found[2]), escaped)
    return escaped.strip("\n").replace("\n", "<br>")


def escape_for_figure(text: str, width: int) -> str:
    """One line for a figure: clipped, with "$" kept from starting mathematics and "_" from hiding a legend entry."""
    line = truncate(escape_control(text).replace("\n", " "), width).replace("$", r"\$")
    return "\u200a" + line if line.startswith("_") else line


def _match_to_reference(found: re.Match[str]) -> str:
    return _numeric_reference(found[0])


def _numeric_reference(character: str) -> str:
    return f"&#{ord(character)};"


def _escape_code(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


REDACTED = "(hidden)"

MAX_COMMAND_CHARS = 2000

_SECRET_OPTION = re.compile(r"(?i)(^|[-_.])(api[-_]?key|secret|passw(or)?d|token|credentials?)$")

_URL_LOGIN = re.compile(r"(//)[^/@\s]+@")

_API_KEY = re.compile(r"\b(sk|hf|ghp|xox[abp])[-_][A-Za-z0-9_-]{16,}")


def redact_command(arguments: Sequence[object]) -> str:
    """A command line as it would be typed, with its secrets hidden; control characters visible."""
    return truncate(escape_control(shlex.join(_redact_arguments([str(word) for word in arguments]))), MAX_COMMAND_CHARS)


def redact_secrets(text: str) -> str:
    """Text with logins in addresses, and keys that show what they are, hidden."""
    return _API_KEY.sub(REDACTED, _URL_LOGIN.sub(rf"\1{REDACTED}@", text))


def _redact_arguments(arguments: Sequence[str]) -> Iterator[str]:
    follows = False
    for word in arguments:
        name, equals, _ = word.partition("=")
        is_secret = word.startswith("-") and _SECRET_OPTION.search(name) is not None
        if follows and not word.startswith("-"):
            yield REDACTED
        else:
            yield f"{name}={REDACTED}" if is_secret and equals else redact_secrets(word)
        follows = is_secret and not equals
