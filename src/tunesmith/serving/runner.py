"""One forward pass of the base model for all rows of a step, with the adapters of each.

The model's own modules run: tokens packed as [1, T] with their position ids, attention over the block pool
(`paged_attention`), adapters at the linear modules (`lora_sites`), and the head only for the rows that are sampled
or scored, by transformers' `logits_to_keep`, so that what a family does to its logits is done.

Whether a family is computed exactly so is tried when the runner is made: two short sequences, packed together and in
chunks, must give the logits that the model gives by itself. What cannot be tried on a few tokens is refused by its
config: kinds of layers other than full and sliding attention, and positions beyond which a rotary embedding changes
for a whole batch.

Shape suffixes: T rows of the step, P rows with logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.models.folder import context_length
from tunesmith.models.generation import device_of
from tunesmith.serving.adapter_bank import AdapterBank
from tunesmith.serving.kv_cache import KvCache
from tunesmith.serving.lora_sites import LoraSites, Segment, SiteWeights
from tunesmith.serving.paged_attention import (
    PAGED_ATTENTION,
    AttentionStep,
    AttentionTrace,
    KvPool,
    LayerShape,
    register_paged_attention,
)
from tunesmith.serving.request import Request, SamplingParameters
from tunesmith.serving.scheduler import Chunk, Limits, Scheduler, StepPlan

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-3}
"""How far a logit may be from the model's own, as a share of the largest."""
_TRIED_LENGTHS = (13, 6)
_TRIED_BLOCK = 4
_LAYER_TYPES = frozenset(("full_attention", "sliding_attention"))
_GROWING_ROTARY = frozenset(("dynamic", "longrope"))
"""Rotary embeddings that change for the whole batch when one sequence passes the length they were trained for."""


class Runner:
    """The base model, made ready for packed steps; undone by `close`.

    Args:
        model: a causal language model of transformers in evaluation mode, without adapters.

    Raises:
        ModelError: the model is of a kind that is not computed exactly here, with the reason.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        self.device = device_of(model)
        self._causal = cast(Any, model)
        self._config = self._causal.config.get_text_config(decoder=True)
        self._refuse_by_config()
        self._keeps = bool(self._causal._supports_logits_to_keep())
        tried = [self._tried_ids(length) for length in _TRIED_LENGTHS]
        with torch.inference_mode():
            expected = [self._causal(input_ids=ids, use_cache=False).logits[0].float() for ids in tried]
        self._own_attention = model.config._attn_implementation
        register_paged_attention()
        self.sites = LoraSites(model)
        self.bank = AdapterBank(self.sites)
        try:
            self._causal.set_attn_implementation(PAGED_ATTENTION)
            self.layers = self._trace(tried[0])
            self._try_packed(tried, expected)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Gives the model its own attention and linear modules back."""
        self.sites.close()
        self._causal.set_attn_implementation(self._own_attention)

    @property
    def dtype(self) -> torch.dtype:
        """What keys, values and adapters are kept in."""
        return cast(torch.dtype, self._causal.get_input_embeddings().weight.dtype)

    @property
    def vocabulary_size(self) -> int:
        """How many logits there are."""
        return int(self._config.vocab_size)

    @property
    def context(self) -> int | None:
        """The longest sequence that is computed exactly; None where nothing limits it."""
        context = context_length(self.model.config)
        if self._rotary_types() & _GROWING_ROTARY:
            trained = getattr(self._config, "original_max_position_embeddings", None)
            rotary = getattr(self._config, "rope_parameters", None) or {}
            trained = trained or rotary.get("original_max_position_embeddings") or context
            return None if trained is None else min(int(trained), int(context or trained))
        return context

    @property
    def bytes_per_token(self) -> int:
        """Memory that a token takes in the cache."""
        return KvPool.bytes_per_token(self.layers, self.dtype)

    def make_pool(self, positions: int) -> KvPool:
        """Memory for the keys and values of so many tokens."""
        return KvPool(self.layers, positions, dtype=self.dtype, device=self.device)

    def run(self, plan: StepPlan, pool: KvPool, block_size: int, wanted: Sequence[int]) -> Tensor:
        """Computes a step.

        Args:
            plan: what is computed.
            pool: keys and values; those of the plan's rows are written.
            block_size: positions of a block.
            wanted: the rows whose logits are wanted, ascending.

        Returns:
            logits_PV in float32: of the rows `wanted`.
        """
        token_ids: list[int] = []
        positions: list[int] = []
        for chunk in plan.chunks:
            token_ids.extend(chunk.token_ids)
            positions.extend(range(chunk.start, chunk.end))
        body, head = self._segments(plan, wanted)
        with torch.inference_mode():
            step = AttentionStep(pool, plan.chunks, block_size, self.device)
            with self.sites.segments(body, head, len(token_ids)):
                return self._forward(
                    torch.tensor([token_ids], device=self.device),
                    torch.tensor([positions], device=self.device),
                    torch.tensor(list(wanted), dtype=torch.long, device=self.device),
                    step,
                )

    def next_logits(self, token_ids: Sequence[int], weights: Sequence[tuple[SiteWeights, float]] = ()) -> Tensor:
        """The logits [V] after some tokens, on the CPU, computed beside the cache: to try an adapter."""
        request = Request("tried", tuple(token_ids), SamplingParameters(max_tokens=1))
        chunk = Chunk(request, 0, len(token_ids), ((0, 1),))
        segments = [Segment(0, len(token_ids), tuple(weights))] if weights else []
        head = [Segment(0, 1, tuple(weights))] if weights else []
        with torch.inference_mode(), self.sites.segments(segments, head, len(token_ids)):
            step = AttentionStep(self.make_pool(len(token_ids)), [chunk], len(token_ids), self.device)
            ids_1T = torch.tensor([list(token_ids)], device=self.device)
            positions_1T = torch.arange(len(token_ids), device=self.device)[None]
            last_1 = torch.tensor([len(token_ids) - 1], device=self.device)
            return self._forward(ids_1T, positions_1T, last_1, step)[0].cpu()

    def _forward(
        self, input_ids_1T: Tensor, position_ids_1T: Tensor, wanted_P: Tensor, step: AttentionStep | AttentionTrace
    ) -> Tensor:
        keep = {"logits_to_keep": wanted_P} if self._keeps else {}
        output = self._causal(input_ids=input_ids_1T, position_ids=position_ids_1T, use_cache=False, paged=step, **keep)
        logits_PV = output.logits[0] if self._keeps else output.logits[0, wanted_P]
        return cast(Tensor, logits_PV.float())

    def _segments(self, plan: StepPlan, wanted: Sequence[int]) -> tuple[list[Segment], list[Segment]]:
        """Rows with adapters: of the step, and of what the head is given."""
        body: list[Segment] = []
        head: list[Segment] = []
        row = kept = 0
        for mix, chunks in plan.segments():
            begin, row = row, row + sum(chunk.count for chunk in chunks)
            first = kept
            while kept < len(wanted) and wanted[kept] < row:
                kept += 1
            if not mix.parts:
                continue
            weights = self.bank.weights(mix)
            body.append(Segment(begin, row, weights))
            if kept > first:
                head.append(Segment(first, kept, weights))
        return body, head if self._keeps else body

    def _tried_ids(self, length: int) -> Tensor:
        # Ids of the vocabulary's middle: the first ones are often special.
        begin = self.vocabulary_size // 2
        return ((torch.arange(length, device=self.device) * 7 + begin + length) % self.vocabulary_size)[None]

    def _trace(self, input_ids_1T: Tensor) -> dict[int, LayerShape]:
        """What the attention layers are, and which linear modules share an input."""
        trace = AttentionTrace()
        length = input_ids_1T.shape[1]
        positions_1T = torch.arange(length, device=self.device)[None]
        with torch.inference_mode(), self.sites.tracing():
            try:
                self._forward(input_ids_1T, positions_1T, positions_1T[0], trace)
            except (TypeError, ValueError, AttributeError) as error:
                raise self._refusal(f"it cannot be called with packed tokens ({error})") from error
        problem = trace.problem
        depth = self._config.num_hidden_layers
        if problem is None and sorted(trace.layers) != list(range(depth)):
            problem = f"{len(trace.layers)} of its {depth} layers have an attention that can be replaced"
        windows = {layer.window for layer in trace.layers.values()}
        kinds = getattr(self._config, "layer_types", None)
        slides = "sliding_attention" in kinds if kinds else bool(self._window())
        if problem is None and slides and windows == {None}:
            problem = "its sliding window is not told to the attention function"
        if problem is not None:
            raise self._refusal(problem)
        return trace.layers

    def _window(self) -> int | None:
        if getattr(self._config, "use_sliding_window", True) is False:
            return None
        return cast("int | None", getattr(self._config, "sliding_window", None))

    def _try_packed(self, tried: list[Tensor], expected: list[Tensor]) -> None:
        """Compares packed, chunked logits with the model's own."""
        cache = KvCache(16, _TRIED_BLOCK, prefix_cache=False)
        scheduler = Scheduler(cache, Limits(max_running=2, max_tokens_per_step=5))
        pool = self.make_pool(cache.capacity)
        for number, ids_1T in enumerate(tried):
            scheduler.add(Request(str(number), tuple(ids_1T[0].tolist()), SamplingParameters(max_tokens=2)))
        share = _TOLERANCE.get(self.dtype, 1e-4)
        while not scheduler.is_idle:
            plan = scheduler.schedule()
            logits_TV = self.run(plan, pool, _TRIED_BLOCK, range(len(plan)))
            row = 0
            for chunk in plan.chunks:
                own_TV = expected[int(chunk.request.request_id)]
                difference = logits_TV[row : row + chunk.count] - own_TV[chunk.start : chunk.end]
                allowed = share * max(float(own_TV.abs().max()), 1e-6)
                if not float(difference.abs().max()) <= allowed:
                    raise self._refusal(f"packed logits are off by {float(difference.abs().max()):.2g}")
                row += chunk.count
                scheduler.advance(chunk)
                if chunk.samples:
                    scheduler.finish(chunk.request)

    def _refuse_by_config(self) -> None:
        kinds = set(getattr(self._config, "layer_types", None) or ()) - _LAYER_TYPES
        if kinds:
            raise self._refusal(f"it has layers of the kind {', '.join(sorted(kinds))}")
        if getattr(self.model, "peft_config", None) is not None or hasattr(self.model, "peft_type"):
            raise self._refusal("it carries an adapter already")

    def _rotary_types(self) -> set[str]:
        rotary = getattr(self._config, "rope_parameters", None) or {}
        per_kind = [value for value in rotary.values() if isinstance(value, dict)] or [rotary]
        return {str(value.get("rope_type", "default")) for value in per_kind}

    def _refusal(self, why: str) -> ModelError:
        return ModelError(
            f"{type(self.model).__name__} cannot be served exactly: {why}",
            remedy="answers of this model come from tunesmith chat, one at a time",
        )
