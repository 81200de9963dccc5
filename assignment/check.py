"""
Run the public checks of a problem: the examples in its docstring, in this folder, in seconds.

    python check.py P4
    python check.py          # all problems

The grader checks more, with other inputs.
"""

import doctest
import importlib
import sys
import traceback

from problems import BY_ID, PROBLEMS


def raised(error):
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error}" + (f" (line {frame.lineno}: `{frame.line}`)" if frame.line else "")


class Runner(doctest.DocTestRunner):
    """What an example should give, and what it gives, in three lines."""

    def report_failure(self, out, test, example, got):
        out(f"{example.source}should be  {example.want}it is      {got}")

    def report_unexpected_exception(self, out, test, example, exc_info):
        if isinstance(exc_info[1], NotImplementedError):                     # of this problem, or what it calls
            raise exc_info[1]
        out(f"{example.source}should be  {example.want}it raises  {raised(exc_info[1])}\n")


def check(problem):
    """-> 'the examples pass', or what is wrong."""
    module = importlib.import_module(problem.module)
    function, found = getattr(module, problem.name), []
    if problem.target:                             # a test of your own: on your own function
        target = BY_ID[problem.target]
        function(getattr(importlib.import_module(target.module), target.name))
        return "passes on your own function"
    for test in doctest.DocTestFinder(recurse=False).find(function, problem.name, globs=dict(vars(module))):
        Runner(verbose=False).run(test, out=found.append)
    return "the examples pass" if not found else "".join(found).rstrip()


def main(argv):
    argv = [id.upper() for id in argv]
    unknown = [id for id in argv if id not in BY_ID]
    if unknown:
        print(f"check.py: there is no problem {unknown[0]}: see the table in handout.md", file=sys.stderr)
        sys.exit(2)
    for problem in [BY_ID[id] for id in argv] or PROBLEMS:
        try:
            result = check(problem)
        except NotImplementedError as error:
            own = str(error).startswith(problem.id + ":")
            result = f"not started: {error}" if own else f"it calls what is not written yet: {error}"
        except Exception as error:
            result = raised(error)
        print(f"{problem.id:4s} {problem.title} ({problem.file}:{problem.name})")
        print("     " + result.replace("\n", "\n     "))


if __name__ == "__main__":
    try:
        from data import run_command
    except ModuleNotFoundError as error:
        sys.exit(f"check.py: {error}: is the virtual environment active? See handout.md")
    run_command(main)
