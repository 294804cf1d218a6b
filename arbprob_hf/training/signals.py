"""The signals that stop a run, SIGTERM and SIGINT: noted at once, obeyed at the end of a step."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

# the states of a StopSignal: no run, a run, a run that is about to stop
IDLE, RUNNING, STOPPING = range(3)


@contextlib.contextmanager
def deaths_deferred() -> Iterator[None]:
    """Let a loader's worker that dies while the block runs be noticed behind it.

    torch raises wherever the main process is, which would cut a checkpoint short and look like a fault of the disk.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    noted: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGCHLD, lambda number, frame: noted.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)
    if noted:
        handler(*noted[-1])


class Stopped(SystemExit):
    """The run was asked to stop by a signal, has saved, and ends with exit status 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class StopSignal:
    """Notes SIGTERM and SIGINT while its `with` block runs, so that the run can end at a step boundary.

    `number` is the last signal received here (0: none), `agreed` the one that all processes of the run have agreed
    to stop for, `state` (IDLE, RUNNING or STOPPING) is shared with child processes. A second SIGINT interrupts at
    once. Outside the main thread, where Python takes no signals, it is inert.
    """

    def __init__(self) -> None:
        self.number = 0
        self.agreed = 0
        self.state: Any = multiprocessing.RawValue("b", IDLE)
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        self.number = self.agreed = 0
        if threading.current_thread() is threading.main_thread():
            self.state.value = RUNNING
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.state.value = IDLE
        for number in list(self._previous):
            self._restore(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.state.value = STOPPING
        # not through logging or print: a handler may interrupt either half-way
        os.write(2, f"\n{signal.Signals(number).name}: the run saves at the end of this step and stops\n".encode())
        if number == signal.SIGINT:
            self._restore(number)

    def _restore(self, number: int) -> None:
        previous = self._previous.pop(number, None)
        if previous is not None:
            signal.signal(number, previous)
