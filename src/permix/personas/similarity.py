"""Which personas are nearly the same, and which side of the split, train, dev or held out, each one stands on.

Similarity is a pure function of two texts, so a verdict never depends on who else is in the pool. The split depends on texts,
kinds and the seed, never on the order of a file.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from permix.errors import ConfigError, DataError
from permix.storage.rows import quote_value
from permix.types import Persona, Split, canonical_text, seed_from

NEAR_DUPLICATE_THRESHOLD = 0.8
"""Similarity from which two personas count as one.

Chosen on pairs of our own (tests/personas/test_pool.py). A word added, dropped, inflected or misspelt scores 0.84 to 1. Templates
that differ in one word score 0.36 to 0.82: two kinds of biologist count as one, two kinds of teacher do not. Heavier rewording
falls below (0.73 to 0.78), and so does everything else: it sees letters, not meaning, and a buccaneer is a stranger to a pirate.
No two built-in personas reach 0.4.
"""

DEV_ONE_IN = 4
"""Of the personas that are given a side and are not held out, one in four is dev: with a third held out, a sixth of the pool."""


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
    """The persona's first tag, by which pools are stratified."""
    return persona.tags[0] if persona.tags else "untagged"


def char_trigrams(text: str) -> frozenset[str]:
    """Letter trigrams of the text's words, spaces at their ends included; stop words are dropped."""
    words = re.findall(r"[^\W_]+", canonical_text(text)) or [canonical_text(text)]
    kept = [word for word in words if word not in _STOP_WORDS] or words
    return frozenset(f" {word} "[i : i + 3] for word in kept for i in range(len(word)))


def near_duplicate_pairs(
    personas: Sequence[Persona], threshold: float = NEAR_DUPLICATE_THRESHOLD
) -> Iterator[tuple[Persona, Persona, float]]:
    """Every pair whose similarity |A ∩ B| / √(|A| |B|) of trigram sets reaches the threshold, in a bounded amount of memory."""
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
    """Sparse 0/1 matrix [text, trigram]; scipy is imported here to keep the module light."""
    from scipy import sparse

    columns: defaultdict[str, int] = defaultdict(lambda: len(columns))
    ends, indices = [0], list[int]()
    for one in gram_sets:
        indices += [columns[gram] for gram in one]
        ends.append(len(indices))
    return sparse.csr_matrix(([1.0] * len(indices), indices, ends), shape=(len(gram_sets), len(columns)))


def find_near_duplicates(personas: Sequence[Persona], threshold: float = NEAR_DUPLICATE_THRESHOLD) -> list[NearDuplicate]:
    """Pairs that count as the same persona, most similar first, then by id."""
    found = (NearDuplicate(min(a.id, b.id), max(a.id, b.id), value) for a, b, value in near_duplicate_pairs(personas, threshold))
    return sorted(found, key=lambda near: (-near.similarity, near.first, near.second))


def check_split_leakage(personas: Sequence[Persona]) -> None:
    """Raise DataError, naming the most similar pair, when near-duplicates stand on different sides of the split."""
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
            "near-duplicates "
            f"(similarity {value:.2f}, limit {NEAR_DUPLICATE_THRESHOLD}) on different sides of the split; pairs like "
            f"this: {count}; "
            "put such personas on one side, or drop one of them"
        )


def near_duplicate_clusters(personas: Sequence[Persona]) -> list[list[Persona]]:
    """Personas grouped so that near-duplicates, and near-duplicates of near-duplicates, share a group."""
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
    """The personas, each with a side: whole clusters, stratified by kind; a side given explicitly is kept.

    Clusters are taken kind by kind in seeded order; one goes to the held-out side when that brings the share held out so far
    nearer to `heldout_share`. What a kind owes is carried to the next, so that many small kinds also meet the share. The others
    train, but for every `DEV_ONE_IN` personas among them one is dev: at most that share, so a pool of a few has no dev side.
    """
    if not 0 < heldout_share < 1:
        raise ConfigError(f"heldout_share = {heldout_share}: must lie between 0 and 1")
    sides: dict[str, Split] = {}
    owed, others, conflicting = 0.0, 0, False
    for group in sorted(near_duplicate_clusters(personas), key=lambda group: _cluster_sort_key(group, seed)):
        side = next((persona.split for persona in group if persona.split), None)
        if side is None:
            owed += heldout_share * len(group)
            side = "heldout" if owed >= len(group) / 2 else "train"
            owed -= len(group) * (side == "heldout")
            if side == "train":
                others += len(group)
                side = "dev" if others >= DEV_ONE_IN * len(group) else "train"
                others -= DEV_ONE_IN * len(group) * (side == "dev")
        sides |= {persona.id: persona.split or side for persona in group}
        conflicting |= len({sides[persona.id] for persona in group}) > 1
    for needed in ("train", "heldout"):
        if needed not in sides.values():
            raise ConfigError(
                f"heldout_share = {heldout_share}: {len(personas)} personas leave the {needed} side empty; add personas"
            )
    split = [persona.model_copy(update={"split": sides[persona.id]}) for persona in personas]
    # Near-duplicates share a cluster, so only a cluster on several sides can leak: the search is not made twice for nothing.
    if conflicting:
        check_split_leakage(split)
    return split


def _cluster_sort_key(group: Sequence[Persona], seed: int) -> tuple[int, int]:
    first = min(group, key=lambda persona: (canonical_text(persona.text), persona.id))
    return seed_from(seed, "kind", persona_kind(first)), seed_from(seed, "split", canonical_text(first.text))
