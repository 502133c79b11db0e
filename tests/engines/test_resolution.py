"""permix can be installed beside the engines that it exports to, in one environment. uv resolves versions from the package
index's metadata and downloads no package. Without uv, or without the index, these tests are left out.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]

UV = shutil.which("uv", path=str(Path(sys.executable).parent))
"""uv of this environment: `make test-engines` installs it; `make test` does not ask the index."""

BESIDE = {
    "verl": ("verl==0.9.1", ""),
    "verl with permix's own training": ("verl==0.9.1", "train"),
    "verifiers": ("verifiers==0.4.0", "parquet"),
    "vllm": ("vllm>=0.15", "local"),
    "inspect": ("inspect-ai>=0.3.285", "local"),
    "lm-eval": ("lm-eval[hf]>=0.4.13", "train"),
}
"""What is installed beside permix: (requirement, permix's extra)."""

NO_INDEX = ("error sending request", "Failed to fetch", "dns error", "Connection refused", "timed out")

pytestmark = pytest.mark.skipif(UV is None, reason="uv is not installed")


def resolve(requirement: str, extra: str, tmp_path: Path) -> list[str]:
    """The versions that uv chooses, as `name==version`; skips the test where there is no package index."""
    wanted = tmp_path / "wanted.txt"
    wanted.write_text(f"permix{f'[{extra}]' if extra else ''} @ {PROJECT.as_uri()}\n{requirement}\n")
    done = subprocess.run(
        [
            str(UV),
            "pip",
            "compile",
            "--quiet",
            "--python-version",
            "3.11",
            "--no-annotate",
            "--no-header",
            "--system-certs",
            str(wanted),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    if done.returncode and any(one in done.stderr for one in NO_INDEX):
        pytest.skip(f"no package index: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")


@pytest.mark.parametrize(("requirement", "extra"), BESIDE.values(), ids=BESIDE)
def test_permix_resolves_beside_another_program(requirement: str, extra: str, tmp_path: Path) -> None:
    versions = resolve(requirement, extra, tmp_path)
    name = requirement.partition("==")[0].partition(">=")[0].partition("[")[0]
    assert any(line.startswith(f"{name}==") for line in versions)
    assert any(line.startswith("permix @ ") for line in versions)


def test_what_cannot_be_installed_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="No solution found"):
        resolve("pydantic==2.0", "", tmp_path)
