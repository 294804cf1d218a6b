"""What each of two processes does for test_sharded.py: train under DDP and under FSDP2, save shards, report losses."""

import faulthandler
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.clients.micro import gpt2, ours_from, tokens

STEPS, SAVED = 4, 2
ROWS = 4


def fresh() -> tuple[Any, torch.optim.Optimizer]:
    model = ours_from(gpt2()).train()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def losses(
    model: Any, optimizer: torch.optim.Optimizer, steps: range, backward: Callable[..., None] | None = None
) -> list[float]:
    """The mean loss of each step, over all processes; each of them takes its share of the rows."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    share = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    found = []
    for step in steps:
        ids = tokens(ROWS, seed=step)[share]
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward() if backward is None else backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        if world > 1:
            dist.all_reduce(mean)
        found.append(mean.item() / world)
    return found


def sharded(model: Any) -> Any:
    """The model under FSDP2, in the units that accelerate makes: blocks, and the tied ends together."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.transformer.h:
        fully_shard(block, mesh=mesh)
    ends = [model.transformer.ln_f, model.transformer.wte, model.lm_head]
    fully_shard(ends, mesh=mesh, reshard_after_forward=False)
    return fully_shard(model, mesh=mesh)


def main(root: Path) -> None:
    accelerator = Accelerator(cpu=True)
    report: dict[str, Any] = {"processes": accelerator.num_processes}
    model, optimizer = accelerator.prepare(*fresh())
    report["wrapped"] = type(model).__name__
    report["ddp"] = losses(model, optimizer, range(STEPS), accelerator.backward)
    model = sharded(ours_from(gpt2()).train())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    report["fsdp"] = losses(model, optimizer, range(SAVED))
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=root / "shards")
    report["fsdp"] += losses(model, optimizer, range(SAVED, STEPS))
    report["local"] = model.transformer.wte.weight.to_local().shape[0]
    if accelerator.is_main_process:
        (root / "report.json").write_text(json.dumps(report))
    accelerator.end_training()


if __name__ == "__main__":
    # processes that wait for each other forever must not hang the tests
    faulthandler.dump_traceback_later(100, exit=True)
    main(Path(sys.argv[1]))
