"""Under which masks a mutant is put before the shipped audit: what is true comes from the package as it is."""

import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from arbprob_hf import Mask, documents, order, padding, tree
from arbprob_hf.analysis.audit.cases import dense_on_grid
from arbprob_hf.model.masks.arguments import MaskArguments, resolve_mask
from arbprob_hf.model.masks.tiles import Grid, Sizes
from tests.analysis.finding import is_found

LENGTH = 17
PROMPT = 9
FIELDS = dict(vocab_size=23, n_positions=24, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
FIELDS |= dict(initializer_range=0.3, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)


@dataclass(frozen=True)
class Case:
    """Arguments of forward for two rows of LENGTH slots, and the mask that they mean.

    `make` builds a mask out of the modules of a package, the shipped or a mutated one. `tiled`: attention is computed
    by structure, as it is from 256 slots on.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    config: str | list[str] = "causal"
    make: Callable[[Any], Any] | None = None
    meant: Callable[[], Mask] | None = None
    backend: str = "sdpa"
    tiled: bool = False

    def truth(self) -> Mask | None:
        """The mask that is meant; None where that is the configuration's."""
        if self.meant is not None:
            return self.meant()
        if not self.arguments:
            return None
        sizes = Sizes(2, 2, LENGTH, LENGTH, 0, torch.device("cpu"))
        assert isinstance(self.config, str)
        return resolve_mask(Mask.parse(self.config), MaskArguments(**self.arguments), sizes)

    def model(self, package: types.SimpleNamespace, dtype: torch.dtype = torch.float32) -> Any:
        """A small network out of the modules of a package, made once for cases alike."""
        package.backends.SHORTEST, package.sdpa.TILE = (1, 4) if self.tiled else (256, 128)
        package.plan_cache.PLANS.clear()
        # the kernels behind the fused pair trust their arguments: given wrong ones, they write where they should not
        package.tiled._is_fused = lambda *states: False
        made = package.__dict__.setdefault("models", {})
        key = (str(self.config), self.backend, dtype)
        if key not in made:
            torch.manual_seed(0)
            config = package.configuration_arbprob.ArbProbConfig(**FIELDS, mask=self.config)
            config._attn_implementation = self.backend
            made[key] = package.modeling_arbprob.ArbProbForCausalLM(config).to(dtype).eval()
        return made[key]

    def given(self, package: types.SimpleNamespace, grid: Grid) -> dict[str, Any]:
        """The arguments of forward for a part of the slots."""
        if self.make is not None:
            return {"mask": self.make(package)}
        return {name: _part(value, name, grid) for name, value in self.arguments.items()}

    def is_exposed(self, package: types.SimpleNamespace) -> bool:
        """Whether the shipped audit finds something in a package's network."""
        truth = self.truth()

        def give(mask: Mask, grid: Grid) -> dict[str, Any]:
            is_part = self.make is not None and len(grid.queries) < LENGTH and not self.goes_on
            return {"mask": dense_on_grid(mask, grid)} if mask is not truth or is_part else self.given(package, grid)

        return is_found(self.model(package), truth, lengths=(LENGTH,), mask_kwargs=give)

    @property
    def goes_on(self) -> bool:
        """Whether the mask that is made is one for any number of slots."""
        return self.meant is continued_tensor


def _part(value: Any, name: str, grid: Grid) -> Any:
    if not isinstance(value, Tensor):
        return value
    columns = value[..., : grid.keys.stop]
    is_table = name == "mask" or value.dim() > 2
    return columns[..., grid.queries.start : grid.queries.stop, :] if is_table else columns


def _draw(*shape: int, share: float = 0.3) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(len(shape))) < share


INDEX = torch.arange(LENGTH)
PADDED = torch.tensor([[4], [0]]) <= INDEX
GAPS = PADDED & (INDEX != 9)
PACKED = (torch.tensor([[7], [3]]) <= INDEX).long() + (INDEX >= 12).long()
HIDDEN = 2**31 - 1
RANKS = torch.stack([torch.randperm(LENGTH, generator=torch.Generator().manual_seed(2)), INDEX // 3])
SOME_HIDDEN = RANKS.masked_fill(_draw(2, LENGTH, share=0.2), HIDDEN)
LIMITS = RANKS.masked_fill(INDEX == 5, HIDDEN)  # a slot that sees all that are not hidden
PARENTS = torch.where(INDEX == 0, -1, (INDEX - 1) // 2)
TABLE = _draw(2, 2, LENGTH, LENGTH)
PROMPT_TABLE = _draw(2, 1, PROMPT, PROMPT, share=0.5)


def continued_tensor() -> Mask:
    """How the prompt's table goes on, written out by its definition."""
    keep = torch.zeros(2, LENGTH, LENGTH, dtype=torch.bool)
    keep[:, :PROMPT, :PROMPT] = PROMPT_TABLE[:, 0].tril()
    for q in range(PROMPT, LENGTH):
        keep[:, q, :PROMPT] = keep[:, PROMPT - 1, :PROMPT]
        keep[:, q, PROMPT : q + 1] = True
    return Mask.of(keep)


def _text(text: str, **options: Any) -> Case:
    return Case({"mask": text}, **options)


TEXTS = [
    "causal",
    "full",
    "causal & window(4)",
    "causal | prefix(5)",
    "causal & (window(2) | sinks(3))",
    "dilated(3, 2)",
]
TEXTS += ["causal & strided(3)", "blocks(5)", "causal & blocks(6)", "block_diffusion(9, 3)", "block_diffusion(9, 4)"]
TEXTS += ["heads(causal & window(3), prefix(2))", "heads(causal, causal)", "~(window(2) | prefix(9)) | ~strided(2)"]
TEXTS += ["window(3) & ~prefix(6)", "causal & ~window(1)", "causal & dilated(4, 3)", "sinks(2) | blocks(4) & causal"]


def _by_index(text: str) -> Case:
    # as a static cache and flex attention evaluate a mask: pair by pair, never as a grid
    def make(package: types.SimpleNamespace) -> Any:
        return package.mask.Shifted(package.mask.Mask.parse(text), torch.zeros(1, LENGTH, dtype=torch.long))

    return Case(make=make, meant=lambda: Mask.parse(text))


CASES = {text: _text(text) for text in TEXTS}
CASES |= {f"{text} by tiles": _text(text, tiled=True) for text in TEXTS}
CASES |= {f"{text} in eager": _text(text, backend="eager") for text in ("causal", "full", "causal & ~window(1)")}
CASES |= {f"{text} by index": _by_index(text) for text in (TEXTS[4], TEXTS[11], TEXTS[13])}
CASES |= {
    "config": Case(config=["causal & window(3)", "causal | prefix(4)"]),
    "left padding": Case({"attention_mask": PADDED}, "causal & window(4) | prefix(3)"),
    "left padding by tiles": Case({"attention_mask": PADDED}, "causal & window(4) | prefix(3)", tiled=True),
    "gaps": Case({"attention_mask": GAPS.long()}, "causal & window(3)"),
    "packed": Case({"document_ids": PACKED}, "window(3) | prefix(2)"),
    "packed by tiles": Case({"document_ids": PACKED}, "window(3) | prefix(2)", tiled=True),
    "packed and padded": Case({"document_ids": PACKED, "attention_mask": GAPS}, "strided(2) | prefix(2)"),
    "ranks": Case({"ranks": RANKS}),
    "ranks by tiles": Case({"ranks": RANKS}, tiled=True),
    "limits": Case({"ranks": SOME_HIDDEN, "limits": RANKS - 1}),
    "limits by tiles": Case({"ranks": SOME_HIDDEN, "limits": RANKS - 1}, tiled=True),
    "ranks and all": Case({"ranks": RANKS, "mask": "window(6)", "attention_mask": PADDED}),
    "ranks and documents": Case({"ranks": RANKS, "document_ids": PACKED}),
    "table": Case({"mask": TABLE[0, 0]}),
    "causal table": Case({"mask": TABLE.tril()}),
    "table by row": Case({"attention_mask": TABLE[:, 0]}),
    "table by head": Case({"mask": TABLE}),
    "table by tiles": Case({"mask": TABLE & (INDEX[:, None] - INDEX).abs().lt(5)}, tiled=True),
    "table in eager": Case({"mask": TABLE}, backend="eager"),
    "table and padding": Case({"mask": TABLE[:, 0], "attention_mask": PADDED}),
    "documents": Case(
        make=lambda package: package.tensors.Documents(PACKED) & package.patterns.Window(5),
        meant=lambda: documents(PACKED) & Mask.parse("window(5)"),
    ),
    "documents by tiles": Case(
        make=lambda package: package.tensors.Documents(PACKED), meant=lambda: documents(PACKED), tiled=True
    ),
    "padding": Case(make=lambda package: package.tensors.Padding(GAPS), meant=lambda: padding(GAPS)),
    "padding by tiles": Case(
        make=lambda package: package.tensors.Padding(GAPS), meant=lambda: padding(GAPS), tiled=True
    ),
    "order": Case(
        make=lambda package: package.tensors.Order(SOME_HIDDEN, LIMITS), meant=lambda: order(SOME_HIDDEN, LIMITS)
    ),
    "tree": Case(make=lambda package: package.tensors.Tree(PARENTS), meant=lambda: tree(PARENTS)),
    "tree by tiles": Case(make=lambda package: package.tensors.Tree(PARENTS), meant=lambda: tree(PARENTS), tiled=True),
    "table by index": Case(
        make=lambda package: package.mask.Shifted(package.mask.Dense(TABLE), torch.zeros_like(PACKED)),
        meant=lambda: Mask.of(TABLE),
    ),
    "continued": Case(make=lambda package: package.continuation.Continued(PROMPT_TABLE.tril()), meant=continued_tensor),
}
