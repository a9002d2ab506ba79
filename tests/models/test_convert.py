from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file

from tests.models.tiny_gguf import TEMPLATE, tiny_weights, write_gguf
from tests.tiny import tiny_model
from tunesmith.errors import ModelError
from tunesmith.models import convert
from tunesmith.models.convert import convert_gguf
from tunesmith.models.folder import load_tokenizer
from tunesmith.models.loading import load_model

CPU = torch.device("cpu")


def _convert(tmp_path: Path, weights: dict[str, torch.Tensor], **options: Any) -> Path:
    folder = tmp_path / "converted"
    folder.mkdir()
    convert_gguf(write_gguf(tmp_path / "tiny.gguf", weights, **options), folder)
    return folder


def test_every_weight_comes_out_as_it_went_in(tmp_path: Path) -> None:
    weights = tiny_weights()
    stored = load_file(_convert(tmp_path, weights) / "model.safetensors")
    assert stored.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(stored[name], tensor), name


def test_the_converted_model_answers_as_the_original(tmp_path: Path) -> None:
    original = tiny_model("llama", tie_word_embeddings=False)
    converted = load_model(_convert(tmp_path, tiny_weights()), precision="fp32", device=CPU)
    input_ids_BT = torch.tensor([[1, 50, 260, 7]])
    with torch.no_grad():
        torch.testing.assert_close(converted(input_ids_BT).logits, original(input_ids_BT).logits)


def test_quantised_blocks_are_unpacked_without_a_second_rounding(tmp_path: Path) -> None:
    weights = tiny_weights()
    stored = load_file(_convert(tmp_path, weights, quantized="ffn_down") / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    q8 = gguf.GGMLQuantizationType.Q8_0
    unpacked = gguf.quants.dequantize(gguf.quants.quantize(weights[name].numpy(), q8), q8)
    assert stored[name].dtype == torch.float32
    assert torch.equal(stored[name], torch.from_numpy(unpacked))
    assert not torch.equal(stored[name], weights[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_that_fit_16_bits_are_stored_in_16_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = {name: tensor.to(dtype).float() for name, tensor in tiny_weights().items()}
    stored = load_file(_convert(tmp_path, weights) / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    assert torch.equal(stored["lm_head.weight"].float(), weights["lm_head.weight"])


def test_the_folder_says_nothing_of_quantisation_and_ends_at_the_end_token(tmp_path: Path) -> None:
    model = load_model(_convert(tmp_path, tiny_weights()), precision="fp32", device=CPU)
    assert not hasattr(model.config, "quantization_config")
    assert model.generation_config is not None
    assert model.generation_config.eos_token_id == 260
    assert model.config.pad_token_id == 256


def test_the_end_of_turn_ends_an_answer_too(tmp_path: Path) -> None:
    model = load_model(_convert(tmp_path, tiny_weights(), end_of_turn=258), precision="fp32", device=CPU)
    assert model.generation_config is not None
    assert model.generation_config.eos_token_id == [260, 258]


def test_tokenizer_keeps_template_and_special_tokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(_convert(tmp_path, tiny_weights()))
    assert tokenizer.chat_template == TEMPLATE
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|im_end|>", "<pad>", "<s>")
    assert tokenizer("the<|im_end|>")["input_ids"][-1] == 260


def test_digits_are_kept_apart_as_the_vocabulary_was_learned(tmp_path: Path) -> None:
    """SmolLM splits digits off first: no token holds two, and the blanks before a number stay one run."""
    tokenizer = load_tokenizer(_convert(tmp_path, tiny_weights()))
    assert tokenizer.tokenize("he  12") == ["he", "ĠĠ", "1", "2"]


def test_files_beside_the_gguf_have_no_say(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<s>", "chat_template": "foreign"}')
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    folder = _convert(tmp_path, tiny_weights())
    assert load_tokenizer(folder).chat_template == TEMPLATE
    assert load_model(folder, precision="fp32", device=CPU).config.model_type == "llama"


def test_conversion_shows_no_bar_of_others(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _convert(tmp_path, tiny_weights())
    shown = capfd.readouterr()
    assert "it/s" not in shown.err
    assert shown.out == ""


@pytest.mark.parametrize("kept", [0, 3, 30, 3000, -500])
def test_a_file_cut_short_is_named(tmp_path: Path, kept: int) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", tiny_weights())
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"not a GGUF|cut short") as raised:
        convert_gguf(file, tmp_path)
    assert raised.value.place == str(file)


def test_something_else_is_no_gguf(tmp_path: Path) -> None:
    file = tmp_path / "page.gguf"
    file.write_text("<html>404</html>")
    with pytest.raises(ModelError, match="is not a GGUF file"):
        convert_gguf(file, tmp_path)


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", tiny_weights(), architecture="whisperish")
    with pytest.raises(ModelError, match="architecture 'whisperish'") as raised:
        convert_gguf(file, tmp_path)
    assert raised.value.place == str(file)


def test_a_part_of_a_split_model_is_refused(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny-00001-of-00003.gguf", tiny_weights(), parts=3)
    with pytest.raises(ModelError, match="one part of a split model"):
        convert_gguf(file, tmp_path)


def test_a_missing_tensor_is_an_error_not_a_random_one(tmp_path: Path) -> None:
    weights = tiny_weights()
    del weights["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ModelError, match=r"lacks the tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        _convert(tmp_path, weights)


def test_a_lack_of_memory_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(convert, "_unpacked_model", fail)
    with pytest.raises(ModelError, match="there is not enough memory to convert the model"):
        _convert(tmp_path, tiny_weights())
