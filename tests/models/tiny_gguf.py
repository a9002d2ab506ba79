"""Writes a tiny Llama as a GGUF file, the way llama.cpp's converter does."""

from pathlib import Path

import gguf
import numpy
import torch

from tests.tiny import SPECIAL_TOKENS, VOCABULARY_SIZE, byte_tokenizer, tiny_model

MERGES = ("Ġ Ġ", "h e", "1 2")
TEMPLATE = "{% for message in messages %}{{ message['content'] + '<|im_end|>' }}{% endfor %}"

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def tiny_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """The float32 weights of a tiny untied Llama, under transformers' names."""
    return dict(tiny_model("llama", seed=seed, tie_word_embeddings=False).state_dict())


def write_gguf(
    file: Path,
    weights: dict[str, torch.Tensor],
    *,
    quantized: str | None = None,
    architecture: str = "llama",
    end_of_turn: int | None = None,
    parts: int | None = None,
) -> Path:
    """Writes `weights` to `file`.

    Args:
        file: the file to make.
        weights: as `tiny_weights` gives them.
        quantized: part of a tensor's GGUF name; those are stored in 8-bit blocks.
        architecture: what the header says.
        end_of_turn: a token id that ends a turn, beside the end of text (260).
        parts: how many files the model says to consist of.
    """
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCABULARY_SIZE)
    _add_tokenizer(writer)
    if end_of_turn is not None:
        writer.add_eot_token_id(end_of_turn)
    if parts is not None:
        writer.add_uint16("split.count", parts)
    for name, tensor in weights.items():
        stored = _gguf_name(name)
        values = _as_llama_cpp(name, tensor).numpy()
        if quantized is not None and quantized in stored:
            blocks = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(stored, blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(stored, numpy.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    vocabulary = byte_tokenizer().get_vocab()
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    tokens += [merge.replace(" ", "") for merge in MERGES]
    kinds = [3 if token in SPECIAL_TOKENS else 1 for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(260)
    writer.add_pad_token_id(256)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def _gguf_name(name: str) -> str:
    top = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"}
    if name in top:
        return f"{top[name]}.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_NAMES[rest.removesuffix('.weight')]}.weight"


def _as_llama_cpp(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """llama.cpp keeps the two halves of each rotary pair side by side, so rows of q and k are reordered."""
    heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    rows, width = tensor.shape
    return tensor.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width).contiguous()
