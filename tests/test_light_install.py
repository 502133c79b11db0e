"""The install without extras: an endpoint is measured, reported and compared without matplotlib, pyarrow and torch."""

import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from tests.sample_runs import asked_what, solve, stability_values, toml
from tests.servers import openai_server
from tests.without_packages import run_without

OPTIONAL = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "pandas",
    "pyarrow",
    "matplotlib",
    "PIL",
    "inspect_ai",
)


def permix(*argv: str) -> subprocess.CompletedProcess[str]:
    return run_without(OPTIONAL, *argv)


@pytest.mark.slow
def test_an_endpoint_is_measured_reported_and_compared(tmp_path: Path) -> None:
    with openai_server(lambda body, *_: str(solve(asked_what(body)))) as server:
        for name in ("one", "two"):
            file = tmp_path / f"{name}.toml"
            file.write_text(toml(stability_values(tmp_path, server.base_url, out=str(tmp_path / name), label=name)))
            ended = permix("stability", str(file))
            assert ended.returncode == 0, ended.stderr[-2000:]
            assert "matplotlib is not installed; index.html draws its own" in ended.stderr
    ended = permix("compare", str(tmp_path / "one"), str(tmp_path / "two"))
    assert ended.returncode == 0, ended.stderr[-2000:]
    ended = permix("report", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "report"))
    assert ended.returncode == 0, ended.stderr[-2000:]
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "one" in page
    assert not re.findall(r'(?:src|href)="[^"]+\\.(?:png|svg)"', page)  # no link to a figure that is not there
    assert list((tmp_path / "report").rglob("*.png")) == []
    charts = set(re.findall(r'data-chart="([^"]+)"', page))
    assert {"grid", "lottery", "personas"} <= charts  # the page draws what the note promises
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "![" not in text
    assert "## Heat map" not in text
    assert "## Accuracy by persona" in text  # it has a table too


def test_the_base_install_is_small() -> None:
    """At most 350 MB with all that the base dependencies bring, as pip records the sizes of their files."""
    sizes: dict[str, int] = {}

    def add(requirement: str) -> None:
        name = re.split(r"[\s;<>=!\[\](~]", requirement)[0].lower().replace("_", "-")
        if "extra ==" in requirement or name in sizes:
            return
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            return  # for another system
        sizes[name] = sum(
            path.stat().st_size for file in found.files or () if (path := Path(str(found.locate_file(file)))).is_file()
        )
        for one in found.requires or ():
            add(one)

    for one in metadata.requires("permix") or ():
        add(one)
    assert {"aiohttp", "scipy", "tyro"} <= sizes.keys()
    assert not {"pyarrow", "matplotlib", "torch"} & sizes.keys()
    assert sum(sizes.values()) < 350e6
