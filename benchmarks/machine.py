"""The machine that a benchmark ran on, in words."""

import platform

import torch
import transformers

from tunesmith.models.backend import describe_device, select_device


def describe_machine() -> dict[str, str]:
    """Device, system and the versions that matter."""
    return {
        "device": describe_device(select_device()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
