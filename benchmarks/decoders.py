"""Greedy decoding against programs made for it: our `generate`, onnxruntime and CTranslate2 on the same weights.

    python benchmarks/decoders.py [--presets tiny distilgpt2] [--batches 1 8] [--prompt 32] [--new 64]

Each runs stock GPT-2 in its own way: onnxruntime an export with past keys and values, which stay where its session put
them; CTranslate2 the folder that its converter makes. None is timed before it has said the same tokens as stock GPT-2.
Weights are random, drawn wide enough that tokens vary; all is float32. A figure above 1 means that ours is faster. A
program that is not installed is a line that says how to get it; --quick is the preset tiny at batch 1.
"""

import argparse
import importlib.util
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Row, in_turns, parser, ratio, report, spread
from peers import SPREAD, twins
from torch import Tensor
from transformers import DynamicCache, GPT2LMHeadModel

from arbprob_hf import ArbProbConfig

# from a prompt, long (B, P), and a number to tokens (B, P + number)
Decoder = Callable[[Tensor, int], Tensor]


def measure(options: argparse.Namespace) -> Iterator[Row]:
    missing = {name for name, needed in NEEDED.items() if not all(map(importlib.util.find_spec, needed))}
    for name in sorted(missing):
        yield Row(f"ours against {name}", "not installed", note=f"pip install {' '.join(NEEDED[name])}")
    for preset in ["tiny"] if options.quick else options.presets:
        with tempfile.TemporaryDirectory() as folder:
            theirs, ours = twins(ArbProbConfig.preset(preset, initializer_range=SPREAD))
            decoders = {"ours": decoder_of(ours), "transformers": decoder_of(theirs)}
            decoders |= {name: make(theirs, Path(folder)) for name, make in PEERS.items() if name not in missing}
            for batch in [1] if options.quick else options.batches:
                yield from compare(f"{preset}, batch {batch}", decoders, batch, options)


def compare(name: str, decoders: dict[str, Decoder], batch: int, options: argparse.Namespace) -> Iterator[Row]:
    """Every decoder against ours, on one batch of prompts of one length."""
    ids = torch.randint(1, 5000, (batch, options.prompt), generator=torch.Generator().manual_seed(batch))
    expected = decoders["transformers"](ids, options.new)
    for peer, decode in decoders.items():
        if not decode(ids, options.new).equal(expected):
            raise RuntimeError(f"{peer}: decodes other tokens than transformers ({name})")
    works = {peer: lambda decode=decode: decode(ids, options.new) for peer, decode in decoders.items()}
    times = in_turns(works, rounds=3 if options.quick else options.rounds)
    speeds = {peer: spread([batch * options.new / x for x in taken], digits=0) for peer, taken in times.items()}
    for peer in decoders:
        if peer != "ours":
            note = f"{speeds['ours']} tokens/s, {peer} {speeds[peer]}"
            yield Row(f"{name}: ours against {peer}", ratio(times[peer], times["ours"]), note=note)


def decoder_of(model: Any) -> Decoder:
    """`generate` of a transformers model."""
    return lambda ids, new: model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False
    )


def onnxruntime_of(model: GPT2LMHeadModel, folder: Path) -> Decoder:
    """An exported step with past keys and values, run over the prompt and then over a token at a time."""
    import onnxruntime

    export(model, folder / "model.onnx")
    threads = onnxruntime.SessionOptions()
    threads.intra_op_num_threads = threads.inter_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(folder / "model.onnx", threads, providers=["CPUExecutionProvider"])
    config, states = model.config, [name.name for name in session.get_outputs()][1:]

    def decode(ids: Tensor, new: int) -> Tensor:
        empty = np.zeros((len(ids), config.n_head, 0, config.n_embd // config.n_head), dtype=np.float32)
        past = [onnxruntime.OrtValue.ortvalue_from_numpy(empty)] * len(states)
        made, step = [ids.numpy()], ids.numpy()
        for _ in range(new):
            binding = session.io_binding()
            binding.bind_cpu_input("ids", step)
            for name, value in zip(states, past, strict=True):
                binding.bind_ortvalue_input(name.replace("present", "past"), value)
            for name in ("logits", *states):
                binding.bind_output(name)
            session.run_with_iobinding(binding)
            logits, *past = binding.get_outputs()
            step = np.ascontiguousarray(logits.numpy()[:, -1].argmax(-1)[:, None])
            made.append(step)
        return torch.from_numpy(np.concatenate(made, axis=1))

    return decode


class Step(torch.nn.Module):
    """Ids (B, T) and each layer's keys and values (B, H, P, D) to the last logits (B, 1, V) and the keys and values."""

    def __init__(self, model: GPT2LMHeadModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cache = DynamicCache(config=self.model.config)
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        positions = torch.arange(ids.shape[1])[None] + past[0].shape[2]
        out = self.model(ids, past_key_values=cache, position_ids=positions, use_cache=True, logits_to_keep=1)
        return (out.logits, *(states for layer in cache.layers for states in (layer.keys, layer.values)))


def export(model: GPT2LMHeadModel, path: Path) -> None:
    """Write the step of a stock model, for any batch, length and number of cached tokens."""
    config = model.config
    size = (2, config.n_head, 5, config.n_embd // config.n_head)
    past = [torch.zeros(size) for _ in range(2 * config.n_layer)]
    batch, length, cached = (torch.export.Dim(name) for name in ("batch", "length", "cached"))
    names = [f"{kind}.{layer}" for layer in range(config.n_layer) for kind in ("key", "value")]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Step(model),
            (torch.zeros(2, 3, dtype=torch.long), *past),
            path,
            dynamo=True,
            verbose=False,
            dynamic_shapes={"ids": {0: batch, 1: length}, "past": tuple({0: batch, 2: cached} for _ in past)},
            input_names=["ids", *(f"past.{name}" for name in names)],
            output_names=["logits", *(f"present.{name}" for name in names)],
        )


def ctranslate2_of(model: GPT2LMHeadModel, folder: Path) -> Decoder:
    """The folder of CTranslate2's own converter, whose words are the numbers of tokens."""
    import ctranslate2
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"<{token}>": token for token in range(model.config.vocab_size)}
    end = f"<{model.config.vocab_size - 1}>"
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=end))
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), end)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder / "stock")
    model.save_pretrained(folder / "stock")
    ctranslate2.converters.TransformersConverter(str(folder / "stock")).convert(str(folder / "converted"))
    threads = {"inter_threads": 1, "intra_threads": torch.get_num_threads()}
    generator = ctranslate2.Generator(str(folder / "converted"), compute_type="float32", **threads)

    def decode(ids: Tensor, new: int) -> Tensor:
        prompts = [[f"<{token}>" for token in row] for row in ids.tolist()]
        # at least as many as at most: none ends early
        found = generator.generate_batch(
            prompts, max_length=new, min_length=new, sampling_topk=1, beam_size=1, include_prompt_in_result=False
        )
        return torch.cat([ids, torch.tensor([one.sequences_ids[0] for one in found])], dim=1)

    return decode


PEERS: dict[str, Callable[[GPT2LMHeadModel, Path], Decoder]] = {
    "onnxruntime": onnxruntime_of,
    "ctranslate2": ctranslate2_of,
}


# what has to be installed for each
NEEDED = {"onnxruntime": ("onnxruntime", "onnxscript"), "ctranslate2": ("ctranslate2",)}


def _options() -> argparse.Namespace:
    made = parser(__doc__, rounds=5)
    made.add_argument("--presets", nargs="+", default=["tiny", "distilgpt2"])
    made.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    made.add_argument("--prompt", type=int, default=32)
    made.add_argument("--new", type=int, default=64)
    return made.parse_args()


if __name__ == "__main__":
    report(measure, _options())
