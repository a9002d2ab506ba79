"""The encoder: what is trained is exactly the assistant's, ends with a stop token, and matches what is served."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.data import templates
from tests.data.chats import PLACE, chat, conversation, plain_text, trained_texts
from tests.data.tokenizers import merging_tokenizer, sentencepiece_tokenizer
from tests.tiny import CHATML, byte_tokenizer
from tunesmith.data.plain_template import PLAIN_TEMPLATE, PLAIN_TEMPLATE_WITH_BOS
from tunesmith.data.records import IGNORED_LABEL, Example, TokenizedExample
from tunesmith.data.template import ChatTemplate
from tunesmith.errors import TemplateError


class TestWhatIsTrained:
    def test_the_answer_and_its_stop_token_and_nothing_else(self) -> None:
        template = ChatTemplate(byte_tokenizer())
        example = chat("system: Be brief.", "user: 2+2?", "assistant: 4")
        pieces = template.describe(example)
        text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
        assert "".join(piece for piece, _, _ in pieces) == text + "4<|im_end|>\n"
        assert "".join(piece for piece, trained, _ in pieces if trained) == "4<|im_end|>"
        encoded = template.encode(example)
        assert encoded.place == PLACE
        assert [label for label in encoded.labels if label != IGNORED_LABEL] == [encoded.input_ids[-3], 260]

    @pytest.mark.parametrize(
        ("jinja", "expected"),
        [
            (CHATML, [" a <|im_end|>", "b\n<|im_end|>"]),
            (templates.CHATML_MARKED, [" a <|im_end|>", "b\n<|im_end|>"]),
            (templates.CHATML_MARKED_WITHOUT_STOP, [" a <|im_end|>", "b\n<|im_end|>"]),
            (templates.CHATML_MARKED_WITH_HEADER, [" a <|im_end|>", "b\n<|im_end|>"]),
            (templates.LLAMA3, ["a<|im_end|>", "b<|im_end|>"]),
            (templates.LLAMA2, [" a <|im_end|>", " b <|im_end|>"]),
            (templates.GEMMA, ["a<|im_end|>", "b<|im_end|>"]),
            (templates.QWEN3, [" a <|im_end|>", "<think>\n\n</think>\n\nb\n<|im_end|>"]),
            (templates.OPENED_THINKING, [" a <|im_end|>", "b\n<|im_end|>"]),
            (templates.TWO_STOPS, [" a <|im_end|>", "b\n</s>"]),
            (PLAIN_TEMPLATE, ["  a <|im_end|>", " b\n<|im_end|>"]),
            (PLAIN_TEMPLATE_WITH_BOS, ["  a <|im_end|>", " b\n<|im_end|>"]),
        ],
    )
    def test_every_turn_of_every_kind_of_template(self, jinja: str, expected: list[str]) -> None:
        template = ChatTemplate(byte_tokenizer(jinja, bos_token="<s>"))
        assert trained_texts(template, chat("user: x", "assistant:  a ", "user: y", "assistant: b\n")) == expected
        assert trained_texts(template, chat("user: x", "assistant: b\n")) == expected[1:]

    def test_the_same_as_transformers_marks_where_the_template_marks(self) -> None:
        tokenizer = byte_tokenizer(templates.CHATML_MARKED)
        example = chat("user: hi", "assistant: héllo 😀", "user: 再见", "assistant: 好")
        theirs: Any = tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in example.messages],
            return_assistant_tokens_mask=True,
            return_dict=True,
        )
        ours = ChatTemplate(tokenizer).encode(example)
        assert list(ours.input_ids) == theirs["input_ids"]
        assert [int(label != IGNORED_LABEL) for label in ours.labels] == theirs["assistant_masks"]

    def test_thoughts_are_trained_in_the_last_turn_where_the_template_keeps_them(self) -> None:
        template = ChatTemplate(byte_tokenizer(templates.QWEN3))
        thinking = "assistant: <think>\nhm\n</think>\n\n"
        example = chat("user: x", thinking + "a", "user: y", thinking + "b")
        assert trained_texts(template, example) == ["a<|im_end|>", "<think>\nhm\n</think>\n\nb<|im_end|>"]

    def test_a_conversation_may_begin_with_the_assistant_and_end_with_the_user(self) -> None:
        template = ChatTemplate(byte_tokenizer())
        example = chat("assistant: Welcome", "user: hi", "assistant: yes?", "user: bye")
        assert trained_texts(template, example) == ["Welcome<|im_end|>", "yes?<|im_end|>"]

    def test_words_of_the_answer_elsewhere_do_not_mislead(self) -> None:
        template = ChatTemplate(byte_tokenizer(templates.QWEN3))
        example = chat("user: think answer000000", "assistant: think", "user: assistant\nthink", "assistant: think")
        expected = ["think<|im_end|>", "<think>\n\n</think>\n\nthink<|im_end|>"]
        assert trained_texts(template, example) == expected

    def test_an_empty_answer_trains_the_stop_token(self) -> None:
        assert trained_texts(ChatTemplate(byte_tokenizer()), chat("user: x", "assistant: ")) == ["<|im_end|>"]

    def test_a_stop_token_inside_an_answer_does_not_end_it(self) -> None:
        example = chat("user: x", "assistant: a<|im_end|>b")
        assert trained_texts(ChatTemplate(byte_tokenizer()), example) == ["a<|im_end|>b<|im_end|>"]

    @pytest.mark.parametrize("text", ["héllo 😀👩\u200d🚀", " a", "你好", ""])
    @pytest.mark.parametrize(
        "tokenizer", [byte_tokenizer(), merging_tokenizer(CHATML), sentencepiece_tokenizer(CHATML)]
    )
    def test_the_pieces_hold_every_token(self, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
        template = ChatTemplate(tokenizer)
        example = chat(f"user: {text}", f"assistant: {text}")
        for max_length in (None, 9):
            encoded, pieces = template.encode(example, max_length), template.describe(example, max_length)
            assert sum(piece.tokens for piece in pieces) == len(encoded.input_ids)
            trained = sum(label != IGNORED_LABEL for label in encoded.labels)
            assert sum(piece.tokens for piece in pieces if piece.is_trained) == trained

    def test_tool_messages_pass_through(self) -> None:
        pieces = ChatTemplate(byte_tokenizer()).describe(chat("user: x", "tool: 42", "assistant: y"))
        assert "<|im_start|>tool\n42<|im_end|>" in "".join(piece for piece, _, _ in pieces)

    def test_all_of_a_plain_text_and_an_end(self) -> None:
        template = ChatTemplate(byte_tokenizer())
        encoded = template.encode(plain_text("héllo"))
        assert encoded.labels == encoded.input_ids
        assert encoded.input_ids[-1] == 260
        assert len(encoded.input_ids) == len("héllo".encode()) + 1
        assert template.encode(plain_text("x<|im_end|>")).input_ids[-2:] != (260, 260)

    def test_long_examples_are_cut_on_the_right_and_the_cut_is_counted(self) -> None:
        template = ChatTemplate(byte_tokenizer())
        whole = template.encode(chat("user: x", "assistant: abcdef"))
        cut = template.encode(chat("user: x", "assistant: abcdef"), max_length=len(whole.input_ids) - 4)
        assert cut == TokenizedExample(whole.input_ids[:-4], whole.labels[:-4], PLACE, tokens_cut=4)
        assert template.encode(chat("user: x", "assistant: abcdef"), max_length=10_000) == whole


class TestBos:
    @pytest.mark.parametrize("jinja", [templates.LLAMA3, templates.LLAMA2, templates.GEMMA])
    def test_one_bos_though_template_and_tokenizer_both_have_one(self, jinja: str) -> None:
        tokenizer = sentencepiece_tokenizer(jinja, adds_bos=True)
        template = ChatTemplate(tokenizer)
        prompt = template.encode_prompt(conversation("user: hi"))
        encoded = template.encode(chat("user: hi", "assistant: he"))
        assert prompt[0] == encoded.input_ids[0] == tokenizer.bos_token_id
        assert prompt.count(prompt[0]) == encoded.input_ids.count(prompt[0]) == 1
        assert template.contract()["bos_added_by"] == "template"

    def test_none_where_the_template_puts_none(self) -> None:
        tokenizer = sentencepiece_tokenizer(CHATML, adds_bos=True)
        template = ChatTemplate(tokenizer)
        assert tokenizer.bos_token_id not in template.encode_prompt(conversation("user: hi"))
        assert template.contract()["bos_added_by"] == "none"

    def test_a_plain_text_gets_the_tokenizers_own_once(self) -> None:
        tokenizer = sentencepiece_tokenizer(None, adds_bos=True)
        template = ChatTemplate(tokenizer)
        for text in ("he", "<s>he"):
            ids = template.encode(plain_text(text)).input_ids
            assert ids[0] == tokenizer.bos_token_id
            assert ids.count(ids[0]) == 1
        assert [piece for piece, _, _ in template.describe(plain_text("he"))] == ["<s>", "h", "e", "<|im_end|>"]

    def test_a_bos_that_opens_every_turn_is_left_alone(self) -> None:
        """The tokenizer of SmolLM2's GGUF has the turn opener as BOS, and one token for end, padding and stop."""
        tokenizer = byte_tokenizer(bos_token="<|im_start|>")
        tokenizer.pad_token = "<|im_end|>"
        template = ChatTemplate(tokenizer)
        encoded = template.encode(chat("user: hi", "assistant: ok"))
        assert encoded.input_ids.count(259) == 2
        assert encoded.input_ids[0] == 259
        assert encoded.labels.count(260) == 1
        assert template.pad_token_id == 260
        assert template.stop_token_ids == (260,)


class TestPlainTemplate:
    def test_a_base_model_gets_it_and_keeps_it(self, tmp_path: Path) -> None:
        tokenizer = byte_tokenizer(None, eos_token="</s>")
        template = ChatTemplate(tokenizer)
        example = chat("system: Be kind.", "user: hi", "assistant: hello", "user: bye", "assistant: ciao")
        text = "".join(piece for piece, _, _ in template.describe(example))
        assert text == "Be kind.\n\nUser: hi\nAssistant: hello</s>\nUser: bye\nAssistant: ciao</s>\n"
        assert trained_texts(template, example) == [" hello</s>", " ciao</s>"]
        assert (template.source, template.stop_token_ids) == ("plain", (258,))

        tokenizer.save_pretrained(tmp_path)
        again = ChatTemplate(AutoTokenizer.from_pretrained(tmp_path))
        assert (again.source, again.digest) == ("plain", template.digest)
        assert again.encode(example) == template.encode(example)

    def test_bos_in_front_where_the_tokenizer_puts_one(self) -> None:
        template = ChatTemplate(sentencepiece_tokenizer(None, adds_bos=True))
        assert "".join(p for p, _, _ in template.describe(chat("user: hi", "assistant: he"))).startswith(
            "<s>User: hi\n"
        )

    def test_the_space_before_the_answer_is_the_answers(self) -> None:
        """The prompt must not end in a space, or " He" would be another token in training than when serving."""
        template = ChatTemplate(merging_tokenizer(None))
        encoded = template.encode(chat("user: hi", "assistant: He"))
        prompt = template.encode_prompt(conversation("user: hi"))
        assert encoded.input_ids[: len(prompt)] == tuple(prompt)
        assert trained_texts(template, chat("user: hi", "assistant: He")) == [" He<|im_end|>"]
        assert len(encoded.input_ids) - len(prompt) == 3  # " He", stop, newline

    def test_without_an_end_token_no_answer_could_end(self) -> None:
        tokenizer = byte_tokenizer(None)
        tokenizer.eos_token = None
        with pytest.raises(TemplateError, match="end-of-sequence") as caught:
            ChatTemplate(tokenizer)
        assert caught.value.remedy


class TestPrompts:
    def test_it_ends_with_the_generation_prompt(self) -> None:
        tokenizer = byte_tokenizer()
        ids = ChatTemplate(tokenizer).encode_prompt(conversation("user: hi"))
        assert tokenizer.decode(ids) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"

    @pytest.mark.parametrize("content", ["\nHe", "\n\nHe", " He", "He", "  ", "\n", "", "😀", " 😀"])
    @pytest.mark.parametrize("jinja", [CHATML, CHATML.replace("\\n", " "), templates.CHATML_MARKED, None])
    def test_a_token_never_joins_prompt_and_answer(self, jinja: str | None, content: str) -> None:
        template = ChatTemplate(merging_tokenizer(jinja))
        messages = conversation("user: hi", f"assistant: {content}", "user: so", f"assistant: {content}")
        encoded = template.encode(Example(messages, PLACE))
        for turn in (1, 3):
            prompt = template.encode_prompt(messages[:turn])
            assert encoded.input_ids[: len(prompt)] == tuple(prompt)
            assert encoded.labels[len(prompt) - 1] == IGNORED_LABEL
            assert encoded.labels[len(prompt)] != IGNORED_LABEL
        assert "".join(p for p, _, _ in template.describe(Example(messages, PLACE))).count(content + "<|im_end|>") >= 2

    def test_what_is_tokenized_apart_gets_no_space_before_it(self) -> None:
        """A sentencepiece tokenizer puts a space before every text; the middle of one must not get it."""
        tokenizer = sentencepiece_tokenizer(
            CHATML.replace("\\n' + message", " ' + message").replace("assistant\\n", "assistant ")
        )
        template = ChatTemplate(tokenizer)
        example = chat("user: hi", "assistant:  He")  # "assistant" + " " + " He" would hold the token of two spaces
        encoded = template.encode(example)
        prompt = template.encode_prompt(example.messages[:1])
        assert encoded.input_ids[: len(prompt)] == tuple(prompt)
        answer = tokenizer.convert_ids_to_tokens(list(encoded.input_ids[len(prompt) : len(prompt) + 2]))
        assert answer == ["▁He", "<|im_end|>"]

    def test_it_says_where_a_generation_prompt_holds_more_than_the_answers_do(self) -> None:
        assert not ChatTemplate(byte_tokenizer(templates.OPENED_THINKING)).prompts_match_training
        assert ChatTemplate(byte_tokenizer(templates.QWEN3)).prompts_match_training
        assert not ChatTemplate(byte_tokenizer(templates.OPENED_THINKING)).contract()["prompts_match_training"]


class TestAnswers:
    @pytest.mark.parametrize(
        "jinja", [CHATML, templates.LLAMA2, templates.LLAMA3, templates.QWEN3, templates.TWO_STOPS, None]
    )
    def test_the_trained_tokens_read_back_as_the_content(self, jinja: str | None) -> None:
        template = ChatTemplate(byte_tokenizer(jinja, bos_token="<s>"))
        encoded = template.encode(chat("user: x", "assistant: héllo 你好 😀"))
        assert template.decode_answer([label for label in encoded.labels if label != IGNORED_LABEL]) == "héllo 你好 😀"

    def test_everything_after_the_first_stop_token_is_off(self) -> None:
        template = ChatTemplate(byte_tokenizer(eos_token="</s>"))
        assert template.stop_token_ids == (260, 258)  # what the template renders, then the tokenizer's own
        assert template.decode_answer([*_bytes("ab"), 260, *_bytes("c")]) == "ab"
        assert template.decode_answer([*_bytes("ab"), 258, *_bytes("c")]) == "ab"
        assert template.decode_answer([257, *_bytes("ab"), 256]) == "ab"
        assert template.decode_answer([]) == ""

    def test_an_empty_thought_is_not_part_of_the_answer_but_a_thought_is(self) -> None:
        template = ChatTemplate(byte_tokenizer(templates.QWEN3))
        assert template.decode_answer(_bytes("<think>\n\n</think>\n\n4")) == "4"
        assert template.decode_answer(_bytes("4")) == "4"
        assert template.decode_answer(_bytes("<think>\nhm\n</think>\n\n4")) == "<think>\nhm\n</think>\n\n4"

    def test_nothing_of_the_lead_can_be_shown_until_it_is_whole(self) -> None:
        template = ChatTemplate(byte_tokenizer(templates.QWEN3))
        answer = _bytes("<think>\n\n</think>\n\n4")
        assert [template.is_lead(answer[:n]) for n in range(len(answer) + 1)] == [True] * (len(answer) - 1) + [
            False
        ] * 2
        assert [template.is_lead(_bytes(text)) for text in ("4", "<", "<b", "<think>\nhm")] == [
            False,
            True,
            False,
            False,
        ]
        plain = ChatTemplate(byte_tokenizer(templates.LLAMA2, bos_token="<s>"))
        assert [plain.is_lead(_bytes(text)) for text in ("", " ", " a", "a")] == [True, False, False, False]

    def test_an_answer_ends_at_the_stop_token_of_an_earlier_turn_too(self) -> None:
        template = ChatTemplate(byte_tokenizer(templates.TWO_STOPS))
        assert template.stop_token_ids == (258, 260)  # </s> after the last answer, <|im_end|> after earlier ones
        assert template.decode_answer([*_bytes("ab"), 260, *_bytes("c")]) == "ab"
        example = chat("user: x", "assistant: a", "user: y", "assistant: b")
        trained = {label for label in template.encode(example).labels if label != IGNORED_LABEL}
        assert trained & {258, 260} == {258, 260}

    @pytest.mark.parametrize("jinja", [templates.OPEN_INNER_TURNS, templates.OPEN_INNER_TURNS_BY_ROLE])
    def test_the_opening_of_the_next_turn_is_never_taken_for_a_stop(self, jinja: str) -> None:
        template = ChatTemplate(byte_tokenizer(jinja, bos_token="<s>"))
        assert template.stop_token_ids == (260,)
        assert trained_texts(template, chat("user: x", "assistant: a")) == ["a\n<|im_end|>"]
        with pytest.raises(TemplateError, match="cannot be located") as caught:
            template.encode(chat("user: x", "assistant: a", "user: y", "assistant: b"))
        assert "does not end the answer" in str(caught.value.remedy)


class TestDate:
    def test_it_is_fixed_and_in_the_contract_where_the_template_names_it(self) -> None:
        example = chat("user: x", "assistant: a")
        old = ChatTemplate(byte_tokenizer(templates.DATED), date="2024-02-29")
        text = "".join(piece for piece, _, _ in old.describe(example))
        assert text.startswith("<|im_start|>system\nToday: 29 Feb 2024/2024-02-29<|im_end|>")
        assert (old.uses_date, old.date, old.contract()["date"]) == (True, "2024-02-29", "2024-02-29")
        new = ChatTemplate(byte_tokenizer(templates.DATED), date="2025-01-01")
        assert new.digest == old.digest
        assert new.encode_prompt(example.messages[:1]) != old.encode_prompt(example.messages[:1])
        again = ChatTemplate(byte_tokenizer(templates.DATED), date=old.contract()["date"])
        assert again.encode(example) == old.encode(example)

    def test_it_is_today_by_default_as_transformers_renders(self) -> None:
        tokenizer = byte_tokenizer(templates.DATED)
        theirs: Any = tokenizer.apply_chat_template(
            [{"role": "user", "content": "x"}], add_generation_prompt=True, return_dict=True
        )
        assert ChatTemplate(tokenizer).encode_prompt(conversation("user: x")) == theirs["input_ids"]

    def test_other_templates_have_none(self) -> None:
        template = ChatTemplate(byte_tokenizer(), date="2024-02-29")
        assert not template.uses_date
        assert "date" not in template.contract()

    @pytest.mark.parametrize("date", ["", "yesterday", "2024-02-30"])
    def test_what_is_no_date(self, date: str) -> None:
        with pytest.raises(TemplateError, match="is no date"):
            ChatTemplate(byte_tokenizer(), date=date)


class TestErrors:
    def test_the_templates_own_refusal_is_shown_with_the_rows_place(self) -> None:
        template = ChatTemplate(byte_tokenizer(templates.GEMMA, bos_token="<s>"))
        with pytest.raises(TemplateError, match="System role not supported") as caught:
            template.encode(chat("system: s", "user: u", "assistant: a"))
        assert caught.value.place == "train.jsonl:7"
        assert "first user message" in str(caught.value.remedy)
        with pytest.raises(TemplateError, match="must alternate") as caught:
            template.encode(chat("user: u", "user: u", "assistant: a"))
        assert "join neighbours" in str(caught.value.remedy)
        with pytest.raises(TemplateError, match="must alternate"):
            template.encode_prompt(conversation("user: u", "user: u"))

    @pytest.mark.parametrize(
        ("jinja", "message"),
        [
            ("{% for message in messages %}", "not valid Jinja"),
            ("{% for message in messages %}{{ message['content'] + '\\n' }}{% endfor %}", "no stop token"),
            ("{% for message in messages %}{{ message['role'] + '<|im_end|>' }}{% endfor %}", "does not render"),
            ("{{ messages[0]['name'].strip() }}", "refuses"),
        ],
    )
    def test_a_template_that_cannot_train(self, jinja: str, message: str) -> None:
        with pytest.raises(TemplateError, match=message) as caught:
            ChatTemplate(byte_tokenizer(jinja))
        assert caught.value.remedy

    def test_an_answer_that_the_template_changes_is_an_error_not_all_masked(self) -> None:
        jinja = CHATML.replace("message['content']", "message['content'].replace('b', 'c')")
        template = ChatTemplate(byte_tokenizer(jinja))
        with pytest.raises(TemplateError, match="cannot be located") as caught:
            template.encode(chat("user: x", "assistant: abc"))
        assert caught.value.place == "train.jsonl:7"
        assert template.encode_prompt(conversation("user: x", "assistant: abc", "user: y"))

    def test_nothing_to_learn(self) -> None:
        with pytest.raises(TemplateError, match="no assistant turn"):
            ChatTemplate(byte_tokenizer()).encode(chat("user: x"))
        tokenizer = byte_tokenizer()
        tokenizer.eos_token = None
        with pytest.raises(TemplateError, match="no token that could end a text"):
            ChatTemplate(tokenizer).encode(plain_text("x"))

    def test_a_slow_tokenizer(self) -> None:
        class Slow:
            is_fast = False

        with pytest.raises(TemplateError, match="Slow cannot say"):
            ChatTemplate(Slow())  # type: ignore[arg-type]

    def test_several_templates_of_which_none_is_the_default(self) -> None:
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = {"rag": CHATML, "tool_use": CHATML}
        with pytest.raises(TemplateError, match="several"):
            ChatTemplate(tokenizer)


class TestMany:
    def test_each_is_as_alone_and_a_bad_one_is_an_error_in_its_place(self) -> None:
        template = ChatTemplate(byte_tokenizer(templates.GEMMA, bos_token="<s>"))
        good = [chat("user: x", f"assistant: {n}") if n % 3 else plain_text(f"t{n}") for n in range(600)]
        bad = chat("system: s", "user: x", "assistant: a")
        results = template.encode_spans([*good[:300], bad, *good[300:]])
        failed = results.pop(300)
        assert isinstance(failed, TemplateError)
        assert "System role" in failed.message
        for example, result in zip(good, results, strict=True):
            assert not isinstance(result, TemplateError)
            alone = template.encode(example)
            labels = [IGNORED_LABEL] * len(alone.labels)
            for first, last in result.trained:
                labels[first:last] = result.tokens.ids[first:last]
            assert (result.tokens.ids, labels) == (list(alone.input_ids), list(alone.labels))
        assert template.encode_spans([]) == []


class TestContract:
    def test_it_says_what_must_be_alike(self) -> None:
        template = ChatTemplate(byte_tokenizer(templates.LLAMA3, bos_token="<s>", eos_token="</s>"))
        assert template.contract() == {
            "digest": template.digest,
            "source": "model",
            "stop_tokens": ["<|im_end|>", "</s>"],
            "stop_token_ids": [260, 258],
            "bos_token": "<s>",
            "prompts_begin_with_bos": True,
            "bos_added_by": "template",
            "prompts_match_training": True,
        }
        assert len(template.digest) == 64
        assert ChatTemplate(byte_tokenizer(CHATML)).digest != template.digest

    def test_padding_falls_back_to_the_end_token(self) -> None:
        tokenizer = byte_tokenizer(eos_token="</s>")
        assert ChatTemplate(tokenizer).pad_token_id == 256
        tokenizer.pad_token = None
        assert ChatTemplate(tokenizer).pad_token_id == 258

    def test_special_tokens_written_by_hand_are_found(self) -> None:
        special_token = ChatTemplate(byte_tokenizer()).special_token
        assert special_token.findall("a<|im_end|>b<|im_start|>c</s>") == ["<|im_end|>", "<|im_start|>", "</s>"]
        assert special_token.findall("a < b |im_end|> < s>") == []

    def test_a_role_that_is_rendered_to_nothing_is_noticed(self) -> None:
        with_system = byte_tokenizer()
        silent = byte_tokenizer(
            "{% for m in messages if m['role'] in ('user', 'assistant') %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
        )
        refusing = byte_tokenizer(
            "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
            "{{ m['content'] + '<|im_end|>' }}{% endfor %}"
        )
        found = [[ChatTemplate(one).renders(role) for role in ("system", "tool")] for one in (with_system, silent)]
        assert found == [[True, True], [False, False]]
        assert ChatTemplate(refusing).renders("tool")


def _bytes(text: str) -> list[int]:
    """Ids of the byte tokenizer."""
    ids: list[int] = byte_tokenizer()(text, add_special_tokens=False).input_ids
    return ids
