"""The model under audit: passes over some slots under a mask, in its own precision or in float64."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ...model.masks.mask import Mask
from ...model.masks.tiles import Grid
from .cases import AuditCase, MaskKwargs
from .reference_gpt2 import Reference


class AuditedModel:
    """A model, random inputs for it, and passes under a case; each starts from the same seed, dropout included."""

    def __init__(self, model: nn.Module, mask_kwargs: MaskKwargs, seed: int) -> None:
        self.model: Any = model
        self.mask_kwargs, self.seed = mask_kwargs, seed
        self.generator = torch.Generator().manual_seed(seed)
        self.reference = Reference(model) if Reference.knows(model) else None

    def in_double(self) -> "AuditedModel":
        """The same on a copy of the model in float64, without dropout."""
        twin = copy.deepcopy(self.model).double()
        for module in twin.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return AuditedModel(twin, self.mask_kwargs, self.seed)

    def train(self, mode: bool) -> "AuditedModel":
        """Switch the model's mode."""
        self.model.train(mode)
        return self

    def ids(self, case: AuditCase) -> Tensor:
        """Random token ids, long (B, T)."""
        generator = torch.Generator().manual_seed(self.seed + case.length)
        shape = (case.batch, case.length)
        return torch.randint(self._vocabulary, shape, generator=generator).to(self.device)

    def other_ids(self, ids: Tensor) -> Tensor:
        """For each token another one."""
        step = torch.randint(1, self._vocabulary, ids.shape, generator=self.generator).to(ids.device)
        return (ids + step) % self._vocabulary

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings, (B, T, D)."""
        embeds: Tensor = self.model.get_input_embeddings()(ids).detach()
        return embeds

    def noise(self, like: Tensor, scale: float) -> Tensor:
        """Gaussian noise in the shape of another tensor."""
        return scale * torch.randn(like.shape, generator=self.generator).to(like)

    def outputs(self, case: AuditCase, **inputs: Any) -> Tensor:
        """Logits (B, T, V) of one pass over all slots, or hidden states where the model has no head."""
        return tensor_of(self.run(case, range(case.length), **inputs))

    def run(self, case: AuditCase, queries: range, **inputs: Any) -> Any:
        """One pass over some slots, those before them cached."""
        grid = Grid(range(case.batch), range(self.heads), queries, range(queries.stop), self.device)
        given = {} if case.given is None else self.mask_kwargs(case.given, grid)
        # torch.manual_seed would look for every kind of device, at half the cost of a small model's pass
        torch.default_generator.manual_seed(self.seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(self.seed)
        return self.model(**inputs, **given)

    def gets_mask(self, case: AuditCase) -> bool:
        """Whether a pass is given a mask: `mask_kwargs` may give none, or only which tokens exist."""
        slots = range(case.length)
        grid = Grid(range(case.batch), range(self.heads), slots, slots, self.device)
        assert case.given is not None
        try:
            one = self.mask_kwargs(case.given, grid)
            # a mask that is always the same is a finding
            if any(map(_is_mask, one.values())):
                return True
            other = self.mask_kwargs(~case.given, grid)
            return one.keys() != other.keys() or not all(_alike(one[name], other[name]) for name in one)
        except Exception:
            return True  # the passes will raise it too, and that is a finding

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        first: Tensor = next(self.model.parameters())
        return first.device

    @property
    def heads(self) -> int:
        """Attention heads of a layer."""
        return int(self.model.config.num_attention_heads)

    @property
    def _vocabulary(self) -> int:
        return int(self.model.config.vocab_size)


def tensor_of(out: Any) -> Tensor:
    """The logits of a pass (B, T, V), or its hidden states (B, T, D) where the model has no head."""
    logits: Tensor = out.last_hidden_state if getattr(out, "logits", None) is None else out.logits
    return logits


def _is_mask(value: object) -> bool:
    return isinstance(value, Mask | str) or (isinstance(value, Tensor) and value.dim() > 2)


def _alike(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.equal(other)
    return one is other or bool(one == other)
