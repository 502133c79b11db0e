"""Decide whether a model at a new address is the one that answered the run.

Contract: a run is answered by one model, which is known by its name and by what its server says of the weights (`GET /models`),
not by its address. At an address that the run has not used

- equal statements on the weights are enough: the run goes on;
- statements that differ mean another model: the run is refused. Names of the weights (`root`, `parent`) may differ for the same
  weights, so the user may confirm them; sizes may not;
- without a statement on both sides the run goes on if the user confirms that the weights are the same (`same_weights`).

A server that says something else at the same address is checked as a new address is. `addresses.json` in the run directory (of a
judge: in its folder) records each address with the first start that used it, what the server said and who confirmed the weights.
So a confirmation is needed once. Sizes tell other architectures and quantizations apart, but not a fine-tuned model from its
base: models of one name and size need different names.

What a server says: vLLM the folder or hub id of the weights (`root`) and of an adapter its base (`parent`); llama.cpp sizes
(`meta`). SGLang repeats the name as `root`, which says nothing more than the name. Ollama, TGI, LM Studio, LiteLLM and hosted
APIs list name, owner and time, which say nothing of the weights. A server's text is not trusted: what is kept is short and
printable, and holds no key.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import Field, ValidationError

from permix.config import normalize_address
from permix.errors import ConfigError, DataError
from permix.inference.base import Model
from permix.progress import print_status
from permix.sanitize import escape_control, redact_secrets, truncate
from permix.storage.files import guard_writes, parse_error_text, read_json, write_json
from permix.storage.run_dir import RunReader
from permix.types import Record, digest

ADDRESSES_FILE = "addresses.json"
"""For each section of a configuration that names a model at an endpoint: the addresses at which the run was answered."""

NAMES_OF_WEIGHTS = ("root", "parent")
"""Fields of an entry of `GET /models` that name the weights: a folder or a hub id."""

SIZES_OF_WEIGHTS = ("n_params", "size", "n_vocab", "n_embd")
"""Fields of its `meta` that count them."""

_IDENTIFYING_FIELDS = frozenset(("root", "n_params", "size"))
"""Fields of which one must be equal before two statements show the same weights: adapters of one base have an equal `parent`."""

MAX_NAME_CHARS = 300
"""Longest name of weights that is kept; a longer one is cut and ends with a digest of the whole."""

MAX_ADDRESS_CHARS = 120
"""Longest address or name of weights in a message."""

MAX_SHOWN_ADDRESSES = 3
"""Most addresses that a refusal names."""

ServerStatement = Mapping[str, str | int]
"""What a server says of a model's weights, by field of `NAMES_OF_WEIGHTS` and `SIZES_OF_WEIGHTS`; empty if it says nothing."""

ConfirmedBy = Literal["server", "user"]


class AddressUse(Record):
    """An address at which a run was answered. `confirmed_by`: who says that the weights there are those of the run; None for the
    first one, which is what the others are compared with. `first_used`: the time of the first start that used it."""

    address: str
    first_used: str
    server_says: dict[str, str | int] = Field(default_factory=dict)
    confirmed_by: ConfirmedBy | None = None


class ModelAddresses(Record):
    """The addresses of a model, in the order of their first use. `request` is its `request_digest`."""

    name: str
    request: str
    addresses: tuple[AddressUse, ...]


class RecordedForm(NamedTuple):
    """A way in which a run may have recorded a model: the fingerprint on disk, its present form, and the statement behind it."""

    recorded: str
    fingerprint: str
    server_says: ServerStatement


def parse_statement(
    name: str, root: object, parent: object, meta: object, redact: Callable[[str], str] = str
) -> dict[str, str | int]:
    """What an entry of `GET /models` says of the weights of the model `name`; values of other types say nothing.

    `redact` hides secrets that the server repeats.
    """
    texts = {
        field: value for field, value in zip(NAMES_OF_WEIGHTS, (root, parent), strict=True) if isinstance(value, str) and value
    }
    if texts.get("root") == name:
        del texts["root"]
    counts = {field: _count(meta.get(field)) for field in SIZES_OF_WEIGHTS} if isinstance(meta, dict) else {}
    sizes = {field: count for field, count in counts.items() if count is not None}
    return {field: _printable(redact_secrets(redact(text))) for field, text in texts.items()} | sizes


def _count(value: object) -> int | None:
    """A whole number above 0 and below 2^63, also one that is written as 1e9; None for any other value."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**63:
        return None
    return int(value) if value == int(value) else None


def _printable(text: str) -> str:
    shown = escape_control(text).replace("\n", r"\n")
    if len(shown) <= MAX_NAME_CHARS:
        return shown
    end = f"… ({len(text)} characters, digest {digest(text)})"
    return shown[: MAX_NAME_CHARS - len(end)] + end


class AddressCheck(NamedTuple):
    """The outcome of `check_addresses`. `RunDir.open` takes it.

    `fingerprint`: the fingerprint under which the run knows the model; it takes the place of the model's in the identity of the
    run at `identity_key`, a dotted key. None if the run is new, or was made with another model. `new_uses`: addresses that the
    run has not used; `former_uses`: those that an earlier version of permix did not record.
    """

    section: str
    identity_key: str
    fingerprint: str | None = None
    model: ModelAddresses | None = None
    former_uses: tuple[AddressUse, ...] = ()
    new_uses: tuple[AddressUse, ...] = ()

    def record(self, folder: Path) -> None:
        """Write the new addresses to `addresses.json` in `folder`, with a status line for each but the first."""
        if self.model is None or not (self.former_uses or self.new_uses):
            return
        for use in (*self.former_uses, *self.new_uses):
            _add_use(folder, self.section, self.model, use)
        for use in self.new_uses:
            if use.confirmed_by == "server":
                said = _statement_text(use.server_says)
                print_status(f"note: {self.section}: the run goes on at {use.address}, whose server says the same: {said}")
            elif use.confirmed_by == "user":
                print_status(
                    f"note: {self.section}: the run goes on at {use.address}; {ADDRESSES_FILE} records that you confirmed the "
                    f"weights"
                )


def check_addresses(
    model: Model,
    run: Path,
    section: str = "model",
    identity_key: str = "model",
    *,
    addresses: Mapping[str, ServerStatement] | None = None,
    recorded_fingerprint: str | None = None,
    recorded_base_url: str | None = None,
) -> AddressCheck:
    """Check that the model at its addresses is the one that answered `run`, which may not exist yet. Writes nothing.

    `section`: the section of the configuration that describes the model. `identity_key`: where the run's identity has its
    fingerprint, if `recorded_fingerprint` is not given. `addresses`: where the model will answer, each with what is said of its
    weights there; the model's own if None. A model that is not behind an endpoint is not checked; the run may know a function
    by the fingerprint that an earlier version of permix gave it.

    A run that has no `addresses.json` was answered at `recorded_base_url`, or else at the address in its config.json.

    Raises ConfigError, in one line, for other weights, and for an address at which nothing shows that they are the same and
    `same_weights` of the model's configuration is not set. Raises DataError for a damaged `addresses.json`.
    """
    served: Any = model
    fingerprint = recorded_fingerprint or _recorded_fingerprint(run, identity_key)
    if not hasattr(served, "server_statements"):
        is_former = fingerprint is not None and fingerprint == getattr(model, "former_fingerprint", None)
        return AddressCheck(section, identity_key, model.fingerprint if is_former else None)
    known = _find_known_model(served, run, section, fingerprint, recorded_base_url)
    if known is None:
        return AddressCheck(section, identity_key)
    refusals, confirmed = _Refusals(run, section, model.name), bool(served.config.same_weights)
    uses = [*known.recorded_uses, *known.former_uses]
    n_known = len(uses)
    for address, said in (served.server_statements() if addresses is None else addresses).items():
        if any((use.address, use.server_says) == (address, dict(said)) for use in uses):
            continue
        by = _who_confirms(refusals, uses, address, said, confirmed=confirmed)
        uses.append(AddressUse(address=address, first_used=_now(), server_says=dict(said), confirmed_by=by))
    recorded = ModelAddresses(name=model.name, request=served.request_digest, addresses=())
    return AddressCheck(section, identity_key, known.fingerprint, recorded, known.former_uses, tuple(uses[n_known:]))


class _KnownModel(NamedTuple):
    """What a run knows of its model: the present form of its fingerprint (None for a new run), and where the model answered.

    `former_uses` are not in `addresses.json`, as in a run of an earlier version of permix.
    """

    fingerprint: str | None
    recorded_uses: tuple[AddressUse, ...] = ()
    former_uses: tuple[AddressUse, ...] = ()


def _find_known_model(served: Any, run: Path, section: str, fingerprint: str | None, base_url: str | None) -> _KnownModel | None:
    """What the run knows of the model `served`; None if it was made with another model, where the identity names what differs.

    `fingerprint`: as the run recorded it. `base_url`: the address of a run without `addresses.json`, if config.json is not asked.
    """
    if not fingerprint:
        return _KnownModel(fingerprint)
    known = read_addresses(run).get(section)
    if known is not None:
        has_same_requests = known.request == served.request_digest  # the same name, and the same added fields
        return _KnownModel(fingerprint, known.addresses) if has_same_requests else None
    base_url = base_url or _recorded_base_url(run, section)
    forms: Iterator[RecordedForm] = served.recorded_forms(base_url)
    form = next((form for form in forms if form.recorded == fingerprint), None)
    if form is None or base_url is None:
        return None if form is None else _KnownModel(form.fingerprint)
    address, created = normalize_address(base_url), str(RunReader(run).provenance.get("created") or "")
    use = AddressUse(address=address, first_used=created, server_says=dict(form.server_says))
    return _KnownModel(form.fingerprint, former_uses=(use,))


def read_addresses(run: Path) -> dict[str, ModelAddresses]:
    """The addresses of each model of a run, by section; empty if the run recorded none. Raises DataError for a damaged file."""
    path = run / ADDRESSES_FILE
    if not path.exists():
        return {}
    try:
        return {section: ModelAddresses.model_validate(value) for section, value in read_json(path).items()}
    except ValidationError as error:
        raise DataError(
            f"{path}: not the addresses of a run: {parse_error_text(error)}; delete it, and the address in config.json counts"
        ) from error


def _add_use(run: Path, section: str, model: ModelAddresses, use: AddressUse) -> None:
    with _lock_folder(run):
        sections = read_addresses(run)
        known = sections.get(section, model)
        if any((one.address, one.server_says) == (use.address, use.server_says) for one in known.addresses):
            return
        sections[section] = model.model_copy(update={"addresses": (*known.addresses, use)})
        write_json(run / ADDRESSES_FILE, {name: one.model_dump(mode="json") for name, one in sections.items()})


@contextlib.contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    """Let one process at a time change the file: several may answer parts of one run, each at its own address."""
    with guard_writes(folder):
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


class _Refusals(NamedTuple):
    """Words the refusals of a model: `name` is its name, in the section `section` of the configuration of `run`."""

    run: Path
    section: str
    name: str

    def other_weights(self, use: AddressUse, address: str, said: ServerStatement) -> ConfigError:
        fields = _differing_fields(use.server_says, said)
        before, now = ({field: one[field] for field in fields} for one in (use.server_says, said))
        same = "" if _differ_in_size(use, said) else f"; if both are the same weights, confirm it once with {self._flag}"
        return ConfigError(
            f"out = {self.run}: this run was made with other weights under the same {self.section}.name: the server at "
            f"{_show(use.address)} said {_statement_text(before)}, the server at {_show(address)} says {_statement_text(now)}; "
            f"give another folder, or the model that the run was made with{same}"
        )

    def unknown_weights(self, uses: Sequence[AddressUse], address: str, said: ServerStatement) -> ConfigError:
        before = list(dict.fromkeys(use.address for use in uses))
        shown = ", ".join(str(_show(one)) for one in before[:MAX_SHOWN_ADDRESSES])
        shown += f" and {len(before) - MAX_SHOWN_ADDRESSES} more" if len(before) > MAX_SHOWN_ADDRESSES else ""
        now = "now " if address in before else ""
        if not said:
            why = f"where the server {now}says nothing of its weights"
        elif not any(use.server_says for use in uses):
            why = f"where the server {now}says {_statement_text(said)}, while nothing was said of the weights before"
        else:
            why = f"where the server {now}says {_statement_text(said)}, which cannot be compared with what was said before"
        return ConfigError(
            f"out = {self.run}: this run was answered by {_show(self.name)!r} at {shown}, and would go on at {_show(address)}, "
            f"{why}; if the weights are the same, confirm it once with {self._flag}, else give another folder"
        )

    @property
    def _flag(self) -> str:
        return f"--{self.section}.same-weights"


def _who_confirms(
    refusals: _Refusals, uses: Sequence[AddressUse], address: str, said: ServerStatement, *, confirmed: bool
) -> ConfirmedBy | None:
    """Who confirms that the weights at `address` are those of `uses`; None if there are no uses, so nothing to confirm."""
    if not uses:
        return None
    differing = [use for use in uses if _differing_fields(use.server_says, said)]
    # Names that the user confirmed may differ from each other: the same statement as one of them is enough.
    comparable = [use for use in uses if _IDENTIFYING_FIELDS & use.server_says.keys() & said.keys()]
    if any(use.server_says == said for use in comparable) or (comparable and not differing):
        return "server"
    of_other_size = [use for use in differing if _differ_in_size(use, said)]
    if confirmed and not of_other_size:
        return "user"
    if differing:
        raise refusals.other_weights((of_other_size or differing)[0], address, said)
    raise refusals.unknown_weights(uses, address, said)


def _differing_fields(one: ServerStatement, other: ServerStatement) -> list[str]:
    fields = (*NAMES_OF_WEIGHTS, *SIZES_OF_WEIGHTS)
    return [field for field in fields if field in one and field in other and one[field] != other[field]]


def _differ_in_size(use: AddressUse, said: ServerStatement) -> bool:
    return any(field in SIZES_OF_WEIGHTS for field in _differing_fields(use.server_says, said))


def _statement_text(said: ServerStatement) -> str:
    return ", ".join(f"{field} = {_show(value)!r}" for field, value in said.items())


def _show(value: str | int) -> str | int:
    """A value for a message: a text cut, printable and without secrets, since a file of the run may come from elsewhere."""
    if isinstance(value, int):
        return value
    return truncate(escape_control(redact_secrets(value)).replace("\n", " "), MAX_ADDRESS_CHARS)


def _recorded_fingerprint(run: Path, identity_key: str) -> str | None:
    """The fingerprint in the identity of the run; None if there is no run, or none with such a model."""
    if not (run / "provenance.json").exists():
        return None
    value: object = RunReader(run).identity
    for key in identity_key.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) else None


def _recorded_base_url(run: Path, section: str) -> str | None:
    """The base_url of the model in the run's config.json; None without one, and for a damaged file, which is written anew."""
    with contextlib.suppress(DataError, ValueError):
        settings = RunReader(run).config.get(section)
        base_url = settings.get("base_url") if isinstance(settings, Mapping) else None
        if isinstance(base_url, str) and urlsplit(base_url).netloc:
            return base_url
    return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
