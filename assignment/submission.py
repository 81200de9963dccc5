"""
What is taken from a submission: the functions that are problems, and all that they use in the same file. It is
read as a syntax tree, and its statements are put into a student copy. Nothing of it is imported here.
"""

import ast
import builtins
import os
import symtable
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

# ----------------------------------------------------------------------------------------
# Files

def own_file(submission, file):
    """The path of a submitted file, None if there is none: where it belongs, or by its name alone; in the
    submission, or in the one folder that is in it, or in the one in that. A plain file, and no link: that may lead
    to ours."""
    folders = [submission]
    while len(folders) < 4:
        inside = [entry.path for entry in os.scandir(folders[-1]) if entry.is_dir(follow_symlinks=False)
                  and entry.name[0] not in "._"]
        if len(inside) != 1:
            break
        folders += inside
    for folder in folders:
        for path in (os.path.join(folder, file), os.path.join(folder, os.path.basename(file))):
            if os.path.lexists(path):
                own = os.path.realpath(path).startswith(os.path.realpath(submission) + os.sep)
                if not own or not os.path.isfile(path) or os.path.getsize(path) > LARGEST:
                    raise Crashed(f"{file} is no plain file of the submission, of 1 MB at most")
                return path
    return None


def parsed(text, path):
    """-> the source and syntax tree of a file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except SyntaxError as error:
        raise Crashed(f"{os.path.basename(path)} does not parse: {error.msg}, line {error.lineno}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise Crashed(f"{os.path.basename(path)} cannot be read: {type(error).__name__}") from None


def source_of_file(submission, file):
    path = own_file(submission, file)
    if path is None:
        raise NotStarted(f"there is no {file} in the submission")
    try:
        with open(path, encoding="utf-8-sig") as f:
            return f.read()
    except ValueError:
        raise Crashed(f"{os.path.basename(path)} is no UTF-8 text") from None

# ----------------------------------------------------------------------------------------
# Statements

def is_hole(node):
    """Is the body, but for the docstring, a raise of NotImplementedError alone?"""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return len(body) == 1 and isinstance(body[0], ast.Raise) and "NotImplementedError" in ast.dump(body[0])


def defined_by(node):
    """The names at the top level that a statement defines or changes: by an assignment of any form, a loop, an
    import, or a change of what a name stands for (TABLE[k] = 1, TABLE.append(1))."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    found = set()
    for part in ast.walk(node):
        if isinstance(part, IMPORTS):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in part.names}
        elif isinstance(part, (ast.FunctionDef, ast.ClassDef)):
            found.add(part.name)
        elif isinstance(part, ast.Name) and isinstance(part.ctx, (ast.Store, ast.Del)):
            found.add(part.id)
        elif isinstance(part, (ast.Attribute, ast.Subscript)) and isinstance(part.ctx, (ast.Store, ast.Del)):
            found |= base_of(part)
        elif isinstance(part, ast.Expr) and isinstance(part.value, ast.Call):
            found |= base_of(part.value.func)
            found |= {arg.id for arg in part.value.args if isinstance(arg, ast.Name)}
    return found


def names_in(text):
    """All names that a file of ours defines at its top level."""
    return set().union(*map(defined_by, ast.parse(text).body))


def base_of(node):
    """{"TABLE"} of TABLE.rows[0].append"""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return {node.id} if isinstance(node, ast.Name) else set()


def used_by(source):
    """The names at the top level that statements use, whose own parameters and variables are none of them."""
    found, tables = set(), [symtable.symtable(source, "submission", "exec")]
    while tables:
        table = tables.pop()
        top = table.get_type() == "module"
        found |= {symbol.get_name() for symbol in table.get_symbols()
                  if symbol.is_referenced() and (top or symbol.is_global())}
        tables += table.get_children()
    return found


class File:
    """A submitted file: its statements, what each defines, and what each uses."""

    def __init__(self, text, path):
        lines = [line + "\n" for line in text.split("\n")]
        self.nodes = [part for node in parsed(text, path).body for part in one_name(node)]
        self.sources = [ast.unparse(node) + "\n" if isinstance(node, IMPORTS)
                        else "".join(lines[make.first_line(node):node.end_lineno]) for node in self.nodes]
        self.defined = [defined_by(node) for node in self.nodes]
        self.functions = {node.name: i for i, node in enumerate(self.nodes) if isinstance(node, ast.FunctionDef)}
        self.used = {}                             # of statements that were asked for

    def uses(self, i):
        if i not in self.used:
            try:
                self.used[i] = used_by(self.sources[i])
            except (SyntaxError, RecursionError):  # `return` outside of a function, and the like
                self.used[i] = set()
        return self.used[i]

    def written(self, name):
        """The number of a function's statement. NotStarted if it is a hole."""
        i = self.functions.get(name)
        if i is None or is_hole(self.nodes[i]):
            raise NotStarted(f"{name} is not written yet")
        return i

    def taken(self, names, there):
        """The numbers of all statements that the functions use, in order. there: names that the student copy has:
        its own definitions of these stay."""
        wanted = {self.written(name) for name in names}
        of = {}                                    # name -> the statements that define or change it
        for i, defined in enumerate(self.defined):
            if isinstance(self.nodes[i], ast.Expr) and isinstance(self.nodes[i].value, ast.Constant):
                continue                           # a text
            if not defined & there:
                for name in defined:
                    of.setdefault(name, []).append(i)
        more = sorted(wanted)
        while more:                                # what is used, then what that uses, ...
            i = more.pop()
            for name in self.uses(i):
                unknown = name not in of and name not in there and not hasattr(builtins, name)
                new = [k for k in of.get("*" if unknown else name, []) if k not in wanted]
                wanted.update(new)
                more += new
        return sorted(wanted)


def one_name(node):
    """An import of several names as several imports: some of them may be there already."""
    if isinstance(node, ast.Import):
        return [ast.copy_location(ast.Import([alias]), node) for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [ast.copy_location(ast.ImportFrom(node.module, [alias], node.level), node) for alias in node.names]
    return [node]


def merged(pristine, own, names):
    """The student copy's file with the submission's functions, and what these use: each statement behind the same
    definition of the copy as in the submission."""
    taken = own.taken(names, names_in(pristine))
    lines, nodes = pristine.splitlines(keepends=True), ast.parse(pristine).body
    place = {name: k for k, node in enumerate(nodes) for name in defined_by(node)}
    behind, last = {}, -1                          # number of the copy's statement -> what comes after it
    for i, defined in enumerate(own.defined):
        if i in taken and not defined & set(names):
            behind.setdefault(last, []).append(own.sources[i])
        last = max([last, *(place[name] for name in defined if name in place)])
    text = "".join(behind.get(-1, []))
    end = 0
    for k, node in enumerate(nodes):
        start, stop = make.first_line(node), node.end_lineno
        mine = isinstance(node, ast.FunctionDef) and node.name in names
        text += "".join(lines[end:start]) + (own.sources[own.functions[node.name]] if mine
                                             else "".join(lines[start:stop])) + "".join(behind.get(k, []))
        end = stop
    return text + "".join(lines[end:])

# ----------------------------------------------------------------------------------------
# A problem

def needs_of(problem):
    """What has to be right before it, as far as it is a problem of this course."""
    return [id for id in problem.needs if id in BY_ID]


def files_for(submission, problem):
    """{path: source}: a student copy with the submission's functions for a problem, for what it needs, and for
    what the student's own code calls: right or wrong, these are the student's."""
    files, own = make.student_code(), {}

    def read(file):
        if file not in own:
            own[file] = File(source_of_file(submission, file), file)
        return own[file]

    there = {file: names_in(text) for file, text in files.items()}
    wanted = [problem, *(BY_ID[id] for id in needs_of(problem))]
    for p in wanted:                               # it grows meanwhile
        mine = read(p.file)
        used = set().union(*(mine.uses(i) for i in mine.taken([p.name], there.get(p.file, set()))))
        for q in PROBLEMS:
            if q.name in used and q not in wanted and not q.target:
                try:
                    read(q.file).written(q.name)
                    wanted.append(q)
                except (NotStarted, Crashed):
                    pass
    for file in {p.file for p in wanted}:
        names = [p.name for p in wanted if p.file == file]
        if file in files:
            files[file] = merged(files[file], own[file], names)
        else:                                      # a file of tests is the student's own
            files[file] = "".join(own[file].sources[i] for i in own[file].taken(names, set()))
    return files
