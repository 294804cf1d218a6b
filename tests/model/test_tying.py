"""The head is the embedding: one tensor, also after resizing, saving, loading and moving."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from arbprob_hf import ArbProbForCausalLM
from tests.model.twins import SIZES, ours_alone, tokens, twins
from tests.networks import far


def is_tied(model: ArbProbForCausalLM) -> bool:
    same = model.lm_head.weight is model.transformer.wte.weight
    return same and model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_the_head_is_the_embedding() -> None:
    model = ours_alone()
    assert is_tied(model)
    assert model.get_output_embeddings() is model.lm_head
    assert model.get_input_embeddings() is model.transformer.wte


def test_the_gradient_is_the_sum_of_both_uses() -> None:
    tied, untied, ids = ours_alone(), ours_alone(tie_word_embeddings=False), tokens()
    untied.load_state_dict(tied.state_dict())
    for model in (tied, untied):
        model(ids, labels=ids).loss.backward()
    both = untied.lm_head.weight.grad + untied.transformer.wte.weight.grad
    assert far(tied.transformer.wte.weight.grad, both) <= 1e-12


@pytest.mark.parametrize("size", [120, 90])
def test_resizing_keeps_it_tied_and_the_old_rows_as_they_were(size: int) -> None:
    model, ids = ours_alone(), tokens(vocabulary=80)
    before, logits = model.transformer.wte.weight.detach().clone(), model(ids).logits
    model.resize_token_embeddings(size, mean_resizing=False)
    rows = min(size, SIZES["vocab_size"])
    assert is_tied(model)
    assert model.config.vocab_size == model.lm_head.out_features == size
    assert torch.equal(model.transformer.wte.weight[:rows], before[:rows])
    assert far(model(ids).logits[..., :rows], logits[..., :rows]) <= 1e-12


def test_new_tokens_are_taken_and_scored_after_resizing() -> None:
    model = ours_alone()
    model.resize_token_embeddings(110, mean_resizing=False)
    ids = torch.tensor([[5, 105, 109, 7]])
    assert model(ids, labels=ids).loss.isfinite()
    with pytest.raises(ValueError, match=r"input_ids: expected 0 to 109, got 110"):
        model(torch.tensor([[110]]))


def test_resizing_means_what_it_means_in_gpt2() -> None:
    ours, theirs = twins()
    for model in (ours, theirs):
        torch.manual_seed(0)
        model.resize_token_embeddings(107)
    ids = tokens()
    assert far(ours(ids).logits[..., :101], theirs(ids).logits[..., :101]) <= 1e-10
    assert ours(ids).logits.shape == theirs(ids).logits.shape


def test_resizing_to_a_multiple_pads() -> None:
    model = ours_alone()
    model.resize_token_embeddings(101, pad_to_multiple_of=64, mean_resizing=False)
    assert model.config.vocab_size == 128
    assert is_tied(model)


def test_a_resized_model_travels_through_a_checkpoint(tmp_path: Path) -> None:
    model = ours_alone()
    model.resize_token_embeddings(120, mean_resizing=False)
    model.save_pretrained(tmp_path)
    again = ArbProbForCausalLM.from_pretrained(tmp_path)
    ids = tokens(vocabulary=120)
    assert is_tied(again)
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_a_checkpoint_holds_the_tensor_once(tmp_path: Path) -> None:
    ours_alone().save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


def test_an_untied_checkpoint_holds_and_gives_back_both(tmp_path: Path) -> None:
    model, ids = ours_alone(tie_word_embeddings=False), tokens()
    model.save_pretrained(tmp_path)
    again = ArbProbForCausalLM.from_pretrained(tmp_path)
    assert not is_tied(again)
    assert "lm_head.weight" in load_file(tmp_path / "model.safetensors")
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_a_change_of_dtype_keeps_it_tied() -> None:
    assert is_tied(ours_alone().to(torch.bfloat16))


def test_parameters_count_the_tensor_once() -> None:
    names = [name for name, _ in ours_alone().named_parameters()]
    assert "transformer.wte.weight" in names
    assert "lm_head.weight" not in names
