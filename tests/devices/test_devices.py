"""The same answers on every device there is, as on the CPU in float64: run on a machine with a GPU to check it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from arbprob_hf import (
    ArbProbConfig,
    ArbProbForCausalLM,
    Conditional,
    Mask,
    causal,
    documents,
    full,
    heads,
    order,
    padding,
    prefix,
    window,
)
from arbprob_hf.model.questions.layouts import lay_out

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
BACKENDS = ["eager", "sdpa", "flex_attention"]
BATCH, LENGTH, VOCABULARY = 2, 200, 53
# float32 against float64
CLOSE = dict(atol=5e-4, rtol=5e-4)
RANKS = torch.stack([torch.randperm(LENGTH, generator=torch.Generator().manual_seed(0)), torch.arange(LENGTH) // 7])
MASKS: dict[str, Mask] = {
    "causal": causal(),
    "full": full(),
    "window": causal() & window(40),
    "prefix": causal() | prefix(150),
    "per head": heads(causal(), window(30)),
    "documents": causal() & documents(torch.stack([torch.arange(LENGTH) // 100, torch.arange(LENGTH) // 77])),
    "padding": causal() & padding(torch.arange(LENGTH).repeat(2, 1) > torch.tensor([[0], [70]])),
    "order": order(RANKS, RANKS - 1),
    "tensor": Mask.of(torch.rand(2, 2, LENGTH, LENGTH, generator=torch.Generator().manual_seed(0)) < 0.1),
    "blind": causal() & window(5) & ~prefix(9),
}
# torch's flex_attention has no backward on the CPU
TEACHABLE = [
    (device, backend) for device in DEVICES for backend in BACKENDS if (device, backend) != ("cpu", BACKENDS[2])
]
devices = pytest.mark.parametrize("device", DEVICES)
backends = pytest.mark.parametrize("backend", BACKENDS)
# torch's compiler, on its first use, which would also have float32 products of less precision; and the debug mode below
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
]


def network(**fields: Any) -> ArbProbForCausalLM:
    """A network of two layers in float64 on the CPU, with weights large enough that every allowed key matters."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=VOCABULARY, n_positions=2 * LENGTH, n_embd=32, n_layer=2, n_head=2, initializer_range=0.2)
    off = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)
    return ArbProbForCausalLM(ArbProbConfig(**{**sizes, **off, **fields})).double().eval()


def on(model: ArbProbForCausalLM, device: str, backend: str = "sdpa") -> ArbProbForCausalLM:
    """A copy in float32 on a device."""
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    copy.set_attn_implementation(backend)
    return copy.eval().to(device)


def tokens(length: int = LENGTH, batch: int = BATCH) -> Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))


@contextmanager
def no_waiting(device: str) -> Iterator[None]:
    """Any wait of the CPU for the GPU is an error inside."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@devices
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_without_a_mask_the_numbers_are_gpt2s_on_the_same_device(device: str, backend: str) -> None:
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=2, bos_token_id=0)
    theirs = GPT2LMHeadModel(config).eval().to(device)
    theirs.set_attn_implementation(backend)
    ours = network(n_positions=LENGTH).float()
    ours.load_state_dict(theirs.state_dict())
    ours.set_attn_implementation(backend)
    ours.to(device)
    ids = tokens().to(device)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-5, rtol=1e-5)


@devices
@pytest.mark.parametrize("items", [None, 7], ids=["mean", "items"])
def test_a_step_of_training_never_waits_for_the_device(device: str, items: int | None) -> None:
    model = on(network(), device).train()
    exact = network().train()
    labels = tokens().masked_fill(torch.arange(LENGTH) % 3 == 0, -100)
    expected = exact(tokens(), labels=labels, num_items_in_batch=items, return_logits=False).loss
    ids, labels = tokens().to(device), labels.to(device)
    with no_waiting(device):
        loss = model(ids, labels=labels, num_items_in_batch=items, return_logits=False).loss
        loss.backward()
    torch.testing.assert_close(loss.detach().cpu().double(), expected.detach(), **CLOSE)


@devices
@backends
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks_mean_the_same(device: str, backend: str, mask: Mask) -> None:
    with torch.no_grad():
        exact = network()(tokens(), mask=mask).logits
        found = on(network(), device, backend)(tokens().to(device), mask=mask).logits
    torch.testing.assert_close(found.cpu().double(), exact, **CLOSE)


@pytest.mark.parametrize(("device", "backend"), TEACHABLE)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks_teach_the_same(device: str, backend: str, mask: Mask) -> None:
    model = network()
    model(tokens(), mask=mask, labels=tokens()).loss.backward()
    copy = on(model, device, backend)
    copy(tokens().to(device), mask=mask, labels=tokens().to(device)).loss.backward()
    for weight, other in zip(copy.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(weight.grad.cpu().double(), other.grad, atol=2e-3, rtol=2e-3)


@devices
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_generation_with_a_cache_writes_what_whole_passes_would(device: str, backend: str) -> None:
    model = on(network(), device, backend)
    ids, mask = tokens(12).to(device), causal() & window(5)
    written = model.generate(ids, mask=mask, max_new_tokens=9, do_sample=False, pad_token_id=0, eos_token_id=None)
    expected = ids
    for _ in range(9):
        with torch.no_grad():
            logits = model(expected, mask=mask, use_cache=False).logits[:, -1]
        expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(written, expected)


def asked(number: int = 40) -> Conditional:
    return Conditional([0, *range(5, number, 3)], [i for i in range(1, number) if i < 5 or (i - 5) % 3 == 1])


@devices
@backends
@pytest.mark.parametrize("layout", ["two_stream", "prefix", "sigma"])
def test_questions_are_answered_alike(device: str, backend: str, layout: str) -> None:
    model = network(layout=layout, mask_token=True, given_sees="all", target_positions=layout == "sigma")
    with torch.no_grad():
        for name in ("wme", "wtpe")[: 1 + (layout == "sigma")]:
            getattr(model.transformer, name).weight.normal_()
    with torch.no_grad():
        exact = model.log_prob(tokens(40), asked())
        found = on(model, device, backend).log_prob(tokens(40).to(device), asked())
    torch.testing.assert_close(found.cpu().double(), exact.double(), **CLOSE)


@devices
@pytest.mark.parametrize("method", ["sequential", "speculative", "fused"])
def test_samples_have_the_log_probabilities_that_one_pass_scores(device: str, method: str) -> None:
    model = on(network(layout="two_stream", mask_token=True, given_sees="all"), device)
    found = model.sample(tokens(40, 5).to(device), asked(), method=method)
    torch.testing.assert_close(found.log_probs, model.log_prob(found.sequences, asked()), **CLOSE)


@devices
def test_a_generator_of_the_device_decides_tokens_and_order(device: str) -> None:
    model = on(network(layout="two_stream", mask_token=True, given_sees="all"), device)
    ask = Conditional([0], range(1, 12), "random")
    first, again, other = (
        model.sample(tokens(12, 5).to(device), ask, generator=torch.Generator(device).manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.sequences, again.sequences)
    assert torch.equal(first.order, again.order)
    assert not torch.equal(first.sequences, other.sequences)
    assert not torch.equal(first.order, other.order)


@devices
@backends
@torch.no_grad()
def test_what_may_not_be_seen_changes_nothing_not_even_a_bit(device: str, backend: str) -> None:
    model = on(network(layout="two_stream", mask_token=True, given_sees="all"), device, backend)
    ids, ask = tokens(40).to(device), asked()
    before = model.log_prob(ids, ask)
    unseen = [i for i in range(40) if i not in ask.given and i not in ask.target]
    changed = ids.clone()
    changed[:, [*unseen, max(ask.target)]] = (ids[:, [*unseen, max(ask.target)]] + 1) % VOCABULARY
    rest = [i for i in ask.target if i != max(ask.target)]
    after = model.log_prob(changed, ask)
    assert torch.equal(before[:, rest], after[:, rest])
    assert not torch.equal(before, after)


@devices
def test_slots_and_blocks_never_wait_for_the_device(device: str) -> None:
    model = on(network(layout="two_stream", mask_token=True, given_sees="all"), device)
    slots = lay_out(asked().resolve(BATCH, 40, given_sees="all"), "two_stream")
    ids = tokens(40).to(device)
    # what a data loader does beforehand
    moved = {name: value.pin_memory() if device == "cuda" else value for name, value in vars(slots).items()}
    slots = type(slots)(**moved)
    with no_waiting(device):
        states = model.transformer(**slots.fill(ids), use_cache=False).last_hidden_state
        labels = slots.labels(ids)
        states.square().mean().backward()
    assert labels.device.type == device


@devices
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_blocks_under_a_mask_of_the_device_never_wait_for_it(device: str, mask: Mask) -> None:
    model = on(network(), device)
    ids, dense = tokens().to(device), mask.dense(LENGTH, LENGTH, batch=BATCH, heads=2).to(device)
    with no_waiting(device):
        states = model.transformer(ids, attention_mask=dense, use_cache=False).last_hidden_state
        states.square().mean().backward()
    torch.testing.assert_close(states, model.transformer(ids, mask=mask, use_cache=False).last_hidden_state, **CLOSE)
    assert all(torch.isfinite(weight.grad).all() for weight in model.transformer.parameters())


@devices
@pytest.mark.parametrize("backend", ["sdpa", "flex_attention"])
def test_bfloat16_stays_near(device: str, backend: str) -> None:
    model = network(layout="two_stream", mask_token=True, given_sees="all", initializer_range=0.1)
    with torch.no_grad():
        exact = model.log_prob(tokens(40), asked())
        found = on(model, device, backend).to(torch.bfloat16).log_prob(tokens(40).to(device), asked())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.cpu().double(), exact.double(), atol=0.15, rtol=0.05)


@devices
def test_a_compiled_network_gives_the_same(device: str) -> None:
    model = on(network(), device)
    ids = tokens().to(device)
    torch.compiler.reset()
    with torch.no_grad():
        expected = model(ids, mask=causal() & window(40), use_cache=False).logits
        backend = "inductor" if device == "cuda" else "eager"
        found = torch.compile(model, backend=backend)(ids, mask=causal() & window(40), use_cache=False).logits
    torch.testing.assert_close(found, expected, **CLOSE)


class Blocks(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Rows of random tokens with themselves as labels."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = torch.randint(VOCABULARY, (24,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": row, "labels": row}


@devices
def test_the_trainer_learns_on_the_device_in_bfloat16(device: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = dict(max_steps=30, per_device_train_batch_size=8, learning_rate=1e-2, report_to="none")
    arguments = TrainingArguments(
        str(tmp_path), bf16=True, use_cpu=device == "cpu", logging_steps=10, disable_tqdm=True, **options
    )
    trainer = Trainer(network().float(), arguments, train_dataset=Blocks())
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert trainer.model.device.type == device
    assert losses[-1] < 0.8 * losses[0]
