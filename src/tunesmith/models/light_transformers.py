"""The parts of transformers for configs and tokenizers, imported without torch, which takes seconds and much memory.

One module that these parts need, `transformers.modeling_rope_utils`, imports torch at its top, yet uses it only when a
model runs. It is imported here first, with a stand-in for torch. The first use of the stand-in imports torch and puts
it in the stand-in's place, so that models work as ever. Where torch is imported already, nothing is done.
"""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

# All of transformers that the module below needs; what is imported here must not see the stand-in.
from transformers.utils import logging

ROPE_MODULE = "transformers.modeling_rope_utils"


class _TorchLater(ModuleType):
    """Stands for torch in the module that imported it."""

    def __getattr__(self, name: str) -> Any:
        if name == "__path__":  # no package: `import torch.x` fails, and `_put_off_torch` gives up
            raise AttributeError(name)
        _withdraw(self)
        torch = importlib.import_module("torch")
        vars(sys.modules[ROPE_MODULE])["torch"] = torch
        return getattr(torch, name)


def _put_off_torch() -> None:
    spec = importlib.util.find_spec("torch") if "torch" not in sys.modules else None
    if spec is None or ROPE_MODULE in sys.modules:
        return
    stand_in = _TorchLater("torch")
    stand_in.__spec__ = spec  # transformers looks there whether torch is installed
    sys.modules["torch"] = stand_in
    try:
        importlib.import_module(ROPE_MODULE)
    except Exception:
        pass
    finally:
        _withdraw(stand_in)


def _withdraw(stand_in: ModuleType) -> None:
    if sys.modules.get("torch") is stand_in:
        del sys.modules["torch"]


_put_off_torch()

from transformers import (  # noqa: E402
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    __version__,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # noqa: E402

__all__ = [
    "CONFIG_MAPPING",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "AutoConfig",
    "AutoTokenizer",
    "GenerationConfig",
    "PreTrainedConfig",
    "PreTrainedTokenizerBase",
    "__version__",
    "logging",
]
