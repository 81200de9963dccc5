"""
What the grader looks for: for each problem a function that calls the student's one, ask(...), with random
inputs, and raises Wrong(property, example) if an answer lacks a property.

Properties first, since they can say what is wrong; a comparison with the reading copy's own function last.
What is expected is computed here, when the answer is there, and is never told.
"""

import importlib
import math

import torch

from assignment.problems import BY_ID


class Wrong(Exception):
    """property: which one is missing (mutants.py names it). example: a small input that shows it."""

    def __init__(self, property, example=""):
        super().__init__(property + (f"; for example {example}" if example else ""))
        self.property = property


def check(good, property, example=""):
    if not good:
        raise Wrong(property, str(example)[:300])


def reference(id):
    """The reading copy's own function for a problem."""
    problem = BY_ID[id]
    return getattr(importlib.import_module(problem.module), problem.name)


def of_shape(answer, shape, property, example=""):
    """A tensor of floats of this shape, all finite?"""
    check(type(answer) is torch.Tensor, f"{property}: it returns a tensor", example)
    check(tuple(answer.shape) == tuple(shape), f"{property}: the shape is {tuple(shape)}", example)
    check(not answer.is_floating_point() or bool(answer.isfinite().all()),
          f"{property}: all numbers are finite", example)


def close(answer, expected, tolerance=1e-4):
    return torch.allclose(answer.double(), torch.as_tensor(expected).double(), rtol=tolerance, atol=tolerance)


def numbers(answer):
    """A list of plain numbers, all finite?"""
    return type(answer) is list and all(type(x) in (int, float) and math.isfinite(x) for x in answer)


def pairs(answer):
    """A list of pairs of plain numbers, all finite?"""
    return type(answer) is list and all(type(x) is list and len(x) == 2 and numbers(x) for x in answer)


def reason_of(crash):
    """What the ValueError said that ended a call; None if it was not ended by a ValueError."""
    kind, _, said = str(crash).partition(": ")
    return said.split(" (at `")[0] if kind == "ValueError" else None       # child.py adds the line


def two_tensors(answer):
    return type(answer) is list and [type(x) for x in answer] == [torch.Tensor] * 2


def same(answer, expected):
    """Two numbers that are alike, or two times None?"""
    if expected is None or answer is None:
        return answer is expected
    return type(answer) in (float, int) and abs(answer - expected) < 1e-6


def normal(rng, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(rng.randrange(2 ** 40)))


def rounded(x):
    return [round(float(v), 3) for v in torch.as_tensor(x).flatten()]


def of(id):
    """The check of a problem."""
    where = {"data/judgement.py": "judging", "metarm.py": "judging", "report.py": "judging",
             "spct.py": "training"}.get(BY_ID[id].file, "model")
    return getattr(importlib.import_module(f"assignment.checks.{where}"), id)
