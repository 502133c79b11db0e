"""Packs the recorded runs of a study, one compressed file UNIT.tar.xz a unit, and unpacks them.

    python -m bench.archive pack runs/study docs/recorded/study
    python -m bench.archive unpack docs/recorded/study runs/study
    python -m bench.archive pack runs/other docs/recorded/other --model ../models/SmolLM2 HuggingFaceTB/SmolLM2-135M-Instruct

Packing takes the finished units of a study (according to its study.json and each unit's unit.json), and single finished runs in
its folder, such as recorded turns; it names what is not finished. It leaves out what `bench.record` leaves out and the folder of
the trained model, and refuses runs that contain a path of this machine. --model writes a name, such as a hub id, in place of a
model's folder of this machine, in configurations and commands; the name is part of what a run is compared by, so a later start
of the study needs the same name. A unit whose file exists is packed again only with
--again. The bytes depend on the content alone: names are sorted, and there are no times and no owners. Unpacking never replaces a
folder. An interrupted call leaves no part of a file or of a unit's folder.
"""

import argparse
import io
import json
import lzma
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.record import record
from permix.storage.files import replace_when_done

SUFFIX = ".tar.xz"
LEFT_OUT = ("model", "log.txt", ".lock*", "embeddings.npz", "other-weights-*")
"""Files of a unit that are left out, as those of `bench.record` are. Vectors of texts are large and can be computed again; the
runs of other weights are not the unit's."""


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
    needed = set(_read_object(study)["evaluations"]) | ({"train"} if (folder / "train").exists() else set())
    pending = sorted(needed - set(_read_object(folder / "unit.json")["finished"]))
    return f"not finished: {', '.join(pending)}" if pending else None


def pack(folder: Path, target: Path, models: Mapping[str, str] | None = None) -> int:
    """Write the recorded runs of a unit, or a single run, to the file `target`; return the bytes of the file.

    `models` maps a model's folder, written as the runs write it, to the name that takes its place.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        copied, recorded = Path(scratch) / "copied" / folder.name, Path(scratch) / "recorded" / folder.name
        shutil.copytree(folder, copied, ignore=shutil.ignore_patterns(*LEFT_OUT, "checkpoints"))
        _rename_models(copied, models or {})
        for provenance in copied.rglob("provenance.json"):
            _remove_command_paths(provenance)
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


def _rename_models(folder: Path, models: Mapping[str, str]) -> None:
    """Replace each string that is a key of `models`, as a whole, by its value. Records and ledgers stay as they are."""
    for path in folder.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        for old, new in models.items():
            for plain_ascii in (False, True):
                text = text.replace(json.dumps(old, ensure_ascii=plain_ascii), json.dumps(new, ensure_ascii=plain_ascii))
        path.write_text(text, encoding="utf-8")


def _remove_command_paths(provenance: Path) -> None:
    """Replace absolute paths in the commands of a run's starts by their last part."""
    values = _read_object(provenance)
    for start in (values, values.get("last_start", {})):
        if start:
            start["command"] = [Path(word).name if Path(word).is_absolute() else word for word in start.get("command", [])]
    provenance.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_object(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def _add(archive: tarfile.TarFile, path: Path, name: Path) -> None:
    data = path.read_bytes()
    entry = tarfile.TarInfo(name.as_posix())
    entry.size, entry.mode = len(data), 0o644
    archive.addfile(entry, io.BytesIO(data))


def unpack(packed: Path, target: Path) -> bool:
    """Write the runs of a packed unit to a folder in `target`; return False if that folder exists.

    Raises tarfile.FilterError for an entry whose path leads out of `target`.
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
    parser = argparse.ArgumentParser(prog="python -m bench.archive", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=["pack", "unpack"])
    parser.add_argument("source", type=Path, help="pack: a study's folder; unpack: a folder of packed units")
    parser.add_argument("target", type=Path, help="pack: the folder for the packed units; unpack: the folder for their runs")
    parser.add_argument(
        "--model",
        nargs=2,
        action="append",
        default=[],
        metavar=("FOLDER", "NAME"),
        help="pack: write NAME in place of a model's FOLDER",
    )
    parser.add_argument("--again", action="store_true", help="also pack units whose file exists")
    return parser


def main() -> None:
    options = parser().parse_args()
    if options.action == "unpack":
        for packed in sorted(options.source.glob(f"*{SUFFIX}")):
            print(f"{packed.name}: {'unpacked' if unpack(packed, options.target) else 'exists already'}")
        return
    for folder in sorted(path for path in options.source.iterdir() if path.is_dir() and is_run_or_unit(path)):
        target = options.target / f"{folder.name}{SUFFIX}"
        if missing := missing_part(folder):
            print(f"{folder}: left out: {missing}")
        elif options.again or not target.exists():
            print(f"{target}: {pack(folder, target, dict(options.model)) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
