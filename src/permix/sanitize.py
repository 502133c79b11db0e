r"""Make untrusted text safe to show, and hide secrets in command lines. No function here raises.

Model output, persona texts and labels are untrusted. `escape_control` serves every medium (terminal, figure, file): control
characters, terminal escapes, bidirectional and zero-width marks and lone surrogates become visible codes (`\x1b`, `\u202e`).
`escape_markdown` also escapes Markdown and HTML. `truncate` shortens.

`redact_arguments`, `redact_command` and `redact_secrets` replace text that looks like a key or a password. provenance.json
records the command line of a run, and a user may have typed a secret there.
"""

import codecs
import re
import shlex
import unicodedata
from collections.abc import Iterator, Sequence

# ASCII characters that start Markdown, HTML, a mention, an emoji code or mathematics. A numeric reference shows them as text.
_MARKUP_CHARS = re.compile(r"[&<>|`*_\[\]\\~$@:#!]")

_WWW_LINK = re.compile(r"(?i)(www)\.")  # GitHub turns "www." into a link without any markup

_BLOCK_START = re.compile(r"^(\s*)(\d+[.)]|[-+=])", re.MULTILINE)  # a list item, a rule or a heading, at the start of a line

_UNPRINTABLE_CATEGORIES = {"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"}


def escape_control(text: str) -> str:
    """Replace unprintable characters with visible codes; keep "\\n", turn "\\r\\n" into "\\n" and tabs into spaces."""
    if text.isprintable():  # nearly every short text: no line end, no tab
        return text
    normalized = text.replace("\r\n", "\n").expandtabs(4)
    if normalized.replace("\n", " ").isprintable():  # nearly every text; a hundred times as fast as the loop below
        return normalized
    return "".join(
        char if char == "\n" or unicodedata.category(char) not in _UNPRINTABLE_CATEGORIES else _escape_code(char)
        for char in normalized
    )


def truncate(text: str, width: int, lines: int = 1) -> str:
    """Keep at most `lines` lines of at most `width` characters; "…" marks a cut."""
    kept = text.split("\n")
    shown = [one if len(one) <= width else one[: width - 1] + "…" for one in kept[:lines]]
    if len(kept) > lines:
        shown[-1] = shown[-1][: width - 2].removesuffix("…") + " …"
    return "\n".join(shown)


def escape_markdown(text: str) -> str:
    """Escape text for a Markdown table cell or sentence: markup becomes numeric references, line ends become <br>."""
    escaped = _MARKUP_CHARS.sub(_match_to_reference, escape_control(text))
    escaped = _WWW_LINK.sub(r"\1&#46;", escaped)
    escaped = _BLOCK_START.sub(lambda match: match[1] + "".join(map(_numeric_reference, match[2])), escaped)
    return escaped.strip("\n").replace("\n", "<br>")


def escape_for_figure(text: str, width: int) -> str:
    """Make one line of at most `width` characters for matplotlib: "$" starts no formula, a leading "_" hides no legend entry."""
    line = truncate(escape_control(text).replace("\n", " "), width).replace("$", r"\$")
    return "\u200a" + line if line.startswith("_") else line


def _match_to_reference(match: re.Match[str]) -> str:
    return _numeric_reference(match[0])


def _numeric_reference(character: str) -> str:
    return f"&#{ord(character)};"


def _escape_code(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


REDACTED = "(hidden)"

MAX_COMMAND_CHARS = 2000

_SECRET_OPTION = re.compile(r"(?i)(^|[-_.])(api[-_]?key|secret|passw(or)?d|token|credentials?)$")

_URL_LOGIN = re.compile(r"(//)[^/@\s]+@")

_URL_SECRET = re.compile(r"(?i)([?&](?:[a-z]+[-_])?(?:api[-_]?key|key|token|secret|passw(?:or)?d|signature)=)[^&#\s\"']+")

_API_KEY = re.compile(r"\b(?:(?:sk|gsk|hf|r8|gh[pousr]|github_pat|xox[abp]|xai|pplx|nvapi)[-_]|AIza)[A-Za-z0-9_-]{16,}")


def redact_command(arguments: Sequence[object]) -> str:
    """A command line, quoted for a shell, with secrets hidden and control characters visible; at most MAX_COMMAND_CHARS long."""
    return truncate(escape_control(shlex.join(redact_arguments([str(word) for word in arguments]))), MAX_COMMAND_CHARS)


def redact_secrets(text: str) -> str:
    """Hide logins and keys in URLs, and API keys that have a known prefix (such as sk-, gsk_, hf_, ghp_ or AIza)."""
    return _API_KEY.sub(REDACTED, _URL_SECRET.sub(rf"\1{REDACTED}", _URL_LOGIN.sub(rf"\1{REDACTED}@", text)))


def names_secret(option: str) -> bool:
    """Whether an option of a command line is named like a secret, such as --model.api-key."""
    return option.startswith("-") and _SECRET_OPTION.search(option) is not None


def redact_arguments(arguments: Sequence[str]) -> Iterator[str]:
    """A command line's arguments with secrets hidden: values of options such as --api-key, and what `redact_secrets` hides."""
    hide_next = False
    for word in arguments:
        name, equals, _ = word.partition("=")
        is_secret = names_secret(name)
        if hide_next and not word.startswith("-"):
            yield REDACTED
        else:
            yield f"{name}={REDACTED}" if is_secret and equals else redact_secrets(word)
        hide_next = is_secret and not equals


def detect_encoding(raw: bytes) -> str:
    """The encoding of a file that a user wrote: UTF-8, with or without a byte-order mark, or UTF-16."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in raw[:2]:  # the other half of an ASCII character, in UTF-16 without a byte-order mark
        return "utf-16-be" if raw[:1] == b"\0" else "utf-16-le"
    return "utf-8-sig"
