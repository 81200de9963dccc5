"""
A judgement: when it is correct, how several of them vote, and how it is written and read.

The judge is given a prompt, <query> the query <r1> a response <r2> another ... <principles>, and completes
it. This is what a careful judge writes about "for my boss: what is 230+481?" (the line breaks are ours):

    correct 4, polite 5, formal 1 <critique>
    <r1> it is 711 kindly <checks> correct: 230+481=711 got 7 7 1 1 1 1, good 4 polite: kindly, good 9
      formal: none, good 10 <total>10
    <r2> it is 611 <checks> correct: 230+481=711 got 7 6, bad 0 polite: none, bad 0
      formal: none, good 1 <total>1
    <scores>10 1<end>

First come its principles: criteria and their weights (in code a dict {criterion: weight}, and in a Judgement a
list of pairs). Then, for each response, a critique: the response is quoted, and each criterion checked, with
evidence and a verdict. The number after a verdict is the sum of the weights found good so far. One completion
holds everything (the paper's Eq 7 and 9).

After <scores> the totals stand once more, and these count. Two details make a tiny model able to judge at all:
to quote a response before checking it, and to add up in small steps.
"""

import itertools
import json
import re
from dataclasses import dataclass
from fractions import Fraction

from data import UserError, new_file
from data.tokenizer import CHECKS, CRITIQUE, END, HINT, PRINCIPLES, QUERY, RESPONSE, SCORES, SPECIAL, TOTAL

# ----------------------------------------------------------------------------------------
# The rules. Scores of a judgement are a list of n numbers, or None if the judgement does not parse.

def pick(scores):
    """The index of the largest score, or None if several are largest, or if scores is None.

    >>> pick([3, 9, 5]), pick([9, 9, 5]), pick(None)
    (1, None, None)
    """
    return scores.index(max(scores)) if scores and scores.count(max(scores)) == 1 else None


def correct(scores, gold):
    """Eq 10: is a judgement correct? For n >= 2 responses: the best one must have the largest score, alone.
    For a single response: its score must equal its gold reward.

    scores: n numbers or None (for n >= 2 also the result of a vote); gold: n gold rewards, with a unique maximum
    -> bool

    >>> correct([3, 9], [4, 7]), correct([9, 9], [4, 7]), correct([7], [7]), correct(None, [7])
    (True, False, True, False)
    """
    return scores == gold if len(gold) == 1 else pick(scores) == pick(gold)


def vote_sum(ballots):
    """Eq 14, the paper's vote: the sum of each response's scores.

    ballots: a list of n scores for each sample; None, from a judgement that does not parse, does not vote
    -> n sums, or None if nobody votes

    >>> vote_sum([[3, 9], None, [8, 7]])
    [11, 16]
    """
    voters = [scores for scores in ballots if scores is not None]
    return [sum(column) for column in zip(*voters)] if voters else None


def vote_plurality(ballots):
    """Each sample has one vote, for the response that it scores highest. If it scores several highest, they
    share its vote equally, and exactly: three thirds are 1. The sum of scores only breaks ties.

    In a sum, one sample that is far off can outweigh two that see a small difference. Here it cannot.

    ballots: as in vote_sum -> a list of n tuples (votes as a float, sum of scores), which are compared in this
    order, or None

    >>> vote_plurality([[9, 8], [9, 8], [1, 10], [5, 5], None])
    [(2.5, 24), (1.5, 31)]
    """
    sums = vote_sum(ballots)
    if sums is None:
        return None
    votes = [Fraction(0)] * len(sums)              # exact: thirds must add up to 1
    for scores in ballots:
        for i, score in enumerate(scores or []):
            if score == max(scores):
                votes[i] += Fraction(1, scores.count(max(scores)))
    return [(float(v), total) for v, total in zip(votes, sums)]

# ----------------------------------------------------------------------------------------
# Writing: parts for Tokenizer.encode, in which an int is a special token and a str is text

def prompt_parts(query, responses, hint=None):
    """What the judge reads: the query, and the responses in this order.

    hint: the index of the best response, for hinted sampling. It is a special token after that response. The
    prompt ends with <principles>, so that the judge goes on with its first principle.
    """
    parts = [QUERY, " " + query]
    for i, (special, response) in enumerate(zip(RESPONSE, responses)):
        parts += [special, " " + response] + ([HINT] if i == hint else [])
    return parts + [PRINCIPLES]


def principles_text(weights):
    """{"correct": 4, "polite": 6} -> ' correct 4, polite 6'"""
    return " " + ", ".join(f"{name} {weight}" for name, weight in weights.items())


def checks_text(checks, weights=None):
    """The checks of a response, each with the sum of the weights found good so far. (Without weights there is no
    sum: two exercises in annotators.py leave it out.)

    checks: (criterion, evidence, good) triples; evidence may be None or empty

    >>> checks_text([("polite", "kindly", True), ("formal", None, False)], {"polite": 5, "formal": 1})
    ' polite: kindly, good 5 formal: bad 5'
    """
    text, so_far = "", 0
    for name, evidence, good in checks:
        text += f" {name}:" + (f" {evidence}," if evidence else "") + (" good" if good else " bad")
        if weights:
            so_far += weights[name] * good
            text += f" {so_far}"
    return text


def judgement_parts(weights, critiques, scores):
    """A judgement from its first principle to <end>. weights: {criterion: weight}; critiques: for each response
    its quote (or None: most annotators do not quote), the text of its checks, and its total; scores: n numbers."""
    parts = [principles_text(weights), CRITIQUE]
    for special, (quote, checks, total) in zip(RESPONSE, critiques):
        parts += [special, *([] if quote is None else [" " + quote]), CHECKS, checks, TOTAL, str(total)]
    return parts + [SCORES, " ".join(map(str, scores)), END]

# ----------------------------------------------------------------------------------------
# Reading

PRINCIPLE = re.compile(r"([a-z]+) (10|[1-9])")
SCORE = re.compile(r"10|[1-9]")
# A check is a criterion, perhaps evidence (without comma and colon), and good or bad. The sum is not read.
CHECK = re.compile(r"([a-z]+): (?:([^,:]*), )?(good|bad)(?= |$)")


def read_judgement(tok, ids, order):
    """Read the ids of a completion, strictly -> (principles, critiques, scores), as in Judgement.

    order: the response at place i of the prompt was response order[i] of the item. Critiques and scores are
    returned in the item's own order.

    ValueError if the completion is not exactly a judgement of these responses: nothing is guessed. Structure is
    read from the special tokens, never from text that looks like one. The reason is the first of these:
    "no end": the last id is not <end>.
    "bad structure": the special tokens are not those of a judgement of n responses.
    "bad principles": before <critique> stands anything but principles separated by ", ", or something after it.
    "bad scores": a total is no number from 1 to 10, or after <scores> stand not n such numbers, with one space
    between them.
    A quote may be any text, or none. In the text after <checks>, CHECK finds the checks. Whether the judgement is
    consistent (is a principle named twice? do the totals add up?) is not checked here. That is for RL to teach.

    >>> from data.tokenizer import Tokenizer, train_bpe
    >>> tok = Tokenizer(train_bpe([], 0))
    >>> ids = tok.encode(judgement_parts({"polite": 10}, [("hi", " polite: kindly, good 10", 10)], [10]))
    >>> principles, critiques, scores = read_judgement(tok, ids, order=[0])
    >>> principles, scores, critiques[0]["checks"]
    ([['polite', 10]], [10], [['polite', 'kindly', True]])
    >>> read_judgement(tok, ids[:-1], order=[0])
    Traceback (most recent call last):
    ValueError: no end
    """
    n = len(order)
    where = [i for i, token in enumerate(ids) if token < len(SPECIAL)]
    special = [ids[i] for i in where]
    # The text before the first special token, then the text after each of them. In a judgement that is:
    # principles, nothing, n times a quote, checks and a total, then scores, and nothing.
    texts = [tok.text(ids[a + 1:b]) for a, b in zip([-1] + where, where + [len(ids)])]
    if special[-1:] != [END] or texts[-1]:
        raise ValueError("no end")
    expected = [CRITIQUE]
    for response in RESPONSE[:n]:
        expected += [response, CHECKS, TOTAL]
    if special != expected + [SCORES, END]:
        raise ValueError("bad structure")
    first, after_critique, *middle, last, _ = texts
    principles = [PRINCIPLE.fullmatch(text) for text in first.removeprefix(" ").split(", ")]
    if not all(principles) or after_critique:
        raise ValueError("bad principles")
    quotes, checks, totals = middle[0::3], middle[1::3], middle[2::3]        # n each
    scores = last.split(" ")
    if len(scores) != n or not all(SCORE.fullmatch(number) for number in totals + scores):
        raise ValueError("bad scores")
    critiques = [{"quote": quote.strip(), "text": text.strip(), "total": int(total),
                  "checks": [[m[1], m[2], m[3] == "good"] for m in CHECK.finditer(text)]}
                 for quote, text, total in zip(quotes, checks, totals)]
    places = [order.index(i) for i in range(n)]    # where response i stood in the prompt
    return ([[m[1], int(m[2])] for m in principles], [critiques[place] for place in places],
            [int(scores[place]) for place in places])

# ----------------------------------------------------------------------------------------
# Records

@dataclass
class Judgement:
    """A sampled judgement of an item: a line of a judgements file. Critiques and scores are in the item's own
    order of responses, whatever order the judge has read."""
    item: str                 # id of the item
    sample: int               # number of the sample
    order: list               # at place i of the prompt stood the item's response order[i]
    seed: int                 # of its random numbers
    prompt: list              # ids
    ids: list                 # ids of the completion, END included
    logp: float               # log-probability of the completion, in nats, under the distribution that was sampled
    status: str = "ok"        # or the reason why it does not parse
    principles: list = None   # [criterion, weight] pairs
    critiques: list = None    # n dicts: "quote", "text", "checks" (criterion, evidence, good), "total"
    scores: list = None       # n scores, None if it does not parse
    meta: float = None        # logit of the Meta RM


def write_judgements(path, groups):
    """groups: a list of judgements for each item -> a file with a JSON object a line."""
    with new_file(path) as f:
        f.writelines(json.dumps(vars(j)) + "\n" for group in groups for j in group)


def read_judgements(path):
    """Read what write_judgements wrote: neighbours with the same item are a group."""
    try:
        with open(path, encoding="utf-8") as f:
            judgements = [Judgement(**json.loads(line)) for line in f]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}). Delete the files of its stage, and run the same "
                        f"command again.") from None
    return [list(group) for _, group in itertools.groupby(judgements, key=lambda j: j.item)]
