"""Attention of a packed step over the block pool, registered with transformers under `PAGED_ATTENTION`.

A step's rows belong to many requests. Each layer first writes the rows' keys and values to the pool, then each
request's rows look at their own keys there: as a view of the pool where its blocks lie side by side, else gathered.
Requests that decode one token each and lie at equal distances in the pool are one batch of a strided view, without a
copy; the mask keeps each to its own length. There is no mask over requests, and nothing is computed for pairs that
may not see each other, but for that padding (at most `_UNEVEN` times the shortest).

The pool is [positions, 2, G, D] for each layer. A view may cover what others wrote, so what is written is made
finite: 0 times infinity would be no number under any mask.

Shape suffixes: T rows of the step, S positions seen, B requests of a batch, H query heads, G key and value heads, R
= H / G, D width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from tunesmith.errors import ModelError
from tunesmith.serving.scheduler import Chunk

PAGED_ATTENTION = "tunesmith_paged"
"""The name under which transformers finds `paged_attention`. It has no mask function: models then make no mask."""

_BOUND = 1e15
"""Keys and values are kept within this; a product of two such is finite in float32. Float16's range is smaller."""

_UNEVEN = 2
_KNOWN = frozenset(("position_ids", "cache_position", "use_cache", "output_attentions", "past_key_values", "is_causal"))
"""What else models pass that changes nothing here: rotary positions are applied before."""


def register_paged_attention() -> None:
    """Makes `PAGED_ATTENTION` known to transformers."""
    AttentionInterface.register(PAGED_ATTENTION, paged_attention)


@dataclass(frozen=True)
class LayerShape:
    """What one attention layer keeps for each position, and how far it sees.

    Args:
        heads: key and value heads.
        width: of a head.
        window: positions that a token sees, itself included; None is all.
    """

    heads: int
    width: int
    window: int | None


class KvPool:
    """The memory of the cache.

    Args:
        layers: by layer index.
        positions: how many tokens fit.
        dtype: of keys and values.
        device: where they are.
    """

    def __init__(
        self, layers: dict[int, LayerShape], positions: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.positions = positions
        # Zeros, since a view may cover positions that were never written.
        self.layers = {
            index: torch.zeros(positions, 2, shape.heads, shape.width, dtype=dtype, device=device)
            for index, shape in layers.items()
        }

    @staticmethod
    def bytes_per_token(layers: dict[int, LayerShape], dtype: torch.dtype) -> int:
        """Memory of one token."""
        return sum(2 * shape.heads * shape.width * dtype.itemsize for shape in layers.values())


@dataclass
class _Span:
    """Consecutive rows of one request, and its keys: a first slot, or all of them where they are scattered."""

    row: int
    count: int
    end: int
    slot: int
    slots: Tensor | None
    masks: dict[int | None, Tensor | None] = field(default_factory=dict)

    def mask(self, window: int | None, like: Tensor) -> Tensor | None:
        """[count, end], or None where causality is all there is and the kernel knows it."""
        if window not in self.masks:
            begin = self.end - self.count
            if (window is None or window >= self.end) and (self.count == 1 or begin == 0):
                self.masks[window] = None
            else:
                queries = torch.arange(begin, self.end, device=like.device)[:, None]
                self.masks[window] = _additive(queries, torch.arange(self.end, device=like.device), window, like)
        return self.masks[window]


@dataclass
class _Batch:
    """One row each of several requests, whose first slots lie `stride` apart."""

    rows: list[int]
    slot: int
    stride: int
    ends: list[int]
    index: Tensor | slice | None = None
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    @property
    def reach(self) -> int:
        return max(self.ends)

    def mask(self, window: int | None, like: Tensor) -> Tensor:
        """[B, 1, 1, S]."""
        if window not in self.masks:
            queries_B1 = torch.tensor(self.ends, device=like.device)[:, None] - 1
            mask_BS = _additive(queries_B1, torch.arange(self.reach, device=like.device), window, like)
            self.masks[window] = mask_BS[:, None, None]
        return self.masks[window]


def _additive(queries: Tensor, keys_S: Tensor, window: int | None, like: Tensor) -> Tensor:
    seen = keys_S <= queries
    if window is not None:
        seen &= keys_S > queries - window
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(~seen, float("-inf"))


class AttentionStep:
    """How the rows of one step attend; given to the model as the keyword argument `paged`.

    Args:
        pool: the memory.
        chunks: the plan's, in row order.
        block_size: positions of a block.
        device: where the model is.
    """

    def __init__(self, pool: KvPool, chunks: Sequence[Chunk], block_size: int, device: torch.device) -> None:
        self.pool = pool
        self.spans: list[_Span] = []
        slots: list[int] = []
        row = 0
        for chunk in chunks:
            positions = _positions(chunk, block_size)
            slots.extend(positions[chunk.start : chunk.end])
            scattered = torch.tensor(positions[: chunk.end], device=device) if len(chunk.extents) > 1 else None
            self.spans.append(_Span(row, chunk.count, chunk.end, positions[0], scattered))
            row += chunk.count
        self.slots_T = torch.tensor(slots, device=device)
        self.batches = self._take_batches(device)

    def _take_batches(self, device: torch.device) -> list[_Batch]:
        """Batches of the single rows; the spans in them leave `spans`."""
        single = sorted((s for s in self.spans if s.count == 1 and s.slots is None), key=lambda s: s.slot)
        batches: list[_Batch] = []
        for span in single:
            batch = batches[-1] if batches else None
            if batch is not None and self._fits(batch, span):
                batch.stride = span.slot - (batch.slot + (len(batch.rows) - 1) * batch.stride)
                batch.rows.append(span.row)
                batch.ends.append(span.end)
            else:
                batches.append(_Batch([span.row], span.slot, 0, [span.end]))
        batches = [batch for batch in batches if len(batch.rows) > 1]
        taken = {row for batch in batches for row in batch.rows}
        self.spans = [span for span in self.spans if span.row not in taken]
        for batch in batches:
            first, count = batch.rows[0], len(batch.rows)
            together = batch.rows == list(range(first, first + count))
            batch.index = slice(first, first + count) if together else torch.tensor(batch.rows, device=device)
        return batches

    def _fits(self, batch: _Batch, span: _Span) -> bool:
        count = len(batch.rows)
        distance = span.slot - (batch.slot + (count - 1) * batch.stride)
        ends = [*batch.ends, span.end]
        inside = span.slot + max(ends) <= self.pool.positions
        return distance > 0 and (count == 1 or distance == batch.stride) and inside and max(ends) <= _UNEVEN * min(ends)

    def attend(
        self,
        layer: int,
        query_HTD: Tensor,
        key_GTD: Tensor,
        value_GTD: Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Writes keys and values, and gives the output [T, H, D].

        Args:
            layer: index of the layer.
            query_HTD: queries.
            key_GTD: keys.
            value_GTD: values.
            scale: factor on the scores.
            window: positions that a token sees; None is all.
            softcap: scores become softcap * tanh(scores / softcap); None leaves them.
        """
        kept = self.pool.layers[layer]
        fresh_T2GD = torch.stack((key_GTD.transpose(0, 1), value_GTD.transpose(0, 1)), dim=1)
        # NaN passes the clamp.
        kept.index_copy_(0, self.slots_T, torch.nan_to_num_(fresh_T2GD.clamp_(-_BOUND, _BOUND)))
        heads, rows, width = query_HTD.shape
        query_THD = query_HTD.transpose(0, 1)
        output_THD = query_HTD.new_empty(rows, heads, width)
        group = key_GTD.shape[0]
        for batch in self.batches:
            size, reach = len(batch.rows), batch.reach
            strides = (batch.stride * kept.stride(0), kept.stride(2), kept.stride(0), kept.stride(3))
            shape = (size, group, reach, width)
            begin = kept.storage_offset() + batch.slot * kept.stride(0)
            key_BGSD = kept.as_strided(shape, strides, begin)
            value_BGSD = kept.as_strided(shape, strides, begin + kept.stride(1))
            query_BGRD = query_THD[batch.index].reshape(size, group, heads // group, width)
            mask = batch.mask(window, query_HTD)
            output = _attention(query_BGRD, key_BGSD, value_BGSD, mask, False, scale, softcap)
            output_THD[batch.index] = output.reshape(size, heads, width)
        for span in self.spans:
            seen = kept[span.slot : span.slot + span.end] if span.slots is None else kept.index_select(0, span.slots)
            key_1GSD, value_1GSD = seen[:, 0].transpose(0, 1)[None], seen[:, 1].transpose(0, 1)[None]
            query_1HTD = query_HTD[None, :, span.row : span.row + span.count]
            if span.count == 1:
                query_1HTD = query_1HTD.reshape(1, group, heads // group, width)
            own_mask = span.mask(window, query_HTD)
            causal = own_mask is None and span.count > 1
            output = _attention(query_1HTD, key_1GSD, value_1GSD, own_mask, causal, scale, softcap)
            if span.count == 1:
                output_THD[span.row] = output.reshape(heads, width)
            else:
                output_THD[span.row : span.row + span.count] = output[0].transpose(0, 1)
        return output_THD


def _positions(chunk: Chunk, block_size: int) -> Sequence[int]:
    """Slots of the request's tokens up to the end of the chunk."""
    if len(chunk.extents) == 1:
        first, count = chunk.extents[0]
        return range(first * block_size, (first + count) * block_size)
    slots: list[int] = []
    for first, count in chunk.extents:
        slots.extend(range(first * block_size, (first + count) * block_size))
    return slots


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float, softcap: float | None
) -> Tensor:
    """Of [B, H, T, D] queries and [B, G, S, D] keys and values; H a multiple of G."""
    if softcap is not None:
        return _capped_attention(query, key, value, mask, causal, scale, softcap)
    if query.device.type == "cpu":
        if mask is not None:
            mask = mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
        output: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=mask, scale=scale
        )[0]
        return output
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )


def _capped_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float, softcap: float
) -> Tensor:
    """As transformers computes it without a fused kernel (Gemma 2)."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    scores = torch.tanh(torch.matmul(query, key.transpose(2, 3)) * scale / softcap) * softcap
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu_(1)
        scores = scores.masked_fill(future, float("-inf"))
    if mask is not None:
        scores = scores + mask
    return torch.matmul(torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype), value)


class AttentionTrace:
    """Given as `paged` to one plain forward pass: notes what each layer is asked for. The pass is of one sequence."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerShape] = {}
        self.problem: str | None = None

    def note(self, module: Any, key_GTD: Tensor, value_GTD: Tensor, window: int | None, unknown: list[str]) -> None:
        """Notes one call."""
        if key_GTD.shape != value_GTD.shape:
            self.problem = "its keys and values differ in shape"
        if module.layer_idx in self.layers:
            self.problem = "two attention layers share one place in the cache"
        if getattr(module, "is_causal", True) is False:
            self.problem = "its attention looks ahead"
        if unknown:
            self.problem = f"its attention takes {', '.join(unknown)}"
        self.layers[module.layer_idx] = LayerShape(key_GTD.shape[0], key_GTD.shape[2], window)


def paged_attention(
    module: torch.nn.Module,
    query_1HTD: Tensor,
    key_1GTD: Tensor,
    value_1GTD: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    paged: AttentionStep | AttentionTrace | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' models call it, for the rows of a step.

    Raises:
        ModelError: the model was called without a step, or asks for what is not computed here.
    """
    scale = query_1HTD.shape[-1] ** -0.5 if scaling is None else float(scaling)
    if isinstance(paged, AttentionStep):
        layer: Any = module.layer_idx
        output_THD = paged.attend(layer, query_1HTD[0], key_1GTD[0], value_1GTD[0], scale, sliding_window, softcap)
        return output_THD[None], None
    if paged is None:
        raise ModelError("the model's attention belongs to an engine now; close the engine to call the model itself")
    unknown = sorted(name for name, value in kwargs.items() if value is not None and name not in _KNOWN)
    if attention_mask is not None or dropout:
        unknown.append("attention_mask or dropout")
    paged.note(module, key_1GTD[0], value_1GTD[0], sliding_window, unknown)
    if query_1HTD.shape[-1] != value_1GTD.shape[-1]:
        paged.problem = "its keys and values differ in shape"
        return query_1HTD.transpose(1, 2), None
    length = query_1HTD.shape[2]
    positions = torch.arange(length, device=query_1HTD.device)
    mask = _additive(positions[:, None], positions, sliding_window, query_1HTD)[None, None]
    output = _attention(query_1HTD, key_1GTD, value_1GTD, mask, False, scale, softcap)
    return output.transpose(1, 2), None
