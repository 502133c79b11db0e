"""Every chart drawn in a real browser from a payload written by hand: marks counted, words read, hostile names shown as text."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from permix.rendering.theme import styles_for
from permix.report.html.page import content_security_policy, embed_json, page_scripts
from permix.report.html.values import model_looks

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

    from tests.browser import OpenPage

pytest.importorskip("playwright", reason="no Playwright: it drives the browser")

PHONE = (390, 844)
EVIL = "<img src=x onerror=alert(1)>"
LABELS = ("base", "rlvr 1", "rlvr 2", EVIL)


def about(value: float | None, n: int = 20) -> dict[str, Any]:
    """An estimate, a tenth to both sides."""
    if value is None:
        return {"value": None, "low": None, "high": None, "n": n}
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": n}


def point(name: str, labels: tuple[str, ...], y: float, x: float, judged: float | None = None) -> dict[str, Any]:
    seeds = [{"label": label, "y": y - 0.02, "x": {"identifiability": x + 0.05 * at}} for at, label in enumerate(labels)]
    return {
        "name": name, "labels": labels, "y": about(y), "x": {"identifiability": about(x), "judge": about(judged)},
        "valid": {"identifiability": True, "judge": False}, "seeds": seeds if len(labels) > 1 else [],
    }  # fmt: skip


TRADEOFF = {
    "y_name": "PSS", "arrows": [["base", "RLVR"], ["RLVR", EVIL]],
    "measures": [
        {"key": "identifiability", "name": "identifiability", "chance": 0.25, "low": 0, "high": 1, "note": "n = 20 questions"},
        {"key": "judge", "name": "score by a judge", "chance": None, "low": 1, "high": 5, "note": "n = 9 personas"},
    ],
    "points": [
        point("base", ("base",), 0.4, 0.6, 3.0), point("RLVR", ("rlvr 1", "rlvr 2"), 0.8, 0.4),
        point(EVIL, (EVIL,), 0.7, 0.5, 4.0),
    ],
}  # fmt: skip
PERSONAS = {
    "note": "n = 20 questions",
    "ids": [{"id": id, "text": id.upper(), "tags": tags} for id, tags in (("a", ["sea"]), (EVIL, ["sea", "old"]), ("c", []))],
    "models": {
        "base": {
            "no_persona": about(0.5), "of": {"a": about(0.2), EVIL: about(0.8), "c": about(None)},
            "difference": {"a": about(-0.3), EVIL: about(0.3), "c": about(None)},
        },
        "rlvr 1": {"no_persona": about(None), "of": {"a": about(0.6), "c": about(0.7)}, "difference": {}},
    },
}  # fmt: skip
LOTTERY = {
    "note": "n",
    "models": {label: {"no_persona": about(0.4), "best": [about(0.5), about(0.6), about(None)]} for label in LABELS[:2]},
}
TRAINING = {
    "note": "n = 3 steps",
    "panels": [{"key": "reward", "name": "mean reward"}, {"key": "loss", "name": "loss"}],
    "models": {
        "rlvr 1": [{"step": step, "reward": reward} for step, reward in ((1, 0.1), (2, None), (3, 0.3))],
        EVIL: [{"step": step, "loss": 1 / step} for step in (1, 2, 3)],
    },
}
DEV_EVALS = {
    "note": "n",
    "panels": [{"key": "mean", "name": "mean accuracy"}, {"key": "identifiability", "name": "identifiability"}],
    "models": {
        "rlvr 1": {
            "selected_step": 10,
            "points": [
                {
                    "step": step,
                    "no_persona": about(0.5),
                    "chance": 0.25,
                    "mean": about(0.6),
                    "identifiability": about(0.4) if step else None,
                }
                for step in (0, 10)
            ],
        }
    },
}
LEARNT = {
    "note": "n",
    "models": {"base": {"chance": 0.25, "points": [{"questions": count, "accuracy": about(0.5)} for count in (4, 8, 16)]}},
}
JUDGED = [
    {
        "title": "interviews", "score": "score", "note": f"note {at}",
        "judges": [
            {
                "judge": EVIL, "tasks": ["score", "one", "two"],
                "models": {
                    "base": {"valid": True, "scores": [about(3.0), about(2.0), about(4.0)]},
                    "rlvr 1": {"valid": False, "scores": [about(3.0), about(None), None]},
                },
            }
        ],
    }
    for at in (1, 2)
]  # fmt: skip
TRIAL = {
    "note": "n",
    "kinds": [
        {
            "title": "interviews",
            "panels": [
                {
                    "label": "base", "judge": EVIL, "valid": None, "auc": "0.700 [0.60, 0.80]",
                    "bars": [{"name": "own persona", "counts": [0, 0, 1, 1, 2]}, {"name": "padded", "counts": [0, 0, 0, 0, 3]}],
                }
            ],
        }
    ],
}  # fmt: skip
CONFUSION = {
    "models": {
        "base": {"ids": ["a", EVIL], "note": "n = 10 answers", "cells": [[0, 0, 5], [1, 0, 2], [1, 1, 3]]},
        "rlvr 1": {"ids": ["a", EVIL], "note": "n = 10 answers", "cells": [[0, 0, 5], [1, 1, 5]]},
    }
}
DRIFT = {
    "note": "n",
    "panels": [
        {"key": "words", "name": "words", "low": 0, "high": None},
        {"key": "judge j", "name": "judge j", "low": 1, "high": 5},
    ],
    "models": {
        "base": {
            "chance": 0.5,
            "courses": {
                "words": {"valid": True, "by_turn": [about(9.0), about(None), about(7.0)]},
                "judge j": {"valid": None, "by_turn": [about(3.0), about(4.0), about(3.5)]},
            },
        }
    },
}
CHARTS: dict[str, Any] = {
    "tradeoff": TRADEOFF, "personas": PERSONAS, "lottery": LOTTERY, "training": TRAINING, "dev_evals": DEV_EVALS,
    "learnt": LEARNT, "judged": JUDGED, "trial": TRIAL, "confusion": CONFUSION, "drift": DRIFT,
}  # fmt: skip
MARKS = {
    "tradeoff": 3 + 2,  # methods and seeds
    "personas": 2 + 2 + 1,  # the two with a value of each model, and no persona of the first one
    "lottery": 2 * 2,
    "training": 0,
    "dev_evals": 2 + 1 + 2,  # two steps of one measure, one of the other, and a ring in each
    "learnt": 3,
    "judged": 2 * (3 + 1),
    "trial": 0,
    "confusion": 0,
    "drift": 2 + 3,
}
"""Symbols in each chart."""


def write(path: Path, charts: Mapping[str, Any]) -> str:
    script = page_scripts()
    data = {"models": model_looks(styles_for(LABELS), {}), "charts": charts, "grids": {}, "runs": []}
    divs = "".join(f'<div id="{name}" data-chart="{name}"></div>' for name in charts)
    (path / "index.html").write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{content_security_policy(script)}">'
        f'<meta name="viewport" content="width=device-width"><title>charts</title><main>{divs}</main>'
        f'<script type="application/json" id="data">{embed_json(data)}</script><script>{script}</script></html>'
    )
    return (path / "index.html").as_uri()


def opened(page: "Page", path: Path, charts: Mapping[str, Any] = CHARTS) -> "Page":
    """With every chart drawn, also those that are far down; the page's own drawing, which may come later, has ended."""
    from playwright.sync_api import expect

    page.goto(write(path, charts))
    expect(page.locator("[data-chart]:not([data-drawn])")).to_have_count(0)
    page.evaluate("permix.changed(); for (const [name, data] of Object.entries(permix.data.charts)) draw(name, data)\n"
                  "function draw(name, data) { permix.charts[name](document.getElementById(name), data); }")  # fmt: skip
    return page


def symbols(page: "Page", name: str) -> "Locator":
    return page.locator(f'#{name} .chart-body svg g[data-mark="dot"] > *')


@pytest.mark.parametrize("settings", [{}, {"color_scheme": "dark"}, {"size": PHONE}], ids=["wide", "dark", "phone"])
def test_every_chart_is_drawn_and_drawn_again_once(open_page: "OpenPage", tmp_path: Path, settings: dict[str, Any]) -> None:
    page = opened(open_page(**settings), tmp_path)
    for _ in range(2):
        assert {name: symbols(page, name).count() for name in CHARTS} == MARKS
        assert page.locator("#trial .chart-body rect").count() == 3 + 1
        assert page.locator("#confusion .chart-body svg g[data-mark=cell] rect").count() == 3 + 2
        page.evaluate("permix.changed()")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than the screen"


def test_every_picture_says_in_words_what_it_shows(page: "Page", tmp_path: Path) -> None:
    pictures = opened(page, tmp_path).locator(".chart-body > svg, .chart-beside svg")
    told = [pictures.nth(at).get_attribute("aria-label") or "" for at in range(pictures.count())]
    assert {pictures.nth(at).get_attribute("role") for at in range(pictures.count())} == {"img"}
    assert "base: PSS 0.40 [0.30, 0.50], fidelity 0.60 [0.50, 0.70]" in told[0]
    assert f"{EVIL}: PSS 0.70 [" in told[0]
    assert "0.200 to 0.800, 0.50 [0.40, 0.60] without persona" in told[1]
    assert any("own persona: 0 scored 1, 0 scored 2, 1 scored 3, 1 scored 4, 2 scored 5" in one for one in told)
    assert any("the classifier names the right persona for 8 of 10 answers of 2 personas" in one for one in told)
    assert len(told) == 1 + 1 + 1 + 2 + 2 + 1 + 2 + 1 + 2 + 2


def test_hostile_names_are_text(page: "Page", tmp_path: Path) -> None:
    opened(page, tmp_path)
    assert page.locator("img").count() == 0
    assert page.locator("#tradeoff .chart-names text").all_text_contents() == ["base", "RLVR", EVIL]


def test_events_without_a_place_raise_no_error(page: "Page", tmp_path: Path) -> None:
    """A script or an extension may send them; `open_page` fails the test for an uncaught error."""
    sent = opened(page, tmp_path).evaluate("""() => {
        const types = ["pointerenter", "pointermove", "pointerdown", "pointerleave", "mousedown", "click", "touchstart"];
        const parts = [...document.querySelectorAll("main *")];
        for (const part of parts) for (const type of types) part.dispatchEvent(new Event(type, { bubbles: true }));
        return parts.length * types.length;
    }""")
    assert sent > 1000
    page.locator("#tradeoff .chart-body svg").hover()
    page.mouse.down()
    page.mouse.up()


def test_a_measure_is_chosen_and_an_untrusted_judge_is_hollow(page: "Page", tmp_path: Path) -> None:
    opened(page, tmp_path)
    select = page.get_by_label("Fidelity by")
    select.select_option("judge")
    select.focus()
    methods = page.locator('#tradeoff g[data-mark="dot"]:has(*)')
    assert methods.count() == 2, "RLVR has no score"
    assert {methods.nth(at).get_attribute("fill") for at in range(2)} == {"var(--plot-background)"}
    assert page.locator("#tradeoff .chart-note").inner_text() == "n = 9 personas"
    assert select.evaluate("(one) => { permix.changed(); return document.activeElement === one; }"), "drawing keeps the focus"


def rows(page: "Page") -> list[str]:
    """The personas of the figure; its first row is no persona."""
    first, *personas = page.locator('#personas g[data-mark="y-axis tick label"] text').all_text_contents()
    assert first == "no persona"
    return personas


def test_personas_are_sorted_and_filtered(page: "Page", tmp_path: Path) -> None:
    opened(page, tmp_path)
    assert rows(page) == [EVIL, "a", "c"], "by base; without a score last"
    page.get_by_label("of model").select_option("=rlvr 1")
    assert rows(page) == ["c", "a", EVIL]
    page.get_by_label("Sort by").select_option("name")
    assert rows(page) == [EVIL, "a", "c"]
    page.get_by_label("Show").select_option("=sea")
    assert rows(page) == [EVIL, "a"]
    assert page.get_by_label("Show").locator("option").all_text_contents() == ["all 3 personas", "old (1)", "sea (2)"]


def test_many_personas_are_drawn_when_asked_for(page: "Page", tmp_path: Path) -> None:
    ids = [f"p{at:03}" for at in range(100)]
    model = {"no_persona": about(0.5), "of": {id: about(0.5) for id in ids}, "difference": {}}
    charts = {"personas": {"note": "n", "ids": [{"id": id, "text": "", "tags": []} for id in ids], "models": {"base": model}}}
    opened(page, tmp_path, charts)
    assert len(rows(page)) == 60
    page.get_by_role("button", name="Show all 100 personas").click()
    assert len(rows(page)) == 100
    page.get_by_role("button", name="Show the first 60").click()
    assert len(rows(page)) == 60


def test_only_the_models_that_are_selected_are_drawn(page: "Page", tmp_path: Path) -> None:
    opened(page, tmp_path)
    page.evaluate("permix.shown.delete('base'); permix.changed()")
    assert symbols(page, "tradeoff").count() == 2 + 2
    assert symbols(page, "lottery").count() == 2
    page.evaluate("permix.shown.clear(); permix.changed()")
    assert {symbols(page, name).count() for name in CHARTS} == {0}


def test_a_tip_says_the_number_its_interval_and_n(page: "Page", tmp_path: Path) -> None:
    opened(page, tmp_path)
    symbols(page, "learnt").first.hover()
    tip = page.locator('#learnt g[aria-label="tip"]')
    assert "0.50 [0.40, 0.60], n = 20" in " ".join(tip.locator("tspan").all_text_contents()).replace("\u200b", "")


def test_a_large_confusion_is_painted(page: "Page", tmp_path: Path) -> None:
    ids = [f"p{at}" for at in range(60)]
    cells = [[row, column, 1] for row in range(60) for column in range(60)]
    charts = {"confusion": {"models": {"base": {"ids": ids, "note": "n", "cells": cells}}}}
    opened(page, tmp_path, charts)
    assert page.locator("#confusion svg image").count() == 1
    assert page.locator("#confusion g[data-mark=cell]").count() == 0


def test_panels_of_a_training_share_their_steps(page: "Page", tmp_path: Path) -> None:
    """Also a panel that only the shorter training has."""
    models = {
        "rlvr 1": [{"step": step, "reward": 0.1, "loss": 1.0} for step in (1, 2, 3)],
        "base": [{"step": step, "reward": 0.1} for step in range(1, 31)],
    }
    opened(page, tmp_path, {"training": TRAINING | {"models": models}})
    panels = page.locator("#training svg[aria-label^=Training]")
    assert panels.count() == 2
    for place in range(2):
        assert "30" in panels.nth(place).locator("text").all_text_contents()


def test_a_moving_mean_leaves_out_what_is_missing(page: "Page", tmp_path: Path) -> None:
    opened(page, tmp_path, {"training": TRAINING})
    found = page.evaluate("permix.drawing.movingMean([1, NaN, 5, 3], 3)")
    assert json.dumps(found) == "[1, 3, 4, 4]"
    assert page.evaluate("Number.isNaN(permix.drawing.movingMean([NaN], 3)[0])")
