"""
The process that student code runs in. It answers calls, and decides nothing.

    python -I child.py KIND    # KIND: of its limits. It speaks lines of JSON over stdin and stdout: see wire.py

grade.py starts it, mostly in a sandbox, and sends it all files that it needs. Nothing is left on the disk.
"""

import contextlib
import importlib.abc
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import traceback

try:
    from assignment.wire import pack, send, unpack
except ModuleNotFoundError:                        # in the sandbox it lies beside this file
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from wire import pack, send, unpack

LIMITS = {"problem": {"RLIMIT_CPU": 25, "RLIMIT_AS": 6 << 30, "RLIMIT_FSIZE": 8 << 20, "RLIMIT_NOFILE": 64,
                      "RLIMIT_CORE": 0},
          "speedrun": {"RLIMIT_CPU": 4 * 3600, "RLIMIT_AS": 12 << 30, "RLIMIT_FSIZE": 256 << 20,
                       "RLIMIT_NOFILE": 64, "RLIMIT_CORE": 0}}
PROCESSES = 64
LIBRARY = ["matplotlib.figure", "numpy", "pytest", "tiktoken", "torch", "tqdm"]


def confine(kind):
    """Limits. Where the grader is root, this process also becomes another user."""
    if os.name != "posix":
        return                                     # Windows has none of this
    import resource
    for name, value in LIMITS[kind].items():
        try:
            resource.setrlimit(getattr(resource, name), (value, value))
        except (ValueError, OSError):              # macOS refuses a limit of addresses
            pass
    if os.geteuid() == 0:
        resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES, PROCESSES))
        user = 61000 + int.from_bytes(os.urandom(2), "big") % 4000
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
        if not os.access(os.__file__, os.R_OK):
            raise OSError(f"other users cannot read {os.__file__}")


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
        for fd in (0, 1):
            os.dup2(null, fd)

    def ask(self, message):
        """-> the next request; None if there is none."""
        send(self.out, message)
        return json.loads(self.inp.readline() or "null")


def where(error, file, said=True):
    """'IndexError: list index out of range (at `return x[9]`)': the line, since its number is another one in
    the student's file. said: with what the error says."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.line for frame in frames if frame.filename.endswith(file)]
    text = type(error).__name__ + (f": {error}".strip().split("\n")[0][:300] if said else "")
    return text + (f" (at `{lines[-1][:80]}`)" if lines else "")


def contents(args):
    """What arguments hold, to be compared: of those that are plain data or tensors."""
    found = []
    for arg in args:
        with contextlib.suppress(TypeError):       # a Model or a Tokenizer
            found.append(json.dumps(pack(arg)))
    return found


def call(function, args, kwargs, grad):
    """The function's answer, and on request its gradients: of the sum of the answer (its first part, if there
    are several), with respect to the arguments `grad`."""
    before = contents(args)
    for i in grad:
        args[i].requires_grad_()
    value = function(*args, **kwargs)
    if contents(args) != before:
        raise RuntimeError("it changes its arguments")
    if not grad:
        return value
    (value[0] if isinstance(value, tuple) else value).sum().backward()
    return value, [args[i].grad for i in grad]


class Memory(importlib.abc.MetaPathFinder, importlib.abc.ExecutionLoader):
    """Imports modules from {path: source}."""

    def __init__(self, files):
        self.files = files

    def get_filename(self, name):
        base = name.replace(".", "/")
        for path in (base + ".py", base + "/__init__.py"):
            if path in self.files:
                return path
        raise ImportError(name)

    def find_spec(self, name, path=None, target=None):
        try:
            return importlib.util.spec_from_file_location(name, self.get_filename(name), loader=self)
        except ImportError:
            return None                            # one of the others may know it

    def is_package(self, name):
        return self.get_filename(name).endswith("__init__.py")

    def get_source(self, name):
        return self.files[self.get_filename(name)]


def run_test(channel, function, make):
    """Run a student's test on a function that is not here: each call is answered by the grader."""
    def stub(*args, **kwargs):
        answer = channel.ask({"ask": pack(list(args)), "kwargs": pack(kwargs)})
        if answer is None or "error" in answer:
            raise RuntimeError("the function that is tested failed: " + str(answer and answer["error"]))
        return unpack(answer["value"], make)

    try:
        function(stub)
    except SystemExit:
        raise                                      # to leave is no answer
    except BaseException as error:                 # pytest's failures are no Exceptions
        # not what it says: that may be what the function has answered
        return {"failed": where(error, "mytests.py", said=False)}
    return {"passed": True}


def serve(channel, request):
    """Import the module of the first request, and answer the calls of its functions that follow."""
    sys.meta_path.insert(0, Memory(request["files"]))
    try:
        module = importlib.import_module(request["module"])
        from data.judgement import Judgement
        from data.tokenizer import Tokenizer
        from data.world import Item
        make = {"Judgement": Judgement, "Item": Item, "Model": Model, "Words": Tokenizer}
        reply = {"ready": True}
    except BaseException as error:                 # SystemExit, too: to leave is no answer
        channel.ask({"error": where(error, request["file"])})
        return
    while (asked := channel.ask(reply)) is not None:
        try:
            function = getattr(module, asked["function"])
            if asked["kind"] == "test":
                reply = run_test(channel, function, make)
            else:
                args, kwargs = unpack(asked["args"], make), unpack(asked["kwargs"], make)
                reply = {"value": pack(call(function, args, kwargs, asked["grad"]))}
        except BaseException as error:
            reply = {"error": where(error, request["file"])}


def main(kind):
    channel = Channel()
    confine(kind)
    folder = tempfile.mkdtemp()                    # empty but for matplotlib's list of fonts, which takes seconds
    os.environ["MPLCONFIGDIR"] = os.path.join(folder, "fonts")
    with contextlib.suppress(OSError):
        shutil.copytree(os.environ["FONTS"], os.environ["MPLCONFIGDIR"])
    os.chdir(folder)
    for name in LIBRARY:                           # what takes long is not the student's time
        importlib.import_module(name)
    if kind == "problem":
        sys.modules["torch"].set_num_threads(1)
    request = channel.ask({"started": True})
    os.dup2(os.open(os.devnull, os.O_RDWR), 2)
    if request is not None:
        serve(channel, request)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)                                    # without waiting for threads


if __name__ == "__main__":
    main(*sys.argv[1:])
