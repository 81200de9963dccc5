"""
The student copy: the reading copy with holes.

    python assignment/make.py OUT

Bodies of the functions in problems.py become `raise NotImplementedError("P4: see the handout")`; signatures,
docstrings, comments and everything else stay byte for byte. What would give solutions away does not come
along: tests, experiments, the grader, history, and of the bundled checkpoint all but the base model.
"""

import ast
import os
import re
import shutil
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path.insert(0, ROOT)

from assignment.problems import BY_ID, PROBLEMS
from data import UserError, run_command

CODE = ["model.py", "sample.py", "spct.py", "metarm.py", "report.py", "data/__init__.py", "data/world.py",
        "data/tokenizer.py", "data/judgement.py", "data/annotators.py", "data/preferences.py"]
LABS = sorted({"labs.py"} & {problem.file for problem in PROBLEMS})          # in this folder
MORE = ["requirements.txt", "constraints.txt", "LICENSE", "data/judge/base.pt", "data/judge/tokenizer.tiktoken"]
OURS = {"check.py": "check.py", "milestones.py": "milestones.py", "problems.py": "problems.py",
        "mytests.py": "mytests.py", "student.md": "README.md", "agents.md": "AGENTS.md", "votes.txt": "votes.txt"}


def read(*path):
    with open(os.path.join(*path), encoding="utf-8") as f:
        return f.read()


def functions(source):
    """{name: node} of the functions at the top level of a file."""
    return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}


def body_lines(source, name):
    """-> (start, end): the lines of a function's body, counted from 0, behind its docstring."""
    node = functions(source)[name]
    docstring = ast.get_docstring(node) is not None
    start = node.body[0].end_lineno if docstring else node.body[0].lineno - 1
    return start, node.end_lineno


def with_holes(path, source):
    """A file without the bodies of the problems' functions."""
    for problem in PROBLEMS:
        if problem.file == path:
            lines = source.splitlines(keepends=True)
            start, end = body_lines(source, problem.name)
            lines[start:end] = [f'    raise NotImplementedError("{problem.id}: see the handout")\n']
            source = "".join(lines)
    return source


def reading_code():
    """{path: source} of the reading copy's code."""
    return {path: read(ROOT, path) for path in CODE} | {path: read(HERE, path) for path in LABS}


def student_code():
    """The same with holes."""
    return {path: with_holes(path, source) for path, source in reading_code().items()}


def make(out):
    """The whole student copy."""
    os.makedirs(os.path.join(out, "data", "judge"))
    for path, source in {**student_code(), "handout.md": handout(read(HERE, "handout.md"))}.items():
        with open(os.path.join(out, path), "w", encoding="utf-8") as f:
            f.write(source)
    for path in MORE:
        shutil.copyfile(os.path.join(ROOT, path), os.path.join(out, path))
    for ours, theirs in OURS.items():
        shutil.copyfile(os.path.join(HERE, ours), os.path.join(out, theirs))


def handout(text):
    """The handout without the rows of problems that are not in PROBLEMS, and with their sums."""
    rows = [line for line in text.splitlines(keepends=True)
            if not re.match(r"\| [PTL]\d+ ", line) or line.split()[1] in BY_ID]
    written = [p for p in PROBLEMS if p.id[0] != "L"]
    points, hours = sum(p.points for p in written), sum(p.minutes for p in written) / 60
    return re.sub(r"\d+ points, [\d.]+ hours", f"{points} points, {hours:.1f} hours", "".join(rows))


def main(argv):
    if len(argv) != 1 or argv[0].startswith("-"):
        raise UserError("Name the folder of the student copy: python assignment/make.py OUT")
    if os.path.exists(argv[0]):
        raise UserError(f"{argv[0]} exists. Name another folder.")
    make(argv[0])
    print(f"A student copy with {len(PROBLEMS)} problems is in {argv[0]}. Begin with its handout.md.")


if __name__ == "__main__":
    run_command(main)
