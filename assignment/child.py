"""
The process that student code runs in. It answers calls, and decides nothing.

Two processes in fact: the first watches (it never runs student code), the second, in a session of its own, as
another user if it can be, and with limits, imports the module and answers. Whatever the second one leaves
behind, forks that ran away included, becomes a child of the first, which ends it.

    python child.py FILE NAME UID KIND    # speaks lines of JSON over stdin and stdout: see wire.py

It lies in a folder with wire.py and `copy`, a student copy. If it can be another user, this folder is all of
the file system that student code sees: neither the solutions nor what other students handed in.
"""

import ctypes
import importlib
import json
import os
import signal
import sys
import traceback

# What student code may import is loaded before it is confined: another user may not be able to read it.
LIBRARY = """argparse ast base64 bisect collections contextlib copy ctypes dataclasses decimal difflib enum
    fractions functools glob hashlib heapq inspect io itertools json math operator os pickle
    platform random re shutil statistics string sys textwrap time timeit typing unittest warnings zlib
    matplotlib.figure numpy numpy.random numpy.testing pytest tiktoken torch tqdm""".split()
LAZY = ["torch._dynamo", "torch.utils.serialization"]    # what torch itself loads when it first trains

HERE = os.path.dirname(os.path.abspath(__file__))
LIMITS = {"problem": {"RLIMIT_CPU": 25, "RLIMIT_AS": 6 << 30, "RLIMIT_FSIZE": 8 << 20, "RLIMIT_NOFILE": 64,
                      "RLIMIT_CORE": 0},
          "speedrun": {"RLIMIT_CPU": 4 * 3600, "RLIMIT_AS": 12 << 30, "RLIMIT_FSIZE": 256 << 20,
                       "RLIMIT_NOFILE": 64, "RLIMIT_CORE": 0}}
PROCESSES = 64                                     # for a user of its own


def confine(uid, kind):
    """The library, then limits, a file system and a user of its own: uid 0 means that there is none to be
    had. -> the folder as it is seen from now on."""
    for name in LIBRARY + (LAZY if kind == "speedrun" else []):
        importlib.import_module(name)
    half = sys.modules["torch"].ones(1, 1).half()
    half @ half                                    # for this torch reads once what CPU it is, in /proc
    if os.name != "posix":
        return HERE
    import resource
    os.setsid()
    for name, value in LIMITS[kind].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    if not uid:
        return HERE
    resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES, PROCESSES))
    os.chroot(HERE)
    os.chdir("/")
    os.environ.update(HOME="/", TMPDIR="/")
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    return "/"


class Model:
    """A stand-in for a GPT, for token_logits: a hidden state is a linear image of all tokens so far, but for
    the padding."""

    def __init__(self, embed, out):
        self.embed, self.out = embed, out          # (V, C), (C, V)

    def __call__(self, ids, padding=None):
        x = self.embed[ids]                        # (B, T, C)
        if padding is not None:
            column = x.new_ones(ids.shape).cumsum(dim=1) - 1
            x = x * (column >= padding[:, None])[:, :, None]
        return x.cumsum(dim=1)

    def logits(self, x):
        return (x @ self.out).float()

    def requires_grad_(self):
        self.embed.requires_grad_()

    @property
    def grad(self):
        return self.embed.grad


class Channel:
    """Requests in, answers out, over descriptors that print() and input() do not use."""

    def __init__(self):
        self.inp, self.out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)

    def ask(self, message):
        from wire import send
        send(self.out, message)
        return json.loads(self.inp.readline() or "null")


def where(error, file, said=True):
    """'IndexError: list index out of range (at `return x[9]`)': the line, since its number is another one in
    the student's file. said: with what the error says."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.line for frame in frames if frame.filename.endswith(file)]
    text = type(error).__name__ + (f": {error}".strip().split("\n")[0][:300] if said else "")
    return text + (f" (at `{lines[-1][:80]}`)" if lines else "")


def serve(file, name, uid, kind):
    channel = Channel()
    folder = confine(uid, kind)
    sys.path[:0] = [os.path.join(folder, "copy"), folder]
    try:
        import torch
        from wire import pack, unpack
        if kind == "problem":
            torch.set_num_threads(1)
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))      # of the copy
        function = getattr(module, name)
        from data.judgement import Judgement
        from data.tokenizer import Tokenizer
        from data.world import Item
        make = {"Judgement": Judgement, "Item": Item, "Model": Model, "Words": Tokenizer}
        request = channel.ask({"ready": True})
    except BaseException as error:                 # SystemExit, too: to leave is no answer
        channel.ask({"error": where(error, file)})
        return
    while request is not None:
        try:
            args = unpack(request["args"], make)
            kwargs = unpack(request.get("kwargs", {"dict": []}), make)
            if request["kind"] == "test":          # a student's test: what it tests, the grader computes
                reply = run_test(channel, function, pack, make)
            else:
                reply = {"value": pack(call(function, args, kwargs, request["grad"]))}
        except BaseException as error:
            reply = {"error": where(error, file)}
        request = channel.ask(reply)


def call(function, args, kwargs, grad):
    """The function's answer, and on request its gradients: of the sum of the answer (its first part, if there
    are several), with respect to the arguments `grad`."""
    for i in grad:
        args[i].requires_grad_()
    value = function(*args, **kwargs)
    if not grad:
        return value
    (value[0] if isinstance(value, tuple) else value).sum().backward()
    return value, [args[i].grad for i in grad]


def run_test(channel, function, pack, make):
    """Run a student's test on a function that is not here: each call is answered by the grader."""
    from wire import unpack

    def stub(*args, **kwargs):
        answer = channel.ask({"ask": pack(list(args)), "kwargs": pack(kwargs)})
        if answer is None or "error" in answer:
            raise RuntimeError("the function that is tested failed: " + str(answer and answer["error"]))
        return unpack(answer["value"], make)

    try:
        function(stub)
    except Exception as error:
        # not what it says: that may be what the grader's own function has answered
        return {"failed": where(error, "mytests.py", said=False)}
    return {"passed": True}


def end_all(uid):
    """End every descendant: orphans have become our own children, see PR_SET_CHILD_SUBREAPER. A fork bomb
    forks faster than one can end its processes one by one: all that its user runs is ended at once."""
    if uid:
        pid = os.fork()
        if pid == 0:
            os.setuid(uid)
            os.kill(-1, signal.SIGKILL)
            os._exit(0)
        os.waitpid(pid, 0)
    while True:
        try:
            with open(f"/proc/self/task/{os.getpid()}/children") as f:
                children = [int(pid) for pid in f.read().split()]
        except OSError:
            children = []
        for pid in children:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        try:
            if os.waitpid(-1, 0 if children else os.WNOHANG)[0] == 0 and not children:
                return
        except ChildProcessError:
            return


def main(file, name, uid, kind):
    uid = int(uid)
    if os.name != "posix":                         # no limits to be had
        serve(file, name, uid, kind)
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)    # PR_SET_CHILD_SUBREAPER
    pid = os.fork()
    if pid == 0:
        serve(file, name, uid, kind)
        os._exit(0)

    def stop(*_):
        end_all(uid)
        os._exit(1)

    signal.signal(signal.SIGTERM, stop)
    os.close(0)
    os.close(1)                                    # the grader sees the end as soon as the second one ends
    os.waitpid(pid, 0)
    end_all(uid)


if __name__ == "__main__":
    main(*sys.argv[1:])
