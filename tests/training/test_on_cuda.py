"""On CUDA: the fast path gives plain PEFT's gradients and trains in every precision. No GPU has run these yet."""

from copy import deepcopy
from typing import Any

import pytest
import torch

from tests.training.conftest import TrainerMaker, lora_model, make_examples
from tunesmith.adapters.fast_lora import use_fast_layers
from tunesmith.data.batching import collate
from tunesmith.models.backend import Precision
from tunesmith.training.loss import _loss_by_forward, summed_loss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def test_gradients_are_those_of_plain_peft() -> None:
    plain = lora_model(init_lora_weights=False).cuda()
    fast = deepcopy(plain)
    use_fast_layers(fast)
    batch = collate(make_examples(4), 0).to(torch.device("cuda"))
    theirs = gradients(plain, _loss_by_forward(plain, batch, None))
    ours = gradients(fast, summed_loss(fast, batch))
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_learns_in_every_precision(make_trainer: TrainerMaker, precision: Precision) -> None:
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this device has no bf16")
    trainer = make_trainer(
        make_examples(8),
        model=lora_model().cuda(),
        precision=precision,
        max_steps=30,
        learning_rate=1e-2,
        logging_steps=1,
    )
    trainer.train()
    losses = [row["loss"] for row in trainer._run.read_metrics() if "loss" in row]
    assert losses[-1] < losses[0]


def test_the_output_of_frozen_layers_is_kept_on_cuda_too(make_trainer: TrainerMaker) -> None:
    trainer = make_trainer(
        make_examples(8), model=lora_model(layers_to_transform=[1]).cuda(), num_train_epochs=3, learning_rate=1e-2
    )
    speedups = trainer.train().speedups
    assert ("Frozen layers", "computed once") in {line[:2] for line in speedups.lines}
