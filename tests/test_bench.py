"""The benchmark in experiments/: its counts, and that it runs."""

import math
import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.bench import SIZES, config, forward_flops
from model import GPT

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.mark.parametrize("size", SIZES)
def test_flops_are_those_that_torch_counts(size, tok):
    """Guards against a share of the limit that counts work twice or leaves some out. Torch also counts
    attention to later tokens: 4 C T^2 a layer, where we count what a causal model needs."""
    cfg, T, predicted = config(tok, size), 24, 10
    model = GPT(cfg)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.logits(model(torch.zeros(1, T, dtype=torch.long))[:, :predicted])
    later = 4 * cfg.n_embd * cfg.n_layer * (T * T - T * (T + 1) / 2)
    assert forward_flops(cfg, T, predicted) == counter.get_total_flops() - later


@pytest.mark.slow
def test_quick_benchmark():
    """Guards against a benchmark that no longer runs, rows that are missing, and numbers that mean nothing.
    How large they are is no test: a busy machine may say anything."""
    done = subprocess.run([sys.executable, "-m", "experiments.bench", "--quick"], cwd=ROOT, text=True,
                          timeout=900, capture_output=True,
                          env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    expected = ["matrix product", "sampling, 1 rows", "sampling, 32 rows", "loop without a cache",
                *["Hugging Face"] * bool(find_spec("transformers")), "training, size S", "training, size M",
                "an RL step", *["TRL"] * bool(find_spec("trl"))]
    lines = done.stdout.splitlines()
    assert len(lines) == len(expected)
    for line, name in zip(lines, expected):
        numbers = [float(text.replace(",", "")) for text in re.findall(r" ([\d,.]+|nan|inf) ", line[48:])]
        assert line.startswith(name) and numbers and all(0 < x < math.inf for x in numbers), line
