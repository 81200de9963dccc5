"""The README: its commands, and what it says about files and functions."""

import importlib
import os
import re
import shlex

import pytest

import data.preferences
import sample
import spct

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as f:
    README = f.read()
FENCED = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
BLOCKS = [block for kind, block in FENCED if not kind]
COMMANDS = [shlex.split(found, comments=True) for block in BLOCKS
            for found in re.findall(r"python3? [^;&\n]*", block.replace("\\\n", " "))]
COMMANDS += [shlex.split(found.replace("\n", " ")) for found in re.findall(r"`(python [^`]*)`", README)]


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
        spct.parse_args([flag.replace("$seed", "1") for flag in flags])
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
    paths += re.findall(r"`((?:data|experiments|tests|web|assignment)/[\w/.]*)`", README)
    assert len(paths) > 8 and all(os.path.exists(os.path.join(ROOT, path)) for path in paths)
