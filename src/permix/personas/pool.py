"""The persona pool: load it, split it, select from it, and weight it. `select_personas` does this for a configuration.

A pool is a set: its personas are always sorted by id, so nothing depends on the order of a file. A loaded pool is checked: no
persona has a near-duplicate in another split. Every choice (`select`, `split_pool`) depends only on content and seed.

Similarity is a pure function of two texts, so whether two personas are near-duplicates does not depend on the rest of the pool.
Splits depend on texts, kinds and the seed, not on the order of a file. The suffix P means personas.
"""

import heapq
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from permix.config import PersonasConfig, build_config
from permix.errors import ConfigError, DataError, option_context
from permix.personas.loading import build_personas, read_pool_file
from permix.progress import print_status
from permix.prompts import describe_misfits
from permix.sanitize import escape_control
from permix.storage.rows import is_whole_number, quote_value, valid_names_hint
from permix.types import SPLITS, Persona, Record, Split, canonical_text, digest, require_unique, seed_from


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
        for field, tags in (("include_tags", include_tags), ("exclude_tags", exclude_tags)):
            if isinstance(tags, str):
                raise ConfigError(f'{field} = {quote_value(tags)}: must be a list of tags, such as ["{tags}"]')
            for tag in tags:
                self._require_tag(tag, field)
        candidates = [
            persona
            for persona in self.personas
            if (not include_tags or set(include_tags) & set(persona.tags)) and not set(exclude_tags) & set(persona.tags)
        ]
        if not candidates:
            raise ConfigError(f"include_tags = {list(include_tags)}, exclude_tags = {list(exclude_tags)}: no persona is left")
        if n is not None and not is_whole_number(n):
            raise ConfigError(f"n = {n!r}: must be a whole number, the number of personas")
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
            self._require_tag(tag, "tag_weights")
            if not 0 <= factor < math.inf:
                raise ConfigError(f"tag_weights.{tag} = {factor}: must be a finite number, 0 or above")
        raw = [persona.weight * math.prod(factors.get(tag, 1.0) for tag in persona.tags) for persona in self.personas]
        largest = max(raw)
        if not 0 < largest < math.inf:
            raise ConfigError(f"tag_weights = {dict(factors)}: the largest weight is {largest}; it must be finite and above 0")
        scaled = [weight / largest for weight in raw]
        return tuple(weight / math.fsum(scaled) for weight in scaled)

    def _require_tag(self, tag: str, field: str) -> None:
        if tag not in self.tags:
            raise ConfigError(f"{field}: unknown tag {quote_value(tag)}; {valid_names_hint(tag, self.tags)}")


_SELECTION_OPTIONS = {
    "n": "personas.n",
    "split": "personas.split",
    "include_tags": "personas.include",
    "exclude_tags": "personas.exclude",
    "tag_weights": "plan.tag_weights",
}
"""For each argument of `PersonaPool`'s methods: the option of a configuration that gives it."""

_ARGUMENT = re.compile(rf"(?:^|(?<=, ))({'|'.join(_SELECTION_OPTIONS)})(?= = |: |\.)")


@contextmanager
def selection_context() -> Iterator[None]:
    """Make a ConfigError of `PersonaPool`, which names an argument, name the option: "n = 9: ..." is "personas.n = 9: ..."."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(_ARGUMENT.sub(lambda found: _SELECTION_OPTIONS[found[1]], str(error))) from error


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


def load_pool(source: str | Path = "builtin", column: str | None = None) -> PersonaPool:
    """The pool "builtin", or the pool of a file or folder: `loading.py` lists the fields, `published.py` the forms of files.

    `column` names the column of the texts. Personas without a split stay without one; `split_pool` assigns splits. Prints what
    was read if the file is not in permix's own form. Raises DataError for a bad row, and if near-duplicates have different
    splits.
    """
    personas, notes = read_pool_file(source, column)
    for note in notes:
        print_status(f"note: {escape_control(note)}")
    pool = PersonaPool(personas=personas)
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
        return select_personas(build_config(PersonasConfig, {"pool": str(personas), "split": split}, source="personas"))
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

    def __init__(self, pool: str, column: str | None = None) -> None:
        self._name, self._column = pool, column
        self._split_pool: PersonaPool | None = None

    @cached_property
    def _pool(self) -> PersonaPool:
        with option_context("personas.pool", self._name):
            return load_pool(self._name, self._column)

    def select(self, config: PersonasConfig) -> PersonaPool:
        """Assign missing splits, keep the personas of `config`'s split and tags, then select `n` of these.

        Raises DataError for a bad file, and ConfigError if too few personas remain.
        """
        return self.select_recorded(config)[1]

    def select_recorded(self, config: PersonasConfig, trained_ids: Collection[str] = ()) -> tuple[PersonasConfig, PersonaPool]:
        """The personas of `select`, and `config` with the split that was used.

        A split that is not given is heldout, or all of a pool of your own in which no persona has a split; heldout also there, if
        the model was trained with some of its personas, whose ids are `trained_ids`.
        """
        assert (config.pool, config.column) == (self._name, self._column)
        if "split" not in config.model_fields_set:
            splits = {persona.split for persona in self._pool.personas}
            trained = len({persona.id for persona in self._pool.personas} & set(trained_ids))
            whole = self._name != "builtin" and splits == {None} and not trained
            config = config.model_copy(update={"split": "all" if whole else "heldout"})
            if trained and splits == {None}:
                print_status(
                    f"note: the model was trained with {trained} of the {len(self._pool)} personas of {self._name}, so those of "
                    'the split heldout are used; personas.split = "all" takes all'
                )
        with selection_context():
            pool = self._pool if config.split == "all" else self._in_split(config.split)
            if config.include or config.exclude or config.n:
                pool = pool.select(include_tags=config.include, exclude_tags=config.exclude, n=config.n, seed=config.seed)
        return config, pool

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
    return PersonaSource(config.pool, config.column).select(config)


def select_recorded_personas(config: PersonasConfig, trained_ids: Collection[str] = ()) -> tuple[PersonasConfig, PersonaPool]:
    """`config` with the split that is used, and its personas; see `PersonaSource.select_recorded`."""
    return PersonaSource(config.pool, config.column).select_recorded(config, trained_ids)


def warn_of_misfits(pool: PersonaPool, templates: Sequence[str]) -> None:
    """Print a warning for each kind of persona that a template does not fit; see `permix.prompts.describe_misfits`."""
    for line in describe_misfits(pool.personas, templates):
        print_status(escape_control(line))


NEAR_DUPLICATE_THRESHOLD = 0.8
"""Similarity (0 to 1) from which two personas are near-duplicates.

Chosen on the pairs in tests/personas/test_pool.py. Pairs in which a word is added, dropped, inflected or misspelt have 0.84 to 1.
Texts of one pattern that differ in one word have 0.36 to 0.82: two kinds of biologist are near-duplicates, two kinds of teacher
are not. Paraphrases have 0.73 to 0.78, since the measure compares letters and not meaning: a buccaneer and a pirate are unlike.
No two built-in personas reach 0.4.
"""

DEV_ONE_IN = 4
"""Of the personas that `assign_splits` does not hold out, one in this many is dev; with a third held out, a sixth of all."""


_ROWS_PER_BLOCK = 256

_STOP_WORD_TEXT = """
    a all always an and any are as at be been but by each every for from had has have he her his i in is it its my never no not of
    on or she that the their these they this those to very was were which who whom whose with you your
"""

_STOP_WORDS = frozenset(_STOP_WORD_TEXT.split())


def persona_kind(persona: Persona) -> str:
    """The persona's first tag, or "untagged"; selections and splits are stratified by it."""
    return persona.tags[0] if persona.tags else "untagged"


def char_trigrams(text: str) -> frozenset[str]:
    """Character trigrams of the text's words, including a space at both ends of a word, without stop words."""
    words = re.findall(r"[^\W_]+", canonical_text(text)) or [canonical_text(text)]
    kept = [word for word in words if word not in _STOP_WORDS] or words
    return frozenset(f" {word} "[i : i + 3] for word in kept for i in range(len(word)))


def near_duplicate_pairs(
    personas: Sequence[Persona], threshold: float = NEAR_DUPLICATE_THRESHOLD
) -> Iterator[tuple[Persona, Persona, float]]:
    """Yield (first, second, similarity) of every pair whose similarity reaches the threshold, in bounded memory.

    Similarity is the cosine of the trigram sets A and B, |A ∩ B| / √(|A| |B|). Raises ConfigError for a bad threshold.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold = {threshold}: must be above 0 and at most 1")
    import numpy as np  # here, so that importing the module stays fast

    matrix = _trigram_matrix([char_trigrams(persona.text) for persona in personas])
    sizes = matrix.getnnz(axis=1)
    # A pair's similarity is a product of two scaled rows. It is rounded, so it only finds the few pairs to look at exactly.
    scaled = matrix.copy()
    scaled.data /= np.repeat(np.sqrt(sizes), sizes).astype(np.float32)
    for start in range(0, len(personas), _ROWS_PER_BLOCK):
        product = scaled[start : start + _ROWS_PER_BLOCK] @ scaled[start:].T
        near = np.flatnonzero(product.data >= threshold - 1e-3)
        rows, cols = start + np.searchsorted(product.indptr, near, side="right") - 1, start + product.indices[near]
        rows, cols = rows[cols > rows], cols[cols > rows]
        similarity = matrix[rows].multiply(matrix[cols]).sum(axis=1).A1 / (sizes[rows] * sizes[cols]) ** 0.5
        for row, col, value in sorted(zip(rows.tolist(), cols.tolist(), similarity.tolist(), strict=True)):
            if value >= threshold:
                yield personas[row], personas[col], value


def _trigram_matrix(gram_sets: Sequence[frozenset[str]]) -> Any:
    """Sparse 0/1 matrix [P, trigrams]."""
    import numpy as np
    from scipy import sparse

    columns: defaultdict[str, int] = defaultdict(lambda: len(columns))
    ends, indices = [0], list[int]()
    for one in gram_sets:
        indices += [columns[gram] for gram in one]
        ends.append(len(indices))
    ones = np.ones(len(indices), dtype=np.float32)
    return sparse.csr_matrix((ones, indices, ends), shape=(len(gram_sets), len(columns)))


def check_split_leakage(personas: Sequence[Persona]) -> None:
    """Raise DataError, naming the most similar pair, if near-duplicates are in different splits."""
    if len({persona.split for persona in personas} - {None}) < 2:
        return
    count, worst = 0, None
    for pair in near_duplicate_pairs([persona for persona in personas if persona.split]):
        if pair[0].split != pair[1].split:
            count += 1
            worst = pair if worst is None or pair[2] > worst[2] else worst
    if worst is not None:
        a, b, value = worst
        raise DataError(
            f"personas {a.id!r} ({quote_value(a.text)}, {a.split}) and {b.id!r} ({quote_value(b.text)}, {b.split}) are "
            f"near-duplicates (similarity {value:.2f}, limit {NEAR_DUPLICATE_THRESHOLD}) in different splits; number of such "
            f"pairs: {count}; give both the same split, or remove one of them"
        )


def near_duplicate_clusters(personas: Sequence[Persona]) -> list[list[Persona]]:
    """Group personas so that near-duplicates, and near-duplicates of near-duplicates, are in the same group."""
    leader = {persona.id: persona.id for persona in personas}
    find = _union_find(leader)
    for a, b, _ in near_duplicate_pairs(personas):
        leader[find(a.id)] = find(b.id)
    groups: defaultdict[str, list[Persona]] = defaultdict(list)
    for persona in personas:
        groups[find(persona.id)].append(persona)
    return list(groups.values())


def _union_find(leader: dict[str, str]) -> Callable[[str], str]:
    def find(one: str) -> str:
        while leader[one] != one:
            leader[one] = one = leader[leader[one]]
        return one

    return find


def assign_splits(personas: Sequence[Persona], heldout_share: float, seed: int) -> list[Persona]:
    """The personas, each with a split. Clusters of near-duplicates stay together, and given splits are kept.

    Clusters are assigned kind by kind, in a seeded order. A cluster is held out if that brings the share held out so far closer
    to `heldout_share`; the remainder of a kind is carried over to the next kind, so that many small kinds also meet the share.
    Of the other personas one in `DEV_ONE_IN` is dev, rounded down, so a small pool has no dev split. Raises ConfigError if train
    or heldout stays empty, and DataError if given splits separate near-duplicates.
    """
    if not 0 < heldout_share < 1:
        raise ConfigError(f"heldout_share = {heldout_share}: must be between 0 and 1")
    splits: dict[str, Split] = {}
    heldout_due, others, conflicting = 0.0, 0, False
    for group in sorted(near_duplicate_clusters(personas), key=lambda group: _cluster_sort_key(group, seed)):
        split = next((persona.split for persona in group if persona.split), None)
        if split is None:
            heldout_due += heldout_share * len(group)
            split = "heldout" if heldout_due >= len(group) / 2 else "train"
            heldout_due -= len(group) * (split == "heldout")
            if split == "train":
                others += len(group)
                split = "dev" if others >= DEV_ONE_IN * len(group) else "train"
                others -= DEV_ONE_IN * len(group) * (split == "dev")
        splits |= {persona.id: persona.split or split for persona in group}
        conflicting |= len({splits[persona.id] for persona in group}) > 1
    for needed in ("train", "heldout"):
        if needed not in splits.values():
            raise ConfigError(
                f"heldout_share = {heldout_share}: {len(personas)} personas leave the {needed} split empty; add personas"
            )
    assigned = [persona.model_copy(update={"split": splits[persona.id]}) for persona in personas]
    # Near-duplicates share a cluster, so only a cluster with several splits can leak; else the slow search is not repeated.
    if conflicting:
        check_split_leakage(assigned)
    return assigned


def _cluster_sort_key(group: Sequence[Persona], seed: int) -> tuple[int, int]:
    first = min(group, key=lambda persona: (canonical_text(persona.text), persona.id))
    return seed_from(seed, "kind", persona_kind(first)), seed_from(seed, "split", canonical_text(first.text))
