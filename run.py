"""
The run folder: flags and config, checkpoints, metrics, and how a run that was killed goes on.

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

import argparse
import contextlib
import dataclasses
import glob
import inspect
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

from data import Parser, UserError
from parallel import join, new_file, processes, rank, wait

# Each stage with its units, and with the files that say what is done, in the order in which they are written.
UNITS = {"pretrain": ["base"], "rft": ["rft-samples", "rft"], "rl": ["rl"], "metarm": ["meta-rft", "meta-rl"],
         "eval": ["eval-base", "eval-rft", "eval-rl"]}
FILES = {"pretrain": ["tokenizer.tiktoken", "base.pt"],
         "rft": ["judgements-rft.jsonl", "judgements-hinted.jsonl", "rft.pt"],
         "rl": ["rl.pt"], "metarm": ["meta-rft.pt", "meta-rl.pt"],
         "eval": ["judgements-*-*.jsonl", "results.json", "per_item.npz", "*.png", "report.html"]}

# What a unit takes of a default run, in percent, for the bar of the whole run: an estimate, no more.
SHARES = {"base": 45, "rft-samples": 3, "rft": 9, "rl": 13, "meta-rft": 4, "meta-rl": 5, "eval-base": 4,
          "eval-rft": 7, "eval-rl": 10}

# ----------------------------------------------------------------------------------------
# Flags

def parse_flags(argv, config, doc):
    """--name value ... -> ({field: value} of the flags that were given, resume, stage or None).

    config: a dataclass. Each field is a flag, and the comment behind it is its help.
    """
    parser = Parser(doc, usage="python spct.py [--FLAG VALUE ...]", argument_default=argparse.SUPPRESS)
    comments = dict(re.findall(r"^    (\w+): .*?# (.*)$", inspect.getsource(config), re.MULTILINE))
    for f in dataclasses.fields(config):
        comment = comments[f.name] + ("" if f.default == "" else f" ({f.default})")
        parser.add_argument(f"--{f.name}", type=f.type, metavar="", help=comment.replace("%", "%%"))
    parser.add_argument("--resume", action="store_true", help="go on with the run that the folder holds")
    parser.add_argument("--stage", choices=list(UNITS), help="with --resume: repeat this and later ones")
    values = vars(parser.parse_args(argv))
    return values, values.pop("resume", False), values.pop("stage", None)


def earlier_config(folder, values, resume, free, known):
    """The config of the run that the folder holds, None if there is none.

    A run is only touched on --resume, and only the fields in `free` may then differ: those of the stages that
    --stage repeats, None without --stage. known: the names of all fields.
    """
    saved = os.path.join(folder, "config.json")
    if free is not None and not resume:
        raise UserError("--stage repeats a part of an earlier run: add --resume")
    if not os.path.exists(saved):
        if resume:
            raise UserError(f"--resume: there is no run in {folder}; leave --resume out to start one")
        return None
    if not resume:
        raise UserError(f"{folder} holds a run already: add --resume to go on, or --out FOLDER for another")
    before = read_json(saved)
    if set(before) != set(known):
        raise UserError(f"{saved} is of another version of this program: use --out FOLDER for a new run")
    changed = [name for name, value in values.items() if value != before[name]]
    fixed = [name for name in changed if name not in ["out", *(free or [])]]
    if fixed:
        raise UserError(f"--{fixed[0]} differs from the run in {folder}, which has {before[fixed[0]]}: use "
                        f"--out FOLDER for another run (--stage frees the settings of that stage and later)")
    return before


def check_values(cfg):
    """Refuse values with which a run would fail or mean nothing, before it starts."""
    least = {"seed": 0, "threads": 0, "pretrain_tokens": 0, "hinted": 0, "meta_old": 0, "group": 2,
             "rl_keep": 2, "k": 2, "eval_items": 2, "n_rft": 2, "block_size": 368}
    for name, value in vars(cfg).items():
        if isinstance(value, int) and value < least.get(name, 1):
            raise UserError(f"--{name} {value}: expected {least.get(name, 1)} or more")
        if isinstance(value, float):
            positive = name.endswith(("lr", "temperature"))
            if not (0 < value < math.inf or value == 0 and not positive):
                raise UserError(f"--{name} {value}: expected {'more than 0' if positive else '0 or more'}")
    rows = min(cfg.pretrain_rows, cfg.rft_rows, cfg.rl_points, 32)     # 32: the Meta RM's
    if processes() > rows:
        raise UserError(f"{processes()} processes: a step may have {rows} rows only, start as many or fewer")
    if cfg.device == "cuda" and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > torch.cuda.device_count():
        raise UserError("more processes than GPUs: start as many or fewer, or add --device cpu")
    if cfg.rl_keep > cfg.group:
        raise UserError(f"--rl_keep {cfg.rl_keep}: expected --group ({cfg.group}) or less")
    if cfg.rl_points > cfg.points:
        raise UserError(f"--rl_points {cfg.rl_points}: expected --points ({cfg.points}) or less")
    if cfg.rft_general >= 1 or cfg.noise >= 1:
        raise UserError("--rft_general and --noise are shares: expected less than 1")
    if cfg.k & (cfg.k - 1) or cfg.k > 512:
        raise UserError(f"--k {cfg.k}: expected a power of two, up to 512")
    if cfg.n_embd % (2 * cfg.n_head) or cfg.n_head % cfg.n_kv_head or cfg.block_size % 16:
        raise UserError("--n_embd must be a multiple of 2 n_head, --n_head of n_kv_head, --block_size of 16")
    if cfg.eval_split not in ("test", "val"):
        raise UserError(f"--eval_split {cfg.eval_split}: expected test or val")
    if cfg.vocab_size < 600 or cfg.dtype not in ("auto", "float32", "bfloat16"):
        raise UserError("--vocab_size must be 600 or more, --dtype auto, float32 or bfloat16")
    if cfg.device == "mps" and cfg.dtype == "bfloat16":
        raise UserError("--device mps computes in float32: leave --dtype out")
    try:
        os.makedirs(cfg.out, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {cfg.out}: {error.strerror}, name another folder") from None
    if not os.access(cfg.out, os.W_OK):
        raise UserError(f"--out {cfg.out} cannot be written to, name another folder")


def make_config(argv, config, presets, first_field, doc):
    """Flags over preset over defaults, or with --resume over the folder's own config -> config, --stage."""
    values, resume, stage = parse_flags(argv, config, doc)
    for name in ("device", "dtype"):
        if values.get(name) == "auto":             # the default
            del values[name]
    device = pick_device(values.get("device", "auto"))
    preset = values.get("preset", "gpu" if device == "cuda" else "cpu")
    if preset not in presets:
        raise UserError(f"--preset {preset}: expected one of {', '.join(presets)}")
    cfg = config(**{**presets[preset], **values, "preset": preset, "device": device})
    cfg.out = cfg.out or f"runs/{preset}-seed{cfg.seed}"
    names = [f.name for f in dataclasses.fields(config)]
    free = names[names.index(first_field[stage]):] if stage else None
    before = earlier_config(cfg.out, values, resume, free, names)
    if before:
        cfg = config(**{**before, **values, "out": cfg.out})
        pick_device(cfg.device)                    # is it still there?
    check_values(cfg)
    return cfg, stage

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
    with contextlib.suppress(OSError, AttributeError), open("/proc/cpuinfo") as f:
        name = re.search("model name\\s*: (.*)", f.read())[1]
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
            self.whole.update(SHARES[unit])
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
        found = [path for pattern in patterns for path in glob.glob(self.path(pattern))]
        # The last written first: if this is interrupted, what is left is the beginning of the run.
        for path in sorted(found, key=os.path.getmtime, reverse=True):
            shutil.move(path, self.path(f"old-{number}"))


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
    before = sum(share for unit, share in SHARES.items() if unit in run.seconds_of)
    run.whole = tqdm(total=sum(SHARES.values()), initial=before, delay=1e-3, disable=rank() > 0,
                     bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed} so far, about {remaining} left")
    return run
