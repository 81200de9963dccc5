"""The README: its commands, its figures, and what it says about files and functions. The tour."""

import doctest
import importlib
import json
import os
import re
import shlex

import numpy as np
import pytest

import data.preferences
import sample
import spct
from data.world import make_items

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as f:
    README = f.read()
FENCED = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
BLOCKS = [block for kind, block in FENCED if not kind]
COMMANDS = [shlex.split(found, comments=True) for block in BLOCKS
            for found in re.findall(r"python3? [^;&\n]*", block.replace("\\\n", " "))]
COMMANDS += [shlex.split(found.replace("\n", " ")) for found in re.findall(r"`(python\s[^`]*)`", README)]


def test_commands_are_found():
    """Guards against a README whose commands no test sees any more."""
    programs = {" ".join(command[1:3] if command[1] == "-m" else command[1:2]) for command in COMMANDS}
    assert {"sample.py", "spct.py", "report.py", "-m data.preferences", "-m web.page", "-m experiments.runs",
            "-m experiments.bench", "-m pytest", "assignment/make.py", "assignment/grade.py"} <= programs


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_command(command, tmp_path, monkeypatch, capsys):
    """Guards against commands that no longer run: the judge's as they stand, with the bundled checkpoint; of the
    long ones, which other tests run at small size, the flags."""
    monkeypatch.chdir(tmp_path)
    program, *flags = command[1:]
    if program == "spct.py":
        spct.parse_args([re.sub(r"\$\w+", "1", flag) for flag in flags])
    elif program == "sample.py":
        if "--data" in flags:
            data.preferences.main(["export", flags[flags.index("--data") + 1], "--count", "3"])
        sample.main(flags)
        out = capsys.readouterr().out
        assert "best " in out or "domain " in out
    elif flags and flags[0] == "data.preferences":
        if flags[1] == "check":
            data.preferences.main(["export", flags[2], "--count", "3"])
        data.preferences.main(flags[1:])
    elif program.startswith("assignment/"):
        assert os.path.exists(os.path.join(ROOT, program))
    elif program == "-m" and flags[0].startswith(("experiments.", "web.")):
        assert callable(importlib.import_module(flags[0]).main)
    else:
        assert program == "report.py" or flags[:1] in (["pytest"], ["venv"])


def test_example_is_what_is_printed(capsys):
    """Guards against an example that the bundled checkpoint does not print."""
    shown = re.search(r"```text\n(.*?)```", README, re.DOTALL)[1]
    sample.main(next(command for command in COMMANDS if command[1] == "sample.py")[2:])
    assert capsys.readouterr().out.strip() == shown.strip()


def test_files_and_functions_exist():
    """Guards against references to what was renamed: `file:function`, `file`, links."""
    for path, name in re.findall(r"`([\w/]+\.py):(\w+)`", README):
        module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        assert callable(getattr(module, name)), (path, name)
    paths = re.findall(r"\]\((?!http)([^)#]+)", README)
    order = re.findall(r"^([\w/]+\.py) ", "".join(BLOCKS), re.MULTILINE)
    assert order[0] == "data/world.py" and order[-1] == "spct.py"
    paths += order + re.findall(r"`((?:data|experiments|tests|web|assignment)/[\w/.]*)`", README)
    assert len(paths) > 16 and all(os.path.exists(os.path.join(ROOT, path)) for path in paths)


def test_figures_are_those_of_the_reference_runs():
    """Guards against a table that is not that of the results in experiments/reference."""
    folder = os.path.join(ROOT, "experiments", "reference")
    runs = []
    for name in sorted(name for name in os.listdir(folder) if name.startswith("cpu-seed")):
        with open(os.path.join(folder, name, "results.json"), encoding="utf-8") as f:
            runs.append(json.load(f)["stages"])
    assert f"seeds 1 to {len(runs)}" in README
    told = lambda row: [float(x) for x in re.findall(r"(?<= )\.\d+(?= ±)", re.search(row, README)[0])]
    for policy, row, measures in (
            ("base", r"\| pre-training .*", ("greedy", "plurality@8", "faithful checks")),
            ("rft", r"\| RFT \| fine.*", ("greedy", "plurality@8", "faithful checks")),
            ("rl", r"\| RL \| reward.*", ("greedy", "plurality@8", "faithful checks")),
            ("rft", r"\| RFT \| \..*", ("sum@32", "guided@32", "random@32")),
            ("rl", r"\| RL \| \..*", ("sum@32", "guided@32", "random@32"))):
        means = [np.mean([run[policy][measure][0] for run in runs]) for measure in measures]
        assert told(row) == pytest.approx(means, abs=6e-4), row
    guess = np.mean([1 / item.n for item in make_items(1, "test", 2000, least=2)])
    assert float(re.search(r"A random pick reaches (\.\d+)", README)[1]) == pytest.approx(guess, abs=0.006)
    greedy = [run["rl"]["greedy"][0] for run in runs]
    span = re.search(r"ranges from (\.\d+) to (\.\d+)", README)
    assert [float(x) for x in span.groups()] == pytest.approx([min(greedy), max(greedy)], abs=6e-4)


def test_tour(monkeypatch):
    """Guards against a tour whose code does not run, or prints something else than is shown."""
    monkeypatch.chdir(ROOT)
    with open("TOUR.md", encoding="utf-8") as f:
        text = re.sub(r"^```.*$", "", f.read(), flags=re.MULTILINE)          # fences are no output
    runner = doctest.DocTestRunner()
    runner.run(doctest.DocTestParser().get_doctest(text, {}, "TOUR.md", "TOUR.md", 0))
    assert runner.tries > 40 and runner.failures == 0
