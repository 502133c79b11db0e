"""The command that installs an extra, from wherever permix was installed."""

import json
import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from permix import errors
from permix.errors import EXTRA_OF_PACKAGE, ConfigError, install_command, require_packages

CLONE = Path(errors.__file__).parents[2]


def test_the_extras_are_those_of_pyproject() -> None:
    extras = tomllib.loads((CLONE / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    listed = {
        re.split(r"[<>=\[]", one)[0].replace("-", "_"): name
        for name in ("local", "train", "embed", "inspect", "vllm")
        for one in extras[name]
    }
    listed.pop("permix")  # train includes local
    assert listed.items() <= EXTRA_OF_PACKAGE.items()
    assert set(EXTRA_OF_PACKAGE) - set(listed) == {"huggingface_hub", "safetensors", "tokenizers"}


def test_in_a_clone_the_clone_is_installed() -> None:
    assert install_command("local") == f"pip install -e '{CLONE}[local]'"


class FakeDistribution:
    def __init__(self, origin: object) -> None:
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.origin is None else json.dumps(self.origin)


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ({"url": "file://FOLDER", "dir_info": {}}, "pip install 'FOLDER[train]'"),
        ({"url": "file://FOLDER", "dir_info": {"editable": True}}, "pip install -e 'FOLDER[train]'"),
        ({"url": "file:///gone/permix", "dir_info": {}}, "pip install 'torch>=2' 'trl>=1,<2'"),
        (
            {"url": "https://h/p.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "pip install 'permix[train] @ git+https://h/p.git@abc'",
        ),
        ({"url": "file:///w/permix-1.whl", "archive_info": {}}, "pip install 'permix[train] @ file:///w/permix-1.whl'"),
        ({}, "pip install 'torch>=2' 'trl>=1,<2'"),
        ([], "pip install 'torch>=2' 'trl>=1,<2'"),
        (None, "pip install 'torch>=2' 'trl>=1,<2'"),
    ],
)
def test_elsewhere_it_comes_from_where_pip_took_it(
    origin: Any, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a clone"
    folder.mkdir()
    (folder / "pyproject.toml").write_text("")
    if isinstance(origin, dict):
        origin = {
            key: value.replace("FOLDER", str(folder).replace(" ", "%20")) if key == "url" else value
            for key, value in origin.items()
        }
    requirements = ["numpy>=2", 'torch>=2; extra == "local"', "permix[local]; extra == 'train'", 'trl>=1,<2; extra == "train"']
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "site-packages" / "permix" / "errors.py"))
    monkeypatch.setattr(metadata, "distribution", lambda name: FakeDistribution(origin))
    monkeypatch.setattr(metadata, "requires", lambda name: requirements)
    assert install_command("train") == command.replace("FOLDER", str(folder))


def test_without_metadata_the_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(errors, "__file__", str(tmp_path / "permix" / "errors.py"))
    monkeypatch.setattr(metadata, "distribution", unknown)
    monkeypatch.setattr(metadata, "requires", unknown)
    assert install_command("inspect") == "pip install inspect_ai"


def test_packages_that_are_there_pass_and_others_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_packages(("json", "numpy"), "x")
    monkeypatch.setattr(errors, "EXTRA_OF_PACKAGE", {"trl_": "train"})
    with pytest.raises(ConfigError, match=r"^x needs trl_, which is not installed: .*\[train\]'; or y$"):
        require_packages(("numpy", "trl_"), "x", "y")


def test_no_message_and_no_page_installs_from_an_index_that_has_no_permix() -> None:
    pages = [*(CLONE / "src").rglob("*.py"), *(CLONE / "docs").glob("*.md"), *(CLONE / "configs").rglob("*"), CLONE / "README.md"]
    found = [page.name for page in pages if page.is_file() and re.search(r"pip install ['\"`]?permix", page.read_text())]
    assert found == []
