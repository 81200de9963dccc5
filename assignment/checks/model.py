"""Checks of the tokenizer, the model and the sampler: P2 to P8."""

import math
import re

import torch

from assignment.checks import check, close, normal, of_shape, rounded, two_tensors
from data.tokenizer import PAD, PATTERN, SPECIAL


def bpe(texts, vocab_size):
    """An oracle: the same rule, slow and plain, without counting chunks."""
    chunks = [[bytes([b]) for b in chunk.encode()] for text in texts for chunk in re.findall(PATTERN, text)]
    found = [bytes([b]) for b in range(256)]
    while len(SPECIAL) + len(found) < vocab_size:
        pairs = [pair for chunk in chunks for pair in zip(chunk, chunk[1:])]
        if not pairs:
            break
        best = sorted(set(pairs), key=lambda pair: (-pairs.count(pair), pair))[0]
        for c, chunk in enumerate(chunks):
            merged, fresh = [], True
            for token in chunk:
                if merged and (merged[-1], token) == best and fresh:
                    merged[-1], fresh = b"".join(best), False    # it does not merge again in this round
                else:
                    merged, fresh = [*merged, token], True
            chunks[c] = merged
        found.append(b"".join(best))
    return {token: len(SPECIAL) + i for i, token in enumerate(found)}


def P2(ask, rng):
    letters = rng.sample("abcdefghijk", 4)
    word = lambda: "".join(rng.choice(letters) for _ in range(rng.randint(1, 5)))
    first = len(SPECIAL)
    answer = ask(["aa"], first + 256)
    check(type(answer) is dict and all(type(k) is bytes and type(v) is int for k, v in answer.items()),
          "it returns {bytes: rank}", 'train_bpe(["aa"], len(SPECIAL) + 256)')
    check([answer.get(bytes([b])) for b in range(256)] == list(range(first, first + 256)),
          "the 256 bytes come first, their ranks follow the special tokens",
          'train_bpe(["aa"], len(SPECIAL) + 256)')
    check(len(answer) == 256, "special tokens and tokens together are vocab_size",
          'train_bpe(["aa"], len(SPECIAL) + 256)')
    check(len(ask([], first + 300)) == 256, "it stops when nothing is left to merge",
          "train_bpe([], len(SPECIAL) + 300)")
    a, b, c = letters[:3]
    for property, texts in (("merges never cross chunks", [f"{a} {b}"] * 3 + [f"{b}{c}"]),
                            ("ties go to the smaller bytes", [f"{c}{a} {b}{a} {a}{c}"]),
                            ("each chunk counts as often as it occurs", [f"{a}{b} " * 2, f"{b}{c} " * 3]),
                            ("runs of one letter merge from the left", [a * 5 + b, a * 3]),
                            ("letters that are several bytes long", ["äö äö ä"])):
        for more in (1, 2, 3):
            check(ask(texts, first + 256 + more) == bpe(texts, first + 256 + more), property,
                  f"train_bpe({texts}, len(SPECIAL) + {256 + more})")
    for _ in range(4):
        texts, size = [" ".join(word() for _ in range(6)) for _ in range(4)], first + 256 + rng.randint(3, 12)
        check(ask(texts, size) == bpe(texts, size), "random texts", f"train_bpe({texts}, {size})")


def angles(positions, D):
    """cos and sin, (1 or B, T, 1, D/2), as GPT makes them. positions (1 or B, T)."""
    angle = positions[..., None].double() / 10000 ** (torch.arange(D // 2).double() / (D // 2))
    return angle.cos().float()[:, :, None], angle.sin().float()[:, :, None], angle


def P3(ask, rng):
    x, shape = normal(rng, 2, 5, 3, 8), "x (2, 5, 3, 8)"
    cos, sin, angle = angles(torch.arange(5)[None], 8)
    y = ask(x, cos, sin)
    of_shape(y, x.shape, f"rotate, {shape}", shape)
    check(close(y[:, 0], x[:, 0]), "position 0 is not turned", shape)
    check(close(y.norm(dim=-1), x.norm(dim=-1)), "lengths stay", shape)

    def turned(sign):
        pairs = torch.complex(x[..., :4].double(), x[..., 4:].double())
        pairs = pairs * torch.polar(torch.ones_like(angle), sign * angle)[:, :, None]
        return torch.cat([pairs.real, pairs.imag], dim=-1)

    check(not close(y, turned(-1)), "it turns in the right direction", "(3, 4) by a quarter becomes (-4, 3)")
    check(close(y, turned(1)), "channels i and i + D/2 are a pair, turned by their angle", shape)
    rows, where = normal(rng, 3, 2, 2, 8), torch.tensor([[4, 5], [0, 1], [0, 0]])
    cos_of_row, sin_of_row, _ = angles(where, 8)
    y = ask(rows, cos_of_row, sin_of_row)
    of_shape(y, rows.shape, "rotate with cos and sin (B, T, 1, D/2)")
    check(close(y[2], rows[2]) and not close(y[1, 1], rows[1, 1]), "a row has its own positions",
          f"positions {where.tolist()}")
    check(close(ask(x * 2, cos, sin), ask(x, cos, sin) * 2), "it is linear in x", shape)
    check(ask(x.half(), cos, sin).dtype == torch.float16, "the result has the type of x",
          "x in float16, cos and sin in float32")


def plain_attention(q, k, v, mask, scale=0.5):
    """One query at a time."""
    B, T, H, _ = q.shape
    out = torch.zeros(q.shape)
    for b in range(B):
        for t in range(T):
            for h in range(H):
                weights = torch.softmax(k[b] @ q[b, t, h] * scale + mask[b % len(mask), t, 0], dim=0)
                out[b, t, h] = weights @ v[b]
    return out


def P4(ask, rng):
    B, T, H, S, D = 3, 4, 2, 6, 4                                            # two tokens were read before
    q, k, v = normal(rng, B, T, H, D), normal(rng, B, S, D), normal(rng, B, S, D)
    free = torch.zeros(1, T, 1, S)
    causal = free.masked_fill((torch.arange(S) > torch.arange(S - T, S)[:, None])[None, :, None], -1e9)
    shape = "q (3, 4, 2, 4), k and v (3, 6, 4)"
    y = ask(q, k, v, free)
    of_shape(y, q.shape, "attend", shape)
    check(not close(y, plain_attention(q, k, v, free, scale=1.0)), "scores are divided by the root of D",
          shape)
    check(close(y, plain_attention(q, k, v, free), 1e-3), "each head of each token looks at all keys", shape)
    y = ask(q, k, v, causal)
    check(close(y, plain_attention(q, k, v, causal), 1e-3), "masked keys have no weight", "a causal mask")
    check(close(ask(q, k, v + 5, causal), y + 5, 1e-3), "weights sum to 1", "v + 5")
    later_k, later_v = k.clone(), v.clone()
    later_k[:, 4:], later_v[:, 4:] = normal(rng, B, 2, D), 9.0
    check(close(ask(q, later_k, later_v, causal)[:, :2], y[:, :2]), "no token sees a later one",
          "the last two keys and values change")
    mask = causal.repeat(B, 1, 1, 1)
    mask[1, :, :, :2] = -1e9
    y = ask(q, k, v, mask)
    check(close(y, plain_attention(q, k, v, mask), 1e-3), "each row has its own mask",
          "two columns of row 1 are padding")
    mask[2, 1, :, :3] = math.log(2.0)
    check(close(ask(q, k, v, mask), plain_attention(q, k, v, mask), 1e-3),
          "the mask is added to the scaled scores", "log 2 in the mask")
    one = ask(q[:1, :1], k[:1, :1], v[:1, :1], torch.zeros(1, 1, 1, 1))
    check(close(one[0, 0], v[0, 0].expand(H, D)), "a single key has all the weight", "T = S = 1")
    _, grads = ask.grad([0, 1, 2], q, k, v, causal)
    check(all(type(g) is torch.Tensor and bool((g != 0).any()) for g in grads),
          "gradients flow to queries, keys and values", "attend(...).sum().backward()")


def P5(ask, rng):
    V, C, B, T = 12, 5, 3, 7
    embed, out = normal(rng, V, C), normal(rng, C, V)
    boxed = type("Model", (), {})()                # child.py makes its Model of it
    boxed.embed, boxed.out = embed, out
    ids = torch.tensor([[rng.randrange(V) for _ in range(T)] for _ in range(B)])

    def hidden(padding):
        x = embed[ids] * (torch.arange(T) >= padding[:, None])[:, :, None]
        return x.cumsum(dim=1) @ out                                         # (B, T, V)

    def compare(places, property, padding=None):
        learned = torch.zeros(B, T, dtype=torch.bool)
        for b, t in places:
            learned[b, t] = True
        example = f"learned True at {places}" + ("" if padding is None else f", padding {padding.tolist()}")
        answer = ask(boxed, ids, learned) if padding is None else ask(boxed, ids, learned, padding)
        check(two_tensors(answer), "it returns logits and targets", example)
        logits, targets = answer
        kept = sorted((b, t) for b, t in places if t > 0)
        named = "first" in property or "order" in property
        check(targets.tolist() == [int(ids[b, t]) for b, t in kept],
              property if named else "targets are the tokens that are learned", example)
        of_shape(logits, (len(kept), V), "logits", example)
        x = hidden(torch.zeros(B, dtype=torch.long) if padding is None else padding)
        check(not close(logits, torch.stack([x[b, t] for b, t in kept])), "no token is predicted from itself",
              example)
        check(close(logits, torch.stack([x[b, t - 1] for b, t in kept]), 1e-3), property, example)
        return learned

    compare([(0, 2), (1, 5), (2, 3)], "the logits at a token come from the hidden state before it")
    compare([(2, 1), (0, 4), (0, 3), (1, 6)], "rows come in order")
    learned = compare([(0, 0), (1, 3), (2, 0), (2, 6)],
                   "a first token that is learned has nothing before it, and is left out")
    compare([(0, 5), (1, 3), (2, 6)], "the model is told the padding", torch.tensor([3, 0, 2]))
    _, (grad,) = ask.grad([0], boxed, ids, learned)
    check(type(grad) is torch.Tensor and bool((grad != 0).any()), "gradients flow to the model",
          "logits.sum().backward()")


def P6(ask, rng):
    def near(args, expected, property):
        answer = ask(*args)
        example = f"learning_rate{tuple(args)}"
        check(type(answer) in (float, int), "it returns a number", example)
        check(abs(answer - expected) < 1e-6, property, example)

    peak = rng.uniform(0.5, 2.0)
    near((peak, 0, 100), peak / 20, "the first step has peak / warmup, and not 0")
    near((peak, 9, 100), peak / 2, "it rises linearly over the warmup")
    near((peak, 19, 100), peak, "the last step of the warmup has the peak")
    near((peak, 35, 100), peak, "then it is flat")
    near((peak, 50, 100), peak, "it falls over the last share of the steps alone")
    near((peak, 75, 100), peak / 2, "it falls linearly to 0")
    near((peak, 99, 100), peak / 50, "the last step is one step before 0")
    near((peak, 4, 100, 10), peak / 2, "warmup is an argument")
    near((peak, 90, 100, 10, 0.2), peak / 2, "decay is an argument")
    near((peak, 60, 100, 10, 0.2), peak, "decay is an argument")
    for _ in range(10):
        steps, warmup, decay = rng.randint(60, 300), rng.randint(2, 20), rng.choice([0.2, 0.3, 0.5])
        step = rng.randrange(steps)
        up, down = min(1.0, (step + 1) / warmup), min(1.0, (steps - step) / (decay * steps))
        near((peak, step, steps, warmup, decay), peak * up * down, "random steps")  # one of both is 1


def P7(ask, rng):
    def compare(rows, T, property, value=None):
        answer = ask(rows) if value is None else ask(rows, value)
        example = f"rows of lengths {[len(row) for row in rows]}"
        check(two_tensors(answer), "it returns ids and padding", example)
        ids, padding = answer
        check(tuple(ids.shape) == (len(rows), T), "T is the least multiple of 16 that holds the longest row",
              example)
        check(ids.dtype == padding.dtype == torch.int64, "both hold whole numbers, int64", example)
        check(padding.tolist() == [T - len(row) for row in rows],
              "padding counts what was added to each row", example)
        fill = PAD if value is None else value
        check(all(ids[i, T - len(row):].tolist() == list(row) for i, row in enumerate(rows)),
              "each row stands on the right", example)
        check(all(ids[i, :T - len(row)].tolist() == [fill] * (T - len(row)) for i, row in enumerate(rows)),
              property, example)

    row = lambda length: [rng.randrange(13, 700) for _ in range(length)]
    compare([row(3), row(1)], 16, "what is added is PAD")
    compare([row(16)], 16, "a row of 16 needs no padding")
    compare([row(5), row(17), row(16)], 32, "what is added is PAD")
    compare([tuple(row(4)), tuple(row(2))], 16, "a row may be a tuple")
    compare([row(3), row(2)], 16, "what is added is `value`", 7)
    for _ in range(3):
        lengths = [rng.randint(1, 70) for _ in range(4)]
        compare([row(length) for length in lengths], math.ceil(max(lengths) / 16) * 16, "random rows")
    check(ask([row(2)], 0, device="cpu")[0].device.type == "cpu", "device is an argument", 'device="cpu"')


def P8(ask, rng):
    B, V = 64, 8
    logits = 2 * normal(rng, B, V)
    u = torch.tensor([rng.random() for _ in range(B)])
    for T in (1.0, 0.5, 2.0):
        answer = ask(logits, u, T)
        check(two_tensors(answer), "it returns ids and log-probabilities", f"logits (64, 8), T = {T}")
        ids, logp = answer
        check(ids.shape == (B,) and not ids.is_floating_point(), "ids are whole numbers, (B,)", f"T = {T}")
        of_shape(logp, (B,), "log-probabilities", f"T = {T}")
        p = (logits.double() / T).softmax(dim=-1)
        cdf = p.cumsum(dim=-1)
        expected = [next(i for i in range(V) if cdf[b, i] > float(u[b]) - 1e-6) for b in range(B)]
        sure = [b for b in range(B) if (cdf[b] - float(u[b])).abs().min() > 1e-4]
        check(all(int(ids[b]) == expected[b] for b in sure),
              "the first token whose cumulative probability exceeds u"
              if T == 1.0 else "logits are divided by the temperature",
              f"logits {rounded(logits[sure[0]])}, u {float(u[sure[0]]):.3f}, T = {T}")
        mine = torch.stack([p[b, int(ids[b])].log() for b in range(B)])
        check(close(logp, mine, 1e-3), "log-probabilities are those of the distribution that was sampled"
              if T != 1.0 else "log-probabilities are natural logarithms", f"T = {T}")
    edges = torch.tensor([0.0, 0.25, 0.5, 0.75])
    ids, _ = ask(torch.zeros(4, 4), edges, 1.0)
    check(ids.tolist() == [0, 1, 2, 3], "a u on a border belongs to the token above it",
          "four equal logits, u = 0, .25, .5, .75")
    ids, _ = ask(torch.tensor([[-1e4, 0.0, 0.0, -1e4]]), torch.tensor([0.0]), 1.0)
    check(ids.tolist() == [1], "tokens that have no probability are never drawn",
          "logits -10000, 0, 0, -10000 and u = 0")
    many = normal(rng, 512, 700) * 3
    ids, logp = ask(many, torch.full((512,), 1 - 2.0 ** -24), 1.0)
    check(bool(((ids >= 0) & (ids < 700)).all()), "the largest u draws a token, too", "u just below 1")
    many = many.clamp(-2, 2)
    many[:, 640:] = -100.0
    ids, _ = ask(many, torch.full((512,), 1 - 2.0 ** -24), 1.0)
    check(bool((ids == 639).all()), "the largest u draws the last token that has a probability", "u just below 1")
    ids, logp = ask(logits, u, 0)
    check(torch.equal(ids, logits.argmax(dim=-1)), "T = 0 takes the most likely token",
          f"logits {rounded(logits[0])}")
    check(close(logp, logits.log_softmax(dim=-1).max(dim=-1).values, 1e-3),
          "at T = 0 log-probabilities are those at T = 1", f"logits {rounded(logits[0])}")
