"""Reach equals brute force and what a network really passes on; seeded bugs show that the checks can fail."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from arbprob_hf import HIDDEN, ArbProbForCausalLM, Mask, causal, documents, full, order, padding, prefix, window
from arbprob_hf.model import modeling_arbprob
from arbprob_hf.model.attention.backends import prepare_attention
from arbprob_hf.model.attention.plan import AdditivePlan, FusedPlan, Plan, to_dense
from arbprob_hf.model.masks.tiles import Sizes
from tests.masks.leaks import findings
from tests.masks.oracles import micro, random_ids, reference_logits, whole
from tests.tables import quick


def paths(table: list[list[bool]], layers: int) -> list[list[bool]]:
    """Which slot's input can arrive where: walk the graph layer by layer."""
    size = len(table)
    arrived = [{q} for q in range(size)]
    for _ in range(layers):
        arrived = [set().union(arrived[q], *(arrived[k] for k in range(size) if table[q][k])) for q in range(size)]
    return [[k in arrived[q] for k in range(size)] for q in range(size)]


@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 10_000), st.sampled_from([0.1, 0.3, 0.6]))
def test_reach_is_what_a_walk_over_the_layers_finds(size: int, layers: int, seed: int, density: float) -> None:
    table = torch.rand(2, size, size, generator=torch.Generator().manual_seed(seed)) < density
    reach = Mask.of(table).reach(size, layers, batch=2)
    assert reach.dtype == torch.bool
    assert reach.tolist() == [paths(row.tolist(), layers) for row in table]


def test_reach_unites_the_heads() -> None:
    table = torch.zeros(1, 2, 3, 3, dtype=torch.bool)
    table[0, 0, 1, 0] = table[0, 1, 2, 1] = True
    assert Mask.of(table).reach(3, 1)[0].tolist() == [[True, False, False], [True, True, False], [False, True, True]]
    assert Mask.of(table).reach(3, 2)[0, 2, 0]


@given(st.data())
def test_limits_up_to_ranks_relay_nothing_at_any_depth(data: st.DataObject) -> None:
    """The theorem of the design: where limit <= rank on every visible slot, reach is the mask itself."""
    ranks = torch.tensor(data.draw(st.lists(st.sampled_from([0, 1, 2, 3, HIDDEN]), min_size=1, max_size=8)))
    below = torch.tensor(data.draw(st.lists(st.integers(0, 4), min_size=len(ranks), max_size=len(ranks))))
    mask = order(ranks, torch.where(ranks < HIDDEN, ranks - below, below))
    seen = mask.dense(len(ranks))[0] | torch.eye(len(ranks), dtype=torch.bool)
    assert mask.reach(len(ranks), 9).equal(seen)


def test_a_limit_above_its_rank_relays_what_it_must_not() -> None:
    mask = order(torch.tensor([2, 0, 1]), torch.tensor([2, 2, 0]))
    assert not mask.dense(3)[0, 0, 2, 0]
    assert mask.reach(3, 2)[0, 2, 0]


def cases(length: int) -> dict[str, Mask]:
    """Masks with another rule in every batch row of two, as a trainer would ship them, and fixed ones."""
    torch.manual_seed(length)
    half = length // 2
    ids = torch.arange(length).repeat(2, 1).ge(torch.tensor([[half], [3]])).long()
    ranks = torch.stack([torch.randperm(length), torch.arange(length) // 3])
    hidden = ranks.masked_fill(torch.rand(2, length) < 0.2, HIDDEN)
    return {
        "causal": causal(),
        "full": full(),
        "window": causal() & window(3),
        "both ways": window(2),
        "prefix": causal() | prefix(4),
        "documents": causal() & documents(ids),
        "padding": causal() & padding(ids),
        "any order": order(ranks),
        "hidden slots": order(hidden, ranks - 1),
        "relaying limits": order(ranks, ranks + 1),
        "random": Mask.of(torch.rand(2, length, length) < 0.2),
        "random per head": Mask.of(torch.rand(2, 2, length, length) < 0.1),
    }


NAMES = list(cases(16))


@pytest.mark.parametrize(
    ("layers", "length", "backend"),
    quick([(1, 16, "eager"), (2, 17, "sdpa"), (3, 16, "sdpa")], [(2, 17, "sdpa")]),
)
@pytest.mark.parametrize("name", NAMES)
def test_what_a_network_passes_on_is_what_reach_says(name: str, length: int, backend: str, layers: int) -> None:
    mask = cases(length)[name]
    model = micro(layers=layers, backend=backend, seed=layers, resid_pdrop=0.1)
    assert findings(model, mask, length=length, batch=2, mask=mask) == set()


Prepared = Callable[..., Plan]


def mutated(change: Callable[[Tensor, Sizes], Tensor]) -> Prepared:
    """A bug in the mask itself: `change` gets the right one, bool (B or 1, H or 1, T, T)."""

    def prepare(resolved: Mask, sizes: Sizes, **options: object) -> Plan:
        right = to_dense(resolved, sizes).expand(sizes.batch, sizes.heads, -1, -1)
        return prepare_attention(Mask.of(change(right.clone(), sizes)), sizes, **options)

    return prepare


def one_head_open(keep: Tensor, sizes: Sizes) -> Tensor:
    keep[:, 1] = True
    return keep


def one_entry_open(keep: Tensor, sizes: Sizes) -> Tensor:
    keep[-1, 0, 9, 2] = True
    return keep


def one_entry_shut(keep: Tensor, sizes: Sizes) -> Tensor:
    keep[-1, :, -2, -1] = False
    return keep


MASK_BUGS: dict[str, Callable[[Tensor, Sizes], Tensor]] = {
    "queries see one token further": lambda keep, _: keep | keep.roll(1, -1),
    "keys shifted by one": lambda keep, _: keep.roll(1, -1),
    "queries shifted by one": lambda keep, _: keep.roll(-1, -2),
    "transposed": lambda keep, _: keep.mT,
    "negated": lambda keep, _: ~keep,
    "batch row 0 for all": lambda keep, _: keep[:1].expand_as(keep),
    "rows of the batch exchanged": lambda keep, _: keep.flip(0),
    "one head sees all": one_head_open,
    "one entry too many": one_entry_open,
    "one entry too few": one_entry_shut,
    "no mask at all": lambda keep, _: torch.ones_like(keep),
    "causal whatever is asked": lambda keep, _: torch.ones_like(keep).tril(),
    "only itself": lambda keep, sizes: keep & torch.eye(sizes.q_len, dtype=torch.bool),
    "wrong at odd lengths": lambda keep, sizes: torch.ones_like(keep) if sizes.q_len % 2 else keep,
    "wrong beyond sixteen": lambda keep, _: torch.cat([keep[..., :16], torch.ones_like(keep[..., 16:])], -1),
}


def checked(model: ArbProbForCausalLM) -> set[str]:
    """Findings over a mask with two different rows and gaps, at both lengths."""
    found: set[str] = set()
    for length in (16, 17):
        rows = torch.stack([torch.ones(length, length).tril(), torch.ones(length, length).triu()])
        rows[:, :, 5] *= torch.eye(length)[5]
        mask = Mask.of(rows)
        found |= findings(model, mask, length=length, batch=2, mask=mask)
    return found


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_the_unbroken_network_raises_no_alarm(backend: str) -> None:
    assert checked(micro(backend=backend)) == set()


@pytest.mark.parametrize("bug", MASK_BUGS)
def test_a_seeded_bug_in_the_mask_is_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_arbprob, "prepare_attention", mutated(MASK_BUGS[bug]))
    assert checked(micro()) != set()


def test_an_entry_missing_beside_a_relay_is_found_by_the_reference_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why agreement with an independent network is tested too: a mask that is too strict leaks nothing."""

    def two_behind_shut(keep: Tensor, sizes: Sizes) -> Tensor:
        keep[..., 9, 7] = False
        return keep

    model, ids = micro(), random_ids(1, 16)
    right = reference_logits(model, ids, whole(causal().dense(16), 1, 2))
    assert (model(ids).logits - right).abs().max() <= 1e-5
    monkeypatch.setattr(modeling_arbprob, "prepare_attention", mutated(two_behind_shut))
    assert findings(model, causal(), length=16, batch=1) == set()
    assert (model(ids).logits - right).abs().max() > 1e-2


@pytest.mark.parametrize("layer", [0, 1], ids=["first", "last"])
def test_a_layer_without_a_mask_is_found(layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    right = modeling_arbprob.ArbProbModel._layer_plans

    def wrong(self: modeling_arbprob.ArbProbModel, *arguments: object) -> list[Plan]:
        masks = right(self, *arguments)
        masks[layer] = FusedPlan(causal=False)
        return masks

    monkeypatch.setattr(modeling_arbprob.ArbProbModel, "_layer_plans", wrong)
    assert checked(micro()) != set()


def test_a_mask_left_out_in_training_is_found_there_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = micro()
    all_open = mutated(lambda keep, _: torch.ones_like(keep))
    monkeypatch.setattr(
        modeling_arbprob,
        "prepare_attention",
        lambda *a, **o: all_open(*a, **o) if model.training else prepare_attention(*a, **o),
    )
    assert checked(model) == {"embeddings leak in training"}


def test_a_mask_kept_from_the_first_call_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    stale: dict[tuple[int, int], Plan] = {}

    def prepare(resolved: Mask, sizes: Sizes, **options: object) -> Plan:
        return stale.setdefault((sizes.q_len, sizes.kv_len), prepare_attention(resolved, sizes, **options))

    monkeypatch.setattr(modeling_arbprob, "prepare_attention", prepare)
    model, other = micro(), Mask.of(torch.rand(16, 16) < 0.3)
    assert findings(model, causal(), length=16, batch=1) == set()
    assert findings(model, other, length=16, batch=1, mask=other) != set()


@pytest.mark.parametrize("penalty", [-1e4, -10.0])
def test_forbidden_scores_that_are_merely_low_are_found(penalty: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finite penalty: embeddings of 1e3 give scores that outweigh -10; a query with nothing to see outweighs any."""

    def prepare(resolved: Mask, sizes: Sizes, **options: object) -> Plan:
        keep = to_dense(resolved, sizes)
        scores = torch.zeros(keep.shape, dtype=options["dtype"]).masked_fill(~keep, penalty)
        return AdditivePlan(scores)

    monkeypatch.setattr(modeling_arbprob, "prepare_attention", prepare)
    nothing = Mask.of(torch.ones(16, 16, dtype=torch.bool).tril(-1))
    assert findings(micro(), nothing, length=16, batch=1, mask=nothing) != set()


def test_one_layer_cannot_show_a_relay_and_two_can() -> None:
    """The bug of the original research code: conditioning slots that see the body."""
    ranks, limits = torch.tensor([0] * 4 + list(range(1, 13))), torch.tensor([12] * 4 + list(range(1, 13)))
    leaky, meant = order(ranks, limits), order(ranks)
    assert leaky.dense(16)[0, 0, 4:].equal(meant.dense(16)[0, 0, 4:])
    assert meant.reach(16, 2)[0, 4:].equal(leaky.reach(16, 1)[0, 4:])
    assert not meant.reach(16, 2)[0, 4:].equal(leaky.reach(16, 2)[0, 4:])
    assert findings(micro(layers=2), leaky, length=16, batch=1, mask=leaky) == set()
    assert findings(micro(layers=2), meant, length=16, batch=1, mask=leaky) != set()
