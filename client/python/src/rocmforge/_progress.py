"""Shows the progress of a load: with tqdm's bar if tqdm is installed, else with a line on stderr if it is a
terminal.
"""

from __future__ import annotations

import sys
from typing import Any, Callable, Optional, Union

from .replies import Progress

# True: show the progress; or a function that gets each report of the daemon.
ProgressOption = Union[bool, None, Callable[[Progress], object]]


class Shown:
    """Shows reports of progress; used for progress=True."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: Any = None
        self._wrote = False
        try:
            from tqdm.auto import tqdm

            self._tqdm: Any = tqdm
        except ImportError:
            self._tqdm = None

    def __call__(self, progress: Progress) -> None:
        if self._tqdm is None:
            self._line(progress)
            return
        if self._bar is None:
            self._bar = self._tqdm(total=progress["total"], desc=self._what, unit="B", unit_scale=True)
        self._bar.total = progress["total"]
        self._bar.update(progress["done"] - self._bar.n)

    def _line(self, progress: Progress) -> None:
        if sys.stderr.isatty():
            part = 100 * progress["done"] // max(progress["total"], 1)
            print(f"\r{self._what}: {part:3} %, {progress['rate'] / 1e9:.1f} GB/s", end="", file=sys.stderr, flush=True)
            self._wrote = True

    def done(self, complete: bool) -> None:
        if self._bar is not None:
            if complete:
                self._bar.update(self._bar.total - self._bar.n)
            self._bar.close()
        elif self._wrote:
            print(file=sys.stderr)


def taker(option: ProgressOption, what: str) -> Optional[Callable[[Progress], object]]:
    """The function that gets the reports; None: no function."""
    if option is True:
        return Shown(what)
    return option if callable(option) else None


def finish(take: Optional[Callable[[Progress], object]], complete: bool) -> None:
    if isinstance(take, Shown):
        take.done(complete)
