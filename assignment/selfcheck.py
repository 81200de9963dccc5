"""
The grader is graded: the reference gets full points, one body alone those of its problem, every right but unusual
solution its points, every wrong version is rejected for a property that is named, every attack gets nothing and
leaves nothing.

    python assignment/selfcheck.py               # all: some minutes
    python assignment/selfcheck.py --versions    # seconds: right and wrong versions alone, in this process
"""

import contextlib
import inspect
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
import warnings

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from assignment import checks, grade, make
from assignment.child import Model, call, failure, pack, unpack
from assignment.problems import BY_ID, PROBLEMS
from assignment.versions import ATTACKS, RIGHT, WRONG, Version, as_function
from data import new_file, run_command
from data.tokenizer import Tokenizer

MAKE = {**grade.MAKE, "Model": Model, "Tokenizer": Tokenizer}


def caught(version, seed):
    """By which property is this version rejected? None if it passes."""
    function = as_function(version)

    def ask(args, grad):
        """A call in this process, with the same data as a child would get."""
        try:
            return unpack(pack(call(function, unpack(pack(list(args)), MAKE), {}, grad)), MAKE)
        except Exception as error:
            return grade.value_of(failure(error, []), "value")

    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            checks.check(version.problem, ask, random.Random(seed))
    except checks.Failed as failed:
        return failed.detail if failed.state == "wrong" else str(failed)


def versions():
    """Every wrong version is rejected, for a property that is named; right ones are not, for 20 seeds."""
    bad = 0
    for problem in (p for p in PROBLEMS if not p.target):
        right = [Version(problem.id, "the reference", inspect.getsource(checks.reference(problem.id)))]
        for version in right + [v for v in RIGHT if v.problem == problem.id]:
            why = {caught(version, seed) for seed in range(20)} - {None}
            if why:
                bad += 1
                print(f"{problem.id}: a right version, {version.name}, is rejected: {min(why)}")
        for version in WRONG[problem.id]:
            ways = {caught(version, seed) for seed in range(5)}
            if ways & {None, checks.ANY}:
                bad += 1
                print(f"{problem.id}: {version.name}: no property is named: {ways}")
    return bad


def reference_submission(folder, *versions):
    """The reading copy as a submission, with other versions of some functions."""
    os.makedirs(os.path.join(folder, "data"))
    for path, source in {**make.reading_code(), "mytests.py": make.read(HERE, "solution_tests.py")}.items():
        for version in versions:
            if BY_ID[version.problem].file == path:
                source = with_function(source, BY_ID[version.problem].name, version.source)
        with open(os.path.join(folder, path), "w", encoding="utf-8") as f:
            f.write(source)
    return folder


def with_function(text, name, source):
    """A file with another version of a function, helpers beside it included."""
    lines, node = text.splitlines(keepends=True), make.functions(text)[name]
    lines[node.lineno - 1:node.end_lineno] = [source]
    return "".join(lines)


def one_by_one():
    """A student copy with one body put back, and those that it needs: of the problems of this file exactly these
    are right."""
    bad = 0
    for problem in (p for p in PROBLEMS if not p.target):
        back = [problem, *(BY_ID[id] for id in grade.needs_of(problem))]
        with tempfile.TemporaryDirectory() as folder:
            for path, text in make.student_code().items():
                for p in back:
                    if p.file == path:
                        text = with_function(text, p.name, inspect.getsource(checks.reference(p.id)))
                os.makedirs(os.path.dirname(os.path.join(folder, path)), exist_ok=True)
                with open(os.path.join(folder, path), "w", encoding="utf-8") as f:
                    f.write(text)
            near = {id for p in PROBLEMS if p.file == problem.file for id in (p.id, *grade.needs_of(p))}
            passed = {r.problem.id for r in grade.grade(folder, seed=0, only=near) if r.state == "passed"}
        if passed != {p.id for p in back}:
            bad += 1
            print(f"{problem.id} alone is put back, with what it needs: passed are {passed}", flush=True)
    return bad


def unusual():
    """Right but unusual solutions get their points, in the sandbox."""
    bad = 0
    for version in RIGHT:
        if version.problem not in BY_ID:
            continue
        with tempfile.TemporaryDirectory() as folder:
            there = reference_submission(os.path.join(folder, "it"), version)
            for r in grade.grade(there, 0, only=(version.problem, *grade.needs_of(BY_ID[version.problem]))):
                if r.state != "passed":
                    bad += 1
                    print(f"{version.name}: {r.problem.id} {r.state}: {r.message}", flush=True)
    return bad


def strangers():
    """Processes of the users that children are, and files of theirs."""
    owned = lambda path: os.path.lexists(path) and os.lstat(path).st_uid in range(61000, 65000)
    found = [f"process {pid}" for pid in os.listdir("/proc") if pid.isdigit() and owned(f"/proc/{pid}")]
    for folder in ("/tmp", "/dev/shm"):
        found += [name for name in os.listdir(folder) if owned(os.path.join(folder, name))]
    return found


def attack(folder, version):
    """Grade one attack -> what is wrong, as a list of words."""
    there, out = reference_submission(os.path.join(folder, "it"), version), os.path.join(folder, "out.json")

    def write(results):
        with new_file(out) as f:
            json.dump([result.points for result in results], f)

    results = grade.grade(there, seed=0, write=write, only=("P10", version.problem))
    wrong = [f"{r.problem.id} got {r.points} points" for r in results
             if (r.points > 0) == (r.problem.id == version.problem)]
    time.sleep(0.5)
    wrong += strangers()
    with open(out, encoding="utf-8") as f:
        if json.load(f) != [result.points for result in results]:
            wrong.append("the result has changed")
    shutil.rmtree(there)
    return wrong


def attacks():
    bad = 0
    for version in ATTACKS:
        with tempfile.TemporaryDirectory() as folder:
            wrong = attack(folder, version) if version.problem in BY_ID else []
        bad += len(wrong)
        print(f"{version.problem} {version.name}: {', '.join(wrong) or 'held'}", flush=True)
    return bad


def main(argv):
    bad = versions()
    if grade.why_not():
        print(f"Without a sandbox ({grade.why_not()}) only the versions are checked.")
    elif "--versions" not in argv:
        with tempfile.TemporaryDirectory() as folder:
            results = grade.grade(reference_submission(os.path.join(folder, "reference")), seed=0)
            print(grade.table(results))
            bad += sum(r.points < r.problem.points for r in results)
        bad += one_by_one()
        bad += unusual()
        bad += attacks()
    print(f"{bad} things are wrong" if bad else "all is well")
    sys.exit(bad > 0)


if __name__ == "__main__":
    run_command(main)
