"""
A judgement: when it is right, how several of them vote together; then how it is asked for (the prompt),
written, kept and read. All of the format stands here.

The prompt is <query> the query <r1> a response <r2> another ... <principles>. What a careful judge writes
after it, marks in angle brackets, if the query is "for my boss: what is 230+481?":

    correct 4, polite 5, serious 1 <critique>
    <r1> it is 711 kindly <checks> correct: 230+481=711 got 7 7 1 1 1 1, good 4 polite: kindly, good 9
      serious: none, good 10 <total>10
    <r2> it is 611 <checks> correct: 230+481=711 got 7 6, bad 0 polite: none, bad 0
      serious: none, good 1 <total>1
    <scores>10 1<end>

To quote first is what makes a tiny model able to check at all, and a sum that grows with each check what
makes it able to add. One completion holds everything: principles with weights, a critique and a sub-total for
each response, and the list of scores (the paper's Eq 7 and 9).
"""

import itertools
import json
import math
import re
from dataclasses import dataclass

from data.tokenizer import CHECKS, CRITIQUE, END, HINT, MARKS, PRINCIPLES, QUERY, RESPONSE, SCORES, TOTAL
from parallel import new_file

# ----------------------------------------------------------------------------------------
# The rules

def pick(scores):
    """Index of the response that alone has the largest score; None on a tie, or if nothing parsed.

    >>> pick([3, 9, 5]), pick([9, 9, 5]), pick(None)
    (1, None, None)
    """
    return scores.index(max(scores)) if scores and scores.count(max(scores)) == 1 else None


def correct(scores, gold):
    """Eq 10. n >= 2: the best response's score is strictly the largest, a tie is wrong. n = 1: the score is
    the gold reward. scores: n numbers, or None if the judgement does not parse; gold: n rewards.

    >>> correct([3, 9], [4, 7]), correct([9, 9], [4, 7]), correct([7], [7]), correct(None, [7])
    (True, False, True, False)
    """
    return scores == gold if len(gold) == 1 else pick(scores) == pick(gold)


def vote(ballots):
    """Eq 14: sum each response's scores over the samples. ballots: one list of n scores a sample, None if it
    did not parse: None never votes. All None -> None.

    >>> vote([[3, 9], None, [8, 7]])
    [11, 16]
    """
    votes = [b for b in ballots if b is not None]
    return [sum(column) for column in zip(*votes)] if votes else None


def plurality(ballots, weights=None):
    """Votes in place of sums: each sample has one vote, or its weight, for the response that it scores
    highest, in equal parts for several. A sum lets a sample that is far off outweigh two that are nearly
    level; here it cannot. Scores only break ties: on top comes a millionth of their mean over the voters,
    times the mean of the absolute weights (a weight may be negative). No vote -> None.

    >>> [round(votes, 4) for votes in plurality([[9, 8], [9, 8], [1, 10], [5, 5], None])]
    [2.5, 1.5]
    """
    voters = [(b, w) for b, w in zip(ballots, weights or [1.0] * len(ballots)) if b is not None]
    if not voters:
        return None
    scale = 1e-6 * sum(abs(weight) for _, weight in voters) / len(voters) ** 2
    parts = [[scale * total] for total in vote(ballots)]           # what each response gets, by voter
    for scores, weight in voters:
        for i, score in enumerate(scores):
            parts[i].append(weight * (score == max(scores)) / scores.count(max(scores)))
    return [math.fsum(part) for part in parts]     # exact: the order of the voters breaks no tie

# ----------------------------------------------------------------------------------------
# Prompt and writer: parts for Tokenizer.encode, in which an int is a mark and a str is text

def render_prompt(query, responses, hint=None):
    """What the judge reads: the query, and the responses in the order given.

    hint: the slot (place in the prompt, from 0) of the best response, for RFT's hinted sampling. It is a mark
    after that response: a tiny model does not learn to use "the best is response j" at the end. The prompt
    ends with <principles>: what follows is the first principle.
    """
    parts = [QUERY, " " + query]
    for slot, (mark, response) in enumerate(zip(RESPONSE, responses)):
        parts += [mark, " " + response] + ([HINT] if slot == hint else [])
    return parts + [PRINCIPLES]


def principles_text(weights):
    """{name: weight} -> ' correct 4, polite 5, serious 1'"""
    return " " + ", ".join(f"{name} {w}" for name, w in weights.items())


def checks_text(checks, weights=None):
    """(name, evidence or None, good) triples -> ' polite: kindly, good 5 serious: none, good 6': behind each
    verdict the weights found good so far; without weights the verdicts alone."""
    text, so_far = "", 0
    for name, evidence, good in checks:
        text += f" {name}:" + (f" {evidence}," if evidence else "") + (" good" if good else " bad")
        if weights:
            so_far += weights[name] * good
            text += f" {so_far}"
    return text


def judgement_parts(weights, critiques, scores):
    """One judgement, from the first principle to <end>. weights: {name: weight}, critiques: (quote or None,
    text, total) a slot, scores: a number a slot. (What is read back has the form of Judgement.)"""
    parts = [principles_text(weights), CRITIQUE]
    for mark, (quote, text, total) in zip(RESPONSE, critiques):
        parts += [mark, *([] if quote is None else [" " + quote]), CHECKS, text, TOTAL, str(total)]
    return parts + [SCORES, " ".join(map(str, scores)), END]

# ----------------------------------------------------------------------------------------
# Record

@dataclass
class Judgement:
    """One sampled judgement of one item, as it is kept: a line of a judgements file.

    Critiques and scores stand in the item's own order of responses, whatever order the judge has read.
    """
    item: str                 # its id
    sample: int               # number of the sample
    order: list               # order[slot] = index of the response that stood in this slot of the prompt
    seed: int
    prompt: tuple             # ids (a list once it is read from a file)
    ids: list                 # ids of the completion, END included
    logp: float               # nats, under the distribution that was sampled (if greedy: at T = 1)
    status: str = "ok"        # or the reason why it does not parse
    principles: list = None   # [name, weight] pairs
    critiques: list = None    # n of {"quote", "text", "checks": [name, evidence, good] triples, "total"}
    scores: list = None       # n scores; None if it does not parse
    meta: float = None        # logit of the Meta RM

    @property
    def tokens(self):
        """Ids of prompt and completion: what RL and the Meta RM read."""
        return list(self.prompt) + self.ids

    @property
    def mean_logp(self):
        """Of a token, in nats."""
        return self.logp / len(self.ids)

    @property
    def confidence(self):
        """The policy's own, a weight for `plurality` that costs nothing: the mean probability of a token
        (geometric), to the power of 20. That was chosen on validation items at T = 1, where 5 to 40 did much
        the same, and kept for T = 0.5."""
        return math.exp(20 * self.mean_logp)


def write_judgements(path, judgements):
    """One JSON object a line."""
    with new_file(path) as f:
        f.writelines(json.dumps(vars(j)) + "\n" for j in judgements)


def read_judgements(path, count=None):
    """-> the same judgements, as one list per item (neighbours with the same id); count: of the first items
    alone."""
    with open(path) as f:
        judgements = (Judgement(**json.loads(line)) for line in f)
        groups = itertools.groupby(judgements, key=lambda j: j.item)
        return [list(group) for _, group in itertools.islice(groups, count)]

# ----------------------------------------------------------------------------------------
# Reader

PRINCIPLE = re.compile(r"([a-z][a-z ]*) (10|[1-9])")
SCORE = re.compile(r"10|[1-9]")
CHECK = re.compile(r"([a-z]+): (?:([^,:]*), )?(good|bad)(?= |$)")


def read_judgement(tok, ids, order):
    """Strict grammar: ids of a completion -> (status, principles, critiques, scores), as in Judgement.

    Structure is read from marks (ids below len(MARKS)), never from text that looks like one. What has to
    stand between them: principles that match PRINCIPLE, ", " between them, and perhaps one space before the
    first; <critique> and no text behind it; for each slot its mark, <r1> first, a quote or nothing, <checks>,
    free text, in which CHECK finds the checks, <total>, a SCORE; then <scores>, a SCORE a slot with one space
    between, and <end>, which comes last.
    Texts are given without the spaces around them, a quote that is not there as "". Critiques and scores come
    in the item's order: order[slot] is the response that stood in this slot.

    Whatever deviates gives scores None and a status that says what is wrong, never an exception and never a
    guess: "no end" if <end> is missing or not the last, else "bad principles", "no critique" (another mark,
    or text behind it), "bad critique" (the marks or the total of a slot) or "bad scores", whichever comes
    first. What was read before it comes along, as far as it was read in full. What a judgement says is not
    checked (weights that sum to 10, totals that add up, names that come twice): to get that right is what RL
    has to teach.

    >>> from data.tokenizer import Tokenizer, train_bpe
    >>> tok = Tokenizer(train_bpe([], 0))
    >>> ids = tok.encode(judgement_parts({"polite": 10}, [(None, " polite: kindly, good 10", 10)], [10]))
    >>> status, principles, critiques, scores = read_judgement(tok, ids, order=[0])
    >>> status, principles, scores
    ('ok', [['polite', 10]], [10])
    >>> critiques == [{"quote": "", "text": "polite: kindly, good 10", "checks": [["polite", "kindly", True]],
    ...                "total": 10}]
    True
    >>> read_judgement(tok, ids[:-1], order=[0]), read_judgement(tok, ids + ids[-1:], order=[0])[::3]
    (('no end', None, None, None), ('bad scores', None))
    """
    n = len(order)
    cut = [i for i, token in enumerate(ids) if token < len(MARKS)]           # where the marks are
    marks = [ids[i] for i in cut]
    # what stands between them: texts[0] before the first mark, texts[j + 1] after marks[j]
    texts = [tok.text(ids[a + 1:b]) for a, b in zip([-1] + cut, cut + [len(ids)])]
    if not marks or marks[-1] != END or texts[-1]:
        return "no end", None, None, None
    pairs = [PRINCIPLE.fullmatch(p) for p in texts[0].removeprefix(" ").split(", ")]
    if not all(pairs):
        return "bad principles", None, None, None
    principles = [[m[1], int(m[2])] for m in pairs]
    if marks[0] != CRITIQUE or texts[1]:
        return "no critique", principles, None, None
    slots, j = [], 1
    for mark in RESPONSE[:n]:                      # <r_i> quote <checks> text <total> number
        if marks[j:j + 3] != [mark, CHECKS, TOTAL] or not SCORE.fullmatch(texts[j + 3]):
            return "bad critique", principles, None, None
        quote, text, total = texts[j + 1].strip(), texts[j + 2].strip(), int(texts[j + 3])
        checks = [[m[1], m[2], m[3] == "good"] for m in CHECK.finditer(text)]
        slots.append({"quote": quote, "text": text, "checks": checks, "total": total})
        j += 3
    critiques = [slots[order.index(i)] for i in range(n)]                    # back to the item's own order
    numbers = texts[j + 1].split(" ") if marks[j:] == [SCORES, END] else []
    if len(numbers) != n or not all(SCORE.fullmatch(x) for x in numbers):
        return "bad scores", principles, critiques, None
    return "ok", principles, critiques, [int(numbers[order.index(i)]) for i in range(n)]
