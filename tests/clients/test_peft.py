"""PEFT: LoRA trains on our layers as on GPT-2's, merges into the weights, and comes back onto a downloaded model."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.clients.micro import tokens
from tests.networks import far

# PEFT calls methods of transformers that go by other names now
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")


@dataclass(frozen=True)
class Trained:
    """What a few steps of LoRA left."""

    losses: list[float]
    folder: Path
    model: Any
    logits: Tensor


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


def adapter(**options: Any) -> LoraConfig:
    options = {"target_modules": "all-linear", "fan_in_fan_out": True, **options}
    return LoraConfig(r=4, lora_alpha=16, task_type="CAUSAL_LM", **options)


def trained(base: Path, folder: Path) -> Trained:
    torch.manual_seed(3)
    model = get_peft_model(loaded(base), adapter())
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
    losses = []
    for step in range(4):
        ids = tokens(seed=step % 2)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.save_pretrained(folder)
    model.eval()
    with torch.no_grad():
        return Trained(losses, folder, model, model(tokens()).logits)


@pytest.fixture(scope="module")
def runs(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    root = tmp_path_factory.mktemp("adapters")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        return {name: trained(folders[name], root / name) for name in ("ours", "theirs")}


def test_lora_trains_ours_as_it_trains_gpt2(runs: dict[str, Trained]) -> None:
    assert runs["ours"].losses == pytest.approx(runs["theirs"].losses, rel=1e-5)
    assert runs["ours"].losses[2] < runs["ours"].losses[0]
    assert far(runs["ours"].logits, runs["theirs"].logits) < 1e-4


@torch.no_grad()
def test_a_saved_adapter_goes_onto_a_model_that_brings_its_own_code(
    runs: dict[str, Trained], folders: dict[str, Path]
) -> None:
    base = loaded(folders["ours"])
    assert type(base).__module__.startswith("transformers_modules.")
    assert far(base(tokens()).logits, runs["ours"].logits) > 0.1
    assert far(PeftModel.from_pretrained(base, runs["ours"].folder).eval()(tokens()).logits, runs["ours"].logits) == 0


@torch.no_grad()
def test_merged_weights_give_the_adapters_logits(
    runs: dict[str, Trained], folders: dict[str, Path], tmp_path: Path
) -> None:
    merged = PeftModel.from_pretrained(loaded(folders["ours"]), runs["ours"].folder).merge_and_unload()
    assert type(merged).__name__ == "ArbProbForCausalLM"
    assert far(merged(tokens()).logits, runs["ours"].logits) < 1e-4
    merged.save_pretrained(tmp_path)
    assert far(loaded(tmp_path)(tokens()).logits, runs["ours"].logits) < 1e-4


@torch.no_grad()
def test_masks_go_through_an_adapted_model(runs: dict[str, Trained], folders: dict[str, Path]) -> None:
    adapted = runs["ours"].model
    merged = PeftModel.from_pretrained(loaded(folders["ours"]), runs["ours"].folder).merge_and_unload()
    masked = adapted(tokens(), mask="causal & window(2)").logits
    assert far(masked, merged(tokens(), mask="causal & window(2)").logits) < 1e-4
    assert far(masked, runs["ours"].logits) > 0.1
    way = dict(max_new_tokens=4, do_sample=False, mask="causal & window(2)")
    assert torch.equal(adapted.generate(input_ids=tokens(), **way), merged.generate(tokens(), **way))


def test_transposed_layers_are_recognised_without_being_told(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Setting fan_in_fan_out to True"):
        model = get_peft_model(loaded(folders["ours"]), adapter(target_modules=["c_attn"], fan_in_fan_out=False))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["fan_in_fan_out"] is True


def test_lora_has_to_be_told_which_layers(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="Please specify `target_modules`"):
        get_peft_model(loaded(folders["ours"]), adapter(target_modules=None))


@torch.no_grad()
@pytest.mark.parametrize("tuning", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens_are_read_as_gpt2_reads_them(folders: dict[str, Path], tuning: type) -> None:
    ids = tokens()
    models = {}
    for name in ("ours", "theirs"):
        torch.manual_seed(0)
        models[name] = get_peft_model(loaded(folders[name]), tuning(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    keep = torch.ones_like(ids)
    ours, theirs = (models[name](input_ids=ids, attention_mask=keep).logits for name in ("ours", "theirs"))
    assert far(ours, theirs) < 1e-4
    assert far(ours[:, -12:], loaded(folders["ours"])(ids).logits) > 0.01
    assert far(ours, models["ours"](input_ids=ids, attention_mask=keep, mask="causal & window(2)").logits) > 0.1


@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")
@pytest.mark.parametrize("tuning", [PromptTuningConfig, PrefixTuningConfig, PromptEncoderConfig])
def test_padded_rows_behind_virtual_tokens_are_continued_as_by_gpt2(folders: dict[str, Path], tuning: type) -> None:
    ids, keep = tokens(), torch.ones_like(tokens())
    keep[0, :4] = 0
    options = dict(max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None)
    options |= dict(output_logits=True, return_dict_in_generate=True)
    made = {}
    for name in ("ours", "theirs"):
        torch.manual_seed(0)
        model = get_peft_model(loaded(folders[name]), tuning(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
        made[name] = model.generate(input_ids=ids, attention_mask=keep, **options)
    assert torch.equal(made["ours"].sequences, made["theirs"].sequences)
    pairs = zip(made["ours"].logits, made["theirs"].logits, strict=True)
    assert max(far(one, other) for one, other in pairs) < 1e-4
