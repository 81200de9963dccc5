"""
The run folder: config, checkpoints, metrics, and how a run that was killed goes on.

The method itself is in spct.py and metarm.py; this file keeps bookkeeping out of their way. A run is a row
of units (base, rft-samples, rft, rl, meta-rft, ...). What is finished is listed in progress.json; a unit in
progress has its latest checkpoint in state.pt. Every random draw is seeded by (run seed, purpose, item,
sample), so there are no generator states to save: to go on is to load the latest checkpoint, cut
metrics.jsonl back to the length it had then, and repeat the lost steps, with the same result.

Wall-clock times go to progress.json, never to metrics.jsonl: equal runs write equal bytes.
"""

import contextlib
import difflib
import json
import math
import os
import pickle
import shutil
import time
from dataclasses import asdict

import torch
from tqdm import tqdm

from data import UserError
from parallel import first_only, processes, rank, wait


# Each stage with the units of work that it is made of: what --stage STAGE repeats.
UNITS = {"pretrain": ["base"], "rft": ["rft-samples", "rft"], "rl": ["rl"], "metarm": ["meta-rft", "meta-rl"],
         "eval": ["eval-base", "eval-rft", "eval-rl"]}


def parse_flags(argv, types):
    """--name value ... -> ({field: value}, resume, stage or None). Unknown flags are refused.

    types: {field: type} of the config; --resume takes no value, --stage one of UNITS.
    """
    values, argv = {}, list(argv)
    known = {**types, "stage": str, "resume": bool}
    while argv:
        flag = argv.pop(0)
        name = flag.removeprefix("--")
        if not flag.startswith("--") or name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean --{near[0]}?" if near else "the flags are the fields of Config in spct.py"
            raise UserError(f"unknown flag {flag}, {hint}")
        if name == "resume":
            values[name] = True
            continue
        if not argv:
            raise UserError(f"{flag} needs a value")
        text = argv.pop(0)
        try:
            values[name] = known[name](text)
        except ValueError:
            kind = "a whole number" if known[name] is int else "a number"
            raise UserError(f"{flag} {text}: expected {kind}") from None
    resume, stage = values.pop("resume", False), values.pop("stage", None)
    if stage and stage not in UNITS:
        raise UserError(f"--stage {stage}: expected one of {', '.join(UNITS)}")
    return values, resume, stage


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
    least = {"seed": 0, "hinted": 0, "meta_old": 0, "group": 2, "k": 2, "eval_items": 2, "n_rft": 2,
             "block_size": 320}
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
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(cfg.device):
        raise UserError(f"--device {cfg.device}: expected {' or '.join(d for d, ok in there.items() if ok)}")
    try:
        os.makedirs(cfg.out, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {cfg.out}: {error.strerror}, name another folder") from None
    if not os.access(cfg.out, os.W_OK):
        raise UserError(f"--out {cfg.out} cannot be written to, name another folder")


@first_only
def write_json(path, value):
    """Written beside and renamed: a crash leaves the old file or the new one, never half of one."""
    with open(path + ".tmp", "w") as f:
        json.dump(value, f, indent=1)
    os.replace(path + ".tmp", path)


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
        advice = "remove it to go on without" if path.endswith("state.pt") else "train it again"
        raise UserError(f"{path} cannot be read ({reason}): {advice}") from None


def pick_dtype(device):
    """bfloat16 if a matrix product of a training step's shape is much faster in it, else float32.

    Measured and not looked up: CPUs without bfloat16 instructions emulate it slowly. The best of many
    runs is compared, and the margin is wide, so that the same machine decides the same way each time.
    """
    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(4096, 128, device=device, dtype=dtype)
        w = torch.ones(128, 512, device=device, dtype=dtype)
        times = []
        for _ in range(30):
            start = time.perf_counter()
            (x @ w).sum().item()                   # item() waits for the device
            times.append(time.perf_counter() - start)
        best[dtype] = min(times)
    return "bfloat16" if best[torch.float32] > 1.3 * best[torch.bfloat16] else "float32"


class Run:
    def __init__(self, cfg, folder):
        self.cfg, self.folder, self.device = cfg, folder, cfg.device
        started = os.path.exists(self.path("progress.json"))
        self.progress = read_json(self.path("progress.json")) if started else {}
        self.state = None                          # the checkpoint of a unit that was interrupted
        if os.path.exists(self.path("state.pt")):
            state = load_tensors(self.path("state.pt"), self.device)
            self.state = state if state["unit"] not in self.progress else None
        self.cut_metrics()
        self.started = time.time()                 # of the unit in progress

    def path(self, name):
        return os.path.join(self.folder, name)

    def remove(self, name):
        if os.path.exists(self.path(name)):
            os.remove(self.path(name))

    def autocast(self):
        if self.cfg.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype=torch.bfloat16)

    @first_only
    def log(self, unit, **values):
        """One dense line in metrics.jsonl. Six digits are enough and read well."""
        short = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
        with open(self.path("metrics.jsonl"), "a") as f:
            f.write(json.dumps({"unit": unit, **short}) + "\n")

    def metrics_bytes(self):
        return os.path.getsize(self.path("metrics.jsonl"))

    @first_only
    def cut_metrics(self):
        """Back to the checkpoint that the run goes on from, or else to the end of the last finished unit."""
        finished = max([p["metrics_bytes"] for p in self.progress.values()], default=0)
        with open(self.path("metrics.jsonl"), "ab") as f:
            f.truncate(self.state["metrics_bytes"] if self.state else finished)

    @first_only
    def save(self, name, value):
        torch.save(value, self.path(name) + ".tmp")
        os.replace(self.path(name) + ".tmp", self.path(name))

    # A unit begins, trains, finishes ------------------------------------------------------

    def load_if_done(self, unit, model=None):
        """Is this unit done? If so, its weights are loaded into the model. Else its clock starts."""
        self.started = time.time()
        if unit not in self.progress:
            return False
        if model is not None:
            saved = load_tensors(self.path(unit + ".pt"), self.device)
            model.load_state_dict(saved["weights"])
        return True

    def finish(self, unit, model=None):
        if model is not None:
            cfg = model.cfg if hasattr(model, "cfg") else model.gpt.cfg
            self.save(unit + ".pt", {"config": asdict(cfg), "weights": model.state_dict()})
        before = self.state["seconds"] if self.state and self.state["unit"] == unit else 0.0
        self.progress[unit] = {"metrics_bytes": self.metrics_bytes(),
                               "seconds": before + time.time() - self.started}
        write_json(self.path("progress.json"), self.progress)
        self.state = None
        wait()                                     # now the others may read what the first process wrote

    @first_only                                    # the others then find it done: see open_run
    def forget(self, units):
        """Repeat these units. All files are first copied to a folder old-<number>: nothing is lost."""
        number = 1
        while os.path.exists(self.path(f"old-{number}")):
            number += 1
        os.makedirs(self.path(f"old-{number}"))
        for name in os.listdir(self.folder):       # copies: earlier units' checkpoints are still needed here
            if os.path.isfile(self.path(name)):
                shutil.copy2(self.path(name), self.path(f"old-{number}/{name}"))
        for unit in units:
            self.progress.pop(unit, None)
        if self.state and self.state["unit"] in units:
            self.state = None
        # First the checkpoint: without its unit in progress.json it would count as that of an interrupted
        # one. Last the results that no longer belong to what stands here.
        stale = ["results.json", "per_item.npz", "votes.png", "subsets.png", "rl.png"]
        stale += [unit + ".pt" for unit in units] + (["tokenizer.tiktoken"] if "base" in units else [])
        if self.state is None:
            self.remove("state.pt")
        write_json(self.path("progress.json"), self.progress)
        for name in stale:
            self.remove(name)
        self.cut_metrics()

    def seconds(self):
        """Wall-clock seconds by stage."""
        of = lambda units: sum(self.progress[unit]["seconds"] for unit in units if unit in self.progress)
        sums = {stage: of(units) for stage, units in UNITS.items()}
        return {name: round(s, 1) for name, s in {**sums, "total": sum(sums.values())}.items()}

    def train(self, unit, model, opt, steps, step_fn):
        """Call step_fn(i) for i in 0..steps-1, log what it returns, save as it goes, go on where it was."""
        first, before = 0, 0.0
        if self.state and self.state["unit"] == unit:
            first, before = self.state["step"], self.state["seconds"]
            model.load_state_dict(self.state["model"])
            opt.load_state_dict(self.state["opt"])
        model.train()
        bar = tqdm(range(first, steps), initial=first, total=steps, desc=unit, mininterval=2.0,
                   disable=rank() > 0)
        for i in bar:
            metrics = step_fn(i)
            if not math.isfinite(metrics["loss"]):
                raise UserError(f"{unit}, step {i}: the loss is not finite, start again with a lower rate")
            self.log(unit, step=i, **metrics)
            bar.set_postfix({k: f"{v:.3g}" for k, v in list(metrics.items())[:4]}, refresh=False)
            if (i + 1) % self.cfg.save_every == 0:
                self.save("state.pt", {"unit": unit, "step": i + 1, "model": model.state_dict(),
                                       "opt": opt.state_dict(), "metrics_bytes": self.metrics_bytes(),
                                       "seconds": before + time.time() - self.started})
        self.finish(unit, model)


def open_run(cfg, forget):
    """The run of this config; the units in `forget` will be repeated. The first process goes first."""
    if rank() > 0:
        wait()
    run = Run(cfg, cfg.out)
    if forget:
        run.forget(forget)
    if rank() == 0:
        wait()
    return run
