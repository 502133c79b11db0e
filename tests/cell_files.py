"""Read one file of records, also that of a single worker; a run is read with `read_run_cells`."""

from pathlib import Path

from permix.storage.cells import CellIndex, read_summaries


def read_cells(path: Path) -> CellIndex:
    """The cells of the file, none if it is missing. Raises DataError naming the first line that is not a cell."""
    return CellIndex([path], read_summaries(path))
