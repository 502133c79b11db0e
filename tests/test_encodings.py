"""Files that Windows editors write, with a byte-order mark or in UTF-16, are read wherever a user writes one by hand."""

import json
from pathlib import Path

import pytest

from permix.config import ModelConfig, StabilityConfig, load_config, read_config_values
from permix.errors import ConfigError
from permix.inference.cost import find_price

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_configurations_and_prices(encoding: str, tmp_path: Path) -> None:
    values = {"stage": "stability", "label": "é"}
    (tmp_path / "a.toml").write_bytes('stage = "stability"\r\nlabel = "é"\r\n'.encode(encoding))
    (tmp_path / "a.json").write_bytes(json.dumps(values, ensure_ascii=False, indent=1).replace("\n", "\r\n").encode(encoding))
    for name in ("a.toml", "a.json"):
        assert read_config_values(tmp_path / name) == values
        assert load_config(StabilityConfig, tmp_path / name).label == "é"
    (tmp_path / "prices.toml").write_bytes(b"")
    prices = '["m"]\r\ninput = 1.0\r\noutput = 2.0\r\n'
    (tmp_path / "prices.toml").write_bytes(prices.encode(encoding))
    model = ModelConfig(name="m", backend="openai", base_url="http://127.0.0.1:9/v1", prices=tmp_path / "prices.toml")
    found = find_price(model, "model.prices")
    assert found is not None
    assert found.cost(1_000_000, 1_000_000) == 3.0


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b'label = "\xe9"\n')
    with pytest.raises(ConfigError, match=r"a\.toml: not a TOML file: "):
        read_config_values(tmp_path / "a.toml")
