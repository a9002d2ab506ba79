"""Every shape is read, nothing is guessed, and each row that cannot be used says why."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.config import DataSection
from tunesmith.data.records import Message, Place
from tunesmith.data.shapes import ConvertedRow, RowError, convert_row, looks_like_row, mapping_example
from tunesmith.recipe_file import load_recipe

PLACE = Place("rows.jsonl", 3)
ASKED = Message("user", "What is 2+2?")
ANSWERED = Message("assistant", "4")


def convert(row: dict[str, Any], **section: Any) -> ConvertedRow:
    return convert_row(row, PLACE, DataSection.model_validate({"train": "rows.jsonl", **section}))


def messages_of(row: dict[str, Any], **section: Any) -> tuple[Message, ...]:
    return convert(row, **section).example.messages


def reason_of(row: dict[str, Any], **section: Any) -> str:
    with pytest.raises(RowError) as caught:
        convert(row, **section)
    return caught.value.reason


def turns(*pairs: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in pairs]


GOOD_TURNS = turns(("user", "What is 2+2?"), ("assistant", "4"))
SHAREGPT_TURNS = [{"from": "human", "value": "What is 2+2?"}, {"from": "gpt", "value": "4"}]


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"messages": GOOD_TURNS}, "messages"),
        ({"conversation": GOOD_TURNS}, "messages"),
        ({"conversations": GOOD_TURNS}, "messages"),
        ({"conversations": SHAREGPT_TURNS}, "sharegpt"),
        ({"messages": [{"role": "User", "content": "What is 2+2?"}, {"role": "model", "content": "4"}]}, "messages"),
        ({"instruction": "What is 2+2?", "input": "", "output": "4"}, "alpaca"),
        ({"instruction": "What is 2+2?", "output": "4"}, "alpaca"),
        ({"instruction": "", "input": "What is 2+2?", "output": "4"}, "alpaca"),
        ({"prompt": "What is 2+2?", "completion": "4"}, "prompt_completion"),
        ({"prompt": "What is 2+2?", "response": "4"}, "prompt_completion"),
        ({"prompt": GOOD_TURNS[:1], "completion": GOOD_TURNS[1:]}, "prompt_completion"),
        ({"question": "What is 2+2?", "answer": "4"}, "question_answer"),
        ({"question": "What is 2+2?", "answers": "4"}, "question_answer"),
        ({"query": "What is 2+2?", "response": "4"}, "question_answer"),
    ],
)
def test_each_shape_is_detected_and_can_be_named(row: dict[str, Any], shape: str) -> None:
    for section in ({}, {"format": shape}):
        converted = convert(row, **section)
        assert converted.example.messages == (ASKED, ANSWERED)
        assert converted.example.place == PLACE
        assert (converted.shape, converted.unused_keys) == (shape, ())


def test_plain_text_has_no_messages() -> None:
    example = convert({"text": "Once upon a time."}).example
    assert (example.text, example.messages) == ("Once upon a time.", ())


def test_alpaca_joins_instruction_and_input_by_a_line_feed_and_puts_history_first() -> None:
    row = {
        "instruction": "Translate.",
        "input": "Guten Tag",
        "output": "Good day",
        "system": "Be brief.",
        "history": [["Hello?", "Hello!"]],
    }
    assert messages_of(row) == (
        Message("system", "Be brief."),
        Message("user", "Hello?"),
        Message("assistant", "Hello!"),
        Message("user", "Translate.\nGuten Tag"),
        Message("assistant", "Good day"),
    )


@pytest.mark.parametrize(
    ("given_name", "role"),
    [("developer", "system"), ("function", "tool"), ("tool", "tool"), ("bot", "assistant"), ("chatgpt", "assistant")],
)
def test_names_of_speakers(given_name: str, role: str) -> None:
    extra = [(given_name, "x")]
    pairs = [("user", "a"), ("assistant", "b")]
    pairs = extra + pairs if role == "system" else [*pairs, *extra]
    roles = [message.role for message in messages_of({"messages": turns(*pairs)})]
    assert roles == (["system", "user", "assistant"] if role == "system" else ["user", "assistant", role])


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "2+2?", "image_url": None}]
    assert messages_of({"messages": turns(("user", parts), ("assistant", "4"))}) == (ASKED, ANSWERED)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": GOOD_TURNS},
        {"conversations": SHAREGPT_TURNS},
        {"prompt": "What is 2+2?", "completion": "4"},
        {"instruction": "What is 2+2?", "output": "4"},
    ],
)
def test_the_recipes_system_message_goes_where_there_is_none(row: dict[str, Any]) -> None:
    assert messages_of(row, system="From the recipe.") == (Message("system", "From the recipe."), ASKED, ANSWERED)
    own = {**row, "system": "Own."}
    assert messages_of(own, system="From the recipe.") == (Message("system", "Own."), ASKED, ANSWERED)


def test_plain_text_gets_no_system_message() -> None:
    assert convert({"text": "Once."}, system="From the recipe.").example.messages == ()


def test_an_empty_system_column_is_none() -> None:
    assert messages_of({"prompt": "What is 2+2?", "completion": "4", "system": ""}) == (ASKED, ANSWERED)


def test_a_turn_after_the_last_answer_stays() -> None:
    row = {"messages": [*GOOD_TURNS, *turns(("user", "Thanks"))]}
    assert messages_of(row) == (ASKED, ANSWERED, Message("user", "Thanks"))


def test_null_counts_as_absent() -> None:
    row = {"text": None, "messages": None, "prompt": "What is 2+2?", "completion": "4"}
    assert convert(row).shape == "prompt_completion"


def test_text_beside_a_shape_is_that_example_written_out_and_named_as_unused() -> None:
    converted = convert({"instruction": "What is 2+2?", "output": "4", "text": "### Instruction: ..."})
    assert (converted.shape, converted.unused_keys) == ("alpaca", ("text",))


def test_keys_that_no_shape_reads_are_named() -> None:
    row = {"id": 7, "empty": None, "messages": [{**GOOD_TURNS[0], "name": "Ann"}, GOOD_TURNS[1]]}
    assert convert(row).unused_keys == ("id", "messages[].name")


# --- A mapping ----------------------------------------------------------------------------------------------------


def test_mapping_of_prompt_and_completion() -> None:
    row = {"ask": "What is 2+2?", "say": "4", "rules": "Be brief.", "prompt": "other"}
    converted = convert(row, mapping={"prompt": "ask", "completion": "say", "system": "rules"})
    assert converted.example.messages == (Message("system", "Be brief."), ASKED, ANSWERED)
    assert (converted.shape, converted.unused_keys) == ("mapping", ("prompt",))


def test_mapping_of_turns_and_of_text() -> None:
    row = {"chat": [{"who": "human", "said": "What is 2+2?"}, {"who": "bot", "said": "4"}], "story": "Once."}
    assert messages_of(row, mapping={"messages": "chat", "role": "who", "content": "said"}) == (ASKED, ANSWERED)
    assert convert(row, mapping={"text": "story"}).example.text == "Once."


def test_mapping_of_a_column_that_is_not_there() -> None:
    reason = reason_of({"ask": "a", "reply": "b"}, mapping={"prompt": "ask", "completion": "say"})
    assert "'say', which data.mapping names, is not there; the row has 'ask', 'reply'" in reason
    assert "is null" in reason_of({"ask": "a", "say": None}, mapping={"prompt": "ask", "completion": "say"})


@pytest.mark.parametrize(
    ("values", "example"),
    [
        ({"frage": "a", "antwort": "b"}, "{prompt: frage, completion: antwort}"),
        ({"reply": "a", "ask": "b", "score": 1}, "{prompt: ask, completion: reply}"),
        ({"id": "1", "user": "a", "note": "b", "answer": "c"}, "{prompt: user, completion: answer}"),
        ({"问": "a", "no": "b"}, '{prompt: 问, completion: "no"}'),
        ({"my text": "a", "n": 2}, '{text: "my text"}'),
        ({"id": "1", "customer_text": "a", "agent_reply": "b"}, "{prompt: customer_text, completion: agent_reply}"),
        ({"ticket_id": "1", "subject": "a", "body": "b", "note": "c"}, "{prompt: COLUMN, completion: COLUMN}"),
        ({"ticket": "1", "subject": "a", "resolution": "c"}, "{prompt: COLUMN, completion: resolution}"),
        ({"dialog": [{"text": "a", "side": "user"}]}, "{messages: dialog, role: side, content: text}"),
        ({"dialog": [{"speaker": "a", "says": "b"}]}, "{messages: dialog, role: speaker, content: says}"),
    ],
)
def test_a_row_of_no_known_shape_is_answered_with_a_mapping_by_its_own_names(
    values: dict[str, Any], example: str
) -> None:
    assert mapping_example(values) == example
    with pytest.raises(RowError) as caught:
        convert(values)
    assert caught.value.reason.endswith(f"name the columns with data.mapping, here perhaps {example}")
    data = load_recipe({"model": {"name": "x"}, "data": {"train": "a"}}, [f"data.mapping={example}"]).data
    assert data.mapping is not None


def test_a_row_without_texts_gets_no_example() -> None:
    assert mapping_example({"a": 1, "b": [2]}) == ""


# --- Rows that cannot be used -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"foo": 1, "bar": 2}, "not a known shape: it has 'foo', 'bar'; accepted are messages"),
        ({}, "it has no keys"),
        ({"messages": []}, "has no turns"),
        ({"messages": "hello"}, "'messages' is text (str), not a list of turns"),
        ({"messages": ["hello"]}, "turn 1 of 'messages' is text (str), not an object"),
        ({"messages": turns(("user", "a"))}, "no assistant turn to learn from"),
        ({"messages": turns(("assistant", "a"))}, "starts with the assistant"),
        ({"messages": turns(("system", "s"), ("tool", "t"), ("assistant", "a"))}, "starts with the tool"),
        ({"messages": turns(("user", "a"), ("system", "s"), ("assistant", "b"))}, "system message as message 2"),
        ({"messages": turns(("user", "a"), ("assistant", " \n"))}, "empty answer (message 2)"),
        ({"messages": turns(("user", ""), ("assistant", "b"))}, "empty user turn (message 1)"),
        ({"messages": turns(("narrator", "a"))}, "unknown role 'narrator'"),
        ({"messages": turns(("user", 5), ("assistant", "b"))}, "is a number (int) (5), not text"),
        ({"messages": turns(("user", "a"), ("assistant", None))}, "'content' of turn 2 of 'messages' is null"),
        ({"messages": [{"role": "user"}]}, "turn 1 of 'messages' has no 'content'; it has 'role'"),
        ({"messages": [{"content": "a"}]}, "turn 1 of 'messages' has no 'role'"),
        ({"messages": turns(("user", [{"type": "image_url"}]))}, "content part of type 'image_url'"),
        ({"messages": [*GOOD_TURNS, {"role": "assistant", "content": None, "tool_calls": [{}]}]}, "tool calls are not"),
        ({"messages": [*GOOD_TURNS, {"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "tool calls are not"),
        ({"messages": [GOOD_TURNS[0], {**GOOD_TURNS[1], "weight": 0}]}, "weight 0"),
        ({"conversations": [*SHAREGPT_TURNS, {"from": "function_call", "value": "{}"}]}, "tool calls are not"),
        ({"conversations": SHAREGPT_TURNS[1:]}, "starts with the assistant"),
        ({"system": "s", "messages": turns(("system", "t"), ("user", "a"), ("assistant", "b"))}, "two system messages"),
        (
            {"messages": GOOD_TURNS, "prompt": "a", "completion": "b"},
            "can be read as messages and as prompt_completion",
        ),
        ({"messages": GOOD_TURNS, "conversations": GOOD_TURNS}, "has both 'messages', 'conversations'"),
        ({"question": "a", "answer": "b", "response": "c"}, "has both 'answer', 'response'"),
        ({"prompt": "a", "completion": 12}, "'completion' is a number (int) (12), not text"),
        ({"prompt": "a", "completion": True}, "'completion' is a truth value (bool)"),
        ({"prompt": "a", "completion": None}, "'completion' is null"),
        ({"prompt": "a", "completion": ""}, "empty answer"),
        ({"prompt": "a", "completion": {"x": 1}}, "'completion' is an object, not text"),
        ({"prompt": "a", "completion": "half \ud83d"}, "half a character (\\ud83d)"),
        ({"instruction": "a", "output": "b", "history": [["q"]]}, "pair 1 of 'history' is not [question, answer]"),
        ({"instruction": "a", "output": "b", "history": "q"}, "'history' is text (str), not a list"),
        ({"text": " "}, "empty text"),
        ({"text": 3.5}, "'text' is a number (float) (3.5)"),
    ],
)
def test_a_bad_row_says_why(row: dict[str, Any], reason: str) -> None:
    assert reason in reason_of(row)


def test_a_named_format_says_which_key_it_lacks() -> None:
    reason = reason_of({"prompt": "a", "completion": "b"}, format="question_answer")
    assert reason == "lacks question/query, which question_answer needs; it has 'prompt', 'completion'"


def test_a_named_format_settles_what_could_be_read_in_two_ways() -> None:
    row = {"messages": turns(("user", "x"), ("assistant", "y")), "prompt": "What is 2+2?", "completion": "4"}
    assert messages_of(row, format="prompt_completion") == (ASKED, ANSWERED)


def test_keys_cannot_write_control_characters_into_messages() -> None:
    reason = reason_of({"\x1b[31mred\n": 1, "k" * 1000: 2, "\ud800": 3})
    assert reason.isprintable()
    assert "k" * 41 not in reason


def test_a_wrapper_is_no_row() -> None:
    assert looks_like_row({"messages": GOOD_TURNS})
    assert looks_like_row({"prompt": "a", "completion": "b"})
    assert not looks_like_row({"data": [{"messages": GOOD_TURNS}]})
    assert not looks_like_row({"conversations": [{"messages": GOOD_TURNS}]})


_KEYS = st.sampled_from(
    ["messages", "conversations", "prompt", "completion", "instruction", "output", "text", "system", "role", "content"]
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS | st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(row=st.dictionaries(_KEYS | st.text(max_size=3), _VALUES, max_size=5))
def test_any_row_is_an_example_or_a_row_error(row: dict[str, Any]) -> None:
    reason, example = "", None
    try:
        example = convert(row).example
    except RowError as error:
        reason = error.reason
    assert reason.isprintable()
    assert reason or (example is not None and (example.text or example.has_assistant_turn))
