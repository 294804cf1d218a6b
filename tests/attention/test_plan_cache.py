"""Kept plans: made once for a mask of text alone, right in every mode, never for what may change, and in bounds."""

import copy
import pickle
import threading
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from arbprob_hf import ArbProbForCausalLM, Mask, block_diffusion, causal, documents, heads, pattern, prefix, window
from arbprob_hf.model.attention import backends, plan_cache
from arbprob_hf.model.attention.backends import prepare_attention
from arbprob_hf.model.attention.plan import Plan
from arbprob_hf.model.masks.tiles import Sizes
from tests.masks.oracles import micro, random_ids

LENGTH = 300
BACKENDS = "eager", "sdpa", "flex_attention"
TEXTS = "causal & window(40)", "heads(causal & window(30), causal)", "causal | prefix(3)", "~causal & window(9)"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch) -> plan_cache.PlanCache:
    """An empty one."""
    made = plan_cache.PlanCache()
    monkeypatch.setattr(plan_cache, "PLANS", made)
    return made


def sizes(batch: int = 2, length: int = LENGTH, offset: int = 0) -> Sizes:
    return Sizes(batch, 2, length, offset + length, offset, torch.device("cpu"))


def plan_of(mask: Mask, own: Sizes | None = None, backend: str = "sdpa", dtype: torch.dtype = torch.float32) -> Plan:
    return prepare_attention(mask, own or sizes(), backend=backend, dtype=dtype)


def attended(plan: Plan, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(0)
    return plan.attend(*torch.randn(3, batch, 2, LENGTH, 8, dtype=dtype).unbind(), scaling=0.3, dropout=0.0)[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("text", TEXTS)
def test_equal_masks_of_text_share_one_plan_and_numbers_for_any_number_of_rows(text: str, backend: str) -> None:
    first = plan_of(Mask.parse(text), backend=backend)
    # another object that says the same
    assert plan_of(pickle.loads(pickle.dumps(Mask.parse(text))), sizes(3), backend) is first
    with mock.patch.object(plan_cache, "_is_text", return_value=False):
        fresh = plan_of(Mask.parse(text), sizes(3), backend)
    assert fresh is not first
    assert first.path == fresh.path
    assert attended(first, 3).equal(attended(fresh, 3))


def test_another_length_dtype_backend_number_of_heads_or_mask_has_a_plan_of_its_own() -> None:
    mask = causal() & window(40)
    others = [
        plan_of(mask),
        plan_of(mask, sizes(length=LENGTH - 1)),
        plan_of(mask, Sizes(2, 3, LENGTH, LENGTH, 0, torch.device("cpu"))),
        plan_of(mask, Sizes(2, 2, LENGTH, LENGTH + 9, 0, torch.device("cpu"))),
        plan_of(mask, dtype=torch.bfloat16),
        plan_of(mask, backend="eager"),
        plan_of(causal() & window(41)),
    ]
    assert len(set(map(id, others))) == len(others)


def stripes(b, h, q, k, step):
    return (q - k) % step == 0


class Other(type(causal())):  # type: ignore[misc]
    """A class of somebody's own may be anything."""


NOT_KEPT: dict[str, tuple[Callable[[], Mask], Sizes]] = {
    "tensor": (lambda: Mask.of(torch.ones(LENGTH, LENGTH).tril()), sizes()),
    "documents": (lambda: causal() & documents(torch.arange(LENGTH) // 50), sizes()),
    "shifted": (lambda: (causal() & window(40)).shifted(torch.zeros(1, LENGTH, dtype=torch.long)), sizes()),
    "head of tensors": (lambda: heads(causal(), documents(torch.arange(LENGTH) // 50)), sizes()),
    "custom": (lambda: pattern(stripes)(3), sizes()),
    "own class": (lambda: Other() & window(40), sizes()),
    "step": (lambda: causal() & window(40), sizes(length=1)),
    "cached": (lambda: causal() & window(40), sizes(length=260, offset=40)),
}


@pytest.mark.parametrize(("make", "own"), NOT_KEPT.values(), ids=NOT_KEPT)
def test_what_holds_tensors_or_rules_or_goes_on_from_a_cache_is_not_kept(
    make: Callable[[], Mask], own: Sizes, cache: plan_cache.PlanCache
) -> None:
    assert plan_of(make(), own) is not plan_of(make(), own)
    assert len(cache) == 0


def test_a_pattern_defined_anew_is_obeyed_by_the_next_pass() -> None:
    pattern(stripes)
    model, ids = micro(mask="causal & stripes(3)", n_positions=LENGTH), random_ids(1, LENGTH)
    with torch.no_grad():
        before = model(ids).logits

        def stripes_again(b, h, q, k, step):
            return (q - k) % step < 2

        stripes_again.__qualname__, stripes_again.__name__ = stripes.__qualname__, "stripes"
        pattern(stripes_again)
        after, expected = (one(ids).logits for one in (model, micro(mask="causal & stripes(3)", n_positions=LENGTH)))
    assert not after.equal(before)
    assert after.equal(expected)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("length", [20, LENGTH])
def test_a_plan_made_in_inference_mode_serves_training(backend: str, length: int) -> None:
    text, ids = "causal & window(9)", random_ids(2, length)

    def gradient(first: Callable[[], object] | None) -> Tensor:
        plan_cache.PLANS.clear()
        model = micro(mask=text, backend=backend, n_positions=LENGTH)
        if first is not None:
            with torch.inference_mode():
                model(ids)
        model(ids, labels=ids).loss.backward()
        # and the other way round
        with torch.inference_mode():
            assert model(ids).logits.isfinite().all()
        found = model.transformer.wpe.weight.grad
        assert found is not None
        return found

    assert gradient(first=print).equal(gradient(first=None))


def test_tensors_changed_in_place_are_read_again() -> None:
    ids = torch.arange(LENGTH)[None] // 100
    mask = causal() & documents(ids)
    table = torch.ones(LENGTH, LENGTH).tril().bool()
    for one, change in ((mask, lambda: ids.copy_(torch.arange(LENGTH)[None] // 60)), (Mask.of(table), table.t_)):
        before = attended(plan_of(one))
        change()
        after = attended(plan_of(one))
        assert not before.equal(after)
        torch.testing.assert_close(after, attended(plan_of(one, backend="eager")), atol=1e-5, rtol=0)


def test_fake_tensors_leave_nothing_behind(cache: plan_cache.PlanCache) -> None:
    with FakeTensorMode():
        plan_of(causal() & window(40), sizes(length=20))
    assert len(cache) == 0
    plan = plan_of(causal() & window(40), sizes(length=20))
    assert type(plan.scores) is Tensor  # type: ignore[attr-defined]


def test_meta_tensors_compilers_and_transforms_leave_nothing_behind(cache: plan_cache.PlanCache) -> None:
    with torch.device("meta"):
        model = ArbProbForCausalLM(micro(mask="causal & window(9)").config)
    model(torch.zeros(1, 20, dtype=torch.long, device="meta"))
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: x * attended_short(x).sum(), backend="eager", fullgraph=True)
    compiled(torch.ones(3))
    torch.func.vmap(attended_short)(torch.ones(3))
    assert len(cache) == 0


def attended_short(x: Tensor) -> Tensor:
    states = torch.ones(1, 2, 20, 8) * x.sum()
    # torch's fused kernels know no vmap
    plan = plan_of(causal() & window(9), sizes(1, 20), "eager")
    return plan.attend(states, states, states, scaling=1.0, dropout=0.0)[0]


def test_a_default_device_of_torch_changes_no_plan() -> None:
    with torch.device("meta"):
        plan = plan_of(~causal() & window(9))
    assert attended(plan).isfinite().all()


def test_a_network_carries_no_plan_into_copies_and_pickles(cache: plan_cache.PlanCache) -> None:
    model = micro(mask="causal & window(40)", n_positions=LENGTH)
    before = len(pickle.dumps(model))
    with torch.no_grad():
        ids = random_ids(1, LENGTH)
        expected = model(ids).logits
        assert len(cache) == 1
        assert len(pickle.dumps(model)) < before + 1000
        assert copy.deepcopy(model)(ids).logits.equal(expected)
    assert len(cache) == 1


def test_threads_share_plans_and_get_the_right_ones() -> None:
    states = torch.randn(3, 1, 2, LENGTH, 8).unbind()
    wrong: list[int] = []

    def seen(plan: Plan) -> Tensor:
        return plan.attend(*states, scaling=0.3, dropout=0.0)[0]

    wanted = {size: seen(plan_of(causal() & window(size), backend="eager")) for size in range(1, 9)}

    def work() -> None:
        for size in (*wanted, *reversed(wanted)):
            if not torch.allclose(seen(plan_of(causal() & window(size))), wanted[size], atol=1e-5):
                wrong.append(size)

    with mock.patch.object(plan_cache, "MOST_PLANS", 3):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert len(plan_cache.PLANS) <= 3
    assert not wrong


def test_the_oldest_plan_goes_first_and_a_large_one_is_not_kept(cache: plan_cache.PlanCache) -> None:
    with mock.patch.object(plan_cache, "MOST_PLANS", 2):
        first, second = plan_of(window(1)), plan_of(window(2))
        assert plan_of(window(1)) is first
        plan_of(window(3))
        assert len(cache) == 2
        assert plan_of(window(1)) is first
        assert plan_of(window(2)) is not second
    cache.clear()
    # 300 x 300 scores in float32
    mask = prefix(LENGTH - 1)
    with mock.patch.object(plan_cache, "MOST_BYTES", 4 * LENGTH * LENGTH - 1):
        assert plan_of(mask) is not plan_of(mask)
        assert len(cache) == 0
    with mock.patch.object(plan_cache, "MOST_BYTES", 4 * LENGTH * LENGTH):
        assert plan_of(mask) is plan_of(mask)
        plan_of(block_diffusion(LENGTH // 2, 3))
        assert len(cache) == 1


def test_a_network_plans_once_for_all_forwards() -> None:
    model = micro(mask=["causal & window(40)", "causal"], n_positions=LENGTH)
    with torch.no_grad(), mock.patch.object(backends, "structured_plan", wraps=backends.structured_plan) as planned:
        for batch in (1, 3, 2):
            model(random_ids(batch, LENGTH))
    assert planned.call_count == 1
