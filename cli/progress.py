"""Progress lines on the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console

__all__ = ["progress_printer"]


def progress_printer(quiet: bool) -> Callable[[str], None]:
    """A function that prints one line of progress with the seconds since the beginning, on stderr; silent if asked."""
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    start = time.perf_counter()

    def say(line: str) -> None:
        if not quiet:
            console.print(f"{time.perf_counter() - start:6.1f} s  {line}")

    return say
