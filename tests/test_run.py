"""Whole runs with the smoke preset and fewer tokens, in processes of their own."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SMALL = ["--preset", "smoke", "--device", "cpu", "--threads", "1", "--dtype", "float32", "--pretrain_tokens",
         "500000", "--pretrain_rows", "2", "--eval_items", "8", "--rl_steps", "4", "--rft_rows", "1"]
ENV = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "module://matplotlib_inline.backend_inline"}


def run(*argv, script="spct.py", **env):
    return subprocess.run([sys.executable, *script.split(), *argv], cwd=ROOT, env={**ENV, **env},
                          capture_output=True, encoding="utf-8", errors="replace")


def files(folder, *kinds):
    """{name: bytes} of the files that must be the same in equal runs."""
    return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder))
            if name.startswith(kinds or ("metrics", "judgements", "tokenizer", "per_item"))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A complete small run -> its folder, and what it printed. As on Colab, another matplotlib backend is set;
    as on Windows, the console has no emoji."""
    folder = tmp_path_factory.mktemp("run") / "a"
    done = run(*SMALL, "--out", str(folder), PYTHONIOENCODING="cp1252")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done


@pytest.mark.slow
def test_writes_every_file(finished):
    """Guards against a run that ends without a result, a figure or a checkpoint, or that warns."""
    folder, done = finished
    sets = [f"judgements-{p}-{s}.jsonl" for p in ("base", "rft", "rl")
            for s in ("greedy", "votes", "ood", "ood-greedy", "single")]
    assert set(os.listdir(folder)) == {
        "config.json", "seconds.jsonl", "results.json", "per_item.npz", "tokenizer.tiktoken",
        "votes.png", "rl.png",
        *(f"{name}.pt" for name in ("base", "rft", "rl", "meta")), *sets,
        *(f"judgements-{name}.jsonl" for name in ("rft", "hinted", "rl")),
        *(f"metrics-{name}.jsonl" for name in ("base", "rft", "rl", "meta"))}
    for name in ("base", "rft", "rl", "meta"):     # the same keys in each line
        rows = [json.loads(line) for line in open(folder / f"metrics-{name}.jsonl")]
        assert all(list(row) == list(rows[0]) for row in rows)
        assert [row["step"] for row in rows] == list(range(len(rows)))
    votes = [json.loads(line) for line in open(folder / "judgements-rl-votes.jsonl")]
    assert any(j["scores"] for j in votes)         # the Meta RM has rated what parses
    assert all((j["meta"] is None) == (j["scores"] is None) for j in votes)
    results = json.loads((folder / "results.json").read_text())
    assert set(results["stages"]) == {"base", "rft", "rl"} and results["items"] == 8
    for stage in results["stages"].values():
        assert {"greedy", "one sample", "sum@4", "plurality@4", "guided@2", "pass@4", "parses",
                "faithful checks", "one response", "out of distribution, greedy", "by domain"} <= set(stage)
    assert set(results["seconds"]) == {"pre-training", "RFT", "RL", "Meta RM", "evaluation"}
    assert "plurality@4" in done.stdout and "Warning" not in done.stderr and "nan" not in done.stdout


# Where a run is killed: the n-th time that it opens this file, or is about to rename one to this name.
KILLED = [("metrics-base.jsonl", 1), ("base.pt", 1), ("judgements-hinted.jsonl", 1), ("rft.pt", 1),
          ("metrics-rl.jsonl", 1), ("judgements-rl.jsonl", 1), ("rl.pt", 1), ("metrics-meta.jsonl", 1),
          ("judgements-base-votes.jsonl", 1), ("judgements-rl-single.jsonl", 1), ("per_item.npz", 1)]
KILLER = """
import os, signal, sys
import spct
name, count = sys.argv[1], int(sys.argv[2])
def hook(event, args):
    global count
    if event in ("open", "os.rename") and str(args[event == "os.rename"]).endswith(os.sep + name):
        count -= 1
        if count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
spct.main(sys.argv[3:])
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no kill -9")
def test_a_killed_run_goes_on_to_the_same_bytes(finished, tmp_path):
    """Guards against hidden state, lines that are written twice, and stages that are taken for done: a run that
    is killed in every stage, and started again each time, ends with the same bytes."""
    folder = tmp_path / "b"
    for name, count in KILLED:
        killed = run("-c", KILLER, name, str(count), *SMALL, "--out", str(folder), script="")
        assert killed.returncode == -signal.SIGKILL, (name, killed.stderr[-2000:])
    assert run(*SMALL, "--out", str(folder)).returncode == 0
    assert files(folder) == files(finished[0])


@pytest.mark.slow
def test_a_new_folder_may_start_from_copied_stages(finished, tmp_path):
    """Guards against copied stages that are made anew or not compared, and against a later setting that has no
    effect."""
    folder = tmp_path / "c"
    folder.mkdir()
    for name in ("config.json", "tokenizer.tiktoken", "base.pt", "judgements-rft.jsonl",
                 "judgements-hinted.jsonl", "rft.pt"):
        (folder / name).write_bytes((finished[0] / name).read_bytes())
    refused = run(*SMALL, "--out", str(folder), "--rft_lr", "0.5")
    assert refused.returncode == 2 and "--rft_lr" in refused.stderr and refused.stderr.count("\n") == 1
    assert run(*SMALL, "--out", str(folder), "--beta", "0.9").returncode == 0
    assert "metrics-base.jsonl" not in os.listdir(folder)
    assert files(folder, "metrics-rl") != files(finished[0], "metrics-rl")
    first = lambda path: json.loads(open(path / "metrics-rl.jsonl").readline())["reward"]
    assert first(folder) == first(finished[0])     # the first rollout is that of the same RFT model


@pytest.mark.slow
def test_report_and_sample_of_a_run(finished):
    """Guards against a report or a judge that needs more than the run folder."""
    folder, done = finished
    again = run(str(folder), script="report.py")
    assert again.returncode == 0 and "plurality@4" in again.stdout
    judged = run("--run", str(folder), "--query", "capital of peru?", "--response", "it is lima", "--response",
                 "it is cairo", "--policy", "rft", "--json", script="sample.py")
    assert judged.returncode == 0 and len(json.loads(judged.stdout)["judgements"]) == 8


@pytest.mark.slow
def test_damaged_files_are_named(finished, tmp_path):
    """Guards against a traceback where a file of the run folder is damaged."""
    for name in ("base.pt", "judgements-rft.jsonl", "tokenizer.tiktoken", "config.json"):
        folder = tmp_path / name
        folder.mkdir()
        for there in os.listdir(finished[0]):
            (folder / there).write_bytes((finished[0] / there).read_bytes())
        (folder / name).write_bytes((folder / name).read_bytes()[:100])
        failed = run(*SMALL, "--out", str(folder))
        assert failed.returncode == 2 and name in failed.stderr and "Traceback" not in failed.stderr, name


def test_float32_training_computes_in_float32_alone(tiny, tmp_path):
    """Guards against a matrix product in bfloat16 where the processor has no instructions for it, which is a
    hundred times slower; and against a bfloat16 run that does not use it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    import spct

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            if op.overloadpacket.__name__ in ("mm", "bmm", "addmm", "baddbmm"):
                seen.update(x.dtype for x in args if isinstance(x, torch.Tensor))
            return op(*args, **(kwargs or {}))

    ids = torch.randint(2, 40, (4, 64), generator=torch.Generator().manual_seed(0)).numpy()
    for dtype in (torch.float32, torch.bfloat16):
        seen = set()
        cfg = spct.Config(out=str(tmp_path), device="cpu", dtype=str(dtype).removeprefix("torch."))
        with Products():
            spct.train_lm(cfg, "base", tiny(), ids, ids > 9, 1e-3, 4)
        assert seen == {dtype}
