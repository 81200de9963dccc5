"""Checks of rejective fine-tuning and RL: P9, P10, P12 to P16."""

import torch

from assignment.checks import check, close, normal, of_shape, reference, rounded
from data.judgement import Judgement
from data.tokenizer import HINT
from data.world import make_item


def judgements(item, rng, rights):
    """Judgements of an item of two or more that are right or wrong as said."""
    def scores(good):
        s = [rng.randint(1, 5) for _ in range(item.n)]
        s[item.best] = 9 if good else 1
        if not good:
            s[item.best - 1] = 6
        return s
    return [Judgement(item.id, i, list(range(item.n)), i, [], [], 0.0, scores=scores(good))
            for i, good in enumerate(rights)]


def P9(ask, rng):
    item = make_item(rng.randrange(1000), "train", rng.randrange(1000), least=2)
    for rights, property in (([True, False, True], "the right ones are kept, the wrong ones are not"),
                             ([True, True, True], "nothing is kept of a point that is too easy"),
                             ([False, False, False], "nothing is kept where all are wrong"),
                             ([False, True, False], "one right judgement is enough"),
                             ([True], "nothing is kept of a point that is too easy")):
        samples = judgements(item, rng, rights)
        answer, example = ask(samples, item), f"samples that are right: {rights}"
        expected = [] if all(rights) else [i for i, good in enumerate(rights) if good]
        check(type(answer) is list and all(type(j) is Judgement for j in answer),
              "it returns a list of judgements", example)
        check([j.sample for j in answer] == expected, property, example)
    samples = judgements(item, rng, [True, False, True])
    samples[0].scores = None
    check([j.sample for j in ask(samples, item)] == [2], "what did not parse is not kept",
          "one of three does not parse")
    single = make_item(1, "train", rng.randrange(1000), most=1)
    samples = [Judgement(single.id, i, [0], i, [], [], 0.0, scores=[s]) for i,
               s in enumerate((single.gold[0], single.gold[0] % 10 + 1))]
    check([j.sample for j in ask(samples, single)] == [0], "a single response: the score is the gold reward",
          "n = 1")


def P10(ask, rng):
    prompt = [2, *(rng.randrange(13, 99) for _ in range(4)), 3, 50, HINT, 4, 51, 8]
    answer = ask(prompt)
    check(answer == [t for t in prompt if t != HINT] and type(answer) is list,
          "the hint is gone, all else stays", f"forget_hint({prompt})")
    plain = [t for t in prompt if t != HINT]
    check(ask(plain) == plain, "a prompt without a hint stays as it is", f"forget_hint({plain})")
    check(ask([HINT, 20, HINT]) == [20], "wherever the hint stands", f"forget_hint([{HINT}, 20, {HINT}])")
    check(ask([]) == [], "an empty prompt", "forget_hint([])")
    check(ask(tuple(plain)) == plain and ask(tuple(prompt)) == plain, "a tuple becomes a list",
          f"forget_hint({tuple(plain)})")


def P12(ask, rng):
    r = torch.tensor([[1.0, -1.0, -1.0, -1.0], [1.0, 1.0, 1.0, -1.0], [1.0, 1.0, 1.0, 1.0], [-1.0] * 4])
    a = ask(r)
    check(type(a) is torch.Tensor and a.shape == r.shape, "the shape stays", "advantages (4, 4)")
    check(not bool(a.isnan().any()), "a group that is all alike gives 0, not 0 / 0", r[2].tolist())
    check(bool((a[2:] == 0).all()), "a group that is all alike gives 0", r[2].tolist())
    check(bool((a.sum(dim=1).abs() < 1e-4).all()), "each group has the mean 0", r[0].tolist())
    check(bool((a[:2].sign() == r[:2].sign()).all()), "right samples are above 0, wrong ones below",
          r[0].tolist())
    size = a[:2].square().mean(dim=1).sqrt()
    check(close(size, torch.ones(2), 1e-3), "the standard deviation is that of the group, divided by G",
          r[0].tolist())
    moved = r.clone()
    moved[0] = torch.tensor([-1.0, 1.0, 1.0, 1.0])
    check(close(ask(moved)[1], a[1]), "groups do not mix", "another group changes")
    for P, G in ((1, 2), (3, 5), (5, 8)):
        x = normal(rng, P, G)
        y = x.double().numpy()
        expected = torch.from_numpy((y - y.mean(1, keepdims=True)) / y.std(1, keepdims=True))
        check(close(ask(x), expected, 1e-3), "rewards of any size", f"rewards ({P}, {G})")


def P13(ask, rng):
    for rewards, keep, property in (
            ([1.0, -1.0, 1.0, -1.0, 1.0, -1.0], 4, "half of them right, half of them wrong"),
            ([1.0, 1.0, 1.0, -1.0, 1.0, 1.0], 4, "where there are few wrong ones, more right ones are taken"),
            ([-1.0, -1.0, 1.0, -1.0, -1.0], 4, "where there are few right ones, more wrong ones are taken"),
            ([1.0, 1.0, 1.0], 2, "if all are right, the first one alone"),
            ([-1.0, -1.0, -1.0], 2, "if all are wrong, the first one alone"),
            ([1.0, 1.0, 1.0, -1.0, -1.0, -1.0], 3, "of an odd number the larger half is wrong"),
            ([0.0, 1.0, 0.0, 1.0, 0.0], 4, "a reward of 0 is not right"),
            ([-1.0, 1.0, 1.0, -1.0], 2, "the earlier ones come first")):
        answer, example = ask(rewards, keep), f"contrast({rewards}, {keep})"
        check(type(answer) is list and all(type(i) is int and 0 <= i < len(rewards) for i in answer),
              "it returns indices", example)
        check(len(set(answer)) == len(answer), "no sample twice", example)
        if len(set(rewards)) == 1:
            check(answer == [0], property, example)
            continue
        right = [i for i, r in enumerate(rewards) if r > 0]
        wrong = [i for i, r in enumerate(rewards) if r <= 0]
        many = min(len(right), max(keep // 2, keep - len(wrong)))
        check(len(answer) == min(keep, len(rewards)), "it keeps as many as it should", example)
        check(sum(i in right for i in answer) == many, property, example)
        check(answer == right[:many] + wrong[:keep - many],
              "the earlier ones come first, right ones before wrong ones", example)
    for _ in range(20):
        rewards, keep = [rng.choice([1.0, -1.0]) for _ in range(8)], rng.choice([2, 4, 6])
        check(ask(rewards, keep) == reference("P13")(rewards, keep),
              "random rewards", f"contrast({rewards}, {keep})")


def P14(ask, rng):
    old = torch.tensor([0.2, 0.2, 0.5, 0.5, 0.4]).log()
    new = torch.tensor([0.5, 0.5, 0.1, 0.1, 0.42]).log()
    adv = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    loss, (grad,) = ask.grad([0], new, old, adv, 0.2)
    of_shape(loss, (5,), "policy_loss of 5 tokens")
    check(loss[4] < 0 < loss[3], "it is a loss: a good sample's is below 0", "ratio 1.05, advantage 2")
    check(close(loss[4], -2.1, 1e-3), "inside of the clip range it is minus ratio times advantage",
          "ratio 1.05, advantage 2")
    check(close(loss[0], -1.2, 1e-3), "the ratio is clipped above", "ratio 2.5, advantage 1, clip .2")
    check(close(loss[3], 0.8, 1e-3), "the ratio is clipped below", "ratio .2, advantage -1, clip .2")
    check(close(loss[1], 2.5, 1e-3), "the worse of both counts: what went wrong is not clipped",
          "ratio 2.5, advantage -1")
    check(close(loss[2], -0.2, 1e-3), "the worse of both counts: what went wrong is not clipped",
          "ratio .2, advantage 1")
    check(bool((grad[[0, 3]] == 0).all()), "beyond the clip there is no gradient", "ratio 2.5, advantage 1")
    check(close(grad[4], -2.1, 1e-3), "the gradient at the start is minus the advantage times the ratio",
          "ratio 1.05")
    loss, (grad,) = ask.grad([0], old.clone(), old, adv, 0.2)
    check(close(grad, -adv, 1e-3), "on the first update this is REINFORCE", "ratio 1")
    wide = ask(new, old, adv, 10.0)
    check(close(wide, -(new - old).exp() * adv, 1e-3), "clip is an argument", "clip 10")


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
