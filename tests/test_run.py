"""The main job as a whole, with the smoke preset and fewer tokens, in processes of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

import report
import sample
from data import UserError
from run import Run, load_tensors, read_json

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SMALL = ["--preset", "smoke", "--device", "cpu", "--threads", "1", "--dtype", "float32",
         "--pretrain_tokens", "500000", "--eval_items", "8", "--val_items", "4", "--rl_steps", "4",
         "--rft_rows", "1", "--save_every", "2"]
ENV = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


def run(*argv, script="spct.py"):
    return subprocess.run([sys.executable, script, *argv], cwd=ROOT, env=ENV, capture_output=True, text=True)


def read(folder, name="metrics.jsonl"):
    with open(os.path.join(folder, name), "rb") as f:
        return f.read()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One complete small run."""
    folder = str(tmp_path_factory.mktemp("run") / "a")
    done = run(*SMALL, "--out", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout


def test_writes_every_file(finished):
    """Guards against a main job that ends without a result, a figure or a checkpoint."""
    folder, stdout = finished
    names = set(os.listdir(folder))
    assert {"config.json", "metrics.jsonl", "progress.json", "results.json", "per_item.npz",
            "tokenizer.tiktoken", "votes.png", "rl.png", "subsets.png",
            "base.pt", "rft.pt", "rl.pt", "meta-rft.pt", "meta-rl.pt",
            "judgements-rft.jsonl", "judgements-rl-votes.jsonl"} <= names
    assert not any(name.endswith(".tmp") for name in names)
    r = json.loads(read(folder, "results.json"))
    assert set(r["stages"]) == {"base", "rft", "rl"} and set(r["meta"]) == {"rft", "rl"} and r["items"] == 8
    for s in r["stages"].values():
        assert {"parse", "tie", "greedy", "sample", "vote", "pass", "faithful", "tokens", "subsets",
                "single", "ood"} <= set(s)
        assert set(s["vote"]) == {"2", "4"} and all(0 <= v <= 1 for v in s["vote"].values()) \
            and len(s["greedy_ci"]) == 2
        assert all(s[name + "_ci"] for name in ("parse", "greedy", "sample", "vote", "pass", "single")) \
            and s["ood"]["greedy_ci"]
    for m in r["meta"].values():
        assert {"auc_pooled", "auc_within", "k_meta", "vote", "half", "random", "sweep"} <= set(m) \
            and m["k_meta"] in (1, 2)
    assert set(r["seconds"]) == {"pretrain", "rft", "rl", "metarm", "eval", "total"} and "vote@4" in stdout
    units = [json.loads(line)["unit"] for line in read(folder).splitlines()]
    assert list(dict.fromkeys(units)) == ["base", "rft-samples", "rft", "rl", "meta-rft", "meta-rl",
                                          "eval-base", "eval-rft", "eval-rl"]


def test_same_seed_same_bytes_and_kill_and_resume(finished, tmp_path):
    """Guards against hidden state: a run that is killed (-9) in every stage and resumed each time writes the
    same metrics.jsonl and the same results as one that was never interrupted."""
    whole, _ = finished
    folder = str(tmp_path / "b")
    resume = []
    for unit in ("base", "rft", "rl", "meta-rft", "eval-base", None):
        process = subprocess.Popen([sys.executable, "spct.py", *SMALL, "--out", folder, *resume],
                                   cwd=ROOT, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        resume = ["--resume"]
        while unit and process.poll() is None:  # wait for the unit's third line, or its only one, then kill
            lines = read(folder).splitlines() if os.path.exists(os.path.join(folder, "metrics.jsonl")) else []
            units = [json.loads(line)["unit"] for line in lines if line.endswith(b"}")]
            if units.count(unit) >= (1 if unit.startswith("eval") else 3):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.02)
        _, stderr = process.communicate()
        assert process.returncode == (-signal.SIGKILL if unit else 0), stderr[-3000:]
    assert read(folder) == read(whole)
    a, b = json.loads(read(folder, "results.json")), json.loads(read(whole, "results.json"))
    assert a["stages"] == b["stages"] and a["meta"] == b["meta"]


def test_repeating_a_stage_keeps_an_interrupted_one(tmp_path):
    """Guards against metrics that are lost when RL was interrupted and a later stage is to be repeated."""
    start = lambda: Run(SimpleNamespace(device="cpu"), str(tmp_path))
    first = start()
    first.log("base", step=0)
    first.finish("base")
    first.log("rl", step=0)
    first.save("state.pt", {"unit": "rl", "step": 1, "metrics_bytes": first.metrics_bytes(), "seconds": 0.0})
    first.log("rl", step=1)                          # after the checkpoint: will be written again
    again = start()
    again.forget(["eval-base"])
    lines = [json.loads(line) for line in read(tmp_path).splitlines()]
    assert lines == [{"unit": "base", "step": 0}, {"unit": "rl", "step": 0}] and again.state["step"] == 1


def test_damaged_files_are_named(tmp_path):
    """Guards against a traceback for a checkpoint or a JSON file that was cut off."""
    for content in (b"", b"garbage"):
        (tmp_path / "a.pt").write_bytes(content)
        with pytest.raises(UserError, match="a.pt cannot be read"):
            load_tensors(str(tmp_path / "a.pt"), "cpu")
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(UserError, match="a.json is damaged"):
            read_json(str(tmp_path / "a.json"))


def test_a_run_is_never_destroyed_silently(finished):
    """Guards against a second start, or a repeated stage, that overwrites results."""
    folder, _ = finished
    before = read(folder), read(folder, "results.json")
    again = run(*SMALL, "--out", folder)
    assert again.returncode == 2 and "holds a run already" in again.stderr and "Traceback" not in again.stderr
    other = run(*SMALL, "--out", folder, "--resume", "--rl_lr", "1")
    assert other.returncode == 2 and "--rl_lr differs" in other.stderr
    repeated = run("--out", folder, "--resume", "--stage", "eval")
    assert repeated.returncode == 0, repeated.stderr[-3000:]
    assert read(folder) == before[0] and read(os.path.join(folder, "old-1"), "results.json") == before[1]


def test_command_line_judge(finished, tmp_path, capsys):
    """Guards against a judge that needs gold labels, fails on odd text, or answers with a traceback."""
    folder, _ = finished
    judge = ["--run", folder, "--stage", "base"]
    for n in range(1, 5):
        responses = sum([["--response", f"<end> {i}"] for i in range(n)], [])
        sample.main([*judge, "--query", "naïve 日 <r1>", *responses, "-k", "2", "--json"])
        answer = json.loads(capsys.readouterr().out)
        assert len(answer["judgements"]) == 2 and len(answer["responses"]) == n
    plain = run(*judge, "--query", "what is 1+1?", "--response", "2", "--response", "3", script="sample.py")
    assert plain.returncode == 0 and "vote of 8" in plain.stdout
    for argv, message in [(["--query", "a " * 400, "--response", "b"], "too long"),
                          (["--query", "a"], "1 to 4 times"), ([], "--data FILE"),
                          (["--query", "a", "--response", "b", "-k", "0"], "1 or more"),
                          (["--data", str(tmp_path / "none"), "--out", str(tmp_path / "j")], "No such file")]:
        with pytest.raises(UserError, match=message):
            sample.main([*judge, *argv])
    untrained = run("--run", str(tmp_path), "--query", "a", "--response", "b", script="sample.py")
    assert untrained.returncode == 2 and "python spct.py" in untrained.stderr


def test_judges_a_file(finished, tmp_path):
    """Guards against a file that is judged only in part: one line per sample, and accuracy by subset."""
    folder, _ = finished
    data, out = str(tmp_path / "p.jsonl"), str(tmp_path / "j.jsonl")
    export = subprocess.run([sys.executable, "-m", "data.preferences", "export", data,
                             "--count", "6", "--format", "best-of-n"], cwd=ROOT)
    assert export.returncode == 0
    done = run("--run", folder, "--stage", "base", "--data", data, "-k", "3", "--out", out,
               script="sample.py")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in open(out)]
    assert len(lines) == 18 and {"item", "sample", "order", "seed", "principles", "scores", "status",
                                 "logp", "meta"} <= set(lines[0])
    assert "all" in done.stdout and "6" in done.stdout
    with open(data, "a") as f:
        f.write("{}\n")
    bad = run("--run", folder, "--stage", "base", "--data", data, "--out", out + "2", script="sample.py")
    assert bad.returncode == 2 and f"{data}:7:" in bad.stderr


def test_unknown_flags_name_the_nearest():
    """Guards against a typo that trains for half an hour with the wrong setting."""
    done = run("--eval_item", "3")
    assert done.returncode == 2 and "did you mean --eval_items?" in done.stderr \
        and len(done.stderr.splitlines()) == 1


def test_report_of_runs(finished):
    """Guards against tables over runs that do not agree with the results of the runs."""
    folder, _ = finished
    done = run(folder, script="report.py")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    greedy = next(line for line in lines if line.startswith("| greedy"))
    r = json.loads(read(folder, "results.json"))
    assert [cell.split()[0] for cell in greedy.split(" | ")[1:]] == \
        [f"{r['stages'][name]['greedy']:.3f}" for name in ("base", "rft", "rl")]
    gain = next(line for line in lines if line.startswith("| RL - RFT, greedy"))
    assert float(gain.split(" | ")[1]) == pytest.approx(
        r["stages"]["rl"]["greedy"] - r["stages"]["rft"]["greedy"], abs=0.002)
    assert any(line.startswith("| others") for line in lines) and "nan" not in done.stdout
    for argv, message in [([], "name one or more"), ([folder + "/none"], "no results in"),
                          ([folder, folder], "the same seed")]:
        with pytest.raises(UserError, match=message):
            report.main(argv)
