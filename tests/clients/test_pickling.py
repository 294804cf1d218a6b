"""A downloaded model goes where python objects go: copies, pickles of every kind, other processes."""

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import dill
import pytest
import torch
from transformers import AutoModelForCausalLM

from arbprob_hf import ArbProbForCausalLM, pattern
from arbprob_hf.model.masks.mask import PATTERNS
from tests.clients.micro import gpt2, ours_from, tokens
from tests.networks import far


def through_torch(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "dill": lambda model: dill.loads(dill.dumps(model)),
    "dill as datasets calls it": lambda model: dill.loads(dill.dumps(model, recurse=True)),
    "cloudpickle": lambda model: cloudpickle.loads(cloudpickle.dumps(model)),
    "torch": through_torch,
}


def pickled_stripes(b, h, q, k, step):
    """Query q sees key k when both are as far into their stripes."""
    return (q - k) % step == 0


@pytest.fixture(scope="module", params=["the package's", "its own code", "a custom pattern"])
def model(request: pytest.FixtureRequest, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "the package's":
        return ArbProbForCausalLM.from_pretrained(folders["windowed"])
    folder = folders["windowed"]
    if request.param == "a custom pattern":
        folder = tmp_path_factory.mktemp("striped")
        pattern(pickled_stripes)
        ours_from(gpt2(), mask="causal & pickled_stripes(3)").save_pretrained(folder)
        # other tests count the patterns of the package
        del PATTERNS["pickled_stripes"]
    loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert type(loaded).__module__.startswith("transformers_modules.")
    return loaded


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_copy_computes_what_the_model_computes(model: Any, way: Callable[[Any], Any]) -> None:
    logits = model(tokens()).logits
    again = way(model)
    assert type(again) is type(model)
    assert far(again(tokens()).logits, logits) == 0


def test_dill_names_the_class_and_does_not_write_its_module_out(folders: dict[str, Path]) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(folders["ours"], trust_remote_code=True)
    for one in (type(loaded), type(loaded.config)):
        assert len(dill.dumps(one)) < 300


IN_TWO_PROCESSES = """
import sys, torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
rows = Dataset.from_dict({"ids": torch.arange(1, 33).view(8, 4).tolist()})
sums = rows.map(lambda row: {"sum": model(torch.tensor([row["ids"]])).logits.sum().item()}, num_proc=2)["sum"]
with torch.no_grad():
    assert torch.allclose(torch.tensor(list(sums)), model(torch.tensor(rows["ids"])).logits.sum((1, 2)), rtol=1e-4)
print("equal")
"""

SPAWNED = """
import sys, torch, torch.multiprocessing as multiprocessing
from transformers import AutoModelForCausalLM

def score(model, queue):
    with torch.no_grad():
        queue.put(model(torch.arange(1, 9)[None]).logits.sum().item())

if __name__ == "__main__":
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=score, args=(model, queue))
    process.start()
    found = queue.get(timeout=200)
    process.join()
    assert abs(found - model(torch.arange(1, 9)[None]).logits.sum().item()) < 1e-3, found
    print("equal")
"""


@pytest.mark.long
@pytest.mark.parametrize("script", [IN_TWO_PROCESSES, SPAWNED], ids=["datasets", "spawned"])
def test_other_processes_compute_with_it(script: str, folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    command = [sys.executable, "script.py", str(folders["windowed"])]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip().endswith("equal")
