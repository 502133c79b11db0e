"""A world that means harm: run directories in which every text that others write tries to act, to hide or to break something.

The runs are made by the stages themselves with a scripted model. Whatever acts sets `pwned` in a browser's window. Where a stage
refuses a text (a pool file does not hold bidi marks), the text is put in behind its back, as another program might have done.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from permix.config import FidelityConfig, PersonasConfig, StabilityConfig, TrainConfig
from permix.errors import IncompleteRunError
from permix.evals import open_ended, stability
from permix.evals.grid import PromptFormat
from permix.evals.strategies.base import EvalSetup
from permix.inference.scripted import ScriptedModel, ScriptedReply
from permix.judges.results import read_judge_inputs
from permix.personas.pool import PersonaPool
from permix.progress import progress_bar
from permix.storage.run_dir import RunDir
from permix.tasks import TASKS
from permix.training.rewards import Rollout
from permix.training.run_log import RolloutLogger
from permix.types import Failure, Persona, Question, Request, Verdict, seed_from
from tests.verdicts import write_judge

PWN = "window.pwned=1"
MEGABYTE = 1_000_000

TEXTS: Mapping[str, str] = {
    "script": f"<script>{PWN}</script>",
    "end of script": f"</script><script>{PWN}</script>",
    "handler": f'<img src=x onerror="{PWN}">',
    "svg": f"<svg/onload={PWN}><animate onbegin={PWN} attributeName=x dur=1s>",
    "comment": "<!-- <script> --!> <!--",
    "cdata": f"<![CDATA[ ]]><?php {PWN} ?>",
    "broken tags": "<b <i <div class=\"</table></section></main><style>*{display:none}</style><p a='",
    "frame": f'<iframe srcdoc="<script>parent.{PWN}</script>"></iframe><base href="https://evil.invalid/">',
    "quotes": f"\"' onmouseover={PWN} autofocus onfocus={PWN} x='",
    "script link": f"[press](javascript:{PWN}) <javascript:{PWN}> javascript:{PWN}",
    "form": "<form action=https://evil.invalid><button>ok</button><meta http-equiv=refresh content=0;url=https://evil.invalid>",
    "entities": f"&lt;script&gt;{PWN}&lt;/script&gt; &#60;img src=x onerror={PWN}&#62; &amp;amp;",
    "bidi": "safe \u202etxt.exe\u202c \u2066isolated\u2069 \u061c\u200f",
    "zero width": "in\u200bvi\u200csi\u200dble\u2060 \ufeffmark\u00ad",
    "terminal": "\x1b[31mred\x1b[2J\x1b]0;title\x07 \x1b]8;;https://evil.invalid\x1b\\link\x1b]8;;\x1b\\ \x9b31m \x08\x7f",
    "nul": "before\x00after\x01\x0b\x0c",
    "line ends": "one\u2028two\u2029three\x85four\r five",
    "picture": "![spy](https://evil.invalid/pixel.png) <https://evil.invalid> www.evil.invalid",
    "table": "a | b || c\n|---|---|\n| <script> | `code` |",
    "heading": "# Head\n\n- list\n1. one\n> quote\n***\n```\nfence\n~~~",
    "html in markdown": f"<details open ontoggle={PWN}><summary>x</summary>\n\n<script>{PWN}</script>\n</details>",
    "template": "{{ 7*7 }} {% raw %} ${7*7} #{7*7} <%= 7*7 %> {# x #} {{constructor.constructor('" + PWN + "')()}}",
    "mathematics": r"$\href{javascript:" + PWN + r"}{x}$ \(\unsafe\) $$\frac{",
    "prototype": '__proto__ constructor {"__proto__": {"polluted": 1}} toString',
    "formula": "=cmd|' /C calc'!A0",
    "plus": "+1+cmd",
    "minus": "-2+3",
    "at": "@SUM(1+9)",
    "tab first": "\t=1+1",
    "arabic": "مرحبا بالعالم",
    "hebrew": "שלום 123 עולם",
    "emoji": "👩‍👩‍👧‍👦 🏴‍☠️ 🇩🇪 e\u0301\u0327",
    "stacked": "Z\u0351\u036b\u0343\u036a\u0302\u036b" * 20,
    "nothing": " ",
}
"""By what is wrong with it. None of them is of many lines only, or long: that is what `MEGABYTE` is for."""

LABELS = (
    f"</script><script>{PWN}</script>\u202e{{{{7*7}}}}\ud83d",
    "__proto__",
    "=a/b",
    "=a b",
)
"""Models' labels. The first ends in half a character, which JSON can hold and UTF-8 cannot; the last two are one and the same
once cleaned for a file's name, and both are formulas to a spreadsheet."""

IDS = (
    "__proto__", "constructor", "a/b", "a b", "A/B", "../../up", f"<img src=x onerror={PWN}>", "=1+1", "-1", "+1", "@x",
    f"</script><script>{PWN}</script>",
)  # fmt: skip
"""Personas' ids, as a pool file may hold them; three of them fall together once cleaned."""
TAGS = ("<script>", "__proto__", "=tag", f'" onclick="{PWN}')

GOLDS = ("<b>7</b>", "=1+1", "{{7*7}}", "</script>", "__proto__", "\u202e7")


class Reported(NamedTuple):
    """The folder of a report on the runs, and what the terminal was told."""

    out: Path
    terminal: str


def personas() -> list[Persona]:
    """Each with a text of its own and two tags; the texts are those that act in a page or a document."""
    texts = [one for one in TEXTS.values() if one.strip() and one.isprintable()]
    return [
        Persona(id=name, text=f"{text} {place}", tags=(TAGS[place % 4], TAGS[(place + 1) % 4]), split="heldout")
        for place, (name, text) in enumerate(zip(IDS, texts, strict=False))
    ]


def write_pool(path: Path, people: Sequence[Persona]) -> Path:
    """A file that `load_pool` takes."""
    rows = [person.model_dump(mode="json", exclude={"weight"}) for person in people]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def questions() -> list[Question]:
    """Two dozen: every text of the list that is not printed plainly, and some that act."""
    texts = [*TEXTS.items()][-24:]
    return [
        Question(id=f"{name} <q>", task="own-exact", text=f"{text}\n{name}?", gold=GOLDS[place % len(GOLDS)])
        for place, (name, text) in enumerate(texts)
    ]


def reply(request: Request, model: str) -> str:
    """Some text of the list, and on its last line the answer: the right one now and then."""
    said = [*TEXTS.values()]
    chosen = seed_from(model, *(message["content"] for message in request.messages))
    answer = GOLDS[chosen % len(GOLDS)] if chosen % 2 else said[chosen % len(said)]
    return f"{said[chosen // 7 % len(said)]}\n{answer}"


def hostile_runs(folder: Path) -> list[Path]:
    """Four models with accuracy, two of them with characters that a judge scored, one that was trained; some cells are owed."""
    people = personas()
    pool = write_pool(folder / "pool.jsonl", people)
    runs = [_stability(folder / f"{n}-stability", label, pool, people) for n, label in enumerate(LABELS)]
    first = _fidelity(folder / "0-fidelity", LABELS[0], pool, people, None)
    then = _fidelity(folder / "1-fidelity", LABELS[1], pool, people, first)
    return [*runs, first, then, _training(folder / "1-train", LABELS[1], pool)]


def megabyte_run(folder: Path) -> Path:
    """Two personas and two questions; all texts, and all answers, are lines of a megabyte."""
    line = "<b>" + "W" * MEGABYTE
    people = [Persona(id=name, text=name + line) for name in ("one", "two")]
    asked = [Question(id=name, task="own-exact", text=name + line, gold="7") for name in ("first", "second")]
    config = StabilityConfig(out=folder, label="long", resamples=100)
    _evaluate(config, ScriptedModel(lambda request: line + "\n7"), people, asked)
    return folder


def _stability(out: Path, label: str, pool: Path, people: Sequence[Persona]) -> Path:
    def answer(request: Request) -> ScriptedReply:
        if request.seed % 41 == 0:
            return Failure(type="<script>Error", message=TEXTS["terminal"])
        return reply(request, out.name)

    config = StabilityConfig(out=out, resamples=100, personas=PersonasConfig(pool=str(pool)))
    with suppress(IncompleteRunError):
        _evaluate(config, ScriptedModel(answer, name=out.name), people, questions())
    return _relabelled(out, label)


def _evaluate(config: StabilityConfig, model: ScriptedModel, people: Sequence[Persona], asked: Sequence[Question]) -> None:
    task = TASKS["own-exact"]
    wording = PromptFormat(task.prompt, "you_are", empty_system_prompt=False)
    setup = EvalSetup(tuple(asked), PersonaPool(personas=tuple(people)), wording, config.samples, config.seed)
    stability.evaluate_setup(model, config, task, setup)


def _fidelity(out: Path, label: str, pool: Path, people: Sequence[Persona], reference: Path | None) -> Path:
    config = FidelityConfig(
        out=out, resamples=100, folds=3, reference=reference, personas=PersonasConfig(pool=str(pool), split="heldout"),
    )  # fmt: skip
    voices = PersonaPool(personas=tuple(people[:4]))
    asked = tuple(one.model_copy(update={"gold": ""}) for one in questions()[:12])
    open_ended.evaluate_open_ended(ScriptedModel(lambda request: reply(request, out.name), name=out.name), config, voices, asked)
    items = read_judge_inputs(out)
    write_judge(out, "judge", items, lambda item: 1 + seed_from(*map(str, item.key)) % 5, label=f"<img src=x onerror={PWN}>")
    return _relabelled(out, label)


def _training(out: Path, label: str, pool: Path) -> Path:
    config = TrainConfig(out=out, method="permix", personas=PersonasConfig(pool=str(pool), split="train"))
    with RunDir.open(out, config, {"model": "scripted"}) as run, run.track_usage(), progress_bar("train", 3, "steps") as shown:
        log = RolloutLogger(out, 0, 1, shown)
        for step in (1, 2, 3):
            log.log_rollouts(step, list(_rollouts(step)))
            log.log_metrics(
                step,
                {"reward": step / 4, "completion_tokens": 20.0, "frac_nonzero_advantage_groups": 0.5, "kl": None, "tokens": 100},
            )
    return _relabelled(out, label)


def _rollouts(step: int) -> Iterator[Rollout]:
    for name, (text, other) in zip(IDS, pairwise(TEXTS.values()), strict=False):
        verdict = Verdict(correct=False, extracted=other)
        yield Rollout(step, 0, name, "<q>", text, other, 5, GOLDS[0], verdict)


def _relabelled(run: Path, label: str) -> Path:
    """With a label that no command line would pass on, and a command that would act."""
    _edit(run / "config.json", label=label)
    _edit(run / "provenance.json", command=["permix", TEXTS["script"], TEXTS["terminal"]], revision=TEXTS["bidi"])
    return run


def _edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
