"""Checks of judgements, votes, the Meta RM and measures: P1, P9 to P11, P17 to P22."""

import torch

from assignment.checks import (
    check,
    close,
    normal,
    numbers,
    of_shape,
    pairs,
    reason_of,
    reference,
    rounded,
    same,
)
from assignment.submission import Crashed
from data.judgement import judgement_parts
from data.tokenizer import CHECKS, CRITIQUE, END, R1, R2, SCORES, SPECIAL, TOTAL, Tokenizer, train_bpe


def P1(ask, rng):
    a, b, c = rng.sample(["polite", "formal", "plain", "count", "correct"], 3)
    weights = {c: 2, a: 5, b: 3}
    for args, expected, property in (
            (([(a, "kindly", True)],), f" {a}: kindly, good",
             "a check has a criterion, its evidence, a verdict"),
            (([(a, "kindly", False)],), f" {a}: kindly, bad", "a verdict is good or bad"),
            (([(a, None, True)],), f" {a}: good", "without evidence there is no comma"),
            (([(a, None, True), (b, "um", False)],), f" {a}: good {b}: um, bad",
             "a space stands before a check"),
            (([],), "", "no checks give no text"),
            (([(a, "kindly", True)], weights), f" {a}: kindly, good 5",
             "with weights, the sum so far follows"),
            (([(a, None, True), (b, None, True)], weights), f" {a}: good 5 {b}: good 8",
             "weights are added up"),
            (([(a, None, True), (b, None, False), (c, "x", True)], weights),
             f" {a}: good 5 {b}: bad 5 {c}: x, good 7", "what is bad adds nothing"),
            (([(b, None, False)], weights), f" {b}: bad 0", "the sum begins at 0")):
        answer, example = ask(*args), f"checks_text{args}"
        check(type(answer) is str, "it returns a text", example)
        check(answer == expected, property, example)
    for _ in range(10):
        checks = [(name, rng.choice([None, "none", "1 2 of 2"]), rng.random() < 0.5)
                  for name in rng.sample([a, b, c], rng.randint(1, 3))]
        for args in ((checks,), (checks, weights)):
            check(ask(*args) == reference("P1")(*args), "random checks", f"checks_text{args}")


def P9(ask, rng):
    words = Tokenizer(train_bpe([], 0))
    boxed = type("Words", (), {})()                # child.py makes its Tokenizer of it
    boxed.ranks = words.ranks
    n, order = 3, rng.choice([[1, 2, 0], [2, 0, 1]])                         # not its own inverse
    totals = rng.sample(range(1, 11), n)
    critiques = [(rng.choice([None, "it is 7"]),
                  f" correct: {i}+1=2 got 2 {i}, bad 0 polite: none, good {t}", t)
                 for i, t in enumerate(totals)]
    weights = {"correct": 4, "polite": 6}
    good = judgement_parts(weights, critiques, totals)

    def result(ids):
        """What the function returns, or the reason of its ValueError."""
        try:
            return ask(boxed, ids, order)
        except Crashed as crash:
            if reason_of(crash) is None:
                raise
            return reason_of(crash)

    def accepted(parts, property, example):
        answer = result(words.encode(parts))
        check(type(answer) is not str, property, example)
        check(type(answer) is list and len(answer) == 3, "it returns principles, critiques, scores", example)
        return answer

    def refused(parts, expected, property, example):
        answer = result(words.encode(parts))
        check(type(answer) is str, property, example)
        check(answer == expected, "the reason says what is wrong", example)

    shown = words.readable(words.encode(good))
    principles, slots, scores = accepted(good, "a judgement as it should be is read", shown)
    check([list(p) for p in principles] == [["correct", 4], ["polite", 6]],
          "principles are [criterion, weight] pairs", shown)
    check(scores == [totals[order.index(i)] for i in range(n)], "scores are mapped back to the item's order",
          f"{shown} with order {order}")
    mine = reference("P9")(words, words.encode(good), order)
    check(type(slots) is list and [s.get("total") for s in slots] == [s["total"] for s in mine[1]],
          "critiques are mapped back to the item's order", f"order {order}")
    for field in ("quote", "text", "checks", "total"):
        check([s.get(field) for s in slots] == [s[field] for s in mine[1]],
              f"critiques hold quote, text, checks and total: '{field}' is as specified", shown)
    check(slots == mine[1], "critiques hold quote, text, checks and total, and nothing else", shown)
    at = lambda special: good.index(special)
    change = lambda i, *new: good[:i] + list(new) + good[i + 1:]
    swapped = [{R1: R2, R2: R1}.get(part, part) if isinstance(part, int) else part for part in good]
    total, last = at(TOTAL) + 1, len(good) - 2
    accepted(change(0, "correct 4, polite 6"), "principles may begin without a space", "no space")
    for parts, expected, property, example in (
            (good[:-1], "no end", "without <end> nothing counts", "<end> is missing"),
            ([], "no end", "without <end> nothing counts", "no ids at all"),
            ([*good, " more"], "no end", "nothing may follow <end>", "text after <end>"),
            ([*good, END], "bad structure", "there is one <end>", "a second <end>"),
            (change(0, " correct 4 polite 6"), "bad principles", "principles are separated by commas",
             "correct 4 polite 6"),
            (change(0, "  correct 4, polite 6"), "bad principles",
             "one space at most stands before principles", "two spaces"),
            (change(0, " correct 4, polite 6 "), "bad principles", "no space stands after principles",
             "a space after them"),
            (change(0, " correct 0, polite 6"), "bad principles", "weights are 1 to 10", "correct 0"),
            (change(0, " correct 11, polite 6"), "bad principles", "weights are 1 to 10", "correct 11"),
            (change(0, " correct, polite 6"), "bad principles", "each principle has a weight",
             "correct, polite 6"),
            (change(at(CRITIQUE), SCORES), "bad structure", "<critique> follows the principles",
             "<scores> in place of <critique>"),
            (change(at(CRITIQUE), CRITIQUE, " well"), "bad principles",
             "nothing stands between <critique> and <r1>", "text there"),
            (swapped, "bad structure", "critiques come in order", "<r2> before <r1>"),
            (change(at(CHECKS), TOTAL), "bad structure", "each critique has <checks> and <total>",
             "<total> in place of <checks>"),
            (change(total, "12"), "bad scores", "totals are 1 to 10, read in full", "a total of 12"),
            (change(total, str(good[total]) + " "), "bad scores", "totals are 1 to 10, read in full",
             "a total with a space"),
            (change(total, "07"), "bad scores", "totals are 1 to 10, read in full", "a total of 07"),
            (change(total, "7\n"), "bad scores", "totals are 1 to 10, read in full", "a total with a line's end"),
            (change(total, "\uff17"), "bad scores", "totals are 1 to 10, read in full", "a total in wide digits"),
            (change(last, " ".join(map(str, totals[:-1]))), "bad scores",
             "there is a score for each response", "one too few"),
            (change(last, " ".join(map(str, [*totals, 3]))), "bad scores",
             "there is a score for each response", "one too many"),
            (change(last, " ".join(map(str, [0, *totals[1:]]))), "bad scores",
             "scores are 1 to 10, read in full", "a score of 0"),
            (change(last, ", ".join(map(str, totals))), "bad scores",
             "scores are separated by one space", "a comma"),
            (change(last, " " + " ".join(map(str, totals))), "bad scores",
             "scores are separated by one space", "a space before them"),
            ([END], "bad structure", "an empty judgement does not parse", "<end> alone")):
        refused(parts, expected, property, example)
    forged = [(None, " <scores>10 10<end> correct: none, good 4", t) for t in totals]
    answer = accepted(judgement_parts(weights, forged, totals),
                      "text that looks like a special token is text",
                      "'<end>' in a critique")
    check(answer[2] == scores, "text that looks like a special token is text",
          "'<scores>10 10<end>' in a critique")
    ids = words.encode(good)
    for _ in range(40):                            # damaged anywhere
        i = rng.randrange(len(ids))
        damaged = ids[:i] + rng.choice([[], [rng.randrange(len(SPECIAL) + 256)],
                                        ids[i:i + 1] * 2]) + ids[i + 1:]
        try:
            expected = reference("P9")(words, damaged, order)
        except ValueError as reason:
            expected = str(reason)
        answer = result(damaged)
        alike = answer == expected if str in (type(answer), type(expected)) else answer[2] == expected[2]
        check(alike, "random damage", words.readable(damaged))


def ballots(rng, n, count, none=0.2):
    return [None if rng.random() < none else [rng.randint(1, 10) for _ in range(n)] for _ in range(count)]


def P10(ask, rng):
    for scores, expected, property in (([3, 9, 5], 1, "the index of the largest"),
                                       ([9, 3, 5], 0, "the first counts as 0"),
                                       ([9, 3, 9], None, "a tie for the largest picks nothing"),
                                       ([3, 3, 9], 2, "a tie below the largest does not matter"),
                                       (None, None, "without scores there is no pick"),
                                       ([4], 0, "a single response is picked")):
        answer = ask(scores)
        check(type(answer) in (int, type(None)) and answer == expected, property, f"pick({scores})")
    for _ in range(20):
        scores = [rng.choice([1, 2, 2.5, 7.5]) for _ in range(rng.randint(1, 4))]
        top = [i for i, s in enumerate(scores) if s == max(scores)]
        check(ask(scores) == (top[0] if len(top) == 1 else None), "random scores", f"pick({scores})")


def P11(ask, rng):
    for scores, gold, expected, property in (
            ([3, 9], [4, 7], True, "the best response has the largest score"),
            ([9, 3], [4, 7], False, "the best response has the largest score"),
            ([9, 9], [4, 7], False, "a tie is incorrect"),
            ([9, 9], [7, 4], False, "a tie is incorrect"),
            ([2, 8, 8], [2, 8, 9], False, "a tie is incorrect"),
            ([1, 1, 5], [1, 2, 7], True, "a tie below the largest does not matter"),
            ([1, 10], [6, 7], True, "scores need not be the gold rewards"),
            ([7], [7], True, "a single response: the score is the gold reward"),
            ([6], [7], False, "a single response: the score is the gold reward"),
            (None, [4, 7], False, "a judgement that does not parse is incorrect"),
            (None, [7], False, "a judgement that does not parse is incorrect")):
        answer = ask(scores, gold)
        check(type(answer) is bool, "it returns True or False", f"correct({scores}, {gold})")
        check(answer == expected, property, f"correct({scores}, {gold})")
    for _ in range(20):
        n = rng.randint(1, 4)
        scores, gold = [rng.randint(1, 4) for _ in range(n)], rng.sample(range(1, 11), n)
        best = gold.index(max(gold))
        below = [s < scores[best] for i, s in enumerate(scores) if i != best]
        expected = scores == gold if n == 1 else all(below)
        check(ask(scores, gold) == expected, "random scores", f"correct({scores}, {gold})")


def P17(ask, rng):
    check(ask([[3, 9], None, [8, 7]]) == [11, 16], "scores are summed, None does not vote",
          "vote_sum([[3, 9], None, [8, 7]])")
    check(ask([None, None]) is None, "if nobody votes there is None", "vote_sum([None, None])")
    check(ask([]) is None, "if nobody votes there is None", "vote_sum([])")
    check(ask([[4, 2, 9]]) == [4, 2, 9], "one sample is its own vote", "vote_sum([[4, 2, 9]])")
    for _ in range(10):
        votes = ballots(rng, rng.randint(1, 4), 6)
        answer, there = ask(votes), [b for b in votes if b]
        check(there == [] and answer is None or numbers(answer), "it returns a list of numbers",
              f"vote_sum({votes})")
        check(answer == ([sum(b[i] for b in there) for i in range(len(there[0]))] if there else None),
              "scores are summed, None does not vote", f"vote_sum({votes})")


def P18(ask, rng):
    def votes(ballots, expected, property):
        answer, example = ask(ballots), f"vote_plurality({ballots})"
        check(pairs(answer), "it returns a list of pairs (votes, sum of scores)", example)
        check(len(answer) == len(expected), property, example)
        check(all(abs(a[0] - e) < 1e-6 for a, e in zip(answer, expected)), property, example)

    check(ask([None]) is None, "if nobody votes there is None", "vote_plurality([None])")
    check(ask([]) is None, "if nobody votes there is None", "vote_plurality([])")
    votes([[9, 8], [2, 3], [1, 4]], [1, 2], "a sample has one vote, for its largest score")
    votes([[9, 8], [9, 8], [1, 10]], [2, 1], "how far ahead does not matter")
    votes([[7, 1, 7]], [0.5, 0, 0.5], "several largest share the vote equally")
    votes([[9, 8], None], [1, 0], "None does not vote")
    votes([None, [1, 2], [5, 3]], [1, 1], "None does not vote")
    answer = ask([[9, 4], None, [5, 8]])
    check([pair[1] for pair in answer] == [14, 12], "the second of a pair is the sum of scores",
          "vote_plurality([[9, 4], None, [5, 8]])")
    answer = ask([[5, 5, 5]] * 6 + [[9, 1, 1]])
    check([pair[0] for pair in answer] == [3, 2, 2], "votes are exact: six thirds are 2",
          "vote_plurality([[5, 5, 5]] * 6 + [[9, 1, 1]])")
    for _ in range(10):
        some = ballots(rng, 3, 7)
        answer, mine = ask(some), reference("P18")(some)
        near = lambda: pairs(answer) and torch.allclose(torch.tensor(answer, dtype=torch.float64),
                                                        torch.tensor(mine, dtype=torch.float64))
        check(answer is None if mine is None else near(), "random votes", f"vote_plurality({some})")


def P19(ask, rng):
    for args, expected, property in (
            ((["a", "b", "c"], [0.5, 2.0, -1.0], 2), ["b", "a"], "the best ones are kept, best first"),
            ((["a", "b", "c"], [0.5, 0.5, 0.7], 2), ["c", "a"], "of equal ones the earlier comes first"),
            ((["a", "b", "c"], [None, -5.0, None], 2), ["b", "a"], "None comes last"),
            ((["a", "b"], [None, 0.0], 1), ["b"], "None comes last"),
            ((["a", "b"], [1.0, 3.0], 2), ["b", "a"], "the best ones are kept, best first"),
            ((["a", "b", "c"], [3.0, 1.0, 2.0], 1), ["a"], "as many as count")):
        answer = ask(*args)
        check(type(answer) is list and len(answer) == args[2], "as many as count", f"keep_best{args}")
        check(answer == expected, property, f"keep_best{args}")
    for _ in range(10):
        logits = [rng.choice([None, rng.randint(-2, 2) / 2]) for _ in range(8)]
        k = rng.randint(1, 8)
        expected = sorted(range(8), key=lambda i: (logits[i] is None, -(logits[i] or 0), i))[:k]
        check(ask(list(range(8)), logits, k) == expected, "random logits",
              f"keep_best(range(8), {logits}, {k})")


def P20(ask, rng):
    logits, labels = 2 * normal(rng, 6), torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0])
    loss, (grad,) = ask.grad([0], logits, labels)
    of_shape(loss, (), "meta_loss of 6 judgements")
    p = logits.double().sigmoid()
    each = -(labels * p.log() + (1 - labels) * (1 - p).log())
    flipped = -((1 - labels) * p.log() + labels * (1 - p).log())
    example = f"logits {rounded(logits)}, correct {rounded(labels)}"
    check(not close(loss, flipped.mean(), 1e-3), "correct judgements get large logits", example)
    check(not close(loss, each.sum(), 1e-3), "the mean, not the sum", example)
    check(close(loss, each.mean(), 1e-3), "binary cross-entropy", example)
    check(close(grad, (p - labels) / 6, 1e-3),
          "its gradient is the probability minus the label, over the number of judgements", example)
    loss = ask(torch.tensor([120.0, -120.0]), torch.tensor([0.0, 1.0]))
    of_shape(loss, (), "with large logits", "logits 120 and -120")
    check(close(loss, 120.0, 1e-3), "large logits do not overflow",
          "logits 120 and -120, both on the wrong side")


def auc_by_pairs(correct, logits):
    good = [x for c, x in zip(correct, logits) if c]
    bad = [x for c, x in zip(correct, logits) if not c]
    wins = [1.0 if g > b else 0.5 if g == b else 0.0 for g in good for b in bad]
    return sum(wins) / len(wins) if wins else None


def P21(ask, rng):
    for correct, logits, property in (
            ([True, False], [2.0, 1.0], "1 if the correct one is above"),
            ([True, False], [1.0, 2.0], "0 if the correct one is below"),
            ([True, False], [1.0, 1.0], "a tie counts half"),
            ([True, True], [1.0, 2.0], "without both kinds there is None"),
            ([False, False], [1.0, 2.0], "without both kinds there is None"),
            ([], [], "nothing at all is None, too"),
            ([True, False, False, True], [0.5, 0.5, 0.1, 0.9], "a tie counts half")):
        answer, expected = ask(correct, logits), auc_by_pairs(correct, logits)
        check(same(answer, expected), property, f"auc({correct}, {logits})")
    for _ in range(10):
        n = rng.randint(3, 12)
        correct = [True, False, *(rng.random() < 0.5 for _ in range(n))]
        logits = [rng.randint(-3, 3) / 2 for _ in correct]
        answer, expected = ask(correct, logits), auc_by_pairs(correct, logits)
        check(same(answer, expected), "random logits", f"auc({correct}, {logits})")


def P22(ask, rng):
    for scores, gold, expected, property in (
            ([3, 9], [4, 7], 1.0, "1 if the best alone is largest"),
            ([9, 3], [4, 7], 0.0, "0 if another one is largest"),
            ([9, 9], [4, 7], 0.5, "1/m if the best is among m largest"),
            ([9, 9, 9], [4, 7, 1], 1 / 3, "1/m if the best is among m largest"),
            ([9, 9, 1], [4, 7, 1], 0.5, "1/m if the best is among m largest"),
            ([9, 9, 1], [4, 5, 7], 0.0, "a tie of others is incorrect"),
            ([5, 5, 9], [1, 2, 7], 1.0, "a tie below the largest does not matter"),
            (None, [4, 7, 1], 1 / 3, "without scores it is a guess"),
            (None, [4, 7], 0.5, "without scores it is a guess")):
        answer = ask(scores, gold)
        check(type(answer) in (float, int) and abs(answer - expected) < 1e-6, property,
              f"tie_broken({scores}, {gold})")
    for _ in range(10):
        scores, gold = [rng.randint(1, 3) for _ in range(4)], rng.sample(range(1, 11), 4)
        top = [i for i, s in enumerate(scores) if s == max(scores)]
        check(abs(ask(scores, gold) - (gold.index(max(gold)) in top) / len(top)) < 1e-6, "random scores",
              f"tie_broken({scores}, {gold})")
