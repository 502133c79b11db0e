"""Find near-duplicate personas, and assign personas to the splits train, dev and heldout.

Similarity is a pure function of two texts, so whether two personas are near-duplicates does not depend on the rest of the pool.
Splits depend on texts, kinds and the seed, not on the order of a file. The suffix P means personas.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from permix.errors import ConfigError, DataError
from permix.storage.rows import quote_value
from permix.types import Persona, Split, canonical_text, seed_from

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


class NearDuplicate(NamedTuple):
    """Two personas, by id, and their similarity."""

    first: str
    second: str
    similarity: float


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
    matrix = _trigram_matrix([char_trigrams(persona.text) for persona in personas])
    sizes = matrix.getnnz(axis=1)
    for start in range(0, len(personas), _ROWS_PER_BLOCK):
        common = (matrix[start : start + _ROWS_PER_BLOCK] @ matrix[start:].T).tocoo()
        similarity = common.data / (sizes[start + common.row] * sizes[start + common.col]) ** 0.5
        keep = (similarity >= threshold) & (common.col > common.row)
        for row, col, value in zip(common.row[keep], common.col[keep], similarity[keep], strict=True):
            yield personas[start + row], personas[start + col], float(value)


def _trigram_matrix(gram_sets: Sequence[frozenset[str]]) -> Any:
    """Sparse 0/1 matrix [P, trigrams]. scipy is imported here, so that importing the module stays fast."""
    from scipy import sparse

    columns: defaultdict[str, int] = defaultdict(lambda: len(columns))
    ends, indices = [0], list[int]()
    for one in gram_sets:
        indices += [columns[gram] for gram in one]
        ends.append(len(indices))
    return sparse.csr_matrix(([1.0] * len(indices), indices, ends), shape=(len(gram_sets), len(columns)))


def find_near_duplicates(personas: Sequence[Persona], threshold: float = NEAR_DUPLICATE_THRESHOLD) -> list[NearDuplicate]:
    """All near-duplicate pairs, most similar first, then by id."""
    pairs = (NearDuplicate(min(a.id, b.id), max(a.id, b.id), value) for a, b, value in near_duplicate_pairs(personas, threshold))
    return sorted(pairs, key=lambda near: (-near.similarity, near.first, near.second))


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
