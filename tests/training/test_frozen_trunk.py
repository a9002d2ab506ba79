"""Training on stored hidden states: the same losses and gradients, the same bytes after an interruption."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from tests.tiny import FAMILIES, tiny_model
from tests.training.conftest import make_examples
from tunesmith.adapters.targets import linear_modules
from tunesmith.data.batching import collate, lengths_of
from tunesmith.data.records import TokenizedExample
from tunesmith.like_lengths import batches_of_like_length
from tunesmith.models.label_head import label_head
from tunesmith.training import frozen_trunk as module
from tunesmith.training import trunk_layers
from tunesmith.training.accelerator import make_accelerator
from tunesmith.training.frozen_trunk import FrozenTrunk
from tunesmith.training.loss import summed_loss
from tunesmith.training.trunk_store import TrunkStore

MORE_FAMILIES = ("gemma", "gemma3_text", "mixtral")
EXAMPLES = make_examples(13)
TOKENS_AT_ONCE = 50


def adapted(family: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> PeftModel:
    """A tiny model of four layers with adapters on the upper two; neither of their factors is zero."""
    model = tiny_model(family, num_hidden_layers=4, **changes)
    if dtype != torch.float32:
        model.bfloat16()
    targets = {name.rpartition(".")[2] for name in linear_modules(model) if ".layers.2." in name}
    torch.manual_seed(0)
    lora = LoraConfig(
        r=4, task_type="CAUSAL_LM", target_modules=targets, layers_to_transform=[2, 3], layers_pattern="layers"
    )
    peft = get_peft_model(model, lora)
    for name, value in peft.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(value, std=0.1)
    label_head(peft)  # runs the whole model once, the first time
    return peft


def autocast_of(dtype: torch.dtype) -> Callable[[], Any]:
    if dtype == torch.float32:
        return contextlib.nullcontext
    return lambda: torch.autocast("cpu", dtype)


def prepared(
    model: nn.Module, folder: Path, examples: Sequence[TokenizedExample] = EXAMPLES, **changes: Any
) -> FrozenTrunk:
    trunk = answer(model, folder, {"train": examples}, **changes)
    assert isinstance(trunk, FrozenTrunk), trunk
    return trunk


def canonical_batches() -> list[list[int]]:
    """The batches that `prepared` fills the store in."""
    lengths = lengths_of(EXAMPLES)
    return batches_of_like_length(lengths, max_examples=len(lengths), max_tokens=TOKENS_AT_ONCE)


def answer(
    model: nn.Module, folder: Path, splits: dict[str, Sequence[TokenizedExample]], **changes: Any
) -> FrozenTrunk | str:
    settings: dict[str, Any] = {
        "fingerprint": {"weights": "a"},
        "pad_token_id": 0,
        "autocast": contextlib.nullcontext,
        "device": torch.device("cpu"),
        "limit_bytes": 10**9,
        "tokens_at_once": TOKENS_AT_ONCE,
        **changes,
    }
    return FrozenTrunk.prepare(model, splits, folder, **settings)


def loss_and_gradients(
    model: PeftModel,
    rows: Sequence[int],
    trunk: FrozenTrunk | None,
    autocast: Callable[[], Any] = contextlib.nullcontext,
    examples: Sequence[TokenizedExample] = EXAMPLES,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    batch = collate([examples[row] for row in rows], 0)
    length = batch.input_ids_BT.shape[1]
    model.train()
    model.zero_grad()
    with trunk.reading("train", rows, length) if trunk else contextlib.nullcontext(), autocast():
        loss = summed_loss(model, batch)
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    assert one
    for name, gradient in one.items():
        scale = gradient.abs().max().item()
        assert (gradient - other[name]).abs().max().item() <= tolerance * scale, name


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_losses_and_gradients_are_those_of_the_whole_model(tmp_path: Path, family: str) -> None:
    model = adapted(family)
    trunk = prepared(model, tmp_path)
    assert trunk.depth == 2
    for rows in ([0, 1, 2], [12, 3], [5]):
        loss, gradients = loss_and_gradients(model, rows, None)
        stored_loss, stored_gradients = loss_and_gradients(model, rows, trunk)
        assert stored_loss.item() == pytest.approx(loss.item(), rel=1e-5)
        assert_close(gradients, stored_gradients, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_in_the_batches_it_was_filled_with_they_are_equal(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    model, autocast = adapted(family, dtype), autocast_of(dtype)
    trunk = prepared(model, tmp_path, autocast=autocast)
    for rows in canonical_batches():
        loss, gradients = loss_and_gradients(model, rows, None, autocast)
        stored_loss, stored_gradients = loss_and_gradients(model, rows, trunk, autocast)
        assert torch.equal(loss, stored_loss)
        assert gradients
        assert all(torch.equal(stored_gradients[name], value) for name, value in gradients.items())


def test_bf16_is_kept_as_bf16(tmp_path: Path) -> None:
    trunk = prepared(adapted(dtype=torch.bfloat16), tmp_path, autocast=autocast_of(torch.bfloat16))
    assert trunk.byte_count == sum(lengths_of(EXAMPLES)) * 32 * 2
    assert (tmp_path / "train.hidden").stat().st_size == trunk.byte_count


def attention_counts(model: PeftModel) -> list[int]:
    counts = [0] * 4
    for number, layer in enumerate(model.get_base_model().model.layers):

        def count(_module: nn.Module, _inputs: object, number: int = number) -> None:
            counts[number] += 1

        layer.self_attn.register_forward_pre_hook(count)
    return counts


def test_the_frozen_layers_are_not_run_again(tmp_path: Path) -> None:
    model = adapted()
    trunk = prepared(model, tmp_path)
    counts = attention_counts(model)
    loss_and_gradients(model, [0, 1], trunk)
    assert counts == [0, 0, 1, 1]
    prepared(model, tmp_path)
    assert counts[2:] == [3, 3]  # the probe alone ran: nothing was to be filled
    loss_and_gradients(model, [0, 1], None)
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_activation_checkpointing_recomputes_the_upper_layers_alone(tmp_path: Path, family: str) -> None:
    model = adapted(family)
    trunk = prepared(model, tmp_path)
    loss, gradients = loss_and_gradients(model, [4, 9, 1], trunk)
    model.activation_checkpointing_enable({"use_reentrant": False})
    counts = attention_counts(model)
    again, recomputed = loss_and_gradients(model, [4, 9, 1], trunk)
    assert counts == [0, 0, 2, 2]
    assert torch.equal(loss, again)
    assert_close(gradients, recomputed, 1e-6)


def test_rows_come_in_the_order_of_the_batch(tmp_path: Path) -> None:
    model = adapted()
    trunk = prepared(model, tmp_path)
    for rows in ([7, 2, 2, 11], [11, 7, 2, 2]):
        loss, _ = loss_and_gradients(model, rows, trunk)
        alone = sum(loss_and_gradients(model, [row], None)[0].item() for row in rows)
        assert loss.item() == pytest.approx(alone, rel=1e-5)


def interrupt_after(count: int, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> list[int]:
    """Lets filling fail in its batch number `count`; gives how many examples were in each that was computed."""
    real = trunk_layers.trunk_output
    sizes: list[int] = []

    def output(stack: Any, depth: int, ids_BT: torch.Tensor, autocast: Any) -> Any:
        if len(sizes) == count:
            raise error
        sizes.append(len(ids_BT))
        return real(stack, depth, ids_BT, autocast)

    monkeypatch.setattr(module, "trunk_output", output)
    return sizes


def test_an_interrupted_fill_goes_on_and_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(adapted(), tmp_path / "whole")
    count = len(canonical_batches())
    with monkeypatch.context() as patch:
        interrupt_after(2, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            prepared(adapted(), tmp_path / "parts")
    sizes = interrupt_after(-1, monkeypatch, AssertionError())
    trunk = prepared(adapted(), tmp_path / "parts")
    assert len(sizes) == count - 2 > 1
    assert (tmp_path / "parts/train.hidden").read_bytes() == (tmp_path / "whole/train.hidden").read_bytes()
    model = adapted()
    loss, _ = loss_and_gradients(model, [0, 12], trunk)
    assert loss.item() == pytest.approx(loss_and_gradients(model, [0, 12], None)[0].item(), rel=1e-5)


def test_what_is_done_is_made_lasting_along_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMMIT_BYTES", 1)
    committed: list[int] = []
    real = TrunkStore.commit

    def commit(store: TrunkStore, done: int) -> None:
        committed.append(done)
        real(store, done)

    monkeypatch.setattr(TrunkStore, "commit", commit)
    prepared(adapted(), tmp_path)
    count = len(canonical_batches())
    assert committed == [*range(1, count + 1), count]


def test_memory_that_runs_out_halves_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = trunk_layers.trunk_output
    sizes: list[int] = []

    def output(stack: Any, depth: int, ids_BT: torch.Tensor, autocast: Any) -> Any:
        sizes.append(len(ids_BT))
        if len(ids_BT) > 1:
            raise MemoryError
        return real(stack, depth, ids_BT, autocast)

    monkeypatch.setattr(module, "trunk_output", output)
    model = adapted()
    trunk = prepared(model, tmp_path)
    assert max(sizes) > 1
    assert sizes.count(1) == len(EXAMPLES)
    loss, _ = loss_and_gradients(model, [0, 12], trunk)
    assert loss.item() == pytest.approx(loss_and_gradients(model, [0, 12], None)[0].item(), rel=1e-5)


@pytest.mark.parametrize(
    "change", [{"fingerprint": {"weights": "b"}}, {"tokens_at_once": TOKENS_AT_ONCE + 30}], ids=["weights", "batches"]
)
def test_a_store_of_others_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    prepared(adapted(), tmp_path)
    sizes = interrupt_after(-1, monkeypatch, AssertionError())
    prepared(adapted(), tmp_path)
    assert not sizes
    other = adapted(seed=1)
    prepared(other, tmp_path, **change)
    assert sum(sizes) == len(EXAMPLES)


def test_a_cut_file_is_made_anew(tmp_path: Path) -> None:
    prepared(adapted(), tmp_path).close()
    whole = (tmp_path / "train.hidden").read_bytes()
    (tmp_path / "train.hidden").write_bytes(whole[:-4])
    prepared(adapted(), tmp_path)
    assert (tmp_path / "train.hidden").read_bytes() == whole


def test_reasons_are_told_in_words_and_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "trunk"
    prepared(adapted(), folder)
    splits: dict[str, Sequence[TokenizedExample]] = {"train": EXAMPLES}
    assert "more than the" in str(answer(adapted(), folder, splits, limit_bytes=100))
    assert not folder.exists()
    assert "dropout" in str(answer(adapted(attention_dropout=0.1), folder, splits))
    assert answer(adapted(), folder, {"train": []}) == "there is no example"
    monkeypatch.setattr(module, "RESERVE_BYTES", 1 << 60)
    assert "are kept for the rest of the run" in str(answer(adapted(), folder, splits))
    assert not folder.exists()


def test_a_complete_store_needs_no_more_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = prepared(adapted(), tmp_path)
    monkeypatch.setattr(module, "RESERVE_BYTES", 1 << 60)
    assert prepared(adapted(), tmp_path).byte_count == made.byte_count > 0


def test_a_disk_that_fills_up_is_a_reason_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tunesmith.training.trunk_store.sync", full)
    reason = answer(adapted(), tmp_path / "trunk", {"train": EXAMPLES})
    assert reason == "what the frozen layers give could not be written: cannot write: the disk is full"
    assert not (tmp_path / "trunk").exists()


def test_each_split_has_its_own_states(tmp_path: Path) -> None:
    model, validation = adapted(), make_examples(5, seed=1)
    trunk = answer(model, tmp_path / "trunk", {"train": EXAMPLES, "validation": validation, "more": []})
    assert isinstance(trunk, FrozenTrunk)
    batch = collate(validation[:3], 0)
    model.eval()
    with torch.no_grad():
        whole = summed_loss(model, batch)
        with trunk.reading("validation", [0, 1, 2], batch.input_ids_BT.shape[1]):
            stored = summed_loss(model, batch)
    assert stored.item() == pytest.approx(whole.item(), rel=1e-5)
    trunk.remove()
    assert not (tmp_path / "trunk").exists()


def test_filling_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = adapted()
    model.train()
    prepared(model, tmp_path)
    assert model.training
    assert all(part.training for part in model.modules())
    layers = model.get_base_model().model.layers
    assert not any("forward" in layer.__dict__ or layer._forward_hooks for layer in layers)


def train(model: PeftModel, trunk: FrozenTrunk, steps: range, state: dict[str, Any] | None = None) -> dict[str, Any]:
    """Some steps of AdamW on batches of the step's number; gives the optimizer's state."""
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    if state is not None:
        optimizer.load_state_dict(state)
    for step in steps:
        rows = [(3 * step + offset) % len(EXAMPLES) for offset in range(4)]
        loss_and_gradients(model, rows, trunk)
        optimizer.step()
    return optimizer.state_dict()


def test_a_run_that_was_stopped_in_filling_and_in_training_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = adapted()
    train(whole, prepared(whole, tmp_path / "whole"), range(6))
    with monkeypatch.context() as patch:
        interrupt_after(1, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            prepared(adapted(), tmp_path / "parts")
    first = adapted()
    state = train(first, prepared(first, tmp_path / "parts"), range(3))
    second = adapted()
    second.load_state_dict(first.state_dict())
    train(second, prepared(second, tmp_path / "parts"), range(3, 6), state)
    weights = second.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_works_on_a_model_that_accelerate_has_wrapped(tmp_path: Path, precision: str) -> None:
    accelerator = make_accelerator(precision)
    model = accelerator.prepare_model(adapted(dtype=torch.float32 if precision == "fp32" else torch.bfloat16))
    trunk = prepared(model, tmp_path, autocast=accelerator.autocast, device=accelerator.device)
    for rows in canonical_batches():
        loss, gradients = loss_and_gradients(model, rows, None)
        stored_loss, stored_gradients = loss_and_gradients(model, rows, trunk)
        assert torch.equal(loss, stored_loss)
        assert all(torch.equal(stored_gradients[name], value) for name, value in gradients.items())


def test_it_is_filled_without_gradients_and_in_evaluation_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = trunk_layers.trunk_output
    modes: set[tuple[bool, bool]] = set()

    def output(stack: Any, depth: int, ids_BT: torch.Tensor, autocast: Any) -> Any:
        modes.add((stack.decoder.training, torch.is_grad_enabled()))
        return real(stack, depth, ids_BT, autocast)

    monkeypatch.setattr(module, "trunk_output", output)
    model = adapted()
    model.train()
    prepared(model, tmp_path)
    assert modes == {(False, False)}
