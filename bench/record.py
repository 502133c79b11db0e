"""A folder of runs made small enough to ship: weights and whatever can be made anew are left out, and nothing names the machine.

Records, ledgers and logs are copied as they are. Of provenance.json one field is levelled: `platform` keeps the system and the
processor, without the release of the kernel. Refuses runs in which a path of this machine stands; make them with relative paths,
as docs/recorded/README.md shows.

    python -m bench.record ../scratch/docs/recorded/quickstart docs/recorded/quickstart
"""

import argparse
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = (
    "*.safetensors", "tokenizer*", "chat_template.jinja", "generation_config.json", "checkpoints", "reference_answers", "report",
    "samples.md", ".lock",
)  # fmt: skip
"""Of a run, what no report reads."""
TEXT = (".json", ".jsonl", ".md")


def record(source: Path, target: Path) -> int:
    """Copy what a report reads; returns bytes. Raises SystemExit naming the file in which a path of this machine stands."""
    refuse_paths(source)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for path in target.rglob("provenance.json"):
        born = json.loads(path.read_text(encoding="utf-8"))
        levelled = born | {"platform": level(born["platform"])}
        path.write_text(json.dumps(levelled, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


def level(platform: str) -> str:
    """ "Linux-6.1.0-13-amd64-x86_64-with-glibc2.36" -> "Linux-x86_64"."""
    system = platform.partition("-")[0]
    processor = re.search(r"x86_64|aarch64|arm64|AMD64", platform)
    return f"{system}-{processor[0]}" if processor else system


def refuse_paths(source: Path) -> None:
    here = {str(Path.home()), str(source.resolve().parent)}
    for path in texts(source):
        text = path.read_text(encoding="utf-8")
        for place in here:
            if place in text:
                raise SystemExit(f"{path}: names {place}, a folder of this machine; make the runs with relative paths")


def texts(source: Path) -> Iterator[Path]:
    """The text files that are copied."""
    for path in sorted(source.rglob("*")):
        parts = path.relative_to(source).parts
        if path.suffix in TEXT and not any(Path(part).match(pattern) for part in parts for pattern in LEFT_OUT):
            yield path


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m bench.record", description=(__doc__ or "").partition(":")[0])
    options.add_argument("source", type=Path, help="a folder of run directories")
    options.add_argument("target", type=Path, help="where they are to lie; what is there is replaced")
    return options


def main() -> None:
    options = parser().parse_args()
    print(f"{options.target}: {record(options.source, options.target) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
