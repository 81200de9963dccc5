"""
Attacks on the grader, each as what a student might hand in for P17, the function `vote_sum`, with helpers.

selfcheck.py grades each of them inside an otherwise right submission: it gets 0 for its problem, costs no
other one, and leaves no process, no file and no changed result behind.
"""

ATTACKS = {
    "says what cannot be printed": """
def vote_sum(ballots):
    raise ValueError("\\ud800 \\x1b[2J" * 1000)
""",
    "leaves something in shared memory": """
def vote_sum(ballots):
    import os
    try:
        with open("/dev/shm/nanogrm", "w") as f:
            f.write("here")
        os.chmod("/dev/shm/nanogrm", 0o777)
    except OSError:
        pass
    return [0]
""",
    "asks another child": """
def vote_sum(ballots):
    import socket
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.bind("\\0nanogrm-student")
    s.settimeout(0.2)
    return [s.recv(10)]
""",
    "prints that it has passed": """
def vote_sum(ballots):
    print("PASSED\\n100 of 100 points")
    return []
""",
    "skips": """
def vote_sum(ballots):
    import pytest
    pytest.skip("no time")
""",
    "leaves": """
def vote_sum(ballots):
    import os
    os._exit(0)
""",
    "leaves politely": """
def vote_sum(ballots):
    raise SystemExit(0)
""",
    "equals everything": """
class Yes:
    def __eq__(self, other):
        return True
    def __ne__(self, other):
        return False


def vote_sum(ballots):
    return Yes()
""",
    "a list that equals everything": """
class Yes(list):
    def __eq__(self, other):
        return True


def vote_sum(ballots):
    return Yes([1, 2])
""",
    "a class with the name of ours": """
class Judgement:
    def __init__(self):
        self.scores = [1]
        self.extra = 7


def vote_sum(ballots):
    return Judgement()
""",
    "a tensor subclass": """
import torch as pytorch


class Yes(pytorch.Tensor):
    pass


def vote_sum(ballots):
    return pytorch.zeros(2).as_subclass(Yes)
""",
    "never ends": """
def vote_sum(ballots):
    while True:
        pass
""",
    "recurses": """
def vote_sum(ballots):
    return vote_sum([ballots])
""",
    "an answer that contains itself": """
def vote_sum(ballots):
    answer = []
    answer.append(answer)
    return answer
""",
    "endless output": """
def vote_sum(ballots):
    import sys
    while True:
        sys.stdout.write("x" * 100000)
""",
    "an endless answer": """
def vote_sum(ballots):
    return [1] * 20_000_000
""",
    "fills the pipe with its own messages": """
def vote_sum(ballots):
    import os
    for fd in range(3, 64):
        try:
            os.write(fd, b'{"value": [11, 16]}\\n' * 50)
        except OSError:
            pass
    return [0]
""",
    "an endless line in the pipe": """
def vote_sum(ballots):
    import os
    for fd in range(3, 64):
        try:
            while True:
                os.write(fd, b"[" * 60000)
        except OSError:
            pass
""",
    "fills the memory": """
def vote_sum(ballots):
    hoard = []
    while True:
        hoard.append(bytearray(50_000_000))
""",
    "fills the disk": """
def vote_sum(ballots):
    with open("/tmp/hoard", "wb") as f:
        while True:
            f.write(bytes(1_000_000))
""",
    "leaves a process that writes later": """
def vote_sum(ballots):
    import os
    import time
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while True:
                time.sleep(0.2)
                with open("/tmp/late", "w") as f:
                    f.write("here")
        os._exit(0)
    return [0]
""",
    "a fork bomb": """
def vote_sum(ballots):
    import os
    while True:
        try:
            os.fork()
        except OSError:
            pass
""",
    "leaves a thread": """
def vote_sum(ballots):
    import threading
    import time
    threading.Thread(target=time.sleep, args=(1000,)).start()
    return [0]
""",
    "kills": """
def vote_sum(ballots):
    import os
    for pid in (os.getppid(), -1):
        try:
            os.kill(pid, 9)
        except OSError:
            pass
    return [0]
""",
    "looks for the solution on the disk": """
def vote_sum(ballots):
    import os
    import re
    for folder in (os.getcwd(), "/work", "/autograder", "/home", "/root", "/tmp"):
        for parent, _, files in os.walk(folder):
            for name in files:
                if name in ("judgement.py", "checks.py", "mutants.py", "grade.py"):
                    try:
                        text = open(os.path.join(parent, name)).read()
                    except OSError:
                        continue
                    body = r"def vote_sum\\(ballots\\):(?:(?!NotImplemented|import re).)*?\\n\\n\\n"
                    found = re.search(body, text, re.S)
                    if found:
                        space = {}
                        exec(found[0], space)
                        return space["vote_sum"](ballots)
    return [0]
""",
    "looks through the stack": """
def vote_sum(ballots):
    import sys
    frame = sys._getframe()
    while frame:
        for name, value in frame.f_locals.items():
            if "expected" in name or "reference" in name:
                return value
        frame = frame.f_back
    return [0]
""",
    "patches what the grader uses": """
import json as _json
import wire as _wire
PATCHED = setattr(_wire, "pack", lambda x: [11, 16])
ANSWER = '{"value": [11, 16], "ready": true, "passed": true}'
PATCHED = PATCHED, setattr(_json, "dumps", lambda *a, **k: ANSWER)


def vote_sum(ballots):
    return [PATCHED]
""",
    "works at import": """
HACKED = __import__("os").system("touch /tmp/hacked; (sleep 100; touch /tmp/hacked-later) &")


def vote_sum(ballots):
    return [HACKED]
""",
    "knows the examples": """
def vote_sum(ballots):
    known = {"[[3, 9], None, [8, 7]]": [11, 16], "[None, None]": None, "[[4, 2, 9]]": [4, 2, 9]}
    return known.get(str(ballots))
""",
    "writes into its own folder": """
def vote_sum(ballots):
    import os
    import sys
    for folder in [os.getcwd(), *sys.path]:
        for name in ("sitecustomize.py", "conftest.py", "wire.py", "child.py", "grade.pth"):
            try:
                open(os.path.join(folder, name), "w").write("raise SystemExit(0)")
            except OSError:
                pass
    return [0]
""",
}

# The same for T1: a test that has learned something else than to test.
TESTS = {
    "floods questions": """
def test_group_advantages(group_advantages):
    import torch
    while True:
        group_advantages(torch.ones(2, 4))
""",
    "answers itself and reads nothing": """
def test_group_advantages(group_advantages):
    import os
    while True:
        for fd in range(3, 10):
            try:
                os.write(fd, b'{"ask": [], "kwargs": {"dict": []}}\\n' * 100)
            except OSError:
                pass
""",
    "always passes": """
def test_group_advantages(group_advantages):
    import torch
    group_advantages(torch.ones(2, 4))
""",
    "always fails": """
def test_group_advantages(group_advantages):
    import torch
    group_advantages(torch.ones(2, 4))
    assert False
""",
    "never calls": """
def test_group_advantages(group_advantages):
    assert False
""",
    "asks for more than can be computed": """
def test_group_advantages(group_advantages):
    import torch
    group_advantages(torch.ones(1000, 1000))
""",
    "counts its runs": """
runs = []


def test_group_advantages(group_advantages):
    import torch
    group_advantages(torch.ones(2, 4))
    runs.append(1)
    assert len(runs) == 1
""",
}
