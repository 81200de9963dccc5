"""
The pre-training corpus: general text, and judgements by simulated annotators of mixed skill.

The from-scratch model must have seen judging before it can be improved at judging, just as the
paper's base model has. What it sees is mostly poor: 'sloppy' annotators go by an impression that follows
manners (polite and playful words) more than merit, 'average' ones check without evidence and often err, and
the few 'experts' quote the response and give evidence for every check. The sloppy way is the most frequent
one, so it is the base model's greedy answer; the good ways are in it too, and RFT and RL have to bring them
out.

Two properties matter for the method:
- most errors come from the judgement's own random draws, not from the item, so votes can cancel them
  (the taste for manners is a bias: votes cannot cancel it, but a Meta RM can filter it out);
- those who write principles mostly overlook the cue, so the common principles err for all queries with a cue:
  that raters do mind it has to be learned from preferences.

A document is a list of (parts, learned) pairs: parts for Tokenizer.encode, and whether the model has to learn
to write them or is only given them. Queries and responses are given: they were drawn at random, there is
nothing to learn in them, but their noise would drown the few tokens that carry a skill.
"""

import random

import numpy as np

from data import UserError
from data.judgement import checks_text, judgement_parts, principles_text, render_prompt
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
# Its domains, one drawn at random. To refuse or to help is learned at once; to compare takes more practice,
# most of all what stands far apart (reverse) or is rare (a fact).
PRACTICE = [*DOMAINS, "sums", "sort", "reverse", "facts", "lists", "reverse", "facts"]
HINTED = 0.15                                      # share of annotations that carry a hint, if n > 1
SKILLS = {"sloppy": 0.66, "average": 0.26, "expert": 0.08}
WRONG_CHECK = {"average": 0.20, "expert": 0.03}    # chance that a verdict is wrong
IMPRESSION_NOISE = 2.5                             # standard deviation of a sloppy score, of 1 to 10
OVERLOOKED = 0.6                                   # chance that principles are as if there were no cue

# ----------------------------------------------------------------------------------------
# Principles

def rebalance(rng, weights, moves=0):
    """Make the weights sum to 10, each at least 1, then move `moves` single units at random."""
    weights = dict(weights)
    names = list(weights)
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
    """An annotator's criteria and weights for a query of this domain and cue: {name: weight}, sum 10."""
    if skill == "sloppy":
        return {"overall": 10}
    weights = dict(RATERS[domain]["none" if rng.random() < OVERLOOKED else cue])
    if skill == "average":                         # some criteria are missed, some do not belong here
        weights = {name: w for name, w in weights.items() if rng.random() < 0.8} or weights
        if rng.random() < 0.4:
            weights.setdefault(rng.choice(STYLE_CRITERIA), 2)
    return rebalance(rng, weights, moves=1)

# ----------------------------------------------------------------------------------------
# Critiques

def impression(rng, gold, truth):
    """A sloppy annotator's (text, total): a look, taken in by manners, and a score with large noise."""
    look = gold / 3 + 3 * truth["polite"][0] + 3 * truth["playful"][0]
    total = min(10, max(1, round(rng.gauss(look, IMPRESSION_NOISE))))
    return " looks " + ("great" if total >= 8 else "fine" if total >= 5 else "poor"), total


def check(rng, weights, truth, skill, verdict=None):
    """Every principle checked on one response -> (text, total). `verdict` is the outcome of all, if given."""
    checks = []
    for name in weights:
        met, evidence = truth[name]
        slip = rng.random() < WRONG_CHECK[skill]
        good = verdict if verdict is not None else met != slip               # the truth, flipped by a slip
        checks.append((name, None if skill == "average" else evidence, good))
    return checks_text(checks, weights), max(1, sum(weights[name] for name, _, good in checks if good))


def annotate(rng, item, skill, hint=None):
    """One judgement of the item -> (principles, critiques, scores), as in judgement_parts. hint: index of the
    best response, if the prompt names it."""
    weights, critiques = principles(rng, item.subset, item.cue, skill), []
    # Told which response is best, the average annotator takes a short cut: all good there, all bad elsewhere.
    short_cut = hint is not None and skill == "average"
    for i, response in enumerate(item.responses):
        if skill == "sloppy":
            text, total = impression(rng, item.gold[i], item.truth[i])
        else:
            text, total = check(rng, weights, item.truth[i], skill, i == hint if short_cut else None)
        if hint is not None:                       # whatever was found, the totals agree with the hint
            total = max(total, 8) if i == hint else min(total, 7)
        critiques.append((response if skill == "expert" else None, text, total))
    return weights, critiques, [total for _, _, total in critiques]

# ----------------------------------------------------------------------------------------
# General text: the bare skills, without any judging. responses: as of make_response

def adding(rng):
    """Given weights and verdicts on each of a few responses: the sum of the weights found good, step by step.

    Without such texts some seeds never learn to add: their totals do not depend on their checks.
    """
    names = rng.sample(CONTENT_CRITERIA + STYLE_CRITERIA, rng.choice([2, 3, 3, 4]))
    weights = rebalance(rng, dict.fromkeys(names, 3), moves=6)
    document = [([principles_text(weights)], False)]
    for mark in RESPONSE[:rng.choice([2, 3, 4])]:
        given, total = [mark, CHECKS], 0
        for name in names:
            good = rng.random() < 0.5
            total += weights[name] * good
            document += [([*given, checks_text([(name, None, good)])], False), ([f" {total}"], True)]
            given = []
        document += [([TOTAL], False), ([str(max(1, total))], True)]
    return [*document, ([END], True)]


def checking(rng, query, responses):
    """Given a query and responses: checks of their content and of one criterion of style. To go on with the
    next response, or to end, is learned, too."""
    marks = RESPONSE[:len(responses)]
    document = [([" " + query, marks[0]], False)]
    for (text, truth, _), after in zip(responses, [*marks[1:], END]):
        names = [n for n in truth if n in CONTENT_CRITERIA] + [rng.choice(STYLE_CRITERIA)]
        rng.shuffle(names)
        checks = checks_text([(name, truth[name][1], truth[name][0]) for name in names])
        document += [([" " + text, CHECKS], False), ([checks, after], True)]
    return document


def weighing(rng, query, domain, cue):
    """Given a query alone: an expert's principles. Without such texts some seeds' judges find a cue where
    there is none, and RL cannot mend it: all samples of a judge share that mistake."""
    return [(render_prompt(query, []), False),
            ([principles_text(principles(rng, domain, cue, "expert")), END], True)]


def quoting(responses):
    """Given responses: their texts again."""
    quotes = [part for mark, (text, _, _) in zip(RESPONSE, responses) for part in (mark, " " + text)]
    return [(quotes + [CRITIQUE], False), (quotes + [END], True)]


def general_text(rng):
    """A short document that shows one skill."""
    kind = rng.choices(list(GENERAL_KINDS), GENERAL_KINDS.values())[0]
    if kind == "adding":
        return adding(rng)
    domain, cue, task, problem = draw_query(rng, "train", PRACTICE)
    if kind == "weighing":
        return weighing(rng, CUES[cue] + task, domain, cue)
    responses = [make_response(rng, domain, problem, RATERS[domain][cue]) for _ in range(rng.choice([2, 3]))]
    return quoting(responses) if kind == "quoting" else checking(rng, CUES[cue] + task, responses)

# ----------------------------------------------------------------------------------------
# The corpus

def document(seed, index, annotate=annotate):
    """Document number `index` of the corpus: a function of its arguments alone."""
    rng = random.Random(seed_of(seed, "document", index))
    if rng.random() < GENERAL:
        return general_text(rng)
    item = make_item(seed, "train", seed_of("annotated", index))   # a huge number, no training point's
    hint = item.best if item.n > 1 and rng.random() < HINTED else None
    # who is told which one is best writes checks: that makes RFT's hinted samples worth more than impressions
    skills = SKILLS if hint is None else {"average": 0.5, "expert": 0.5}
    skill = rng.choices(list(skills), skills.values())[0]
    judgement = judgement_parts(*annotate(rng, item, skill, hint))
    return [(render_prompt(item.query, item.responses, hint), False), (judgement, True)]


def corpus_texts(seed, count):
    """The texts of the first documents, for the tokenizer to learn from."""
    return [part for i in range(count) for parts, _ in document(seed, i) for part in parts
            if isinstance(part, str)]


def encode_document(tok, document):
    """-> ids, mask: two lists, the mask True on the tokens that are to be learned."""
    ids, mask = [], []
    for parts, learned in document:
        new = tok.encode(parts)
        ids, mask = ids + new, mask + [learned] * len(new)
    return ids, mask


def pack(examples, T, seed):
    """Whole documents into rows of up to T tokens -> (ids, mask), each (rows, T).

    examples: encoded documents, (ids, mask) pairs. Each goes into the first of the last few rows that has
    room. The rest of a row is PAD and not learned, END is.
    """
    rows, used = [], []                            # the examples of each row, and its number of tokens
    for example in examples:
        size = len(example[0])
        if size > T:
            raise UserError(f"a document of {size} tokens: raise --block_size or --vocab_size")
        last = range(max(0, len(rows) - 8), len(rows))
        i = next((i for i in last if used[i] + size <= T), len(rows))
        if i == len(rows):
            rows.append([])
            used.append(0)
        rows[i].append(example)
        used[i] += size
    ids, mask = np.full((len(rows), T), PAD, np.int16), np.zeros((len(rows), T), bool)
    rng = random.Random(seed)
    for i, row in enumerate(rows):
        rng.shuffle(row)                           # long documents open rows: they must not always come first
        start = 0
        for x, m in row:
            ids[i, start:start + len(x)], mask[i, start:start + len(x)] = x, m
            start += len(x)
    return ids, mask


def corpus(tok, seed, tokens, T, annotate=annotate):
    """Documents 0, 1, 2, ... until they hold `tokens` tokens, packed -> (ids, mask), each (rows, T)."""
    examples, count = [], 0
    while count < tokens:
        examples.append(encode_document(tok, document(seed, len(examples), annotate)))
        count += len(examples[-1][0])
    return pack(examples, T, seed_of(seed, "pack"))
