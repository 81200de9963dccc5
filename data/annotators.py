"""
The pre-training corpus: judgements by simulated annotators, and general text.

The paper starts from a large language model, which has read judgements before it is improved at judging. Our
model starts from nothing, so we show it some. Most of what it reads is careless: that leaves RFT and RL
something to improve. Documents look like this. The model learns to write what is in [brackets]; the rest is
given. (Queries and responses are random: to predict them would teach nothing.)

careless   <query> name 2 fruits <r1> plum pear <r2> apple saw <principles>[ overall 10 <critique>
               <r1><checks> looks poor <total>3 <r2><checks> looks fine <total>5 <scores>3 5 <end>]
average    <query> ... <principles>[ count 4, kind 6 <critique>
               <r1><checks> count: good 4 kind: good 10 <total>10 <r2><checks> count: good 4 kind: bad 4 ...
expert     <query> ... <principles>[ count 4, kind 4, playful 2 <critique>
               <r1> plum pear <checks> count: 1 2 of 2, good 4 kind: fruits plum fruits pear fruits, good 8 ...
checking   what is 1+1? <r1> it is 2 <checks>[ correct: 1+1=2 got 2 2, good formal: none, good <r2>] it is 3 ...
adding     count 4, kind 6 <r1><checks> count: good[ 4] kind: bad[ 4] <total>[4] <r2> ... [<end>]
weighing   <query> name 2 fruits <principles>[ count 4, kind 4, playful 2 <end>]
quoting    <r1> plum pear <r2> apple saw <critique>[<r1> plum pear <r2> apple saw <end>]

The first three are judgements. The last four are "general text": exercises in place of the paper's general
data. Each practises one part of judging. Without it, some seeds never learn that part.

Some prompts name the best response with <hint>: the model learns to use it, for the hinted samples of RFT.

Two properties of the annotators matter for the method. Most of their errors are independent from judgement
to judgement, so a vote can cancel them. And they mostly overlook the cue, in the exercise of weighing as well.
What the raters want after "for my boss:" has to be found out in RFT and RL.
"""

import random

import numpy as np

from data import UserError
from data.judgement import checks_text, judgement_parts, principles_text, prompt_parts
from data.tokenizer import CHECKS, CRITIQUE, END, PAD, RESPONSE, TOTAL
from data.world import (
    CONTENT_CRITERIA,
    CUES,
    DOMAINS,
    RATERS,
    STYLE_CRITERIA,
    draw_query,
    make_item,
    make_response,
    seed_of,
)

GENERAL = 0.55                                     # share of documents that are general text
GENERAL_KINDS = {"quoting": 0.15, "adding": 0.15, "checking": 0.4, "weighing": 0.3}  # of general text
# The domains of general text, of which one is picked at random. What is hard to check is listed more often:
# reverse and facts three times, sums, sort and lists twice.
PRACTICE = [*DOMAINS, "sums", "sort", "reverse", "facts", "lists", "reverse", "facts"]

SKILLS = {"careless": 0.66, "average": 0.26, "expert": 0.08}                 # shares of the annotators
HINTED = 0.15                                      # share of judgements whose prompt names the best response
HINTED_SKILLS = {"average": 0.5, "expert": 0.5}    # shares of the annotators of these
WRONG_CHECK = {"average": 0.20, "expert": 0.03}    # probability that a verdict is wrong
IMPRESSION_NOISE = 2.5                             # standard deviation of a careless score, of 1 to 10
OVERLOOKED = 0.6                                   # probability that the cue is overlooked

# ----------------------------------------------------------------------------------------
# Principles

def rebalance(rng, weights, moves):
    """-> new weights with the sum 10, each at least 1; a unit of them was moved `moves` times at random."""
    weights, names = dict(weights), list(weights)
    while sum(weights.values()) != 10:
        name = rng.choice(names)
        weights[name] = max(1, weights[name] + (1 if sum(weights.values()) < 10 else -1))
    for _ in range(moves):
        a, b = rng.choice(names), rng.choice(names)
        if weights[a] > 1:
            weights[a] -= 1
            weights[b] += 1
    return weights


def principles(rng, domain, cue, skill):
    """An annotator's principles for a query of this domain and cue: {criterion: weight}, with the sum 10."""
    if skill == "careless":
        return {"overall": 10}
    weights = dict(RATERS[domain]["none" if rng.random() < OVERLOOKED else cue])
    if skill == "average":                         # misses some criteria, and may add one that does not matter
        weights = {name: weight for name, weight in weights.items() if rng.random() < 0.8} or weights
        if rng.random() < 0.4:
            weights.setdefault(rng.choice(STYLE_CRITERIA), 2)
    return rebalance(rng, weights, moves=1)

# ----------------------------------------------------------------------------------------
# Judgements. A document is a list of (parts, learned) pairs: parts for Tokenizer.encode, and whether the model
# learns to write them.

def impression(rng, gold, truth):
    """A careless annotator's look at a response -> (text, total): a third of the gold reward, and 3 for a polite
    and for a playful phrase each, with noise."""
    look = gold / 3 + 3 * truth["polite"][0] + 3 * truth["playful"][0]
    total = min(10, max(1, round(rng.gauss(look, IMPRESSION_NOISE))))
    return " looks " + ("great" if total >= 8 else "fine" if total >= 5 else "poor"), total


def check_all(rng, weights, truth, skill, verdict=None):
    """Check each principle on a response -> (text, total). verdict: of all checks, if it is given."""
    checks = []
    for name in weights:
        met, evidence = truth[name]
        wrong = rng.random() < WRONG_CHECK[skill]  # then the truth is turned round
        good = verdict if verdict is not None else met != wrong
        checks.append((name, None if skill == "average" else evidence, good))
    return checks_text(checks, weights), max(1, sum(weights[name] for name, _, good in checks if good))


def annotate(rng, item, skill, hint=None):
    """An annotator's judgement of an item -> (principles, critiques, scores), as for judgement_parts.

    hint: the index of the best response, if the prompt names it. Annotators then agree with it, whatever they
    have found, so that a total need not be the sum. The average one takes a shortcut: all is good there, and bad
    elsewhere.
    """
    weights, critiques = principles(rng, item.domain, item.cue, skill), []
    shortcut = hint is not None and skill == "average"
    for i, response in enumerate(item.responses):
        if skill == "careless":
            text, total = impression(rng, item.gold[i], item.truth[i])
        else:
            verdict = (i == hint) if shortcut else None
            text, total = check_all(rng, weights, item.truth[i], skill, verdict)
        if hint is not None:                       # a total of 8 or more for the best, 7 or less for the others
            total = max(total, 8) if i == hint else min(total, 7)
        critiques.append((response if skill == "expert" else None, text, total))
    return weights, critiques, [total for _, _, total in critiques]


def judgement_document(seed, index, rng):
    """The document of a judgement: the prompt is given, the judgement is learned."""
    item = make_item(seed, "train", seed_of("annotated", index))   # a huge index: no item of RFT and RL
    hint = item.best if item.n > 1 and rng.random() < HINTED else None
    skills = SKILLS if hint is None else HINTED_SKILLS
    skill = rng.choices(list(skills), skills.values())[0]
    judgement = judgement_parts(*annotate(rng, item, skill, hint))
    return [(prompt_parts(item.query, item.responses, hint), False), (judgement, True)]

# ----------------------------------------------------------------------------------------
# General text

def adding(rng):
    """Add up the weights of what was found good, check by check."""
    names = rng.sample(CONTENT_CRITERIA + STYLE_CRITERIA, rng.choice([2, 3, 3, 4]))
    weights = rebalance(rng, dict.fromkeys(names, 3), moves=6)
    document = [([principles_text(weights)], False)]
    for response in RESPONSE[:rng.choice([2, 3, 4])]:
        document.append(([response, CHECKS], False))
        so_far = 0
        for name in names:
            good = rng.random() < 0.5
            so_far += weights[name] * good
            document += [([checks_text([(name, None, good)])], False), ([f" {so_far}"], True)]
        document += [([TOTAL], False), ([str(max(1, so_far))], True)]
    return [*document, ([END], True)]


def checking(rng, query, responses):
    """Check the content of each response, and one criterion of style, with evidence."""
    special = RESPONSE[:len(responses)]
    document = [([" " + query, special[0]], False)]
    # Each check ends with the special token of the next response. It is learned, too: the check is finished.
    for (text, truth), following in zip(responses, [*special[1:], END]):
        names = [name for name in truth if name in CONTENT_CRITERIA] + [rng.choice(STYLE_CRITERIA)]
        rng.shuffle(names)
        checks = checks_text([(name, truth[name][1], truth[name][0]) for name in names])
        document += [([" " + text, CHECKS], False), ([checks, following], True)]
    return document


def weighing(rng, query, domain, cue):
    """Name the principles for a query alone."""
    weights = principles(rng, domain, cue, "expert")
    return [(prompt_parts(query, []), False), ([principles_text(weights), END], True)]


def quoting(responses):
    """Copy the responses."""
    quotes = [part for special, (text, _) in zip(RESPONSE, responses) for part in (special, " " + text)]
    return [(quotes + [CRITIQUE], False), (quotes + [END], True)]


def general_text(rng):
    """A document that practises one part of judging."""
    kind = rng.choices(list(GENERAL_KINDS), GENERAL_KINDS.values())[0]
    if kind == "adding":
        return adding(rng)
    domain, cue, task, problem = draw_query(rng, "train", PRACTICE)
    query = CUES[cue] + task
    if kind == "weighing":
        return weighing(rng, query, domain, cue)
    responses = [make_response(rng, domain, problem, RATERS[domain][cue]) for _ in range(rng.choice([2, 3]))]
    return quoting(responses) if kind == "quoting" else checking(rng, query, responses)

# ----------------------------------------------------------------------------------------
# The corpus

def make_document(seed, index):
    """Document number `index` of the corpus, a function of its arguments alone."""
    rng = random.Random(seed_of(seed, "document", index))
    return general_text(rng) if rng.random() < GENERAL else judgement_document(seed, index, rng)


def encode_document(tok, document):
    """-> ids, learned: two lists, of tokens, and of booleans that say which of them are learned."""
    ids, learned = [], []
    for parts, is_learned in document:
        new = tok.encode(parts)
        ids, learned = ids + new, learned + [is_learned] * len(new)
    return ids, learned


def pack(examples, T, seed):
    """Put whole documents into rows of T tokens -> ids and learned, both (rows, T).

    examples: (ids, learned) pairs. Each goes into the first of the last eight rows that has room for it. What is
    left of a row is PAD, and not learned.
    """
    rows, used = [], []                            # the examples of each row, and its number of tokens
    for example in examples:
        size = len(example[0])
        if size > T:
            raise UserError(f"A document has {size} tokens. Use a larger --block_size.")
        recent = range(max(0, len(rows) - 8), len(rows))
        i = next((i for i in recent if used[i] + size <= T), len(rows))
        if i == len(rows):
            rows.append([])
            used.append(0)
        rows[i].append(example)
        used[i] += size
    ids, learned = np.full((len(rows), T), PAD, np.int16), np.zeros((len(rows), T), bool)
    rng = random.Random(seed)
    for i, row in enumerate(rows):
        # A row is opened by a document that fits nowhere else, which mostly is a long one. So we shuffle.
        rng.shuffle(row)
        start = 0
        for example_ids, example_learned in row:
            end = start + len(example_ids)
            ids[i, start:end], learned[i, start:end] = example_ids, example_learned
            start = end
    return ids, learned


def make_corpus(tok, seed, tokens, T):
    """Documents 0, 1, 2, ... until they have `tokens` tokens, packed -> ids and learned, both (rows, T)."""
    examples, count = [], 0
    while count < tokens:
        examples.append(encode_document(tok, make_document(seed, len(examples))))
        count += len(examples[-1][0])
    return pack(examples, T, seed_of(seed, "pack"))
