"""The two arms of `bench.grid`: permix's grid, and lm-evaluation-harness's `hf` backend run once per persona.

Ours is the whole path of `permix stability`, records and verdicts included; of the other, the chat template and `generate_until`
alone. Both have the same threads, the same allocator settings and weights of the same type; loading them, and a first small
question, are over when an arm is ready.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from permix.config import ModelConfig, StabilityConfig
from permix.evals.grid import run_cells
from permix.inference.hardware import set_threads
from permix.storage.run_dir import RunDir, cpu_seconds
from permix.tasks import TASKS
from permix.tasks.base import verify_completion
from permix.types import Cell, Sampling

MISSING = "lm-evaluation-harness is not installed: pip install '.[bench]'"


class Setup(NamedTuple):
    """What both arms are made from. `batch_size` is lm-evaluation-harness's; None is our arm, at its own default."""

    model: str
    dtype: str
    threads: int
    new_tokens: int
    batch_size: int | None


class Ask(NamedTuple):
    """An order to answer these cells."""

    cells: Sequence[Cell]


class Told(NamedTuple):
    """Of an order's cells, in their order; seconds of this process and its children, user and system."""

    cpu_seconds: float
    wall_seconds: float
    texts: list[str]
    prompts: list[list[int]]
    """Token ids that each cell was asked in."""


class Parting(NamedTuple):
    """What two completions say alike, after their prompt, and the tokens they then go on with."""

    read: list[int]
    one: int
    other: int


class Weigh(NamedTuple):
    """An order to tell how far apart float32 sees the two tokens' logits, for each of these."""

    partings: Sequence[Parting]


class Answering(Protocol):
    def answer(self, cells: Sequence[Cell]) -> list[str]: ...

    def prompt(self, cell: Cell) -> list[int]: ...


def run_arm(setup: Setup, line: Connection) -> None:
    """What the process does, from loading the model to the end of the orders."""
    sys.stdout = sys.stderr  # the figures alone go to stdout
    set_threads(setup.threads)
    arm: Answering = Ours(setup) if setup.batch_size is None else Theirs(setup)
    line.send(None)
    while (order := line.recv()) is not None:
        line.send(gaps(setup.model, order.partings) if isinstance(order, Weigh) else _timed(arm, order.cells))


def _timed(arm: Answering, cells: Sequence[Cell]) -> Told:
    cpu, wall = cpu_seconds(), time.perf_counter()
    texts = arm.answer(cells)
    spent = (cpu_seconds() - cpu, time.perf_counter() - wall)
    return Told(*spent, texts, [arm.prompt(cell) for cell in cells])


class Ours:
    """`permix.evals.grid.run_cells` with `HFModel`, into a run directory that is thrown away."""

    def __init__(self, setup: Setup) -> None:
        from permix.inference.hf import HFModel
        from permix.inference.shared_prefix import supports_shared_prefix

        self.model = HFModel(ModelConfig.model_validate({"name": setup.model, "dtype": setup.dtype}))
        self.sampling = Sampling(max_new_tokens=setup.new_tokens)
        supports_shared_prefix(self.model.network)  # tried once, when a model is first used

    def answer(self, cells: Sequence[Cell]) -> list[str]:
        with tempfile.TemporaryDirectory() as scratch:
            config = StabilityConfig(out=Path(scratch) / "run")
            with RunDir.open(config.out, config, {"sampling": self.sampling.model_dump()}) as run:
                run_cells(
                    self.model,
                    cells,
                    self.sampling,
                    run,
                    partial(verify_completion, TASKS["gsm8k"]),
                    "ours",
                )
                answered = run.cells()
            return [_text(answered[cell.key]) for cell in cells]

    def prompt(self, cell: Cell) -> list[int]:
        from permix.inference.chat_template import encode_chat

        return encode_chat(self.model.tokenizer, cell.messages)


def _text(cell: Cell) -> str:
    if cell.completion is None:
        raise SystemExit(f"cell {tuple(cell.key)}: no completion: {cell.failure}")
    return cell.completion.text


class Theirs:
    """`lm_eval`'s `HFLM.generate_until`, once for each run of cells of one persona; nothing but the model's own end stops it."""

    def __init__(self, setup: Setup) -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        try:
            from lm_eval.models.huggingface import HFLM
        except ImportError as error:
            raise SystemExit(MISSING) from error
        self.lm: Any = HFLM(pretrained=setup.model, dtype=setup.dtype, device="cpu", batch_size=setup.batch_size)
        self.options = {"until": [], "do_sample": False, "max_gen_toks": setup.new_tokens}

    def answer(self, cells: Sequence[Cell]) -> list[str]:
        return [text for _, one in groupby(cells, key=lambda cell: cell.persona_id) for text in self._as_one(list(one))]

    def _as_one(self, cells: Sequence[Cell]) -> Iterator[str]:
        from lm_eval.api.instance import Instance

        requests = [
            Instance(request_type="generate_until", doc={}, arguments=(self._chat(cell), dict(self.options)), idx=number)
            for number, cell in enumerate(cells)
        ]
        yield from self.lm.generate_until(requests, disable_tqdm=True)

    def prompt(self, cell: Cell) -> list[int]:
        ids_B_T, _ = self.lm.tok_batch_encode([self._chat(cell)])
        return list(ids_B_T[0].tolist())

    def _chat(self, cell: Cell) -> str:
        return str(self.lm.apply_chat_template([dict(message) for message in cell.messages]))


def gaps(model: str, partings: Sequence[Parting], device: str = "cpu") -> list[float]:
    """How far apart float32 sees the logits of the two tokens, for each parting."""
    import torch

    from permix.inference.hf import load_causal_lm

    network = load_causal_lm(model, torch.float32, device)
    found = []
    with torch.inference_mode():
        for parting in partings:
            logits_V = network(input_ids=torch.tensor([parting.read], device=device), logits_to_keep=1).logits[0, -1]
            found.append(float((logits_V[parting.one] - logits_V[parting.other]).abs()))
    return found
