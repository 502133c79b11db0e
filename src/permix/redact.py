"""Commands as they may be shown: what looks like a key or a password in them is left out.

permix writes no secret into a run directory, but whoever typed one on a command line finds it in provenance.json.
"""

import re
import shlex
from collections.abc import Iterator, Sequence

from permix.escape import clip, visible

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
