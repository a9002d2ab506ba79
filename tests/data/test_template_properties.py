"""What holds for any conversation, with a dozen tokenizers and templates, and with the default model's."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from tests.data import templates
from tests.data.chats import PLACE, trained_texts
from tests.data.tokenizers import merging_tokenizer, sentencepiece_tokenizer
from tests.tiny import CHATML, SPECIAL_TOKENS
from tunesmith.data.records import IGNORED_LABEL, Example, Message
from tunesmith.data.template import ChatTemplate
from tunesmith.models.folder import load_tokenizer

# Characters at which encoders break: white space, parts of tokens, several bytes, joined emoji.
_any_text = st.text(st.sampled_from(list(" \n\tHeab:/<|>[]é你好😀👩\u200d")), max_size=12) | st.text(
    st.characters(max_codepoint=0x1FFFF, exclude_categories=("Cs", "Cc", "Cn", "Co")), max_size=8
)
_content = _any_text.filter(lambda text: not any(token in text for token in (*SPECIAL_TOKENS, "</think>")))
_turns = st.lists(st.tuples(_content, _content), min_size=1, max_size=3)
_TOKENIZERS: dict[str, PreTrainedTokenizerBase] = {
    "chatml": merging_tokenizer(CHATML),
    "marked": merging_tokenizer(templates.CHATML_MARKED),
    "marked without stop": merging_tokenizer(templates.CHATML_MARKED_WITHOUT_STOP),
    "marked with header": merging_tokenizer(templates.CHATML_MARKED_WITH_HEADER),
    "llama 3": merging_tokenizer(templates.LLAMA3, bos_token="<s>"),
    "llama 2": merging_tokenizer(templates.LLAMA2, bos_token="<s>"),
    "gemma": merging_tokenizer(templates.GEMMA, bos_token="<s>"),
    "qwen 3": merging_tokenizer(templates.QWEN3),
    "plain": merging_tokenizer(None),
    "sentencepiece chatml": sentencepiece_tokenizer(CHATML),
    "sentencepiece llama 2": sentencepiece_tokenizer(templates.LLAMA2, adds_bos=True),
    "sentencepiece plain": sentencepiece_tokenizer(None, adds_bos=True),
}
_TEMPLATES = {name: ChatTemplate(tokenizer) for name, tokenizer in _TOKENIZERS.items()}


@pytest.mark.parametrize("name", _TEMPLATES)
@given(turns=_turns)
def test_training_matches_serving_for_any_content(name: str, turns: Sequence[tuple[str, str]]) -> None:
    _check_invariants(_TEMPLATES[name], _TOKENIZERS[name], turns)


def _check_invariants(
    template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]]
) -> None:
    messages = [Message(role, text) for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)]
    example = Example(tuple(messages), PLACE)
    encoded = template.encode(example)
    stop = template.stop_token_ids[0]
    stop_token = str(tokenizer.convert_ids_to_tokens(stop))

    prompt = template.encode_prompt(messages[:-1])
    assert encoded.input_ids[: len(prompt)] == tuple(prompt)
    assert encoded.labels.count(stop) == len(turns)
    assert encoded.input_ids[:2] != (tokenizer.bos_token_id,) * 2
    runs = trained_texts(template, example)
    assert len(runs) == len(turns)
    for run, (_, answer) in zip(runs, turns, strict=True):
        trained = run.rstrip()  # a stop token may take the white space after it in
        assert trained.endswith(stop_token)
        assert trained.removesuffix(stop_token).removeprefix("<think>\n\n</think>").strip() == answer.strip()

    last = [label for label in encoded.labels[len(prompt) :] if label != IGNORED_LABEL]
    assert template.decode_answer(last).strip() == turns[-1][1].strip()
    whole = "".join(piece for piece, _, _ in template.describe(example))
    assert "".join(str(tokenizer.decode(list(encoded.input_ids))).split()) == "".join(whole.split())


@pytest.mark.network
@given(turns=_turns)
def test_the_real_tokenizer_keeps_the_same_promises(
    real_template: tuple[ChatTemplate, PreTrainedTokenizerBase], turns: Sequence[tuple[str, str]]
) -> None:
    _check_invariants(*real_template, turns)


@pytest.fixture(scope="module")
def real_template(smollm2_folder: Path) -> tuple[ChatTemplate, PreTrainedTokenizerBase]:
    """The default model's tokenizer."""
    tokenizer = load_tokenizer(smollm2_folder)
    return ChatTemplate(tokenizer), tokenizer
