"""A file of records, one JSON object a line, that only ever grows and survives a kill at any moment.

Its contract: a record is with the operating system when `add` returns; a last line that a kill has torn is dropped before the
next one is added. Whoever reads the file passes over such a line. One process at a time may add to it.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from permix.types import Record


class Appended:
    """The file is opened, and made, when the first records are added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def add(self, records: Iterable[Record]) -> None:
        if self._file is None:
            drop_torn_line(self.path)
            self._file = self.path.open("ab")
        self._file.write(b"".join(_line(record) for record in records))
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def drop_torn_line(path: Path) -> None:
    """Cut the file after its last newline."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                file.truncate(start + newline + 1)
                return
            end = start
        file.truncate(0)


def _line(record: Record) -> bytes:
    """Lone surrogates cannot be UTF-8, so such a (rare, hostile) text is written with "?" in their place."""
    return (json.dumps(record.model_dump(mode="python"), ensure_ascii=False) + "\n").encode("utf-8", "replace")
