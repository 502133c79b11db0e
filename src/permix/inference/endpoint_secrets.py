"""The key and the values of headers that an endpoint gets, read from the environment when they are needed.

No file, message, log or repr contains them, also if the endpoint repeats them.
"""

import os
import re
from functools import cache

from permix.config import ModelConfig
from permix.errors import ConfigError
from permix.inference.request_body import MAX_REFUSAL_CHARS
from permix.sanitize import redact_secrets
from permix.types import Completion

MIN_HIDDEN_KEY_CHARS = 12
"""A shorter key is a placeholder, such as "EMPTY" for a local server: it is not hidden in answers, where it may be a word."""

MIN_HIDDEN_HEADER_CHARS = 4
"""A shorter value of a header is no secret: hiding "1" or "no" would make messages unreadable."""

MAX_ERROR_CHARS = 500


class EndpointSecrets:
    """Reads the secrets of a model's configuration, and hides them in texts."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config

    def api_key(self) -> str:
        """The key; "" without one. Raises ConfigError if no header can carry it."""
        name = self._config.api_key_env
        key = os.environ.get(name, "").strip()
        if not re.fullmatch(r"[!-~]*", key) or set(key) & set("\"'\\"):
            raise ConfigError(
                f"environment variable {name}: not a key: it contains spaces, quotes, backslashes or "
                "non-ASCII characters, which an HTTP header cannot carry; set it to the key alone"
            )
        return key

    def headers(self) -> dict[str, str]:
        """The further headers of each request. Raises ConfigError if a variable is not set, or if its value cannot be sent."""
        variables = self._config.header_variables
        headers = {name: os.environ.get(variable, "").strip() for name, variable in variables.items()}
        for name, value in headers.items():
            variable = variables[name]
            if not value:
                raise ConfigError(
                    f"model.headers: the environment variable {variable}, which holds the value of {name}, is not set; "
                    f"set it, or leave {name} out"
                )
            if not re.fullmatch(r"[ -~]*", value):
                raise ConfigError(
                    f"environment variable {variable}: is no value for the header {name}: it contains a line break or another "
                    "character that an HTTP header cannot carry"
                )
        return headers

    def _secrets(self, min_chars: int) -> list[str]:
        """The key, and the values of headers, that have `min_chars` characters or more; longest first.

        A shorter value than `MIN_HIDDEN_HEADER_CHARS` is never one.
        """
        values = [value for value in self.headers().values() if len(value) >= MIN_HIDDEN_HEADER_CHARS]
        # Of two secrets of which one contains the other, the longer must be replaced first.
        return sorted((one for one in (self.api_key(), *values) if one and len(one) >= min_chars), key=len, reverse=True)

    def sanitize_message(self, text: str) -> str:
        """Text safe for a record or a terminal: no secrets, no control characters, at most `MAX_ERROR_CHARS` characters."""
        # Secrets are replaced before the text is cut: half a key would not be recognised.
        text = redact_secrets(self.redact(text[:MAX_REFUSAL_CHARS]))
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: MAX_ERROR_CHARS + 1])
        return shown if len(shown) <= MAX_ERROR_CHARS else f"{shown[: MAX_ERROR_CHARS - 1]}…"

    def redact(self, text: str, min_chars: int = 1) -> str:
        """The text without the secrets of `min_chars` characters or more, however a URL, JSON or HTML writes them."""
        for secret in self._secrets(min_chars):
            text = _secret_pattern(secret).sub("[redacted]", text)
        return text

    def redact_completion(self, completion: Completion) -> Completion:
        """The completion without secrets, which an endpoint may repeat in its answer."""
        found = {"text": completion.text, "reasoning": completion.reasoning}
        hidden = {name: self.redact(text, MIN_HIDDEN_KEY_CHARS) for name, text in found.items() if text}
        return completion if hidden.items() <= found.items() else completion.model_copy(update=hidden)


@cache
def _secret_pattern(secret: str) -> re.Pattern[str]:
    r"""Matches the secret, each character as it is or as a URL (%2F), JSON (\/, \u002f) or HTML (&#47;, &#x2f;) writes it."""
    forms = (rf"(?:\\{{0,4}}{re.escape(c)}|%{ord(c):02x}|\\{{1,4}}u00{ord(c):02x}|&\#(?:{ord(c)}|x{ord(c):x});)" for c in secret)
    return re.compile("".join(forms), re.IGNORECASE)
