"""Work on a batch that halves itself when memory runs out."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from tunesmith.errors import ModelError
from tunesmith.failpoints import passing
from tunesmith.models.backend import is_out_of_memory, release_memory

T = TypeVar("T")
R = TypeVar("R")


def in_halves(run: Callable[[Sequence[T]], list[R]], items: Sequence[T], *, what: str) -> list[R]:
    """`run(items)`; where memory runs out, the same for each half, and so on down to single items.

    Args:
        run: gives one result for each item, in order.
        items: at least one.
        what: the work, for the message.

    Raises:
        ModelError: there is not enough memory for one item alone.
    """
    try:
        passing(f"memory:{what}")
        return run(items)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if len(items) == 1:
            raise ModelError(
                f"there is not enough memory for {what} of a single example",
                remedy="use a smaller model or lower precision, shorten data.max_length, or free memory",
            ) from None
    # Outside the handler: its traceback would keep the failed attempt's tensors alive.
    release_memory()
    middle = len(items) // 2
    return in_halves(run, items[:middle], what=what) + in_halves(run, items[middle:], what=what)
