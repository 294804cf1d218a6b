"""Under which masks and at which lengths a model is audited, and how its masks reach it."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ...model.attention.sdpa import SHORTEST_SORTED
from ...model.masks.foreign import as_mask, from_foreign
from ...model.masks.mask import Mask
from ...model.masks.patterns import Causal
from ...model.masks.reach import reach_through
from ...model.masks.tiles import Grid
from ..layer_reach import shows_later
from ..leakage import own_lengths

MaskKwargs = Callable[[Mask, Grid], dict[str, Any]]
Masks = Mask | str | Tensor | Callable[[int], Mask] | None

# 17: kernels work in powers of two; the longest is past the length from which ours looks for structure
LENGTHS = (16, 17, 272)
# a function of the length may make orders, whose slots ours sorts from here on
LENGTHS_OF_FUNCTIONS = (*LENGTHS, SHORTEST_SORTED + 8)
BATCH = 2


@dataclass(frozen=True)
class AuditCase:
    """One shape of input and what must hold under it.

    Attributes:
        masks: the mask of each layer, as it ought to be.
        given: the mask that is handed to the model; None where its own holds.
        with_rows: whether the batch rows have masks of their own.
    """

    masks: tuple[Mask, ...]
    given: Mask | None
    batch: int
    length: int
    with_rows: bool = False

    @cached_property
    def reach(self) -> Tensor:
        """bool (B, T, T), True at (b, q, k) where the output of q may depend on the input of k."""
        seen = {mask: mask.dense(self.length, batch=self.batch).any(1) for mask in set(self.masks)}
        return reach_through([seen[mask] for mask in self.masks])

    @cached_property
    def looks_ahead(self) -> bool:
        """Whether a query sees a later key in some layer: no cache can hold such a model."""
        return any(shows_later(mask, self.length) for mask in set(self.masks))

    def keep_masks(self, heads: int) -> list[Tensor]:
        """The masks written out, bool (B, H, T, T) for each layer."""
        written = [mask.dense(self.length, batch=self.batch) for mask in self.masks]
        return [keep.expand(-1, heads, -1, -1) for keep in written]

    def __str__(self) -> str:
        return f"{self.length} slots"


def make_cases(model: nn.Module, mask: Masks, lengths: tuple[int, ...] | None) -> list[AuditCase]:
    """The mask at each length, and, where one is given, batches whose rows have masks of their own."""
    config: Any = _config(model)
    layers = int(config.num_hidden_layers)
    fixed = _read_mask(mask)
    cases = []
    for length in _lengths(config, fixed, lengths):
        given = fixed if fixed is None or isinstance(fixed, Mask) else _mask_for(fixed, length)
        if given is None:
            cases.append(AuditCase(default_masks(model, layers), None, BATCH, length))
            continue
        rows = given.count_rows()
        plain = AuditCase((given,) * layers, given, rows if rows > 1 else BATCH, length)
        # what cannot fit is a mistake of the caller, not a finding
        given.check_fits(batch=plain.batch, heads=int(config.num_attention_heads), q_len=length, kv_len=length)
        own = Mask.of(_own_rows(plain))
        cases += [plain, AuditCase((own,) * layers, own, 3, length, with_rows=True)]
    return cases


def default_masks(model: nn.Module, layers: int) -> tuple[Mask, ...]:
    """The masks that hold in each layer when none is given: `config.mask`, or causal in networks without that field."""
    texts = getattr(model.config, "mask_texts", None)
    if texts is None:
        return (Causal(),) * layers
    # as the model reads them: with its own code come patterns that may be unknown here
    network: Any = getattr(model, "base_model", model)
    own = network._default_masks() if hasattr(network, "_default_masks") else {text: Mask.parse(text) for text in texts}
    return tuple(own[texts[layer % len(texts)]] for layer in range(layers))


def _config(model: object) -> Any:
    config: Any = getattr(model, "config", None)
    if not isinstance(model, nn.Module) or not hasattr(config, "num_hidden_layers"):
        what = "one without such a config" if isinstance(model, nn.Module) else f"{model!r:.40}"
        raise TypeError(
            f"model: expected a language model of transformers with a config, got {type(model).__name__}, {what}; "
            "load it first, with from_pretrained"
        )
    return config


def _read_mask(mask: Any) -> Any:
    if mask is None or (callable(mask) and not isinstance(mask, type)):
        return mask
    if isinstance(mask, list | tuple):
        raise TypeError(
            f"mask: expected a Mask, its text, a tensor or a function of a length, for all layers, got "
            f"{type(mask).__name__}; masks of the layers are those of config.mask, audited with mask=None"
        )
    return as_mask(mask)


def _mask_for(make: Callable[[int], Mask], length: int) -> Mask:
    mask = from_foreign(make(length))
    if not isinstance(mask, Mask):
        raise TypeError(f"mask: expected a function from a length to a Mask, got one to {type(mask).__name__}")
    return mask


def default_mask_kwargs(model: nn.Module) -> MaskKwargs:
    """How people hand a mask to this model: as `mask=` where its forward names that, else as an `attention_mask`."""
    return by_name if "mask" in inspect.signature(model.forward).parameters else as_attention_mask


def by_name(mask: Mask, grid: Grid) -> dict[str, Any]:
    """`mask=`: the expression itself, or, for a part of what its tensors cover, those rows."""
    is_whole = own_lengths(mask) <= {len(grid.queries)} and len(grid.queries) == len(grid.keys)
    return {"mask": mask if is_whole or not own_lengths(mask) else dense_on_grid(mask, grid)}


def as_attention_mask(mask: Mask, grid: Grid) -> dict[str, Any]:
    """`attention_mask=`: bool (B, T_q, T_kv), or (B, H, T_q, T_kv) where heads differ."""
    keep = dense_on_grid(mask, grid)
    return {"attention_mask": keep[:, 0] if keep.shape[1] == 1 else keep}


def dense_on_grid(mask: Mask, grid: Grid) -> Tensor:
    """A mask written out on the queries and keys of one pass: bool (B, heads that differ, T_q, T_kv)."""
    first, device = grid.queries.start, grid.device
    return mask.dense(len(grid.queries), len(grid.keys), batch=len(grid.rows), offset=first, device=device)


def _lengths(config: Any, mask: Mask | Callable[[int], Mask] | None, asked: tuple[int, ...] | None) -> list[int]:
    if asked is not None and not _are_integers(asked):
        raise TypeError(f"lengths: expected a tuple of integers, such as (16, 17), got {asked!r:.60}")
    own = own_lengths(mask) if isinstance(mask, Mask) else set()
    usual = LENGTHS if mask is None or isinstance(mask, Mask) else LENGTHS_OF_FUNCTIONS
    most = int(getattr(config, "max_position_embeddings", None) or max(usual))
    found = sorted({min(length, most) for length in (asked or own or usual)})
    if found[0] < 2:
        raise ValueError(f"lengths: expected at least 2 slots, got {found[0]}")
    if asked and max(asked) > most:
        raise ValueError(f"lengths: expected at most {most}, the model's number of positions, got {max(asked)}")
    return found


def _are_integers(asked: object) -> bool:
    return isinstance(asked, tuple | list) and all(type(length) is int for length in asked)


def _own_rows(plain: AuditCase) -> Tensor:
    # bool (3, T, T): the mask, some of it with a query that sees nothing, and another one, as causal as the mask is
    mask, length = plain.masks[0], plain.length
    keep = mask.dense(length, batch=plain.batch)[0].any(0)
    draw = torch.rand(2, length, length, generator=torch.Generator().manual_seed(length))
    fewer, other = keep & (draw[0] < 0.7), draw[1] < 0.3
    fewer[length // 3] = False
    return torch.stack([keep, fewer, other if plain.looks_ahead else other.tril()])
