"""
Every setting of a run: the Config, its presets, and how flags become a Config that makes sense.

    python spct.py --preset smoke --seed 3 --rl_lr 5e-4     # each field of the Config is a flag
    python spct.py --help
"""

import argparse
import dataclasses
import glob
import inspect
import math
import os
import re

import torch

from data import Parser, UserError
from metarm import BATCH
from parallel import processes
from run import UNITS, load_tensors, pick_device, read_json
from sample import SHIPPED

# ----------------------------------------------------------------------------------------
# Every field is a flag, --field value, and its comment is the flag's help

@dataclasses.dataclass
class Config:
    # run
    preset: str = "cpu"            # smoke, short, cpu or gpu; by default one of the last two
    seed: int = 0                  # of everything: the world's items, weights, samples
    out: str = ""                  # run folder; by default runs/<preset>-seed<seed>
    device: str = "auto"           # cuda if there is one, else cpu; mps only if you ask for it
    dtype: str = "auto"            # float32 or bfloat16 for training; auto measures which one is faster
    threads: int = 0               # CPU threads, 0: as many as pay; another number rounds differently
    # model
    n_layer: int = 4               # blocks
    n_head: int = 4                # query heads
    n_kv_head: int = 1             # key/value heads
    n_embd: int = 128              # channels
    block_size: int = 368          # context in tokens: room for the longest document
    vocab_size: int = 704          # marks, bytes, merges
    # pre-training
    pretrain_tokens: int = 6_500_000  # length of the corpus; 0: the base model that comes along
    pretrain_rows: int = 7         # rows of block_size tokens a step; small steps learn to check sooner
    pretrain_lr: float = 4e-3      # peak learning rate
    # preference data
    points: int = 3000             # training points: RFT and RL use the same
    noise: float = 0.0             # share of wrong preference labels
    # rejective fine-tuning
    n_rft: int = 3                 # samples a point
    hinted: int = 1                # more samples a point, with the best response named
    rft_general: float = 0.5       # share of general text among the examples
    rft_rows: int = 8              # rows of block_size tokens a step
    rft_epochs: int = 2            # times that each example is seen
    rft_lr: float = 1e-3           # peak learning rate
    # RL
    rl_steps: int = 24             # rollouts
    rl_points: int = 64            # points a step
    group: int = 8                 # G: samples a point
    rl_keep: int = 4               # samples a point that are learned from, half of them right
    rl_updates: int = 1            # updates a rollout; if it is 1, the clip below never acts
    rl_lr: float = 1e-3            # peak learning rate: 5 steps of warm-up, down over the last 30%
    beta: float = 0.15             # KL coefficient
    clip: float = 0.2              # of the ratio: PPO's usual value
    # Meta RM
    meta_items: int = 1000         # fresh points, judged meta_samples times by the policy that it will guide
    meta_samples: int = 4          # samples of each of these points
    temperature: float = 0.5       # of these samples, and of the votes; RFT and RL sample at 1
    meta_old: int = 500            # points whose RFT samples are used too
    meta_lr: float = 1e-3          # peak learning rate
    # evaluation
    eval_split: str = "test"       # val while you tune
    eval_items: int = 500          # items of that split with n >= 2; of the other sets half as many
    k: int = 32                    # votes, a power of two

PRESETS = {
    "smoke": dict(n_layer=2, n_embd=64, pretrain_tokens=800_000, pretrain_rows=4, points=40,
                  rft_general=0.8, rft_rows=2, rl_steps=3, rl_points=4, group=4, rl_keep=2, meta_items=12,
                  eval_items=16, k=4),
    "short": dict(pretrain_tokens=0, points=1500, rl_steps=20, rl_points=48, meta_items=700, meta_old=250,
                  k=8),
    "cpu": {},
    "gpu": dict(n_layer=7, n_head=6, n_embd=192, pretrain_tokens=40_000_000, pretrain_rows=52, points=8000,
                rl_steps=150, meta_items=8000, eval_items=2000),
}

# The fields of Config stand in the order of the stages: --stage S may change these ones, and all that follow.
FIRST_FIELD = {"pretrain": "n_layer", "rft": "points", "rl": "rl_steps", "metarm": "meta_items",
               "eval": "eval_split"}

# ----------------------------------------------------------------------------------------
# Flags

def parse_flags(argv, doc):
    """--name value ... -> ({field: value} of the flags that were given, resume, stage or None)."""
    parser = Parser(doc, usage="python spct.py [--FLAG VALUE ...]", argument_default=argparse.SUPPRESS)
    comments = dict(re.findall(r"^    (\w+): .*?# (.*)$", inspect.getsource(Config), re.MULTILINE))
    for f in dataclasses.fields(Config):
        comment = comments[f.name] + ("" if f.default == "" else f" ({f.default})")
        parser.add_argument(f"--{f.name}", type=f.type, metavar="", help=comment.replace("%", "%%"))
    parser.add_argument("--resume", action="store_true", help="go on with the run that the folder holds")
    parser.add_argument("--stage", choices=list(UNITS), help="with --resume: repeat this and later ones")
    values = vars(parser.parse_args(argv))
    return values, values.pop("resume", False), values.pop("stage", None)


def earlier_config(folder, values, resume, free):
    """The config of the run that the folder holds, None if there is none.

    A run is only touched on --resume, and only the fields in `free` may then differ: those of the stages that
    --stage repeats, None without --stage.
    """
    saved = os.path.join(folder, "config.json")
    if free is not None and not resume:
        raise UserError("--stage repeats a part of an earlier run: add --resume")
    if not os.path.exists(saved):
        if resume:
            raise UserError(f"--resume: there is no run in {folder}; name its --out, or --preset and --seed, "
                            f"or leave --resume out to start one")
        others = [name for name in glob.glob("*", root_dir=folder) if not name.endswith(".log")]
        if others:
            raise UserError(f"{folder} holds {others[0]}, and no run: name a folder of its own, --out FOLDER")
        return None
    if not resume:
        raise UserError(f"{folder} holds a run already: add --resume to go on, or --out FOLDER for another")
    before = read_json(saved)
    if set(before) != {f.name for f in dataclasses.fields(Config)}:
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
    rows = min(cfg.pretrain_rows, cfg.rft_rows, cfg.rl_points, BATCH)          # BATCH: the Meta RM's
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
    if cfg.pretrain_tokens == 0:
        for name, value in load_tensors(os.path.join(SHIPPED, "base.pt"), "cpu")["config"].items():
            if getattr(cfg, name) != value:
                raise UserError(f"--{name} {getattr(cfg, name)}: the base model that comes along (with "
                                f"--pretrain_tokens 0) has {value}: drop it, or take --preset short")
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


def make_config(argv, doc):
    """Flags over preset over defaults, or with --resume over the folder's own config -> config, --stage."""
    values, resume, stage = parse_flags(argv, doc)
    for name in ("device", "dtype", "threads"):
        if values.get(name) in ("auto", 0):        # the default: with --resume, as the run has it
            del values[name]
    device = pick_device(values.get("device", "auto"))
    preset = values.get("preset", "gpu" if device == "cuda" else "cpu")
    if preset not in PRESETS:
        raise UserError(f"--preset {preset}: expected one of {', '.join(PRESETS)}")
    cfg = Config(**{**PRESETS[preset], **values, "preset": preset, "device": device})
    cfg.out = cfg.out or f"runs/{preset}-seed{cfg.seed}"
    names = [f.name for f in dataclasses.fields(Config)]
    free = names[names.index(FIRST_FIELD[stage]):] if stage else None
    before = earlier_config(cfg.out, values, resume, free)
    if before:
        cfg = Config(**{**before, **values, "out": cfg.out})
        pick_device(cfg.device)                    # is it still there?
    check_values(cfg)
    return cfg, stage
