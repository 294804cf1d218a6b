"""A saved model holds the functions its masks use, or is not saved at all."""

import functools
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM, causal, pattern
from arbprob_hf.model.masks.mask import PATTERNS, Mask
from arbprob_hf.model.saved_patterns import carried_code, check_travels
from tests.masks.oracles import micro, random_ids

STEP = 3


def every_third(b, h, q, k):
    # the comment goes along
    return (q - k) % 3 == 0


def zebra(b: Tensor, h: Tensor, q: Tensor, k: Tensor, step: int, phase: int = 0) -> Tensor:
    """Stripes."""
    far = torch.maximum(q, k) - torch.minimum(q, k)
    return (far + phase) % int(step) == 0


def read(path: Path) -> ModuleType:
    """A file as a module of its own."""
    spec = importlib.util.spec_from_file_location("saved_rules", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_models_without_custom_patterns_are_saved_without_the_file(tmp_path: Path) -> None:
    micro(mask="causal & window(3)").save_pretrained(tmp_path)
    assert not (tmp_path / "custom_arbprob.py").exists()
    assert carried_code([Mask.parse("causal & window(3)")]) is None


def test_the_functions_that_the_masks_use_are_saved_whole_and_no_others(tmp_path: Path) -> None:
    pattern(every_third)
    pattern(name="stripes")(zebra)
    pattern(name="unused")(zebra)
    micro(mask=["causal & ~stripes(2)", "heads(causal, every_third | window(2))"]).save_pretrained(tmp_path)
    rules = read(tmp_path / "custom_arbprob.py").RULES
    assert list(rules) == ["every_third", "stripes"]
    at = torch.arange(9)[:, None], torch.arange(9)
    assert torch.equal(rules["every_third"](0, 0, *at), every_third(0, 0, *at))
    assert torch.equal(rules["stripes"](0, 0, *at, 2), zebra(0, 0, *at, 2))
    text = (tmp_path / "custom_arbprob.py").read_text()
    assert "# the comment goes along" in text
    assert '"""Stripes."""' in text


def test_the_decorator_stays_at_home(tmp_path: Path) -> None:
    @pattern(name="framed")
    def indented(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return k <= q

    micro(mask="framed").save_pretrained(tmp_path)
    text = (tmp_path / "custom_arbprob.py").read_text()
    assert "@" not in text
    assert "\ndef indented(b: Tensor" in text
    assert 'RULES["framed"] = indented' in text


def test_what_a_folder_held_before_goes_with_the_next_save(tmp_path: Path) -> None:
    pattern(every_third)
    micro(mask="causal & every_third").save_pretrained(tmp_path)
    micro(mask="causal").save_pretrained(tmp_path)
    assert not (tmp_path / "custom_arbprob.py").exists()
    assert "from .custom_arbprob" not in (tmp_path / "modeling_arbprob.py").read_text()


def test_a_mask_put_into_the_config_later_is_carried(tmp_path: Path) -> None:
    pattern(every_third)
    model = micro()
    model.config.mask = "causal & every_third"
    model.save_pretrained(tmp_path)
    assert list(read(tmp_path / "custom_arbprob.py").RULES) == ["every_third"]


def test_the_network_without_its_head_carries_them_too(tmp_path: Path) -> None:
    pattern(every_third)
    micro(mask="causal & every_third").transformer.save_pretrained(tmp_path)
    assert list(read(tmp_path / "custom_arbprob.py").RULES) == ["every_third"]


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    pattern(every_third)
    micro(mask="causal & every_third").save_pretrained(tmp_path, is_main_process=False)
    assert not (tmp_path / "custom_arbprob.py").exists()


def test_what_is_saved_is_what_the_model_would_follow_now(tmp_path: Path) -> None:
    @pattern
    def near(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q - k).abs() < 2

    model = micro(mask="causal & near")

    @pattern
    def near(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: F811
        return (q - k).abs() < 4

    model.save_pretrained(tmp_path)
    assert "< 4" in (tmp_path / "custom_arbprob.py").read_text()


def test_our_own_class_loads_the_folder_where_the_pattern_is_registered(tmp_path: Path) -> None:
    pattern(every_third)
    model, ids = micro(mask="causal & every_third"), random_ids(2, 9)
    model.save_pretrained(tmp_path)
    loaded = ArbProbForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_and_says_what_to_do_where_it_is_not(tmp_path: Path) -> None:
    pattern(every_third)
    micro(mask="causal & every_third").save_pretrained(tmp_path)
    del PATTERNS["every_third"]
    message = "^mask: the pattern 'every_third' is a function in custom_arbprob.py of .*: add trust_remote_code=True "
    with pytest.raises(ValueError, match=message) as caught:
        ArbProbForCausalLM.from_pretrained(tmp_path)
    assert len(str(caught.value)) <= 300


def test_and_reads_it_from_a_folder_that_is_trusted(tmp_path: Path) -> None:
    pattern(every_third)
    model, ids = micro(mask="causal & every_third"), random_ids(2, 9)
    model.save_pretrained(tmp_path / "first")
    del PATTERNS["every_third"]
    loaded = ArbProbForCausalLM.from_pretrained(tmp_path / "first", trust_remote_code=True, dtype=torch.float32).eval()
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert not (tmp_path / "first" / "__pycache__").exists()
    # and goes on from there, its function as it was
    loaded.save_pretrained(tmp_path / "second")
    first, second = ((tmp_path / name / "custom_arbprob.py").read_text() for name in ("first", "second"))
    assert first == second


def test_a_folder_whose_file_fails_says_so_in_one_line(tmp_path: Path) -> None:
    pattern(every_third)
    micro(mask="causal & every_third").save_pretrained(tmp_path)
    del PATTERNS["every_third"]
    path = tmp_path / "custom_arbprob.py"
    path.write_text(f"raise RuntimeError('broken\\nin two')\n{path.read_text()}")
    with pytest.raises(ValueError, match=r"^custom_arbprob.py: .* raised RuntimeError: broken in two$"):
        ArbProbForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)


@pytest.mark.parametrize("text", ["def (\n", "RULES['every_third'] = lambda b, h, q, k: k <= q\n"])
def test_a_file_that_is_not_as_it_was_saved_is_refused_unread(tmp_path: Path, text: str) -> None:
    pattern(every_third)
    micro(mask="causal & every_third").save_pretrained(tmp_path)
    del PATTERNS["every_third"]
    (tmp_path / "custom_arbprob.py").write_text(text)
    with pytest.raises(ValueError, match=r"^custom_arbprob.py: '.*' is not as it was saved; save the model again$"):
        ArbProbForCausalLM.from_pretrained(tmp_path)


def test_the_file_lies_beside_the_configuration_whatever_the_weights_are(tmp_path: Path) -> None:
    pattern(every_third)
    model = micro(mask="causal & every_third")
    model.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "weights")
    (tmp_path / "weights" / "custom_arbprob.py").unlink()
    (tmp_path / "adapter").mkdir()
    model.add_adapter(LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    model.save_pretrained(tmp_path / "adapter")
    described = tmp_path / "adapter" / "adapter_config.json"
    fields = {**json.loads(described.read_text()), "base_model_name_or_path": str(tmp_path / "base")}
    described.write_text(json.dumps(fields))
    for source, options in (("weights", {"config": str(tmp_path / "base")}), ("adapter", {})):
        PATTERNS.pop("every_third", None)
        with pytest.raises(ValueError, match="the pattern 'every_third' is a function in custom_arbprob.py"):
            ArbProbForCausalLM.from_pretrained(tmp_path / source, **options)
        loaded = ArbProbForCausalLM.from_pretrained(tmp_path / source, trust_remote_code=True, **options)
        assert loaded.config.mask == "causal & every_third"


def test_a_configuration_is_saved_where_its_patterns_are_not_known(tmp_path: Path) -> None:
    pattern(every_third)
    micro(mask="causal & every_third").save_pretrained(tmp_path)
    del PATTERNS["every_third"]
    before = (tmp_path / "custom_arbprob.py").read_text()
    ArbProbConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert (tmp_path / "custom_arbprob.py").read_text() == before
    assert "from .custom_arbprob" in (tmp_path / "modeling_arbprob.py").read_text()


@pytest.mark.parametrize("mask", [causal(), [causal()], 5])
def test_a_mask_that_is_no_text_is_refused_by_the_configuration(tmp_path: Path, mask: Any) -> None:
    micro().save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="^mask: expected the text of a mask or a list of texts"):
        ArbProbForCausalLM.from_pretrained(tmp_path, mask=mask)


def test_another_mask_for_the_network_needs_no_trust(tmp_path: Path) -> None:
    pattern(every_third)
    micro(mask="causal & every_third").save_pretrained(tmp_path)
    del PATTERNS["every_third"]
    assert ArbProbForCausalLM.from_pretrained(tmp_path, mask="causal").config.mask == "causal"


def test_reading_a_configuration_runs_nothing_of_the_folder(tmp_path: Path) -> None:
    micro().save_pretrained(tmp_path)
    (tmp_path / "custom_arbprob.py").write_text("raise SystemExit('the folder was run')\n")
    config = ArbProbConfig.from_pretrained(tmp_path, mask="causal & custom_arbprob")
    with pytest.raises(ValueError, match="unknown pattern 'custom_arbprob'"):
        ArbProbForCausalLM(config)
    ArbProbForCausalLM.from_pretrained(tmp_path)


def around() -> Callable[..., Any]:
    size = 3

    def closure(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q - k).abs() < size

    return closure


def helper(q: Tensor, k: Tensor) -> Tensor:
    return k <= q


def calls_a_helper(b, h, q, k):
    return helper(q, k)


def reads_a_constant(b, h, q, k):
    return (q - k) % STEP == 0


def has_a_constant_default(b, h, q, k, step=STEP):
    return (q - k) % step == 0


def has_a_foreign_annotation(b, h, q: "Tensor", k: Callable) -> Tensor:
    return k <= q


def uses_it_in_a_comprehension(b, h, q, k):
    return torch.stack([(q - k) % step == 0 for step in range(1, STEP)]).any(0)


def imports(b, h, q, k):
    import math

    return (q - k) % math.ceil(2.5) == 0


def shares_a_global(b, h, q, k):
    global STEP
    STEP = 3
    return k <= q


def zip(b, h, q, k):
    return k <= q


@functools.wraps(every_third)
def wrapped(*arguments: Any) -> Any:
    return every_third(*arguments)


def without_source() -> Any:
    scope: dict[str, Any] = {}
    exec("def typed(b, h, q, k):\n    return k <= q", scope)
    return scope["typed"]


STAYS = {
    "lambda": (lambda b, h, q, k: k <= q, "it is a lambda; write it with def"),
    "closure": (around(), "it uses size of the function around it; give it only torch, Tensor, builtins and its own"),
    "helper": (calls_a_helper, "it uses helper from outside; give it only torch"),
    "constant": (reads_a_constant, "it uses STEP from outside"),
    "default": (has_a_constant_default, "it uses STEP from outside"),
    "annotation": (has_a_foreign_annotation, "it uses Callable from outside"),
    "comprehension": (uses_it_in_a_comprehension, "it uses STEP from outside"),
    "import": (imports, "it uses math from outside"),
    "global": (shares_a_global, "it uses STEP from outside"),
    "builtin name": (zip, "its function is called zip, which means something else; rename it, give name="),
    "wrapped": (wrapped, "another decorator wraps it"),
    "no source": (without_source(), "python does not know its source; define it in a file or a notebook"),
}


@pytest.mark.parametrize("name", STAYS)
def test_a_function_that_cannot_stand_by_itself_is_refused_before_anything_is_written(
    name: str, tmp_path: Path
) -> None:
    rule, reason = STAYS[name]
    pattern(name="own")(rule)
    model, folder = micro(mask="causal & own"), tmp_path / "model"
    with pytest.raises(ValueError, match=re.escape(f"pattern own: cannot go with a saved model: {reason}")) as caught:
        model.save_pretrained(folder)
    assert not folder.exists()
    assert len(str(caught.value)) <= 300
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="pattern own: cannot go"):
        check_travels([Mask.parse(model.config.mask)])


def test_a_configuration_of_what_can_travel_passes() -> None:
    pattern(zebra)
    check_travels([Mask.parse("causal & zebra(3) | window(4)")])
    check_travels(map(Mask.parse, ["causal", "zebra(2)"]))
