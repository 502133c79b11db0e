"""The persona pool: load it, split it, select from it, and weight it. `select_personas` does this for a configuration.

A pool is a set: its personas are always sorted by id, so nothing depends on the order of a file. A loaded pool is checked: no
persona has a near-duplicate in another split. Every choice (`select`, `split_pool`) depends only on content and seed.
"""

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from functools import cached_property
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
    """One or more personas with unique ids, sorted by id."""

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
        """Hash of the content: equal sets of personas have the same fingerprint."""
        return digest(*(persona.model_dump_json() for persona in self.personas))

    @property
    def tags(self) -> frozenset[str]:
        return frozenset(tag for persona in self.personas for tag in persona.tags)

    def in_split(self, split: Split) -> "PersonaPool":
        """The personas of one split. Raises ConfigError if the split is empty."""
        personas = tuple(persona for persona in self.personas if persona.split == split)
        if not personas:
            counts = Counter(persona.split for persona in self.personas)
            raise ConfigError(
                f"split = {split!r}: has none of the {len(self)} personas "
                f"({', '.join(f'{name} {counts[name]}' for name in SPLITS)}, no split {counts[None]}); "
                "set the split in the file, or add personas without a split (dev needs about six of them)"
            )
        return PersonaPool(personas=personas)

    def select(
        self, include_tags: Collection[str] = (), exclude_tags: Collection[str] = (), n: int | None = None, seed: int = 0
    ) -> "PersonaPool":
        """Select `n` personas (all, if None) that have any of `include_tags` (if given) and none of `exclude_tags`.

        The selection is stratified: each kind gets its proportional share of `n`, up to rounding. With the same seed a smaller
        selection is part of a larger one. Raises ConfigError for an unknown tag, and if there are fewer than `n` personas.
        """
        for tag in (*include_tags, *exclude_tags):
            self._require_tag(tag)
        candidates = [
            persona
            for persona in self.personas
            if (not include_tags or set(include_tags) & set(persona.tags)) and not set(exclude_tags) & set(persona.tags)
        ]
        if not candidates:
            raise ConfigError(f"include_tags = {list(include_tags)}, exclude_tags = {list(exclude_tags)}: no persona is left")
        if n is not None and not 1 <= n <= len(candidates):
            raise ConfigError(f"n = {n}: must be between 1 and {len(candidates)}, the number of personas available")
        return PersonaPool(personas=tuple(_interleave_kinds(candidates, seed)[:n]))

    def sampling_weights(self, tag_weights: Mapping[str, float] | None = None) -> tuple[float, ...]:
        """The probability [P] that each persona is drawn, in the order of `personas`; sums to 1.

        It is proportional to the persona's weight times the factor of each of its tags in `tag_weights`; a factor of 0 excludes a
        tag. Raises ConfigError for an unknown tag or a factor that is negative or not finite, and if all weights are 0.
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
    """All personas in a seeded order. Its first `n`, for every `n`, contain each kind in proportion."""
    by_kind: defaultdict[str, list[tuple[int, str, Persona]]] = defaultdict(list)
    for persona in personas:
        by_kind[persona_kind(persona)].append((seed_from(seed, "select", persona.text), persona.id, persona))
    ordered = [
        (Fraction(2 * rank + 1, 2 * len(drawn)), seed_from(seed, "kind", name), rank, persona)
        for name, drawn in by_kind.items()
        for rank, (_, _, persona) in enumerate(sorted(drawn, key=lambda one: one[:2]))
    ]
    return [persona for *_, persona in sorted(ordered, key=lambda one: one[:3])]


def load_pool(source: str | Path = "builtin") -> PersonaPool:
    """The pool "builtin", or the pool of a .toml ([[persona]] tables), .jsonl or .csv file; `loading.py` lists the fields.

    Personas without a split stay without one; `split_pool` assigns splits. Raises DataError for a bad row, and if near-duplicates
    have different splits.
    """
    pool = PersonaPool(personas=read_personas(source))
    check_pool_split(pool)
    return pool


PersonasLike = str | Path | PersonaPool | Sequence[str | Persona | Mapping[str, object]]
"""Forms of personas in Python: "builtin", a file, a pool, or a list of texts, records or mappings."""


def resolve_pool(personas: PersonasLike, split: Split) -> PersonaPool:
    """Convert personas to a pool: of "builtin" or a file only those of `split`, of a pool or a list all.

    Raises DataError for a bad file or a bad item of a list, ConfigError if the split is empty.
    """
    if isinstance(personas, PersonaPool):
        return personas
    if isinstance(personas, str | Path):
        return select_personas(PersonasConfig(pool=str(personas), split=split))
    return PersonaPool(personas=build_personas(personas))


def check_pool_split(pool: PersonaPool) -> None:
    """Raise DataError, naming the most similar pair, if near-duplicates are in different splits."""
    check_split_leakage(pool.personas)


def split_pool(pool: PersonaPool, heldout_share: float = 1 / 3, seed: int = 0) -> PersonaPool:
    """Assign a split to every persona without one: stratified by kind, and near-duplicates in the same split.

    Of these personas `heldout_share` is held out. Of the others one in `DEV_ONE_IN` is dev, rounded down; the rest is train.
    """
    return PersonaPool(personas=tuple(assign_splits(pool.personas, heldout_share, seed)))


def describe_pool(pool: PersonaPool, max_pairs: int = 20) -> str:
    """The text that `permix personas` prints: personas by kind and split, and the `max_pairs` most similar near-duplicates."""
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


class PersonaSource:
    """A pool's file, for several selections from it. It is read, checked and split once, when first needed."""

    def __init__(self, pool: str) -> None:
        self._name = pool
        self._split_pool: PersonaPool | None = None

    @cached_property
    def _pool(self) -> PersonaPool:
        return load_pool(self._name)

    def select(self, config: PersonasConfig) -> PersonaPool:
        """Assign missing splits, keep the personas of `config`'s split and tags, then select `n` of these.

        Raises DataError for a bad file, and ConfigError if too few personas remain.
        """
        assert config.pool == self._name
        pool = self._pool if config.split == "all" else self._in_split(config.split)
        if config.include or config.exclude or config.n:
            pool = pool.select(include_tags=config.include, exclude_tags=config.exclude, n=config.n, seed=config.seed)
        return pool

    def _in_split(self, split: Split) -> PersonaPool:
        if self._split_pool is None and any(persona.split is None for persona in self._pool.personas):
            self._split_pool = split_pool(self._pool)
            print_status(
                f"note: personas.pool = {self._name}: has personas without a split; a third of them becomes heldout, and a "
                f"quarter of the others dev; using personas.split = {split}"
            )
        return (self._split_pool or self._pool).in_split(split)


def select_personas(config: PersonasConfig) -> PersonaPool:
    """Select the personas of `config` from its file; see `PersonaSource.select`."""
    return PersonaSource(config.pool).select(config)
