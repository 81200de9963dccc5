"""The course kit: the student copy, the grader, and whether wrong answers get through."""

import ast
import doctest
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile

import pytest

from assignment import checks, grade, gradescope, honest, hostile, make, newterm, selfcheck, speedrun, submission
from assignment.mutants import TABLE, mutants_of
from assignment.problems import BY_ID, PROBLEMS
from data import UserError
from data.world import CUES, RATERS, STYLES, Item

WRITTEN = [problem for problem in PROBLEMS if not problem.target]
NO_SANDBOX = grade.why_not()
confined = pytest.mark.skipif(bool(NO_SANDBOX), reason=f"no sandbox: {NO_SANDBOX}")


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("student") / "copy")
    make.make(folder)
    return folder


def read(*path):
    with open(os.path.join(*path), encoding="utf-8") as f:
        return f.read()


def test_bodies_put_back_make_the_reading_copy(student):
    """Guards against a student copy that differs from the reading copy in more than its holes."""
    for path in make.CODE:
        source, holes = read(make.ROOT, path), read(student, path)
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
    assert names == {*make.CODE, *make.MORE, *make.OURS.values()}
    text = "\n".join(read(path) for path in files if path.endswith((".py", ".md")))
    for problem in WRITTEN:
        source = read(make.ROOT, problem.file)
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
    module = importlib.import_module(problem.module)
    found, runner, function = [], doctest.DocTestRunner(verbose=False), getattr(module, problem.name)
    for test in doctest.DocTestFinder(recurse=False).find(function, globs=dict(vars(module))):
        runner.run(test, out=found.append)
    assert not found and runner.tries > 0, "".join(found)


def test_tables_agree():
    """Guards against a problem without checks, without a section, or with fewer than five wrong versions."""
    assert len(WRITTEN) >= 18 and set(TABLE) == {problem.id for problem in WRITTEN}
    handout = read(make.HERE, "handout.md")
    for problem in PROBLEMS:
        row = f"| {problem.id} {problem.title} | `{problem.file}` | `{problem.name}` | {problem.points} |"
        assert row in handout
        assert f"**{problem.id} `{problem.name}`" in handout
    for problem in WRITTEN:
        assert len(TABLE[problem.id]) >= 5 and callable(checks.of(problem.id))
        assert all(BY_ID[id].file for id in problem.needs)


@pytest.mark.parametrize("problem", WRITTEN, ids=lambda p: p.id)
def test_mutants_are_rejected(problem):
    """Guards against checks that let a plausible wrong version pass, or reject a right one."""
    assert all(selfcheck.caught(problem, checks.reference(problem.id), seed) is None for seed in range(3))
    for mutant in mutants_of(problem.id):
        why = selfcheck.caught(problem, mutant.function(), 0)
        assert why and why.startswith(mutant.caught_by), (mutant.bug, why)


@pytest.mark.slow
@confined
def test_grades_through_processes(student, tmp_path):
    """Guards against a grader that gives points for the untouched copy, that loses an answer at the border,
    or whose problems cost each other: some bodies are wrong, one file does not parse."""
    results = grade.grade(student, seed=0, only=("P10", "P17"))
    assert [(r.state, r.points) for r in results] == [("not started", 0)] * 2
    mine = selfcheck.reference_submission(str(tmp_path / "mine"))
    with open(os.path.join(mine, "model.py"), "a") as f:
        f.write("def (")
    selfcheck.with_function(mine, "spct.py", "kl_k3", "def kl_k3(p, q):\n    return p - q\n")
    selfcheck.with_function(mine, "data/judgement.py", "pick", "def pick(scores):\n    return 0\n")
    written = []
    results = grade.grade(mine, 0, written.append, only=("P3", "P10", "P11", "P15", "P16", "T1"))
    states = {r.problem.id: r.state for r in results}
    assert states == {"P3": "crashed", "P10": "wrong", "P11": "waits for P10", "P15": "passed",
                      "P16": "wrong", "T1": "passed"}
    assert len(written) == 6 and "does not parse" in results[0].message


def test_what_is_taken(tmp_path):
    """Guards against right solutions that lose what they use (an import line that grew, another solution, a
    helper), and against links that lead to the grader's own files."""
    there = tmp_path / "mine" / "top" / "twice"    # two folders, and the files without theirs
    there.mkdir(parents=True)
    taken = lambda id: submission.files_for(str(tmp_path / "mine"), BY_ID[id])
    (there / "report.py").write_text(
        "from data.judgement import correct, pick, vote_plurality as many\nimport os, fractions\nLEAST = 0\n"
        "def unused():\n    return many\n"
        "def tie_broken(scores, gold):\n    return max(LEAST, fractions.Fraction(pick(scores) == 1))\n")
    (there / "judgement.py").write_text(
        "def pick(scores):\n    return 1\n\f\ndef vote_sum(ballots):\n    return [7]\n")
    files = taken("P22")
    text, judgement = files["report.py"], make.functions(files["data/judgement.py"])
    assert "import fractions" in text and "LEAST = 0" in text and "unused" not in text
    assert not submission.is_hole(judgement["pick"]) and submission.is_hole(judgement["vote_sum"])
    os.remove(there / "judgement.py")
    os.symlink(os.path.join(make.ROOT, "data", "judgement.py"), there / "judgement.py")
    with pytest.raises(submission.Crashed, match="no plain file"):
        taken("P17")
    (there / "metarm.py").write_text("#" * (submission.LARGEST + 1))
    with pytest.raises(submission.Crashed, match="1 MB"):
        taken("P19")
    with pytest.raises(submission.NotStarted, match="there is no model.py"):
        taken("P3")


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


def later(x):
    return x
"""


def test_top_level_statements_are_taken_in_order(tmp_path):
    """Guards against extraction that drops a star import, a `try`, a table that a loop fills, or moves what stands
    below; and that takes another problem's statement because a parameter has its name."""
    (tmp_path / "judgement.py").write_text(UNUSUAL)
    text = submission.files_for(str(tmp_path), BY_ID["P10"])["data/judgement.py"]
    assert "OTHER = 1 / 0" not in text
    lines = ("from math import *", "    import fractions", "TABLE = {}", "    TABLE[_name]", "TABLE.update",
             "def twice", "def pick", "def later")
    place = [text.index(line) for line in lines]
    assert place == sorted(place)
    space = {"__name__": "judgement"}
    exec(compile(text, "judgement.py", "exec"), space)
    assert space["pick"]([1]) == 12


def test_speedrun_takes_all_answers():
    """Guards against a judge that is scored on the items it chooses."""
    items = [Item(str(i), "", "", ["a", "b"]) for i in range(3)]
    one, two = [0.5, 9], [1.5, 12]
    assert speedrun.checked([[one, two], None, [two, one]], items)
    for answers in ([[one, two]], [[one, two]] * 4, [[one, two, one], None, None], None, [[1, 2], None, None],
                    [[one, "2"], None, None], [[one, [1, "2"]], None, None], [[one, [1, 2, 3]], None, None],
                    [[one, [1, float("nan")]], None, None]):
        with pytest.raises(grade.Crashed):
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
    source = hostile.ATTACKS[name]
    assert selfcheck.attack(str(tmp_path), "it", "data/judgement.py", "vote_sum", source, "P17") == []


@pytest.mark.slow
@confined
@pytest.mark.parametrize("name", ["torch.testing", "a star import", "named tuples",
                                  "a parameter with the name of a broken helper"])
def test_right_but_unusual(name, tmp_path):
    """Guards against a right solution that loses its points in the sandbox, or by the type of its answer."""
    id, source = honest.HONEST[name]
    there = selfcheck.reference_submission(str(tmp_path / "it"))
    selfcheck.with_function(there, BY_ID[id].file, BY_ID[id].name, source)
    results = grade.grade(there, seed=0, only=(id, *submission.needs_of(BY_ID[id])))
    assert [r.state for r in results] == ["passed"] * len(results)


def test_the_graders_own_faults(tmp_path, monkeypatch):
    """Guards against a fault of the grader that becomes the student's, and against student code that runs without
    a sandbox although nobody has said so."""
    mine = selfcheck.reference_submission(str(tmp_path / "mine"))
    monkeypatch.setattr(grade, "why_not", lambda: "no such program")
    with pytest.raises(grade.GraderFault, match=r"no such program.*--trusted"):
        grade.grade(mine)
    monkeypatch.setattr(grade, "why_not", lambda: None)
    monkeypatch.setattr(grade, "sandbox", lambda: [sys.executable, "-c", "raise OSError('no room')"])
    with pytest.raises(grade.GraderFault, match="cannot be started: OSError: no room"):
        grade.grade(mine, 0, only=("P10",))
    monkeypatch.setattr(grade, "sandbox", lambda: ["/none"])
    with pytest.raises(grade.GraderFault, match="/none"):
        grade.grade(mine, 0, only=("P10",))


@pytest.mark.slow
@confined
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root's children are other users")
def test_a_killed_grader_leaves_nothing(tmp_path):
    """Guards against students' processes and folders that outlive the grader."""
    mine = selfcheck.reference_submission(str(tmp_path / "mine"))
    selfcheck.with_function(mine, "data/judgement.py", "checks_text", hostile.ATTACKS["never ends"].replace(
        "vote_sum(ballots)", "checks_text(checks, weights=None)"))
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
