"""One HTTP client for endpoints that are not trusted: pooled connections, bounded replies, no redirects, no cookies.

It sends the headers that its caller gives, and none from .netrc; no cookie is kept.
A reply is read up to `MAX_REPLY_BYTES` after decompression; of compressions only gzip and deflate are read. A time bound is the
caller's: cancelling a request closes its connection. Nothing is sent twice: retries are the caller's too.

Proxies are those of the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY, in capitals or small letters), or on macOS and
Windows those of the system. Certificates are checked against the system's, or against SSL_CERT_FILE or SSL_CERT_DIR.
"""

import contextlib
import email.utils
import ipaddress
import json
import os
import re
import ssl
import sys
import time
import urllib.request
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urljoin, urlsplit

from permix.errors import ConfigError
from permix.inference.request_body import is_system_refusal, refusal_text

if TYPE_CHECKING:
    import aiohttp

MAX_REPLY_BYTES = 64_000_000
"""Longest reply that is read, after decompression. A streamed reply of 128,000 tokens, an event of 300 bytes for each, has 40 MB;
a longer one comes from a server that is broken or hostile, and would fill the memory."""

MAX_HEADER_BYTES = 65_536
"""Longest status line, and longest header, of a reply."""

IDLE_CONNECTION_S = 4.0
"""How long a connection without a request is kept. uvicorn, and so vLLM and SGLang, closes it after 5 s, and a request on a
connection that is being closed is lost."""

_HTTP_PREFIX = "HTTP "

_FAILURE_TYPES = {
    400: "BadRequestError", 401: "AuthenticationError", 403: "PermissionDeniedError", 404: "NotFoundError",
    409: "ConflictError", 422: "UnprocessableEntityError", 429: "RateLimitError",
}  # fmt: skip


class HttpStatusError(Exception):
    """An HTTP status other than 2xx. `body`: the error of a JSON body, or the text of another one."""

    def __init__(self, status_code: int, headers: Mapping[str, str], content: bytes, url: str) -> None:
        super().__init__(f"{_HTTP_PREFIX}{status_code}")
        self.status_code, self.headers, self.url = status_code, headers, url
        self.body: Any = content.decode(errors="replace").strip()
        with contextlib.suppress(ValueError, RecursionError):
            self.body = json.loads(self.body)
        if isinstance(self.body, dict):
            self.body = self.body.get("error", self.body)

    @property
    def code(self) -> Any:
        """The error's code, such as "insufficient_quota"; None if the body gives none."""
        return self.body.get("code") if isinstance(self.body, dict) else None

    @property
    def failure_type(self) -> str:
        """The name in records; earlier versions of permix wrote the same."""
        return status_failure_type(self.status_code)


def status_failure_type(status: int) -> str:
    """The type of a `Failure` with this HTTP status, the same for a request over HTTP and for a line of a batch file."""
    return _FAILURE_TYPES.get(status, "InternalServerError" if status >= 500 else "APIStatusError")


class ConnectionFailedError(Exception):
    """No connection, a connection that was lost, or a reply that is not HTTP."""

    failure_type = "APIConnectionError"
    """The name in records; earlier versions of permix wrote the same."""


class ReplyTooLargeError(Exception):
    """A reply of more than `MAX_REPLY_BYTES`."""


def failure_type(error: BaseException) -> str:
    """The type of a `Failure` with this error."""
    return getattr(error, "failure_type", type(error).__name__)


def http_status(error: BaseException | None) -> int | None:
    return getattr(error, "status_code", None)


def error_message(error: BaseException) -> str:
    """The text of an error; for an HTTP status, "HTTP STATUS: " and the message in the body."""
    if isinstance(error, HttpStatusError):
        if (target := redirect_target(error)) is not None:
            return f"{error}: redirects to {target}, and permix follows no redirect"
        return f"{error}: {refusal_text(error.body)}"
    cause = error.__cause__
    return f"{error} ({type(cause).__name__}: {cause})" if cause else str(error)


def has_http_status(message: str) -> bool:
    """Whether a text of `error_message` is that of an HTTP error."""
    return message.startswith(_HTTP_PREFIX)


def redirect_target(error: BaseException | None) -> str | None:
    """The whole address that an HTTP status 3xx points to; None for other errors."""
    if not isinstance(error, HttpStatusError) or not 300 <= error.status_code < 400 or "location" not in error.headers:
        return None
    location = error.headers["location"]
    with contextlib.suppress(ValueError):
        return urljoin(error.url, location)
    return location


def leads_elsewhere(error: HttpStatusError) -> bool:
    """Whether the status is a redirect to another address, not only to the same one with a slash at its end."""
    target = redirect_target(error)
    return target is not None and target.rstrip("/") != error.url.rstrip("/")


def is_transient_status(error: BaseException) -> bool:
    """Whether a retry may succeed: status 408, 429 or 5xx. A 429 for a spent quota is permanent."""
    status = http_status(error)
    if status is None or getattr(error, "code", None) == "insufficient_quota" or is_system_refusal(error_message(error)):
        return False
    return status in (408, 429) or status >= 500


def retry_after_s(error: BaseException | None) -> float:
    """Seconds to wait by the Retry-After header, which is a number or a date; 0 without one, and for one that cannot be read."""
    header = error.headers.get("retry-after", "").strip() if isinstance(error, HttpStatusError) else ""
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", header):
        return float(header)  # inf for a number that is too large
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0


class HttpClient:
    """Sends requests to one address; an async context manager. The caller bounds the number of requests in flight.

    headers: those of every request. Raises ConfigError for a proxy of a kind that is not supported, and for
    certificates that cannot be read.
    """

    def __init__(self, base_url: str, headers: Mapping[str, str]) -> None:
        self._base_url = base_url.rstrip("/")
        self._headers = {"Accept-Encoding": "gzip", **headers}
        self._proxy = proxy_for(urlsplit(base_url))
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "HttpClient":
        import aiohttp

        is_secure = any(url.startswith("https:") for url in (self._base_url, self._proxy or ""))
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=IDLE_CONNECTION_S, ssl=_ssl_context() if is_secure else True
            ),
            cookie_jar=_cookie_jar_class()(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            headers=self._headers,
            auto_decompress=False,
            trust_env=False,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str) -> bytes:
        """The body of the reply, decompressed and cut after `MAX_REPLY_BYTES` + 1 bytes. See `post`."""
        return await self._send("GET", path, None)

    async def post(self, path: str, body: Mapping[str, Any]) -> bytes:
        """Send a JSON body; returns the body of the reply.

        Raises HttpStatusError, ConnectionFailedError, ReplyTooLargeError, and UnicodeEncodeError for a text that is not Unicode.
        """
        data = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        reply = await self._send("POST", path, data)
        if len(reply) > MAX_REPLY_BYTES:
            raise ReplyTooLargeError(f"the reply is longer than {MAX_REPLY_BYTES / 1e6:g} MB")
        return reply

    async def _send(self, method: str, path: str, data: bytes | None) -> bytes:
        import aiohttp

        assert self._session is not None, "the client is used outside of its context"
        url = f"{self._base_url}{path}"
        headers = {"Content-Type": "application/json"} if data is not None else None
        try:
            async with self._session.request(
                method, url, data=data, headers=headers, allow_redirects=False, proxy=self._proxy
            ) as response:
                content = await _read_bounded(response)
        except aiohttp.ClientResponseError as error:  # not HTTP, or a proxy that refuses; its str() holds a status of no meaning
            raise _connection_error(error, error.message) from None
        except (aiohttp.ClientError, OSError) as error:
            raise _connection_error(error, str(error)) from None
        if not 200 <= response.status < 300:
            raise HttpStatusError(response.status, response.headers, content, url)
        return content


@cache
def _cookie_jar_class() -> "type[aiohttp.DummyCookieJar]":
    import aiohttp

    class NoCookies(aiohttp.DummyCookieJar):
        def update_cookies_from_headers(self, headers: Sequence[str], response_url: Any) -> None:
            """Read none: what cannot be read is logged, and a server may write the key into it."""

    return NoCookies


def _connection_error(error: Exception, words: str) -> ConnectionFailedError:
    # Without the bytes that it quotes: they are cut somewhere, and half a key would not be recognised.
    words = " ".join(re.sub(r""":?\s*b(['"]).*""", "", words, flags=re.DOTALL).split()).replace(" ssl:default", "")
    return ConnectionFailedError(f"Connection error. ({type(error).__name__}: {words})")


async def _read_bounded(response: "aiohttp.ClientResponse") -> bytes:
    """The decompressed body of an HTTP response, cut after `MAX_REPLY_BYTES` + 1 bytes."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip", "deflate", ""):
        response.close()
        return f"the reply has Content-Encoding {encoding[:40]!r}; permix asks for gzip or none".encode()
    unpacker = None if encoding in ("identity", "") else zlib.decompressobj(zlib.MAX_WBITS | 32)
    body = bytearray()
    async for chunk in response.content.iter_any():
        room = MAX_REPLY_BYTES + 1 - len(body)
        try:
            body += chunk[:room] if unpacker is None else unpacker.decompress(chunk, room)
        except zlib.error as error:
            response.close()
            return f"the reply is not {encoding}, as its Content-Encoding says: {error}".encode()
        if len(body) > MAX_REPLY_BYTES:
            response.close()  # or the connection would be read to the end of the reply before it is used again
            break
    return bytes(body)


def _ssl_context() -> ssl.SSLContext:
    """The environment's certificates, or the system's."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        if path := os.environ.get(name):
            is_file = name == "SSL_CERT_FILE"
            try:
                return ssl.create_default_context(cafile=path if is_file else None, capath=None if is_file else path)
            except (OSError, ssl.SSLError):
                raise ConfigError(f"environment variable {name}: {path}: no certificates there") from None
    if sys.platform in ("win32", "darwin"):  # OpenSSL reads no certificates of these systems, or few
        import truststore

        return truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return ssl.create_default_context()


def proxy_for(url: SplitResult) -> str | None:
    """The proxy through which the environment wants an address to be asked; None for none.

    NO_PROXY is a list of host names, which include the names below them, of IP addresses and of networks such as 10.0.0.0/8, each
    with or without a port; "*" stands for all. Raises ConfigError for a SOCKS proxy.
    """
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or _is_excepted(url, proxies.get("no", "")):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    scheme = proxy.partition("://")[0].lower()
    if scheme not in ("http", "https"):
        name = f"{url.scheme.upper()}_PROXY" if proxies.get(url.scheme) else "ALL_PROXY"
        raise ConfigError(
            f"environment variable {name}: a proxy of the kind {scheme}:// is not supported; give one that begins with http:// "
            f"or https://, or add {url.hostname} to NO_PROXY"
        )
    return proxy


def _is_excepted(url: SplitResult, no_proxy: str) -> bool:
    host = (url.hostname or "").lower()
    port = url.port or {"http": 80, "https": 443}[url.scheme]
    return any(_entry_covers(entry.strip().lower(), host, port) for entry in no_proxy.split(","))


def _entry_covers(entry: str, host: str, port: int) -> bool:
    """Whether an entry of NO_PROXY covers a host and its port."""
    entry = entry.partition("://")[2] or entry
    if entry == "*":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    name, colon, own_port = entry.rpartition(":")
    if colon and own_port.isdigit():
        return int(own_port) == port and _entry_covers(name, host, port)
    name = entry.strip("[]").removeprefix("*").removeprefix(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))
