"""One example as the model sees it, on the terminal: trained tokens in colour."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from tunesmith.report.console import OutputConsole
from tunesmith.report.text import visible

TRAINED_STYLE = "bold green"
LEFT, RIGHT = "⟦", "⟧"
"""Marks around trained tokens where there is no colour."""


def print_example(place: str, pieces: Sequence[tuple[str, bool, int]], console: Console | None = None) -> None:
    """Prints the example's text.

    Args:
        place: where it comes from.
        pieces: parts of the text, whether each is trained on, and how many tokens it is.
        console: where to print; standard output by default.
    """
    console = console or OutputConsole(highlight=False)
    total = sum(tokens for _, _, tokens in pieces)
    trained = sum(tokens for _, is_trained, tokens in pieces if is_trained)
    console.print(Text(f"── {place} · {total} tokens, {trained} of them trained on (", style="dim"), end="")
    console.print(Text("these", style=TRAINED_STYLE) if console.color_system else Text(f"{LEFT}these{RIGHT}"), end="")
    console.print(Text(") ──", style="dim"))
    shown = Text()
    was_trained = False
    for text, is_trained, _ in [*pieces, ("", False, 0)]:
        if not console.color_system and is_trained != was_trained:
            shown.append(LEFT if is_trained else RIGHT)
        shown.append(visible(text), style=TRAINED_STYLE if is_trained else "")
        was_trained = is_trained
    console.print(shown, soft_wrap=True)
