"""Networks that fit in no time and can be asked in every layout."""

from typing import Any

from transformers import set_seed

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM
from arbprob_hf.data import load_tokenizer
from arbprob_hf.demo.network import Network

SIZES: dict[str, Any] = dict(
    n_layer=2, n_head=2, n_embd=16, n_positions=40, initializer_range=0.4, mask_token=True, given_sees="all"
)


def micro_network(**changes: Any) -> Network:
    """GPT-2's vocabulary, 16 wide, with weights so large that every token matters."""
    set_seed(5)
    model = ArbProbForCausalLM(ArbProbConfig(**{**SIZES, **changes})).eval()
    return Network(model, load_tokenizer("gpt2"), "micro")
