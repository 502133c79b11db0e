"""Asynchronous work behind an ordinary generator: an event loop in a thread of its own, so it works in a notebook too."""

import asyncio
import queue
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
Emit = Callable[[T], Awaitable[None]]


def in_background(work: Callable[[Emit[T]], Coroutine[Any, Any, None]], ahead: int) -> Iterator[T]:
    """Run `work` on an event loop in a thread of its own and yield what it emits; then raise what it raised.

    Emitting waits while `ahead` items are not yet taken. Closing the iterator cancels `work` and ends the thread.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="permix-background", daemon=True)
    slots = asyncio.Semaphore(ahead)
    arrived: queue.SimpleQueue[tuple[T] | None] = queue.SimpleQueue()

    async def emit(item: T) -> None:
        arrived.put((item,))
        await slots.acquire()

    thread.start()
    try:
        done = asyncio.run_coroutine_threadsafe(work(emit), loop)
        done.add_done_callback(lambda _: arrived.put(None))
        while (item := arrived.get()) is not None:
            loop.call_soon_threadsafe(slots.release)
            yield item[0]
        done.result()
    finally:
        # A generator still open when the interpreter exits: its thread is frozen and must not be waited for.
        if not sys.is_finalizing():
            asyncio.run_coroutine_threadsafe(_cancel_others(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
