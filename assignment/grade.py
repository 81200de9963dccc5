"""
The grader.

    python assignment/grade.py SUBMISSION                        # a folder with the student's files: a table
    python assignment/grade.py SUBMISSION --format gradescope --out results.json
    python assignment/grade.py SUBMISSION --format classroom50 --out result.json

The child answers, the parent judges. For each problem a child (child.py) gets a student copy with the submission's
definition of that function, of those that the problem needs, and of helpers in the same files. It imports it
and answers calls. This process never imports student code, makes the inputs, and computes what is expected when
the answer is there.

Children run in a sandbox of bubblewrap (Linux, package bubblewrap): they see Python and an empty folder, and have
no network. Without it, --trusted runs them as plain processes with limits, and not as root.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone

import matplotlib

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from assignment import checks, make
from assignment.mutants import RIGHT, mutants_of
from assignment.problems import BY_ID, PROBLEMS
from assignment.submission import Crashed, NotStarted, TimedOut, files_for, needs_of, own_file
from assignment.wire import LIMIT, lists, pack, send, unpack
from data import UserError, new_file, run_command
from data.judgement import Judgement
from data.world import Item, seed_of

PARSER = threading.Lock()                          # ast.parse in two threads at once fails in Python 3.11
START, ANSWERS = 180, 20                           # seconds: to import torch; for all answers together
ASKED = 20_000                                     # bytes that a student's test may ask about at once


class GraderFault(UserError):
    """The grader itself failed. This ends the grading, and is never a mark."""

# ----------------------------------------------------------------------------------------
# The sandbox

def sandbox():
    """bubblewrap's part of a command: what is in sight of the child, for reading, and an empty /tmp."""
    shown = ["/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc/ld.so.cache", "/etc/alternatives", sys.base_prefix,
             sys.prefix, matplotlib.get_cachedir()]
    command = ["bwrap", "--unshare-ipc", "--unshare-net", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try",
               "--die-with-parent", "--new-session", "--cap-drop", "ALL",
               "--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--size", str(256 << 20), "--tmpfs", "/tmp"]
    if os.geteuid() == 0:                          # child.py becomes another user
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    for path in filter(os.path.exists, shown):
        for parent in reversed(pathlib.Path(path).parents):                  # to be entered by another user, too
            command += ["--dir", str(parent)]
        command += ["--ro-bind", path, path]
    command += ["--dir", "/grader"]
    for name in ("child.py", "wire.py"):
        command += ["--ro-bind", os.path.join(HERE, name), f"/grader/{name}"]
    return command


def why_not():
    """Why bubblewrap cannot be used here; None if it can."""
    if sys.platform != "linux" or not shutil.which("bwrap"):
        return "bubblewrap is not installed"
    try:
        done = subprocess.run([*sandbox(), "true"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode:
        return (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
    return None


def refuse_without_sandbox(trusted):
    reason = None if trusted else why_not()
    if reason:
        raise GraderFault(f"Student code cannot be confined here ({reason}). Install bubblewrap, or pass "
                          f"--trusted if nobody can do harm with this account.")

# ----------------------------------------------------------------------------------------
# The child

MAKE = {"Judgement": Judgement, "Item": Item}
ENDED = "the process ended without an answer (out of memory or time, or it left by itself)"


def clean(text, length=400):
    """Text that a child has chosen: without control characters and surrogates, and cut."""
    return "".join(c if c.isprintable() else "?" for c in str(text))[:length]


class Child:
    """A process that answers calls of functions of a module. files: {path: source}, all of its code; kind: of its
    limits, see child.py; seconds: for all of its answers together."""

    def __init__(self, files, file, trusted, kind="problem", seconds=ANSWERS):
        program = [sys.executable, "-I", os.path.join(HERE, "child.py") if trusted else "/grader/child.py", kind]
        env = {"PATH": os.environ.get("PATH", ""), "FONTS": matplotlib.get_cachedir(), "PYTHONUTF8": "1",
               "CUDA_VISIBLE_DEVICES": ""}         # on a CPU: CUDA takes more addresses than a child may have
        for name in {"SYSTEMROOT", "TEMP", "TMPDIR"} & set(os.environ) if trusted else ():
            env[name] = os.environ[name]
        if kind == "problem":
            env["OMP_NUM_THREADS"] = "1"
        self.late, self.timer = False, None
        try:
            self.process = subprocess.Popen(program if trusted else [*sandbox(), *program], stdin=subprocess.PIPE,
                                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env,
                                            start_new_session=True)
        except OSError as error:
            raise GraderFault(f"A child cannot be started: {error}") from None
        try:
            self.limit(START)
            if "started" not in self.receive(start=True):
                raise GraderFault("A child did not start as it should.")
            self.limit(seconds)
            value_of(self.request({"files": files, "file": file,
                                   "module": file.removesuffix(".py").replace("/", ".")}), "ready")
        except BaseException:
            self.close()
            raise

    def limit(self, seconds):
        """From now on it has so many seconds, whatever it or we are doing."""
        if self.timer:
            self.timer.cancel()
        self.seconds, self.timer = seconds, threading.Timer(seconds, self.end, [True])
        self.timer.daemon = True
        self.timer.start()

    def end(self, late=False):
        """End it, with all that it has started in its sandbox or its group of processes."""
        self.late = self.late or late
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL) if hasattr(os, "killpg") else self.process.kill()

    def gone(self, start):
        if start:
            self.end()
            said = self.process.stderr.read(10_000).decode(errors="replace").strip().splitlines()
            raise GraderFault(f"A child cannot be started: {clean(said[-1]) if said else 'it was too slow'}")
        if self.late:
            raise TimedOut(f"no answer within {self.seconds} seconds")
        raise Crashed(ENDED)

    def receive(self, start=False):
        """The next message, a dict."""
        line = self.process.stdout.readline(LIMIT)
        if not line.endswith(b"\n"):
            if len(line) == LIMIT:
                raise Crashed("the answer has no end")
            self.gone(start)
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
            self.gone(start=False)
        return self.receive()

    def close(self):
        """Without requests it clears up and ends by itself, or else now."""
        self.timer.cancel()
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):     # what was not sent
                stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        self.end()
        self.process.wait()
        self.process.stderr.close()


class Ask:
    """Calls a function of a child: ask(*args) -> its answer; ask.grad(which, *args) -> answer, gradients."""

    def __init__(self, child, function):
        self.child, self.function = child, function

    def __call__(self, *args, **kwargs):
        return self.call(args, kwargs, [])

    def grad(self, which, *args):
        return self.call(args, {}, which)

    def call(self, args, kwargs, grad):
        return lists(value_of(self.child.request(self.message(pack(list(args)), pack(kwargs), grad)), "value"))

    def message(self, args, kwargs, grad=()):
        return {"kind": "call", "function": self.function, "args": args, "kwargs": kwargs, "grad": list(grad)}


def value_of(reply, name):
    if "error" in reply:
        raise Crashed(clean(reply["error"]))
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

    def __init__(self, submission, seed, trusted):
        self.submission, self.seed, self.trusted, self.results = submission, seed, trusted, {}

    def with_child(self, files, file, use):
        """use(child), and whatever happens, nothing is left of it."""
        child = Child(files, file, self.trusted)
        try:
            return use(child)
        finally:
            child.close()

    def grade(self, problem):
        """-> Result"""
        waiting = [id for id in needs_of(problem) if self.results[id].state != "passed"]
        if waiting:
            return Result(problem, f"waits for {waiting[0]}", 0,
                          f"{BY_ID[waiting[0]].name} has to be right first")
        rng = random.Random(seed_of("inputs", self.seed, problem.id))
        try:
            with PARSER:
                files = files_for(self.submission, problem)
            if problem.target:
                return self.grade_test(problem, files, rng)
            self.with_child(files, problem.file,
                            lambda child: checks.of(problem.id)(Ask(child, problem.name), rng))
            return Result(problem, "passed", problem.points)
        except checks.Wrong as wrong:
            return Result(problem, "wrong", 0, clean(wrong, 600))
        except NotStarted as error:
            return Result(problem, "not started", 0, str(error))
        except TimedOut as error:
            return Result(problem, "timed out", 0, str(error))
        except Crashed as error:
            return Result(problem, "crashed", 0, str(error))
        except (UserError, OSError):               # not the student's fault
            raise
        except Exception as error:                 # of a check that did not expect such an answer
            return Result(problem, "wrong", 0, f"the answer has an unexpected form ({type(error).__name__})")

    def grade_test(self, problem, files, rng):
        """A student's test: it must pass on right versions, and fail on wrong ones, points for each of these.

        It is run once for each version, in an order that nobody knows (see submission_seed) and with several
        right ones among them. The first run has a process of its own, so that a test which counts its runs
        gains nothing; the others share one, since to start a process takes a second. The versions run in a child,
        too.
        """
        target = BY_ID[problem.target]
        versions = [("right", source) for source in RIGHT[target.id]]
        versions += [(mutant.bug, mutant.source) for mutant in mutants_of(target.id)]
        rng.shuffle(versions)
        code = make.reading_code()
        code[target.file] += "".join("\n\n" + source.replace(f"def {target.name}(", f"def version_{i}(", 1)
                                     for i, (_, source) in enumerate(versions))

        def verdicts(which):
            return self.with_child(code, target.file, lambda asked: self.with_child(
                files, problem.file, lambda child: [
                    (versions[i][0], *run_test(child, problem.name, Ask(asked, f"version_{i}"))) for i in which]))

        found = verdicts([0]) + verdicts(range(1, len(versions)))
        complaints = [why for bug, fine, why in found if bug == "right" and not fine]
        if complaints:
            return Result(problem, "wrong", 0, f"it fails on a right {target.name}: {complaints[0]}")
        missed = sorted(bug for bug, fine, _ in found if bug != "right" and fine)
        wrong = sum(bug != "right" for bug, *_ in found)
        message = f"it catches {wrong - len(missed)} of {wrong} wrong versions" + (
            f"; not these: {', '.join(missed)}" if missed else "")
        return Result(problem, "wrong" if missed else "passed", problem.points * (wrong - len(missed)) // wrong,
                      message)


def run_test(child, name, version):
    """Run the student's test on a version, an Ask -> does it pass, why not."""
    reply, asked = child.request({"kind": "test", "function": name}), 0
    while "ask" in reply:
        asked += 1
        if len(json.dumps(reply)) > ASKED:
            raise checks.Wrong("a test asks about small inputs only, of 20,000 bytes at most")
        reply = child.request(version.child.request(version.message(reply["ask"], reply["kwargs"])))
    if "error" in reply:
        raise Crashed(clean(reply["error"]))
    if not asked:
        raise checks.Wrong("it calls what it tests", "it never calls the function that it is given")
    return "passed" in reply, clean(reply.get("failed", ""))

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


def grade(submission, seed=None, write=lambda results: None, only=None, trusted=False):
    """-> the results, in the order of the table; write(results) is called after each problem."""
    refuse_without_sandbox(trusted)
    grader = Grader(submission, submission_seed(submission) if seed is None else seed, trusted)
    problems = [p for p in PROBLEMS if only is None or p.id in only]         # with what they need
    with ThreadPoolExecutor(2) as pool:
        while len(grader.results) < len(problems):  # in waves: each problem behind those that it needs
            wave = [p for p in problems if p.id not in grader.results
                    and set(needs_of(p)) <= set(grader.results)]
            for result in pool.map(grader.grade, wave):
                grader.results[result.problem.id] = result
                write(in_order(grader.results))
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
    parser.add_argument("--trusted", action="store_true", help="without a sandbox: plain processes with limits")
    parser.add_argument("--out", help="a file, written anew after each problem; else the result is printed")
    args = parser.parse_args(argv)
    if not os.path.isdir(args.submission):
        raise UserError(f"There is no folder {args.submission}. Name the folder of a submission.")

    def write(results):
        if args.out:
            with new_file(args.out) as f:
                f.write(FORMATS[args.format](results) + "\n")

    results = grade(args.submission, args.seed, write, trusted=args.trusted)
    if not args.out:
        print(FORMATS[args.format](results))


if __name__ == "__main__":
    run_command(main)
