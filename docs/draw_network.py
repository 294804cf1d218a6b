"""Draw the pictures of docs/ that need a trained network: `python docs/draw_network.py outputs/stories`.

`docs/train_demo.py` trains it. Writes attention.png, conditionals.png and curves.png beside this file.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from arbprob_hf import ArbProbForCausalLM, plot_attention, plot_conditionals, plot_curves
from arbprob_hf.data import load_tokenizer

HERE = Path(__file__).parent
TEXT = "Anna gave Ben the red cup. Then Ben thanked Anna for the red cup."
MASK = "causal & window(4) | prefix(3)"


def main(argv: Sequence[str]) -> None:
    if len(argv) != 1:
        sys.exit("usage: python docs/draw_network.py RUN")
    (run,) = argv
    network, tokenizer = ArbProbForCausalLM.from_pretrained(run), load_tokenizer(run)
    plot_conditionals(network, tokenizer, TEXT, path=HERE / "conditionals.png")
    plot_attention(network, tokenizer, TEXT, mask=MASK, layer=1, path=HERE / "attention.png")
    plot_curves(run, title="docs/train_demo.py", path=HERE / "curves.png")


if __name__ == "__main__":
    main(sys.argv[1:])
