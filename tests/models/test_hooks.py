from collections.abc import Callable

import pytest
from torch import nn

from tunesmith.models.hooks import is_hooked


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
