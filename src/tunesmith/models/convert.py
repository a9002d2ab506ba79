"""A GGUF file to a model folder: config.json, safetensors and tokenizer files.

transformers reads the GGUF and unpacks its blocks; what it leaves undone is done here. It splits text by the rules of
GPT-2 when it does not know the file's pre-tokenizer, which is wrong for vocabularies that keep digits apart.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.errors import ModelError, disk_errors
from tunesmith.models.backend import is_out_of_memory, release_memory
from tunesmith.models.folder import first_line, quiet_transformers
from tunesmith.models.loading import memory_errors
from tunesmith.progress import task

DIGIT_SPLITTING_PRE_TOKENIZERS = frozenset(
    {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
)
"""Values of tokenizer.ggml.pre for which llama.cpp takes every digit alone before it splits as GPT-2 does."""

MAX_SHARD_SIZE = "5GB"


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of itself.

    Args:
        architecture: llama.cpp's name of the kind of model, as "llama".
        pre_tokenizer: how the text is split before merges, as "smollm"; empty where it is not said.
        end_token_ids: the end of text and the end of a turn, where the file names them.
    """

    architecture: str
    pre_tokenizer: str
    end_token_ids: tuple[int, ...]


def convert_gguf(gguf_file: Path, folder: Path) -> None:
    """Writes the model and tokenizer of a GGUF file to `folder`, which must exist.

    Quantised blocks are unpacked, and stored in the smallest of bfloat16, float16 and float32 that holds every value
    exactly; for 4-bit blocks that is float32, because each value is a product of two 16-bit numbers or their sum.

    Raises:
        ModelError: the file is no GGUF, is cut short, is a part of a split model, or holds a model that transformers
            cannot read as a causal language model, or memory does not suffice.
        DiskError: the folder cannot be written.
    """
    lack = memory_errors("convert the model", place=str(gguf_file))
    with task(f"Converting {gguf_file.name}", total=4, unit="steps") as watched, _quiet(), lack:
        header = read_header(gguf_file)
        watched.advance(note="tokenizer")
        with _alone(gguf_file) as (source, name), _explained(gguf_file, header):
            tokenizer = AutoTokenizer.from_pretrained(
                source, gguf_file=name, local_files_only=True, trust_remote_code=False
            )
            watched.advance(note="weights")
            model = _unpacked_model(source, name)
        watched.advance(note="writing")
        _split_digits_if_trained_so(tokenizer, header)
        _set_end_tokens(model, header)
        with disk_errors(folder):
            model.to(_smallest_exact_dtype(model))
            model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
            tokenizer.save_pretrained(folder)
        watched.advance()
        del model
        release_memory()


@contextmanager
def _explained(gguf_file: Path, header: GgufHeader) -> Iterator[None]:
    """Names the file where an unknown architecture or odd metadata makes transformers raise, whatever it raises."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"transformers {transformers.__version__} cannot read this GGUF model "
            f"(architecture '{header.architecture}'): {first_line(error)}",
            place=str(gguf_file),
            remedy="use the model's safetensors folder or hub id instead, or upgrade transformers",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """As `quiet_transformers`; the bar of its GGUF reader heeds no switch, so it is swapped for the items alone."""
    reader: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    bar = getattr(reader, "tqdm", None)
    try:
        reader.tqdm = lambda items, **_: items
        with quiet_transformers():
            yield
    finally:
        reader.tqdm = bar


def read_header(gguf_file: Path) -> GgufHeader:
    """Reads and checks the header; every tensor must lie within the file.

    Raises:
        ModelError: the file cannot be read, is no GGUF, is cut short or is a part of a split model.
    """
    try:
        with gguf_file.open("rb") as opened:
            magic = opened.read(4)
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", place=str(gguf_file)) from None
    if magic != b"GGUF":
        raise ModelError("is not a GGUF file", place=str(gguf_file), remedy="fetch the file again")
    try:
        fields = gguf.GGUFReader(gguf_file).fields
        values = {key: _scalar(fields[key]) for key in fields if "tokens" not in key and "merges" not in key}
        architecture = str(values["general.architecture"])
    except (ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
        raise ModelError(
            f"is corrupt or cut short: {first_line(error)}", place=str(gguf_file), remedy="fetch the file again"
        ) from None
    if int(values.get("split.count") or 1) > 1:
        raise ModelError(
            "is one part of a split model",
            place=str(gguf_file),
            remedy="join the parts first: llama-gguf-split --merge FIRST_PART JOINED.gguf",
        )
    ends = (values.get("tokenizer.ggml.eos_token_id"), values.get("tokenizer.ggml.eot_token_id"))
    return GgufHeader(
        architecture=architecture,
        pre_tokenizer=str(values.get("tokenizer.ggml.pre") or ""),
        end_token_ids=tuple(dict.fromkeys(int(token) for token in ends if token is not None)),
    )


def _scalar(field: Any) -> Any:
    """The value of a header field; None for an array."""
    return None if field.types[:1] in ([], [gguf.GGUFValueType.ARRAY]) else field.contents()


@contextmanager
def _alone(gguf_file: Path) -> Iterator[tuple[Path, str]]:
    """A folder that shows only the GGUF file, by a name of ours; files beside it would be read as the model's own."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as made:
        link = Path(made) / "model.gguf"
        try:
            link.symlink_to(gguf_file.resolve())
        except OSError:  # Windows without the right to make links
            os.link(gguf_file.resolve(), link)
        yield link.parent, link.name


def _unpacked_model(source: Path, name: str) -> Any:
    """The model with dense float32 weights, free of the marks that keep transformers from saving it."""
    options: dict[str, Any] = {}
    # Newer transformers keeps the weights in their blocks unless told to unpack them; older ones always unpack.
    gguf_config: Any = getattr(transformers, "GgufConfig", None)
    if gguf_config is not None:
        options["quantization_config"] = gguf_config(dequantize=True)
    auto_class: Any = AutoModelForCausalLM
    model, loaded = auto_class.from_pretrained(
        source,
        gguf_file=name,
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
        **options,
    )
    if loaded["missing_keys"]:
        raise ValueError(f"it lacks the tensor {min(loaded['missing_keys'])}")
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    return model


def _split_digits_if_trained_so(tokenizer: PreTrainedTokenizerBase, header: GgufHeader) -> None:
    if header.pre_tokenizer in DIGIT_SPLITTING_PRE_TOKENIZERS:
        backend: Any = tokenizer.backend_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )


def _set_end_tokens(model: PreTrainedModel, header: GgufHeader) -> None:
    """A GGUF has no generation_config; without the end of turn in it, stock `generate` would run on."""
    ends = header.end_token_ids
    generation: Any = model.generation_config
    if ends and generation is not None:
        generation.eos_token_id = ends[0] if len(ends) == 1 else list(ends)


def _smallest_exact_dtype(model: PreTrainedModel) -> torch.dtype:
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(tensor.to(dtype).to(tensor.dtype), tensor) for tensor in model.state_dict().values()):
            return dtype
    return torch.float32
