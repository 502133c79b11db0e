"""The two arms of `bench.grid`: permix's grid, and lm-evaluation-harness's `hf` backend run once per persona.

The permix arm does all that `permix stability` does, including records and verdicts. The lm-evaluation-harness arm only applies
the chat template and calls `generate_until`. Both arms use the same number of threads, the same allocator settings and the same
dtype of weights. An arm loads its weights before it is ready, so loading is not measured.
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
    """The settings of an arm. `batch_size` is that of lm-evaluation-harness; None selects the permix arm and its own default."""

    model: str
    dtype: str
    threads: int
    new_tokens: int
    batch_size: int | None


class AnswerRequest(NamedTuple):
    """Asks an arm to answer these cells."""

    cells: Sequence[Cell]


class Answers(NamedTuple):
    """The completions of a request's cells, in the order of the cells, and the seconds that an arm needed.

    CPU seconds are those of the arm's process and its children, user and system. `prompts` holds the token ids of each prompt.
    """

    cpu_seconds: float
    wall_seconds: float
    texts: list[str]
    prompts: list[list[int]]


class Divergence(NamedTuple):
    """The first difference of two completions: the prompt with the tokens that both share, and the next token of each."""

    prefix: list[int]
    first: int
    second: int


class LogitGapRequest(NamedTuple):
    """Asks an arm for the logit gap in float32 of each of these divergences."""

    divergences: Sequence[Divergence]


class AnsweringArm(Protocol):
    def answer(self, cells: Sequence[Cell]) -> list[str]:
        """Return the completion of each cell."""

    def prompt(self, cell: Cell) -> list[int]:
        """Return the token ids of the cell's prompt."""


def run_arm(setup: Setup, connection: Connection) -> None:
    """Load the model and reply to requests until one is None. A `bench.process.Worker` runs this function."""
    sys.stdout = sys.stderr  # stdout is for figures only, and the parent prints them
    set_threads(setup.threads)
    arm: AnsweringArm = PermixArm(setup) if setup.batch_size is None else LmEvalArm(setup)
    connection.send(None)
    while (request := connection.recv()) is not None:
        if isinstance(request, LogitGapRequest):
            connection.send(logit_gaps(setup.model, request.divergences))
        else:
            connection.send(_answer_timed(arm, request.cells))


def _answer_timed(arm: AnsweringArm, cells: Sequence[Cell]) -> Answers:
    cpu, wall = cpu_seconds(), time.perf_counter()
    texts = arm.answer(cells)
    spent = (cpu_seconds() - cpu, time.perf_counter() - wall)
    return Answers(*spent, texts, [arm.prompt(cell) for cell in cells])


class PermixArm:
    """Answers cells with `permix.evals.grid.run_cells` and `HFModel`, in a temporary run directory."""

    def __init__(self, setup: Setup) -> None:
        from permix.inference.hf import HFModel
        from permix.inference.shared_prefix import supports_shared_prefix

        self.model = HFModel(ModelConfig.model_validate({"name": setup.model, "dtype": setup.dtype}))
        self.sampling = Sampling(max_new_tokens=setup.new_tokens)
        supports_shared_prefix(self.model.network)  # permix tries this once per model; it is not part of the measurement

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
            return [_completion_text(answered[cell.key]) for cell in cells]

    def prompt(self, cell: Cell) -> list[int]:
        from permix.inference.chat_template import encode_chat

        return encode_chat(self.model.tokenizer, cell.messages)


def _completion_text(cell: Cell) -> str:
    if cell.completion is None:
        raise SystemExit(f"cell {tuple(cell.key)}: no completion: {cell.failure}")
    return cell.completion.text


class LmEvalArm:
    """Answers cells with `HFLM.generate_until` of `lm_eval`, called once for consecutive cells of one persona.

    No stop string is set: a completion ends with the model's own stop token or at `new_tokens`. Raises SystemExit if `lm_eval` is
    not installed.
    """

    def __init__(self, setup: Setup) -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        try:
            from lm_eval.models.huggingface import HFLM
        except ImportError as error:
            raise SystemExit(MISSING) from error
        self.lm: Any = HFLM(pretrained=setup.model, dtype=setup.dtype, device="cpu", batch_size=setup.batch_size)
        self.options = {"until": [], "do_sample": False, "max_gen_toks": setup.new_tokens}

    def answer(self, cells: Sequence[Cell]) -> list[str]:
        by_persona = groupby(cells, key=lambda cell: cell.persona_id)
        return [text for _, group in by_persona for text in self._answer_persona(list(group))]

    def _answer_persona(self, cells: Sequence[Cell]) -> Iterator[str]:
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


def logit_gaps(model: str, divergences: Sequence[Divergence], device: str = "cpu") -> list[float]:
    """Return for each divergence the absolute difference of the two next tokens' logits, computed in float32."""
    import torch

    from permix.inference.hf import load_causal_lm

    network = load_causal_lm(model, torch.float32, device)
    gaps = []
    with torch.inference_mode():
        for divergence in divergences:
            logits_V = network(input_ids=torch.tensor([divergence.prefix], device=device), logits_to_keep=1).logits[0, -1]
            gaps.append(float((logits_V[divergence.first] - logits_V[divergence.second]).abs()))
    return gaps
