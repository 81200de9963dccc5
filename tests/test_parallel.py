"""Two processes under torchrun (gloo, CPU) against one: the same method on the same global batches."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from config import Config
from data.judgement import Judgement
from metarm import from_policy, score
from model import GPT, GPTConfig, Optimizer
from parallel import join, new_file, rank, share, start_processes, stop_processes
from sample import generate
from spct import update

ENV = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
PROMPTS = [(5, 6, 7), (9,) * 20, (5, 6, 7), (8, 12), (13,) * 40] * 3


def torchrun(*argv):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*launch, *argv], cwd=ROOT, env=ENV, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def work():
    """Sample, score, and take three RL updates on what was sampled -> what came out, as plain lists."""
    model, reference = (GPT(GPTConfig(40, 64, 2, 4, 1, 32), seed=1) for _ in range(2))
    for p, q in zip(model.parameters(), reference.parameters()):
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.2
        q.data = p.data.clone()
    samples = generate(model, PROMPTS, range(15))
    js = [Judgement("", i, [], i, prompt, ids, logp, scores=[1])
          for i, (prompt, (ids, logp)) in enumerate(zip(PROMPTS, samples))]
    run = SimpleNamespace(cfg=Config(), device="cpu", autocast=nullcontext)
    meta = from_policy(model)
    torch.nn.init.normal_(meta.head.weight, generator=torch.Generator().manual_seed(0))
    score(meta, js)
    opt, adv = Optimizer(model, 1e-3), np.random.default_rng(0).normal(size=15).tolist()
    metrics = [update(run, model, reference, opt, js, adv, 1.0) for _ in range(3)]
    return {"ids": [ids for ids, _ in samples], "meta": [j.meta for j in js], "metrics": metrics,
            "weights": [p.flatten()[:50].tolist() for p in model.parameters()],
            "shares": join(share(list(range(7))))}


def test_a_crash_leaves_the_old_file(tmp_path):
    """Guards against a file that is half written, or gone, when a run is killed while it writes."""
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), new_file(str(path)) as f:
        f.write("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    with new_file(str(path)) as f:
        f.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path):
    """Guards against gradients that are averaged twice or not at all, a loss over a part of the batch, and
    samples or scores that come back in another order. Tolerance: that of float32 sums in another order."""
    out = tmp_path / "two.json"
    torchrun(__file__, str(out))
    two, one = json.loads(out.read_text()), work()
    assert two["ids"] == one["ids"] and two["shares"] == one["shares"] == list(range(7))
    np.testing.assert_allclose(two["meta"], one["meta"], rtol=1e-4, atol=1e-5)
    for a, b in zip(two["weights"], one["weights"]):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    for a, b in zip(two["metrics"], one["metrics"]):
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-3, atol=1e-5)
    assert one["metrics"][2]["kl"] > 1e-4          # something was learned: it could go wrong


@pytest.mark.slow
def test_a_run_on_two_processes(tmp_path):
    """Guards against processes that both write, wait for each other for ever, or drift apart: a whole small
    run gives the loss curve of one process (within 1%, in pre-training and for the Meta RM), and one of them
    prints."""
    flags = ["spct.py", "--preset", "smoke", "--device", "cpu", "--threads", "1", "--dtype", "float32",
             "--pretrain_tokens", "30000", "--eval_items", "4", "--rl_steps", "1",
             "--k", "2", "--points", "8", "--meta_items", "4"]
    subprocess.run([sys.executable, *flags, "--out", str(tmp_path / "one")], cwd=ROOT, env=ENV, check=True,
                   capture_output=True)
    done = torchrun(*flags, "--out", str(tmp_path / "two"))
    assert done.stdout.count("\npreset ") + done.stdout.startswith("preset ") == 1
    assert done.stdout.count("items of the test split") == 1
    read = lambda name, unit: [json.loads(line) for line in open(tmp_path / name / f"metrics-{unit}.jsonl")]
    metrics = lambda name: sorted(path.name for path in (tmp_path / name).glob("metrics-*"))
    assert metrics("one") == metrics("two") and not list((tmp_path / "two").glob("*.tmp"))
    for unit, least in (("base", 15), ("meta-rft", 1)):
        one, two = ([line["loss"] for line in read(name, unit)] for name in ("one", "two"))
        assert len(one) >= least
        np.testing.assert_allclose(one, two, rtol=0.01)


if __name__ == "__main__":          # one of the processes
    torch.set_num_threads(1)
    start_processes()
    result = work()
    if rank() == 0:
        with open(sys.argv[1], "w") as f:
            json.dump(result, f)
    stop_processes()
