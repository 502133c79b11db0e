"""How fast a run goes, as far as it was watched: never from what it had done before."""

from collections import deque

WINDOW_S = 60.0


class Rate:
    """Counts at moments (seconds of one clock). Nothing is known of a count that was never seen to grow."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        self._moved = False

    def note(self, now: float, count: int) -> None:
        """A count that shrinks is one of another beginning: what was seen before is forgotten."""
        if self._seen and count < self._seen[-1][1]:
            self._seen.clear()
            self._moved = False
        self._moved = self._moved or (bool(self._seen) and count > self._seen[-1][1])
        self._seen.append((now, count))
        while len(self._seen) > 2 and self._seen[1][0] <= now - WINDOW_S:
            self._seen.popleft()

    def per_second(self) -> float | None:
        """Over the last minute, or since watching began; 0 for one that moved before and does not now."""
        if not self._moved:
            return None
        (start, before), (end, after) = self._seen[0], self._seen[-1]
        return (after - before) / (end - start) if end > start else None
