"""The recorded runs of a study as one compressed file a unit: a folder of run directories becomes UNIT.tar.xz, and back.

Packing takes the finished units of a study (by its study.json and each unit's unit.json), and single finished runs in its folder,
such as recorded turns; it names what is not finished. It leaves out what `bench.record` leaves out and the folder of the trained
model, and refuses runs that name a path of this machine. What has its file already is packed again only with --again. The bytes
depend on the content alone: sorted names, no times, no owners. Unpacking never replaces a folder. A file or a folder of a unit is
whole: an interrupted call leaves neither.

    python -m bench.archive pack runs/study docs/recorded/study
    python -m bench.archive unpack docs/recorded/study runs/study
"""

import argparse
import io
import json
import lzma
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from bench.record import record
from permix.storage.files import replace_when_done

SUFFIX = ".tar.xz"
LEFT_OUT = ("model", "log.txt", ".lock*", "embeddings.npz", "other-weights-*")
"""Of a unit, besides what `bench.record` leaves out. The vectors of texts are large, and the extra embed computes them again;
the runs of other weights are not the unit's."""


def is_run_or_unit(folder: Path) -> bool:
    """Whether a folder of a study is a unit or a single run: its reports are neither."""
    return (folder / "config.json").exists() or (folder / "unit.json").exists()


def missing_part(folder: Path) -> str | None:
    """Why a folder of a study is not packed: what its unit or its single run still lacks; None for what is finished."""
    if (folder / "config.json").exists():
        return None if (folder / "metrics.json").exists() else "has no metrics.json"
    study = folder.parent / "study.json"
    if not study.exists():
        return f"{study} is missing, which names the evaluations; start the study once more"
    needed = set(_read(study)["evaluations"]) | ({"train"} if (folder / "train").exists() else set())
    pending = sorted(needed - set(_read(folder / "unit.json")["finished"]))
    return f"not finished: {', '.join(pending)}" if pending else None


def pack(folder: Path, target: Path) -> int:
    """Write the recorded runs of a unit, or a single run, to the file `target`; returns its bytes."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        copied, recorded = Path(scratch) / "copied" / folder.name, Path(scratch) / "recorded" / folder.name
        shutil.copytree(folder, copied, ignore=shutil.ignore_patterns(*LEFT_OUT, "checkpoints"))
        for provenance in copied.rglob("provenance.json"):
            _level_command(provenance)
        record(copied, recorded)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for path in sorted(recorded.rglob("*")):
                if path.is_file():
                    _add(archive, path, path.relative_to(recorded.parent))
    data = lzma.compress(packed.getvalue(), preset=9 | lzma.PRESET_EXTREME)
    with replace_when_done(target) as unfinished:
        unfinished.write_bytes(data)
    return len(data)


def _level_command(provenance: Path) -> None:
    """Keep only the last part of the absolute paths in a run's command."""
    born = _read(provenance)
    command = [Path(word).name if Path(word).is_absolute() else word for word in born.get("command", [])]
    provenance.write_text(json.dumps(born | {"command": command}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _add(archive: tarfile.TarFile, path: Path, name: Path) -> None:
    data = path.read_bytes()
    entry = tarfile.TarInfo(name.as_posix())
    entry.size, entry.mode = len(data), 0o644
    archive.addfile(entry, io.BytesIO(data))


def unpack(packed: Path, target: Path) -> bool:
    """Write the runs of a packed unit below `target`; returns False if its folder is there already.

    Raises tarfile.FilterError for an entry that leads out of `target`.
    """
    name = packed.name.removesuffix(SUFFIX)
    if (target / name).exists():
        return False
    target.mkdir(parents=True, exist_ok=True)
    # In a scratch folder first, so that a folder of this name is whole.
    with tempfile.TemporaryDirectory(dir=target, prefix=f".{name}.") as scratch, tarfile.open(packed, "r:xz") as archive:
        archive.extractall(scratch, filter="data")
        for path in sorted(Path(scratch).iterdir(), key=lambda one: one.name == name):
            path.rename(target / path.name)
    return True


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m bench.archive", description=(__doc__ or "").partition(":")[0])
    options.add_argument("action", choices=["pack", "unpack"])
    options.add_argument("source", type=Path, help="pack: a study's folder; unpack: a folder of packed units")
    options.add_argument("target", type=Path, help="where they are to lie")
    options.add_argument("--again", action="store_true", help="pack what has its file already, too")
    return options


def main() -> None:
    given = parser().parse_args()
    if given.action == "unpack":
        for packed in sorted(given.source.glob(f"*{SUFFIX}")):
            print(f"{packed.name}: {'unpacked' if unpack(packed, given.target) else 'is there already'}")
        return
    for folder in sorted(path for path in given.source.iterdir() if path.is_dir() and is_run_or_unit(path)):
        target = given.target / f"{folder.name}{SUFFIX}"
        if missing := missing_part(folder):
            print(f"{folder}: left out: {missing}")
        elif given.again or not target.exists():
            print(f"{target}: {pack(folder, target) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
