"""Tiny random models of each family and a byte tokenizer: whole pipelines in a second, without a download."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "phi3")

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
"""Ids 256 to 260, after the 256 bytes."""

VOCABULARY_SIZE = 264

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_tokenizer(
    chat_template: str | None = CHATML, *, eos_token: str = "<|im_end|>", bos_token: str | None = None
) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the 256 bytes and `SPECIAL_TOKENS`; it adds no token of its own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token=eos_token, bos_token=bos_token
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_config(family: str, **changes: Any) -> Any:
    """The config of a two-layer model of `family` with a width of 32."""
    values: dict[str, Any] = {
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "bos_token_id": 257,
        "eos_token_id": 260,
        "pad_token_id": 256,
        "initializer_range": 0.1,
        **changes,
    }
    if family == "phi3":
        values.pop("head_dim")
    if family == "gemma2":
        values["query_pre_attn_scalar"] = 8
    return AutoConfig.for_model(family, **values)


def tiny_model(family: str = "llama", *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random float32 model of `family`, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_config(family, **changes), dtype=torch.float32)
    model.eval()
    return model


def tiny_model_folder(
    folder: Path, family: str = "llama", *, chat_template: str | None = CHATML, **changes: Any
) -> Path:
    """Writes a tiny model and the byte tokenizer to `folder`, as a user's local model would lie there."""
    tiny_model(family, **changes).save_pretrained(folder)
    byte_tokenizer(chat_template).save_pretrained(folder)
    return folder
