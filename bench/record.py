"""Copies a folder of runs without weights and other large files, and without traces of the machine, so that it can be published.

    python -m bench.record ../scratch/docs/recorded/quickstart docs/recorded/quickstart

Whatever can be computed again is left out. Records, ledgers and logs are copied as they are. In provenance.json one field is
changed: `platform` keeps the system and the processor, without the release of the kernel. Runs that contain a path of this
machine are refused; make them with relative paths, as docs/recorded/README.md shows.
"""

import argparse
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LEFT_OUT = (
    "*.safetensors", "tokenizer*", "chat_template.jinja", "generation_config.json", "checkpoints", "reference_answers", "report",
    "samples.md", ".lock",
)  # fmt: skip
"""Patterns of files and folders of a run that no report reads."""
TEXT_SUFFIXES = (".json", ".jsonl", ".md")


def record(source: Path, target: Path) -> int:
    """Copy the files that a report reads, and return their bytes. Raises SystemExit if one contains a path of this machine."""
    refuse_paths(source)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for path in target.rglob("provenance.json"):
        values = json.loads(path.read_text(encoding="utf-8"))
        values["platform"] = shorten_platform(values["platform"])
        path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


def shorten_platform(platform: str) -> str:
    """Return the system and the processor: "Linux-x86_64" for "Linux-6.1.0-13-amd64-x86_64-with-glibc2.36"."""
    system = platform.partition("-")[0]
    processor = re.search(r"x86_64|aarch64|arm64|AMD64", platform)
    return f"{system}-{processor[0]}" if processor else system


def refuse_paths(source: Path) -> None:
    """Raise SystemExit if a text file contains the home folder or the folder of the runs, or has an existing path as a value."""
    folders = {str(Path.home()), str(source.resolve().parent)}
    for path in text_files(source):
        text = path.read_text(encoding="utf-8")
        named = [folder for folder in folders if folder in text]
        if path.suffix == ".json":
            named += [value for value in _strings(json.loads(text)) if Path(value).is_absolute() and _exists(value)]
        if named:
            raise SystemExit(f"{path}: names {named[0]}, a path of this machine; make the runs with relative paths")


def _strings(value: Any) -> Iterator[str]:
    """Yield the strings of a JSON value, without the keys of its objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long for a path, or with a null character: a text
        return False


def text_files(source: Path) -> Iterator[Path]:
    """Yield the text files that are copied."""
    for path in sorted(source.rglob("*")):
        parts = path.relative_to(source).parts
        if path.suffix in TEXT_SUFFIXES and not any(Path(part).match(pattern) for part in parts for pattern in LEFT_OUT):
            yield path


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.record", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, help="a folder of run directories")
    parser.add_argument("target", type=Path, help="the folder for the copies; it is replaced")
    return parser


def main() -> None:
    options = parser().parse_args()
    print(f"{options.target}: {record(options.source, options.target) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
