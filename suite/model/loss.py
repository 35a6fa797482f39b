"""How far a miniqwen is from the next token: cross-entropy, whose gradient takes the place of the log-probabilities.

N = positions = B * T          V = vocab_size
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


class CrossEntropy(torch.autograd.Function):
    """The sum over positions of log(sum_j exp(z_j)) - z_y; its gradient is softmax(z) - one_hot(y).

    torch's own keeps the log-probabilities, fills (N, V) zeros, and writes the gradient beside both. Here the first
    become the last, in half the time on a CPU. So there is one way back: a second one through the same loss, with
    `retain_graph=True`, raises torch's `RuntimeError` of a tensor modified in place.
    """

    @staticmethod
    def forward(ctx, logits, labels, ignored: int):  # (N, V) in 32 bits, (N) -> ()
        log_probs = logits.log_softmax(-1)  # (N, V)
        ctx.save_for_backward(log_probs, labels)
        ctx.ignored = ignored
        return F.nll_loss(log_probs, labels, ignore_index=ignored, reduction="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx, scale):  # () -> (N, V)
        log_probs, labels = ctx.saved_tensors
        counts = (labels != ctx.ignored)[:, None]  # (N, 1)
        gradient = log_probs.exp_()
        gradient.scatter_add_(1, labels[:, None].where(counts, 0), -counts.to(gradient.dtype))
        return gradient.mul_(counts * scale), None, None


def next_token_loss(
    logits, labels, vocab_size: int, num_items_in_batch=None, ignore_index: int = -100, shift_labels=None, **kwargs
):
    """logits (B, T, V), labels (B, T) -> () the mean over those that count, as transformers' `ForCausalLMLoss` has it.

    The sum is divided by `num_items_in_batch` instead where that is given, as trainers do; `shift_labels` (B, T) lie
    already where they are predicted.
    """
    if shift_labels is None:
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[:, 1:]
    shift_labels = shift_labels.flatten().to(logits.device)
    total = CrossEntropy.apply(logits.float().view(-1, vocab_size), shift_labels, ignore_index)
    if num_items_in_batch is None:
        return total / (shift_labels != ignore_index).sum()
    return total / torch.as_tensor(num_items_in_batch, device=total.device)
