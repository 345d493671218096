"""What `decode.py` measures with: milliseconds, a limit in time, quiet before a turn, and how fast memory is read."""

from __future__ import annotations

import functools
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_READ_MIB = 512
# Threads are asleep when they take less than this share of a short watch; they are waited for so long.
_ASLEEP, _WATCH_S, _SETTLE_S = 0.05, 0.05, 2.0


def ms(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` in a block that takes longer, as soon as it comes back to Python."""

    def late(number: int, frame: Any) -> None:
        raise TimeoutError(f"took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def settle() -> None:
    """Wait until this process is idle: threads of whoever went before may go on waiting for work."""
    until = time.monotonic() + _SETTLE_S
    while time.monotonic() < until:
        before = time.process_time()
        time.sleep(_WATCH_S)
        if time.process_time() - before < _ASLEEP * _WATCH_S:
            return


def read_gb_s(threads: int) -> float:
    """How fast memory is read: the best of a few sums of an array far larger than any cache, split among threads."""
    import torch

    settle()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    data = _large_array()
    best = min(ms(lambda: data.sum()) for _ in range(5))
    torch.set_num_threads(before)
    return data.numel() * 4 / best / 1e6


@functools.cache
def _large_array() -> Any:
    """Made once: memory given back to the system costs whoever runs next."""
    import torch

    return torch.ones(_READ_MIB * 2**20 // 4)
