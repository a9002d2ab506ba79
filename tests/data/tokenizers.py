"""Small tokenizers that join characters as real ones do; the byte tokenizer of `tests.tiny` never does."""

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.normalizers import Prepend, Replace
from tokenizers.normalizers import Sequence as NormalizerSequence
from transformers import PreTrainedTokenizerFast

from tests.tiny import SPECIAL_TOKENS


def merging_tokenizer(chat_template: str | None, *, bos_token: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that joins newlines and spaces, and a space with a letter, as real ones do."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        ("Ċ", "Ċ"),
        ("Ġ", "Ġ"),
        ("Ġ", "Ċ"),
        ("Ġ", "H"),
        ("ĠH", "e"),
        ("H", "e"),
        ("ð", "Ł"),
        ("Ġ", "ðŁ"),
        ("æ", "ľ"),
    ]
    tokens = [*alphabet, *(left + right for left, right in merges)]
    inner = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.ByteLevel(trim_offsets=True)  # ranges without the space of " word", as GPT-2's
    return _wrapped(inner, chat_template, bos_token)


def sentencepiece_tokenizer(chat_template: str | None, *, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer in the manner of Llama 2 and Phi-3: a space before every text, and bytes."""
    pieces = [
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"abcdefghijklmnopqrstuvwxyzHAIST[/]:",
        "▁H",
        "He",
        "▁He",
        "▁▁",
    ]
    merges = [("▁", "H"), ("H", "e"), ("▁H", "e"), ("▁", "▁")]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    inner.normalizer = NormalizerSequence([Prepend("▁"), Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = _wrapped(inner, chat_template, "<s>", rstrip=True)
    if adds_bos:
        bos = ("<s>", tokenizer.convert_tokens_to_ids("<s>"))
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[bos])
        tokenizer = _wrapped(inner, chat_template, "<s>", rstrip=True)
    return tokenizer


def _wrapped(
    inner: Tokenizer, chat_template: str | None, bos_token: str | None, *, rstrip: bool = False
) -> PreTrainedTokenizerFast:
    inner.add_special_tokens(
        [AddedToken(t, special=True, normalized=False, rstrip=rstrip and t == "<|im_end|>") for t in SPECIAL_TOKENS]
    )
    untyped: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = untyped(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<|im_end|>", bos_token=bos_token
    )
    tokenizer.chat_template = chat_template
    return tokenizer
