"""torch.export and ONNX: one graph for every batch and length, under any mask of the configuration, with padding."""

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from tests.clients.micro import gpt2, ours_from, tokens
from tests.networks import far

# the exporter's own: its registry without torchvision, trees of torch, axes that are one symbol
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*The axis name.*:UserWarning"),
]

# longer than what sdpa looks for structure in when it is not compiled
LONGEST = 512
PER_LAYER = ["causal & window(3) | prefix(2)", "heads(causal, causal & window(2), causal & strided(2))"]
MASKS = {"causal": "causal", "each layer and head its own": PER_LAYER}
ROWS = torch.export.Dim("rows", min=1, max=64)
LENGTH = torch.export.Dim("length", min=2, max=LONGEST)


class Logits(nn.Module):
    """What leaves the graph: logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits


def padded(rows: int, length: int, *, real: int) -> tuple[Tensor, Tensor]:
    """Ids and their 0-1 mask, the first row padded to the right of `real` tokens."""
    keep = torch.ones(rows, length, dtype=torch.long)
    keep[0, real:] = 0
    return tokens(rows, length), keep


@pytest.fixture(scope="module", params=MASKS)
def exported(request: pytest.FixtureRequest) -> tuple[str, nn.Module, Any]:
    """A name of MASKS, the network and its graph, exported from two rows of twelve."""
    model = Logits(ours_from(gpt2(n_positions=LONGEST), mask=MASKS[request.param])).eval()
    axes = {0: ROWS, 1: LENGTH}
    shapes = {"input_ids": axes, "attention_mask": axes}
    return request.param, model, torch.export.export(model, padded(2, 12, real=9), dynamic_shapes=shapes)


@pytest.mark.parametrize(("rows", "length", "real"), [(1, 2, 2), (3, 20, 15), (2, 300, 260)])
def test_an_exported_graph_gives_the_logits_at_other_sizes(
    exported: tuple[str, nn.Module, Any], rows: int, length: int, real: int
) -> None:
    _, model, program = exported
    ids, keep = padded(rows, length, real=real)
    with torch.no_grad():
        logits, expected = program.module()(ids, keep), model(ids, keep)
    # what a padded slot itself says is nobody's concern
    assert far(logits[keep.bool()], expected[keep.bool()]) < 1e-4


def test_masks_are_part_of_the_graph(exported: tuple[str, nn.Module, Any]) -> None:
    name, _, program = exported
    ids, keep = padded(2, 40, real=30)
    with torch.no_grad():
        causal = gpt2(n_positions=LONGEST)(ids, attention_mask=keep).logits
        apart = far(program.module()(ids, keep)[keep.bool()], causal[keep.bool()])
    assert (apart < 1e-4) == (name == "causal")


@pytest.mark.long
def test_onnxruntime_gives_the_logits_at_other_sizes(exported: tuple[str, nn.Module, Any], tmp_path: Path) -> None:
    _, model, program = exported
    torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    # names of symbols, where a size that had been fixed would be a number
    assert [type(size) for one in session.get_inputs() for size in one.shape] == [str] * 4
    for rows, length, real in ((1, 2, 2), (3, 20, 15), (2, 300, 260)):
        ids, keep = padded(rows, length, real=real)
        with torch.no_grad():
            expected = model(ids, keep)
        (logits,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": keep.numpy()})
        assert far(torch.from_numpy(logits)[keep.bool()], expected[keep.bool()]) < 1e-4
