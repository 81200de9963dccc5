"""What a training in float32 computes in, and how it runs on a CPU without bfloat16 instructions."""

import json
import os
import platform
import random
import subprocess
import sys
import time

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import metarm
import spct
from config import Config
from data.judgement import Judgement
from data.tokenizer import END
from model import GPT, GPTConfig, Optimizer, RewardModel, token_logp
from run import Run, pick_dtype

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


class Products(TorchDispatchMode):
    """Keeps the precision of every matrix product."""

    NAMES = ("mm", "bmm", "addmm", "baddbmm")

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.overloadpacket.__name__ in self.NAMES:
            self.seen |= {x.dtype for x in tree_leaves(args) if isinstance(x, torch.Tensor)}
        return op(*args, **(kwargs or {}))


def one_step_of_each(dtype, folder):
    """A step of pre-training, an update of RL and a step of a Meta RM, on random tokens."""
    run = Run(Config(device="cpu", dtype=dtype), str(folder))
    policy, reference = (GPT(GPTConfig(40, 64, 2, 4, 1, 32), seed=1) for _ in range(2))
    ids = torch.randint(2, 40, (4, 64), generator=torch.Generator().manual_seed(0)).numpy()
    run.done("base", policy)
    spct.train_lm(run, "base", policy, ids, ids > 9, 1e-3, 4)
    js = [Judgement("x", i, [0], 0, (3, 4), [5 + i, 6, END], 0.0, scores=[1]) for i in range(4)]
    opt = Optimizer(policy, 1e-3, run.dtype)
    spct.update(run, policy, reference, opt, js, [1.0, -1.0, 1.0, -1.0], 1.0)
    guide = RewardModel(policy.cfg)
    run.done("meta-rl", guide)
    metarm.train(run, "meta-rl", guide, [(j.tokens, j.sample % 2 == 0) for j in js] * 8)
    metarm.score(guide, js, run.autocast())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_of_a_training(tmp_path, dtype):
    """Guards against a training in float32 that multiplies bfloat16 matrices somewhere (forward, backward
    or in the optimizer): a CPU without the instructions takes forty times as long. One in bfloat16 is seen
    to do so."""
    with Products() as products:
        one_step_of_each(dtype, tmp_path)
    assert products.seen == {torch.float32} if dtype == "float32" else torch.bfloat16 in products.seen


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def old_cpu():
    """A small training as an older CPU does it -> what came out. (This runs in a process of its own.)"""
    torch.set_num_threads(1)
    picked = []
    waited = seconds(lambda: picked.append(pick_dtype("cpu")))
    model = GPT(GPTConfig(64, 160, 4, 4, 1, 128))
    opt, rng, losses, passes, updates = Optimizer(model, 3e-3), random.Random(0), [], [], []

    def both_passes():
        starts = [rng.randrange(2, 50) for _ in range(4)]                    # rows that count up by 7
        ids = torch.tensor([[2 + (start + 7 * i) % 60 for i in range(160)] for start in starts])
        loss = -token_logp(model, ids, torch.ones_like(ids, dtype=torch.bool)).mean()
        loss.backward()
        losses.append(loss.item())

    for _ in range(12):
        passes.append(seconds(both_passes))
        updates.append(seconds(opt.step))
    return {"capability": torch.backends.cpu.get_cpu_capability(), "dtype": picked[0], "waited": waited,
            "losses": losses, "passes": min(passes), "updates": min(updates)}


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="only x86 plays old")
def test_training_on_an_older_cpu():
    """Guards against a default that is slow, or fails, where there are no bfloat16 instructions: bfloat16
    that is picked or found to be slow only after a long wait, a loss that does not fall, an optimizer that
    takes longer than the passes that it serves."""
    done = subprocess.run([sys.executable, __file__], env={**os.environ, **AVX2}, capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    r = json.loads(done.stdout)
    if r["capability"] != "AVX2":
        pytest.skip("this CPU has no AVX2")
    assert r["dtype"] == "float32" and r["waited"] < 5
    assert r["losses"][0] > 3.5 and r["losses"][-1] < 0.7 * r["losses"][0]
    assert r["updates"] < 1.5 * r["passes"], r


if __name__ == "__main__":
    print(json.dumps(old_cpu()))
