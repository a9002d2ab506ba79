from collections.abc import Callable
from contextlib import suppress

import pytest
from torch import nn

from tunesmith.models.modules import evaluation_mode, is_hooked


@pytest.mark.parametrize(
    "register",
    [
        nn.Module.register_forward_hook,
        nn.Module.register_forward_pre_hook,
        nn.Module.register_full_backward_hook,
        nn.Module.register_full_backward_pre_hook,
    ],
)
def test_a_hook_counts_as_long_as_it_is_there(register: Callable[..., object]) -> None:
    module = nn.Linear(2, 2)
    handle = register(module, lambda *_: None)
    assert is_hooked(module)
    handle.remove()  # type: ignore[attr-defined]
    assert not is_hooked(module)


def test_a_forward_on_the_instance_counts_and_that_of_the_class_does_not() -> None:
    module = nn.Linear(2, 2)
    assert not is_hooked(module)
    module.forward = module.forward  # type: ignore[method-assign]
    assert is_hooked(module)


@pytest.mark.parametrize("fails", [False, True])
def test_after_evaluation_every_part_is_in_the_mode_it_was_in(fails: bool) -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Linear(2, 2)))
    model[1].eval()
    before = [module.training for module in model.modules()]
    with suppress(KeyError), evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        if fails:
            raise KeyError
    assert [module.training for module in model.modules()] == before == [True, True, False, False, False]
