"""
Versions of the problems' functions, which the grader is graded with (selfcheck.py). Three texts hold them:

wrong_versions.txt   plausible mistakes. A student's own test is graded by those that it catches.
right_versions.txt   unusual solutions that deserve their points.
attacks.txt          what a student might hand in to get points without a solution.
"""

import inspect
import os
import re
import textwrap
from dataclasses import dataclass

from assignment.checks import reference
from assignment.child import Loader


@dataclass
class Version:
    problem: str
    name: str
    source: str
    alike: bool = True     # may it take the function's place in a student's test?


def as_function(version):
    """The function, in the reading copy's module."""
    right = reference(version.problem)
    space = dict(right.__globals__)
    Loader({}, {}).run(version.source, "submission/" + version.name, space)
    return space[right.__name__]


def lines_of(file):
    with open(os.path.join(os.path.dirname(__file__), file), encoding="utf-8") as f:
        return f.read().splitlines()


def wrong_versions():
    """{id of a problem: its wrong versions}: the reading copy's function with one change."""
    table = {}
    for line in (line for line in lines_of("wrong_versions.txt") if line and line[0] != "#"):
        if " | " not in line:                      # the name of a problem
            id = line.split()[0]
            source, table[id] = inspect.getsource(reference(id)), []
        else:
            bug, old, new = line.replace("\\n", "\n").split(" | ")
            assert source.count(old) == 1, f"wrong_versions.txt: `{old}` stands {source.count(old)} times in {id}"
            table[id].append(Version(id, bug, source.replace(old, "" if new == "(nothing)" else new)))
    return table


def blocks(file):
    """-> Versions: of each block its problem, its name and its text, made the source of a function."""
    found = []
    for block in "\n".join(lines_of(file)).split("\n### ")[1:]:
        title, text = block.split("\n", 1)
        id, how, name = re.fullmatch(r"(\w+)( first| alone| whole)?: (.*)", title).groups()
        source = inspect.getsource(reference(id))
        head = re.search(r"^def .*:\n", source, re.M)[0]
        if how == " first":                        # it comes before the reading copy's body
            text = source.replace(head, head + textwrap.indent(text, "    ") + "\n")
        elif how != " whole" and head.split("(")[0] not in text:             # a body alone
            text = head + textwrap.indent(text, "    ")
        found.append(Version(id, name, text.strip("\n") + "\n", how != " alone"))
    return found


WRONG = wrong_versions()
RIGHT = blocks("right_versions.txt")
ATTACKS = blocks("attacks.txt")
