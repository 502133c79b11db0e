"""A quickstart of other settings is refused in the folder of an earlier one, before a cell is asked."""

from pathlib import Path
from typing import Any

import pytest

from permix.config import QuickstartConfig
from permix.errors import ConfigError
from permix.pipelines import quickstart
from permix.pipelines.quickstart import preflight_quickstart, quickstart_parts, run_quickstart
from permix.progress import command_output
from permix.storage.files import write_json


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a fast quickstart, whose parts were started."""
    for part in quickstart_parts(QuickstartConfig(out=tmp_path / "out", fast=True)):
        write_json(part.config.out / "config.json", part.config)
    monkeypatch.setattr(quickstart, "_run_here", lambda *_: pytest.fail("a part was run"))
    monkeypatch.setattr(quickstart, "_run_in_processes", lambda *_: pytest.fail("a part was run"))
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"fast": False}, "task.n = 16, not 100"),
        ({"seed": 7}, "task.seed = 0, not 7"),
        ({"model": "other/model"}, "model.name = 'bundled', not 'other/model'"),
    ],
)
def test_other_settings_are_refused(changed: dict[str, Any], words: str, folder: Path) -> None:
    settings = QuickstartConfig.model_validate({"out": folder, "fast": True} | changed)
    for start in (run_quickstart, preflight_quickstart):
        with pytest.raises(ConfigError) as caught:
            start(settings)
        assert "of a quickstart of other settings" in str(caught.value)
        assert words in str(caught.value)


def test_the_same_settings_go_on_also_where_the_folder_was_moved(folder: Path) -> None:
    settings = QuickstartConfig(out=folder, fast=True, threads=3)
    quickstart.check_same_quickstart(settings)
    folder.rename(folder.with_name("moved"))
    quickstart.check_same_quickstart(settings.model_copy(update={"out": folder.with_name("moved")}))


def test_a_dry_run_of_an_unknown_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="part = 'nonsense': must be one of base-"):
        preflight_quickstart(QuickstartConfig(out=tmp_path, part=("nonsense",)))


def test_the_json_of_a_dry_run_has_the_time_that_the_text_shows(tmp_path: Path) -> None:
    with command_output(as_json=True, is_quiet=True) as shown:
        facts = preflight_quickstart(QuickstartConfig(out=tmp_path / "out", fast=True))
    assert facts["time"].startswith("about 2 min")
    assert shown.result["estimates"].keys() == {"model", "quickstart"}
    assert shown.result["estimates"]["quickstart"] == {"seconds": 120.0}
