"""Layouts turn a question into slots: which tokens stand where, who sees whom, and which slot predicts which position.

Everything here is index arithmetic on the CPU about the question alone; tokens are filled in afterwards, on whatever
device they are. Each layout keeps `limit <= rank` on its visible slots, so nothing leaks at any depth (DESIGN, section
1).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..masks.tensors import HIDDEN
from .conditional import ResolvedConditional

# the id of a slot whose token is not known; no token of any vocabulary
MASK_ID = -1
IGNORED = -100


@dataclass(frozen=True)
class Slots:
    """The slots of one forward pass; every attribute is a tensor (B, S) on the CPU.

    Attributes:
        positions: long, the position a slot stands at.
        masked: bool, whether it holds [MASK] in place of the token there.
        ranks, limits: long; slot q sees slot k when q == k or ranks[k] <= limits[q]. What fills a row up has rank
            HIDDEN and limit -1, at position 0.
        targets: long, the position whose token the slot predicts; -1 for none.
        predicted_position_ids: long, the position that the slot predicts, where the network has an embedding
            for that; -1 for none.
    """

    positions: Tensor
    masked: Tensor
    ranks: Tensor
    limits: Tensor
    targets: Tensor
    predicted_position_ids: Tensor

    def fill(self, tokens: Tensor, positions: Tensor | None = None, *, names_target: bool = False) -> dict[str, Tensor]:
        """The arguments of `forward`, without labels.

        Args:
            tokens, positions: long (B, T), on any device; positions count from 0 along the row when None.
            names_target: whether slots get the position they predict: `config.target_positions`.
        """
        device = tokens.device
        places, masked, ranks, limits = (
            part.to(device, non_blocking=True) for part in (self.positions, self.masked, self.ranks, self.limits)
        )
        held = tokens.gather(1, places)
        filled = {
            # an id of -1 that should be a token must not pass for [MASK]
            "input_ids": torch.where(held < 0, held - 1, held).masked_fill(masked, MASK_ID),
            "position_ids": places if positions is None else positions.gather(1, places),
            "ranks": ranks,
            "limits": limits,
        }
        if names_target:
            predicted = self.predicted_position_ids.to(device, non_blocking=True)
            known = predicted.clamp(min=0)
            named = known if positions is None else positions.gather(1, known)
            filled["target_position_ids"] = torch.where(predicted < 0, -1, named)
        return filled

    def labels(self, tokens: Tensor) -> Tensor:
        """What each slot should predict, long (B, S): tokens, and -100 where it predicts nothing."""
        targets = self.targets.to(tokens.device, non_blocking=True)
        return tokens.gather(1, targets.clamp(min=0)).masked_fill(targets < 0, IGNORED)

    def slots_predicting(self, length: int) -> Tensor:
        """The slot that predicts each of `length` positions, long (B, length); -1 where none does."""
        found = torch.full((self.positions.shape[0], length + 1), -1)
        slots = torch.arange(self.positions.shape[1]).expand_as(self.positions)
        # slots that predict nothing write into one column too many
        return found.scatter(1, torch.where(self.targets < 0, length, self.targets), slots)[:, :length]


# what fills up a row
EMPTY = {"positions": 0, "masked": False, "ranks": HIDDEN, "limits": -1, "targets": -1, "predicted_position_ids": -1}


@dataclass(frozen=True)
class _Columns:
    # candidates for slots, any number of columns; `key` sorts them, -1 for those that are not there
    positions: Tensor
    masked: Tensor
    ranks: Tensor
    limits: Tensor
    targets: Tensor
    predicted_position_ids: Tensor
    key: Tensor


def lay_out(question: ResolvedConditional, layout: str, known: Tensor | None = None) -> Slots:
    """The slots that answer `question`.

    Args:
        layout: one of LAYOUTS.
        known: long (B,), how many of the first targets are known; only the others are asked, at once, each given those.
            None for the chain rule: each target is asked given all before it.

    Raises:
        ValueError: the layout cannot ask in that order, or not this question at all.
    """
    if not isinstance(layout, str) or layout not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r:.40}")
    return LAYOUTS[layout](question, known)


def lay_out_several(questions: Sequence[ResolvedConditional], layout: str) -> list[Slots]:
    """The slots of several questions about as many sequences each, one by one what `lay_out` gives, but for fillers."""
    found: dict[int, Slots] = {}
    for sees in {one.given_sees for one in questions}:
        alike = [number for number, one in enumerate(questions) if one.given_sees == sees]
        given = torch.cat([questions[number].given for number in alike])
        target = torch.cat([questions[number].target for number in alike])
        step = torch.cat([questions[number].step for number in alike])
        slots = lay_out(ResolvedConditional(given, target, step, sees), layout)
        split = [getattr(slots, name).chunk(len(alike)) for name in EMPTY]
        found |= {
            number: Slots(**dict(zip(EMPTY, own, strict=True))) for number, *own in zip(alike, *split, strict=True)
        }
    return [found[number] for number in range(len(questions))]


def is_chained(layout: str) -> bool:
    """Whether a layout has joint probabilities of several targets, not only the marginals of each."""
    return layout != "masked"


def two_stream(question: ResolvedConditional, known: Tensor | None = None) -> Slots:
    """A content slot for each given and target token; slot i - 1 predicts i, as in GPT-2.

    The content slot at i - 1 is read where it sees just what target i may know; elsewhere a query slot stands beside
    it, seen by nobody: the two streams of XLNet (Yang et al. 2019, section 2.3), shift-aligned and merged.
    """
    rank, base, is_known = ranks_of(question, known)
    content = question.given | (question.target & is_known)
    need = base + (question.step - 1 if known is None else known[:, None])
    place = _places(question)
    before = _shifted(content, False)
    # what stands at i - 1 is known to the reader of i
    is_visible = before & (_shifted(rank, HIDDEN) <= need)
    queried = _queried(question, known)
    merged = queried & before & (_shifted(rank, HIDDEN) == need)
    queried = queried & ~merged
    length = place.shape[1]
    reads = _shifted(torch.where(merged, place, -1), -1, by=-1)
    contents = _Columns(place, ~content, rank, rank, reads, _none(place), _key(content, rank, place))
    queries = _Columns(
        (place - 1).clamp(min=0),
        ~is_visible,
        torch.full_like(rank, HIDDEN),
        need,
        place,
        place,
        _key(queried, need + 2 * length + 2, place),
    )
    return _packed(contents, queries)


def prefix(question: ResolvedConditional, known: Tensor | None = None) -> Slots:
    """Copies of the given tokens in front, then the sequence from its start, causal, [MASK] where nothing is known.

    Temporal order only. The copies see one another and nothing else; slot i - 1 of the sequence predicts i.
    """
    _refuse_order(question, "prefix")
    rank, _, is_known = ranks_of(question, known)
    place = _places(question)
    length = place.shape[1]
    starts = _starts(question)
    front = question.given & ~starts
    last = torch.where(question.target, place, 0).amax(1, keepdim=True)
    if question.documents is not None:
        last = torch.full_like(last, length)
    body = place < last
    is_visible = question.given | (question.target & is_known)
    order = place + length
    nothing = _none(place)
    copies = _Columns(place, ~front, rank, rank, nothing, nothing, _key(front, rank, place))
    reads = _shifted(torch.where(_queried(question, known), place, -1), -1, by=-1)
    sequence = _Columns(place, ~is_visible, order, order, reads, nothing, _key(body, order, place))
    return _packed(copies, sequence)


def sigma(question: ResolvedConditional, known: Tensor | None = None) -> Slots:
    """The sequence in the order it becomes known, each slot given the position that it predicts.

    sigma-GPT (Pannatier et al. 2024, arXiv:2404.09562). The last given slot predicts the first target. Targets that
    are asked at once are predicted by copies of the last known slot, which nobody sees.
    """
    rank, base, is_known = ranks_of(question, known)
    content = question.given | (question.target & is_known)
    place = _places(question)
    documents = torch.zeros_like(place) if question.documents is None else question.documents
    # what becomes known right after a slot: its neighbour in the order of its document
    following = question.given.long() * place + torch.where(question.target, place.shape[1] + question.step, 0)
    reveal_order = torch.where(question.given | question.target, following + documents * (4 * place.shape[1]), _FAR)
    columns = reveal_order.argsort(dim=1, stable=True)
    neighbour = torch.full_like(place, -1)
    neighbour[:, :-1] = columns[:, 1:]
    # also what is known by now was predicted once: a slot gets the same whatever comes later
    is_asked = question.target.gather(1, neighbour.clamp(min=0)) & (neighbour >= 0)
    reads = _none(place).scatter(1, columns, torch.where(is_asked, neighbour, -1))
    contents = _Columns(place, ~content, rank, rank, reads, reads, _key(content, rank, place))
    if known is None:
        return _packed(contents)
    # the slot known last sees all that is known
    last = torch.where(content, reveal_order, -1).argmax(1, keepdim=True).expand_as(place)
    queried = question.target & (question.step > known[:, None] + 1)
    limit = base + known[:, None]
    queries = _Columns(
        last,
        torch.zeros_like(queried),
        torch.full_like(rank, HIDDEN),
        limit,
        place,
        place,
        _key(queried, limit + _FAR_RANK, place),
    )
    return _packed(contents, queries)


def masked(question: ResolvedConditional, known: Tensor | None = None) -> Slots:
    """Every slot sees every slot, with [MASK] where nothing is given; slot i predicts i (Devlin et al. 2019, BERT).

    All targets are asked at once, each given what is known: the layout has no joint probability.
    """
    place = _places(question)
    is_known = torch.zeros_like(question.target) if known is None else question.step <= known[:, None]
    is_visible = question.given | (question.target & is_known)
    reads = torch.where(question.target & ~is_known, place, -1)
    zero = torch.zeros_like(place)
    return Slots(place.contiguous(), ~is_visible, zero, zero, reads, _none(place))


def causal(question: ResolvedConditional, known: Tensor | None = None) -> Slots:
    """GPT-2 as it is: a text up to some position is given, and all that follows it is asked, in temporal order."""
    _refuse_order(question, "causal")
    place, starts = _places(question), _starts(question)
    is_visible = question.given | question.target
    # within a document: nothing after something unseen, nothing given after a target
    holes = is_visible & ~starts & ~_shifted(is_visible, True)
    late = question.given & ~starts & _shifted(question.target, False)
    sees_later = question.given_sees == "all" and bool((question.given & ~starts).any())
    at_once = known is not None and bool((question.target & (question.step > known[:, None] + 1)).any())
    if bool(holes.any()) or bool(late.any()) or sees_later or at_once:
        what = (
            "given_sees='all'" if sees_later else "targets at once" if at_once else "unseen tokens or later given ones"
        )
        raise ValueError(
            f"layout: causal only continues a text, and this question has {what}; give the text up to the first target "
            "with given_sees='earlier', or use another layout"
        )
    is_known = torch.ones_like(is_visible) if known is None else question.step <= known[:, None]
    content = question.given | (question.target & is_known)
    reads = _shifted(torch.where(_queried(question, known), place, -1), -1, by=-1)
    return _packed(_Columns(place, ~content, place, place, reads, _none(place), _key(content, place, place)))


LAYOUTS: dict[str, Callable[[ResolvedConditional, Tensor | None], Slots]] = {
    "two_stream": two_stream,
    "prefix": prefix,
    "sigma": sigma,
    "masked": masked,
    "causal": causal,
}


def positions_by_step(question: ResolvedConditional) -> Tensor:
    """The position of the target asked at each step, long (B, E + 1); column 0 and steps beyond a row's last hold 0."""
    places = torch.arange(question.step.shape[1]).expand_as(question.step)
    table = torch.zeros(len(places), int(question.step.amax()) + 1, dtype=torch.long)
    return table.scatter_add(1, question.step, torch.where(question.target, places, 0))


_FAR = 2**40
_FAR_RANK = 2**31


def ranks_of(question: ResolvedConditional, known: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The rank of each given and target token, HIDDEN elsewhere; the last given rank; whether its token is known.

    All (B, T): long, long and bool; `known` as for `lay_out`.
    """
    if question.given_sees == "all":
        given_rank = torch.zeros_like(question.step)
        base = torch.zeros_like(question.step)
    else:
        count = question.given.long().cumsum(1)
        before = torch.where(_starts(question), count, 0).cummax(1).values
        given_rank = count - before
        base = _last_of_document(given_rank, question.documents)
    rank = torch.where(question.given, given_rank, torch.where(question.target, base + question.step, HIDDEN))
    is_known = torch.ones_like(question.target) if known is None else question.step <= known[:, None]
    return rank, base, is_known


def _queried(question: ResolvedConditional, known: Tensor | None) -> Tensor:
    # bool (B, T), the targets that are not known
    return question.target if known is None else question.target & (question.step > known[:, None])


def _last_of_document(values: Tensor, documents: Tensor | None) -> Tensor:
    # the largest value of each document, at each of its tokens
    if documents is None:
        return values.amax(1, keepdim=True).expand_as(values)
    largest = torch.zeros_like(values).scatter_reduce(1, documents, values, "amax")
    return largest.gather(1, documents)


def _none(place: Tensor) -> Tensor:
    return torch.full_like(place, -1)


def _places(question: ResolvedConditional) -> Tensor:
    return torch.arange(question.given.shape[1]).expand(question.given.shape)


def _starts(question: ResolvedConditional) -> Tensor:
    # bool (B, T), the first token of each document
    starts = torch.zeros_like(question.given)
    starts[:, 0] = True
    if question.documents is not None:
        starts[:, 1:] = question.documents[:, 1:] != question.documents[:, :-1]
    return starts


def _shifted(values: Tensor, fill: int | bool, *, by: int = 1) -> Tensor:
    # the value of the token before (by=1) or after (by=-1)
    moved = torch.full_like(values, fill)
    if by == 1:
        moved[:, 1:] = values[:, :-1]
    else:
        moved[:, :-1] = values[:, 1:]
    return moved


def _key(present: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return torch.where(present, first * second.shape[1] + second, -1)


def _packed(*columns: _Columns) -> Slots:
    # the candidates that are there, by key, in as few columns as the fullest row needs
    joined = {part.name: torch.cat([getattr(one, part.name) for one in columns], dim=1) for part in fields(_Columns)}
    key = joined.pop("key")
    is_there = key >= 0
    width = int(is_there.sum(1).amax())
    order = torch.where(is_there, key, torch.iinfo(torch.long).max).argsort(dim=1, stable=True)[:, :width]
    is_there = is_there.gather(1, order)
    return Slots(**{name: torch.where(is_there, joined[name].gather(1, order), value) for name, value in EMPTY.items()})


def _refuse_order(question: ResolvedConditional, layout: str) -> None:
    if not question.is_temporal:
        raise ValueError(
            f"order: the layout {layout} asks from left to right only; leave the order temporal, or use the layout "
            "two_stream or sigma"
        )
