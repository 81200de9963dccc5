"""
The grader.

    python assignment/grade.py SUBMISSION                        # a folder with the student's files: a table
    python assignment/grade.py SUBMISSION --format gradescope --out results.json
    python assignment/grade.py SUBMISSION --format classroom50 --out result.json

The child answers, the parent judges. For each problem a child (child.py) gets a student copy, runs the
submission's files on top of it, and answers calls of one function. This process never imports or parses student
code. It makes the inputs, and computes what is right when the answer is there.

Children run in a sandbox of bubblewrap (Linux, package bubblewrap): they see Python and an empty folder, and have
no network. Without it, --trusted runs them as plain processes with limits, and not as root.
"""

import argparse
import contextlib
import inspect
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
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone

import matplotlib

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from assignment import checks, make
from assignment.checks import Failed
from assignment.child import LIMIT, pack, send, unpack
from assignment.gradescope import gradescope
from assignment.problems import BY_ID, PROBLEMS
from assignment.versions import RIGHT, WRONG
from data import UserError, new_file, run_command
from data.judgement import Judgement
from data.world import Item, seed_of

START, ANSWERS = 180, 20                           # seconds: to import torch; for all answers together
ASKED, LARGEST = 20_000, 1_000_000                 # numbers in a question of a student's test; bytes of a file


class GraderFault(UserError):
    """The grader itself failed. This ends the grading, and is never a mark."""


# ----------------------------------------------------------------------------------------
# The sandbox

SHOWN = ["/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc/ld.so.cache", "/etc/alternatives", sys.base_prefix,
         sys.prefix, matplotlib.get_cachedir()]    # for reading


def sandbox():
    """bubblewrap's part of a command: the child sees the paths in SHOWN, and an empty /tmp."""
    command = ["bwrap", "--unshare-ipc", "--unshare-net", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try",
               "--die-with-parent", "--new-session", "--cap-drop", "ALL",
               "--proc", "/proc", "--dev", "/dev"]
    for folder in ("/tmp", "/dev/shm"):
        command += ["--perms", "1777", "--size", str(256 << 20), "--tmpfs", folder]
    if os.geteuid() == 0:                          # child.py becomes another user
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    for path in filter(os.path.exists, SHOWN):
        for parent in reversed(pathlib.Path(path).parents):                  # to be entered by another user, too
            command += ["--dir", str(parent)]
        command += ["--ro-bind", path, path]
    command += ["--dir", "/grader", "--ro-bind", os.path.join(HERE, "child.py"), "/grader/child.py"]
    return [*command, "--remount-ro", "/dev", "--remount-ro", "/"]


def why_not():
    """Why bubblewrap cannot be used here; None if it can."""
    if sys.platform != "linux" or not shutil.which("bwrap"):
        return "bubblewrap is not installed"
    if any(pathlib.Path(HERE).is_relative_to(os.path.realpath(path)) for path in SHOWN):
        return f"{os.path.dirname(HERE)} lies in a folder that the sandbox has to show"
    try:
        done = subprocess.run([*sandbox(), "true"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode:
        return (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]


def refuse_without_sandbox(trusted):
    reason = None if trusted else why_not()
    if reason:
        raise GraderFault(f"Student code cannot be confined here ({reason}). Install bubblewrap, or pass "
                          f"--trusted if nobody can do harm with this account.")

# ----------------------------------------------------------------------------------------
# The child

MAKE = {"Judgement": Judgement, "Item": Item}


def clean(text, length=400):
    """Text that a child has chosen: without control characters and surrogates, and cut."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:length])


class Child:
    """A process that answers calls of functions of a module. ours, theirs: {path: source}, see child.py; kind: of
    its limits; seconds: for all of its answers together."""

    def __init__(self, ours, theirs, module, trusted, kind="problem", seconds=None):
        program = [sys.executable, "-I", os.path.join(HERE, "child.py") if trusted else "/grader/child.py", kind]
        env = {"PATH": os.environ.get("PATH", ""), "FONTS": matplotlib.get_cachedir(), "PYTHONUTF8": "1",
               "CUDA_VISIBLE_DEVICES": ""}         # on a CPU: CUDA takes more addresses than a child may have
        if trusted:
            env |= {name: os.environ[name] for name in ("SYSTEMROOT", "TEMP", "TMPDIR") if name in os.environ}
        if kind == "problem":
            env["OMP_NUM_THREADS"] = "1"
        self.late, self.timer = False, None
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = subprocess.Popen(program if trusted else [*sandbox(), *program], env=env,
                                        start_new_session=True, **pipes)
        try:
            self.limit(START)
            self.receive(start=True)
            self.limit(seconds or ANSWERS)
            value_of(self.request({"ours": ours, "theirs": theirs, "module": module}), "ready")
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

    def receive(self, start=False):
        """The next message, a dict."""
        line = self.process.stdout.readline(LIMIT)
        if line.endswith(b"\n") or len(line) == LIMIT:
            try:
                message = json.loads(line)
                assert isinstance(message, dict)
                return message
            except (ValueError, AssertionError, RecursionError):
                raise Failed("crashed", "the answer is no plain data") from None
        if start:
            self.end()
            said = self.process.stderr.read(10_000).decode(errors="replace").strip().splitlines()
            raise GraderFault(f"A child cannot be started: {clean(said[-1]) if said else 'it was too slow'}")
        if self.late:
            raise Failed("timed out", f"no answer within {self.seconds} seconds")
        raise Failed("crashed", "the process ended without an answer: out of memory or time, or it has left")

    def request(self, message):
        with contextlib.suppress(OSError):         # it is gone: then nothing comes back
            send(self.process.stdin, message)
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
    """Calls a function of a child: ask(args, which gradients) -> its answer, see child.call."""

    def __init__(self, child, function):
        self.child, self.function = child, function

    def __call__(self, args, grad=()):
        return value_of(self.reply(pack(list(args)), pack({}), grad), "value")

    def reply(self, args, kwargs, grad=()):
        return self.child.request({"kind": "call", "function": self.function, "args": args, "kwargs": kwargs,
                                   "grad": list(grad)})


def value_of(reply, name):
    """What a reply holds. Failed if a hole was met, or something was raised."""
    if "error" in reply:
        state, said = "not started" if reply.get("hole") else "crashed", reply.get("said")
        raise Failed(state, clean(reply["error"]), said and clean(said))
    try:
        return unpack(reply[name], MAKE)
    except Exception as error:                     # whatever it is, it is no answer
        raise Failed("crashed", f"the answer is no plain data ({type(error).__name__})") from None

# ----------------------------------------------------------------------------------------
# A submission

def own_file(submission, file):
    """The path of a submitted file, None if there is none: with its folder or without, at most three folders deep.
    A plain file, and no link: that may lead to ours."""
    for depth in range(4):
        found = {path for name in (file, os.path.basename(file))
                 for path in pathlib.Path(submission).glob("*/" * depth + name)}
        if len(found) > 1:
            raise Failed("crashed", f"there are several files {file}: hand in one")
        for path in found:
            own = path.resolve().is_relative_to(pathlib.Path(submission).resolve())
            if not own or not path.is_file() or path.stat().st_size > LARGEST:
                raise Failed("crashed", f"{file} is no plain file of the submission, of 1 MB at most")
            return path


def read_submission(submission):
    """{file: source, or the Failed that says why it cannot be read}"""
    files = {}
    for file in sorted({problem.file for problem in PROBLEMS}):
        try:
            path = own_file(submission, file)
            if path is not None:
                with open(path, encoding="utf-8-sig") as f:
                    files[file] = f.read()
        except Failed as failed:
            files[file] = failed
        except (ValueError, PermissionError):
            files[file] = Failed("crashed", f"{file} is no UTF-8 text, or cannot be read")
    return files


def submission_seed(files):
    """Other inputs for each submission, the same ones at a regrade. Nobody can compute them where there is a file
    salt.txt beside this one, as in Gradescope's zip."""
    salt = pathlib.Path(HERE, "salt.txt")
    return seed_of("nanogrm", salt.read_text("utf-8") if salt.exists() else "", *map(str, files.values()))

# ----------------------------------------------------------------------------------------
# One problem

@dataclass
class Result:
    problem: object
    state: str                 # passed, wrong, not started, crashed, timed out, or waits for P7
    points: int = 0
    message: str = ""


class Grader:
    """files: see read_submission; seed: of the inputs."""

    def __init__(self, files, seed, trusted):
        self.files, self.seed, self.trusted = files, seed, trusted
        self.theirs = {file: text for file, text in files.items() if isinstance(text, str)}
        self.copy = make.student_code()

    def grade(self, problem, needed):
        """-> Result. needed: futures of the Results of the problems that have to be right first"""
        waiting = [future.result().problem.id for future in needed if future.result().state != "passed"]
        if waiting:
            return Result(problem, f"waits for {waiting[0]}", 0, f"{BY_ID[waiting[0]].name} has to be right first")
        rng = random.Random(seed_of("inputs", self.seed, problem.id))
        text = self.files.get(problem.file)
        if text is None:
            return Result(problem, "not started", 0, f"there is no {problem.file} in the submission")
        try:
            if isinstance(text, Failed):
                raise text
            if problem.target:
                return self.grade_test(problem)
            with closing(Child(self.copy, self.theirs, problem.module, self.trusted)) as child:
                checks.check(problem.id, Ask(child, problem.name), rng)
            return Result(problem, "passed", problem.points)
        except Failed as failed:
            return Result(problem, failed.state, 0, clean(failed, 600))
        except (UserError, OSError):               # not the student's fault
            raise
        except Exception as error:                 # of a check that did not expect such an answer
            return Result(problem, "wrong", 0, f"the answer has an unexpected form ({type(error).__name__})")

    def grade_test(self, problem):
        """A student's test: it must pass on right versions, and fail on wrong ones, points for each of these.

        It is run once for each version. The first run has a process of its own, so that a test which counts its
        runs gains nothing; the others share one, since to start a process takes a second. The versions run in a
        child, too.
        """
        target = BY_ID[problem.target]
        versions = [("right", inspect.getsource(checks.reference(target.id)))]
        versions += [("right", v.source) for v in RIGHT if v.problem == target.id and v.alike]
        versions += [(v.name, v.source) for v in WRONG[target.id]]
        random.SystemRandom().shuffle(versions)    # the test cannot know which one it meets
        code = make.reading_code()
        code[target.file] += "".join("\n\n" + source.replace(f"def {target.name}(", f"def version_{i}(", 1)
                                     for i, (_, source) in enumerate(versions))

        def verdicts(which):
            own = {problem.file: self.theirs[problem.file]}
            with closing(Child(code, {}, target.module, self.trusted)) as asked, \
                 closing(Child(self.copy, own, problem.module, self.trusted)) as child:
                asked.limit(ANSWERS)               # from now on, since the other one was not there yet
                return [(versions[i][0], *run_test(child, problem.name, Ask(asked, f"version_{i}")))
                        for i in which]

        found = verdicts([0]) + verdicts(range(1, len(versions)))
        for bug, fine, line in found:
            if bug == "right" and not fine:
                at = dict(enumerate(self.theirs[problem.file].splitlines(), 1)).get(line, "")
                return Result(problem, "wrong", 0,
                              f"it fails on a right {target.name} in line {line}: `{clean(at.strip())}`")
        missed = sorted(bug for bug, fine, _ in found if bug != "right" and fine)
        wrong = sum(bug != "right" for bug, *_ in found)
        message = f"it catches {wrong - len(missed)} of {wrong} wrong versions" + (
            f"; not these: {', '.join(missed)}" if missed else "")
        return Result(problem, "wrong" if missed else "passed", problem.points * (wrong - len(missed)) // wrong,
                      message)


def run_test(child, name, version):
    """Run the student's test on a version, an Ask -> does it pass, the line that fails."""
    reply, asked = child.request({"kind": "test", "function": name}), 0
    while "ask" in reply:
        asked += 1
        if len(json.dumps(reply)) > 25 * ASKED:
            raise Failed("wrong", f"a test asks about small inputs only, of {ASKED:,} numbers at most")
        reply = child.request(version.reply(reply["ask"], reply["kwargs"]))
    value_of({"value": 0, **reply}, "value")       # Failed, if it was left in another way
    if not asked:
        raise Failed("wrong", "it never calls the function that it is given")
    line = (reply.get("failed") or [0])[0]         # 0: it failed outside of the student's file
    return "passed" in reply, line if type(line) is int else 0


def needs_of(problem):
    """What has to be right before it, as far as it is a problem of this course."""
    return [id for id in problem.needs if id in BY_ID]


def grade(submission, seed=None, write=lambda results: None, only=None, trusted=False):
    """-> the results, in the order of the table; write(results) is called after each problem. only: ids of
    problems, with all that they need."""
    refuse_without_sandbox(trusted)
    files = read_submission(submission)
    grader = Grader(files, submission_seed(files) if seed is None else seed, trusted)
    problems = [p for p in PROBLEMS if only is None or p.id in only]
    futures, results = {}, []
    with ThreadPoolExecutor(2) as pool:
        for p in problems:                         # what a problem needs stands above it
            if not p.target:
                futures[p.id] = pool.submit(grader.grade, p, [futures[id] for id in needs_of(p)])
        for p in problems:                         # tests come last: each takes two children, and so much memory
            results.append(futures[p.id].result() if p.id in futures else grader.grade(p, []))
            write(results)
    return results

# ----------------------------------------------------------------------------------------
# Writers: one list of results, three forms

def totals(results):
    return sum(r.points for r in results), sum(p.points for p in PROBLEMS)


def table(results):
    rows = [f"{r.problem.id:4s} {r.points:3d} of {r.problem.points:2d}  {r.state:13s} {r.problem.title}"
            + (f"\n{'':16s}{r.message}" if r.message else "") for r in results]
    return "\n".join(rows) + "\n{} of {} points".format(*totals(results))


def classroom50(results):
    """classroom50/result/v1; its bundle is public, so that no message goes into it."""
    variables = {key: os.environ.get(name, "") for key, name in (
        ("classroom", "CLASSROOM"), ("assignment", "ASSIGNMENT"), ("submission", "SUBMISSION_TAG"),
        ("commit", "COMMIT_URL"), ("release", "RELEASE_URL"), ("review", "REVIEW_URL"))}
    score, most = totals(results)
    tests = [{"test-name": f"{r.problem.id} {r.problem.title}", "passed": r.state == "passed",
              "score": r.points, "max-score": r.problem.points} for r in results]
    return {"schema": "classroom50/result/v1", **variables, "datetime": datetime.now(timezone.utc).isoformat(),
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
