"""The recipe's `model` section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunesmith.config.section import Section


class ModelSection(Section):
    """Which base model, and how its numbers are held.

    Args:
        name: a catalog name, a hub id, a folder, or a .gguf file.
        revision: branch, tag or commit of a hub id.
        precision: auto takes bf16 where the device computes in it, else fp16 on CUDA and fp32 on a CPU.
    """

    name: str = Field(min_length=1)
    revision: str | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
