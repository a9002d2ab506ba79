"""The loss: the sum of the token losses, to be divided by the target tokens of the whole optimizer step.

Dividing each micro-batch by its own count instead would weigh tokens of micro-batches with few targets more, which
biases accumulation. Where examples have weights, each token counts with that of its example, in the sum and in the
divisor.

Shapes: B examples, T tokens, H hidden size, K positions kept, N target tokens, V vocabulary.
"""

import torch
from torch import nn

from tunesmith.data.batching import Batch
from tunesmith.data.records import IGNORED_LABEL
from tunesmith.models.label_head import label_head


def summed_loss(model: nn.Module, batch: Batch, weights_B: torch.Tensor | None = None) -> torch.Tensor:
    """The sum of the cross-entropy over the target tokens of `batch`, in nats, as a float32 scalar.

    The head is applied only where there is a label, a chunk of rows at a time, by `models.label_head`; a model that
    this is not known to be right for runs its own `forward`. Mixed precision is the caller's: run it under autocast.

    Args:
        model: a causal language model of transformers, or PEFT around one.
        batch: token ids and labels [B, T] on the model's device.
        weights_B: the factor on the token losses of each example, as the batch has them for training; None leaves the
            losses as they are, as for validation.
    """
    head = label_head(model)
    if head is None:
        return _loss_by_forward(model, batch, weights_B)
    next_labels_BT = torch.nn.functional.pad(batch.labels_BT[:, 1:], (0, 1), value=IGNORED_LABEL)
    rows_N = (next_labels_BT != IGNORED_LABEL).flatten().nonzero().squeeze(1)
    hidden_BTH = head.hidden(batch.input_ids_BT)
    hidden_NH = hidden_BTH.flatten(0, 1).index_select(0, rows_N)
    weights_N = None if weights_B is None else weights_B[rows_N // batch.labels_BT.shape[1]]
    return head.summed_loss(hidden_NH, next_labels_BT.flatten()[rows_N], weights_N)


def _loss_by_forward(model: nn.Module, batch: Batch, weights_B: torch.Tensor | None) -> torch.Tensor:
    """`summed_loss` by the model's own `forward`, through transformers' `logits_to_keep`."""
    next_labels_BT = batch.labels_BT[:, 1:]
    kept_K = (next_labels_BT != IGNORED_LABEL).any(dim=0).nonzero().squeeze(1)
    if kept_K.numel() == 0:  # A rank without work in a last, short step: the graph must be there all the same.
        kept_K = torch.zeros(1, dtype=torch.long, device=next_labels_BT.device)
    logits_BKV = model(input_ids=batch.input_ids_BT, use_cache=False, logits_to_keep=kept_K).logits
    targets_BK = next_labels_BT[:, kept_K]
    is_target_BK = targets_BK != IGNORED_LABEL
    logits_NV, targets_N = logits_BKV[is_target_BK].float(), targets_BK[is_target_BK]
    if weights_B is None:
        loss: torch.Tensor = nn.functional.cross_entropy(logits_NV, targets_N, reduction="sum")
        return loss
    weights_N = weights_B[:, None].expand_as(is_target_BK)[is_target_BK]
    return (nn.functional.cross_entropy(logits_NV, targets_N, reduction="none") * weights_N).sum()
