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
    Problem("P1", "data/tokenizer.py", "train_bpe", 8, 45, "byte pair encoding"),
    Problem("P2", "model.py", "rotate", 4, 20, "rotary positions"),
    Problem("P3", "model.py", "attend", 6, 40, "causal attention with shared keys"),
    Problem("P4", "model.py", "attend_cached", 6, 30, "attention with a cache"),
    Problem("P5", "sample.py", "draw", 5, 25, "draw a token by inverse CDF"),
    Problem("P6", "data/judgement.py", "read_judgement", 8, 60, "read a judgement strictly"),
    Problem("P7", "data/judgement.py", "pick", 2, 5, "the response that alone is best"),
    Problem("P8", "data/judgement.py", "correct", 3, 10, "when a judgement is right (Eq 10)", ("P7",)),
    Problem("P9", "spct.py", "keep", 3, 10, "rejective fine-tuning: what to keep", ("P7", "P8")),
    Problem("P10", "spct.py", "forget_hint", 1, 5, "rejective fine-tuning: forget the hint"),
    Problem("P11", "model.py", "token_logits", 6, 40, "logits of the tokens that are learned"),
    Problem("P12", "spct.py", "advantages", 4, 15, "advantages within a group"),
    Problem("P13", "spct.py", "contrast", 4, 20, "which samples to learn from"),
    Problem("P14", "spct.py", "policy_loss", 4, 15, "the clipped policy loss"),
    Problem("P15", "spct.py", "kl_k2", 2, 10, "the KL penalty: k2"),
    Problem("P16", "spct.py", "kl_k3", 2, 10, "the KL that is measured: k3"),
    Problem("P17", "data/judgement.py", "vote", 3, 10, "a vote by sums (Eq 14)"),
    Problem("P18", "data/judgement.py", "plurality", 5, 30, "a vote by plurality, with weights", ("P17",)),
    Problem("P19", "metarm.py", "keep_best", 3, 15, "the Meta RM's filter"),
    Problem("P20", "metarm.py", "meta_loss", 2, 10, "the Meta RM's loss"),
    Problem("P21", "metarm.py", "bradley_terry", 2, 10, "the loss of a scalar reward model (Eq 4)"),
    Problem("P22", "metarm.py", "auc", 4, 20, "AUC with ties"),
    Problem("P23", "metarm.py", "auc_within", 3, 15, "AUC within items", ("P22",)),
    Problem("P24", "report.py", "coin_flip", 2, 10, "accuracy that breaks ties at random"),
    Problem("T1", "mytests.py", "test_advantages", 6, 40, "write the test of `advantages`", target="P12"),
    Problem("T2", "mytests.py", "test_plurality", 6, 45, "write the test of `plurality`", target="P18"),
]
BY_ID = {problem.id: problem for problem in PROBLEMS}
