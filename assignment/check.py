"""
Run the public checks of a problem: the examples in its docstring, in this folder, in seconds.

    python check.py P4
    python check.py          # all problems

The grader checks more, with other inputs.
"""

import doctest
import importlib
import re
import sys

from problems import BY_ID, PROBLEMS


def check(problem):
    """-> 'passed', or what is wrong in one line."""
    module = importlib.import_module(problem.module)
    function, found = getattr(module, problem.name), []
    if problem.target:                             # a test of your own: on your own function
        target = BY_ID[problem.target]
        tested = getattr(importlib.import_module(target.module), target.name)
        try:
            function(tested)
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
        return "passes on your own function" if not found else found[0]
    runner = doctest.DocTestRunner(verbose=False)
    for test in doctest.DocTestFinder(recurse=False).find(function, problem.name, globs=dict(vars(module))):
        runner.run(test, out=found.append, clear_globs=False)
    return "passed" if not found else "".join(found).rstrip()


def main(argv):
    unknown = [id for id in argv if id not in BY_ID]
    if unknown:
        print(f"check.py: there is no problem {unknown[0]}: expected {PROBLEMS[0].id} to {PROBLEMS[-1].id}",
              file=sys.stderr)
        sys.exit(2)
    for problem in [BY_ID[id] for id in argv] or PROBLEMS:
        try:
            result = check(problem)
        except ModuleNotFoundError as error:
            print(f"check.py: {error}: is the virtual environment active? See handout.md", file=sys.stderr)
            sys.exit(2)
        except NotImplementedError as error:
            result = f"not started: {error}"
        missing = re.search("NotImplementedError: (.*)", result)             # it, or what it calls
        result = f"not started: {missing[1]}" if missing else result
        print(f"{problem.id:4s} {problem.title} ({problem.file}:{problem.name})")
        print("     " + result.replace("\n", "\n     "))


if __name__ == "__main__":
    main(sys.argv[1:])
