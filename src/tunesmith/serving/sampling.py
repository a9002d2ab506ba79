"""The next token of each row, all rows of a step at once.

Each request draws from numbers of its own: the u of its n-th token is a hash of (seed, n), so neither the other
requests of the step nor a preemption changes it. The token is the first at which the cumulated probabilities exceed
u. Which rows are computed together moves logits by rounding, so a draw within rounding of a border may fall on
either side.

Shape suffixes: P rows, V vocabulary, S rows that are sampled, K likeliest tokens of a row.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from tunesmith.serving.request import Request, TokenLogprobs

_LIKELIEST = 256
"""Tokens that top_p looks at first: it is rare that they do not hold the share asked for."""


def sample(logits_PV: Tensor, requests: Sequence[Request]) -> list[int | None]:
    """The next token of each row; None where the logits are no finite numbers.

    Args:
        logits_PV: the model's logits in float32; may be changed.
        requests: whose row each is.
    """
    finite = torch.isfinite(logits_PV.amax(dim=1)).tolist() if len(requests) else []
    _bias(logits_PV, requests)
    _penalize(logits_PV, requests)
    tokens: list[int | None] = list(logits_PV.argmax(dim=1).tolist()) if len(requests) else []
    drawn = [row for row, request in enumerate(requests) if request.sampling.temperature > 0 and finite[row]]
    if drawn:
        some = [requests[row] for row in drawn]
        for row, token in zip(drawn, _draw(logits_PV[drawn], some), strict=True):
            tokens[row] = token
    return [token if finite[row] else None for row, token in enumerate(tokens)]


def logprobs(logits_PV: Tensor, token_ids: Sequence[int], top: int) -> list[TokenLogprobs]:
    """What the model thinks of each row's token.

    Args:
        logits_PV: the model's own logits in float32.
        token_ids: one a row.
        top: how many of the likeliest to report beside it.
    """
    if not token_ids:
        return []
    log_sums_P1 = logits_PV.logsumexp(dim=1, keepdim=True)
    ids_P1 = torch.tensor(token_ids, device=logits_PV.device)[:, None]
    chosen_P1 = logits_PV.gather(1, ids_P1)
    ranks = (logits_PV >= chosen_P1).sum(dim=1).tolist()
    values_PK, top_PK = logits_PV.topk(min(top, logits_PV.shape[1]), dim=1)
    rows = zip(
        token_ids, (chosen_P1 - log_sums_P1)[:, 0].tolist(), ranks, top_PK.tolist(),
        (values_PK - log_sums_P1).tolist(), strict=True,
    )  # fmt: skip
    return [
        TokenLogprobs(token, logprob, rank, tuple(zip(ids, values, strict=True)))
        for token, logprob, rank, ids, values in rows
    ]


def uniform(seed: int, number: int) -> float:
    """The number in [0, 1) that a request with this seed draws for its token of this number."""
    digest = blake2b(struct.pack("<qq", seed, number), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _bias(logits_PV: Tensor, requests: Sequence[Request]) -> None:
    for row, request in enumerate(requests):
        known = {i: bias for i, bias in request.sampling.logit_bias.items() if i < logits_PV.shape[1]}
        if known:
            ids = torch.tensor(list(known), device=logits_PV.device)
            logits_PV[row, ids] += torch.tensor(list(known.values()), device=logits_PV.device)


def _penalize(logits_PV: Tensor, requests: Sequence[Request]) -> None:
    for row, request in enumerate(requests):
        sampling = request.sampling
        if not sampling.has_penalties:
            continue
        device = logits_PV.device
        if sampling.repetition_penalty != 1.0:
            ids = torch.tensor(sorted({*request.prompt_ids, *request.counts}), device=device)
            values = logits_PV[row, ids]
            factor = sampling.repetition_penalty
            logits_PV[row, ids] = torch.where(values > 0, values / factor, values * factor)
        if request.counts:
            ids = torch.tensor(list(request.counts), device=device)
            counts = torch.tensor(list(request.counts.values()), device=device, dtype=logits_PV.dtype)
            logits_PV[row, ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts


def _draw(logits_SV: Tensor, requests: Sequence[Request]) -> list[int]:
    def column(name: str) -> Tensor:
        return torch.tensor([[getattr(r.sampling, name)] for r in requests], device=logits_SV.device)

    logits_SV = logits_SV / column("temperature").to(logits_SV.dtype)
    probabilities_SV = torch.softmax(logits_SV, dim=1, dtype=torch.float64)
    if any(request.sampling.min_p for request in requests):
        least_S1 = column("min_p") * probabilities_SV.amax(dim=1, keepdim=True)
        probabilities_SV = probabilities_SV.masked_fill(probabilities_SV < least_S1, 0.0)
    draws_S1 = torch.tensor([[uniform(r.seed, r.answer_length)] for r in requests], device=logits_SV.device)
    tokens = [0] * len(requests)
    cut = [row for row, request in enumerate(requests) if request.sampling.top_k or request.sampling.top_p < 1]
    whole = [row for row in range(len(requests)) if row not in set(cut)]
    if whole:
        picked = _pick(probabilities_SV[whole], draws_S1[whole])
        for row, token in zip(whole, picked.tolist(), strict=True):
            tokens[row] = token
    if cut:
        picked = _draw_cut(probabilities_SV[cut], draws_S1[cut], [requests[row] for row in cut])
        for row, token in zip(cut, picked.tolist(), strict=True):
            tokens[row] = token
    return tokens


def _draw_cut(probabilities_SV: Tensor, draws_S1: Tensor, requests: Sequence[Request]) -> Tensor:
    """Draws where top_k or top_p leave only some of the tokens, from the likeliest on."""
    vocabulary = probabilities_SV.shape[1]
    ks = [request.sampling.top_k or vocabulary for request in requests]
    top_p_S1 = torch.tensor([[r.sampling.top_p] for r in requests], device=draws_S1.device, dtype=torch.float64)
    size = min(vocabulary, max(_LIKELIEST, *(k for k in ks if k < vocabulary), _LIKELIEST))
    values_SK, ids_SK = probabilities_SV.topk(size, dim=1)
    totals_S1 = probabilities_SV.sum(dim=1, keepdim=True)
    enough = [k <= size for k in ks]
    reached = (values_SK.sum(dim=1) >= top_p_S1[:, 0] * totals_S1[:, 0]).tolist()
    # With top_k the share is of what top_k left, so its k likeliest must all be here.
    if size < vocabulary and not all(e or (r and k == vocabulary) for e, r, k in zip(enough, reached, ks, strict=True)):
        values_SK, ids_SK = probabilities_SV.sort(dim=1, descending=True)
        size = vocabulary
    ks_S1 = torch.tensor([[k] for k in ks], device=draws_S1.device)
    ranks_K = torch.arange(size, device=draws_S1.device)
    values_SK = values_SK.masked_fill(ranks_K >= ks_S1, 0.0)
    limited_S1 = torch.where(ks_S1 < vocabulary, values_SK.sum(dim=1, keepdim=True), totals_S1)
    before_SK = values_SK.cumsum(dim=1) - values_SK
    values_SK = values_SK.masked_fill(before_SK >= top_p_S1 * limited_S1, 0.0)
    return ids_SK.gather(1, _pick(values_SK, draws_S1)[:, None])[:, 0]


def _pick(weights_SK: Tensor, draws_S1: Tensor) -> Tensor:
    """The first index at which the cumulated weights exceed the draw's share of their sum."""
    cumulated_SK = weights_SK.cumsum(dim=1)
    wanted_S1 = draws_S1 * cumulated_SK[:, -1:]
    index_S = torch.searchsorted(cumulated_SK, wanted_S1, right=True)[:, 0]
    return index_S.clamp_(max=weights_SK.shape[1] - 1)
