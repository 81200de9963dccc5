"""
The problems, in the order of the method: one table. A problem is one function whose docstring is its full
specification; the last ones are tests that the student writes.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    id: str
    file: str
    name: str                  # of the function
    points: int
    minutes: int               # that it takes somebody who knows PyTorch
    title: str
    needs: tuple = ()          # problems that have to be right before this one can be checked
    target: str = ""           # of a test: the problem whose function it tests

    @property
    def module(self):
        return self.file.removesuffix(".py").replace("/", ".")


PROBLEMS = [
    Problem("P1", "data/judgement.py", "checks_text", 3, 15, "write the checks of a response"),
    Problem("P2", "data/tokenizer.py", "train_bpe", 8, 45, "byte pair encoding"),
    Problem("P3", "model.py", "rotate", 4, 20, "rotary positions"),
    Problem("P4", "model.py", "attend", 6, 40, "multi-query attention"),
    Problem("P5", "model.py", "token_logits", 6, 30, "logits of the tokens that are learned"),
    Problem("P6", "model.py", "learning_rate", 2, 10, "the learning rate of each step"),
    Problem("P7", "model.py", "pad_left", 3, 15, "a batch of rows of different lengths"),
    Problem("P8", "sample.py", "draw", 5, 25, "draw a token by its cumulative probability"),
    Problem("P9", "data/judgement.py", "read_judgement", 8, 60, "read a judgement strictly"),
    Problem("P10", "data/judgement.py", "pick", 2, 5, "the response that alone is best"),
    Problem("P11", "data/judgement.py", "correct", 3, 10, "when a judgement is correct (Eq 10)", ("P10",)),
    Problem("P12", "spct.py", "keep", 3, 10, "rejective fine-tuning: what to keep", ("P10", "P11")),
    Problem("P13", "spct.py", "forget_hint", 1, 5, "rejective fine-tuning: forget the hint"),
    Problem("P14", "spct.py", "group_advantages", 4, 15, "advantages within a group"),
    Problem("P15", "spct.py", "kl_k2", 2, 10, "the KL penalty: k2"),
    Problem("P16", "spct.py", "kl_k3", 3, 15, "the KL that is measured: k3"),
    Problem("P17", "spct.py", "rl_loss", 2, 10, "the loss of RL", ("P15",)),
    Problem("P18", "data/judgement.py", "vote_sum", 3, 10, "a vote by sums (Eq 14)"),
    Problem("P19", "data/judgement.py", "vote_plurality", 5, 30, "a vote by plurality", ("P18",)),
    Problem("P20", "metarm.py", "keep_best", 3, 15, "the Meta RM's filter"),
    Problem("P21", "metarm.py", "vote_guided", 2, 10, "the guided vote", ("P18", "P20")),
    Problem("P22", "metarm.py", "meta_loss", 2, 10, "the Meta RM's loss"),
    Problem("P23", "report.py", "auc", 4, 20, "AUC with ties"),
    Problem("P24", "report.py", "tie_broken", 2, 10, "accuracy that breaks ties at random"),
    Problem("P25", "report.py", "interval", 2, 10, "a mean and its 95% interval"),
    Problem("L1", "labs.py", "hacks", 3, 30, "hack a lenient reward"),
    Problem("L2", "labs.py", "strict_reward", 5, 45, "a reward that cannot be hacked like that",
            ("P9", "P10", "P11")),
    Problem("L3", "labs.py", "expected_gradients", 4, 60, "the mean gradients of k1, k2 and k3"),
    Problem("L4", "labs.py", "correlation", 3, 30, "how alike are two samples?"),
    Problem("L5", "labs.py", "votes_needed", 3, 40, "what correlated votes are worth", ("L4",)),
    Problem("T1", "mytests.py", "test_group_advantages", 6, 40, "write the test of `group_advantages`",
            target="P14"),
    Problem("T2", "mytests.py", "test_vote_plurality", 6, 45, "write the test of `vote_plurality`",
            target="P19"),
]
BY_ID = {problem.id: problem for problem in PROBLEMS}
