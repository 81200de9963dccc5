"""
Sums and sorting of any length, and evidence step by step (for depth.py).

    correct: 230+481=711 got 7 7 1 1 1 1, good                           in one step
    correct: 0+1=1 3+8=11 2+4+1=7 so 711 got 7 7 1 1 1 1, good           step by step

    correct: sort b b c c d e, bad
    correct: c d b has b c d has c so b c d got b b c c d e, bad

An incorrect sum is off by 1, 10, 100 and so on. An incorrect order has two neighbours swapped, or one letter that
was not given: such an order ascends, and looking at the response alone does not help.
"""

import random
import re
from dataclasses import replace

from data.annotators import GENERAL, HINTED, HINTED_SKILLS, SKILLS, annotate, checking, general_text
from data.judgement import judgement_parts, prompt_parts
from data.tokenizer import END
from data.world import CUES, LETTERS, RATERS, Item, gold_reward, make_response, seed_of, side_by_side, split_of


def problem_of(rng, domain, length):
    """-> (text of the task, problem), as make_query"""
    if domain == "sums":
        a, b = (rng.randint(10 ** (length - 1), 10 ** length - 1) for _ in range(2))
        return f"what is {a}+{b}?", (a, b)
    letters = rng.sample(LETTERS, length)
    return f"sort {' '.join(letters)}", letters


def wrong_sum(rng, problem):
    """-> (answer, evidence)"""
    right = sum(problem)
    off = 10 ** rng.randrange(len(str(max(problem))))
    wrong = right + (off if rng.random() < 0.5 or off >= right else -off)
    return str(wrong), f"{problem[0]}+{problem[1]}={right} got {side_by_side(str(right), str(wrong))}"


def wrong_order(rng, problem):
    """-> (answer, evidence)"""
    given = sorted(problem)
    if rng.random() < 0.5:
        i = rng.randrange(len(given) - 1)
        given[i], given[i + 1] = given[i + 1], given[i]
    else:
        bounds = ["", *given, "~"]                                           # before and after all letters
        i, letter = rng.choice([(i, letter) for i in range(len(given)) for letter in LETTERS
                                if bounds[i] < letter < bounds[i + 2] and letter != given[i]])
        given[i] = letter
    return " ".join(given), f"sort {side_by_side(sorted(problem), given)}"


def response_of(rng, domain, problem, weights):
    """As make_response, with other incorrect answers"""
    text, truth = make_response(rng, domain, problem, weights)
    if truth["correct"][0]:
        return text, truth
    pattern = r"(?<=it is )-?\d+" if domain == "sums" else rf"\b[a-z]( [a-z]){{{len(problem) - 1}}}\b"
    answer, evidence = (wrong_sum if domain == "sums" else wrong_order)(rng, problem)
    return re.sub(pattern, answer, text, count=1), {**truth, "correct": (False, evidence)}


def is_decided(weights, truth):
    """Would the better response be the worse one, if the verdicts on "correct" were turned round?"""
    style = [sum(weight for name, weight in weights.items() if name != "correct" and t[name][0]) for t in truth]
    return truth[0]["correct"][0] != truth[1]["correct"][0] and abs(style[0] - style[1]) < weights["correct"]


def item_of(seed, split, domain, length, index):
    """An item of two responses, one of them the best. One in ten of the training split has one response. Of a test
    item one response is correct. This decides it: no difference in style outweighs it."""
    id = f"{split}-{domain}{length}-{index}"
    rng = random.Random(seed_of(seed, "depth", id))
    n = 1 if split == "train" and rng.random() < 0.1 else 2
    while True:
        cue = rng.choice(list(CUES))
        task, problem = problem_of(rng, domain, length)
        # The same numbers or letters in another order are in the same split.
        if not split_of(domain, cue, task) == split_of(domain, cue, f"{domain} {sorted(problem)}") == split:
            continue
        weights = RATERS[domain][cue]
        texts, truth = zip(*[response_of(rng, domain, problem, weights) for _ in range(n)])
        gold = [gold_reward(weights, t) for t in truth]
        if len(set(texts)) < n or gold.count(max(gold)) > 1:
            continue
        if split == "train" or is_decided(weights, truth):
            return Item(id, domain, CUES[cue] + task, list(texts), gold, cue, split, list(truth))


def items_of(seed, split, lengths, count):
    """`count` items, of all lengths in turn"""
    cells = [(domain, length) for domain in lengths for length in lengths[domain]]
    return [item_of(seed, split, *cells[i % len(cells)], i // len(cells)) for i in range(count)]


def cell_of(item):
    """Its domain and length, as in its id: ("sums", 4)"""
    return item.domain, int(re.search(r"(\d+)-", item.id)[1])

# ----------------------------------------------------------------------------------------
# Evidence, step by step


def adding(a, b):
    """
    >>> adding(230, 481), adding(95, 7)
    ('0+1=1 3+8=11 2+4+1=7 so 711', '5+7=12 9+0+1=10 so 102')
    """
    steps, carry, width = [], 0, max(len(str(a)), len(str(b)))
    for x, y in zip(reversed(str(a).zfill(width)), reversed(str(b).zfill(width))):
        total = int(x) + int(y) + carry
        steps.append(f"{x}+{y}{'+1' if carry else ''}={total}")
        carry = total // 10
    return f"{' '.join(steps)} so {a + b}"


def sorting(letters):
    """
    >>> sorting(["c", "d", "b"])
    'c d b has b c d has c so b c d'
    """
    steps, rest = [], list(letters)
    while len(rest) > 1:
        steps.append(f"{' '.join(rest)} has {min(rest)}")
        rest.remove(min(rest))
    return f"{' '.join(steps)} so {' '.join(sorted(letters))}"


def step_by_step(item):
    """The item, with such evidence for "correct" in its truth"""
    task, truths = item.query.removeprefix(CUES[item.cue]), []
    for response, truth in zip(item.responses, item.truth):
        met, evidence = truth["correct"]
        if item.domain == "sums":
            a, b = (int(n) for n in re.findall(r"\d+", task))
            way = adding(a, b) + " got" + evidence.split(" got")[1]
        else:
            way = f"{sorting(task.split(' ')[1:])} got{evidence.removeprefix('sort')}"
        truths.append({**truth, "correct": (met, way)})
    return replace(item, truth=truths)

# ----------------------------------------------------------------------------------------
# The corpus. arm: the lengths of its problems, and the share of its evidence that goes step by step


def single_digits(rng):
    """A few sums of single digits, with a carry or without."""
    document = []
    for _ in range(6):
        a, b, carry = rng.randint(0, 9), rng.randint(0, 9), rng.random() < 0.4
        document += [([f" {a}+{b}{'+1' if carry else ''}="], False), ([str(a + b + carry)], True)]
    return [*document, ([END], True)]


def random_item(rng, seed, arm):
    domain = rng.choice(list(arm.lengths))
    item = item_of(seed, "train", domain, rng.choice(arm.lengths[domain]), rng.getrandbits(40))
    return step_by_step(item) if rng.random() < arm.long else item


def general(rng, seed, arm):
    """A document of general text: practice of single digits, checks of these items, or as ever"""
    kind = rng.random()
    if kind < 0.4:
        return single_digits(rng)
    if kind < 0.65:
        return general_text(rng)
    item = random_item(rng, seed, arm)
    return checking(rng, item.query, list(zip(item.responses, item.truth)))


def document(seed, index, arm):
    """As make_document, about these items"""
    rng = random.Random(seed_of(seed, "document", index))
    if rng.random() < GENERAL:
        return general(rng, seed, arm)
    item = random_item(rng, seed, arm)
    hint = item.best if item.n > 1 and rng.random() < HINTED else None
    skills = SKILLS if hint is None else HINTED_SKILLS
    judgement = judgement_parts(*annotate(rng, item, rng.choices(list(skills), skills.values())[0], hint))
    return [(prompt_parts(item.query, item.responses, hint), False), (judgement, True)]
