"""
Several processes, each with a share of the work:

    torchrun --nproc_per_node=2 spct.py --threads 1         # on CPUs; on GPUs one process for each

All processes hold the same data, models and random seeds, and so agree on every batch. Each trains on its
share() of the rows and samples its share of the judgements; add_up() and join() bring the results together.
The first process alone prints and writes files; all of them must see its run folder, also from other
machines. In a single process share(), add_up() and join() give back what they got.
"""

import contextlib
import os
import sys

import torch
import torch.distributed as dist


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def processes():
    return dist.get_world_size() if dist.is_initialized() else 1


def start_processes():
    """Join the other processes if torchrun started this one. Only the first one prints."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    if rank() > 0:
        sys.stdout = open(os.devnull, "w")


def stop_processes():
    """Together: a process that leaves early may take the others down."""
    wait()
    if dist.is_initialized():
        dist.destroy_process_group()


def wait():
    """Until all processes are here."""
    if processes() > 1:
        dist.barrier()


@contextlib.contextmanager
def new_file(path, mode="w"):
    """Write a file beside, then rename it: a crash leaves the old one or the new one, never half of one.
    The first process does it, the others write to nowhere."""
    beside = path + ".tmp" if rank() == 0 else os.devnull
    with open(beside, mode, encoding=None if "b" in mode else "utf-8") as f:
        yield f
    if rank() == 0:
        os.replace(beside, path)


def share(rows):
    """This process's part of a list."""
    return rows[rank()::processes()]


def join(mine):
    """The parts of all processes, put together again: join(share(x)) == x."""
    if processes() == 1:
        return mine
    parts = [None] * processes()
    dist.all_gather_object(parts, mine)
    return [parts[i % processes()][i // processes()] for i in range(sum(map(len, parts)))]


def add_up(tensors):
    """Replace each tensor by its sum over the processes, all in one message."""
    if processes() > 1:
        flat = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(flat)
        for t, total in zip(tensors, flat.split([t.numel() for t in tensors])):
            t.copy_(total.view_as(t))


def add_up_numbers(numbers):
    """A dict of numbers, or of tensors that hold one -> their sums over the processes, as floats."""
    values = [x.item() if isinstance(x, torch.Tensor) else x for x in numbers.values()]
    totals = torch.tensor(values, dtype=torch.float64)
    add_up([totals])
    return dict(zip(numbers, totals.tolist()))
