"""The main job as a whole, with the smoke preset and fewer tokens, in processes of its own."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

import report
import run as bookkeeping
import sample
from config import Config
from data import UserError, command
from data.judgement import pick
from run import FILES, UNITS, Run, load_tensors, machine, pick_device, pick_dtype, pick_threads, read_json

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SMALL = ["--preset", "smoke", "--device", "cpu", "--threads", "1", "--dtype", "float32",
         "--pretrain_tokens", "500000", "--pretrain_rows", "2", "--eval_items", "8",
         "--rl_steps", "4", "--rft_rows", "1"]
ENV = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


def run(*argv, script="spct.py"):
    return subprocess.run([sys.executable, script, *argv], cwd=ROOT, env=ENV, capture_output=True, text=True)


def read(folder, name):
    with open(os.path.join(folder, name), "rb") as f:
        return f.read()


def lines_of(folder):
    """{name: bytes} of all metrics and judgements."""
    return {name: read(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(".jsonl")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One complete small run -> its folder, and what it printed."""
    folder = str(tmp_path_factory.mktemp("run") / "a")
    done = run(*SMALL, "--out", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done

# ----------------------------------------------------------------------------------------
# Whole runs

@pytest.mark.slow
def test_writes_every_file(finished):
    """Guards against a main job that ends without a result, a figure or a checkpoint, or that warns."""
    folder, done = finished
    names = set(os.listdir(folder))
    units = sum(UNITS.values(), [])
    assert {"config.json", "progress.json", "results.json", "per_item.npz", "tokenizer.tiktoken",
            "votes.png", "rl.png", "report.html", "base.pt", "rft.pt", "rl.pt", "meta-rft.pt", "meta-rl.pt",
            "judgements-rft.jsonl", "judgements-hinted.jsonl", "judgements-rl-votes.jsonl",
            *(f"metrics-{unit}.jsonl" for unit in units if not unit.startswith("eval"))} <= names
    assert not any(name.endswith(".tmp") for name in names)
    assert list(json.loads(read(folder, "progress.json"))) == units
    for name in names:
        if name.startswith("metrics-"):            # dense: the same keys in each line
            rows = [json.loads(line) for line in read(folder, name).splitlines()]
            assert all(list(row) == list(rows[0]) for row in rows)
            assert "step" not in rows[0] or [row["step"] for row in rows] == list(range(len(rows)))
    r = json.loads(read(folder, "results.json"))
    assert set(r["stages"]) == {"base", "rft", "rl"} and set(r["meta"]) == {"rft", "rl"} and r["items"] == 8
    guided = {f"{way}@{k}" for way in ("guided", "random") for k in (2, 4)}
    for name, s in r["stages"].items():
        assert {"greedy", "one sample", "sum@2", "sum@4", "pass@2", "pass@4", "parses", "faithful checks",
                "ties", "tokens", "subsets", "one response, exact score",
                "out of distribution, greedy"} <= set(s)
        assert guided & set(s) == (guided if name in r["meta"] else set())
        intervals = [value for value in s.values() if isinstance(value, list)]
        assert all(0 <= low <= mean <= high <= 1 for mean, low, high in intervals) and len(intervals) > 10
    for m in r["meta"].values():
        assert {"AUC, all pairs", "AUC, pairs of one item"} <= set(m)
    assert set(r["seconds"]) == {*UNITS, "total"} and r["machine"] in done.stdout
    assert "weighted@4" in done.stdout
    assert "Warning" not in done.stderr and "nan" not in done.stdout


# Where a run is killed: the n-th time that it opens a file, or is about to rename one to this name.
KILLED = {"base": ("metrics-base.jsonl", 3), "rft-samples": ("judgements-hinted.jsonl", 1),
          "rft": ("metrics-rft.jsonl", 3), "rl": ("metrics-rl.jsonl", 3), "meta-rft": ("meta-rft.pt", 1),
          "meta-rl": ("metrics-meta-rl.jsonl", 2), "eval-base": ("judgements-base-votes.jsonl", 1),
          "eval-rft": ("judgements-rft-ood.jsonl", 1), "eval-rl": ("judgements-rl-single.jsonl", 1)}
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
sys.argv = ["spct.py", *sys.argv[3:]]
spct.command(spct.main)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no kill -9")
def test_same_seed_same_bytes_and_kill_and_resume(finished, tmp_path):
    """Guards against hidden state, lines that are written twice and units that are taken for done: a run
    that is killed (-9) in every unit and resumed each time writes the same metrics and judgements, and the
    same results, as one that was never interrupted."""
    whole, _ = finished
    folder, units, resume = str(tmp_path / "b"), list(KILLED), []
    assert units == sum(UNITS.values(), [])
    for i, (unit, (name, count)) in enumerate(KILLED.items()):
        done = run(KILLER, name, str(count), *SMALL, "--out", folder, *resume, script="-c")
        assert done.returncode == -signal.SIGKILL, (unit, done.stderr[-3000:])
        seconds = os.path.join(folder, "progress.json")
        over = list(json.loads(read(folder, "progress.json"))) if os.path.exists(seconds) else []
        assert over in (units[:i], units[:i + 1]), unit                     # killed in it, or at its very end
        resume = ["--resume"]
    done = run(*SMALL, "--out", folder, "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert lines_of(folder) == lines_of(whole)
    a, b = json.loads(read(folder, "results.json")), json.loads(read(whole, "results.json"))
    assert a["stages"] == b["stages"] and a["meta"] == b["meta"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent in another way there")
def test_control_c(tmp_path):
    """Guards against Ctrl-C that ends in a traceback, or does not say where the run stands and how to go
    on."""
    listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)           # even for tests in the background
    process = subprocess.Popen([sys.executable, "spct.py", *SMALL, "--out", str(tmp_path / "c")], cwd=ROOT,
                               env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               preexec_fn=listen)
    lines = lambda: (tmp_path / "c/metrics-base.jsonl").read_text().count("\n")
    while process.poll() is None and not ((tmp_path / "c/metrics-base.jsonl").exists() and lines() >= 2):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and stderr.splitlines()[-1] == \
        "stopped in base, which begins anew: go on by the same command (spct.py: with --resume)"
    assert "Traceback" not in stderr


def test_control_c_in_any_program(capsys):
    """Guards against programs that end without a word, or with a traceback, on Ctrl-C."""
    def stopped(argv):
        raise KeyboardInterrupt
    with pytest.raises(SystemExit, match="130"):
        command(stopped)
    assert capsys.readouterr().err == "\nstopped\n"


@pytest.mark.slow
def test_a_run_is_never_destroyed_silently(finished):
    """Guards against a second start, or a repeated stage, that overwrites results."""
    folder, _ = finished
    before, results = lines_of(folder), read(folder, "results.json")
    again = run(*SMALL, "--out", folder)
    assert again.returncode == 2 and "holds a run already" in again.stderr and "Traceback" not in again.stderr
    other = run(*SMALL, "--out", folder, "--resume", "--rl_lr", "1")
    assert other.returncode == 2 and "--rl_lr differs" in other.stderr
    repeated = run("--out", folder, "--resume", "--stage", "eval")
    assert repeated.returncode == 0, repeated.stderr[-3000:]
    assert lines_of(folder) == before and read(os.path.join(folder, "old-1"), "results.json") == results

# ----------------------------------------------------------------------------------------
# The run folder

def run_in(folder):
    return Run(SimpleNamespace(device="cpu", dtype="float32"), str(folder))


def test_metrics_of_a_unit_that_begins_anew(tmp_path):
    """Guards against lines of a unit that was cut off, or of another unit, in what is written next."""
    start = lambda: run_in(tmp_path)
    first = start()
    for unit in ("rft-samples", "eval-base"):
        assert not first.done(unit, file=f"{unit}.done")
        first.log(unit, step=0, loss=1 / 3)
    (tmp_path / "rft-samples.done").write_text("")
    first.finish("rft-samples")
    again = start()
    assert again.done("rft-samples", file="rft-samples.done")
    assert not again.done("eval-base", file="eval-base.done")
    assert os.path.exists(tmp_path / "metrics-rft-samples.jsonl")
    assert not os.path.exists(tmp_path / "metrics-eval-base.jsonl")
    again.log("eval-base", step=0, loss=2 / 3)
    assert read(tmp_path, "metrics-eval-base.jsonl") == b'{"step": 0, "loss": 0.666667}\n'
    assert list(again.seconds_of) == ["rft-samples"] and again.seconds()["eval"] == 0


def files_of_a_run(folder):
    """What a finished run leaves, empty, in the order in which it is written -> {unit: its files}."""
    parts = ["greedy", "votes", "ood-greedy", "ood", "single"]
    judged = lambda name: [f"judgements-{name}-{part}.jsonl" for part in parts]
    units = {"base": ["tokenizer.tiktoken", "metrics-base.jsonl", "base.pt"],
             "rft-samples": ["metrics-rft-samples.jsonl", "judgements-rft.jsonl", "judgements-hinted.jsonl"],
             **{u: [f"metrics-{u}.jsonl", f"{u}.pt"] for u in ("rft", "rl", "meta-rft", "meta-rl")},
             **{f"eval-{name}": judged(name) for name in ("base", "rft", "rl")},
             "results": ["per_item.npz", "results.json"]}
    for number, name in enumerate(["config.json", "progress.json", *sum(units.values(), [])]):
        with open(os.path.join(folder, name), "w") as f:
            f.write("{}")
        os.utime(os.path.join(folder, name), (number, number))
    return units


def test_repeating_a_stage_moves_that_stage_and_later_ones(tmp_path):
    """Guards against a stage that is not repeated because a file of it is left, results that are lost, a
    stage before it that is repeated, too, and a folder's name that is taken for a pattern."""
    tmp_path = tmp_path / "a[1]"
    tmp_path.mkdir()
    units = files_of_a_run(tmp_path)
    stages = {**UNITS, "eval": [*UNITS["eval"], "results"]}
    for number, stage in enumerate(["eval", "rl"], 1):
        again = list(stages)[list(stages).index(stage):]
        expected = {name for s in again for unit in stages[s] for name in units[unit]}
        moved = {name for name in expected if os.path.exists(tmp_path / name)}
        run_in(tmp_path).repeat(stage)
        copied, rest = {"config.json", "progress.json"}, set(sum(units.values(), [])) - expected
        assert moved and set(os.listdir(tmp_path / f"old-{number}")) == moved | copied
        assert {name for name in os.listdir(tmp_path) if not name.startswith("old-")} == rest | copied
    assert {pattern for patterns in FILES.values() for pattern in patterns} >= {"*.png", "results.json"}


def test_what_an_interrupted_repetition_leaves_is_the_beginning_of_a_run(tmp_path, monkeypatch):
    """Guards against a run that goes on after files from its middle were moved away: whenever that is cut
    off, a unit whose last file is left has all its files, and so have those before it."""
    move = shutil.move
    for count in range(60):
        folder = tmp_path / str(count)
        folder.mkdir()
        units, left = files_of_a_run(folder), [count]
        units.pop("results")                       # they are always written anew

        def few(source, target):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            move(source, target)

        monkeypatch.setattr(bookkeeping.shutil, "move", few)
        try:
            run_in(folder).repeat("pretrain")
        except KeyboardInterrupt:
            pass
        there = [name for files in units.values() for name in files if os.path.exists(folder / name)]
        for before, unit in zip([None, *units], units):
            if os.path.exists(folder / units[unit][-1]):
                needed = [name for u in (before, unit) if u for name in units[u]]
                lost = [name for name in needed if name not in there]
                assert not lost, f"after {count} files were moved, {unit} looks done without {lost}"
    assert not there                               # the last time all were moved


def test_damaged_files_are_named(tmp_path):
    """Guards against a traceback for a checkpoint or a JSON file that was cut off."""
    for content in (b"", b"garbage"):
        (tmp_path / "a.pt").write_bytes(content)
        with pytest.raises(UserError, match="a.pt cannot be read"):
            load_tensors(str(tmp_path / "a.pt"), "cpu")
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(UserError, match="a.json is damaged"):
            read_json(str(tmp_path / "a.json"))


def test_unknown_flags_name_the_nearest():
    """Guards against a typo that trains for half an hour with the wrong setting."""
    done = run("--eval_item", "3")
    assert done.returncode == 2 and "did you mean --eval_items?" in done.stderr \
        and len(done.stderr.splitlines()) == 1

# ----------------------------------------------------------------------------------------
# What to compute on

@pytest.mark.parametrize("slower, picked", [
    ({256: 0.5, 4096: 0.5}, "bfloat16"), ({256: 2, 4096: 0.5}, "bfloat16"), ({256: 1, 4096: 1}, "float32"),
    ({256: 1, 4096: 0.9}, "float32"), ({256: 40}, "float32")])
def test_precision_is_measured(monkeypatch, slower, picked):
    """Guards against bfloat16 where it is emulated, or where it gains little, and against minutes spent on a
    large product that a small one has shown to be hopeless (4096 is not measured in the last case)."""
    monkeypatch.setattr(bookkeeping, "times", lambda device, dtype, rows, tries=1:
                        rows * (slower[rows] if dtype == torch.bfloat16 else 1.0))
    assert pick_dtype("cpu") == picked and pick_dtype("mps") == "float32"


@pytest.mark.parametrize("cores, useful, picked", [(1, 8, 1), (8, 8, 8), (8, 4, 4), (6, 8, 6), (64, 1, 1)])
def test_threads_are_measured(monkeypatch, cores, useful, picked):
    """Guards against more threads than cores or than pay: twice as many cost other programs theirs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(bookkeeping, "times", lambda *_: 1 / min(threads[-1], useful))
    assert pick_threads() == picked and max(threads) <= cores


@pytest.mark.parametrize("tokens, after_base", [(0, 0), (1000, 45)])
def test_bar_of_the_whole_run(tmp_path, tokens, after_base):
    """Guards against a bar that counts a base model which comes along as half of the work, or one that does
    not end at its end, also after an interruption."""
    start = lambda: bookkeeping.open_run(Config(device="cpu", dtype="float32", threads=1, out=str(tmp_path),
                                                pretrain_tokens=tokens), None)
    first, units = start(), sum(UNITS.values(), [])
    for unit in units[:3]:
        first.done(unit)
        first.finish(unit)
        assert unit != "base" or first.whole.n == after_base
    again = start()
    assert again.whole.n == first.whole.n < again.whole.total
    for unit in units[3:]:
        again.done(unit)
        again.finish(unit)
    assert again.whole.n == again.whole.total


def test_device_that_is_not_there():
    """Guards against a traceback, or a silent fall-back to the CPU, for a device that was asked for."""
    assert pick_device("cpu") == "cpu" and pick_device("auto") in ("cpu", "cuda")
    for wanted in ["tpu", *([] if torch.cuda.is_available() else ["cuda"])]:
        with pytest.raises(UserError, match=f"--device {wanted}: expected auto, cpu"):
            pick_device(wanted)


def test_gpu_without_kernels(monkeypatch, capsys):
    """Guards against a crash on a GPU that torch sees but has no kernels for."""
    def fails(*_):
        raise RuntimeError("CUDA error: no kernel image\nmore")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(bookkeeping, "times", fails)
    assert pick_device("auto") == "cpu" and "no kernel image" in capsys.readouterr().err


def test_machine_in_words(monkeypatch):
    """Guards against figures of speed that do not say on what they were measured, and against a crash where
    the system does not name its CPU, as Linux on ARM."""
    words = rf"\w.*\d threads, \d+ GFLOP/s in float32, torch {re.escape(torch.__version__)}$"
    assert re.match(words, machine())
    monkeypatch.setattr("builtins.open", lambda *_: io.StringIO("processor : 0\nBogoMIPS : 243.75\n"))
    assert re.match(words, machine())

# ----------------------------------------------------------------------------------------
# Programs that need a run

@pytest.mark.slow
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
    assert plain.returncode == 0 and re.search(r"^vote of \d$", plain.stdout, re.MULTILINE)
    for argv, message in [(["--query", "a " * 400, "--response", "b"], "too long"),
                          (["--query", "a"], "1 to 4 times"), ([], "--data FILE"),
                          (["--query", "a", "--response", "b", "-k", "0"], "1 or more"),
                          (["--query", "a", "--response", "b", "--vote", "guided"], "no Meta RM"),
                          (["--query", "a", "--response", "b", "--vote", "x"], "choose from"),
                          (["--query", "a", "--response", "b", "--device", "tpu"], "--device tpu"),
                          (["--query", "a", "--response", "b", "--out", "x"], "--out is where"),
                          (["--data", str(tmp_path / "none"), "--out", str(tmp_path / "j")], "No such file")]:
        with pytest.raises(UserError, match=message):
            sample.main([*judge, *argv])
    untrained = run("--run", str(tmp_path), "--query", "a", "--response", "b", script="sample.py")
    assert untrained.returncode == 2 and "python spct.py" in untrained.stderr


@pytest.mark.slow
def test_guided_judge(finished, capsys):
    """Guards against a Meta RM that has no say in the vote, or judgements that vote although they failed."""
    folder, _ = finished
    query = ["--run", folder, "--query", "what is 230+481?", "--response", "it is 711",
             "--response", "it is 611", "-k", "24", "--json"]
    answers = {}
    for vote in ("sum", "guided", "plurality", "weighted"):
        sample.main([*query, "--vote", vote])
        answers[vote] = json.loads(capsys.readouterr().out)
        assert answers[vote]["best"] == pick(answers[vote]["votes"])
    judgements = answers["guided"]["judgements"]
    parsed = [j for j in judgements if j["scores"]]
    assert parsed and all((j["meta"] is None) == (j["scores"] is None) for j in judgements)
    best = sorted(parsed, key=lambda j: -j["meta"])[:12]
    for vote, voters in (("sum", parsed), ("guided", best)):
        assert answers[vote]["voters"] == len(voters)
        assert answers[vote]["scores"] == [sum(scores) for scores in zip(*(j["scores"] for j in voters))]
    assert [j["scores"] for j in answers["sum"]["judgements"]] == [j["scores"] for j in judgements]


@pytest.mark.slow
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
    rows = [line.split() for line in done.stdout.splitlines()]
    counts = {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
    assert counts.pop("all") == sum(counts.values()) == 6
    with open(data, "a") as f:
        f.write("{}\n")
    bad = run("--run", folder, "--stage", "base", "--data", data, "--out", out + "2", script="sample.py")
    assert bad.returncode == 2 and f"{data}:7:" in bad.stderr


@pytest.mark.slow
def test_report_of_a_run(finished, tmp_path):
    """Guards against a table that does not agree with the results of the run, or figures that are not
    drawn."""
    folder, first = finished
    for name in ("votes.png", "rl.png"):
        os.remove(os.path.join(folder, name))
    done = run(folder, script="report.py")
    assert done.returncode == 0, done.stderr
    assert all(len(read(folder, name)) > 10_000 for name in ("votes.png", "rl.png"))
    rows = [re.split("  +", line) for line in done.stdout.splitlines()]
    r = json.loads(read(folder, "results.json"))
    for measure in ("greedy", "one sample", "sum@4", "parses", "one response, exact score"):
        row = next(row for row in rows if row[0] == measure)
        assert [cell.split()[0] for cell in row[1:]] == [f"{s[measure][0]:.3f}" for s in r["stages"].values()]
    drop = lambda text: [line for line in text.splitlines() if not line.startswith("seconds")]
    assert set(drop(done.stdout)) <= set(drop(first.stdout)) and "nan" not in done.stdout
    for name in ("results.json", "metrics-rl.jsonl"):
        (tmp_path / name).write_text("{}")
    for argv, message in [([], "folder"), ([folder + "/none"], "no run in"),
                          ([folder, folder], "unknown"), ([str(tmp_path)], "another program")]:
        with pytest.raises(UserError, match=message):
            report.main(argv)
