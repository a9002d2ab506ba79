"""The console that results are printed with."""

from rich.console import Console


class OutputConsole(Console):
    """rich's console, but a reader that goes away is an error for the caller to handle.

    rich itself ends the process with exit code 1, which here means that a gate failed.
    """

    def on_broken_pipe(self) -> None:
        """Called by rich when nobody reads any more.

        Raises:
            BrokenPipeError: always.
        """
        raise BrokenPipeError
