"""Checks of rejective fine-tuning and RL: P12 to P16."""

import torch

from assignment.checks import check, close, normal, of_shape, rounded
from data.judgement import Judgement
from data.tokenizer import HINT
from data.world import make_item


def judgements(item, rng, goods):
    """Judgements of an item of two or more responses that are correct or incorrect as said."""
    def scores(good):
        s = [rng.randint(1, 5) for _ in range(item.n)]
        s[item.best] = 9 if good else 1
        if not good:
            s[item.best - 1] = 6
        return s
    return [Judgement(item.id, i, list(range(item.n)), i, [], [], 0.0, scores=scores(good))
            for i, good in enumerate(goods)]


def P12(ask, rng):
    item = make_item(rng.randrange(1000), "train", rng.randrange(1000), least=2)
    for goods, property in (([True, False, True], "the correct ones are kept, the incorrect ones are not"),
                            ([True, True, True], "nothing is kept of an item that is too easy"),
                            ([False, False, False], "nothing is kept where all are incorrect"),
                            ([False, True, False], "one correct judgement is enough"),
                            ([True], "nothing is kept of an item that is too easy")):
        samples = judgements(item, rng, goods)
        answer, example = ask(samples, item), f"samples that are correct: {goods}"
        expected = [] if all(goods) else [i for i, good in enumerate(goods) if good]
        check(type(answer) is list and all(type(j) is Judgement for j in answer),
              "it returns a list of judgements", example)
        check([j.sample for j in answer] == expected, property, example)
    samples = judgements(item, rng, [True, False, True])
    samples[0].scores = None
    check([j.sample for j in ask(samples, item)] == [2], "a judgement that does not parse is not kept",
          "one of three does not parse")
    single = make_item(1, "train", rng.randrange(1000), most=1)
    samples = [Judgement(single.id, i, [0], i, [], [], 0.0, scores=[s]) for i,
               s in enumerate((single.gold[0], single.gold[0] % 10 + 1))]
    check([j.sample for j in ask(samples, single)] == [0], "a single response: the score is the gold reward",
          "n = 1")


def P13(ask, rng):
    prompt = [2, *(rng.randrange(13, 99) for _ in range(4)), 3, 50, HINT, 4, 51, 8]
    answer = ask(prompt)
    check(answer == [t for t in prompt if t != HINT] and type(answer) is list,
          "the hint is gone, all else stays", f"forget_hint({prompt})")
    plain = [t for t in prompt if t != HINT]
    check(ask(plain) == plain, "a prompt without a hint stays as it is", f"forget_hint({plain})")
    check(ask([HINT, 20, HINT]) == [20], "wherever the hint stands", f"forget_hint([{HINT}, 20, {HINT}])")
    check(ask([]) == [], "an empty prompt", "forget_hint([])")
    check(ask(tuple(plain)) == plain and ask(tuple(prompt)) == plain, "a prompt may be a tuple",
          f"forget_hint({tuple(plain)})")


def P14(ask, rng):
    r = torch.tensor([[1.0, -1.0, -1.0, -1.0], [1.0, 1.0, 1.0, -1.0], [1.0, 1.0, 1.0, 1.0], [-1.0] * 4])
    a = ask(r)
    check(type(a) is torch.Tensor and a.shape == r.shape, "the shape stays", "group_advantages (4, 4)")
    check(not bool(a.isnan().any()), "a group whose rewards are all equal gives 0, not 0 / 0", r[2].tolist())
    check(bool((a[2:] == 0).all()), "a group whose rewards are all equal gives 0", r[2].tolist())
    check(bool((a.sum(dim=1).abs() < 1e-4).all()), "each group has the mean 0", r[0].tolist())
    check(bool((a[:2].sign() == r[:2].sign()).all()), "correct samples are above 0, incorrect ones below",
          r[0].tolist())
    size = a[:2].square().mean(dim=1).sqrt()
    check(close(size, torch.ones(2), 1e-3), "the standard deviation is that of the group, divided by G",
          r[0].tolist())
    for G, reward in ((6, 0.9), (7, 0.3)):         # their mean is rounded
        check(close(ask(torch.full((1, G), reward)), torch.zeros(1, G)),
              "a group whose rewards are all equal gives 0", f"{G} rewards of {reward}")
    check(close(ask(0.001 * r[:2]), a[:2], 1e-3), "small rewards are scaled up, too", "0.001 and -0.001")
    moved = r.clone()
    moved[0] = torch.tensor([-1.0, 1.0, 1.0, 1.0])
    check(close(ask(moved)[1], a[1]), "groups do not mix", "another group changes")
    for P, G in ((1, 2), (3, 5), (5, 8)):
        x = normal(rng, P, G)
        y = x.double().numpy()
        expected = torch.from_numpy((y - y.mean(1, keepdims=True)) / y.std(1, keepdims=True))
        check(close(ask(x), expected, 1e-3), "rewards of any size", f"rewards ({P}, {G})")


def P15(ask, rng):
    logp, ref = normal(rng, 40) - 2, normal(rng, 40) - 2
    loss, (grad,) = ask.grad([0], logp, ref)
    of_shape(loss, (40,), "kl_k2 of 40 tokens")
    example = f"logp {rounded(logp[:1])}, logp_ref {rounded(ref[:1])}"
    check(bool((loss >= 0).all()), "it is never negative", example)
    check(close(ask(ref, ref), torch.zeros(40)), "it is 0 where both agree", "logp = logp_ref")
    check(not close(loss, (logp - ref) ** 2, 1e-3), "half of the square", example)
    check(close(loss, 0.5 * (logp - ref) ** 2, 1e-3), "the square of the log ratio over 2", example)
    check(close(grad, logp - ref, 1e-3), "its gradient is the log ratio", example)


def P16(ask, rng):
    logp, ref = normal(rng, 40) - 2, normal(rng, 40) - 2
    k3 = ask(logp, ref)
    of_shape(k3, (40,), "kl_k3 of 40 tokens")
    example = f"logp {rounded(logp[:1])}, logp_ref {rounded(ref[:1])}"
    check(bool((k3 >= -1e-6).all()), "it is never negative", example)
    check(close(ask(ref, ref), torch.zeros(40)), "it is 0 where both agree", "logp = logp_ref")
    p, q = normal(rng, 30).softmax(dim=0), normal(rng, 30).softmax(dim=0)
    mean = lambda p, q: float((p * ask(p.log(), q.log())).sum())
    kl = float((p * (p / q).log()).sum())
    check(abs(mean(p, q) - kl) < 1e-3 * max(1, kl),
          "its mean over the policy's samples is KL(policy || reference)", "30 tokens")
    log_ratio = (ref - logp).double()
    check(close(k3, log_ratio.exp() - log_ratio - 1, 1e-3), "r - 1 - log r", example)
    near = torch.tensor([1e-3, -1e-3, 3e-4, -3e-4])
    exact = torch.expm1(near.double()) - near.double()
    check(close(ask(torch.zeros(4), near) / exact, torch.ones(4), 0.1), "it is accurate near 0",
          "log ratios of .001 and .0003")
