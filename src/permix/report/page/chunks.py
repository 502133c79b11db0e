"""Files of transcripts beside the page: how a sheet is cut into tiles, what a file holds, which files are ours.

Contract: the tile of (row, column) is `KEY-I-J` with I = row // rows and J = column // columns, so the page finds it without an
index. A file is one call, `permix.cells("KEY-I-J", "base64 of gzip of JSON")`: a page from disk may load that by <script src>
and nothing else, and what others wrote is in it only as base64. The same records give the same bytes.
"""

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FOLDER = "cells"
MOST_BYTES = 600_000
"""Of the records of one tile: some 200 KB as a file. A single place may hold more."""
_OURS = re.compile(r"(stability|open|gym|interview)-\d+-\d+-\d+\.js")


class Tiling(NamedTuple):
    """Rows and columns of a tile."""

    rows: int
    columns: int


def tiling(bytes_R_C: NDArray[np.int64], most: int = MOST_BYTES) -> Tiling:
    """The largest tile, halved from the whole, none of which holds more than `most` bytes."""
    rows, columns = (max(1, one) for one in bytes_R_C.shape)
    while (rows, columns) != (1, 1) and _fullest(bytes_R_C, rows, columns) > most:
        if rows >= columns:
            rows = -(-rows // 2)
        else:
            columns = -(-columns // 2)
    return Tiling(rows, columns)


def _fullest(bytes_R_C: NDArray[np.int64], rows: int, columns: int) -> int:
    if bytes_R_C.size == 0:
        return 0
    by_row = np.add.reduceat(bytes_R_C, np.arange(0, bytes_R_C.shape[0], rows), axis=0)
    return int(np.add.reduceat(by_row, np.arange(0, bytes_R_C.shape[1], columns), axis=1).max())


def pack(raw: bytes) -> str:
    """base64 of gzip; `unpack` in cells.js is its other half."""
    return base64.b64encode(gzip.compress(raw, compresslevel=6, mtime=0)).decode("ascii")


def pack_json(value: Any) -> str:
    return pack(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def write_chunk(folder: Path, name: str, value: Any) -> int:
    """Write a tile; returns its bytes."""
    text = f'permix.cells("{name}","{pack_json(value)}");\n'
    return (folder / f"{name}.js").write_bytes(text.encode("ascii"))


def remove_stale(folder: Path) -> None:
    """Take away the tiles of an earlier report; files that are not ours by name stay."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _OURS.fullmatch(path.name):
            path.unlink()
