"""Where the assistant turns lie in the text that a chat template renders.

A template is a program and does not say which characters are the answer. Three ways find out, each checked against
the rendered text itself, so that a turn is either located exactly or an error:

1. `{% generation %}` blocks: transformers reports what lies inside them.
2. Prefixes: the rendering of the messages before a turn, with the generation prompt, begins the whole rendering.
3. Sentinels: the same conversation is rendered with a unique word in place of each answer; what stands between the
   words must stand between the answers too. This holds even where a template drops `<think>` from earlier turns.

A turn's span begins where the generation prompt ends, because there the model takes over when serving, and ends
with the stop token. So it also covers what the template puts between the two and the content (the `lead`): the space
of "[/INST] answer", or the empty `<think>` block of Qwen3. Text after the stop token, as a newline, is no part of it.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from itertools import pairwise
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from tunesmith.data.records import Message
from tunesmith.errors import TemplateError

Span = tuple[int, int]

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
_DATE_CALL = re.compile(r"""strftime_now\s*\(\s*(["'])([^"'\\]*)\1\s*\)""")
_END_OF_THINKING = "</think>"


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """A conversation as text.

    Args:
        text: what the template renders.
        spans: one half-open range of characters for each assistant turn, in order.
    """

    text: str
    spans: tuple[Span, ...]


class TemplateRenderer:
    """Runs one Jinja chat template in transformers' sandbox.

    Args:
        template: the Jinja text.
        special_tokens: what the template may name, as `bos_token` and `eos_token`.
        day: what the template is told of the date, so that the same conversation renders alike on any day.
    """

    def __init__(self, template: str, special_tokens: dict[str, Any], day: date) -> None:
        self.template = _dated(template, day)
        self.marks_generation = _GENERATION_TAG.search(template) is not None
        self._special_tokens = special_tokens

    def render(self, messages: Sequence[Message], *, place: str, add_generation_prompt: bool = False) -> str:
        """The text of `messages`.

        Raises:
            TemplateError: the template refuses them; `place` says where they come from.
        """
        return self._run(messages, place, add_generation_prompt, marked=False)[0]

    def render_marked(
        self, messages: Sequence[Message], *, place: str, add_generation_prompt: bool = False
    ) -> tuple[str, list[Span]]:
        """The text of `messages`, and the ranges of characters inside `{% generation %}` blocks."""
        return self._run(messages, place, add_generation_prompt, marked=True)

    def _run(
        self, messages: Sequence[Message], place: str, add_generation_prompt: bool, *, marked: bool
    ) -> tuple[str, list[Span]]:
        conversation = [{"role": message.role, "content": message.content} for message in messages]
        try:
            result: Any = render_jinja_template(  # annotated as a string, but a pair of lists
                conversations=[conversation],
                chat_template=self.template,
                return_assistant_tokens_mask=marked,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            # A template is foreign code: beside its own raise_exception it can fail as any program can.
            raise _refusal(error, messages, place) from error
        texts, blocks = result
        return texts[0], blocks[0] if marked else []


def _dated(template: str, day: date) -> str:
    """`template` with its calls of `strftime_now("FORMAT")` replaced by that date as a text.

    transformers lets no function be passed to a template, and its own takes the clock.
    """
    midnight = datetime.combine(day, time())
    return _DATE_CALL.sub(lambda call: f"{call[1]}{midnight.strftime(call[2])}{call[1]}", template)


def _refusal(error: Exception, messages: Sequence[Message], place: str) -> TemplateError:
    if isinstance(error, jinja2.TemplateSyntaxError):
        return TemplateError(
            f"the chat template is not valid Jinja: {error.message} (line {error.lineno})",
            place=place,
            remedy="correct the model's chat_template.jinja, or take it from a newer release of the model",
        )
    roles = [message.role for message in messages]
    turns = [role for role in roles if role != "system"]
    if not messages:
        remedy = "give at least one message"
    elif any(left == right for left, right in pairwise(turns)) or turns[:1] == ["assistant"]:
        remedy = "begin with a user message and let user and assistant alternate; join neighbours of the same role"
    elif "system" in roles:
        remedy = "put the system text at the beginning of the first user message; this template has no place for it"
    elif "tool" in roles:
        remedy = "give tool results as user messages, or choose a model whose template knows the role 'tool'"
    else:
        remedy = "change the messages to what the model's template accepts, or choose another model"
    reason = str(error) or type(error).__name__
    return TemplateError(
        f"the chat template refuses the roles {', '.join(roles)}: {reason}", place=place, remedy=remedy
    )


class TurnFinder:
    """Locates assistant turns; learns once, from a probe, how the template opens and closes one.

    Args:
        renderer: the template.
        added_tokens: the texts of the tokenizer's added tokens; one of them must end a turn.

    Attributes:
        generation_prompt: what `add_generation_prompt` adds after a user message; may be empty.
        lead: what stands between the generation prompt and the content of a turn.
        trail: white space between the content and the stop token.
        stop_tokens: texts of the tokens that end a turn: first that of the last turn of a conversation, then that of
            an earlier one where it is another, as in gpt-oss.
        prompts_match_training: whether the rendering of a conversation begins with the prompt for its answer.

    Raises:
        TemplateError: the template does not render the answer, or ends it with no stop token.
    """

    def __init__(self, renderer: TemplateRenderer, added_tokens: Iterable[str]) -> None:
        self._renderer = renderer
        place = "chat template"
        question = Message("user", "Hello")
        answer = _sentinels([question], 1)[0]
        prompt = renderer.render([question], place=place, add_generation_prompt=True)
        opening = renderer.render([question], place=place)
        text = renderer.render([question, Message("assistant", answer)], place=place)
        before, found, after = text.partition(answer)
        if not found:
            raise TemplateError(
                "the chat template does not render the content of an assistant message",
                place=place,
                remedy="use a template that prints message['content'] for the role 'assistant'",
            )
        self.generation_prompt = prompt[len(opening) :] if prompt.startswith(opening) else ""
        self.prompts_match_training = before.startswith(prompt)
        self.lead = before[len(prompt) :] if self.prompts_match_training else ""

        any_token = any_of(token for token in added_tokens if token.strip())
        ending = re.match(rf"(\s*)({any_token})", after)
        if ending is None:
            raise TemplateError(
                "the chat template ends an assistant turn with no stop token, so a model trained with it never stops",
                place=place,
                remedy="put {{ eos_token }} after the content of assistant messages in the model's chat_template.jinja",
            )
        self.trail, stop_token = ending.groups()
        opening_token = re.search(rf"({any_token})(?:(?!{any_token}).)*\Z", opening.rpartition("Hello")[0], re.DOTALL)
        openers = {opening_token.group(1)} if opening_token else set()
        openers.update(re.findall(any_token, self.generation_prompt), re.findall(rf"\A(?:{any_token})", opening))
        inner = [token for token in self._inner_stop_token(any_token) if token != stop_token and token not in openers]
        self.stop_tokens = (stop_token, *inner)
        self._stop = re.compile(rf"\s*(?:{any_of(self.stop_tokens)})")

    def _inner_stop_token(self, any_token: str) -> list[str]:
        """The token after a turn that another follows: what ends it, or opens the next where nothing ends it."""
        answer = _sentinels([], 1)[0]
        roles = ("user", "assistant", "user", "assistant")
        messages = [Message(role, answer if index == 1 else "Hello") for index, role in enumerate(roles)]
        try:
            text = self._renderer.render(messages, place="chat template")
        except TemplateError:
            return []
        ending = re.match(rf"\s*({any_token})", text.partition(answer)[2])
        return [ending.group(1)] if ending else []

    def find(self, messages: Sequence[Message], *, place: str, add_generation_prompt: bool = False) -> RenderedChat:
        """Renders `messages` and locates each assistant turn.

        Raises:
            TemplateError: the template refuses the messages, or a turn cannot be located with certainty.
        """
        turns = [index for index, message in enumerate(messages) if message.role == "assistant"]
        if self._renderer.marks_generation and turns:
            text, blocks = self._renderer.render_marked(
                messages, place=place, add_generation_prompt=add_generation_prompt
            )
            spans = self._by_blocks(text, blocks, [messages[turn].content for turn in turns])
            if spans is not None:
                return RenderedChat(text, spans)
        else:
            text = self._renderer.render(messages, place=place, add_generation_prompt=add_generation_prompt)
        if not turns:
            return RenderedChat(text, ())

        def prefixes() -> tuple[Span, ...] | None:
            return self._by_prefixes(text, messages, turns, place)

        def sentinels() -> tuple[Span, ...] | None:
            return self._by_sentinels(text, messages, turns, place, add_generation_prompt)

        # Each takes two renderings for one turn; for more, sentinels still take two.
        spans = (prefixes() or sentinels()) if len(turns) == 1 else (sentinels() or prefixes())
        if spans is not None:
            return RenderedChat(text, spans)
        which = "the assistant turn" if len(turns) == 1 else f"one of the {len(turns)} assistant turns"
        raise TemplateError(
            f"{which} cannot be located in what the chat template renders",
            place=place,
            remedy="the template changes, drops or does not end the answer; mark it there with {% generation %} ... "
            "{% endgeneration %}, or change the row",
        )

    def _by_blocks(self, text: str, blocks: Sequence[Span], contents: Sequence[str]) -> tuple[Span, ...] | None:
        """Spans from `{% generation %}` blocks; None where the blocks are not one for each turn."""
        if len(blocks) != len(contents):
            return None
        spans: list[Span] = []
        for (block_start, block_end), content in zip(blocks, contents, strict=True):
            inside = text[block_start:block_end]
            if _split_answer(content)[1] not in inside:
                return None
            start = self._start_of_block(text, block_start)
            end = self._end_of_turn(text, start, content)
            if end is None:
                tail = re.search(rf"{self._stop.pattern}\s*\Z", inside)
                outside = self._stop.match(text, block_end)
                if tail:
                    end = block_start + len(inside.rstrip())
                elif outside:
                    end = outside.end()
                else:
                    return None
            spans.append((start, end))
        return tuple(spans)

    def _start_of_block(self, text: str, block_start: int) -> int:
        """The end of the generation prompt, which a block may leave out, hold, or begin some way after."""
        prompt, lead = self.generation_prompt, self.lead
        if text.endswith(prompt + lead, 0, block_start):
            return block_start - len(lead)
        if prompt and text.startswith(prompt, block_start) and not text.endswith(prompt, 0, block_start):
            return block_start + len(prompt)
        return block_start

    def _by_prefixes(
        self, text: str, messages: Sequence[Message], turns: Sequence[int], place: str
    ) -> tuple[Span, ...] | None:
        """Spans from rendering the messages before each turn; None where one does not begin `text`."""
        spans: list[Span] = []
        for turn in turns:
            if turn == 0:
                return None  # templates take no empty conversation
            try:
                prompt = self._renderer.render(messages[:turn], place=place, add_generation_prompt=True)
            except TemplateError:
                return None
            end = self._end_of_turn(text, len(prompt), messages[turn].content) if text.startswith(prompt) else None
            if end is None:
                return None
            spans.append((len(prompt), end))
        return tuple(spans)

    def _end_of_turn(self, text: str, start: int, content: str) -> int | None:
        """The end of the stop token, where lead, content and stop token follow each other from `start`."""
        for lead in dict.fromkeys((self.lead, "")):
            for answer in dict.fromkeys((content, content.strip())):
                if text.startswith(lead + answer, start):
                    stop = self._stop.match(text, start + len(lead) + len(answer))
                    if stop:
                        return stop.end()
        return None

    def _by_sentinels(
        self, text: str, messages: Sequence[Message], turns: Sequence[int], place: str, add_generation_prompt: bool
    ) -> tuple[Span, ...] | None:
        """Spans from rendering with sentinels for the answers; None where the rest of the text changes with them."""
        sentinels = _sentinels(messages, len(turns))
        answers = [_split_answer(messages[turn].content) for turn in turns]
        replaced = list(messages)
        for turn, sentinel, (head, _, tail) in zip(turns, sentinels, answers, strict=True):
            replaced[turn] = Message("assistant", head + sentinel + tail)
        try:
            skeleton = self._renderer.render(replaced, place=place, add_generation_prompt=add_generation_prompt)
        except TemplateError:
            return None

        spans: list[Span] = []
        position = 0
        for sentinel, (head, core, _) in zip(sentinels, answers, strict=True):
            before, found, skeleton = skeleton.partition(sentinel)
            if not found or not text.startswith(before + core, position):
                return None
            core_start = position + len(before)
            start = core_start - self._overhang(before, head)
            position = core_start + len(core)
            stop = self._stop.match(text, position)
            if stop is None:
                return None
            spans.append((start, stop.end()))
        return tuple(spans) if text[position:] == skeleton else None

    def _overhang(self, before: str, head: str) -> int:
        """How many characters of the turn stand at the end of `before`, the text between two answers.

        Args:
            before: ends where the answer's first visible character stands.
            head: what the message's content has before that character: white space, or a `<think>` block.
        """
        if self.generation_prompt in before and self.generation_prompt:
            gap = before[before.rindex(self.generation_prompt) + len(self.generation_prompt) :]
            if gap.strip() in ("", self.lead.strip()) or gap.rstrip().endswith(_END_OF_THINKING):
                return len(gap)
        for gap in (self.lead + head, self.lead, head):
            if before.endswith(gap):
                return len(gap)
        return 0


def _split_answer(content: str) -> tuple[str, str, str]:
    """`content` as head, answer and tail: the head is a `<think>` block and white space, the tail white space."""
    head, thinks, answer = content.rpartition(_END_OF_THINKING)
    core = answer.strip()
    leading = answer[: len(answer) - len(answer.lstrip())] if core else answer
    return head + thinks + leading, core, answer[len(leading) + len(core) :]


def _sentinels(messages: Sequence[Message], count: int) -> list[str]:
    """`count` words that stand in no message and are not part of each other."""
    word = "answer"
    while any(word in message.content for message in messages):
        word += "x"
    return [f"{word}{index:06}" for index in range(count)]


def any_of(tokens: Iterable[str]) -> str:
    """A pattern of any of `tokens`, the longest first; one that never matches if there is none."""
    return "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or r"(?!)"
