"""
The grader is graded: the reference gets full points, one body alone those of its problem, every right but unusual
solution its points, every mutant is rejected by the check that is meant for it, every attack gets nothing and
leaves nothing.

    python assignment/selfcheck.py               # all: some minutes
    python assignment/selfcheck.py --mutants     # seconds: mutants alone, in this process
"""

import inspect
import json
import os
import random
import shutil
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from assignment import checks, grade, honest, hostile, make
from assignment.child import Model, call
from assignment.mutants import RIGHT, as_function, mutants_of
from assignment.problems import BY_ID, PROBLEMS
from assignment.submission import needs_of
from assignment.wire import lists, pack, unpack
from data import new_file, run_command
from data.tokenizer import Tokenizer

MAKE = {**grade.MAKE, "Model": Model, "Words": Tokenizer}


class LocalAsk(grade.Ask):
    """Calls a function of our own in this process, with the same data as a child would get."""

    def __init__(self, function):
        self.code = function

    def call(self, args, kwargs, grad):
        args = unpack(pack(list(args)), MAKE)
        try:
            return lists(unpack(pack(call(self.code, args, kwargs, grad)), MAKE))
        except Exception as error:
            raise grade.Crashed(f"{type(error).__name__}: {error}") from None


def caught(problem, function, seed):
    """By which property is this version rejected? None if it passes."""
    try:
        checks.of(problem.id)(LocalAsk(function), random.Random(seed))
    except checks.Wrong as wrong:
        return wrong.property
    except grade.Crashed as error:
        return f"crashed: {error}"


def mutants():
    """Every mutant is rejected, by its check; the reference is not, for 20 seeds."""
    bad = 0
    for problem in PROBLEMS:
        if problem.target:
            continue
        for seed in range(20):
            why = caught(problem, checks.reference(problem.id), seed)
            if why:
                bad += 1
                print(f"{problem.id}: the reference is rejected with seed {seed}: {why}")
        for source in RIGHT.get(problem.id, ()):
            why = caught(problem, as_function(problem.id, source), 0)
            if why:
                bad += 1
                print(f"{problem.id}: a right version is rejected: {why}\n{source}")
        for mutant in mutants_of(problem.id):
            ways = {caught(problem, mutant.function(), seed) for seed in range(5)}
            if not all(why and why.startswith(mutant.caught_by) for why in ways):
                bad += 1
                print(f"{problem.id}: {mutant.bug}: expected {mutant.caught_by!r}, found {ways}")
    return bad


def reference_submission(folder):
    """The reading copy as a submission."""
    os.makedirs(os.path.join(folder, "data"))
    for path in make.CODE:
        shutil.copyfile(os.path.join(make.ROOT, path), os.path.join(folder, path))
    shutil.copyfile(os.path.join(HERE, "solution_tests.py"), os.path.join(folder, "mytests.py"))
    return folder


def write_code(folder, files):
    for path, source in files.items():
        os.makedirs(os.path.dirname(os.path.join(folder, path)), exist_ok=True)
        with open(os.path.join(folder, path), "w", encoding="utf-8") as f:
            f.write(source)


def with_function(folder, path, name, source):
    """Replace a function of a submission, helpers beside it included."""
    path = os.path.join(folder, path)
    with open(path, encoding="utf-8") as f:
        text = f.read()
    lines, node = text.splitlines(keepends=True), make.functions(text)[name]
    lines[make.first_line(node):node.end_lineno] = [source]
    with open(path, "w", encoding="utf-8") as f:
        f.write("".join(lines))


def one_by_one():
    """A student copy with one body put back, and those that it needs: exactly these problems are right."""
    bad = 0
    for problem in (p for p in PROBLEMS if not p.target):
        back = [problem, *(BY_ID[id] for id in needs_of(problem))]
        with tempfile.TemporaryDirectory() as folder:
            write_code(folder, make.student_code())
            for p in back:
                with_function(folder, p.file, p.name, inspect.getsource(checks.reference(p.id)))
            passed = [r.problem.id for r in grade.grade(folder, seed=0) if r.state == "passed"]
        if sorted(passed) != sorted(p.id for p in back):
            bad += 1
            print(f"{problem.id} alone is put back, with what it needs: passed are {passed}")
    return bad


def unusual():
    """Right but unusual solutions get their points."""
    bad = 0
    for name, (id, source) in honest.HONEST.items():
        if id not in BY_ID:
            continue
        with tempfile.TemporaryDirectory() as folder:
            there = reference_submission(os.path.join(folder, "it"))
            with_function(there, BY_ID[id].file, BY_ID[id].name, source)
            for r in grade.grade(there, seed=0, only=(id, *needs_of(BY_ID[id]))):
                if r.state != "passed":
                    bad += 1
                    print(f"{name}: {r.problem.id} {r.state}: {r.message}", flush=True)
    return bad


def strangers():
    """Processes of the users that children are, and files of theirs."""
    owned = lambda path: os.path.lexists(path) and os.lstat(path).st_uid in range(61000, 65000)
    found = [f"process {pid}" for pid in os.listdir("/proc") if pid.isdigit() and owned(f"/proc/{pid}")]
    for folder in ("/tmp", "/dev/shm"):
        found += [name for name in os.listdir(folder) if owned(os.path.join(folder, name))]
    return found


def attack(folder, name, path, function, source, id):
    """Grade one attack -> what is wrong, as a list of words."""
    there = reference_submission(os.path.join(folder, name))
    with_function(there, path, function, source)
    out = os.path.join(folder, name + ".json")

    def write(results):
        with new_file(out) as f:
            json.dump([result.points for result in results], f)

    results = grade.grade(there, seed=0, write=write, only=("P10", id))
    points = {r.problem.id: (r.points, r.problem.points) for r in results}
    got, _ = points.pop(id)
    wrong = [f"{id} got {got} points"] if got else []
    wrong += [f"it cost {other}" for other, (mine, most) in points.items() if mine < most]
    time.sleep(0.5)
    wrong += strangers()
    with open(out, encoding="utf-8") as f:
        if json.load(f) != [result.points for result in results]:
            wrong.append("the result has changed")
    return wrong


def attacks():
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, source in hostile.ATTACKS.items() if "P17" in BY_ID else ():
            wrong = attack(folder, name, "data/judgement.py", "vote_sum", source, "P17")
            bad += len(wrong)
            print(f"{name}: {', '.join(wrong) or 'held'}", flush=True)
        for name, source in hostile.TESTS.items() if "T1" in BY_ID else ():
            wrong = attack(folder, name, "mytests.py", "test_group_advantages", source, "T1")
            bad += len(wrong)
            print(f"a test that {name}: {', '.join(wrong) or 'held'}", flush=True)
    return bad


def main(argv):
    bad = mutants()
    if grade.why_not():
        print(f"Without a sandbox ({grade.why_not()}) only the mutants are checked.")
    elif "--mutants" not in argv:
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
