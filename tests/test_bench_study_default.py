"""The choice of a study's default: the rule by hand, and a run that is missing."""

from pathlib import Path

import pytest

from bench.study_default import Arm, choose, dev_methods


def test_the_rule_by_hand() -> None:
    rlvr, permix = Arm("rlvr", 0.50, 0.24, is_below_base=False), Arm("permix", 0.56, 0.20, is_below_base=False)
    assert choose([rlvr, permix]) is permix  # the highest worst-persona accuracy
    assert choose([rlvr, permix._replace(is_below_base=True)]) is rlvr  # its characters are shown to be flatter
    close = Arm("replay", 0.551, 0.26, is_below_base=False)
    assert choose([rlvr, permix, close]) is close  # less than .01 apart: the higher identifiability
    assert choose([rlvr, permix, close._replace(worst=0.549)]) is permix
    # .01 counts from the highest: an arm that is close to a close one alone is not chosen.
    chain = [permix, close._replace(identifiability=0.21), Arm("third", 0.545, 0.9, is_below_base=False)]
    assert choose(chain).name == "replay"
    with pytest.raises(SystemExit, match="every arm"):
        choose([rlvr._replace(is_below_base=True)])


def test_a_run_that_is_not_measured_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="base/dev-accuracy: this run has no measures yet"):
        dev_methods(tmp_path, ["rlvr"], [1])
