"""Cross entropy of a linear head over a large vocabulary, without ever holding all the logits.

Only positions with a label are scored, a chunk of rows at a time, and the gradients are made in the forward pass, so
that no (tokens, vocabulary) tensor outlives its chunk. The idea is that of cut cross entropy (Wijmans et al. 2024,
arXiv:2411.09009) and Liger's fused linear cross entropy, here in plain torch for every device.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .attention.lean_layers import is_watched
from .attention.plan import can_read_values
from .masks.precision import compute_dtype
from .questions.log_probs import RowScorer, is_plain

IGNORED = -100
# rows scored at a time on a CPU: fewer lose efficiency in products; memory above 32 MiB is returned to the system each
# time, and has to be faulted in again. An accelerator has to be kept busy
_CHUNK_ROWS, _CHUNK_BYTES, _ACCELERATOR_ROWS = (128, 256), 2**25, 2048
# vocabularies below this are scored in larger chunks
_FEW_TOKENS = 1024
# a product in half precision is rounded for so many rows of the weight at a time, before it is added in the accurate
# type; that of a thin head is cheap enough to be added, and so lose less, for every few rows scored
_GRADIENT_ROWS, _FEW_ADDED, _THIN = 4096, 128, 256


class ShiftedLabels:
    """A network whose labels are its inputs: slot t is scored on the label of slot t + 1.

    transformers knows this of the class names in a table of its own. For others its Trainer smooths the label of
    slot t itself (`label_smoothing_factor`), and the network learns to repeat its input; `transformers serve` and
    lm-evaluation-harness look there too. So every such class is entered when it is defined: a downloaded one, one
    derived from it, and what FSDP2 makes of it. A derived class whose own loss does not shift says so.

    Attributes:
        shifts_labels: False where slot t is scored on the label of slot t itself, in classes derived from that one too.
    """

    shifts_labels = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if cls.shifts_labels and cls.__name__ not in known.values():
            known["arbprob" if "arbprob" not in known else cls.__name__] = cls.__name__


def causal_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor | None,
    *,
    shift_labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
    count: Callable[[], int] | None = None,
) -> Tensor:
    """Mean negative log-likelihood of the labels, in nats, without the logits.

    Args:
        hidden: float (B, T, D), the output of the last layer norm.
        weight: float (V, D), the output head.
        labels: long (B, T); the label of slot t + 1 is predicted by slot t. -100 is not scored.
        shift_labels: long (B, T), labels shifted already: that of slot t is predicted by slot t. Replaces `labels`.
        num_items_in_batch: what the sum is divided by; the number of scored labels when None.
        count: what `scored_count` of the labels returned before the network ran.

    Returns:
        float32 (float64 for float64 input) scalar; 0 with zero gradients where no label is scored.
    """
    targets = _targets(labels, shift_labels, hidden.device)
    scored = _scored_slots(targets, count)  # (N,)
    items = scored.numel() if num_items_in_batch is None else num_items_in_batch
    divisor = _known(items)
    rows = hidden.flatten(0, 1).index_select(0, scored)  # (N, D)
    total = linear_cross_entropy(rows, weight, targets[scored], divisor=divisor or 1)
    return total if divisor else total / _divisor(items, total)


def scored_count(labels: Tensor | None, shift_labels: Tensor | None) -> Callable[[], int] | None:
    """Ask a GPU how many labels are scored, before the network runs; a function that says so afterwards, or None.

    The answer comes back while the network computes: reading it waits for what the GPU had to do before this was
    asked, such as the step before, not for the network. None where there is nothing to wait for.
    """
    given = labels if shift_labels is None else shift_labels
    if not isinstance(given, Tensor) or given.device.type != "cuda" or not given.dim() or torch.compiler.is_compiling():
        return None
    answer = (given[..., 1:] if shift_labels is None else given).ne(IGNORED).sum().to("cpu", non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(given.device))

    def count() -> int:
        arrived.synchronize()
        return int(answer)

    return count


def _scored_slots(targets: Tensor, count: Callable[[], int] | None) -> Tensor:
    # indices of the slots with a label, in order, long (N,)
    if count is None:
        return (targets != IGNORED).nonzero().squeeze(1)
    return targets.eq(IGNORED).to(torch.uint8).argsort(stable=True)[: count()]


def logits_loss(
    logits: Tensor,
    labels: Tensor | None,
    *,
    shift_labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """The same loss from logits that are there anyway, float (B, T, V); differentiable as often as one likes."""
    targets = _targets(labels, shift_labels, logits.device)
    _check_targets(targets.masked_fill(targets == IGNORED, 0), logits.shape[-1])
    scores = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))  # (B * T, V)
    total = nn.functional.cross_entropy(scores, targets, ignore_index=IGNORED, reduction="sum")
    return total / _divisor((targets != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch, total)


def _targets(labels: Tensor | None, shift_labels: Tensor | None, device: torch.device) -> Tensor:
    # what each slot predicts, long (B * T,)
    if shift_labels is None:
        assert labels is not None
        shift_labels = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    return shift_labels.flatten().long().to(device)


def _divisor(count: Tensor | int, total: Tensor) -> Tensor | int:
    return count.to(total.device).clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


def _known(count: Tensor | int) -> float | None:
    # what to divide by, where the host knows it without waiting for a device
    if not isinstance(count, Tensor):
        return max(count, 1)
    return max(count.item(), 1) if count.numel() == 1 and can_read_values(count.device) else None


def _check_targets(targets: Tensor, vocabulary: int) -> None:
    """Raise for a label that is no token; on the CPU only, as an accelerator would have to be waited for."""
    if torch.compiler.is_compiling() or targets.device.type != "cpu" or not targets.numel():
        return
    low, high = (int(bound) for bound in torch.aminmax(targets))
    if low < 0 or high >= vocabulary:
        bad = low if low < 0 else high
        raise ValueError(f"labels: expected -100 or 0 to {vocabulary - 1}, got {bad}")


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, *, divisor: float = 1) -> Tensor:
    """Sum of -log softmax(hidden @ weight.T)[target] in nats, divided by `divisor`.

    Args:
        hidden: float (N, D). weight: float (V, D). targets: long (N,), each in [0, V).

    Matrix products run in the autocast dtype when autocast is on; softmax, sums and the weight's gradient are kept in
    float32 (float64 for float64 input). Differentiable once.
    """
    _check_targets(targets, weight.shape[0])
    wants = (hidden.requires_grad, weight.requires_grad) if torch.is_grad_enabled() else (False, False)
    compute = compute_dtype(hidden.dtype, hidden.device.type)
    return _LinearCrossEntropy.apply(hidden, weight, targets, compute, wants, divisor)


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of cross entropies, with the gradients that are wanted made while each chunk's probabilities are at hand."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        compute: torch.dtype,
        wants: tuple[bool, bool],
        divisor: float,
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            chunks = _Chunks(hidden.to(compute), weight.to(compute), targets, wants)
            total, of_hidden, of_weight = chunks.score(divisor)
        ctx.save_for_backward(of_hidden, of_weight)  # type: ignore[arg-type]
        ctx.dtypes = hidden.dtype, weight.dtype  # type: ignore[attr-defined]
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the chunked loss is differentiable once: for second derivatives leave return_logits=False out, and "
                "the loss is computed from the logits"
            )
        # a loss that nothing was done to has an upstream of 1: a pass over the vocabulary less
        is_one = can_read_values(upstream.device) and upstream.item() == 1
        found = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        scaled = [None if g is None else (g if is_one else g * upstream).to(dtype) for g, dtype in found]
        return *scaled, None, None, None, None


class _Chunks:
    """The rows of a loss, a chunk at a time: one set of buffers serves all."""

    def __init__(self, hidden: Tensor, weight: Tensor, targets: Tensor, wants: tuple[bool, bool]) -> None:
        self.hidden, self.weight, self.targets, self.wants = hidden, weight, targets, wants
        self.accurate = torch.promote_types(hidden.dtype, torch.float32)
        least, most = _CHUNK_ROWS
        fitting = _CHUNK_BYTES // (weight.shape[0] * weight.element_size()) // 32 * 32
        # with few tokens a chunk of so many rows would be all overhead, and whole logits are small
        rows = max(least, min(most, fitting)) * max(1, _FEW_TOKENS // weight.shape[0])
        self.size = max(1, min(rows if hidden.device.type == "cpu" else _ACCELERATOR_ROWS, hidden.shape[0]))
        self.scorer = RowScorer(weight, self.size)

    def score(self, divisor: float) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """-> total, gradient (N, D), gradient (V, D), all over `divisor`; None for a gradient that is not wanted."""
        of_hidden = torch.empty_like(self.hidden, dtype=self.accurate) if self.wants[0] else None
        of_weight = torch.empty_like(self.weight, dtype=self.accurate) if self.wants[1] else None
        nats = torch.empty_like(self.targets, dtype=self.accurate)
        for start in range(0, len(self.targets), self.size):
            chosen = slice(start, start + self.size)
            rows = self.hidden[chosen]
            nats[chosen], error = self.scorer(rows, self.targets[chosen], wants_error=any(self.wants))
            if of_hidden is not None:
                of_hidden[chosen] = error @ self.weight
            if of_weight is not None:
                self._add(of_weight, error, rows, 1 / divisor, is_first=start == 0)
        if of_hidden is not None:
            of_hidden.mul_(1 / divisor)
        if of_weight is not None and not len(self.targets):
            of_weight.zero_()
        return nats.sum() / divisor, of_hidden, of_weight

    def _add(self, of_weight: Tensor, error: Tensor, rows: Tensor, scale: float, *, is_first: bool) -> None:
        # of_weight (V, D) += scale * error.T @ rows; the first chunk writes what need not be zero before
        if rows.dtype == self.accurate:
            torch.addmm(of_weight, error.t(), rows, beta=0 if is_first else 1, alpha=scale, out=of_weight)
            return
        is_cpu, (vocabulary, width) = rows.device.type == "cpu", of_weight.shape
        step = _FEW_ADDED if is_cpu and width <= _THIN else len(rows)
        size = min(_GRADIENT_ROWS, vocabulary) if is_cpu else vocabulary
        product = rows.new_empty(size, width)
        for first in range(0, vocabulary, size):
            part = of_weight[first : first + size]  # still in the cache when the next rows are added
            found = product[: len(part)]
            for row in range(0, len(rows), step):
                chosen = slice(row, row + step)
                torch.mm(error[chosen, first : first + size].t(), rows[chosen], out=found)
                if is_first and row == 0:
                    part.copy_(found).mul_(scale)
                else:
                    part.add_(found, alpha=scale)


# what one or several sequences need at a step, not whole texts
_FEW_ROWS = 128
# below this the call itself takes longer than the product
_LARGE_TABLE = 2**20
# a packed copy of a head costs what it spares in so many passes
_PASSES_BEFORE_PACKING = 8


def head_logits(head: nn.Module, hidden: Tensor, logits_to_keep: int | Tensor = 0) -> Tensor:
    """What `head(hidden)` returns, float (B, T, V) for (B, T, D); faster for a few rows in float32 on a CPU.

    Args:
        logits_to_keep: the last so many slots, or a 1-D tensor of their indices; 0 for all.

    There torch multiplies by way of BLAS, which some processors run at a third of their memory's speed; oneDNN, which
    comes with torch, does not. Gradients, compilers, autocast, hooks, offloaded weights and other heads go the
    usual way.
    """
    if type(logits_to_keep) is not int or logits_to_keep != 0:
        hidden = hidden[:, _kept(logits_to_keep)]  # (B, slots kept, D)
    is_quick = type(head) is nn.Linear and _is_quick(head, hidden)
    logits: Tensor = _onednn(hidden, head) if is_quick else head(hidden)  # type: ignore[arg-type]
    return logits


class FewRowsHead:
    """`head_logits` of one head for many passes of as few rows, the same bits; soon from a packed copy of its weight.

    oneDNN reads its own layout up to three times as fast: bfloat16 at any number of rows, float32 from two rows on. The
    copy takes as long to make as several passes, and as much memory as the weight; it goes with this object, and is
    left where the weight has changed.
    """

    def __init__(self, head: nn.Module) -> None:
        self.head, self.passes = head, 0
        self.packed: Tensor | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits (B, T, V) for float (B, T, D)."""
        self.passes += 1
        if self.passes == _PASSES_BEFORE_PACKING:
            self._pack(hidden)
        if self.packed is None or self.source != self._source():
            return head_logits(self.head, hidden)
        return self._product(hidden, self.packed)

    def _pack(self, hidden: Tensor) -> None:
        head, rows = self.head, hidden.shape[:-1].numel()
        is_half = hidden.dtype == torch.bfloat16
        if not is_plain(head) or not _is_quick(head, hidden, torch.bfloat16 if is_half else torch.float32):  # type: ignore[arg-type]
            return
        weight: Any = head.weight
        if weight.is_inference() or (rows == 1 and not is_half) or not _packs(hidden.dtype):
            return
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
        if torch.equal(self._product(hidden, packed), head_logits(head, hidden)):
            self.packed, self.source = packed, self._source()

    def _source(self) -> tuple[Any, ...]:
        weight: Any = self.head.weight
        return id(weight), weight.data_ptr(), weight._version

    @staticmethod
    def _product(hidden: Tensor, packed: Tensor) -> Tensor:
        made: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, packed, None, "none", [], "")
        return made


@functools.cache
def _packs(dtype: torch.dtype) -> bool:
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _kept(logits_to_keep: int | Tensor) -> slice | Tensor:
    if isinstance(logits_to_keep, Tensor) and logits_to_keep.dim() == 1:
        return logits_to_keep
    is_count = isinstance(logits_to_keep, int) and not isinstance(logits_to_keep, bool) and logits_to_keep >= 0
    if is_count:
        return slice(-logits_to_keep, None)
    got = tuple(logits_to_keep.shape) if isinstance(logits_to_keep, Tensor) else repr(logits_to_keep)[:40]
    raise ValueError(f"logits_to_keep: expected a count from 0 or a 1-D tensor of slot indices, got {got}")


def _onednn(hidden: Tensor, head: nn.Linear) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, head.weight, head.bias, "none", [], "")
    return product


def _is_quick(head: nn.Linear, hidden: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    # the cheapest questions first; nothing here may be asked of a compiler
    if torch.is_grad_enabled() or not can_read_values(hidden.device):
        return False
    weight, rows = head.weight, hidden.shape[:-1].numel()
    # a weight that lies elsewhere is brought by a forward that someone has put in place of the module's own
    if weight.device != hidden.device or type(weight) is not nn.Parameter or type(hidden) is not Tensor:
        return False
    is_float = hidden.dtype == dtype == weight.dtype and not torch.is_autocast_enabled("cpu")
    is_few = 0 < rows <= _FEW_ROWS and weight.numel() >= _LARGE_TABLE
    return is_float and is_few and weight.is_contiguous() and not is_watched(head) and _has_onednn()


@functools.cache
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
