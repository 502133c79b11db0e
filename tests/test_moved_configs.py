"""The configuration file of a folder that was moved or copied does not lead back to the old folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import permix
from permix.cli.commands import parse_config
from permix.config import JudgeConfig, QuickstartConfig, StabilityConfig, StudyConfig, TrainConfig, read_config_values
from permix.config.base import ConfigSection
from permix.errors import ConfigError
from permix.pipelines.preflight import read_stage_config

FILES: dict[str, tuple[type[ConfigSection], str, str, dict[str, Any]]] = {
    "stability": (StabilityConfig, "config.json", "provenance.json", {}),
    "train": (TrainConfig, "config.json", "provenance.json", {}),
    "study": (StudyConfig, "study.json", "base/unit.json", {}),
    "quickstart": (QuickstartConfig, "quickstart.json", "base-stability/provenance.json", {}),
    "judge": (JudgeConfig, "judges/m/config.json", "judges/m/provenance.json", {"judge": {"name": "m"}}),
}


@pytest.fixture(params=FILES)
def stage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder runs/one with what the command writes there, by a relative path."""
    _, name, other, values = FILES[request.param]
    field = "run" if request.param == "judge" else "out"
    for path, text in ((name, json.dumps(values | {"stage": request.param, field: "runs/one"})), (other, "{}")):
        (tmp_path / "runs" / "one" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / "one" / path).write_text(text)
    monkeypatch.chdir(tmp_path)
    return str(request.param)


def parse(stage: str, folder: str, *flags: str) -> ConfigSection:
    return parse_config(stage, FILES[stage][0], [f"{folder}/{FILES[stage][1]}", *flags])


def test_a_file_goes_on_in_its_own_folder(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parse(stage, "runs/one")
    parse(stage, str(tmp_path / "runs" / "one"))
    read_stage_config(Path("runs/one") / FILES[stage][1])


@pytest.mark.parametrize("how", ["moved", "copied", "from another folder"])
def test_a_file_that_names_another_folder_is_refused(
    how: str, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, field = "runs/two", "run" if stage == "judge" else "out"
    match how:
        case "moved":
            Path("runs/one").rename(folder)
        case "copied":
            shutil.copytree("runs/one", folder)
        case _:
            (tmp_path / "elsewhere").mkdir()
            monkeypatch.chdir(tmp_path / "elsewhere")
            folder = "../runs/one"
    file = Path(folder) / FILES[stage][1]
    refusals: list[Callable[[], object]] = [lambda: parse(stage, folder), lambda: read_stage_config(file)]
    for refuse in refusals:
        with pytest.raises(ConfigError, match=rf"names another folder than its own, {field} = runs/one: .*give --{field} "):
            refuse()
    if stage in ("train", "study"):
        with pytest.raises(ConfigError, match="names another folder than its own"):
            (permix.train if stage == "train" else permix.study)(file)
    for chosen in (folder, "runs/one", "runs/three"):
        assert getattr(parse(stage, folder, f"--{field}", chosen), field) == Path(chosen)


def test_a_file_of_the_users_own_may_have_any_name(tmp_path: Path) -> None:
    for name in ("config.json", "study.json", "quickstart.json"):
        (tmp_path / name).write_text("{}")
        assert read_config_values(tmp_path / name) == {}
    parse_config("stability", StabilityConfig, [str(tmp_path / "config.json")])
    parse_config("study", StudyConfig, [str(tmp_path / "study.json")])
    parse_config("quickstart", QuickstartConfig, [str(tmp_path / "quickstart.json")])
