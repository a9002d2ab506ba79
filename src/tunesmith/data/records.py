"""What a row of data becomes: an `Example` of messages, then a `TokenizedExample` of token ids and labels."""

from dataclasses import dataclass

IGNORED_LABEL = -100
"""Label of a token that is not trained on; the value PyTorch's cross-entropy skips by default.

`models.generation` has the same under the same name, because models know nothing of data.
"""

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row comes from.

    Args:
        file: the path as the recipe gives it, or `hub:NAME/SPLIT`.
        line: 1-based line of the row's start, or 1-based number of the row where there are no lines to go by.
        is_row_number: whether `line` is the number of a row, as in Parquet and on the hub.
    """

    file: str
    line: int
    is_row_number: bool = False

    def __str__(self) -> str:
        return f"{self.file}, row {self.line}" if self.is_row_number else f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `role` is one of `ROLES`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One training or test example: either a conversation, or plain text to continue.

    Args:
        messages: the turns in order, empty for plain text.
        place: the row it was read from.
        text: plain text, of which every token is trained on; None for a conversation.
    """

    messages: tuple[Message, ...]
    place: Place
    text: str | None = None

    @property
    def has_assistant_turn(self) -> bool:
        """Whether there is a turn to learn from."""
        return any(message.role == "assistant" for message in self.messages)


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """One example as the model sees it.

    Args:
        input_ids: the T token ids.
        labels: T labels; the token's own id where it is trained on, `IGNORED_LABEL` elsewhere. They are not
            shifted: label t belongs to token t, and the loss compares the logits of t-1 with it.
        place: the row it was read from.
        tokens_cut: tokens lost to `max_length`, 0 if whole.
        weight: how much each of its tokens counts in the training loss, at least 0. The validation loss and the scores
            of the evaluation are of the data as they are, without weights.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    place: Place
    tokens_cut: int = 0
    weight: float = 1.0

    @property
    def target_count(self) -> int:
        """Tokens that are trained on."""
        return sum(label != IGNORED_LABEL for label in self.labels[1:])
