"""The recorded runs of a study as one compressed file a unit: a folder of run directories becomes UNIT.tar.xz, and back.

Packing leaves out what `bench.record` leaves out (weights, checkpoints, what can be made anew) and refuses runs that name a path
of this machine. Only units whose runs are all measured are packed. A unit that has its file already is packed again only with
--again. The bytes depend on the content alone: sorted names, no times, no owners. Unpacking never replaces a unit.

    python -m bench.archive pack runs/study docs/recorded/study
    python -m bench.archive unpack docs/recorded/study runs/study
"""

import argparse
import io
import json
import lzma
import tarfile
import tempfile
from pathlib import Path

from bench.record import record

SUFFIX = ".tar.xz"


def is_measured(unit: Path) -> bool:
    """Whether every run of a unit has ended: an evaluation has metrics.json, a training usage.json. A unit has an evaluation."""
    configs = list(unit.glob("*/config.json"))
    stages = {path.parent: json.loads(path.read_text(encoding="utf-8")).get("stage") for path in configs}
    ended = all((run / ("usage.json" if stage == "train" else "metrics.json")).exists() for run, stage in stages.items())
    return ended and any(stage != "train" for stage in stages.values())


def pack(unit: Path, target: Path) -> int:
    """Write the unit's recorded runs to the file `target`; returns its bytes."""
    with tempfile.TemporaryDirectory(dir=unit.parent) as scratch:
        record(unit, Path(scratch) / unit.name)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for path in sorted(Path(scratch).rglob("*")):
                if path.is_file():
                    _add(archive, path, path.relative_to(scratch))
    data = lzma.compress(packed.getvalue(), preset=9 | lzma.PRESET_EXTREME)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return len(data)


def _add(archive: tarfile.TarFile, path: Path, name: Path) -> None:
    data = path.read_bytes()
    entry = tarfile.TarInfo(name.as_posix())
    entry.size, entry.mode = len(data), 0o644
    archive.addfile(entry, io.BytesIO(data))


def unpack(packed: Path, target: Path) -> bool:
    """Write the runs of a packed unit below `target`; returns False if the unit is there already.

    Raises tarfile.FilterError for an entry that leads out of `target`.
    """
    if (target / packed.name.removesuffix(SUFFIX)).exists():
        return False
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(packed, "r:xz") as archive:
        archive.extractall(target, filter="data")
    return True


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m bench.archive", description=(__doc__ or "").partition(":")[0])
    options.add_argument("action", choices=["pack", "unpack"])
    options.add_argument("source", type=Path, help="pack: a folder of units; unpack: a folder of packed units")
    options.add_argument("target", type=Path, help="where they are to lie")
    options.add_argument("--again", action="store_true", help="pack units that have their file already, too")
    given = options.parse_args()
    if given.action == "unpack":
        for packed in sorted(given.source.glob(f"*{SUFFIX}")):
            print(f"{packed.name}: {'unpacked' if unpack(packed, given.target) else 'is there already'}")
        return
    for unit in sorted(path for path in given.source.iterdir() if path.is_dir() and is_measured(path)):
        target = given.target / f"{unit.name}{SUFFIX}"
        if given.again or not target.exists():
            print(f"{target}: {pack(unit, target) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
