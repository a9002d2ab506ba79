"""The recipe's `export` section."""

from __future__ import annotations

from pydantic import Field

from tunesmith.config.section import Section


class ExportSection(Section):
    """What is written for use elsewhere.

    Args:
        merge: write the base model with the adapter merged into it.
        parity_prompts: held-out prompts on which adapter and merged model are compared.
        max_shard_size: largest safetensors file.
    """

    merge: bool = True
    parity_prompts: int = Field(16, ge=1)
    max_shard_size: str = Field("5GB", pattern=r"^\d+(MB|GB)$")
