"""Log-probabilities of the output head, a few rows of logits at a time, in float32 whatever the network computes in."""

import torch
from torch import Tensor, nn

from ..masks.precision import compute_dtype

# logits held at a time where a head is called; a differentiable call keeps all of them for its backward pass
_LOGITS_AT_ONCE = 2**24
# rows scored at a time: on a CPU few, whose logits lie in memory that is used again; an accelerator is to be kept busy
_SCORED_ROWS, _ACCELERATOR_SCORED_ROWS = 128, 1024
# logits that a CPU turns into probabilities at a time: 1 MiB in float32, what a core's own cache holds
_BLOCK_LOGITS = 2**18
# rows of logits begin where a cache line does: BLAS writes them half as fast elsewhere
_ALIGNED = 64


def token_log_probs(head: nn.Module, hidden: Tensor, answers: Tensor) -> Tensor:
    """log P(answer) in nats, (N,): float32, or float64 for float64 input.

    Args:
        head: the output head, (N, D) -> (N, V). hidden: float (N, D). answers: long (N,).
    """
    if is_plain(head) and not _is_watched(head, hidden):
        return _plain_log_probs(head.weight, hidden, answers)  # type: ignore[arg-type]
    parts = []
    for rows, wanted in zip(_chunks(head, hidden), _chunks(head, answers), strict=True):
        logits = accurate(head(rows))  # (rows, V)
        parts.append(logits.gather(1, wanted[:, None]).squeeze(1) - logits.logsumexp(1))
    return torch.cat(parts)


def vocabulary_log_probs(head: nn.Module, hidden: Tensor) -> Tensor:
    """log P of every token in nats, (N, V), of the same dtypes as `token_log_probs`; hidden: float (N, D)."""
    return torch.cat([accurate(head(rows)).log_softmax(1) for rows in _chunks(head, hidden)])


class RowScorer:
    """-log P of one token a row, a few rows at a time, in buffers that serve them all.

    Args:
        weight: float (V, D), of a linear head without a bias, in the type that products are computed in.
        size: rows scored at a time, at most.
    """

    def __init__(self, weight: Tensor, size: int) -> None:
        self.weight = weight
        self.accurate = torch.promote_types(weight.dtype, torch.float32)
        is_cpu = weight.device.type == "cpu"
        width = -(-weight.shape[0] // _ALIGNED) * _ALIGNED
        self.block = min(size, max(1, _BLOCK_LOGITS // width)) if is_cpu else size
        self.logits = weight.new_empty(size, width)
        # on a CPU a softmax may overwrite what it reads
        is_in_place = is_cpu and weight.dtype == self.accurate
        self.likelihoods = None if is_in_place else weight.new_empty(self.block, width, dtype=self.accurate)
        self.numbers = torch.arange(self.block, device=weight.device)

    def __call__(self, rows: Tensor, answers: Tensor, *, wants_error: bool = False) -> tuple[Tensor, Tensor]:
        """Score rows (n, D) of the weight's type on their answers, long (n,).

        Returns:
            -log P of the answers in nats, (n,); with `wants_error` what the gradient is made of, (n, V): probabilities,
            less 1 at the answers. It lies in a buffer that the next call overwrites.
        """
        vocabulary, count = self.weight.shape[0], rows.shape[0]
        logits = self.logits[:count]  # (n, V and what aligns it)
        scores = logits[:, :vocabulary]
        torch.mm(rows, self.weight.t(), out=scores)
        logits[:, vocabulary:] = float("-inf")
        answer = scores.gather(1, answers[:, None]).squeeze(1).to(self.accurate)
        peak, top = answer.new_empty(count, dtype=logits.dtype), torch.empty_like(answer)
        for first in range(0, count, self.block):
            chosen = slice(first, first + self.block)
            block = logits[chosen]
            likelihoods = block if self.likelihoods is None else self.likelihoods[: len(block)]
            torch.amax(block, 1, out=peak[chosen])
            torch.softmax(block, dim=-1, dtype=self.accurate, out=likelihoods)
            torch.amax(likelihoods, 1, out=top[chosen])
            if wants_error:
                # before any rounding: for a token known almost surely, p - 1 is all there is
                likelihoods[self.numbers[: len(block)], answers[chosen]] -= 1
                if likelihoods is not block:
                    block.copy_(likelihoods)
        # -log p[answer] = (peak - answer) - log p[peak]: p[peak] never underflows, and the difference of two large
        # logits is taken before a small logarithm is added to it
        return peak.to(self.accurate) - answer - top.log(), scores


def is_plain(head: nn.Module) -> bool:
    """Whether `head` is a linear layer without a bias whose weight is a tensor of torch's own, not a quantised one."""
    return type(head) is nn.Linear and head.bias is None and type(head.weight) is nn.Parameter


def _plain_log_probs(weight: Tensor, hidden: Tensor, answers: Tensor) -> Tensor:
    compute = compute_dtype(hidden.dtype, hidden.device.type)
    with torch.autocast(hidden.device.type, enabled=False):
        hidden, weight = hidden.to(compute), weight.to(compute)
        size = _SCORED_ROWS if hidden.device.type == "cpu" else _ACCELERATOR_SCORED_ROWS
        scorer = RowScorer(weight, max(1, min(size, len(hidden))))
        nats = torch.empty_like(answers, dtype=scorer.accurate)
        for rows, wanted, found in zip(hidden.split(size), answers.split(size), nats.split(size), strict=True):
            torch.neg(scorer(rows, wanted)[0], out=found)
    return nats


def _is_watched(head: nn.Module, hidden: Tensor) -> bool:
    # whether something wants to know of the head's own call: gradients, a compiler or transform, hooks, offloading
    if torch.is_grad_enabled() and (hidden.requires_grad or head.weight.requires_grad):
        return True
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    of_all = torch.nn.modules.module
    hooks = head._forward_hooks or head._forward_pre_hooks
    hooks_of_all = of_all._global_forward_hooks or of_all._global_forward_pre_hooks
    return bool(hooks or hooks_of_all) or head.weight.device != hidden.device or "forward" in vars(head)


def accurate(values: Tensor) -> Tensor:
    """float32, or float64 where the values are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _chunks(head: nn.Module, rows: Tensor) -> tuple[Tensor, ...]:
    vocabulary = getattr(head, "out_features", None) or 50_257
    return rows.split(max(1, _LOGITS_AT_ONCE // vocabulary))
