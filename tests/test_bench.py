"""The benchmark in experiments/: its counts, and that it runs."""

import json
import os
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
def test_flops_are_those_that_torch_counts(size):
    """Guards against a share of the limit that counts work twice or leaves some out. Torch counts attention
    to later tokens, too: 4 C T^2 a layer, where we count what a causal model needs."""
    cfg, T, predicted = config(size), 24, 10
    ids = torch.zeros(1, T, dtype=torch.long)
    model = GPT(cfg)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.logits(model(ids, torch.arange(predicted)))
    later = 4 * cfg.n_embd * cfg.n_layer * (T * T - T * (T + 1) / 2)
    D, heads = cfg.n_embd // cfg.n_head, cfg.n_head + cfg.n_kv_head
    swaps = 2 * cfg.n_layer * T * heads * D * D    # rotary positions: a product that is no useful work
    assert forward_flops(cfg, 0, T, predicted) == counter.get_total_flops() - later - swaps
    halves = forward_flops(cfg, 0, 9, 4) + forward_flops(cfg, 9, T, 6)
    assert halves == pytest.approx(forward_flops(cfg, 0, T, predicted))


@pytest.mark.slow
def test_quick_benchmark(tmp_path):
    """Guards against a benchmark that no longer runs, or numbers that are missing or mean nothing."""
    out = tmp_path / "bench.json"
    flags = ["--quick", "--json", str(out)]
    done = subprocess.run([sys.executable, "-m", "experiments.bench", *flags], cwd=ROOT, text=True,
                          timeout=400, capture_output=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr[-3000:]
    r = json.loads(out.read_text())
    assert set(r) == {"machine", "limit", "sampling", "training", "rl_step", "trl_ratio"}
    assert set(r["sampling"]) == {"tok_s", "nocache_ratio", "hf_ratio", "hf_fixed_ratio", "limit_share",
                                  "votes_ratio"}
    assert set(r["limit"]) == {"fp32_gflops", "bf16_gflops"} and set(r["training"]) == set(SIZES)
    assert r["sampling"]["nocache_ratio"] > 5 and r["sampling"]["votes_ratio"] > 1.5
    assert (r["trl_ratio"] is None) == (find_spec("trl") is None)
    assert r["sampling"]["limit_share"] > 0.01 and all(s > 0 for s in r["rl_step"].values())
