"""Liger's kernels for CUDA, where the package `liger-kernel` is installed: fused RMSNorm and gated MLP.

Only these two: the rotary kernel is put into transformers' modules for the whole process, and logits and loss are
computed by `label_head`, in less memory than any fused loss over all positions. No GPU has run this yet.
"""

import importlib.util

from torch import nn

from tunesmith.models.modules import unwrapped

KERNELS = {"rms_norm": True, "swiglu": True, "geglu": True}
"""What is asked of Liger, by the names of its arguments; families take what they have."""

LEFT_OUT = {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}


def use_liger(model: nn.Module) -> str | None:
    """Puts Liger's kernels into a model on CUDA; to be called before the adapter's layers are replaced by fast ones.

    Args:
        model: a causal language model of transformers, or PEFT around one.

    Returns:
        What was put in place, for the report; None where Liger is not installed, does not know the model's family, or
        the model is not on CUDA.
    """
    inner = unwrapped(model)
    if next(inner.parameters()).device.type != "cuda" or importlib.util.find_spec("liger_kernel") is None:
        return None
    from liger_kernel.transformers import monkey_patch

    if getattr(inner.config, "model_type", None) not in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN:
        return None
    # It leaves out what the family's function does not take.
    monkey_patch._apply_liger_kernel_to_instance(model=inner, **KERNELS, **LEFT_OUT)
    return "by Liger's kernels"
