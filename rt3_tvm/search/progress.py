"""What a search says while it runs: bars on a terminal, lines everywhere."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """What the search asks."""

    def say(self, line: str) -> None:
        """Show a line that stays."""

    def task(self, name: str, steps: int) -> AbstractContextManager[Callable[[], None]]:
        """Return a context whose value is called after each of its steps."""


class Silent:
    """Says nothing."""

    def say(self, line: str) -> None:
        """Do nothing."""

    @contextmanager
    def task(self, name: str, steps: int) -> Iterator[Callable[[], None]]:
        """Do nothing."""
        yield lambda: None


class Bars:
    """Lines and bars on standard error; where that is no terminal, lines alone."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        """Show a line that stays."""
        self.console.print(line, markup=False)

    @contextmanager
    def task(self, name: str, steps: int) -> Iterator[Callable[[], None]]:
        """Show a bar while the context lasts."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bars:
            bar = bars.add_task(name, total=steps)
            yield lambda: bars.advance(bar)
