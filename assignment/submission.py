"""
What is taken from a submission: the definitions of the functions that are problems, and what they refer to in
the same file. Nothing of it is imported here: it is read as a syntax tree, and put into a copy for a child.
"""

import ast
import os
import warnings

from assignment import make
from assignment.problems import BY_ID, PROBLEMS

IMPORTS = (ast.Import, ast.ImportFrom)
LARGEST = 1_000_000                                # bytes of a submitted file


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


def own_file(submission, file):
    """The path of a submitted file, None if there is none: where it belongs, or by its name alone; in the
    submission, or in the one folder that is in it. A plain file, and no link: that may lead to ours."""
    inside = [entry.path for entry in os.scandir(submission) if entry.is_dir() and entry.name[0] not in "._"]
    for folder in [submission, *(inside if len(inside) == 1 else [])]:
        for path in (os.path.join(folder, file), os.path.join(folder, os.path.basename(file))):
            if os.path.lexists(path):
                own = os.path.realpath(path).startswith(os.path.realpath(submission) + os.sep)
                if not own or not os.path.isfile(path) or os.path.getsize(path) > LARGEST:
                    raise Crashed(f"{file} is no plain file of the submission, of 1 MB at most")
                return path
    return None


def parsed(submission, file):
    """-> the submitted file's lines and syntax tree."""
    path = own_file(submission, file)
    if path is None:
        raise NotStarted(f"there is no {file} in the submission")
    try:
        with open(path, encoding="utf-8-sig") as f:
            text = f.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [line + "\n" for line in text.split("\n")], ast.parse(text)
    except SyntaxError as error:
        raise Crashed(f"{os.path.basename(path)} does not parse: {error.msg}, line {error.lineno}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise Crashed(f"{os.path.basename(path)} cannot be read: {type(error).__name__}") from None


def taken(submission, file, names, pristine):
    """The definitions that are taken from a submitted file -> ({name: source}, source of its helpers).

    Helpers: functions, classes, imports and constants that the definitions, or other helpers, refer to, and
    whose names the pristine file does not have. What one problem's solution brings is not there for another.
    """
    lines, tree = parsed(submission, file)
    there = {name for node in ast.parse(pristine).body for name in names_of(node)}
    definitions = {node.name: node for node in tree.body
                   if isinstance(node, ast.FunctionDef) and node.name in names}
    for name in names:
        if name not in definitions or is_hole(definitions[name]):
            raise NotStarted(f"{name} is not written yet")
    single = [part for node in tree.body for part in one_name(node)]
    free = [node for node in single if set(names_of(node)) and not set(names_of(node)) & {*there, *names}]
    helpers, more = [], list(definitions.values())
    while more:                                    # what is referred to, then what that refers to, ...
        used = names_in(*more)
        more = [node for node in free if node not in helpers and set(names_of(node)) & used]
        helpers += more
    text = lambda node: ast.unparse(node) if isinstance(node, IMPORTS) else source_of(node, lines)
    in_order = [text(node) for node in free if node in helpers]
    return {name: source_of(definitions[name], lines) for name in names}, "\n".join(in_order)


def one_name(node):
    """An import of several names as several imports: some of them may be there already."""
    if isinstance(node, ast.Import):
        return [ast.Import([alias]) for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [ast.ImportFrom(node.module, [alias], node.level) for alias in node.names]
    return [node]


def names_in(*nodes):
    """All names that are used somewhere in them, also behind a dot."""
    return {getattr(n, "id", getattr(n, "attr", None)) for node in nodes for n in ast.walk(node)}


def names_of(node):
    """The names that a statement at the top level defines; none if it is anything but a definition, an import
    or a constant."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, IMPORTS):
        return [(alias.asname or alias.name).split(".")[0] for alias in node.names]
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
    return []


def needs_of(problem):
    """What has to be right before it, as far as it is a problem of this course."""
    return [id for id in problem.needs if id in BY_ID]


def with_called(submission, problem, pristine):
    """A problem, what it needs, and those whose functions the student's own code calls, as far as they are
    written: right or wrong, they are the student's."""
    wanted = [problem, *(BY_ID[id] for id in needs_of(problem))]
    for p in wanted:                               # it grows meanwhile
        definitions, helpers = taken(submission, p.file, [p.name], pristine(p.file))
        used = names_in(ast.parse("\n\n".join([helpers, *definitions.values()])))
        for q in PROBLEMS:
            try:
                if q.name in used and q not in wanted and not q.target:
                    taken(submission, q.file, [q.name], pristine(q.file))
                    wanted.append(q)
            except (NotStarted, Crashed):
                pass
    return wanted


def put_in(copy, submission, problem):
    """Put the submission's definitions for a problem, and for what goes with it, into a student copy."""
    def read(file):
        path = os.path.join(copy, file)
        if not os.path.exists(path):
            return ""
        with open(path, encoding="utf-8") as f:
            return f.read()

    wanted = {}
    for p in with_called(submission, problem, read):
        wanted.setdefault(p.file, []).append(p.name)
    for file, names in wanted.items():
        path, pristine = os.path.join(copy, file), read(file)
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
