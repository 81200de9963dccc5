"""What every program here shares: clear errors, safe files, and what to compute on."""

import contextlib
import ctypes
import os
import sys
import timeit

import torch


class UserError(Exception):
    """A mistake that the user can mend. The message names it and the fix; no traceback is shown."""


def keep_freed_memory():
    """Let Linux's C library reuse the memory of freed tensors. It would otherwise return large blocks to the
    system, which clears them again for the next tensor: a fifth of the time of sampling."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_max = -1, -4          # names of settings, from malloc.h
        ctypes.CDLL(None).mallopt(mmap_max, 0)     # large blocks come from the heap, too
        ctypes.CDLL(None).mallopt(trim_threshold, 2 ** 31 - 1)               # which never shrinks


def run_command(main):
    """Run a program's main(argv). Bad input ends in one line on stderr and a non-zero exit code."""
    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):        # a console that has no emoji shows a ? in its place
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:                        # the reader, for instance `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())       # or Python's last flush fails, too
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit("\nStopped. (A run of spct.py goes on by the same command.)")
    except (UserError, OSError, NotImplementedError) as error:     # NotImplementedError: left to a student
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@contextlib.contextmanager
def new_file(path, mode="w"):
    """Open a file for writing that appears under its name when it is complete, or not at all."""
    try:
        with open(path + ".tmp", mode, encoding=None if "b" in mode else "utf-8") as f:
            yield f
        os.replace(path + ".tmp", path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(path + ".tmp")
        raise


def pick_device(wanted):
    """--device -> "cpu", "cuda" or "mps". By default, "auto", a GPU that can multiply, else the CPU."""
    if wanted == "auto":
        try:                                       # torch also lists GPUs for which it has no kernels
            torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda")
            return "cuda"
        except (RuntimeError, AssertionError):
            return "cpu"
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(wanted):
        usable = " or ".join(name for name in there if there[name])
        raise UserError(f"--device {wanted} is not available. Use {usable}.")
    return wanted


def pick_dtype(device):
    """The dtype of training: "bfloat16" where it clearly speeds up a matrix product, else "float32".

    Without bfloat16 instructions a processor emulates it, up to a hundred times slower. So we measure.
    """
    if device != "cpu":
        return "bfloat16" if device == "cuda" and torch.cuda.get_device_capability() >= (8, 0) else "float32"
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, w = torch.ones(2048, 128, dtype=dtype), torch.ones(128, 512, dtype=dtype)
        seconds[dtype] = min(timeit.repeat(lambda: x @ w, number=1, repeat=8))
    return "bfloat16" if 1.3 * seconds[torch.bfloat16] < seconds[torch.float32] else "float32"
