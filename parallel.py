"""
Several processes, each with a share of the work:

    torchrun --nproc_per_node=2 spct.py --threads 1         # on CPUs; on GPUs one process for each

All processes hold the same data, models and random seeds, and so agree on every batch. Each trains on its
share() of the rows and samples its share of the judgements; add_up() and join() bring the results together.
The first process alone prints and writes files; all of them must see its run folder, also from other
machines. With one process all of this does nothing.
"""

import functools
import os
import sys
from concurrent.futures import ThreadPoolExecutor

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
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
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


def first_only(write):
    """Decorator for what writes files: the first process does it, the others pass."""
    @functools.wraps(write)
    def guarded(*args, **kwargs):
        if rank() == 0:
            write(*args, **kwargs)
    return guarded


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


def in_threads(function, rows, count):
    """[function(rows[0::count]), function(rows[1::count]), ...], side by side in threads of this process.

    They divide torch's threads among them. Where operations are small, that can be faster than to let all
    threads share each operation. (autocast and the like do not reach into threads.)
    """
    parts = [rows[i::count] for i in range(count)]
    if count == 1:
        return [function(parts[0])]

    before = torch.get_num_threads()

    def work(part):
        torch.set_num_threads(max(1, before // count))                       # in this thread
        return function(part)

    try:
        with ThreadPoolExecutor(count) as pool:
            try:
                return list(pool.map(work, parts))
            except BaseException:                  # an interruption: let the others run out of work, too
                for part in parts:
                    part.clear()
                raise
    finally:
        torch.set_num_threads(before)


def add_up(tensors):
    """Replace each tensor by its sum over the processes, all in one message."""
    if processes() > 1:
        flat = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(flat)
        for t, total in zip(tensors, flat.split([t.numel() for t in tensors])):
            t.copy_(total.view_as(t))


def add_up_numbers(numbers):
    """The same for a dict of numbers."""
    totals = torch.tensor(list(numbers.values()), dtype=torch.float64)
    add_up([totals])
    return dict(zip(numbers, totals.tolist()))
