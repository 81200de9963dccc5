"""
Plausible wrong versions of every problem, five or more each: what students and language models really write.

A mutant is the reading copy's function with one change. The grader has to reject each of them, by the check
that is meant for it (`python assignment/selfcheck.py`); a student's own test is graded by those it catches.
"""

import inspect
from dataclasses import dataclass

from assignment.checks import reference


@dataclass
class Mutant:
    problem: str
    bug: str
    old: str                   # what stands in the function's source
    new: str
    caught_by: str             # the beginning of the property that is missing

    @property
    def source(self):
        source = inspect.getsource(reference(self.problem))
        assert source.count(self.old) == 1, (self.problem, self.bug, source.count(self.old))
        return source.replace(self.old, self.new)

    def function(self):
        return as_function(self.problem, self.source)


def as_function(id, source):
    """A version of a problem's function, in the reading copy's module."""
    right = reference(id)
    space = dict(right.__globals__)
    exec(source, space)
    return space[right.__name__]


# Right versions of the functions that students write tests for. They differ from the reading copy's own in their
# last bits, and a test must let them all pass.
RIGHT = {
    "P14": [inspect.getsource(reference("P14")), """
def group_advantages(rewards):
    x = rewards.double()
    x = x - x.mean(dim=1, keepdim=True)
    std = (x ** 2).mean(dim=1, keepdim=True).sqrt()
    return torch.where(std > 1e-9, x / std.clamp(min=1e-9), 0.0).float()
""", """
def group_advantages(rewards):
    centred = rewards - rewards.sum(dim=1, keepdim=True) / rewards.size(1)
    std = rewards.var(dim=1, keepdim=True, unbiased=False).sqrt()
    return centred * (std > 1e-6) / (std + 1e-7)
""", """
def group_advantages(rewards):
    rows = []
    for row in rewards:
        std = row.double().std(unbiased=False).float()
        rows.append(torch.zeros_like(row) if row.max() == row.min() else (row - row.mean()) / std)
    return torch.stack(rows)
"""],
    "P18": [inspect.getsource(reference("P18")), """
def vote_plurality(ballots):
    ballots = [scores for scores in ballots if scores is not None]
    if not ballots:
        return None
    twelfths = [sum(12 // scores.count(max(scores)) for scores in ballots if scores[i] == max(scores))
                for i in range(len(ballots[0]))]
    return [(votes / 12, sum(scores[i] for scores in ballots)) for i, votes in enumerate(twelfths)]
""", """
def vote_plurality(ballots):
    sums = vote_sum(ballots)
    votes = [Fraction(0) for _ in sums or []]
    for scores in filter(None, ballots):
        best = [i for i, score in enumerate(scores) if score == max(scores)]
        for i in best:
            votes[i] = votes[i] + Fraction(1, len(best))
    return sums and [(int(v) if v.denominator == 1 else float(v), s) for v, s in zip(votes, sums)]
"""]}

LARGEST = "if score == max(scores):\n                votes[i] +="           # of vote_plurality

TABLE = {
    "P1": [
        ("no running sum", "so_far += weights", "so_far = weights", "weights are added up"),
        ("bad checks add their weight, too", "weights[name] * good", "weights[name]",
         "what is bad adds nothing"),
        ("bad checks are taken off", "weights[name] * good", "weights[name] * (1 if good else -1)",
         "what is bad adds nothing"),
        ("the weight in place of the sum", 'text += f" {so_far}"', 'text += f" {weights[name]}"',
         "weights are added up"),
        ("always a comma", 'f" {evidence}," if evidence else ""', 'f" {evidence or \'\'},"',
         "without evidence there is no comma"),
        ("None as text", 'f" {evidence}," if evidence else ""', 'f" {evidence},"',
         "without evidence there is no comma"),
        ("no evidence", 'f" {evidence}," if evidence else ""', '""', "a check has a criterion"),
        ("verdicts exchanged", '" good" if good else " bad"', '" bad" if good else " good"',
         "a check has a criterion"),
        ("no space at the beginning", "return text", "return text.strip()", "a check has a criterion"),
        ("the sum begins at 1", 'text, so_far = "", 0', 'text, so_far = "", 1',
         "with weights, the sum so far"),
        ("the sum before the check", 'text += f" {so_far}"', 'text += f" {so_far - weights[name] * good}"',
         "with weights, the sum so far"),
    ],
    "P2": [
        ("the first merge has the rank of the last byte", "ranks[left + right] = len(SPECIAL) + len(ranks)",
         "ranks[left + right] = len(SPECIAL) + len(ranks) - 1", "merges never cross chunks"),
        ("ranks begin at 0", "{bytes([byte]): len(SPECIAL) + byte for byte", "{bytes([byte]): byte for byte",
         "the 256 bytes come first"),
        ("special tokens are not counted", "while len(SPECIAL) + len(ranks) < vocab_size",
         "while len(ranks) < vocab_size",
         "special tokens and tokens together"),
        ("texts are one long chunk", "for chunk in re.findall(PATTERN, text))", "for chunk in [text])",
         "merges never cross chunks"),
        ("each chunk counts once", "pairs[pair] += counts[chunk]", "pairs[pair] += 1",
         "each chunk counts as often"),
        ("ties go to the larger bytes", "left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))",
         "left, right = max(pairs, key=lambda pair: (pairs[pair], pair))", "ties go to the smaller"),
        ("the rarest pair is merged", "(-pairs[pair], pair)", "(pairs[pair], pair)",
         "merges never cross chunks"),
        ("every other neighbour is skipped", "                i += 1\n", "                i += 2\n", ""),
    ],
    "P3": [
        ("the wrong direction", "a * cos - b * sin, b * cos + a * sin",
         "a * cos + b * sin, b * cos - a * sin",
         "it turns in the right direction"),
        ("cos and sin exchanged", "a * cos - b * sin, b * cos + a * sin",
         "a * sin - b * cos, b * sin + a * cos",
         "position 0 is not turned"),
        ("halves exchanged", "a * cos - b * sin, b * cos + a * sin", "b * cos + a * sin, a * cos - b * sin",
         "position 0 is not turned"),
        ("neighbours in place of halves", "a, b = x.chunk(2, dim=-1)", "a, b = x[..., ::2], x[..., 1::2]",
         "position 0 is not turned"),
        ("neighbours, put back as neighbours",
         "return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)",
         "a, b = x[..., ::2], x[..., 1::2]\n"
         "    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)",
         "channels i and i + D/2"),
        ("no minus", "a * cos - b * sin", "a * cos + b * sin", "lengths stay"),
        ("the new a in place of the old one", "b * cos + a * sin", "b * cos + (a * cos - b * sin) * sin",
         "lengths stay"),
        ("the first row's positions for all", "a, b = x.chunk(2, dim=-1)",
         "(a, b), cos, sin = x.chunk(2, dim=-1), cos[:1], sin[:1]", "a row has its own positions"),
        ("always float32", ".to(x.dtype)", "", "the result has the type of x"),
    ],
    "P4": [
        ("no scale", "q * D ** -0.5", "q", "scores are divided"),
        ("divided by D", "D ** -0.5", "1 / D", "each head of each token"),
        ("multiplied by the root of D", "D ** -0.5", "D ** 0.5", "each head of each token"),
        ("no mask", "+ mask.to(scores.dtype)", "", "masked keys have no weight"),
        ("the mask is subtracted", "+ mask.to(scores.dtype)", "- mask.to(scores.dtype)",
         "masked keys have no weight"),
        ("the mask is scaled, too", "+ mask.to(scores.dtype)", "+ D ** -0.5 * mask.to(scores.dtype)",
         "the mask is added"),
        ("the first row's mask for all", "+ mask.to(scores.dtype)", "+ mask[:1].to(scores.dtype)",
         "each row has its own mask"),
        ("all or nothing", "mask.to(scores.dtype)", "(mask < 0) * -1e9", "the mask is added"),
        ("masked after the softmax", "(scores.view(B, T, H, -1) + mask.to(scores.dtype)).softmax(dim=-1)",
         "scores.view(B, T, H, -1).softmax(dim=-1) * (mask > -1)", "masked keys have no weight"),
        ("softmax over queries", "softmax(dim=-1)", "softmax(dim=1)", "each head of each token"),
        ("heads and tokens exchanged", "(q * D ** -0.5).reshape(B, T * H, D)",
         "(q * D ** -0.5).transpose(1, 2).reshape(B, T * H, D)", "each head of each token"),
        ("keys in place of values", "@ v)", "@ k)", "each head of each token"),
        ("without gradients for the values", "@ v)", "@ v.detach())", "gradients flow"),
    ],
    "P5": [
        ("a token is predicted from itself", "model(ids, padding)[:, :-1]", "model(ids, padding)[:, 1:]",
         "no token is predicted from itself"),
        ("targets one too early", "ids[:, 1:][predicted]", "ids[:, :-1][predicted]",
         "targets are the tokens"),
        ("the choice of the token before", "predicted = learned[:, 1:]", "predicted = learned[:, :-1]",
         "targets are the tokens"),
        ("a learned first token is predicted from the last hidden state",
         "return model.logits(x[predicted]), ids[:, 1:][predicted]",
         "return model.logits(model(ids, padding).roll(1, 1)[learned]), ids[learned]",
         "a first token that is learned"),
        ("column by column", "return model.logits(x[predicted]), ids[:, 1:][predicted]",
         "return model.logits(x.transpose(0, 1)[predicted.T]), ids[:, 1:].T[predicted.T]",
         "targets are the tokens"),
        ("the padding is not passed on", "model(ids, padding)", "model(ids)",
         "the model is told the padding"),
        ("without gradients", "model.logits(x[predicted])", "model.logits(x[predicted].detach())", "crashed"),
        ("logits at T = 2", "model.logits(x[predicted])", "model.logits(x[predicted]) / 2",
         "the logits at a token"),
        ("log-probabilities", "model.logits(x[predicted])", "model.logits(x[predicted]).log_softmax(dim=-1)",
         "the logits at a token"),
        ("all logits", "model.logits(x[predicted])", "model.logits(x)", "logits"),
        ("hidden states", "model.logits(x[predicted])", "x[predicted]", "logits"),
    ],
    "P6": [
        ("the first step has 0", "(step + 1)", "step", "the first step has peak"),
        ("the warmup is one step longer", "min(warmup, steps)", "(warmup + 1)",
         "the first step has peak"),
        ("it begins to fall at once", "(steps - step) / (decay * steps)", "(steps - step) / steps",
         "the last step of the warmup"),
        ("it never falls", ", (steps - step) / (decay * steps)", "", "it falls linearly"),
        ("a cosine", "(steps - step) / (decay * steps)",
         "0.5 + 0.5 * math.cos(math.pi * max(0, step - steps * (1 - decay)) / (decay * steps))",
         "the last step"),
        ("decay is the share before the fall", "(decay * steps)", "((1 - decay) * steps)",
         "decay is an argument"),
        ("the default warmup", "min(warmup, steps)", "20", "warmup is an argument"),
        ("no peak", "return peak * ", "return ", "the first step has peak"),
        ("not limited by the peak", "min(1.0, ", "min(", "then it is flat"),
        ("it ends at 0", "(steps - step) /", "(steps - 1 - step) /", "it falls over"),
    ],
    "P7": [
        ("padded on the right", "[value] * pad + list(row)", "list(row) + [value] * pad", "each row stands"),
        ("no multiple of 16", "longest + -longest % 16", "longest", "T is the least multiple"),
        ("a multiple of 8", "-longest % 16", "-longest % 8", "T is the least multiple"),
        ("always one more block", "-longest % 16", "16 - longest % 16", "T is the least multiple"),
        ("always PAD", "[[value]", "[[PAD]", "what is added is `value`"),
        ("padding up to the longest row", "torch.tensor(padding, device=device)",
         "torch.tensor([longest - len(row) for row in rows], device=device)", "padding counts"),
        ("lengths in place of padding", "torch.tensor(padding, device=device)",
         "torch.tensor([len(row) for row in rows], device=device)", "padding counts"),
        ("padding is a list", "return ids, torch.tensor(padding, device=device)", "return ids, padding",
         "it returns ids and padding"),
        ("a tuple is refused", "[value] * pad + list(row)", "[value] * pad + row", "crashed: TypeError"),
        ("sorted by length", "for pad, row in zip(padding, rows)]",
         "for pad, row in sorted(zip(padding, rows), reverse=True)]", "each row stands"),
    ],
    "P8": [
        ("the token before", "ids.clamp(max=p.size(1) - 1)", "ids.sub(1).clamp(0, p.size(1) - 1)",
         "the first token whose"),
        ("borders belong to the token below", "right=True", "right=False", "a u on a border"),
        ("no temperature", "p = (logits / temperature)", "p = logits", "logits are divided"),
        ("logits times the temperature", "(logits / temperature)", "(logits * temperature)",
         "logits are divided"),
        ("log-probabilities at T = 1", "return ids[:, 0], p.gather(1, ids)[:, 0].log()",
         "return ids[:, 0], logits.log_softmax(dim=-1).gather(1, ids)[:, 0]", "log-probabilities are those"),
        ("probabilities in place of their logarithms", "p.gather(1, ids)[:, 0].log()",
         "p.gather(1, ids)[:, 0]", "log-probabilities are natural"),
        ("logarithms to base 2", "p.gather(1, ids)[:, 0].log()", "p.gather(1, ids)[:, 0].log2()",
         "log-probabilities are natural"),
        ("argmax where nothing exceeds u", "ids.clamp(max=p.size(1) - 1)",
         "(cumulative > u[:, None]).int().argmax(dim=1, keepdim=True)", "the largest u draws"),
        ("greedy logits in place of log-probabilities", "logits.log_softmax(dim=-1).gather(1, ids)",
         "logits.gather(1, ids)", "at T = 0 log-probabilities"),
    ],
    "P9": [
        ("scores in the order of the prompt", "[int(scores[place]) for place in places]",
         "[int(x) for x in scores]", "scores are mapped back"),
        ("scores mapped the wrong way", "[int(scores[place]) for place in places]",
         "[int(scores[place]) for place in order]", "scores are mapped back"),
        ("critiques in the order of the prompt", "[critiques[place] for place in places]", "critiques",
         "critiques are mapped back"),
        ("END may be missing", "special[-1:] != [END] or texts[-1]", "texts[-1]", "the reason says"),
        ("text after END", "special[-1:] != [END] or texts[-1]", "special[-1:] != [END]",
         "nothing may follow <end>"),
        ("any order of critiques", "special != expected + [SCORES, END]",
         "sorted(special) != sorted(expected + [SCORES, END])", "critiques come in order"),
        ("only the beginning of a principle is read", "PRINCIPLE.fullmatch(text)", "PRINCIPLE.match(text)",
         "principles are separated"),
        ("all spaces are taken off", 'first.removeprefix(" ")', "first.strip()", "one space at most"),
        ("isdigit", "all(SCORE.fullmatch(number) for number in totals + scores)",
         "all(number.isdigit() and 1 <= int(number) <= 10 for number in totals + scores)", "totals are 1 to 10"),
        ("$ ends a number", "SCORE.fullmatch(number)", "re.match('(10|[1-9])$', number)", "totals are 1 to 10"),
        ("only the beginning of a number is read", "SCORE.fullmatch(number)", "SCORE.match(number)",
         "totals are 1 to 10"),
        ("totals are not looked at", "for number in totals + scores", "for number in scores",
         "totals are 1 to 10"),
        ("any number of scores", "if len(scores) != n or not", "if not", "crashed"),
        ("scores separated by any space", 'last.split(" ")', "last.split()",
         "scores are separated by one space"),
        ("text may stand before the first critique", "if not all(principles) or after_critique",
         "if not all(principles)", "nothing stands between"),
        ("None in place of an error", 'raise ValueError("no end")', "return None", ""),
    ],
    "P10": [
        ("the first of a tie", " and scores.count(max(scores)) == 1", "", "a tie for the largest"),
        ("counted from 1", "return scores.index(max(scores)) if", "return scores.index(max(scores)) + 1 if",
         "the index of the largest"),
        ("the smallest", "scores.index(max(scores))", "scores.index(min(scores))",
         "the index of the largest"),
        ("any tie", "scores.count(max(scores)) == 1", "len(set(scores)) == len(scores)",
         "a tie below the largest"),
        ("None crashes", "if scores and scores", "if scores", ""),
        ("the score in place of its index", "scores.index(max(scores))", "max(scores)",
         "the index of the largest"),
        ("nothing to pick for one response", "if scores and", "if scores and len(scores) > 1 and",
         "a single response"),
    ],
    "P11": [
        ("a tie is correct", "pick(scores) == pick(gold)",
         "bool(scores) and scores[pick(gold)] == max(scores)", "a tie is incorrect"),
        ("the first of a tie", "pick(scores) == pick(gold)",
         "bool(scores) and scores.index(max(scores)) == pick(gold)", "a tie is incorrect"),
        ("scores have to be the gold rewards",
         "return scores == gold if len(gold) == 1 else pick(scores) == pick(gold)",
         "return scores == gold", "the best response has"),
        ("one response is always correct", "return scores == gold if len(gold) == 1",
         "return scores is not None if len(gold) == 1", "a single response"),
        ("no rule for one response", "scores == gold if len(gold) == 1 else ", "", "a single response"),
        ("near the gold reward is correct", "scores == gold if",
         "bool(scores) and abs(scores[0] - gold[0]) < 2 if", "a single response"),
    ],
    "P12": [
        ("too easy is kept", "[] if too_easy(samples, item) else ", "",
         "nothing is kept of an item that is too easy"),
        ("incorrect ones are kept", "if is_correct(j, item)]", "if not is_correct(j, item)]",
         "the correct ones are kept"),
        ("all are kept", " if is_correct(j, item)]", "]", "the correct ones are kept"),
        ("only the first correct one",
         "return [] if too_easy(samples, item) else [j for j in samples if is_correct(j, item)]",
         "return [] if too_easy(samples, item) else [j for j in samples if is_correct(j, item)][:1]",
         "the correct ones are kept"),
        ("easy if any is correct", "too_easy(samples, item)", "any(is_correct(j, item) for j in samples)",
         "the correct ones are kept"),
        ("easy if all but one are correct", "too_easy(samples, item)",
         "sum(is_correct(j, item) for j in samples) >= len(samples) - 1",
         "the correct ones are kept"),
    ],
    "P13": [
        ("the hint stays", "if token != HINT", "", "the hint is gone"),
        ("only the hint stays", "token != HINT", "token == HINT", "the hint is gone"),
        ("cut at the hint", "[token for token in prompt if token != HINT]",
         "prompt[:prompt.index(HINT)] if HINT in prompt else prompt",
         "the hint is gone"),
        ("only the first hint", "return [token for token in prompt if token != HINT]",
         "i = prompt.index(HINT) if HINT in prompt else len(prompt)\n    return prompt[:i] + prompt[i + 1:]",
         "wherever the hint stands"),
        ("the token after the hint goes, too", "return [token for token in prompt if token != HINT]",
         "return [t for b, t in zip([0, *prompt], prompt) if HINT not in (t, b)]", "the hint is gone"),
        ("it changes its argument", "return [token for token in prompt if token != HINT]",
         "while HINT in prompt:\n        prompt.remove(HINT)\n    return list(prompt)",
         "crashed: RuntimeError: it changes"),
        ("without a hint nothing is left", "return [token for token in prompt if token != HINT]",
         "return [token for token in prompt if token != HINT] if HINT in prompt else []",
         "a prompt without a hint"),
    ],
    "P14": [
        ("the mean of all groups", "rewards.mean(dim=1, keepdim=True)", "rewards.mean()",
         "each group has the mean 0"),
        ("the unbiased standard deviation", "unbiased=False", "unbiased=True",
         "the standard deviation is that"),
        ("the standard deviation of all groups", "rewards.std(dim=1, keepdim=True, unbiased=False)",
         "rewards.std(unbiased=False).expand(len(rewards), 1)", "the standard deviation is that"),
        ("0 / 0", "torch.where(equal, 0.0, centred / std.clamp(min=1e-6))", "centred / std",
         "a group whose rewards are all equal"),
        ("equal rewards are told by a standard deviation of 0", "torch.where(equal,", "torch.where(std == 0,",
         "a group whose rewards are all equal"),
        ("a large epsilon", "std.clamp(min=1e-6)", "(std + 1e-4)", "small rewards"),
        ("it changes its argument", "rewards - rewards.mean(dim=1, keepdim=True)",
         "rewards.sub_(rewards.mean(dim=1, keepdim=True))", "crashed: RuntimeError: it changes"),
        ("no standard deviation", "centred / std.clamp(min=1e-6)", "centred",
         "the standard deviation is that"),
        ("the mean is not taken off", "centred = rewards - rewards.mean(dim=1, keepdim=True)",
         "centred = rewards",
         "each group has the mean 0"),
        ("over items in place of samples", "std = rewards.std(dim=1, keepdim=True",
         "std = rewards.std(dim=0, keepdim=True", ""),
        ("the sign is turned", "centred / std.clamp", "-centred / std.clamp", "correct samples are above 0"),
        ("the variance", "centred / std.clamp(min=1e-6))", "centred / std.clamp(min=1e-6) ** 2)",
         "the standard deviation is that"),
    ],
    "P15": [
        ("k1", "0.5 * (logp - logp_ref) ** 2", "logp - logp_ref", "it is never negative"),
        ("k3", "0.5 * (logp - logp_ref) ** 2", "(logp_ref - logp).exp() - (logp_ref - logp) - 1",
         "the square of the log ratio"),
        ("no half", "0.5 * (logp", "(logp", "half of the square"),
        ("the absolute value", "0.5 * (logp - logp_ref) ** 2", "(logp - logp_ref).abs()",
         "the square of the log ratio"),
        ("a mean", "0.5 * (logp - logp_ref) ** 2", "(0.5 * (logp - logp_ref) ** 2).mean()",
         "kl_k2 of 40 tokens"),
        ("the policy is detached", "(logp - logp_ref)", "(logp.detach() - logp_ref + 0 * logp)",
         "its gradient is the log ratio"),
        ("of probabilities", "(logp - logp_ref)", "(logp.exp() - logp_ref.exp())",
         "the square of the log ratio"),
    ],
    "P16": [
        ("reversed", "log_ratio = logp_ref - logp", "log_ratio = logp - logp_ref",
         "its mean over the policy's samples"),
        ("k1", "torch.expm1(log_ratio) - log_ratio", "-log_ratio", "it is never negative"),
        ("k2", "torch.expm1(log_ratio) - log_ratio", "0.5 * log_ratio ** 2",
         "its mean over the policy's samples"),
        ("no 1", "torch.expm1(log_ratio) - log_ratio", "log_ratio.exp() - log_ratio",
         "it is 0 where both agree"),
        ("the sign of the log ratio", "torch.expm1(log_ratio) - log_ratio",
         "torch.expm1(log_ratio) + log_ratio",
         "it is never negative"),
        ("a mean", "return torch.expm1(log_ratio) - log_ratio",
         "return (torch.expm1(log_ratio) - log_ratio).mean()",
         "kl_k3 of 40 tokens"),
        ("no digits near 0", "torch.expm1(log_ratio) - log_ratio", "log_ratio.exp() - log_ratio - 1",
         "it is accurate near 0"),
    ],
    "P17": [
        ("None votes as zero", "voters = [scores for scores in ballots if scores is not None]",
         "n = max((len(b) for b in ballots if b), default=0)\n    voters = [b or [0] * n for b in ballots]",
         "if nobody votes"),
        ("the mean", "[sum(column) for column in zip(*voters)]",
         "[sum(column) / len(column) for column in zip(*voters)]", "scores are summed"),
        ("samples in place of responses", "for column in zip(*voters)]", "for column in voters]",
         "scores are summed"),
        ("the largest", "[sum(column)", "[max(column)", "scores are summed"),
        ("an empty list for no vote", "if voters else None", "if voters else []", "if nobody votes"),
        ("picks in place of scores", "[sum(column) for column in zip(*voters)]",
         "[sum(b[i] == max(b) for b in voters) for i in range(len(voters[0]))]", "scores are summed"),
        ("the last sample is left out", "zip(*voters)]", "zip(*(voters[:-1] or voters))]",
         "scores are summed"),
    ],
    "P18": [
        ("each of several largest has a whole vote", "Fraction(1, scores.count(max(scores)))", "1",
         "several largest"),
        ("the first of several largest", f"{LARGEST} Fraction(1, scores.count(max(scores)))",
         "votes[i] += i == scores.index(max(scores))", "several largest"),
        ("no vote if several are largest", "if score == max(scores):",
         "if score == max(scores) and scores.count(score) == 1:", "several largest"),
        ("a vote is shared among all responses", "scores.count(max(scores)))", "len(scores))",
         "a sample has one vote"),
        ("votes for the lowest", f"{LARGEST} Fraction(1, scores.count(max(scores)))",
         "votes[i] += Fraction(score == min(scores), scores.count(min(scores)))", "a sample has one vote"),
        ("the share of votes", "(float(v), total)", "(float(v) / len([b for b in ballots if b]), total)",
         "a sample has one vote"),
        ("sums in place of votes", "(float(v), total)", "(total, total)", "a sample has one vote"),
        ("no sums", "(float(v), total)", "(float(v), 0)", "the second of a pair"),
        ("sums first", "(float(v), total)", "(total, float(v))", "a sample has one vote"),
        ("means in place of sums", "(float(v), total)", "(float(v), total / len(ballots))",
         "the second of a pair"),
        ("floats", "votes[i] += Fraction(1, scores.count(max(scores)))",
         "votes[i] = float(votes[i]) + 1 / scores.count(max(scores))", "votes are exact"),
        ("None is an error", "enumerate(scores or [])", "enumerate(scores)", "crashed: TypeError"),
    ],
    "P19": [
        ("the worst ones", "-(logits[i] or 0.0), i)", "(logits[i] or 0.0), i)", "the best ones are kept"),
        ("None counts as 0", "(logits[i] is None, -(logits[i]", "(-(logits[i]", "None comes last"),
        ("None comes first", "(logits[i] is None,", "(logits[i] is not None,", "None comes last"),
        ("of equal ones the later", "(logits[i] or 0.0), i))", "(logits[i] or 0.0), -i))", "of equal ones"),
        ("one too many", "[:count]", "[:count + 1]", "as many as count"),
        ("indices in place of samples", "[samples[i] for i in best_first[:count]]", "best_first[:count]",
         "the best ones are kept"),
        ("in the order of the samples", "for i in best_first[:count]]",
         "for i in sorted(best_first[:count])]", "the best ones are kept"),
    ],
    "P20": [
        ("the sum", "binary_cross_entropy_with_logits(logits, correct)",
         'binary_cross_entropy_with_logits(logits, correct, reduction="sum")', "the mean, not the sum"),
        ("labels exchanged", "with_logits(logits, correct)", "with_logits(logits, 1 - correct)",
         "correct judgements get"),
        ("probabilities in place of logits", "with_logits(logits, correct)",
         "with_logits(logits.sigmoid(), correct)", "binary cross-entropy"),
        ("overflow", "F.binary_cross_entropy_with_logits(logits, correct)",
         "-(correct * logits.sigmoid().log() + (1 - correct) * (1 - logits.sigmoid()).log()).mean()",
         "with large logits"),
        ("squares", "F.binary_cross_entropy_with_logits(logits, correct)",
         "((logits.sigmoid() - correct) ** 2).mean()", "binary cross-entropy"),
        ("one for each judgement", "binary_cross_entropy_with_logits(logits, correct)",
         'binary_cross_entropy_with_logits(logits, correct, reduction="none")', "meta_loss of 6"),
        ("only the correct ones", "F.binary_cross_entropy_with_logits(logits, correct)",
         "(correct * F.softplus(-logits)).mean()", "binary cross-entropy"),
    ],
    "P21": [
        ("ties count as wins", "(a > b) + 0.5 * (a == b)", "1.0 * (a >= b)", "a tie counts half"),
        ("ties count as losses", "(a > b) + 0.5 * (a == b)", "1.0 * (a > b)", "a tie counts half"),
        ("ties are left out", "for a in above for b in below]", "for a in above for b in below if a != b]",
         "a tie counts half"),
        ("exchanged", "(a > b)", "(a < b)", "1 if the correct one"),
        ("one half without both kinds", "if wins else None", "if wins else 0.5", "without both kinds"),
        ("an error without both kinds", " if wins else None", "", "crashed: ZeroDivisionError"),
        ("divided by the correct ones", "/ len(wins)", "/ len(above)", ""),
        ("neighbours alone", "for a in above for b in below]", "for a, b in zip(above, below)]", ""),
        ("one half of nothing", "above = [x for", "if not logits:\n        return 0.5\n    above = [x for",
         "nothing at all"),
        ("accuracy at 0", "sum(wins) / len(wins)",
         "sum((x > 0) == good for good, x in zip(correct, logits)) / len(logits)", ""),
    ],
    "P22": [
        ("a tie is incorrect", "(scores[best] == max(scores)) / scores.count(max(scores))",
         "float(scores[best] == max(scores) and scores.count(max(scores)) == 1)",
         "1/m if the best"),
        ("a tie is correct", " / scores.count(max(scores))", " * 1.0", "1/m if the best"),
        ("always one half", "/ scores.count(max(scores))", "/ min(2, scores.count(max(scores)))",
         "1/m if the best"),
        ("by the number of responses", "/ scores.count(max(scores))",
         "/ (len(scores) if scores.count(max(scores)) > 1 else 1)", "1/m if the best"),
        ("without scores it is incorrect", "return 1 / len(gold)", "return 0.0", "without scores"),
        ("without scores it is one half", "return 1 / len(gold)", "return 0.5",
         "without scores"),
        ("any tie", "scores.count(max(scores))", "max(scores.count(s) for s in scores)", "a tie below"),
    ],
}


def mutants_of(problem):
    return [Mutant(problem, *row) for row in TABLE[problem]]
