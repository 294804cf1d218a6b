"""The proof that a folder loads where this package is not: a process of its own scores one batch with it."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

# what is read back; the process may print more
_MARK = "scored: "
_SECONDS = 900
_SCRIPT = f"""
import sys
sys.modules["arbprob_hf"] = None
folder = sys.argv[1]

def score():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model, info = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    lost = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if lost:
        raise ValueError(f"{{len(lost)}} of the network's weights are not in the folder, such as {{lost[0]}}")
    size, longest = model.config.vocab_size, model.config.max_position_embeddings
    ids = torch.arange(2 * min(longest, 64)).reshape(2, -1) * 7919 % size
    if len(sys.argv) > 2:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        last = max(tokenizer("A mask says who may see whom.")["input_ids"])
        if last >= size:
            raise ValueError(f"the tokenizer makes token {{last}}, the network knows {{size}}")
    with torch.no_grad():
        out = model(input_ids=ids, labels=ids)
    if not torch.isfinite(out.loss):
        raise ValueError(f"the loss on one batch is {{out.loss.item()}}")
    print({_MARK!r} + repr(out.loss.item()), flush=True)

try:
    score()
except Exception as error:
    sys.exit(type(error).__name__ + ": " + " ".join(str(error).split()))
"""


def prove(folder: Path) -> float:
    """Load the model in `folder` without this package, in an empty place, and return its loss on one batch, in nats.

    Raises ValueError, in one line, when that fails. The process is offline for the Hub's client, and sees
    no token and no cache of the user's.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "PYTHON"))}
    argv = [sys.executable, "-I", "-c", _SCRIPT, str(folder.resolve())]
    if (folder / "tokenizer_config.json").exists():
        argv.append("and its tokenizer")
    with tempfile.TemporaryDirectory(prefix="arbprob-proof-") as empty:
        environment = {
            **inherited,
            "HF_HOME": os.path.join(empty, "home"),
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        place = Path(empty, "here")
        place.mkdir()
        try:
            done = subprocess.run(
                argv, cwd=place, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise ValueError(f"{folder}: did not load and score a batch within {_SECONDS} seconds") from None
    marked = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode == 0 and marked:
        return float(marked[-1].removeprefix(_MARK))
    reason = (done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"])[-1]
    raise ValueError(
        f"{folder}: does not work where arbprob_hf is not installed, so it is not published: {reason:.300}"
    )
