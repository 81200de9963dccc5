"""
The process that student code runs in. It answers calls, and decides nothing.

    python -I child.py KIND        # KIND: of its limits. It speaks lines of JSON over stdin and stdout

grade.py starts it, mostly in a sandbox, and sends it all code. What crosses the border is plain data and tensors,
and nothing else: of an object that is a kind of list, dict or number, only what it holds gets through.
"""

import ast
import contextlib
import importlib.abc
import importlib.util
import json
import linecache
import os
import shutil
import sys
import tempfile
import traceback
from fractions import Fraction

import numpy as np
import torch

LIMIT = 1_000_000                                  # bytes of one message
LIMITS = {"problem": {"CPU": 25, "AS": 6 << 30, "FSIZE": 8 << 20, "NOFILE": 64, "CORE": 0},
          "speedrun": {"CPU": 4 * 3600, "AS": 12 << 30, "FSIZE": 256 << 20, "NOFILE": 64, "CORE": 0}}
LIBRARY = ["matplotlib.figure", "pytest", "tiktoken", "tqdm"]

# ----------------------------------------------------------------------------------------
# The border

OBJECTS = {"Judgement": "item sample order seed prompt ids logp status principles critiques scores meta".split(),
           "Item": "id domain query responses gold cue split truth".split(), "Tokenizer": ["ranks"],
           "Model": ["embed", "out"]}              # name -> the fields that cross


class Model(torch.nn.Module):
    """A stand-in for a GPT, for token_logits: a hidden state is the sum of the embeddings of all tokens so far,
    but for the padding."""

    def __init__(self, embed, out):
        super().__init__()
        self.embed, self.out, self.device = embed, out, embed.device         # (V, C), (C, V)

    def forward(self, ids, padding=None):
        x = self.embed[ids]                        # (B, T, C)
        if padding is not None:
            x = x * (torch.arange(ids.size(1)) >= padding[:, None])[:, :, None]
        return x.cumsum(dim=1)

    def logits(self, x):
        return (x @ self.out).float()

    def requires_grad_(self):
        self.embed.requires_grad_()

    @property
    def grad(self):
        return self.embed.grad


def pack(x):
    """Data -> what json.dumps takes. TypeError for what may not cross."""
    if x is None or type(x) in (bool, int, float, str):
        return x
    if isinstance(x, (np.ndarray, np.generic)):
        return pack(x.tolist())
    if isinstance(x, (float, Fraction)):
        return float(x)
    if isinstance(x, int):
        return int(x)
    if isinstance(x, list):
        return [pack(value) for value in list.__iter__(x)]
    if isinstance(x, tuple):
        return {"tuple": [pack(value) for value in tuple.__iter__(x)]}
    if isinstance(x, dict):
        return {"dict": [[pack(key), pack(value)] for key, value in dict.items(x)]}
    if type(x) is bytes:
        return {"bytes": x.hex()}
    if type(x) in (torch.Tensor, torch.nn.Parameter):
        return {"tensor": [x.flatten().tolist(), list(x.shape), str(x.dtype).removeprefix("torch.")]}
    if type(x).__name__ in OBJECTS:
        fields = {name: getattr(x, name) for name in OBJECTS[type(x).__name__]}
        return {"object": [type(x).__name__, pack(fields)]}
    raise TypeError(f"expected plain data or a tensor, found {type(x).__name__}")


def unpack(x, make):
    """The other way round. make: {name of an object: function of its fields}"""
    if isinstance(x, list):
        return [unpack(value, make) for value in x]
    if not isinstance(x, dict):
        return x
    (kind, value), = x.items()
    if kind == "tuple":
        return tuple(unpack(v, make) for v in value)
    if kind == "dict":
        return {unpack(k, make): unpack(v, make) for k, v in value}
    if kind == "bytes":
        return bytes.fromhex(value)
    if kind == "tensor":
        numbers, shape, dtype = value
        return torch.tensor(numbers, dtype=getattr(torch, dtype)).view(shape)
    name, fields = value
    return make[name](**unpack(fields, make))


def send(stream, message):
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


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

# ----------------------------------------------------------------------------------------
# Student code

class Loader(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports modules from {path: source}. On top of a file of ours, the student's one is run, if there is one:
    statement by statement, so that one that fails costs only what needs it. failed: what went wrong then."""

    def __init__(self, ours, theirs):
        self.ours, self.theirs, self.failed = ours, theirs, []

    def path(self, name):
        base = name.replace(".", "/")
        return next((path for path in (base + ".py", base + "/__init__.py")
                     if path in self.ours or path in self.theirs), None)

    def find_spec(self, name, path=None, target=None):
        file = self.path(name)
        if file is not None:
            return importlib.util.spec_from_loader(name, self, is_package=file.endswith("__init__.py"))

    def exec_module(self, module):
        path = module.__file__ = self.path(module.__name__)
        exec(compile(self.ours.get(path, ""), path, "exec"), vars(module))
        if path in self.theirs:
            self.run(self.theirs[path], "submission/" + path, vars(module))

    def run(self, source, path, space):
        linecache.cache[path] = len(source), None, source.splitlines(keepends=True), path    # for traceback
        try:
            tree = ast.parse(source, path)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            line = getattr(error, "lineno", "?")
            self.failed.append(f"{path} does not parse: {type(error).__name__}, line {line}")
            return
        future = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
        for node in tree.body:
            try:
                exec(compile(ast.Module([*future, node], []), path, "exec"), space)
            except BaseException as error:         # SystemExit, too
                self.failed.append(f"{path} cannot be imported as it is: {where(error)}")


def lines_of(error):
    """The places in the student's files that an error went through."""
    return [at for at in traceback.extract_tb(error.__traceback__) if at.filename.startswith("submission/")]


def where(error):
    """'IndexError: list index out of range (line 7: `return x[9]`)'"""
    text = f"{type(error).__name__}: {error}".strip().split("\n")[0][:300]
    return text + "".join(f" (line {at.lineno}: `{(at.line or '')[:80]}`)" for at in lines_of(error)[-1:])


def is_hole(error):
    return isinstance(error, NotImplementedError) and str(error).endswith("see the handout")


def failure(error, failed):
    """What the grader is told of an error. failed: what went wrong at the import of the student's file."""
    if is_hole(error):
        broken = [text for text in failed if "does not parse" in text]
        return {"error": broken[0]} if broken else {"error": "; ".join([str(error), *failed[:1]]), "hole": True}
    why = failed[:1] if isinstance(error, NameError) else []                 # why a name is missing
    return {"error": "; ".join([where(error), *why]),
            "said": str(error)[:300] if isinstance(error, ValueError) else None}


def call(function, args, kwargs, grad):
    """A function's answer, and the gradients of some combination of the numbers in it (in its first part, if there
    are several) with respect to the arguments `grad`."""
    before = json.dumps(pack(list(args)))
    for i in grad:
        args[i].requires_grad_()
    value = function(*args, **kwargs)
    if json.dumps(pack(list(args))) != before:
        raise RuntimeError("it changes its arguments")
    if not grad:
        return value
    first = value[0] if isinstance(value, (tuple, list)) else value
    weights = torch.arange(1.0, first.numel() + 1).cos().view(first.shape)
    (first * weights).sum().backward()
    return value, [args[i].grad for i in grad]


def run_test(channel, function, make):
    """Run a student's test on a function that is not here: each call is answered by the grader."""
    def stub(*args, **kwargs):
        answer = channel.ask({"ask": pack(list(args)), "kwargs": pack(kwargs)})
        if answer is None or "error" in answer:
            raise RuntimeError("the function that is tested failed: " + str(answer and answer["error"]))
        return unpack(answer["value"], make)

    try:
        function(stub)
    except BaseException as error:                 # pytest's failures are no Exceptions
        if is_hole(error) or isinstance(error, NameError):
            raise
        # Not what it says, nor its class: they may be what the function has answered.
        return {"failed": [at.lineno for at in lines_of(error)[-1:]]}
    return {"passed": True}


def serve(channel, request):
    """Import the module of the first request, and answer the calls of its functions that follow."""
    loader = Loader(request["ours"], request["theirs"])
    sys.meta_path.insert(0, loader)
    module, make, reply = None, {"Model": Model}, {"ready": True}
    try:
        module = importlib.import_module(request["module"])
        for name, place in (("Judgement", "judgement"), ("Tokenizer", "tokenizer"), ("Item", "world")):
            make[name] = getattr(importlib.import_module("data." + place), name)
    except BaseException as error:                 # SystemExit, too: to leave is no answer
        reply = failure(error, loader.failed)
    while (asked := channel.ask(reply)) is not None:
        try:
            function = getattr(module, asked["function"], None)
            if function is None:
                raise NotImplementedError(f"there is no {asked['function']}: see the handout")
            if asked["kind"] == "test":
                reply = run_test(channel, function, make)
            else:
                args, kwargs = unpack(asked["args"], make), unpack(asked["kwargs"], make)
                reply = {"value": pack(call(function, args, kwargs, asked["grad"]))}
            json.dumps(reply)                      # a number of 5,000 digits is no data
        except BaseException as error:
            path = "submission/" + str(loader.path(request["module"]))
            reply = failure(error, [text for text in loader.failed if text.startswith(path)])

# ----------------------------------------------------------------------------------------
# The process

def confine(kind):
    """Limits. Where the grader is root, this process also becomes another user."""
    if os.name != "posix":
        return                                     # Windows has none of this
    import resource
    for name, value in LIMITS[kind].items():
        with contextlib.suppress(ValueError, OSError):       # macOS refuses a limit of addresses
            resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
    root = os.geteuid() == 0
    if root or __file__.startswith("/grader"):     # elsewhere all processes of this user count
        resource.setrlimit(resource.RLIMIT_NPROC, (64, 64) if root else (512, 512))
    if root:
        user = 61000 + int.from_bytes(os.urandom(2), "big") % 4000
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
        if not os.access(os.__file__, os.R_OK):
            raise OSError(f"other users cannot read {os.__file__}")


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
    request = channel.ask({"started": True})
    os.dup2(os.open(os.devnull, os.O_RDWR), 2)
    if request is not None:
        serve(channel, request)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)                                    # without waiting for threads


if __name__ == "__main__":
    main(*sys.argv[1:])
