"""A mask in words and signs: what each query sees, what reaches it through layers, and whether answers are shown."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import check_integer
from ..model.masks.mask import Mask
from .layer_reach import (
    OWN,
    AnyMask,
    Sheet,
    allowed_pairs,
    first_layers,
    layers_text,
    ranges,
    read_masks,
    sheets,
    true_indices,
)
from .leakage import check_leakage

# wider pictures do not fit a terminal of 80 columns
WIDEST = 24
_WIDTH = 80
_SIGNS = {0: ".", 1: "#", OWN: "o"}


@dataclass(frozen=True, eq=False)
class Description:
    """What a mask lets through `layers` layers over `length` tokens; several `masks` are layers that take turns.

    `depth`: int16 (T, T) as `first_layers` gives it. `paths`: how a later token reaches a query, as slots from the
    query to the key: one that the mask shows, and one that only relays make.
    """

    masks: tuple[Mask, ...]
    length: int
    layers: int
    depth: Tensor
    blind_queries: list[int]
    paths: list[tuple[int, ...]]

    @property
    def informed_queries(self) -> list[int]:
        """The queries that later tokens reach."""
        return true_indices(Sheet("", self.depth).later.any(1))

    @property
    def shown_tokens(self) -> list[int]:
        """The tokens that reach the query that predicts them; query q predicts token q + 1."""
        return [query + 1 for query in range(self.length - 1) if self.depth[query, query + 1] > 0]

    def reached(self, layers: int) -> int:
        """Number of pairs of query and key that `layers` layers connect, a token's own input not counted as such."""
        return sum(self._counts[1 - OWN : layers + 1 - OWN])

    @cached_property
    def _counts(self) -> list[int]:
        # how many pairs there are of each depth, OWN first
        counts: list[int] = torch.bincount(self.depth.flatten().int() - OWN, minlength=2).tolist()
        return counts

    def sources(self, query: int, layers: int) -> list[int]:
        """The keys that reach a query through `layers` layers."""
        return true_indices((self.depth[query] > 0) & (self.depth[query] <= layers))

    def figures(self) -> dict[str, Any]:
        """The same for machines, as JSON can hold it."""
        last = self.length - 1
        return {
            "masks": [str(mask) for mask in self.masks],
            "length": self.length,
            "layers": self.layers,
            "heads": max(mask.count_heads() for mask in self.masks),
            "pairs": self.length**2,
            "reached": [self.reached(layers) for layers in range(1, self.layers + 1)],
            "last_query": {"allowed": self.sources(last, 1), "reached": self.sources(last, self.layers)},
            "queries_that_see_nothing": self.blind_queries,
            "queries_reached_by_later_keys": self.informed_queries,
            "tokens_shown": self.shown_tokens,
            "paths": [list(path) for path in self.paths],
            "safe": not self.informed_queries,
        }


def describe(
    mask: AnyMask | Sequence[AnyMask], length: int, *, layers: int | None = None, heads: int | None = None
) -> Description:
    """Find what a mask, or one mask per layer, lets through.

    Args:
        mask: a `Mask`, its text or a 0-1 tensor, or a list of them, one per layer.
        length: number of tokens.
        layers: number of layers; as many as masks, but at least 2, when None. Several masks take turns.
        heads: number of heads the mask is meant for; as many as it names when None.

    Raises:
        ValueError: an unreadable mask, or a length, number of layers or of heads that cannot be. One line.
    """
    masks = read_masks(mask)
    layers = layers if layers is not None else len(masks) if len(masks) > 1 else 2
    allowed = [allowed_pairs(one, length).any(0) for one in masks]
    if heads is not None:
        check_integer("heads", heads, low=1)
        for one in masks:
            one.check_fits(batch=1, heads=heads, q_len=length, kv_len=length)
    depth = first_layers(allowed, layers)
    later = Sheet("", depth).later
    kinds = (later & (depth == 1), later & (depth > 1))
    found = [check_leakage(allowed, kind, layers=layers).leaks for kind in kinds]
    paths = [leaks[0].slots for leaks in found if leaks]
    blind = true_indices(~torch.stack(allowed).any(0).any(1))
    return Description(tuple(masks), length, layers, depth, blind, paths)


def lines(found: Description) -> list[str]:
    """A description for people: the mask in signs where it is small, then a line for each fact and the verdict."""
    drawn = sheets(found.masks, found.length, layers=found.layers) if found.length <= WIDEST else []
    pictures = [line for sheet in drawn for line in [*_picture(sheet), ""]]
    said = [f"{', then '.join(map(str, found.masks))}: {found.length} tokens, {layers_text(found.layers)}", ""]
    return [*said, *pictures, *_facts(found), *_row("verdict", _verdict(found))]


def _picture(sheet: Sheet) -> list[str]:
    # a later key carries an exclamation mark
    later = sheet.later
    width = 2 if len(sheet.depth) <= 10 and not later.any() else 3
    rows = [sheet.caption] if sheet.caption else []
    rows.append("q\\k  " + "".join(f"{key:<{width}}" for key in range(sheet.depth.shape[1])).rstrip())
    for query, depths in enumerate(sheet.depth.tolist()):
        cells = [_sign(depth) + "!" * bool(is_later) for depth, is_later in zip(depths, later[query], strict=True)]
        rows.append(f"{query:<3}  " + "".join(f"{cell:<{width}}" for cell in cells).rstrip())
    return [*rows, *_key(sheet)]


def _sign(depth: int) -> str:
    return _SIGNS.get(depth, str(depth) if depth < 10 else "+")


def _key(sheet: Sheet) -> list[str]:
    found = {*sheet.levels(later=False), *sheet.levels(later=True)}
    relayed = sorted(depth for depth in found if depth > 1)
    parts = ["# allowed"] if 1 in found else []
    if relayed:
        digits = ranges([depth for depth in relayed if depth < 10])
        parts.append(f"{digits} through {'that many layers' if len(relayed) > 1 else layers_text(relayed[0])}")
    parts += ["+ through 10 or more"] if relayed and relayed[-1] > 9 else []
    parts += ["o its own input, carried along"] if OWN in found else []
    parts += ["! a later key"] if sheet.later.any() else []
    return [f"     {'   '.join(parts)}"]


def _facts(found: Description) -> list[str]:
    pairs, last = found.length**2, found.length - 1
    facts = _row("allowed", f"{found.reached(1)} of {pairs} pairs ({found.reached(1) / pairs:.0%})")
    for layers in range(2, found.layers + 1):
        more = found.reached(layers) - found.reached(layers - 1)
        if found.reached(layers - 1) == found.reached(found.layers):
            span = layers_text(found.layers) if layers == found.layers else f"{layers}-{found.layers} layers"
            facts += _row(span, "nothing more")
            break
        facts += _row(layers_text(layers), f"{more} more through relays, {found.reached(layers)} in all")
    sees, reached_by = found.sources(last, 1), found.sources(last, found.layers)
    line = f"token {last} sees {ranges(sees) or 'nothing'}"
    if reached_by:
        line += f"; through {layers_text(found.layers)} {ranges(reached_by)}, at most {last - reached_by[0]} back"
    facts += _row("last query", line)
    if found.blind_queries:
        verb = "sees" if len(found.blind_queries) == 1 else "see"
        facts += _row("blind", f"{_some('query', found.blind_queries)} {verb} no key: attention gives zero there")
    informed = found.informed_queries
    facts += _row("later keys", f"reach {_some('query', informed)}" if informed else "reach no query")
    for path in found.paths:
        facts += _row("", _path_text(path))
    return facts


def _verdict(found: Description) -> str:
    if not found.informed_queries:
        return "safe: no later key reaches any query, so next-token training is honest and generation can be cached"
    says = ["not safe for next-token training:"]
    if found.shown_tokens:
        says.append(f"the loss on {_some('token', found.shown_tokens)} would count answers that were shown;")
    hinted = sorted({query + 1 for query in found.informed_queries} - set(found.shown_tokens))
    if hinted:
        says.append(f"{_some('token', hinted)} would be predicted from what comes after;")
    rest = sorted(set(range(1, found.length)) - {query + 1 for query in found.informed_queries})
    says.append(f"{_some('token', rest)} may be scored" if rest else "no token may be scored")
    return " ".join(says)


def _path_text(path: tuple[int, ...]) -> str:
    query, *relays, key = path
    steps = " <- ".join([f"query {query}", *(f"{relay}" for relay in relays), f"key {key}"])
    return f"{steps} ({'relayed: one layer does not show it' if relays else 'allowed by the mask itself'})"


def _row(label: str, text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=f"{label:<12}", subsequent_indent=" " * 12)


def _some(what: str, numbers: Sequence[int]) -> str:
    plural = {"query": "queries", "token": "tokens"}[what] if len(numbers) > 1 else what
    return f"{plural} {ranges(numbers)}"
