"""One example as the model sees it, on the terminal: trained tokens in colour."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from tunesmith.report.text import visible

TRAINED_STYLE = "bold green"
LEFT, RIGHT = "⟦", "⟧"
"""Marks around trained tokens where there is no colour."""


def print_example(place: str, pieces: Sequence[tuple[str, bool]], console: Console | None = None) -> None:
    """Prints the example's text.

    Args:
        place: where it comes from.
        pieces: the text of each token, and whether it is trained on.
        console: where to print; standard output by default.
    """
    console = console or Console(highlight=False)
    trained = sum(is_trained for _, is_trained in pieces)
    console.print(Text(f"── {place} · {len(pieces)} tokens, {trained} of them trained on (", style="dim"), end="")
    console.print(Text("these", style=TRAINED_STYLE) if console.color_system else Text(f"{LEFT}these{RIGHT}"), end="")
    console.print(Text(") ──", style="dim"))
    shown = Text()
    was_trained = False
    for text, is_trained in [*pieces, ("", False)]:
        if not console.color_system and is_trained != was_trained:
            shown.append(LEFT if is_trained else RIGHT)
        shown.append(visible(text), style=TRAINED_STYLE if is_trained else "")
        was_trained = is_trained
    console.print(shown, soft_wrap=True)
