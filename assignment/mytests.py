"""
T1 and T2: tests that you write. Each gets a function and has to tell right versions of it from wrong ones: it
passes if nothing is raised, it fails on an AssertionError (or any other exception).

The function that you get may be right or wrong. Call it as often as you like; do not compare it with your own
solution, which is not there when you are graded. `python check.py T1` runs the test on your own function.
"""


def test_group_advantages(group_advantages):
    """Does `group_advantages` (spct.py) do what its docstring says? rewards (P, G) -> (P, G)."""
    raise NotImplementedError("T1: see the handout")


def test_vote_plurality(vote_plurality):
    """Does `vote_plurality` (data/judgement.py) do what its docstring says? ballots -> a list of pairs, or
    None."""
    raise NotImplementedError("T2: see the handout")
