"""
What is taken from a submission: the definitions of the functions that are problems, and what they refer to in
the same file. Nothing of it is imported here: it is read as a syntax tree, and put into a copy for a child.
"""

import ast
import os
import warnings

from assignment import make
from assignment.problems import BY_ID


class NotStarted(Exception):
    pass


class Crashed(Exception):
    pass


class TimedOut(Exception):
    pass


def source_of(node, lines):
    return "".join(lines[make.first_line(node):node.end_lineno])


def is_hole(node):
    """Is the body, but for the docstring, a raise of NotImplementedError alone?"""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return len(body) == 1 and isinstance(body[0], ast.Raise) and "NotImplementedError" in ast.dump(body[0])


def parsed(path):
    """-> the submitted file's lines and syntax tree."""
    try:
        with open(path, encoding="utf-8") as f:
            text = f.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return text.splitlines(keepends=True), ast.parse(text)
    except OSError:
        raise NotStarted(f"there is no {os.path.basename(path)} in the submission") from None
    except SyntaxError as error:
        raise Crashed(f"{os.path.basename(path)} does not parse: {error.msg}, line {error.lineno}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise Crashed(f"{os.path.basename(path)} cannot be read: {type(error).__name__}") from None


def taken(submission, file, names, pristine):
    """The definitions that are taken from a submitted file -> ({name: source}, source of its helpers).

    Helpers: functions, classes, imports and constants that the definitions, or other helpers, refer to, and
    whose names the pristine file does not have. What one problem's solution brings is not there for another.
    """
    lines, tree = parsed(os.path.join(submission, file))
    there = {name for node in ast.parse(pristine).body for name in names_of(node)}
    definitions = {node.name: node for node in tree.body
                   if isinstance(node, ast.FunctionDef) and node.name in names}
    for name in names:
        if name not in definitions or is_hole(definitions[name]):
            raise NotStarted(f"{name} is not written yet")
    free = [node for node in tree.body if set(names_of(node)) and not set(names_of(node)) & {*there, *names}]
    helpers, more = [], list(definitions.values())
    while more:                                    # what is referred to, then what that refers to, ...
        used = {n.id for node in more for n in ast.walk(node) if isinstance(n, ast.Name)}
        more = [node for node in free if node not in helpers and set(names_of(node)) & used]
        helpers += more
    in_order = [source_of(node, lines) for node in free if node in helpers]
    return {name: source_of(definitions[name], lines) for name in names}, "\n".join(in_order)


def names_of(node):
    """The names that a statement at the top level defines; none if it is anything but a definition, an import
    or a constant."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [(alias.asname or alias.name).split(".")[0] for alias in node.names]
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
    return []


def needs_of(problem):
    """What has to be right before it, as far as it is a problem of this course."""
    return [id for id in problem.needs if id in BY_ID]


def put_in(copy, submission, problem):
    """Put the submission's definitions for a problem, and for what it needs, into a student copy."""
    wanted = {}
    for p in [problem, *(BY_ID[id] for id in needs_of(problem))]:
        wanted.setdefault(p.file, []).append(p.name)
    for file, names in wanted.items():
        path, pristine = os.path.join(copy, file), ""
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                pristine = f.read()
        definitions, helpers = taken(submission, file, names, pristine)
        if not pristine:                           # a file of tests is the student's own
            text = helpers + "\n\n" + "\n\n".join(definitions.values()) + "\n"
        else:
            lines, first = pristine.splitlines(keepends=True), None
            nodes = sorted((make.functions(pristine)[name] for name in names), key=lambda n: -n.lineno)
            for node in nodes:                     # from the last to the first: line numbers stay true
                first = make.first_line(node)
                lines[first:node.end_lineno] = [definitions[node.name]]
            lines[first:first] = [helpers + "\n\n"]
            text = "".join(lines)
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
