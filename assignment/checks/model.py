"""Checks of the tokenizer, the model and the sampler: P1 to P5, P11."""

import math
import re
from types import SimpleNamespace as Simple

import torch

from assignment.checks import check, close, normal, of_shape, rounded, two_tensors
from data.tokenizer import MARKS, PATTERN


def bpe(texts, vocab_size):
    """An oracle: the same rule, slow and plain, without counting chunks."""
    chunks = [[bytes([b]) for b in chunk.encode()] for text in texts for chunk in re.findall(PATTERN, text)]
    found = [bytes([b]) for b in range(256)]
    while len(MARKS) + len(found) < vocab_size:
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
    return {token: len(MARKS) + i for i, token in enumerate(found)}


def P1(ask, rng):
    letters = rng.sample("abcdefghijk", 4)
    word = lambda: "".join(rng.choice(letters) for _ in range(rng.randint(1, 5)))
    first = len(MARKS)
    answer = ask(["aa"], first + 256)
    check(type(answer) is dict and all(type(k) is bytes and type(v) is int for k, v in answer.items()),
          "it returns {bytes: rank}", 'train_bpe(["aa"], len(MARKS) + 256)')
    check([answer.get(bytes([b])) for b in range(256)] == list(range(first, first + 256)),
          "the 256 bytes come first, their ranks follow the marks", 'train_bpe(["aa"], len(MARKS) + 256)')
    check(len(answer) == 256, "marks and tokens together are vocab_size",
          'train_bpe(["aa"], len(MARKS) + 256)')
    check(len(ask([], first + 300)) == 256, "it stops when nothing is left to merge",
          "train_bpe([], len(MARKS) + 300)")
    a, b, c = letters[:3]
    for property, texts in (("merges never cross chunks", [f"{a} {b}"] * 3 + [f"{b}{c}"]),
                            ("ties go to the smaller bytes", [f"{c}{a} {b}{a} {a}{c}"]),
                            ("each chunk counts as often as it occurs", [f"{a}{b} " * 2, f"{b}{c} " * 3]),
                            ("runs of one letter merge from the left", [a * 5 + b, a * 3]),
                            ("letters that are several bytes long", ["äö äö ä"])):
        for more in (1, 2, 3):
            check(ask(texts, first + 256 + more) == bpe(texts, first + 256 + more), property,
                  f"train_bpe({texts}, len(MARKS) + {256 + more})")
    for _ in range(4):
        texts, size = [" ".join(word() for _ in range(6)) for _ in range(4)], first + 256 + rng.randint(3, 12)
        check(ask(texts, size) == bpe(texts, size), "random texts", f"train_bpe({texts}, {size})")


def turn_of(positions, D):
    """cos, sin and swap as GPT makes them."""
    angle = positions[:, None].double() / 10000 ** (torch.arange(D // 2).double() / (D // 2))
    angle = angle.repeat_interleave(2, dim=1)
    swap = torch.block_diag(*[torch.tensor([[0.0, 1.0], [-1.0, 0.0]])] * (D // 2))
    return angle.cos().float(), angle.sin().float(), swap


def P2(ask, rng):
    x, D = normal(rng, 2, 3, 5, 8), 8
    turn = turn_of(torch.arange(5), D)
    y = ask(x, turn)
    of_shape(y, x.shape, "rotate(x (2, 3, 5, 8), turn)")
    check(close(y[:, :, 0], x[:, :, 0]), "position 0 is not turned", "x (2, 3, 5, 8)")
    check(close(y.norm(dim=-1), x.norm(dim=-1)), "lengths stay", "x (2, 3, 5, 8)")
    pairs = torch.view_as_complex(x.double().view(2, 3, 5, 4, 2))
    angle = torch.arange(5)[:, None] / 10000 ** (torch.arange(4) / 4)
    expected = torch.view_as_real(pairs * torch.polar(torch.ones(5, 4).double(), angle.double())).flatten(-2)
    conjugate = torch.view_as_real(pairs * torch.polar(torch.ones(5, 4).double(),
                                                       -angle.double())).flatten(-2)
    check(not close(y, conjugate), "it turns in the right direction", "(1, 0) by a quarter becomes (0, 1)")
    check(close(y, expected), "neighbouring channels (2i, 2i + 1) are turned by their angle",
          "x (2, 3, 5, 8)")
    one, where = normal(rng, 3, 2, D), torch.tensor([4, 0, 2])
    cos, sin, swap = turn_of(where, D)
    y = ask(one, (cos[:, None], sin[:, None], swap))
    of_shape(y, one.shape, "rotate(x (B, heads, D), turn (B, 1, D))")
    check(close(y[1], one[1]), "a row has its own position", "positions 4, 0, 2")
    check(close(ask(x * 2, turn), expected * 2), "it is linear in x")
    half = ask(x.half(), (turn[0], turn[1], turn[2].half()))
    check(half.dtype == torch.float16, "the result has the type of x", "x in float16, cos and sin in float32")


def plain_attention(q, k, v):
    """One query head at a time, one query at a time."""
    B, H, T, D = q.shape
    K, out = k.size(1), torch.zeros(B, H, T, D)
    for b in range(B):
        for h in range(H):
            kv = h // (H // K)
            for t in range(T):
                weights = torch.softmax(k[b, kv, :t + 1] @ q[b, h, t] / math.sqrt(D), dim=0)
                out[b, h, t] = weights @ v[b, kv, :t + 1]
    return out


def P3(ask, rng):
    for H, K, T, property in ((2, 2, 5, "each head has its own keys"),
                              (4, 1, 6, "all heads share one key head"),
                              (4, 2, 6, "groups of neighbouring heads share a key head"),
                              (2, 1, 190, "rows longer than a block of queries")):
        q, k, v = normal(rng, 2, H, T, 4), normal(rng, 2, K, T, 4), normal(rng, 2, K, T, 4)
        y, shape = ask(q, k, v), f"q (2, {H}, {T}, 4), k and v (2, {K}, {T}, 4)"
        of_shape(y, q.shape, "attend", shape)
        check(close(y[:, :, 0], v[:, :, 0].repeat_interleave(H // K, dim=1)),
              "the first token sees itself alone", shape)
        later_k, later_v = k.clone(), v.clone()
        later_k[:, :, T // 2:], later_v[:, :, T // 2:] = normal(rng, 2, K, T - T // 2, 4), 9.0
        check(close(ask(q, later_k, later_v)[:, :, :T // 2], y[:, :, :T // 2]), "no token sees a later one",
              shape)
        expected = plain_attention(q, k, v)
        D = q.size(-1)
        check(not close(y, plain_attention(q * D ** 0.5, k, v)), "scores are divided by the root of D", shape)
        check(close(y, expected, 1e-3), property, shape)
    check(close(ask(q[:, :, :3], k[:, :, :3], v[:, :, :3] + 5),
                plain_attention(q[:, :, :3], k[:, :, :3], v[:, :, :3]) + 5, 1e-3),
          "weights sum to 1", "v + 5")
    _, grads = ask.grad([0, 2], q, k, v)
    check(all(type(g) is torch.Tensor and bool((g != 0).any()) for g in grads),
          "gradients flow to queries and values", "y.sum().backward()")


def P4(ask, rng):
    B, H, K, T, D = 3, 4, 2, 6, 4
    q, keys, values = normal(rng, B, H, D), normal(rng, B, K, T, D), normal(rng, B, K, T, D)
    bias = torch.zeros(B, K, 1, T)
    shape = "q (3, 4, 4), keys (3, 2, 6, 4)"
    y = ask(q, keys, values, bias)
    of_shape(y, q.shape, "attend_cached", shape)
    expected = lambda keys, values: torch.stack([torch.stack([
        torch.softmax(keys[b, h // 2] @ q[b, h] / 2.0,
                      dim=0) @ values[b, h // 2] for h in range(H)]) for b in range(B)])
    unscaled = torch.stack([torch.stack([torch.softmax(keys[b, h // 2] @ q[b, h], dim=0) @ values[b, h // 2]
                                         for h in range(H)]) for b in range(B)])
    check(not close(y, unscaled), "scores are divided by the root of D", shape)
    check(close(y, expected(keys, values)), "neighbouring heads share keys and values", shape)
    bias[1, :, :, 4:] = -math.inf
    hidden = ask(q, keys, values, bias)
    of_shape(hidden, q.shape, "with hidden columns", "bias -inf in two columns of row 1")
    check(close(hidden[[0, 2]], y[[0, 2]]), "what is hidden in one row is not hidden in the others",
          "bias -inf in two columns of row 1")
    check(close(hidden[1], expected(keys[:, :, :4], values[:, :, :4])[1]), "hidden columns have no weight",
          "bias -inf in two columns of row 1")
    bias[0, :, :, :3] = math.log(2.0)
    soft = torch.softmax(keys[0, 1] @ q[0, 3] / 2.0 + bias[0, 1, 0], dim=0) @ values[0, 1]
    check(close(ask(q, keys, values, bias)[0, 3], soft), "the bias is added to the scaled scores",
          "a bias of log 2")
    one = ask(q[:1], keys[:1, :, :1], values[:1, :, :1], torch.zeros(1, K, 1, 1))
    check(close(one[0], values[0, :, 0].repeat_interleave(2, dim=0)), "a single column has all the weight",
          "T = 1")


def P11(ask, rng):
    V, C = 12, 5
    model = Simple(embed=normal(rng, V, C), out=normal(rng, C, V))
    hidden = lambda ids: model.embed[ids].cumsum(dim=1) @ model.out          # (B, T, V)
    ids = torch.tensor([[rng.randrange(V) for _ in range(7)] for _ in range(3)])
    boxed = type("Model", (), {})()
    boxed.embed, boxed.out = model.embed, model.out
    for property, places in (("the logits at a token come from what stands before it",
                              [(0, 2), (1, 5), (2, 3)]),
                             ("rows come in order", [(2, 1), (0, 4), (0, 3), (1, 6)]),
                             ("a first token that is masked has nothing before it: left out",
                              [(0, 0), (1, 3), (2, 0), (2, 6)])):
        mask = torch.zeros(3, 7, dtype=torch.bool)
        for b, t in places:
            mask[b, t] = True
        example = f"mask True at {places}"
        answer = ask(boxed, ids, mask)
        check(two_tensors(answer), "it returns logits and targets", example)
        logits, targets = answer
        kept = sorted((b, t) for b, t in places if t > 0)
        named = "first" in property or "order" in property
        check(targets.tolist() == [int(ids[b, t]) for b, t in kept],
              property if named else "targets are the tokens under the mask", example)
        of_shape(logits, (len(kept), V), "logits", example)
        expected = torch.stack([hidden(ids)[b, t - 1] for b, t in kept])
        at_own = torch.stack([hidden(ids)[b, t] for b, t in kept])
        check(not close(logits, at_own), "no token is predicted from itself", example)
        check(close(logits, expected, 1e-3), property, example)
    _, (grad,) = ask.grad([0], boxed, ids, mask)
    check(type(grad) is torch.Tensor and bool((grad != 0).any()), "gradients flow to the model",
          "logits.sum().backward()")


def P5(ask, rng):
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
    ids, logp = ask(logits, u, 0)
    check(torch.equal(ids, logits.argmax(dim=-1)), "T = 0 takes the most likely token",
          f"logits {rounded(logits[0])}")
    check(close(logp, logits.log_softmax(dim=-1).max(dim=-1).values, 1e-3),
          "at T = 0 log-probabilities are those at T = 1")
