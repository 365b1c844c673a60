"""A network trained with Local SGD by the processes that torchrun starts, each on its own share.

    torchrun --nproc-per-node 4 examples/local_sgd.py --out run
    torchrun --nproc-per-node 4 examples/local_sgd.py --out run --data fashion-mnist --epochs 10

Rounds grow as the learning rate falls (the quadratic rule). Stopped at any moment, in the middle of
a round too, the same command goes on from the last step that all processes saved, to the same end.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import undertow as ut
from undertow.train import LocalSGD


def save(path: Path, state: dict[str, object]) -> None:
    """Under a temporary name first: what a kill interrupts is not found later."""
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def last_saved(out: Path, rank: int) -> int:
    """The last step that every process has saved, 0 where there is none."""
    mine = {int(path.stem.split("-")[1]) for path in out.glob(f"step-*-rank-{rank}.pt")}
    of_all: list[set[int]] = [set()] * dist.get_world_size()
    dist.all_gather_object(of_all, mine)
    return max(set.intersection(*of_all), default=0)


def main() -> None:
    """Reads the options and trains."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data", default="digits", help="digits, fashion-mnist, mnist-5k")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=16, help="of each process")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--alpha", type=float, default=0.1, help="H = max(2, floor((alpha/lr)^2))")
    parser.add_argument("--save-every", type=int, default=100, help="steps")
    parser.add_argument("--out", type=Path, default=Path("local-sgd"))
    options = parser.parse_args()

    dist.init_process_group("gloo")
    rank, workers = dist.get_rank(), dist.get_world_size()
    data = ut.data.load(options.data)
    inputs, targets = data.train_inputs[rank::workers], data.train_targets[rank::workers]
    per_epoch = len(data.train_inputs) // workers // options.batch_size
    total = options.epochs * per_epoch

    generator = torch.Generator().manual_seed(0)  # the same network on every worker
    shape = tuple(data.train_inputs.shape[1:])
    model = ut.models.conv_net(shape, (16, 32), 10, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    local = LocalSGD(
        model, optimizer, "qsr", alpha=options.alpha, base=2, total_steps=total, timeout=60
    )

    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "local": local}
    options.out.mkdir(parents=True, exist_ok=True)
    start = last_saved(options.out, rank)
    if start:
        state = torch.load(options.out / f"step-{start}-rank-{rank}.pt", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        if rank == 0:
            print(f"going on after step {start}", flush=True)

    for step in range(start, total):
        epoch, place = divmod(step, per_epoch)
        order = torch.Generator().manual_seed(epoch * workers + rank)
        chosen = torch.randperm(len(inputs), generator=order)[place * options.batch_size :]
        chosen = chosen[: options.batch_size]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[chosen]), targets[chosen]).backward()
        optimizer.step()  # the last one of a round averages
        scheduler.step()
        if (step + 1) % options.save_every == 0:
            state = {name: part.state_dict() for name, part in parts.items()}
            save(options.out / f"step-{step + 1}-rank-{rank}.pt", state)
    local.finish()

    if rank == 0:
        with torch.no_grad():
            right = (model(data.test_inputs).argmax(1) == data.test_targets).float().mean()
        print(f"{right:.1%} of {len(data.test_targets)} test images right after {total} steps")
        print(local.report())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
