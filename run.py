"""
The run folder: checkpoints, metrics, device and precision, and how a run that was killed goes on.

The method itself is in spct.py and metarm.py; this file keeps bookkeeping out of their way. A run is a row
of units of work (base, rft-samples, rft, rl, meta-rft, ...). A unit is done when its last file is there,
which is written beside and renamed. Every random draw is seeded by (run seed, purpose, item, sample), so
that a unit that was cut off is repeated from its start, to the same bytes: at worst that is pre-training,
some minutes.

    config.json            every setting, as it was decided (device, precision, threads)
    metrics-<unit>.jsonl   a line a step with the same keys; no times, so that equal runs write equal bytes
    <unit>.pt              weights
    judgements-*.jsonl     what was sampled
    progress.json          seconds of each unit
"""

import contextlib
import dataclasses
import glob
import json
import math
import os
import pickle
import platform
import re
import shutil
import sys
import time
import timeit

import torch
from tqdm import tqdm

from data import UserError
from parallel import join, new_file, rank, wait

# Each stage with its units, and with the files that they write: --stage moves these away.
UNITS = {"pretrain": ["base"], "rft": ["rft-samples", "rft"], "rl": ["rl"], "metarm": ["meta-rft", "meta-rl"],
         "eval": ["eval-base", "eval-rft", "eval-rl"]}
FILES = {"pretrain": ["tokenizer.tiktoken", "base.pt"],
         "rft": ["judgements-rft.jsonl", "judgements-hinted.jsonl", "rft.pt"],
         "rl": ["rl.pt"], "metarm": ["meta-rft.pt", "meta-rl.pt"],
         "eval": ["judgements-*-*.jsonl", "results.json", "per_item.npz", "*.png", "report.html"]}

# What a unit takes of a default run, in percent, for the bar of the whole run: an estimate, no more.
SHARES = {"base": 45, "rft-samples": 3, "rft": 9, "rl": 13, "meta-rft": 4, "meta-rl": 5, "eval-base": 4,
          "eval-rft": 7, "eval-rl": 10}


def shares(cfg):
    """SHARES of this run: a base model that comes along takes no time."""
    return {**SHARES, "base": 0} if cfg.pretrain_tokens == 0 else SHARES

# ----------------------------------------------------------------------------------------
# What to compute on, and how: measured and not looked up

def pick_device(wanted):
    """--device -> "cpu", "cuda" or "mps". "auto" takes a GPU only if it can multiply: torch sees GPUs for
    which it has no kernels."""
    if wanted == "auto":
        try:                                       # times() fails on such a GPU
            return "cuda" if torch.cuda.is_available() and times("cuda", torch.float32, 8) else "cpu"
        except RuntimeError as error:
            print(f"the GPU cannot be used, so the CPU is: {str(error).splitlines()[0]}", file=sys.stderr)
            return "cpu"
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(wanted):
        raise UserError(f"--device {wanted}: expected auto, {' or '.join(d for d in there if there[d])}")
    if wanted == "mps":
        print("mps is untested", file=sys.stderr)
    return wanted


def times(device, dtype, rows, tries=1):
    """Seconds of the fastest of some matrix products (rows x 128 x 512)."""
    x, w = (torch.ones(*shape, device=device, dtype=dtype) for shape in ((rows, 128), (128, 512)))
    product = lambda: (x @ w).sum().item()         # item() waits for the device
    return min(timeit.repeat(product, number=1, repeat=tries))


def pick_dtype(device):
    """bfloat16 if a matrix product as in training is much faster in it, else float32.

    CPUs and older GPUs without bfloat16 instructions emulate it, and multiply large matrices a hundred or
    more times slower: a small product tells. The margin is wide, so that the same machine decides the same
    way each time.
    """
    if device == "mps" or device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "float32"
    enough = 4096 if device == "cpu" else 2 ** 18  # on a GPU more rows, or the start of each product is timed
    for rows, tries in ((256, 3), (enough, 30)):
        single, half = (times(device, dtype, rows, tries) for dtype in (torch.float32, torch.bfloat16))
        if half > 3 * single:
            return "float32"
    return "bfloat16" if single > 1.3 * half else "float32"


def pick_threads():
    """CPU threads: twice as many, again and again, while that makes a matrix product a quarter faster."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    best, least = 1, math.inf
    for threads in sorted({2 ** i for i in range(cores.bit_length())} | {cores}):
        torch.set_num_threads(threads)
        seconds = times("cpu", torch.float32, 4096, 30)
        if seconds > 0.8 * least:
            break
        best, least = threads, seconds
    return best


EMULATION = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")


def machine():
    """The machine in words, for every figure of speed: CPU, instruction set, matrix rate, threads, torch."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as f:
        name = (re.findall("model name\\s*: (.*)", f.read()) or [name])[0]      # ARM's names none
    x = torch.ones(1024, 1024)
    rate = 2 * 1024 ** 3 / min(timeit.repeat(lambda: x @ x, number=1, repeat=9)) / 1e9
    emulated = " (emulated)" if any(v in os.environ for v in EMULATION) else ""
    isa = torch.backends.cpu.get_cpu_capability()
    name = f"{torch.cuda.get_device_name()} and {name}" if torch.cuda.is_available() else name
    return (f"{name}, {isa}{emulated}, {torch.get_num_threads()} threads, "
            f"{rate:.0f} GFLOP/s in float32, torch {torch.__version__}")

# ----------------------------------------------------------------------------------------
# Files

def write_json(path, value):
    with new_file(path) as f:
        json.dump(value, f, indent=1)


def read_json(path):
    try:
        with open(path) as f:
            return json.load(f)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): a new run needs another folder") from None


def load_tensors(path, device):
    """A checkpoint: tensors and plain values only, nothing in it is ever executed."""
    try:
        return torch.load(path, weights_only=True, map_location=device)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be read ({reason}): train it again") from None


class Run:
    """The folder of one run. A unit of work asks done(), then logs, then calls finish()."""

    def __init__(self, cfg, folder):
        self.cfg, self.folder, self.device = cfg, folder, cfg.device
        self.dtype = getattr(torch, cfg.dtype)                               # of all that trains
        self.unit, self.started, self.bar = None, None, None                 # of the unit in progress
        self.whole = None                                                    # a bar of all units
        started = os.path.exists(self.path("progress.json"))
        self.seconds_of = read_json(self.path("progress.json")) if started else {}

    def path(self, name):
        return os.path.join(self.folder, name)

    def done(self, unit, model=None, file=None):
        """Is this unit done: is its last file there? Then its weights are loaded. Else it begins anew."""
        if join([os.path.exists(self.path(file or unit + ".pt"))])[0]:       # as the first process sees it
            if model is not None:
                model.load_state_dict(load_tensors(self.path(unit + ".pt"), self.device)["weights"])
            return True
        self.unit, self.started = unit, time.time()
        if self.whole is not None:
            self.whole.set_description(f"whole run, now {unit}")
        if rank() == 0 and os.path.exists(self.path(f"metrics-{unit}.jsonl")):
            os.remove(self.path(f"metrics-{unit}.jsonl"))
        return False

    def steps(self, unit, count):
        """The numbers of the steps of a training loop, with a progress bar."""
        self.bar = tqdm(range(count), desc=unit, mininterval=2.0, disable=rank() > 0)
        yield from self.bar
        self.bar = None

    def log(self, unit, **values):
        """One line in the unit's metrics file. Six digits are enough and read well."""
        short = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
        if self.bar is not None:
            shown = ("loss", "reward", "kl", "agree", "lr")
            self.bar.set_postfix({k: f"{short[k]:.3g}" for k in shown if k in short}, refresh=False)
        if rank() == 0:
            with open(self.path(f"metrics-{unit}.jsonl"), "a") as f:
                f.write(json.dumps(short) + "\n")

    def finish(self, unit, model=None):
        """The unit is done: keep its seconds, and its weights if it has a model."""
        self.seconds_of[unit] = time.time() - self.started
        write_json(self.path("progress.json"), self.seconds_of)
        if model is not None:
            cfg = model.cfg if hasattr(model, "cfg") else model.gpt.cfg
            with new_file(self.path(unit + ".pt"), "wb") as f:
                torch.save({"config": dataclasses.asdict(cfg), "weights": model.state_dict()}, f)
        if self.whole is not None:
            self.whole.update(shares(self.cfg)[unit])
        self.unit = None
        wait()                                     # now the others may read what the first process wrote

    def seconds(self):
        """Wall-clock seconds by stage."""
        of = lambda units: sum(self.seconds_of.get(unit, 0.0) for unit in units)
        sums = {stage: of(units) for stage, units in UNITS.items()}
        return {name: round(s, 1) for name, s in {**sums, "total": sum(sums.values())}.items()}

    def autocast(self):
        """A context that sets the precision of training."""
        half = self.dtype == torch.bfloat16
        return torch.autocast(self.device, self.dtype) if half else contextlib.nullcontext()

    def sampling(self):
        """The same for sampling: on a CPU float32 is as fast, and its rounding tips few samples over."""
        return self.autocast() if self.device == "cuda" else contextlib.nullcontext()

    def repeat(self, stage):
        """Move what this stage and later ones wrote to a folder old-<number>, so that they are done again."""
        number = 1
        while os.path.exists(self.path(f"old-{number}")):
            number += 1
        os.makedirs(self.path(f"old-{number}"))
        for name in ("config.json", "progress.json"):
            if os.path.exists(self.path(name)):
                shutil.copy2(self.path(name), self.path(f"old-{number}"))
        later = list(UNITS)[list(UNITS).index(stage):]
        for unit in sum((UNITS[s] for s in later), []):
            self.seconds_of.pop(unit, None)
        write_json(self.path("progress.json"), self.seconds_of)
        patterns = [p for s in later for p in FILES[s] + [f"metrics-{unit}.jsonl" for unit in UNITS[s]]]
        found = [path for pattern in patterns for path in glob.glob(pattern, root_dir=self.folder)]
        # The last written first: if this is interrupted, what is left is the beginning of the run.
        for path in sorted(map(self.path, found), key=os.path.getmtime, reverse=True):
            shutil.move(path, self.path(f"old-{number}"))
        print(f"what {stage} and later stages had written is now in {self.path(f'old-{number}')}")


def open_run(cfg, repeat):
    """The run of this config, once threads and precision are decided. If `repeat` is not None, this stage and
    later ones will be repeated. The first process decides, and goes first."""
    cfg.threads = cfg.threads or join([pick_threads()])[0]
    torch.set_num_threads(cfg.threads)
    if cfg.dtype == "auto":
        cfg.dtype = join([pick_dtype(cfg.device)])[0]
    if rank() > 0:
        wait()
    run = Run(cfg, cfg.out)
    if rank() == 0:
        if repeat:
            run.repeat(repeat)
        wait()
    write_json(run.path("config.json"), dataclasses.asdict(cfg))
    print("\n".join(f"{name:16s} {value}" for name, value in vars(cfg).items()))
    print(f"{'machine':16s} {machine()}")
    before = sum(share for unit, share in shares(cfg).items() if unit in run.seconds_of)
    run.whole = tqdm(total=sum(shares(cfg).values()), initial=before, delay=1e-3, disable=rank() > 0,
                     bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed} so far, about {remaining} left")
    return run
