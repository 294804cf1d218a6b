"""Run in a process of its own, without the package: loads a checkpoint every way there is and reports what it does.

    python -I traveller.py SOURCE REPORT SAVED_AGAIN

SOURCE is a folder or a name on the Hub. Writes REPORT.json (facts), REPORT.pt (tensors) and a checkpoint, SAVED_AGAIN.
"""

import contextlib
import importlib
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Absent:
    """Makes arbprob_hf impossible to import, also where an editable install put it on every path."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] == "arbprob_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


if __name__ == "__main__":
    sys.meta_path.insert(0, Absent())
    # a user would see it
    warnings.simplefilter("error")

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    pipeline,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # noqa: E402

PROMPTS = ["The mask says", "A much longer sentence about who may see whom"]


def is_importable(name: str) -> bool:
    """Whether `import name` works here."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return False
    return True


def generated(model: Any, batch: Any) -> dict[str, torch.Tensor]:
    """Every way of generating that must give what the model at home gives."""
    ways = {
        "greedy": dict(do_sample=False),
        "uncached": dict(do_sample=False, use_cache=False),
        "static": dict(do_sample=False, cache_implementation="static"),
        "sampled": dict(do_sample=True, temperature=1.5),
        "beams": dict(do_sample=False, num_beams=3),
        "several beams": dict(do_sample=False, num_beams=4, num_return_sequences=2),
        "masked": dict(do_sample=False, mask="causal & window(2)"),
    }
    found = {}
    for name, way in ways.items():
        torch.manual_seed(5)
        found[name] = model.generate(**batch, max_new_tokens=6, pad_token_id=0, **way)
    # one row, its prompt read both ways
    row = batch["input_ids"][1:]
    both_ways = torch.ones(1, row.shape[1], row.shape[1], dtype=torch.bool)
    found["prompt mask"] = model.generate(row, mask=both_ways, max_new_tokens=6, do_sample=False, pad_token_id=0)
    return found


def logits(model: Any, batch: Any) -> dict[str, torch.Tensor]:
    """What one pass gives, under the configuration's mask and under others."""
    ids = batch["input_ids"]
    half = torch.arange(ids.numel()).reshape(ids.shape) % 3 == 0
    with torch.no_grad():
        return {
            "logits": model(ids).logits,
            "padded logits": model(**batch).logits,
            "causal logits": model(ids, mask="causal").logits,
            "3-D logits": model(ids, attention_mask=half[:, None, :] | half[:, :, None]).logits,
            "rank logits": model(ids, ranks=ids % 5).logits,
            "loss": model(ids, labels=ids).loss,
            **answers(model, ids),
        }


def answers(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the network says to questions, asked without the package."""
    with under_causal(model):
        return _answers(model, ids)


@contextlib.contextmanager
def under_causal(model: Any) -> Iterator[None]:
    """Let a network whose mask is another take questions."""
    before, model.config.mask = model.config.mask, "causal"
    try:
        yield
    finally:
        model.config.mask = before


def _answers(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    last = ids.shape[1] - 1
    ask = model.ask(given=[0, last], target=[1, 3, 4], order=[4, 1, 3])
    sampled = model.sample(ids, ask, method="speculative", generator=torch.Generator().manual_seed(2))
    return {
        "log_prob": model.log_prob(ids, ask),
        "several log_prob": model.log_prob(ids, [ask, model.ask([0, 1]), model.ask([0], given_sees="all")]),
        "marginals": model.marginals(ids, ask),
        "sampled log_prob": sampled.log_probs,
        "filled in": sampled.sequences,
    }


def infilled(model: Any, tokenizer: Any) -> list[Any]:
    """A text with its blanks filled in, and candidates scored."""
    with under_causal(model):
        (one,) = model.infill("The [M] says [M:2] now", tokenizer, generator=torch.Generator().manual_seed(4))
        scored = model.score_text(tokenizer, "The [M] says", ["mask", "man"])
    return [one.text, round(one.log_prob, 3), [round(candidate.log_prob, 3) for candidate in scored]]


def main(source: str, report: str, saved_again: str) -> None:
    loading = dict(trust_remote_code=True)
    config = AutoConfig.from_pretrained(source, **loading)
    tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **loading)
    tokenizer.pad_token = tokenizer.eos_token
    model, info = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **loading)
    base = AutoModel.from_pretrained(source, **loading)
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    tensors = {**batch, **logits(model, batch), **generated(model, batch)}
    with torch.no_grad():
        tensors["base"] = base(batch["input_ids"]).last_hidden_state
    generate = pipeline("text-generation", model=source, **loading)
    texts = generate(PROMPTS[0], max_new_tokens=6, do_sample=False, pad_token_id=0)
    fresh = AutoModelForCausalLM.from_config(config, **loading)
    model.save_pretrained(saved_again)
    AutoTokenizer.from_pretrained(source, **loading).save_pretrained(saved_again)
    ours = [name for name in sys.modules if name.split(".")[0] == "arbprob_hf"]
    facts = {
        # first of all: what follows is worth nothing otherwise
        "importable": is_importable("arbprob_hf"),
        "modules of the package": ours,
        "transformers": transformers.__version__,
        "model type": config.model_type,
        "mask": config.mask,
        "module": type(model).__module__.split(".")[0],
        "classes": [type(x).__name__ for x in (config, model, base, fresh, tokenizer)],
        "loading": {name: sorted(map(str, keys)) for name, keys in info.items()},
        "labels are shifted": type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(),
        "tied": model.lm_head.weight is model.transformer.wte.weight,
        "text": texts[0]["generated_text"],
        "infilled": infilled(model, tokenizer),
        "decoded": tokenizer.decode(model.generate(**tokenizer(PROMPTS[0], return_tensors="pt"), max_new_tokens=6,
                                                   do_sample=False, pad_token_id=0)[0]),
        "saved files": sorted(path.name for path in Path(saved_again).iterdir()),
    }  # fmt: skip
    Path(f"{report}.json").write_text(json.dumps(facts))
    torch.save(tensors, f"{report}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
