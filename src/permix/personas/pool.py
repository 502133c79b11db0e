"""The persona pool: load it, choose from it, weigh it, split it.

A pool is a set: its personas always stand in the order of their ids, so nothing downstream can depend on the order of a file.
A loaded pool has been checked: no persona, and no near-duplicate of one, stands on two sides of its split. Every choice
(`select`, `split_pool`) depends on content and seed alone.

From a configuration to the personas a stage works with.
"""

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from pydantic import Field, field_validator

from permix.config import PersonasConfig
from permix.errors import ConfigError
from permix.personas.loading import build_personas, read_personas
from permix.personas.similarity import (
    NEAR_DUPLICATE_THRESHOLD,
    assign_splits,
    check_split_leakage,
    near_duplicate_pairs,
    persona_kind,
)
from permix.progress import print_status
from permix.storage.rows import quote_value, valid_names_hint
from permix.types import SPLITS, Persona, Record, Split, digest, require_unique, seed_from


class PersonaPool(Record):
    """Personas with unique ids, at least one, in the order of their ids."""

    personas: tuple[Persona, ...] = Field(min_length=1)

    @field_validator("personas")
    @classmethod
    def _sort_by_id(cls, personas: tuple[Persona, ...]) -> tuple[Persona, ...]:
        require_unique([persona.id for persona in personas], "persona")
        return tuple(sorted(personas, key=lambda persona: persona.id))

    def __len__(self) -> int:
        return len(self.personas)

    @property
    def fingerprint(self) -> str:
        """Hash of the content: equal for equal sets of personas, whatever file they came from."""
        return digest(*(persona.model_dump_json() for persona in self.personas))

    @property
    def tags(self) -> frozenset[str]:
        return frozenset(tag for persona in self.personas for tag in persona.tags)

    def in_split(self, split: Split) -> "PersonaPool":
        """The personas of one side. ConfigError when there are none."""
        found = tuple(persona for persona in self.personas if persona.split == split)
        if not found:
            counts = Counter(persona.split for persona in self.personas)
            raise ConfigError(
                f"split = {split!r}: no persona of {len(self)} stands on that side "
                f"({', '.join(f'{side} {counts[side]}' for side in SPLITS)}) and {counts[None]} have no split; "
                "name the side in the file, or let split_pool give one to those that have none (dev when there are about six)"
            )
        return PersonaPool(personas=found)

    def select(
        self, include_tags: Collection[str] = (), exclude_tags: Collection[str] = (), n: int | None = None, seed: int = 0
    ) -> "PersonaPool":
        """Personas with any of `include_tags` (all, if empty) and none of `exclude_tags`; `n` of them, stratified by kind.

        Each kind gets its proportional share of `n`, to within rounding. With the same seed a smaller selection is part of a
        larger one. ConfigError for an unknown tag and for an `n` that cannot be met.
        """
        for tag in (*include_tags, *exclude_tags):
            self._require_tag(tag)
        found = [
            persona
            for persona in self.personas
            if (not include_tags or set(include_tags) & set(persona.tags)) and not set(exclude_tags) & set(persona.tags)
        ]
        if not found:
            raise ConfigError(f"include_tags = {list(include_tags)}, exclude_tags = {list(exclude_tags)}: no persona is left")
        if n is not None and not 1 <= n <= len(found):
            raise ConfigError(f"n = {n}: must lie between 1 and {len(found)}, the number of personas available")
        return PersonaPool(personas=tuple(_interleave_kinds(found, seed)[:n]))

    def sampling_weights(self, tag_weights: Mapping[str, float] | None = None) -> tuple[float, ...]:
        """The chance of each persona to be drawn, in order of `personas`; sums to 1.

        A persona's weight is multiplied by that of each of its tags named in `tag_weights`; 0 takes a tag out of the draw.
        """
        factors = tag_weights or {}
        for tag, factor in factors.items():
            self._require_tag(tag)
            if not 0 <= factor < math.inf:
                raise ConfigError(f"tag_weights.{tag} = {factor}: must be a finite number, 0 or above")
        raw = [persona.weight * math.prod(factors.get(tag, 1.0) for tag in persona.tags) for persona in self.personas]
        largest = max(raw)
        if not 0 < largest < math.inf:
            raise ConfigError(f"tag_weights = {dict(factors)}: the largest weight is {largest}; it must be finite and above 0")
        scaled = [weight / largest for weight in raw]
        return tuple(weight / math.fsum(scaled) for weight in scaled)

    def _require_tag(self, tag: str) -> None:
        if tag not in self.tags:
            raise ConfigError(f"unknown tag {quote_value(tag)}; {valid_names_hint(tag, self.tags)}")


def _interleave_kinds(personas: Collection[Persona], seed: int) -> list[Persona]:
    """All personas, ordered so that any first `n` hold each kind in proportion; seeded within a kind and among kinds."""
    by_kind: defaultdict[str, list[tuple[int, str, Persona]]] = defaultdict(list)
    for persona in personas:
        by_kind[persona_kind(persona)].append((seed_from(seed, "select", persona.text), persona.id, persona))
    placed = [
        (Fraction(2 * rank + 1, 2 * len(drawn)), seed_from(seed, "kind", name), rank, persona)
        for name, drawn in by_kind.items()
        for rank, (_, _, persona) in enumerate(sorted(drawn, key=lambda one: one[:2]))
    ]
    return [persona for *_, persona in sorted(placed, key=lambda one: one[:3])]


def load_pool(source: str | Path = "builtin") -> PersonaPool:
    """The pool "builtin", or that of a .toml ([[persona]] tables), .jsonl or .csv file; fields are listed in `load.py`.

    DataError when a row is bad or the split given in the file is violated. Personas without a split keep none: `split_pool`.
    """
    pool = PersonaPool(personas=read_personas(source))
    check_pool_split(pool)
    return pool


PersonasLike = str | Path | PersonaPool | Sequence[str | Persona | Mapping[str, object]]
"""How personas may be given in Python: "builtin", a file, a pool, or a list of texts, records or mappings."""


def resolve_pool(personas: PersonasLike, split: Split) -> PersonaPool:
    """The personas that are meant: of "builtin" or a file those of one `split`, a pool or a list made in Python whole.

    Raises DataError for a bad file or a bad item of a list, ConfigError when no persona is of the split.
    """
    if isinstance(personas, PersonaPool):
        return personas
    if isinstance(personas, str | Path):
        return select_personas(PersonasConfig(pool=str(personas), split=split))
    return PersonaPool(personas=build_personas(personas))


def check_pool_split(pool: PersonaPool) -> None:
    """Raise DataError, naming the most similar pair, when near-duplicates stand on different sides of the split."""
    check_split_leakage(pool.personas)


def split_pool(pool: PersonaPool, heldout_share: float = 1 / 3, seed: int = 0) -> PersonaPool:
    """The pool with every persona on a side: stratified by kind, near-duplicates together, explicit sides kept.

    Of those that had none, `heldout_share` is held out; of the others one in `DEV_ONE_IN` is dev, rounded down, the rest train.
    """
    return PersonaPool(personas=tuple(assign_splits(pool.personas, heldout_share, seed)))


def describe_pool(pool: PersonaPool, max_pairs: int = 20) -> str:
    """What `permix personas` prints: personas by kind and split, and the most similar near-duplicates."""
    counts = Counter((persona_kind(persona), persona.split) for persona in pool.personas)
    kinds = sorted({name for name, _ in counts})
    width = max(len(name) for name in (*kinds, "total"))
    rows = [(name, [counts[name, split] for split in (*SPLITS, None)]) for name in kinds]
    rows.append(("total", [sum(column) for column in zip(*(row for _, row in rows), strict=True)]))
    heads = [f"{head:>5}" for head in (*SPLITS, "no split", "total")]
    lines = [f"{len(pool)} personas, fingerprint {pool.fingerprint}", "", "  ".join([f"{'kind':{width}}", *heads])]
    for name, row in rows:
        cells = (f"{n:{len(head)}}" for head, n in zip(heads, (*row, sum(row)), strict=True))
        lines.append("  ".join([f"{name:{width}}", *cells]))
    return "\n".join([*lines, "", *_near_duplicate_lines(pool, max_pairs)])


def _near_duplicate_lines(pool: PersonaPool, max_pairs: int) -> list[str]:
    total, top = 0, list[tuple[float, str, str]]()
    for a, b, value in near_duplicate_pairs(pool.personas):
        total += 1
        top.append((-value, a.id, b.id))
        if len(top) > 50 * max_pairs:
            top = heapq.nsmallest(max_pairs, top)
    head = f"near-duplicates (similarity {NEAR_DUPLICATE_THRESHOLD} or more): {total or 'none'}"
    return [head, *(f"  {-value:.2f}  {a}  {b}" for value, a, b in heapq.nsmallest(max_pairs, top))]


def select_personas(config: PersonasConfig) -> PersonaPool:
    """Load the pool, give a side to personas that have none, keep the asked side and tags, then `n` of them.

    Raises DataError for a bad file and ConfigError for a choice that leaves too few.
    """
    pool = load_pool(config.pool)
    if config.split != "all":
        if any(persona.split is None for persona in pool.personas):
            pool = split_pool(pool)
            print_status(
                f"personas.pool = {config.pool}: has personas without a split, so a third of those is held out and a quarter of "
                f"the others is dev; taking personas.split = {config.split}"
            )
        pool = pool.in_split(config.split)
    if config.include or config.exclude or config.n:
        pool = pool.select(include_tags=config.include, exclude_tags=config.exclude, n=config.n, seed=config.seed)
    return pool
