"""
What the grader asks: for each problem a function that yields cases, each with the property that it tells and with
random inputs. Simple ones come first, since they can say what is wrong; at the end come inputs of any kind.

The right answer to a case is that of the reading copy's own function, computed when the student's answer is there,
and never told. (The project's tests hold that function against independent truth.)
"""

import importlib
import os
import re
from dataclasses import dataclass

import torch

from assignment.child import Model, call
from assignment.labs import lenient_reward, read_votes
from assignment.problems import BY_ID, PROBLEMS
from data import tokenizer
from data.judgement import Judgement, judgement_parts
from data.tokenizer import CHECKS, CRITIQUE, END, HINT, R1, R2, SCORES, SPECIAL, TOTAL, Tokenizer
from data.world import make_item

ANY = "other inputs"                               # the property of the last cases


class Failed(Exception):
    """Why a function gets no points. state: wrong, crashed, not started or timed out. detail: of a wrong one the
    property that is missing, of a ValueError what it says."""

    def __init__(self, state, said, detail=None):
        super().__init__(said)
        self.state, self.detail = state, detail


def wrong(property, example):
    return Failed("wrong", f"{property}; for example {example}"[:600], property)


@dataclass
class Case:
    property: str
    args: tuple
    grad: tuple = ()               # arguments whose gradients are compared, too
    tolerance: float = 1e-4        # of numbers in tensors; 0: no number may differ in its last bit
    fits: callable = None          # of an answer that may be one of many
    shown: str = ""                # in place of the arguments


def case(property, *args, **options):
    return Case(property, args, **options)


def reference(id):
    """The reading copy's own function for a problem."""
    problem = BY_ID[id]
    ours = {"labs": "assignment.labs", "mytests": "assignment.solution_tests"}
    return getattr(importlib.import_module(ours.get(problem.module, problem.module)), problem.name)


def right(id, one):
    """The right answer to a case; a ValueError if that is to be raised."""
    try:
        return call(reference(id), copied(one.args), {}, one.grad)
    except ValueError as error:
        return error


def copied(args):
    return [Model(arg.embed.clone(), arg.out) if type(arg) is Model
            else arg.clone() if type(arg) is torch.Tensor else arg for arg in args]


def check(id, ask, rng):
    """Failed if a function does not answer as it should. ask(args, gradients) calls it."""
    for one in CASES[id](rng):
        shown = one.shown or f"{BY_ID[id].name}({', '.join(map(text_of, one.args))})"
        try:
            answer = ask(one.args, one.grad)
        except Failed as error:
            if error.state == "not started":
                raise
            if error.detail is None:
                raise Failed(error.state, f"{error}; {one.property}: {shown}"[:600]) from None
            answer = ValueError(error.detail)
        expected = None if one.fits else right(id, one)
        if type(answer) is ValueError and type(expected) is not ValueError:
            raise wrong(f"{one.property}, and no ValueError: {answer}", shown)
        if answer is not None and expected is not None and form(answer) != form(expected) != "ValueError":
            raise wrong(f"it returns {form(expected)}", shown)
        if not (one.fits(answer) if one.fits else same(answer, expected, one.tolerance)):
            raise wrong(one.property, shown)


def kind(x):
    """What an answer is: for two answers that may be equal, the same."""
    if type(x) is torch.Tensor:
        integer = x.dtype in (torch.int32, torch.int64)
        dtype = "integers" if integer else "floats" if x.dtype in (torch.float32, torch.float64) else str(x.dtype)
        return f"a tensor of {dtype.removeprefix('torch.')} of shape {tuple(x.shape)}"
    return {bool: "True or False", int: "a number", float: "a number", str: "a text", list: "a list",
            tuple: "a list", dict: "a dict", type(None): "None"}.get(type(x), type(x).__name__)


def form(x):
    """The kind of an answer; of one with tensors in it, each kind."""
    several = type(x) in (list, tuple) and any(type(part) is torch.Tensor for part in x)
    return ", ".join(map(form, x)) if several else kind(x)


def same(answer, expected, tolerance):
    """Is this answer right?"""
    if kind(answer) != kind(expected):
        return isinstance(answer, bool) and kind(expected) == "a number" and answer == expected
    if type(expected) is torch.Tensor:
        return torch.allclose(answer.double(), expected.double(), tolerance, tolerance)
    if kind(expected) == "a number":
        return abs(answer - expected) <= min(tolerance, 1e-6) * max(1.0, abs(expected))
    if kind(expected) == "a list":
        return len(answer) == len(expected) and all(same(a, e, tolerance) for a, e in zip(answer, expected))
    if kind(expected) == "a dict":
        return answer.keys() == expected.keys() and all(same(answer[k], e, tolerance) for k, e in expected.items())
    return str(answer) == str(expected) if type(answer) is ValueError else answer == expected


def text_of(arg):
    """An argument in a message."""
    if type(arg) is torch.Tensor and arg.numel() > 16:
        return f"<a tensor {tuple(arg.shape)}>"
    if type(arg) is torch.Tensor:
        return str(arg.double().round(decimals=3).tolist() if arg.is_floating_point() else arg.tolist())
    if type(arg) is list and any(type(x) is Judgement for x in arg):
        return f"<judgements with scores {[j.scores for j in arg]}>"
    return repr(arg)[:200] if isinstance(arg, (int, float, str, list, tuple, dict, type(None))) \
        else f"<{type(arg).__name__}>"


def normal(rng, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(rng.randrange(2 ** 40)))


def byte_tokenizer():
    return Tokenizer(tokenizer.train_bpe([], 0))


def several(rng, n):
    """n different scores, the largest last."""
    return sorted(rng.sample(range(1, 11), n))

# ----------------------------------------------------------------------------------------
# The corpus and the tokenizer

def checks_text(rng):
    a, b, c = rng.sample(["polite", "formal", "plain", "count", "correct"], 3)
    x, y = rng.sample(["kindly", "um", "tada", "1 2 of 2"], 2)
    weights = {c: rng.randint(1, 3), a: rng.randint(4, 6), b: rng.randint(1, 3)}
    yield case("a check has a criterion, its evidence, a verdict", [(a, x, True)])
    yield case("a verdict is good or bad", [(a, x, False)])
    yield case("without evidence there is no comma", [(a, None, True)])
    yield case("a space stands before each check", [(a, None, True), (b, y, False)])
    yield case("no checks give no text", [])
    yield case("with weights, the sum so far follows", [(a, x, True)], weights)
    yield case("weights are added up", [(a, None, True), (b, None, True)], weights)
    yield case("what is bad adds nothing", [(a, None, True), (b, None, False), (c, x, True)], weights)
    yield case("the sum begins at 0", [(b, None, False)], weights)
    for i in range(10):
        checks = [(name, rng.choice([None, "none", x]), rng.random() < 0.5) for name in rng.sample([a, b, c], 3)]
        yield case(ANY, checks, weights if i % 2 else None)


def train_bpe(rng):
    a, b, c = letters = rng.sample("abcdefghijk", 3)
    first = len(SPECIAL) + 256
    yield case("the 256 bytes come first, and their ids follow those of the special tokens", [a], first)
    yield case("special tokens and tokens together are vocab_size", [a + b], first)
    yield case("it stops when nothing is left to merge", [], first + rng.randint(1, 50))
    for property, texts in (("merges never cross chunks", [f"{a} {b}"] * 3 + [f"{b}{c}"]),
                            ("ties go to the smaller bytes", [f"{c}{a} {b}{a} {a}{c}"]),
                            ("each chunk counts as often as it occurs", [f"{a}{b} " * 2, f"{b}{c} " * 3]),
                            ("runs of one letter merge from the left", [a * 5 + b, a * 3]),
                            ("letters may be several bytes long", ["äö äö ä" + a]),
                            ("each digit is a chunk, punctuation too", [f"12 12 12{a}", f"{a}.. {b}.. ,,_{a}"])):
        for more in (1, 2, 3):
            yield case(property, texts, first + more)
    for _ in range(4):
        words = ["".join(rng.choice(letters) for _ in range(rng.randint(1, 5))) for _ in range(24)]
        yield case(ANY, [" ".join(words[i::4]) for i in range(4)], first + rng.randint(3, 12))

# ----------------------------------------------------------------------------------------
# The model and its training

def rotate(rng):
    speed = rng.uniform(1, 2) / 10000 ** (torch.arange(4) / 4)               # (D/2,)
    angle = torch.arange(5)[:, None, None] * speed                           # (T, 1, D/2)
    x, cos, sin = normal(rng, 2, 5, 3, 8), angle.cos(), angle.sin()
    yield case("position 0 is not turned", x[:, :1], cos[:1], sin[:1])
    quarter = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    yield case("a quarter turn makes (-b, a) of (a, b)", normal(rng, 1, 1, 1, 2), *quarter)
    yield case("channels i and i + D/2 are a pair, turned by their angle", x[:, :2], cos[:2], sin[:2])
    yield case("each position has its own angles", x, cos, sin)
    yield case("the result has the type of x", x.half(), cos, sin, tolerance=1e-2)
    yield case("gradients flow to x", x, cos, sin, grad=(0,))


def attend(rng):
    B, T, H, S, D = 3, 4, 2, 6, 4                                            # two tokens were read before
    q, k, v = 2 * normal(rng, B, T, H, D), normal(rng, B, S, D), normal(rng, B, S, D)
    free = torch.zeros(1, T, 1, S)
    causal = free.masked_fill((torch.arange(S) > torch.arange(S - T, S)[:, None])[None, :, None], -1e9)
    padded = causal.repeat(B, 1, 1, 1)
    padded[1, :, :, :2] = -1e9
    yield case("a single key has all the weight", q[:1, :1], k[:1, :1], v[:1, :1], free[:, :1, :, :1])
    yield case("scores are divided by the root of D", q[:1, :1, :1], k[:1], v[:1], free[:, :1], tolerance=1e-3)
    yield case("each head of each token has weights of its own", q, k, v, free, tolerance=1e-3)
    yield case("masked keys have no weight", q, k, v, causal, tolerance=1e-3)
    yield case("each row has its own mask", q, k, v, padded, tolerance=1e-3)
    yield case("the mask is added to the scaled scores", q, k, v, normal(rng, 1, T, 1, S), tolerance=1e-3)
    yield case("gradients flow to queries, keys and values", q, k, v, causal, grad=(0, 1, 2), tolerance=1e-3)


def token_logits(rng):
    V, C, B, T = 12, 5, 3, 7
    model = Model(normal(rng, V, C), normal(rng, C, V))
    ids = torch.tensor([[rng.randrange(V) for _ in range(T)] for _ in range(B)])

    def at(*places):
        learned = torch.zeros(B, T, dtype=torch.bool)
        for b, t in places:
            learned[b, t] = True
        return learned

    a, b, c = rng.sample(range(1, T), 3)
    asked = lambda property, learned, *more, **options: case(
        property, model, ids, learned, *more, **options, shown=f"learned at {learned.nonzero().tolist()}")
    yield asked("targets are the tokens that are learned, their logits come from the hidden states before them",
                at((0, a), (1, b), (2, c)))
    yield asked("rows come in order", at((2, 1), (0, 4), (0, 3), (1, 6)))
    yield asked("a first token that is learned has nothing before it, and is left out",
                at((0, 0), (1, b), (2, 0), (2, c)))
    yield asked("the model is told the padding", at((0, 5), (1, 3), (2, 6)), torch.tensor([3, 0, 2]))
    yield asked("there may be nothing to learn: N = 0", at())
    yield asked("gradients flow to the model", at((0, a), (1, b)), grad=(0,))
    yield asked(ANY, at(*((rng.randrange(B), rng.randrange(T)) for _ in range(8))))


def learning_rate(rng):
    peak = rng.uniform(0.5, 2.0)
    yield case("the first step has peak / warmup, and not 0", peak, 0, 100)
    yield case("it rises linearly over the warmup", peak, rng.randint(3, 15), 100)
    yield case("the last step of the warmup has the peak", peak, 19, 100)
    yield case("then it is flat", peak, rng.randint(22, 48), 100)
    yield case("it falls over the last share of the steps alone", peak, 50, 100)
    yield case("it falls linearly to 0", peak, rng.randint(60, 90), 100)
    yield case("the last step is one step before 0", peak, 99, 100)
    yield case("warmup is an argument", peak, 4, 100, 10)
    yield case("decay is an argument", peak, 90, 100, 10, 0.2)
    yield case("decay is an argument", peak, 60, 100, 10, 0.2)
    yield case("a warmup is at most as long as all steps", peak, 1, 4)
    yield case("the smallest of the three counts", peak, rng.randint(12, 17), 30, 20, 0.9)
    for _ in range(10):
        steps = rng.randint(60, 300)
        yield case(ANY, peak, rng.randrange(steps), steps, rng.randint(2, 20), rng.choice([0.2, 0.3, 0.5]))


def pad_left(rng):
    row = lambda length: [rng.randrange(13, 700) for _ in range(length)]
    yield case("T is the least multiple of 16 that holds the longest row", [row(16)])
    yield case("each row stands on the right, filled up to T with PAD", [row(3), row(1)])
    yield case("padding counts what was added to each row", [row(5), row(17), row(16)])
    yield case("a row may be a tuple", [tuple(row(4)), tuple(row(2))])
    yield case("what is added is `value`", [row(3), row(2)], rng.randint(3, 12))
    yield case("device is an argument", [row(2)], 0, "cpu")
    for _ in range(3):
        yield case(ANY, [row(rng.randint(1, 70)) for _ in range(4)])

# ----------------------------------------------------------------------------------------
# The sampler

def draw(rng):
    B, V = 64, 8
    logits = 2 * normal(rng, B, V)

    def inside(p):
        """A u for each row that is far from all borders between its tokens."""
        token = p.multinomial(1, generator=torch.Generator().manual_seed(rng.randrange(2 ** 40)))    # (B, 1)
        part = torch.tensor([[rng.uniform(0.2, 0.8)] for _ in p])
        return (p.cumsum(1).gather(1, token) - part * p.gather(1, token))[:, 0].float()

    for T, property in ((1.0, "the first token whose cumulative probability exceeds u, with its log-probability"),
                        (0.5, "logits are divided by the temperature, log-probabilities are of what was sampled"),
                        (2.0, "logits are divided by the temperature, log-probabilities are of what was sampled")):
        yield case(property, logits, inside((logits.double() / T).softmax(dim=-1)), T, tolerance=1e-3)
    order = rng.sample([0.0, 0.25, 0.5, 0.75], 4)
    yield case("a u on a border belongs to the token above it", torch.zeros(4, 4), torch.tensor(order), 1.0)
    yield case("tokens that have no probability are never drawn", torch.tensor([[-1e4, 0.0, 0.0, -1e4]]),
               torch.zeros(1), 1.0)
    many = (3 * normal(rng, 256, 700)).clamp(-2, 2)
    many[:, 640:] = -100.0
    yield case("the largest u draws the last token that has a probability", many,
               torch.full((256,), 1 - 2.0 ** -24), 1.0, tolerance=1e-3)
    yield case("T = 0 takes the most likely token, with its log-probability at T = 1", logits, torch.zeros(B), 0,
               tolerance=1e-3)

# ----------------------------------------------------------------------------------------
# Judgements

def read_judgement(rng):
    words = byte_tokenizer()
    n, order = 3, rng.choice([[1, 2, 0], [2, 0, 1]])                         # not its own inverse
    totals = rng.sample(range(1, 11), n)
    texts = [f" correct: {i}+1=2 got 2 {i}, bad 0 polite: good {t} " for i, t in enumerate(totals)]
    critiques = list(zip(rng.sample(["it is 7, kindly ", None, " hi"], n), texts, totals))
    weights = {"correct": rng.randint(1, 9), "polite": 6}
    good = judgement_parts(weights, critiques, totals)
    named = ", ".join(f"{name} {weight}" for name, weight in weights.items())
    asked = lambda property, parts, shown: case(property, words, words.encode(parts), order, shown=shown)
    at = lambda special: good.index(special)
    change = lambda i, *new: good[:i] + list(new) + good[i + 1:]
    swapped = [{R1: R2, R2: R1}.get(part, part) if isinstance(part, int) else part for part in good]
    total, last = at(TOTAL) + 1, len(good) - 2
    yield asked("it returns principles, critiques (quote, text, checks, total), scores, in the item's order", good,
                f"{words.readable(words.encode(good))} with order {order}")
    for count in (1, 2, 4):
        some = [("hi", texts[0], t) for t in rng.sample(range(1, 11), count)]
        yield case("of any number of responses", words, words.encode(judgement_parts(
            weights, some, [t for *_, t in some])), rng.sample(range(count), count), shown=f"{count} responses")
    for property, parts, shown in (
            ("principles may begin without a space", change(0, named), named),
            ("without <end> nothing counts", good[:-1], "<end> is missing"),
            ("without <end> nothing counts", [], "no ids at all"),
            ("nothing may follow <end>", [*good, " more"], "text after <end>"),
            ("there is one <end>", [*good, END], "a second <end>"),
            ("principles are separated by commas", change(0, " correct 4 polite 6"), "correct 4 polite 6"),
            ("one space at most stands before principles", change(0, "  " + named), "two spaces"),
            ("no space stands after principles", change(0, f" {named} "), "a space after them"),
            ("weights are 1 to 10", change(0, " correct 0, polite 6"), "correct 0"),
            ("weights are 1 to 10", change(0, " correct 11, polite 6"), "correct 11"),
            ("each principle has a weight", change(0, " correct, polite 6"), "correct, polite 6"),
            ("<critique> follows the principles", change(at(CRITIQUE), SCORES), "<scores> in place of <critique>"),
            ("nothing stands between <critique> and <r1>", change(at(CRITIQUE), CRITIQUE, " well"), "text there"),
            ("critiques come in order", swapped, "<r2> before <r1>"),
            ("each critique has <checks> and <total>", change(at(CHECKS), TOTAL), "<total> in place of <checks>"),
            ("totals are 1 to 10, read in full", change(total, "12"), "a total of 12"),
            ("totals are 1 to 10, read in full", change(total, str(good[total]) + " "), "a total with a space"),
            ("totals are 1 to 10, read in full", change(total, "07"), "a total of 07"),
            ("totals are 1 to 10, read in full", change(total, "7\n"), "a total with a line's end"),
            ("totals are 1 to 10, read in full", change(total, "\uff17"), "a total in wide digits"),
            ("there is a score for each response", change(last, " ".join(map(str, totals[:-1]))), "one too few"),
            ("there is a score for each response", change(last, " ".join(map(str, [*totals, 3]))), "one too many"),
            ("scores are 1 to 10", change(last, " ".join(map(str, [0, *totals[1:]]))), "a score of 0"),
            ("scores are separated by one space", change(last, ", ".join(map(str, totals))), "a comma"),
            ("scores are separated by one space", change(last, "  ".join(map(str, totals))), "two spaces"),
            ("scores are separated by one space", change(last, " " + " ".join(map(str, totals))), "a space first"),
            ("an empty judgement does not parse", [END], "<end> alone"),
            ("principles come before scores", change(0, " ?")[:-2] + ["?", END], "both are bad"),
            ("structure comes before principles", [" ?", *good[2:]], "both are bad"),
            ("text that looks like a special token is text", judgement_parts(weights, [
                (None, " <scores>10 1<end> plain: none, good 4", t) for t in totals], totals), "'<end>' as text")):
        yield asked(property, parts, shown)
    ids = words.encode(good)
    for _ in range(40):                            # damaged anywhere
        i = rng.randrange(len(ids))
        new = rng.choice([[], [rng.randrange(len(SPECIAL) + 256)], ids[i:i + 1] * 2])
        yield case(ANY, words, ids[:i] + new + ids[i + 1:], order,
                   shown=words.readable(ids[:i] + new + ids[i + 1:]))


def pick(rng):
    low, middle, high = several(rng, 3)
    yield case("the index of the largest", [low, high, middle])
    yield case("the first counts as 0", [high, low, middle])
    yield case("a tie for the largest picks nothing", [high, low, high])
    yield case("a tie below the largest does not matter", [low, low, high])
    yield case("without scores there is no pick", None)
    yield case("a single response is picked", [middle])
    for _ in range(20):
        yield case(ANY, [rng.choice([1, 2, 2.5, 7.5]) for _ in range(rng.randint(1, 4))])


def correct(rng):
    low, middle, high = several(rng, 3)
    yield case("the best response has the largest score", [low, high], [middle, high])
    yield case("the best response has the largest score", [high, low], [middle, high])
    yield case("a tie is incorrect", [high, high], [middle, high])
    yield case("a tie is incorrect", [high, high], [high, middle])
    yield case("a tie below the largest does not matter", [low, low, high], [low, middle, high])
    yield case("scores need not be the gold rewards", [low, high], [low, middle])
    yield case("a single response: the score is the gold reward", [high], [high])
    yield case("a single response: the score is the gold reward", [high], [high - 1])
    yield case("scores may be the result of a plurality", [(1.0, 30), (1.0, 32), (0.0, 9)], [low, high, middle])
    yield case("a judgement that does not parse is incorrect", None, [middle, high])
    yield case("a judgement that does not parse is incorrect", None, [high])
    for _ in range(20):
        n = rng.randint(1, 4)
        yield case(ANY, [rng.randint(1, 4) for _ in range(n)], rng.sample(range(1, 11), n))

# ----------------------------------------------------------------------------------------
# Rejective fine-tuning and RL

def judgements(rng, item, goods):
    """Judgements of an item of two or more responses: correct, incorrect, or (None) without scores."""
    found = []
    for i, good in enumerate(goods):
        scores = [rng.randint(1, 5) for _ in range(item.n)]
        scores[item.best] = 9 if good else 1
        scores[item.best - 1] = scores[item.best - 1] if good else 6
        found.append(Judgement(item.id, i, list(range(item.n)), i, [], [], 0.0, meta=rng.choice([-0.5, 0.5, 1.5]),
                               scores=None if good is None else scores))
    return found


def keep(rng):
    item = make_item(rng.randrange(1000), "train", rng.randrange(1000), least=2)
    for goods, property in (([True, False, True], "the correct ones are kept, the incorrect ones are not"),
                            ([True, True, True], "nothing is kept of an item that is too easy"),
                            ([False, False, False], "nothing is kept where all are incorrect"),
                            ([False, True, False], "one correct judgement is enough"),
                            ([True], "nothing is kept of an item that is too easy"),
                            ([None, True], "a judgement that does not parse is not kept")):
        yield case(property, judgements(rng, item, goods), item, shown=f"samples that are correct: {goods}")
    one = make_item(rng.randrange(1000), "train", rng.randrange(1000), most=1)
    scored = [Judgement(one.id, i, [0], i, [], [], 0.0, scores=[one.gold[0] % 10 + i]) for i in (0, 1)]
    yield case("a single response: the score is the gold reward", scored, one, shown="one response")


def forget_hint(rng):
    plain = [2, *(rng.randrange(13, 99) for _ in range(4)), 3, 50]
    yield case("the hint is gone, all else stays", [*plain, HINT, 4, 51, 8])
    yield case("a prompt without a hint stays as it is", plain)
    yield case("wherever the hint stands", [HINT, *plain, HINT])
    yield case("an empty prompt", [])
    yield case("a prompt may be a tuple", (*plain, HINT, 4))


def group_advantages(rng):
    rows = [[1.0, -1.0, -1.0, -1.0], [1.0, 1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0]]
    r = torch.tensor([rng.sample(row, 4) for row in rng.sample(rows, 3)])
    apart = lambda property, fits, x: case(property, x, fits=lambda a: kind(a) == kind(x) and fits(a))
    yield apart("each group has the mean 0", lambda a: bool((a.sum(dim=1).abs() < 1e-3).all()), r)
    yield apart("correct samples are above 0, incorrect ones below",
                lambda a: bool((a.sign() == r.sign()).all()), r)
    yield case("the standard deviation is that of the group, divided by G", r)
    for G, reward in ((4, 1.0), (6, 0.9), (7, 0.3), (7, 100.1), (rng.randint(3, 9), rng.random())):  # rounded
        yield case("a group whose rewards are all equal gives 0", torch.full((1, G), reward))
    yield case("equal rewards in one group change no other", torch.cat([r, -torch.ones(1, 4)]))
    yield case("small rewards are scaled up, too", 0.001 * r, tolerance=1e-3)
    for P, G in ((1, 2), (3, 5), (5, 8)):
        yield case(ANY, normal(rng, P, G), tolerance=1e-3)


def kl_k2(rng):
    logp, ref = normal(rng, 40) - 2, normal(rng, 40) - 2
    yield case("it is 0 where both agree", ref[:1], ref[:1])
    yield case("half of the square of the log ratio", logp[:1], ref[:1])
    yield case("each token has its own", logp, ref, tolerance=1e-3)
    yield case("its gradient is the log ratio", logp, ref, grad=(0,), tolerance=1e-3)


def kl_k3(rng):
    logp, ref = normal(rng, 40) - 2, normal(rng, 40) - 2
    yield case("it is 0 where both agree", ref[:1], ref[:1])
    yield case("it is never negative", logp, ref,
               fits=lambda k: type(k) is torch.Tensor and bool((k > -1e-6).all()))
    yield case("r - 1 - log r, where r is the reference's probability over the policy's", logp[:1], ref[:1])
    yield case("each token has its own", logp, ref, tolerance=1e-3)
    near = torch.tensor([rng.choice([-1, 1]) * x for x in (1e-3, 3e-4)])
    exact = torch.expm1(near.double()) - near.double()
    yield case("it is accurate near 0", torch.zeros(2), near, fits=lambda k: type(k) is torch.Tensor
               and k.shape == (2,) and torch.allclose(k.double() / exact, torch.ones(2).double(), 0.1))


def rl_loss(rng):
    logp, ref, adv = normal(rng, 20) - 2, normal(rng, 20) - 2, normal(rng, 20)
    yield case("what is better than its group becomes more likely", logp[:1], logp[:1], adv[:1], 0.5, 1)
    yield case("beta is the weight of kl_k2", logp[:1], ref[:1], torch.zeros(1), rng.uniform(0.1, 2), 1)
    yield case("it is a mean over the tokens of the whole rollout", logp, ref, adv, 0.5, rng.randint(30, 60))
    yield case("gradients flow to the policy", logp, ref, adv, rng.uniform(0.1, 2), 20, grad=(0,))

# ----------------------------------------------------------------------------------------
# Votes and the Meta RM

def ballots(rng, n, count, none=0.2):
    return [None if rng.random() < none else [rng.randint(1, 10) for _ in range(n)] for _ in range(count)]


def vote_sum(rng):
    a, b = several(rng, 2)
    yield case("one sample is its own vote", [[b, a, b]])
    yield case("scores are summed over the samples", [[a, b], [b, b], [a, a]])
    yield case("None does not vote", [[a, b], None, [b, a]])
    yield case("if nobody votes there is None", [None, None])
    yield case("if nobody votes there is None", [])
    for _ in range(10):
        yield case(ANY, ballots(rng, rng.randint(1, 4), 6))


def vote_plurality(rng):
    a, b, c = several(rng, 3)
    yield case("if nobody votes there is None", [None])
    yield case("if nobody votes there is None", [])
    yield case("a sample has one vote, for its largest score; the sum of scores follows", [[c, b], [a, b], [a, c]])
    yield case("several largest share the vote equally", [[b, a, b]])
    yield case("None does not vote", [None, [a, b], [c, b]])
    yield case("votes are exact: six thirds are 2", [[a, a, a]] * 6 + [[c, a, a]], tolerance=0)
    for _ in range(10):
        yield case(ANY, ballots(rng, 3, 7))


def keep_best(rng):
    x, y, z = rng.sample([-1.5, -0.5, 0.5, 2.0, 3.5], 3)
    yield case("as many as count", ["a", "b", "c"], [x, y, z], 1)
    yield case("the best ones are kept, best first", ["a", "b", "c"], [x, y, z], 3)
    yield case("of equal ones the earlier comes first", ["a", "b", "c"], [x, x, 5.0], 2)
    yield case("None comes last", ["a", "b", "c"], [None, -5.0, None], 2)
    yield case("None comes last", ["a", "b"], [None, 0.0], 1)
    for _ in range(10):
        yield case(ANY, list(range(8)), [rng.choice([None, rng.randint(-2, 2) / 2]) for _ in range(8)],
                   rng.randint(1, 8))


def vote_guided(rng):
    item = make_item(rng.randrange(1000), "train", rng.randrange(1000), least=2)

    def rated(goods, logits):
        samples = judgements(rng, item, goods)
        for j, logit in zip(samples, logits):
            j.meta = logit
        return samples

    yield case("the better half votes, by the sum", rated([True, False, True, False], [0.5, 2.0, -1.0, 1.0]))
    yield case("half of an odd number is rounded down", rated([True, False, False], [1.0, 0.5, 0.7]))
    yield case("of a single sample one votes", rated([True], [-3.0]))
    yield case("what does not parse comes last", rated([None, True, True, False], [None, -5.0, -7.0, -9.0]))
    yield case("if nobody votes there is None", rated([None, None], [None, None]))
    for _ in range(6):
        goods = [rng.choice([True, False, False, None]) for _ in range(8)]
        yield case(ANY, rated(goods, [None if good is None else rng.randint(-3, 3) / 2 for good in goods]))


def meta_loss(rng):
    logits, labels = 2 * normal(rng, 6), torch.tensor([1.0, 0.0] * 3)
    yield case("correct judgements get large logits", logits[:1], labels[:1])
    yield case("incorrect judgements get small logits", logits[1:2], labels[1:2])
    yield case("it is the mean over the judgements", logits, labels, tolerance=1e-3)
    yield case("its gradient is the probability minus the label, over the number of judgements", logits, labels,
               grad=(0,), tolerance=1e-3)
    large = rng.uniform(110, 130)
    yield case("large logits do not overflow", torch.tensor([large, -large]), torch.tensor([0.0, 1.0]))

# ----------------------------------------------------------------------------------------
# Measures

def auc(rng):
    low, high = sorted(rng.sample([-1.0, 0.5, 2.0, 3.0], 2))
    yield case("1 if the correct one is above", [True, False], [high, low])
    yield case("0 if the correct one is below", [True, False], [low, high])
    yield case("a tie counts half", [True, False], [low, low])
    yield case("without both kinds there is None", [True, True], [low, high])
    yield case("without both kinds there is None", [False, False], [low, high])
    yield case("nothing at all is None, too", [], [])
    yield case("it is a share of all pairs", [True, False, False], [low, low, high])
    yield case("every correct one meets every incorrect one", [True, False, True], [high, (low + high) / 2, low])
    for _ in range(10):
        n = rng.randint(3, 12)
        yield case(ANY, [True, False] + [rng.random() < 0.5 for _ in range(n)],
                   [rng.randint(-3, 3) / 2 for _ in range(n + 2)])


def tie_broken(rng):
    low, middle, high = several(rng, 3)
    yield case("1 if the best alone is largest", [low, high], [middle, high])
    yield case("0 if another one is largest", [high, low], [middle, high])
    yield case("1/m if the best is among m largest", [high, high], [middle, high])
    yield case("1/m if the best is among m largest", [high, high, high], [middle, high, low])
    yield case("1/m if the best is among m largest", [high, high, low], [middle, high, low])
    yield case("a tie of others is incorrect", [high, high, low], [low, middle, high])
    yield case("a tie below the largest does not matter", [middle, middle, high], [low, middle, high])
    yield case("without scores it is a guess", None, [middle, high, low])
    yield case("without scores it is a guess", None, [middle, high])
    for _ in range(10):
        yield case(ANY, [rng.randint(1, 3) for _ in range(4)], rng.sample(range(1, 11), 4))


def interval(rng):
    values = [rng.randint(0, 1) for _ in range(5)] + [0, 1]
    yield case("the first number is the mean", values, fits=lambda a: type(a) in (list, tuple) and len(a) == 3
               and same(a[0], round(sum(values) / 7, 4), 1e-4))
    yield case("values that are all equal have an interval without width", [values[0]] * 9)
    yield case("1.96 standard errors on both sides; the standard deviation is divided by the number", values)
    yield case("all is rounded to 4 digits", [rng.random() for _ in range(20)])


# ----------------------------------------------------------------------------------------
# Labs

def hacks(rng):
    words = byte_tokenizer()

    def scores_of(ids):
        """The numbers behind each <scores>."""
        ends = [i for i, token in enumerate(ids) if token < len(SPECIAL)] + [len(ids)]
        return [re.findall(r"\d+", words.text(ids[a + 1:b])) for a, b in zip(ends, ends[1:]) if ids[a] == SCORES]

    def asked(n, property, fits):
        good = lambda a: isinstance(a, (list, tuple)) and len(a) == 3 and all(
            isinstance(ids, list) and all(type(t) is int and 0 <= t < words.vocab_size for t in ids) for ids in a)
        return case(property, words, n, shown=f"n = {n}",
                    fits=lambda a: good(a) and bool(fits(*map(scores_of, a), a)))

    for n in (2, 3, 4):
        different = lambda numbers: len(set(numbers)) == len(numbers)
        order, gold = rng.sample(range(n), n), several(rng, n)
        yield asked(n, "there are three lists of ids, and none of them is empty", lambda a, b, c, _: a and b and c)
        yield asked(n, "the first has several <scores> with n different numbers each",
                    lambda a, b, c, _: len(a) > 1 and all(len(x) == n and different(x) for x in a))
        yield asked(n, "the second has one <scores> with different numbers, fewer than n",
                    lambda a, b, c, _: len(b) == 1 and 0 < len(b[0]) < n and different(b[0]))
        yield asked(n, "the third has one <scores> with n numbers",
                    lambda a, b, c, _: len(c) == 1 and len(c[0]) == n)
        yield asked(n, "each gets +1, whichever response is best", lambda a, b, c, all_three: all(
            lenient_reward(words, ids, order, gold[i:] + gold[:i]) == 1 for ids in all_three for i in range(n)))


def strict_reward(rng):
    words = byte_tokenizer()
    a, b = rng.sample(["polite", "formal", "plain", "concise"], 2)
    x = rng.randint(2, 4)
    weights, order, gold = {a: x, b: 10 - x}, [1, 0], several(rng, 2)
    low, high = f" {a}: um, good {x} {b}: none, bad {x}", f" {a}: tada, bad 0 {b}: none, good {10 - x}"
    write = lambda totals=(10 - x, x), scores=None, checks=(high, low), weights=weights: judgement_parts(
        weights, [("hi", text, total) for text, total in zip(checks, totals)], scores or totals)
    asked = lambda property, parts, gold=gold, order=order: case(
        property, words, words.encode(parts), order, gold, shown=words.readable(words.encode(parts)))
    yield asked("a judgement that is correct and follows from its checks gets +1", write())
    yield asked("an incorrect one gets -1", write(), gold[::-1])
    yield asked("scores are in the order of the prompt, gold rewards in the item's", write(), order=[0, 1])
    yield asked("checks may come in any order", write(checks=(f" {b}: none, good 1 {a}: tada, bad 1", low)))
    yield asked("a total is at least 1", write((10, 1), checks=(
        f" {a}: um, good {x} {b}: none, good 10", f" {a}: um, bad 0 {b}: none, bad 0")))
    yield asked("several <scores> get -1", write()[:-1] + [SCORES, f"{10 - x} {x}", END])
    yield asked("a missing score gets -1", write(scores=[10 - x]))
    yield asked("a tie gets -1", write((x, x), checks=(low, low)))
    yield asked("without critiques there is -1", [" polite 10", CRITIQUE, SCORES, "9 1", END])
    yield asked("a score is its total", write(scores=[10, x]))
    yield asked("a total is the sum of the weights found good", write((10, x), scores=[10 - x, x]))
    yield asked("a total is the sum of the weights found good", write((10, x)))
    yield asked("each principle is checked", write(checks=(f" {b}: none, good {10 - x}", low)))
    yield asked("each principle is checked", write((1, 1), [9, 1], checks=("", "")))
    yield asked("a principle is checked once", write(checks=(high + f" {a}: tada, bad {10 - x}", low)))
    yield asked("nothing else is checked", write(checks=(high + f" correct: 7, bad {10 - x}", low)))
    twice = write(checks=(f" {a}: tada, bad 0" + high, low + f" {a}: um, bad {x}"))
    yield asked("no principle is named twice", [f" {a} 9, {a} {x}, {b} {10 - x}", *twice[1:]])
    ids = words.encode(write())
    for _ in range(30):
        i = rng.randrange(len(ids))
        damaged = ids[:i] + rng.choice([[], ids[i:i + 1] * 2, [rng.randrange(len(SPECIAL) + 256)]]) + ids[i + 1:]
        yield case(ANY, words, damaged, order, gold, shown=words.readable(damaged))


def expected_gradients(rng):
    yield case("the rows are k1, k2, k3, and KL", normal(rng, 2), normal(rng, 2))
    for V in (5, rng.randint(6, 30)):
        yield case(ANY, normal(rng, V), normal(rng, V))


def correlated(rng, items, k):
    return [[int(rng.random() < p) for _ in range(k)] for p in (rng.choice([0.1, 0.5, 0.9]) for _ in range(items))]


def correlation(rng):
    yield case("samples that always agree have 1", [[1, 1], [0, 0], [1, 1]])
    yield case("samples that never agree are below 0", [[1, 0], [0, 1], [1, 0]])
    yield case("all correct, or all incorrect: None", [[1, 1], [1, 1]])
    yield case("all correct, or all incorrect: None", [[0, 0, 0]])
    yield case("a pair is of two different samples", [[1, 1, 0], [0, 1, 0]])
    for k in (2, 5, 16):
        yield case(ANY, correlated(rng, 20, k))


def votes_needed(rng):
    kept = read_votes(os.path.join(os.path.dirname(__file__), "votes.txt"))
    yield case("the mean, the standard deviation (divided by the number - 1), what 32 are worth, the least number",
               [correlated(rng, 40, 4), correlated(rng, 40, 4)])
    for policy in ("rft", "rl"):
        yield case(f"the kept votes of {policy}, some items of each seed",
                   [rng.sample(hits, 100) for hits in kept[policy]], shown=f"{policy} of votes.txt")


CASES = {problem.id: globals()[problem.name] for problem in PROBLEMS if not problem.target}      # id -> function
