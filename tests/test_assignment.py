"""The course kit: the student copy, the grader, and whether wrong answers get through."""

import ast
import doctest
import inspect
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
import zipfile
from fractions import Fraction

import numpy as np
import pytest
import torch

from assignment import checks, child, grade, gradescope, make, newterm, selfcheck, speedrun
from assignment.make import read
from assignment.problems import BY_ID, PROBLEMS
from assignment.versions import ATTACKS, RIGHT, WRONG, Version, as_function
from data import UserError
from data.judgement import Judgement
from data.world import CUES, RATERS, STYLES, Item

WRITTEN = [problem for problem in PROBLEMS if not problem.target]
NO_SANDBOX = grade.why_not()
confined = pytest.mark.skipif(bool(NO_SANDBOX), reason=f"no sandbox: {NO_SANDBOX}")


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("student") / "copy")
    make.make(folder)
    return folder


def version(versions, name):
    return next(v for v in versions if v.name == name)


def test_bodies_put_back_make_the_reading_copy(student):
    """Guards against a student copy that differs from the reading copy in more than its holes."""
    for path, source in make.reading_code().items():
        holes = read(student, path)
        for problem in PROBLEMS:
            if problem.file == path:
                lines, mine = holes.splitlines(keepends=True), source.splitlines(keepends=True)
                start, end = make.body_lines(holes, problem.name)
                hole = f'    raise NotImplementedError("{problem.id}: see the handout")\n'
                assert "".join(lines[start:end]) == hole
                lines[start:end] = mine[slice(*make.body_lines(source, problem.name))]
                holes = "".join(lines)
        assert holes == source, path


def test_no_solution_comes_along(student):
    """Guards against a line of a solution anywhere in the student copy, graders, tests, trained judges."""
    files = [os.path.join(parent, name) for parent, _, names in os.walk(student) for name in names]
    names = {os.path.relpath(path, student) for path in files}
    assert names == {*make.CODE, *make.LABS, *make.MORE, *make.OURS.values(), "handout.md"}
    text = "\n".join(read(path) for path in files if path.endswith((".py", ".md")))
    for problem in WRITTEN:
        source = make.reading_code()[problem.file]
        body = source.splitlines()[slice(*make.body_lines(source, problem.name))]
        code = [line.strip() for line in body if len(line.strip()) > 30 and not line.strip().startswith("#")]
        assert code and not any(line in text for line in code), problem.id


@pytest.mark.slow
def test_main_job_names_what_is_missing_first(student, tmp_path):
    """Guards against a traceback, or a job that trains for minutes before it finds the hole."""
    run = subprocess.run([sys.executable, "spct.py", "--preset", "smoke", "--out", str(tmp_path / "run")],
                         cwd=student, capture_output=True, text=True)
    assert run.returncode == 2 and run.stderr.strip().splitlines()[-1] == "error: P1: see the handout"


@pytest.mark.parametrize("problem", WRITTEN, ids=lambda p: p.id)
def test_examples(problem):
    """Guards against an example in a specification that is not what the function does, or is missing."""
    function = checks.reference(problem.id)
    found, runner = [], doctest.DocTestRunner(verbose=False)
    for test in doctest.DocTestFinder(recurse=False).find(function, globs=dict(function.__globals__)):
        runner.run(test, out=found.append)
    assert not found and runner.tries > 0, "".join(found)


def test_tables_agree():
    """Guards against a problem without checks, without a section, or with fewer than five wrong versions."""
    assert len(WRITTEN) >= 22 and set(WRONG) == {problem.id for problem in WRITTEN}
    assert sum(problem.points for problem in PROBLEMS if problem.id[0] != "L") == 100
    handout = read(make.HERE, "handout.md")
    for problem in PROBLEMS:
        row = (f"| {problem.id} {problem.title} | `{problem.file}` | `{problem.name}` | {problem.points} | "
               f"{problem.minutes} | {', '.join(problem.needs)} |")
        assert row in handout, row
        assert re.search(rf"\*\*[^*]*{problem.id} `{problem.name}`", handout), problem
    for problem in WRITTEN:
        assert len(WRONG[problem.id]) >= 5 and callable(checks.CASES[problem.id])
        assert all(PROBLEMS.index(BY_ID[id]) < PROBLEMS.index(problem) for id in problem.needs)


@pytest.mark.parametrize("problem", WRITTEN, ids=lambda p: p.id)
def test_wrong_versions_are_rejected(problem):
    """Guards against checks that let a plausible wrong version pass, or reject a right one."""
    right = Version(problem.id, "", inspect.getsource(checks.reference(problem.id)))
    assert [selfcheck.caught(right, seed) for seed in range(3)] == [None] * 3
    for wrong in WRONG[problem.id]:
        assert selfcheck.caught(wrong, 0) not in (None, checks.ANY), wrong.name


def test_right_versions_are_right():
    """Guards against a version that a student's right test fails on."""
    rng = random.Random(0)
    for version in (v for v in RIGHT if v.alike and v.problem in ("P14", "P19")):
        function = as_function(version)
        for n in range(1, 9):
            if version.problem == "P14":
                assert (function(torch.full((2, n), 100.1)) == 0).all(), version.name
                for scale in (1, 1e-3, 1e3):
                    x = scale * torch.randn(3, n + 1, generator=torch.Generator().manual_seed(n))
                    y = x.double() - x.double().mean(1, keepdim=True)
                    y /= y.square().mean(1, keepdim=True).sqrt()
                    torch.testing.assert_close(function(x), y.float(), atol=1e-4, rtol=1e-4)
            else:
                ballots = [None, *([rng.randint(1, 3) for _ in range(n)] for _ in range(30))]
                tops = [(scores, max(scores)) for scores in ballots if scores]
                votes = [sum(Fraction(scores[i] == top, scores.count(top)) for scores, top in tops)
                         for i in range(n)]
                assert [(float(v), total) for v, total in function(ballots)] == [
                    (float(v), sum(scores[i] for scores, _ in tops)) for i, v in enumerate(votes)], version.name


def test_a_version_of_the_wrong_kind_is_told_so():
    """Guards against a comparison that takes any answer for equal, and messages that do not say of what kind
    it has to be."""
    for answer, expected, alike in ((1.0, 1, True), (True, 1, True), (1, True, False), ([1, 2], (1, 2), True),
                                    (float("nan"), 1.0, False), (None, 0, False), ("1", 1, False),
                                    (torch.ones(2), torch.ones(2).double(), True), ({"a": 1}, {"a": 2}, False),
                                    (torch.ones(2), torch.ones(2, 1), False), (torch.ones(2), [1.0, 1.0], False),
                                    (ValueError("a"), ValueError("a"), True), (ValueError("a"), None, False)):
        assert checks.same(answer, expected, 1e-4) == alike, (answer, expected)
    with pytest.raises(checks.Failed, match=r"it returns a tensor of floats of shape \(1,\); for example kl_k2"):
        checks.check("P15", lambda args, grad: 1.0, random.Random(0))


@pytest.mark.slow
@confined
def test_grades_through_processes(student, tmp_path):
    """Guards against a grader that gives points for the untouched copy, that loses an answer at the border,
    or whose problems cost each other: some bodies are wrong, one file does not parse."""
    results = grade.grade(student, seed=0, only=("P10", "P18"))
    assert [(r.state, r.points) for r in results] == [("not started", 0)] * 2
    mine = selfcheck.reference_submission(
        str(tmp_path / "mine"), Version("P16", "", "def kl_k3(p, q):\n    return p - q\n"),
        Version("P10", "", "def pick(scores):\n    return 0\n"))
    with open(os.path.join(mine, "model.py"), "a") as f:
        f.write("def (")
    written = []
    results = grade.grade(mine, 0, lambda results: written.append(len(results)),
                          only=("P3", "P10", "P11", "P15", "P16", "T1"))
    states = {r.problem.id: r.state for r in results}
    assert states == {"P3": "crashed", "P10": "wrong", "P11": "waits for P10", "P15": "passed",
                      "P16": "wrong", "T1": "passed"}
    assert written == [1, 2, 3, 4, 5, 6] and "model.py does not parse" in results[0].message


def test_files_that_are_taken(tmp_path):
    """Guards against a submission that is not found in its folder, and links that lead to the grader's own
    files."""
    there = tmp_path / "mine" / "top" / "twice"    # two folders, and the files without theirs
    there.mkdir(parents=True)
    (there / "judgement.py").write_text("\ufeffX = 1\n", encoding="utf-8")
    (there / "report.py").write_bytes(b"\xff")
    (there / "metarm.py").write_text("#" * (grade.LARGEST + 1))
    os.symlink(os.path.join(make.ROOT, "spct.py"), there / "spct.py")
    files = grade.read_submission(str(tmp_path / "mine"))
    assert files["data/judgement.py"] == "X = 1\n" and "model.py" not in files
    for file, said in (("report.py", "UTF-8"), ("metarm.py", "1 MB"), ("spct.py", "no plain file")):
        assert said in str(files[file])


UNUSUAL = """
from math import *
try:
    import fractions
except ImportError:
    fractions = None
TABLE = {}
for _name in ("a", "b"):
    TABLE[_name] = floor(2.5)
TABLE.update(c=7)
OTHER = 1 / 0


def twice(x: "Judgement", OTHER=1) -> "later":
    return later(x) * 2 * OTHER


def pick(scores):
    return twice(TABLE["a"]) + TABLE["c"] + bool(fractions)


raise SystemExit(0)


def later(x):
    return x + SECOND
"""


def test_a_statement_that_fails_costs_what_needs_it_alone():
    """Guards against a solution that is lost because of another one's import error, or moved away from what stands
    above it; and against ours that is left in the place of the student's."""
    space = {"pick": None, "SECOND": 0}
    loader = child.Loader({}, {})
    loader.run(UNUSUAL, "submission/judgement.py", space)
    assert space["pick"]([1]) == 12 and "ZeroDivisionError" in loader.failed[0] and "line 11" in loader.failed[0]
    assert len(loader.failed) == 2                 # to leave is no way out
    loader.run("def (", "submission/spct.py", space)
    loader.run("x = " + "-" * 100_000 + "1", "submission/spct.py", space)
    assert "spct.py does not parse: SyntaxError, line 1" in loader.failed[2] and len(loader.failed) == 4
    start = time.monotonic()
    chain = "\n".join(["x0 = 0"] + [f"x{i} = x{i - 1} = {i}" for i in range(1, 5000)])
    loader.run(chain, "submission/x.py", space)
    assert time.monotonic() - start < 5


def test_a_students_test_tells_nothing_but_a_line():
    """Guards against a test that tells, by an exception, what the function that it tests has answered."""
    class Channel:
        def ask(self, message):
            return {"value": [3, 1, 4]}

    space = {}
    loader = child.Loader({}, {})
    for end in ("raise SystemExit(str(answer))", "raise type(str(answer), (Exception,), {})", "1 / 0",
                "raise NotImplementedError(str(answer))", "import pytest; pytest.fail(str(answer))"):
        loader.run(f"def test(f):\n    answer = f()\n    {end}\n", "submission/mytests.py", space)
        assert child.run_test(Channel(), space["test"], {}) == {"failed": [3]}


def test_what_crosses_the_border():
    """Guards against data that change on their way to a child and back, and objects that pass for data."""
    data = [None, True, 1, 0.5, "\ud800", b"\xff", (1, [2, (3,)]), {"a": {1: 2}, b"b": []}, torch.zeros(0, 3),
            torch.tensor([1.5, float("inf")]).half(), torch.tensor([[1, 2]]), torch.tensor([True]),
            Judgement("i", 0, [0], 1, [2], [3], 0.5)]
    for x in data:
        y = child.unpack(json.loads(json.dumps(child.pack(x))), grade.MAKE)
        assert type(x) is type(y) and (x == y if not isinstance(x, torch.Tensor)
                                             else torch.equal(x, y) and x.dtype == y.dtype)
    assert child.pack([Fraction(1, 2), np.float32(0.5), np.arange(2)]) == [0.5, 0.5, [0, 1]]
    for x in (object(), len, {1, 2}, torch.zeros(1).as_subclass(type("Mine", (torch.Tensor,), {}))):
        with pytest.raises(TypeError, match="expected plain data"):
            child.pack(x)


def test_speedrun_takes_all_answers():
    """Guards against a judge that is scored on the items it chooses."""
    items = [Item(str(i), "", "", ["a", "b"]) for i in range(3)]
    one, two = [0.5, 9], [1.5, 12]
    assert speedrun.checked([[one, two], None, [two, one]], items)
    for answers in ([[one, two]], [[one, two]] * 4, [[one, two, one], None, None], None, [[1, 2], None, None],
                    [[one, "2"], None, None], [[one, [1, "2"]], None, None], [[one, [1, 2, 3]], None, None],
                    [[one, [1, float("nan")]], None, None]):
        with pytest.raises(checks.Failed):
            speedrun.checked(answers, items)


def test_handout_of_a_part(monkeypatch):
    """Guards against a handout that lists problems which are not in the copy, or counts their points."""
    text = read(make.HERE, "handout.md")
    assert make.handout(text) == text
    few = PROBLEMS[:3]
    monkeypatch.setattr(make, "PROBLEMS", few)
    monkeypatch.setattr(make, "BY_ID", {problem.id: problem for problem in few})
    text = make.handout(text)
    assert "15 points, 1.3 hours" in text and "| P3 " in text and "| P4 " not in text


def test_result_files():
    """Guards against fields that Gradescope or Classroom 50 do not know, and scores that do not add up."""
    results = [grade.Result(BY_ID["P2"], "passed", 8), grade.Result(BY_ID["P3"], "wrong", 0, "it is not")]
    report = json.loads(grade.FORMATS["gradescope"](results))
    assert report["score"] == 8 == sum(test["score"] for test in report["tests"])
    assert [test["status"] for test in report["tests"]] == ["passed", "failed"]
    assert report["tests"][1]["output"] == "wrong: it is not" and report["tests"][1]["max_score"] == 4
    report = json.loads(grade.FORMATS["classroom50"](results))
    assert report["schema"] == "classroom50/result/v1" and report["score"] == 8
    assert report["tests"][0] == {"test-name": "P2 byte pair encoding", "passed": True, "score": 8,
                                  "max-score": 8}
    assert "it is not" not in json.dumps(report)


@pytest.mark.slow
def test_gradescope_zip(tmp_path):
    """Guards against a zip that lacks a file: unpacked into an empty tree, and run as Gradescope does."""
    path = str(tmp_path / "autograder.zip")
    gradescope.main([path])
    with zipfile.ZipFile(path) as z:
        z.extractall(tmp_path / "root" / "source")
        assert all(z.getinfo(name).external_attr >> 16 & 0o111 for name in ("setup.sh", "run_autograder"))
    shutil.move(tmp_path / "root" / "source" / "run_autograder", tmp_path / "root" / "run_autograder")
    (tmp_path / "root" / "submission").mkdir()
    env = {**os.environ, "AUTOGRADER": str(tmp_path / "root"), "PYTHON": sys.executable}
    subprocess.run(["bash", str(tmp_path / "root" / "run_autograder")], env=env, check=True)
    report = json.loads(read(tmp_path, "root", "results", "results.json"))
    assert report["score"] == 0 and len(report["tests"]) == len(PROBLEMS)


@pytest.mark.slow
@confined
@pytest.mark.parametrize("name", ["leaves", "equals everything", "leaves a process that writes later",
                                  "fills the pipe with its own messages"])
def test_attacks(name, tmp_path):
    """Guards against student code that decides its own grade, or outlives it."""
    assert selfcheck.attack(str(tmp_path), version(ATTACKS, name)) == []


@pytest.mark.slow
@confined
@pytest.mark.parametrize("name", ["torch.testing", "a star import", "named tuples",
                                  "a parameter with the name of a broken helper"])
def test_right_but_unusual(name, tmp_path):
    """Guards against a right solution that loses its points in the sandbox, or by the type of its answer."""
    unusual = version(RIGHT, name)
    there, id = selfcheck.reference_submission(str(tmp_path / "it"), unusual), unusual.problem
    results = grade.grade(there, seed=0, only=(id, *grade.needs_of(BY_ID[id])))
    assert [r.state for r in results] == ["passed"] * len(results)


def test_the_graders_own_faults(tmp_path, monkeypatch):
    """Guards against a fault of the grader that becomes the student's, and against student code that runs without
    a sandbox although nobody has said so."""
    mine = selfcheck.reference_submission(str(tmp_path / "mine"))
    monkeypatch.setattr(grade, "SHOWN", [make.ROOT])
    assert NO_SANDBOX or "the sandbox has to show" in grade.why_not()
    monkeypatch.setattr(grade, "why_not", lambda: "no such program")
    with pytest.raises(grade.GraderFault, match=r"no such program.*--trusted"):
        grade.grade(mine)
    monkeypatch.setattr(grade, "why_not", lambda: None)
    monkeypatch.setattr(grade, "sandbox", lambda: [sys.executable, "-c", "raise OSError('no room')"])
    with pytest.raises(grade.GraderFault, match="cannot be started: OSError: no room"):
        grade.grade(mine, 0, only=("P10",))
    monkeypatch.setattr(grade, "sandbox", lambda: ["/none"])
    with pytest.raises(OSError, match="/none"):
        grade.grade(mine, 0, only=("P10",))


NEVER_ENDS = Version("P1", "", "def checks_text(checks, weights=None):\n    while True:\n        pass\n")


@pytest.mark.slow
@confined
def test_other_platforms(tmp_path, monkeypatch):
    """Guards against a grader that needs what Windows lacks (groups of processes) or what macOS refuses (a limit
    of addresses): a child that never ends is ended, and limits that can be set are set."""
    mine = selfcheck.reference_submission(str(tmp_path / "mine"), NEVER_ENDS)
    monkeypatch.delattr(os, "killpg")
    monkeypatch.setattr(grade, "ANSWERS", 2)
    result, = grade.grade(mine, seed=0, only=("P1",))
    assert (result.state, result.message[:28]) == ("timed out", "no answer within 2 seconds; ")
    limits = """
import os, resource
from assignment import child
os.geteuid, setrlimit = lambda: 1000, resource.setrlimit
def refuse(name, values):
    if name == resource.RLIMIT_AS:
        raise ValueError("current limit exceeds maximum limit")
    setrlimit(name, values)
resource.setrlimit = refuse
child.confine("problem")
print(resource.getrlimit(resource.RLIMIT_NOFILE))
os.name = "nt"
child.confine("problem")
"""
    run = subprocess.run([sys.executable, "-c", limits], cwd=make.ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "(64, 64)\n"


@pytest.mark.slow
@confined
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root's children are other users")
def test_a_killed_grader_leaves_nothing(tmp_path):
    """Guards against students' processes and folders that outlive the grader."""
    mine = selfcheck.reference_submission(str(tmp_path / "mine"), NEVER_ENDS)
    folders = lambda: {name for name in os.listdir("/tmp") if name.startswith("tmp")}
    before = folders()
    running = subprocess.Popen([sys.executable, "assignment/grade.py", mine], cwd=make.ROOT)
    for _ in range(600):
        if selfcheck.strangers():
            break
        time.sleep(0.1)
    time.sleep(2)
    assert selfcheck.strangers()                   # a student's process runs
    running.kill()
    running.wait()
    time.sleep(1)
    assert selfcheck.strangers() == [] and folders() <= before


def test_another_term(tmp_path):
    """Guards against a world that is not changed, whose weights are no ten points, or that does not load; and
    a copy that lacks a file."""
    newterm.copy(str(tmp_path / "term"), "2027")
    assert read(tmp_path, "term", "data", "world.py") != read(make.ROOT, "data", "world.py")
    subprocess.run([sys.executable, "assignment/make.py", "student"], cwd=tmp_path / "term", check=True)
    source = read(make.ROOT, "data", "world.py")
    for term in ("2027", "2028"):
        world = {}
        exec(compile(newterm.new_world(source, term), "world.py", "exec"), world)
        assert world["RATERS"] != RATERS and world["CUES"] != CUES and world["STYLES"] != STYLES
        rows = [weights for cues in world["RATERS"].values() for weights in cues.values()]
        assert all(sum(weights.values()) == 10 for weights in rows)
        items = world["make_items"](0, "train", 50)
        assert all(1 <= reward <= 10 for item in items for reward in item.gold)


@pytest.mark.slow
@confined
def test_speedrun(tmp_path):
    """Guards against a speedrun in which the submission's method is not used, or whose items are known: with
    hardly a training nothing passes, and the line says so."""
    source = read(make.ROOT, "spct.py")
    for old, new in (("n_layer: int = 4 ", "n_layer: int = 1 "), ("6_500_000", "20_000"),
                     ("threads: int = 0 ", "threads: int = 1 "), ("n_rft: int = 3 ", "n_rft: int = 2 "),
                     ("    items: int = 3000 ", "    items: int = 16 "),
                     ("rl_steps: int = 24 ", "rl_steps: int = 1 "),
                     ("rl_items: int = 64 ", "rl_items: int = 4 "),
                     ("if steps == 0:", "if steps < 0:")):                   # RFT will have kept nothing
        assert old in source
        source = source.replace(old, new)
    (tmp_path / "spct.py").write_text(source)
    minutes, hits = speedrun.speedrun(str(tmp_path), seed=0, count=8)
    assert minutes < 2 and len(hits) == 8 and hits.mean() < 0.85
    report = speedrun.leaderboard(minutes, hits)
    assert report["score"] == 0 and report["leaderboard"][0]["value"] == "-"
    assert "does not pass" in report["output"]


def test_flags(tmp_path, capsys):
    """Guards against tracebacks for what a teacher gets wrong."""
    with pytest.raises(UserError, match="There is no folder"):
        grade.main([str(tmp_path / "none")])
    with pytest.raises(UserError, match="exists"):
        make.main([str(tmp_path)])
    assert ast.parse(read(make.HERE, "mytests.py"))
