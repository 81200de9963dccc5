"""
The grader.

    python assignment/grade.py SUBMISSION                        # a folder with the student's files: a table
    python assignment/grade.py SUBMISSION --format gradescope --out results.json
    python assignment/grade.py SUBMISSION --format classroom50 --out result.json

The child answers, the parent judges. For each problem a fresh student copy gets the submission's definition
of that function, of those that the problem needs, and of helpers in the same files; nothing else of the
submission is ever used. A child (child.py) imports it and answers calls; this process never imports student
code, draws the inputs, and computes what is expected when the answer is there.

Hostile code is held on Linux when the grader is root (as in Gradescope's containers): then each child is a
user of its own. Otherwise the grader says that it is not held.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone

import matplotlib

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from assignment import checks, make
from assignment.mutants import mutants_of
from assignment.problems import BY_ID, PROBLEMS
from assignment.submission import Crashed, NotStarted, TimedOut, needs_of, own_file, put_in
from assignment.wire import LIMIT, pack, send, unpack
from data import UserError, new_file, run_command
from data.judgement import Judgement
from data.world import Item, seed_of

START, ANSWERS = 60, 20                            # seconds: to import torch; for all answers together
FIRST_UID, BLOCK, BLOCKS = 61000, 100, 40          # each child is a user of its own, if it can be
ASKED = 20_000                                     # bytes that a student's test may ask about at once


def can_hold():
    """May this process confine a child as child.py does? It takes Linux, and root with root's powers."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    pid = os.fork()
    if pid == 0:
        try:
            os.chroot("/")
            os.setgroups([])
            os.setgid(FIRST_UID)
            os.setuid(FIRST_UID)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


HELD = can_hold()


def own_users():
    """-> a lock, and users that no other grader on this machine has meanwhile: to end a child is to end all
    that its user runs. The lock is a socket's name, which is free again when this process has ended."""
    for block in range(BLOCKS if HELD else 0):
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            lock.bind(f"\0nanogrm-grader-{block}")
            return lock, itertools.count(FIRST_UID + BLOCK * block)
        except OSError:
            lock.close()
    if HELD:
        raise UserError(f"{BLOCKS} graders run on this machine already. Start this one later.")
    return contextlib.nullcontext(), itertools.repeat(0)

# ----------------------------------------------------------------------------------------
# The child

MAKE = {"Judgement": Judgement, "Item": Item}
ENDED = "the process ended without an answer (out of memory or time, or it left by itself)"


def new_folder(parent, code):
    """A folder for a child: its own program, and a copy of the code that it is to run."""
    folder = tempfile.mkdtemp(dir=parent)
    shutil.copytree(code, os.path.join(folder, "copy"))
    for name in ("child.py", "wire.py"):
        shutil.copyfile(os.path.join(HERE, name), os.path.join(folder, name))
    return folder


class Child:
    """A process with student code. uid 0: it stays the user that the grader is. kind: of its limits, see
    child.py; seconds: for all of its answers together."""

    def __init__(self, folder, file, name, uid, kind="problem", seconds=ANSWERS):
        arguments = [os.path.join(folder, "child.py"), file, name, str(uid), kind]
        env = {"PATH": os.environ.get("PATH", ""), "HOME": folder, "TMPDIR": folder,
               # where matplotlib has its list of fonts: to make one takes seconds
               "MPLCONFIGDIR": matplotlib.get_cachedir(),
               "CUDA_VISIBLE_DEVICES": ""}         # on a CPU: CUDA takes more addresses than a child may have
        if kind == "problem":
            env["OMP_NUM_THREADS"] = "1"
        os.chmod(folder, 0o755)                    # to be read; a speedrun writes its run folder, too
        if uid and kind == "speedrun":
            os.chown(folder, uid, uid)
        if os.name == "nt":
            env["SYSTEMROOT"] = os.environ.get("SYSTEMROOT", "")
        self.process = subprocess.Popen([sys.executable, "-I", *arguments], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=folder,
                                        env=env)
        self.rest, self.seconds, self.deadline = b"", seconds, time.monotonic() + START
        try:
            value_of(self.receive(), "ready")
        except BaseException:
            self.close()
            raise
        self.deadline = time.monotonic() + seconds

    def receive(self):
        """The next message, a dict."""
        fd = self.process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(fd, selectors.EVENT_READ)
            while b"\n" not in self.rest:
                if not selector.select(max(0.0, self.deadline - time.monotonic())):
                    raise TimedOut(f"no answer within {self.seconds} seconds")
                more = os.read(fd, 1 << 16)
                if not more:
                    raise Crashed(ENDED)
                self.rest += more
                if len(self.rest) > LIMIT:
                    raise Crashed("the answer has no end")
        line, self.rest = self.rest.split(b"\n", 1)
        try:
            message = json.loads(line)
            assert isinstance(message, dict)
            return message
        except (ValueError, AssertionError, RecursionError):
            raise Crashed("the answer is no plain data") from None

    def request(self, message):
        try:
            send(self.process.stdin, message)
        except OSError:
            raise Crashed(ENDED) from None
        return self.receive()

    def close(self):
        """Ends the child with all that it started: see child.py."""
        with contextlib.suppress(OSError):         # what was not sent
            self.process.stdin.close()
        try:
            self.process.wait(1)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process.stdout.close()


class Ask:
    """Calls a student's function: ask(*args) -> its answer; ask.grad(which, *args) -> answer, gradients."""

    def __init__(self, child):
        self.child = child

    def __call__(self, *args, **kwargs):
        return self.call(args, kwargs, [])

    def grad(self, which, *args):
        return self.call(args, {}, which)

    def call(self, args, kwargs, grad):
        reply = self.child.request({"kind": "call", "args": pack(list(args)), "kwargs": pack(kwargs),
                                    "grad": grad})
        return value_of(reply, "value")


def value_of(reply, name):
    if "error" in reply:
        raise Crashed(str(reply["error"])[:400])
    try:
        return unpack(reply[name], MAKE)
    except Exception as error:                     # whatever it is, it is no answer
        raise Crashed(f"the answer is no plain data ({type(error).__name__})") from None

# ----------------------------------------------------------------------------------------
# One problem

@dataclass
class Result:
    problem: object
    state: str                 # passed, wrong, not started, crashed, timed out, or waits for P7
    points: int = 0
    message: str = ""


class Grader:
    """Grades the problems of one submission. seed: of the inputs."""

    def __init__(self, submission, seed):
        self.submission, self.seed, self.results = submission, seed, {}
        self.folder = tempfile.mkdtemp(prefix="grade-")
        os.chmod(self.folder, 0o711)
        self.pristine = os.path.join(self.folder, "pristine")
        make.student_code(self.pristine)
        self.lock, self.uids = own_users()

    def open_child(self, problem):
        """A child in a folder of its own -> child, folder."""
        folder = new_folder(self.folder, self.pristine)
        try:
            put_in(os.path.join(folder, "copy"), self.submission, problem)
            return Child(folder, problem.file, problem.name, next(self.uids)), folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def with_child(self, problem, use):
        """use(child), and whatever happens, nothing is left of it."""
        child, folder = self.open_child(problem)
        try:
            return use(child)
        finally:
            child.close()
            shutil.rmtree(folder, ignore_errors=True)

    def grade(self, problem):
        """-> Result"""
        waiting = [id for id in needs_of(problem) if self.results[id].state != "passed"]
        if waiting:
            return Result(problem, f"waits for {waiting[0]}", 0,
                          f"{BY_ID[waiting[0]].name} has to be right first")
        rng = random.Random(seed_of("inputs", self.seed, problem.id))
        try:
            if problem.target:
                return self.grade_test(problem, rng)
            self.with_child(problem, lambda child: checks.of(problem.id)(Ask(child), rng))
            return Result(problem, "passed", problem.points)
        except checks.Wrong as wrong:
            return Result(problem, "wrong", 0, str(wrong))
        except NotStarted as error:
            return Result(problem, "not started", 0, str(error))
        except TimedOut as error:
            return Result(problem, "timed out", 0, str(error))
        except Crashed as error:
            return Result(problem, "crashed", 0, str(error))
        except Exception as error:                 # of a check that did not expect such an answer
            return Result(problem, "wrong", 0, f"the answer has an unexpected form ({type(error).__name__})")

    def grade_test(self, problem, rng):
        """A student's test: it must pass on right versions, and fail on wrong ones, points for each of these.

        It is run once for each version, in an order that nobody knows (see submission_seed) and with several
        right ones among them. The first run has a process of its own, so that a test which counts its runs
        gains nothing; the others share one, since to start a process takes a second. What it tests is
        computed here.
        """
        target, wrong = BY_ID[problem.target], mutants_of(problem.target)
        versions = [("right", checks.reference(target.id))] * 3 + [(m.bug, m.function()) for m in wrong]
        rng.shuffle(versions)
        verdicts = [(bug, *self.with_child(problem, lambda child: run_test(child, function)))
                    for bug, function in versions[:1]]
        verdicts += self.with_child(problem, lambda child: [(bug, *run_test(child, function))
                                                            for bug, function in versions[1:]])
        complaints = [why for bug, fine, why in verdicts if bug == "right" and not fine]
        if complaints:
            return Result(problem, "wrong", 0, f"it fails on a right {target.name}: {complaints[0]}")
        missed = sorted(bug for bug, fine, _ in verdicts if bug != "right" and fine)
        caught = len(wrong) - len(missed)
        message = f"it catches {caught} of {len(wrong)} wrong versions" + (
            f"; not these: {', '.join(missed)}" if missed else "")
        message += self.on_own_solution(problem, target)
        return Result(problem, "wrong" if missed else "passed", problem.points * caught // len(wrong),
                      message)

    def on_own_solution(self, problem, target):
        """Beside the grade: what the test says about the student's own function."""
        try:
            def both(own):
                return self.with_child(problem, lambda child: run_test(child, Ask(own)))
            fine, why = self.with_child(target, both)
            return "; on your own solution it " + ("passes" if fine else f"fails: {why}")
        except (NotStarted, Crashed, TimedOut):
            return ""


def run_test(child, function):
    """Run the student's test on a function -> does it pass, why not."""
    reply, asked = child.request({"kind": "test", "args": []}), 0
    while "ask" in reply:
        asked += 1
        try:
            if len(json.dumps(reply)) > ASKED:     # it is computed here, where no limit holds
                raise ValueError("the input is too large")
            args, kwargs = value_of(reply, "ask"), value_of(reply, "kwargs")
            answer = {"value": pack(function(*args, **kwargs))}
        except Crashed as error:
            answer = {"error": str(error)}
        except Exception as error:                 # the student's test asks what makes no sense
            answer = {"error": f"{type(error).__name__}: {error}"[:200]}
        reply = child.request(answer)
    if "error" in reply:
        raise Crashed(str(reply["error"])[:400])
    if not asked:
        raise checks.Wrong("it calls what it tests", "it never calls the function that it is given")
    return "passed" in reply, str(reply.get("failed", ""))[:300]


# ----------------------------------------------------------------------------------------
# A submission

def submission_seed(submission):
    """Other inputs for each submission, the same ones at a regrade. Nobody can compute them where there is a
    file salt.txt beside this one, as in Gradescope's zip."""
    texts = [""]
    if os.path.exists(os.path.join(HERE, "salt.txt")):
        with open(os.path.join(HERE, "salt.txt"), encoding="utf-8") as f:
            texts = [f.read()]
    for file in sorted({problem.file for problem in PROBLEMS}):
        with contextlib.suppress(Crashed, OSError):
            path = own_file(submission, file)
            if path is not None:
                with open(path, "rb") as f:
                    texts.append(f.read().hex())
    return seed_of("nanogrm", *texts)


def grade(submission, seed=None, write=lambda results: None, only=None):
    """-> the results, in the order of the table; write(results) is called after each problem."""
    grader = Grader(submission, submission_seed(submission) if seed is None else seed)
    problems = [p for p in PROBLEMS if only is None or p.id in only]         # with what they need
    try:
        if not HELD:
            print("student code runs as the grader's own user: hostile code is not held (be root, on Linux)",
                  file=sys.stderr)
        while len(grader.results) < len(problems):  # in waves: each problem behind those that it needs
            wave = [p for p in problems if p.id not in grader.results
                    and set(needs_of(p)) <= set(grader.results)]
            with ThreadPoolExecutor(2) as pool:
                for result in pool.map(grader.grade, wave):
                    grader.results[result.problem.id] = result
                    write(in_order(grader.results))
    finally:
        shutil.rmtree(grader.folder, ignore_errors=True)
        with grader.lock:                          # closes it
            pass
    return in_order(grader.results)


def in_order(results):
    return [results[p.id] for p in PROBLEMS if p.id in results]

# ----------------------------------------------------------------------------------------
# Writers: one list of results, three forms

def totals(results):
    return sum(r.points for r in results), sum(p.points for p in PROBLEMS)


def table(results):
    rows = [f"{r.problem.id:4s} {r.points:3d} of {r.problem.points:2d}  {r.state:13s} {r.problem.title}"
            + (f"\n{'':16s}{r.message}" if r.message else "") for r in results]
    return "\n".join(rows) + "\n{} of {} points".format(*totals(results))


def gradescope(results):
    """https://gradescope-autograders.readthedocs.io: results.json"""
    tests = [{"name": f"{r.problem.id} {r.problem.title}", "number": r.problem.id, "score": r.points,
              "max_score": r.problem.points, "status": "passed" if r.state == "passed" else "failed",
              "output": ": ".join(text for text in (r.state, r.message) if text), "output_format": "text",
              "visibility": "visible"} for r in results]
    return {"score": totals(results)[0], "output_format": "text", "visibility": "visible",
            "stdout_visibility": "hidden", "tests": tests}


def classroom50(results):
    """classroom50/result/v1; its bundle is public, so that no message goes into it."""
    variables = {key: os.environ.get(name, "") for key, name in (
        ("classroom", "CLASSROOM"), ("assignment", "ASSIGNMENT"), ("submission", "SUBMISSION_TAG"),
        ("commit", "COMMIT_URL"), ("release", "RELEASE_URL"), ("review", "REVIEW_URL"))}
    score, most = totals(results)
    tests = [{"test-name": f"{r.problem.id} {r.problem.title}", "passed": r.state == "passed",
              "score": r.points, "max-score": r.problem.points} for r in results]
    return {"schema": "classroom50/result/v1", **variables,
            "datetime": datetime.now(timezone.utc).isoformat(),
            "score": score, "max-score": most, "tests": tests}


FORMATS = {"table": table, "gradescope": lambda r: json.dumps(gradescope(r), indent=1),
           "classroom50": lambda r: json.dumps(classroom50(r), indent=1)}


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("submission", help="a folder with the student's files")
    parser.add_argument("--format", choices=list(FORMATS), default="table")
    parser.add_argument("--seed", type=int, help="of the inputs; by default one of the submission's own")
    parser.add_argument("--out", help="a file, written anew after each problem; else the result is printed")
    args = parser.parse_args(argv)
    if not os.path.isdir(args.submission):
        raise UserError(f"There is no folder {args.submission}. Name the folder of a submission.")

    def write(results):
        if args.out:
            with new_file(args.out) as f:
                f.write(FORMATS[args.format](results) + "\n")

    results = grade(args.submission, args.seed, write)
    if not args.out:
        print(FORMATS[args.format](results))


if __name__ == "__main__":
    run_command(main)
