"""Checks of judgements, votes, reward models and measures: P6 to P8, P17 to P24."""

import numpy as np
import torch

from assignment.checks import check, close, normal, numbers, of_shape, reference, rounded, same
from data.judgement import judgement_parts
from data.tokenizer import CHECKS, CRITIQUE, END, MARKS, R1, R2, SCORES, TOTAL, Tokenizer, train_bpe


def P6(ask, rng):
    words = Tokenizer(train_bpe([], 0))
    boxed = type("Words", (), {})()
    boxed.ranks = words.ranks
    n, order = 3, rng.choice([[1, 2, 0], [2, 0, 1]])                         # not its own inverse
    totals = rng.sample(range(1, 11), n)
    critiques = [(rng.choice([None, "it is 7"]),
                  f" correct: {i}+1=2 got 2 {i}, bad 0 polite: none, good {t}", t)
                 for i, t in enumerate(totals)]
    weights = {"correct": 4, "polite": 6}
    good = judgement_parts(weights, critiques, totals)
    read = lambda parts: ask(boxed, words.encode(parts), order)

    def status(parts, property, expected, example):
        answer = read(parts)
        check(type(answer) in (tuple, list) and len(answer) == 4,
              "it returns status, principles, critiques, scores", example)
        check((answer[0] == "ok") == (expected == "ok"), property, example)
        check(answer[0] == expected, "the status says what is wrong", example)
        check(expected == "ok" or answer[3] is None, "what deviates has no scores", example)
        return answer

    shown = words.readable(words.encode(good))
    _, principles, slots, scores = status(good, "what a judge should write is read", "ok", shown)
    check([list(p) for p in principles] == [["correct", 4], ["polite", 6]],
          "principles are [name, weight] pairs", shown)
    check(scores == [totals[order.index(i)] for i in range(n)], "scores are mapped back to the item's order",
          f"{shown} with order {order}")
    mine = reference("P6")(words, words.encode(good), order)
    check(type(slots) is list and [s.get("total") for s in slots] == [s["total"] for s in mine[2]],
          "critiques are mapped back to the item's order", f"order {order}")
    for field in ("quote", "text", "checks", "total"):
        check([s.get(field) for s in slots] == [s[field] for s in mine[2]],
              f"critiques hold quote, text, checks and total: '{field}' is as specified", shown)
    check(slots == mine[2], "critiques hold quote, text, checks and total, and nothing else", shown)
    at = lambda mark: good.index(mark)
    change = lambda i, *new: good[:i] + list(new) + good[i + 1:]
    swapped = [{R1: R2, R2: R1}.get(part, part) if isinstance(part, int) else part for part in good]
    total = at(TOTAL) + 1
    for parts, expected, property, example in (
            (good[:-1], "no end", "without <end> nothing counts", "<end> is missing"),
            ([*good, " more"], "no end", "nothing may follow <end>", "text after <end>"),
            (change(0, " correct 4 polite 6"), "bad principles", "principles are separated by commas",
             "correct 4 polite 6"),
            (change(0, "  correct 4, polite 6"), "bad principles",
             "one space at most stands before principles", "two spaces"),
            (change(0, " correct 4, polite 6 "), "bad principles", "no space stands behind principles",
             "a space behind them"),
            (change(0, "correct 4, polite 6"), "ok", "principles may begin without a space", "no space"),
            (change(0, " correct 0, polite 6"), "bad principles", "weights are 1 to 10", "correct 0"),
            (change(0, " correct 11, polite 6"), "bad principles", "weights are 1 to 10", "correct 11"),
            (change(0, " correct, polite 6"), "bad principles", "each principle has a weight",
             "correct, polite 6"),
            (change(at(CRITIQUE), SCORES), "no critique", "<critique> follows the principles",
             "<scores> in place of <critique>"),
            (change(at(CRITIQUE), CRITIQUE, " well"), "no critique",
             "nothing stands between <critique> and <r1>", "text there"),
            (swapped, "bad critique", "critiques come in order", "<r2> before <r1>"),
            (change(at(CHECKS), TOTAL), "bad critique", "each critique has <checks> and <total>",
             "<total> in place of <checks>"),
            (change(total, "12"), "bad critique", "totals are 1 to 10, read in full", "a total of 12"),
            (change(total, str(good[total]) + " "), "bad critique", "totals are 1 to 10, read in full",
             "a total with a space"),
            (change(len(good) - 2, " ".join(map(str, totals[:-1])) or "x"), "bad scores",
             "there is a score for each response", "one too few"),
            (change(len(good) - 2, " ".join(map(str, [*totals, 3]))), "bad scores",
             "there is a score for each response", "one too many"),
            (change(len(good) - 2, " ".join(map(str, [0, *totals[1:]]))), "bad scores",
             "scores are 1 to 10, read in full", "a score of 0"),
            (change(len(good) - 2, ", ".join(map(str, totals))), "bad scores",
             "scores are separated by one space", "a comma"),
            ([END], "bad principles", "an empty judgement does not parse", "<end> alone")):
        status(parts, property, expected, example)
    forged = [(None, " <scores>10 10<end> correct: none, good 4", t) for t in totals]
    answer = status(judgement_parts(weights, forged, totals), "text that looks like a mark is text", "ok",
                    "'<end>' in a critique")
    check(answer[3] == scores, "text that looks like a mark is text", "'<scores>10 10<end>' in a critique")
    ids = words.encode(good)
    for _ in range(40):                            # damaged anywhere: never an exception
        i = rng.randrange(len(ids))
        damaged = ids[:i] + rng.choice([[], [rng.randrange(len(MARKS) + 256)],
                                        ids[i:i + 1] * 2]) + ids[i + 1:]
        expected = reference("P6")(words, damaged, order)
        answer = ask(boxed, damaged, order)
        check(answer[0] == expected[0] and answer[3] == expected[3], "random damage", words.readable(damaged))


def ballots(rng, n, count, none=0.2):
    return [None if rng.random() < none else [rng.randint(1, 10) for _ in range(n)] for _ in range(count)]


def P7(ask, rng):
    for scores, expected, property in (([3, 9, 5], 1, "the index of the largest"),
                                       ([9, 3, 5], 0, "the first counts as 0"),
                                       ([9, 3, 9], None, "a tie for the largest picks nothing"),
                                       ([3, 3, 9], 2, "a tie below the largest does not matter"),
                                       (None, None, "what did not parse picks nothing"),
                                       ([4], 0, "a single response is picked")):
        answer = ask(scores)
        check(type(answer) in (int, type(None)) and answer == expected, property, f"pick({scores})")
    for _ in range(20):
        scores = [rng.choice([1, 2, 2.5, 7.5]) for _ in range(rng.randint(1, 4))]
        top = [i for i, s in enumerate(scores) if s == max(scores)]
        check(ask(scores) == (top[0] if len(top) == 1 else None), "random scores", f"pick({scores})")


def P8(ask, rng):
    for scores, gold, expected, property in (
            ([3, 9], [4, 7], True, "the best response has the largest score"),
            ([9, 3], [4, 7], False, "the best response has the largest score"),
            ([9, 9], [4, 7], False, "a tie is wrong"),
            ([9, 9], [7, 4], False, "a tie is wrong"),
            ([2, 8, 8], [2, 8, 9], False, "a tie is wrong"),
            ([1, 1, 5], [1, 2, 7], True, "a tie below the largest does not matter"),
            ([1, 10], [6, 7], True, "scores need not be the gold rewards"),
            ([7], [7], True, "a single response: the score is the gold reward"),
            ([6], [7], False, "a single response: the score is the gold reward"),
            (None, [4, 7], False, "what did not parse is wrong"),
            (None, [7], False, "what did not parse is wrong")):
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
          "vote([[3, 9], None, [8, 7]])")
    check(ask([None, None]) is None, "without any vote there is None", "vote([None, None])")
    check(ask([]) is None, "without any vote there is None", "vote([])")
    check(ask([[4, 2, 9]]) == [4, 2, 9], "one sample is its own vote", "vote([[4, 2, 9]])")
    for _ in range(10):
        votes = ballots(rng, rng.randint(1, 4), 6)
        answer, there = ask(votes), [b for b in votes if b]
        check(there == [] and answer is None or numbers(answer), "it returns a list of numbers",
              f"vote({votes})")
        check(answer == ([sum(b[i] for b in there) for i in range(len(there[0]))] if there else None),
              "scores are summed, None does not vote", f"vote({votes})")


def P18(ask, rng):
    first = lambda property, expected, *args: check(
        numbers(answer := ask(*args)) and np.allclose(answer, expected, atol=1e-3),
        property, f"plurality{args}")
    check(ask([None]) is None, "without any vote there is None", "plurality([None])")
    first("a sample has one vote, for its largest score", [1.0, 2.0], [[9, 8], [2, 3], [1, 4]])
    first("how far ahead does not matter", [2.0, 1.0], [[9, 8], [9, 8], [1, 10]])
    first("several largest share the vote in equal parts", [0.5, 0.0, 0.5], [[7, 1, 7]])
    first("None does not vote", [1.0, 0.0], [[9, 8], None])
    first("a sample votes with its weight", [0.5, 3.0], [[9, 8], [1, 2]], [0.5, 3.0])
    first("weights belong to their samples, also behind a None", [0.0, 4.0], [None, [1, 2]], [3.0, 4.0])
    first("a weight may be negative", [1.0, -2.0], [[9, 8], [1, 2]], [1.0, -2.0])
    a, b = ask([[9, 4], [5, 8]])
    check(a > b, "scores break ties", "plurality([[9, 4], [5, 8]])")
    check(a - b < 1e-4, "scores only break ties", "plurality([[9, 4], [5, 8]])")
    small = ask([[9, 4], [5, 8]], [1e-6, 1e-6])
    check(abs((small[0] - small[1]) / (a - b) - 1e-6) < 1e-8, "what scores add grows with the weights",
          "weights of 1e-6")
    for _ in range(10):
        votes, weights = ballots(rng, 3, 7), [rng.random() for _ in range(7)]
        for args in ((votes,), (votes, weights)):
            answer, mine = ask(*args), reference("P18")(*args)
            near = lambda: numbers(answer) and np.allclose(answer, mine, 1e-9, 1e-12)
            good = answer is None if mine is None else near()
            check(good, "random votes", f"plurality{args}")


def P19(ask, rng):
    for args, expected, property in (
            ((["a", "b", "c"], [0.5, 2.0, -1.0], 2), ["b", "a"], "the best ones are kept, best first"),
            ((["a", "b", "c"], [0.5, 0.5, 0.7], 2), ["c", "a"], "of equals the earlier one is kept"),
            ((["a", "b", "c"], [None, -5.0, None], 2), ["b", "a"], "None comes last"),
            ((["a", "b"], [None, 0.0], 1), ["b"], "None comes last"),
            ((["a", "b"], [1.0, 3.0], 2), ["b", "a"], "the best ones are kept, best first"),
            ((["a", "b", "c"], [3.0, 1.0, 2.0], 1), ["a"], "as many as k_meta")):
        answer = ask(*args)
        check(type(answer) is list and len(answer) == args[2], "as many as k_meta", f"keep_best{args}")
        check(answer == expected, property, f"keep_best{args}")
    for _ in range(10):
        metas = [rng.choice([None, rng.randint(-2, 2) / 2]) for _ in range(8)]
        k = rng.randint(1, 8)
        expected = sorted(range(8), key=lambda i: (metas[i] is None, -(metas[i] or 0), i))[:k]
        check(ask(list(range(8)), metas, k) == expected, "random logits",
              f"keep_best(range(8), {metas}, {k})")


def P20(ask, rng):
    logit, right = 2 * normal(rng, 6), torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0])
    loss, (grad,) = ask.grad([0], logit, right)
    of_shape(loss, (), "meta_loss of 6 judgements")
    p = logit.double().sigmoid()
    each = -(right * p.log() + (1 - right) * (1 - p).log())
    flipped = -((1 - right) * p.log() + right * (1 - p).log())
    example = f"logit {rounded(logit)}, right {rounded(right)}"
    check(not close(loss, flipped.sum(), 1e-3), "right judgements get large logits", example)
    check(not close(loss, each.mean(), 1e-3), "the sum, not the mean", example)
    check(close(loss, each.sum(), 1e-3), "binary cross-entropy", example)
    check(close(grad, p - right, 1e-3), "its gradient is the probability minus the label", example)
    loss = ask(torch.tensor([120.0, -120.0]), torch.tensor([0.0, 1.0]))
    of_shape(loss, (), "with large logits", "logits 120 and -120")
    check(close(loss, 240.0, 1e-3), "large logits do not overflow", "logits 120 and -120, both wrong")


def P21(ask, rng):
    better, worse = 2 * normal(rng, 6), 2 * normal(rng, 6)
    loss, (up, down) = ask.grad([0, 1], better, worse)
    of_shape(loss, (), "bradley_terry of 6 pairs")
    d = (better - worse).double()
    example = f"better {rounded(better)}, worse {rounded(worse)}"
    each = -(1 / (1 + (-d).exp())).log()
    check(not close(loss, -(1 / (1 + d.exp())).log().mean(), 1e-3),
          "a larger number for the better one lowers the loss", example)
    check(not close(loss, each.sum(), 1e-3), "the mean, not the sum", example)
    check(close(loss, each.mean(), 1e-3), "-log sigmoid of the difference", example)
    check(close(up, -down, 1e-3) and bool((up < 0).all()),
          "it pulls the better one up and the worse one down", example)
    loss = ask(torch.tensor([-100.0]), torch.tensor([100.0]))
    of_shape(loss, (), "with large numbers", "-100 against 100")
    check(close(loss, 200.0, 1e-3), "large differences do not overflow", "-100 against 100")


def auc_by_pairs(right, scores):
    good = [s for r, s in zip(right, scores) if r]
    bad = [s for r, s in zip(right, scores) if not r]
    wins = [1.0 if g > b else 0.5 if g == b else 0.0 for g in good for b in bad]
    return sum(wins) / len(wins) if wins else None


def P22(ask, rng):
    for right, scores, property in (
            ([True, False], [2.0, 1.0], "1 if the right one is above"),
                                    ([True, False], [1.0, 2.0], "0 if the right one is below"),
            ([True, False], [1.0, 1.0], "a tie counts half"),
                                    ([True, True], [1.0, 2.0], "without both kinds there is None"),
            ([False, False], [1.0, 2.0], "without both kinds there is None"),
            ([], [], "nothing at all is None, too"),
            ([True, False, False, True], [0.5, 0.5, 0.1, 0.9], "a tie counts half")):
        answer, expected = ask(right, scores), auc_by_pairs(right, scores)
        check(same(answer, expected), property, f"auc({right}, {scores})")
    for _ in range(10):
        n = rng.randint(3, 12)
        right = [True, False, *(rng.random() < 0.5 for _ in range(n))]
        scores = [rng.randint(-3, 3) / 2 for _ in right]
        answer, expected = ask(right, scores), auc_by_pairs(right, scores)
        check(same(answer, expected), "random scores", f"auc({right}, {scores})")


def P23(ask, rng):
    both, better = ([True, False, False], [2.0, 1.0, 3.0]), ([True, False], [9.0, 8.0])
    for groups, property in (([both], "one item: its AUC"), ([both, better], "each item counts once"),
                             ([both, ([True, True], [1.0, 2.0]), ([False], [5.0])],
                              "items of one kind do not count"),
                             ([([True, True], [1.0, 2.0])], "without any item of both kinds there is None"),
                             ([], "without any item there is None"),
                             ([([], []), both], "an item without judgements does not count"),
                             ([([True, False], [2.0, 1.0]), ([True, False], [20.0, 10.0])],
                              "pairs are within an item")):
        inside = [a for a in (auc_by_pairs(*g) for g in groups) if a is not None]
        expected, answer = (sum(inside) / len(inside) if inside else None), ask(groups)
        check(same(answer, expected), property, f"auc_within({groups})")
    groups = [([rng.random() < 0.5 for _ in range(5)],
               [rng.randint(0, 5) / 2 + shift for _ in range(5)]) for shift in range(0, 60, 6)]
    inside = [a for a in (auc_by_pairs(*g) for g in groups) if a is not None]
    answer = ask([*groups, better])
    check(type(answer) is float and abs(answer - (sum(inside) + 1) / (len(inside) + 1)) < 1e-6,
          "pairs are within an item", "items with scores of different size")


def P24(ask, rng):
    for scores, gold, expected, property in (
            ([3, 9], [4, 7], 1.0, "1 if the best alone is largest"),
                                             ([9, 3], [4, 7], 0.0, "0 if another one is largest"),
            ([9, 9], [4, 7], 0.5, "1/m if the best is among m largest"),
                                             ([9, 9, 9], [4, 7, 1], 1 / 3,
                                              "1/m if the best is among m largest"),
            ([9, 9, 1], [4, 7, 1], 0.5, "1/m if the best is among m largest"),
            ([9, 9, 1], [4, 5, 7], 0.0, "a tie of others is wrong"),
                                             ([5, 5, 9], [1, 2, 7], 1.0,
                                              "a tie below the largest does not matter"),
            (None, [4, 7, 1], 1 / 3, "what did not parse guesses"),
                                             (None, [4, 7], 0.5, "what did not parse guesses")):
        answer = ask(scores, gold)
        check(type(answer) in (float, int) and abs(answer - expected) < 1e-6, property,
              f"coin_flip({scores}, {gold})")
    for _ in range(10):
        scores, gold = [rng.randint(1, 3) for _ in range(4)], rng.sample(range(1, 11), 4)
        top = [i for i, s in enumerate(scores) if s == max(scores)]
        check(abs(ask(scores, gold) - (gold.index(max(gold)) in top) / len(top)) < 1e-6, "random scores",
              f"coin_flip({scores}, {gold})")
