"""The head apart from its model, for every family; and the models that are left to their own forward."""

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM

from tests.models.test_label_head import _small_chunks, random, relative_error  # noqa: F401  # fixtures
from tests.tiny import FAMILIES, VOCABULARY_SIZE, tiny_model
from tunesmith.models import label_head as module
from tunesmith.models.label_head import LogitRule, label_head

pytestmark = pytest.mark.usefixtures("one_thread")

LOGIT_CHANGERS: dict[str, dict[str, Any]] = {
    "gemma2": {"final_logit_softcapping": 3.0},
    "gemma3_text": {"final_logit_softcapping": 2.0},
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 3.0},
    "gpt2": {},
}

IDS_BT = torch.randint(0, 256, (2, 21), generator=torch.Generator().manual_seed(0))


def any_model(family: str, **changes: Any) -> Any:
    if family != "gpt2":
        return tiny_model(family, **changes)
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=2, n_head=4, vocab_size=VOCABULARY_SIZE, n_positions=64)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def with_lora(model: Any, **values: Any) -> PeftModel:
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(**{"target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **values}))
    with torch.no_grad():
        for number, parameter in enumerate(adapted.parameters()):
            if parameter.requires_grad:
                parameter.add_(random(*parameter.shape, seed=number, scale=0.1))
    return adapted


def loss_and_gradients(model: Any, *, by_head: bool) -> dict[str, Tensor]:
    """The summed loss of `IDS_BT` by `label_head` or by all of the model's logits, and the gradients by their names."""
    model.zero_grad()
    targets_N = IDS_BT[:, 1:].flatten()
    if by_head:
        head = label_head(model)
        assert head is not None
        loss = head.summed_loss(head.hidden(IDS_BT)[:, :-1].flatten(0, 1), targets_N)
    else:
        logits_BTV = model(input_ids=IDS_BT, use_cache=False).logits
        loss = cross_entropy(logits_BTV[:, :-1].flatten(0, 1).double(), targets_N, reduction="sum")
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


def assert_agrees(model: Any) -> dict[str, Tensor]:
    ours, theirs = (loss_and_gradients(model, by_head=by_head) for by_head in (True, False))
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert relative_error(ours[name], theirs[name].double()) < 1e-4, name
    assert relative_error(ours["loss"], theirs["loss"]) < 1e-6
    return ours


@pytest.mark.parametrize("family", sorted({*FAMILIES, *LOGIT_CHANGERS}))
def test_every_family_has_the_loss_of_its_own_logits(family: str) -> None:
    model = any_model(family, **LOGIT_CHANGERS.get(family, {}))
    if family not in FAMILIES and family != "gpt2":
        assert LogitRule.of(model.config) != LogitRule()
    model.get_output_embeddings().weight.requires_grad_(False)
    assert len(assert_agrees(model)) > 10


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("settings", "trained", "frozen_linear"),
    [
        ({}, "q_proj", True),
        ({"modules_to_save": ["lm_head"]}, "lm_head.modules_to_save", False),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head.lora_B", False),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "lora_embedding_A", True),
        ({"trainable_token_indices": [5, 7]}, "token_adapter.trainable_tokens_delta", True),
        ({"target_modules": ["q_proj"], "use_dora": True}, "lora_magnitude_vector", True),
    ],
    ids=["frozen", "modules_to_save", "LoRA on the head", "LoRA on the embeddings", "tokens", "DoRA"],
)
def test_adapters_and_heads_that_train(
    settings: dict[str, Any], trained: str, frozen_linear: bool, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tied and "modules_to_save" in settings:
        pytest.skip("PEFT asks for the embeddings to be saved too")
    model = with_lora(tiny_model(tie_word_embeddings=tied), **settings)
    chunks: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        chunks.append(len(args[1]))
        return checkpoint(*args, **kwargs)

    monkeypatch.setattr(module, "checkpoint", counted)
    gradients = assert_agrees(model)
    assert any(trained in name for name in gradients)
    by_chunks = not frozen_linear or (tied and "trainable_token_indices" in settings)
    assert chunks == ([16, 16, 8] if by_chunks else [])


def test_a_full_head_that_trains() -> None:
    model = tiny_model().requires_grad_(False)
    model.get_output_embeddings().weight.requires_grad_(True)
    assert set(assert_agrees(model)) == {"loss", "lm_head.weight"}


def doubled(_module: nn.Module, _inputs: Any, output: Any) -> Any:
    output.logits = output.logits * 2
    return output


def test_a_model_that_does_something_else_to_its_logits_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    hooked = tiny_model()
    hooked.register_forward_hook(doubled)
    assert label_head(hooked) is None
    around = with_lora(tiny_model())
    around.register_forward_hook(doubled)
    assert label_head(around) is None, "a hook on PEFT's model"
    patched: Any = tiny_model()
    forward = patched.forward
    monkeypatch.setattr(patched, "forward", lambda *args, **kwargs: doubled(patched, (), forward(*args, **kwargs)))
    assert label_head(patched) is None
    capped: Any = tiny_model("gemma2", final_logit_softcapping=3.0)
    monkeypatch.setattr(LogitRule, "of", lambda _config: LogitRule())
    assert label_head(capped) is None


@pytest.mark.parametrize("way", ["hook", "pre-hook", "forward"])
def test_what_is_hooked_to_the_head_itself_is_heeded(way: str) -> None:
    """The model and the probe both call the head; the function for frozen heads must not pass the hook over."""
    model: Any = tiny_model()
    head = model.get_output_embeddings().requires_grad_(False)
    if way == "hook":
        head.register_forward_hook(lambda _module, _inputs, output: output * 2)
    elif way == "pre-hook":
        head.register_forward_pre_hook(lambda _module, inputs: (inputs[0] * 2,))
    else:
        head.forward = lambda x, inner=head.forward: inner(x) * 2
    assert label_head(model) is not None
    assert_agrees(model)


def test_models_without_a_decoder_and_a_head_apart_are_left_alone() -> None:
    headless: Any = tiny_model()
    headless.get_output_embeddings = lambda: None
    assert label_head(nn.Linear(2, 2)) is None
    assert label_head(headless) is None
    prompted = get_peft_model(tiny_model(), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    assert label_head(prompted) is None
    assert label_head(with_lora(tiny_model(), alora_invocation_tokens=[5])) is None
    for error in (TypeError, AttributeError, ValueError, RuntimeError):
        other: Any = tiny_model()

        def refuse(error: type[Exception] = error, **_inputs: Any) -> None:
            raise error("called otherwise")

        other.model.forward = refuse
        assert label_head(other) is None
    scarce: Any = tiny_model()

    def no_memory(**_inputs: Any) -> None:
        raise torch.OutOfMemoryError("none left")

    scarce.model.forward = no_memory
    with pytest.raises(torch.OutOfMemoryError):
        label_head(scarce)


def test_a_decoder_that_gives_no_last_hidden_state_is_left_alone() -> None:
    model: Any = tiny_model()
    model.model.forward = lambda **_inputs: SimpleNamespace()
    assert label_head(model) is None


def test_a_model_is_tried_once_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_model()
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    assert label_head(model) is not None
    assert label_head(model) is not None
    assert len(calls) == 1
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_trying_a_model_leaves_it_and_the_random_numbers_as_they_were() -> None:
    model = with_lora(tiny_model(), lora_dropout=0.5).train()
    model.get_base_model().lm_head.eval()
    modes = [part.training for part in model.modules()]
    state = torch.get_rng_state()
    assert label_head(model) is not None
    assert [part.training for part in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
