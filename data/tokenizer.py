"""
The tokenizer: byte-level BPE trained by the short loop below, saved in tiktoken's file format and
run by `tiktoken.Encoding` (which needs no network when it is built from ranks).

Structure is made of special tokens, called marks. Only our own code writes them: text from outside goes
through `encode_ordinary`, which never yields a mark, so no response can forge a score or an end. Text is
data, marks are structure.

A digit is one token, and a space before it is another: "4" is the same token everywhere. Each text but
totals and scores is encoded with a leading space, so that a word at its start is the same token as elsewhere;
most words of the toy world are one token.
"""

import base64
import re
from collections import Counter

import tiktoken

from parallel import new_file

# The marks come first, so that their ids do not depend on the vocabulary's size.
MARKS = ["<pad>", "<end>", "<query>", "<r1>", "<r2>", "<r3>", "<r4>", "<hint>",
         "<principles>", "<critique>", "<checks>", "<total>", "<scores>"]
PAD, END, QUERY, R1, R2, R3, R4, HINT, PRINCIPLES, CRITIQUE, CHECKS, TOTAL, SCORES = range(len(MARKS))
RESPONSE = [R1, R2, R3, R4]
# PAD is not END: when to stop must be trained, padding must not

# A chunk is a word with its space, one digit, punctuation with its space, or any other character.
# Merges never cross chunks.
PATTERN = r" ?[^\W\d_]+|\d| ?[^\s\w]+|[\s\S]"


def train_bpe(texts, vocab_size):
    """-> {bytes: rank}: start from the 256 bytes, whose ranks follow the marks; then merge the most frequent
    neighbours within the chunks of PATTERN, over and over, until marks and tokens are vocab_size, or nothing
    is left to merge. Of pairs that are equally frequent the smaller comes first, as Python compares tuples.

    >>> list(train_bpe(["a b ab ab"], len(MARKS) + 256 + 2))[-2:]
    [b' a', b' ab']
    """
    chunks = Counter(chunk.encode() for text in texts for chunk in re.findall(PATTERN, text))
    words = {chunk: [bytes([b]) for b in chunk] for chunk in chunks}   # chunk -> its parts so far
    ranks = {bytes([b]): len(MARKS) + b for b in range(256)}
    while len(MARKS) + len(ranks) < vocab_size:
        pairs = Counter()
        for chunk, parts in words.items():
            for pair in zip(parts, parts[1:]):
                pairs[pair] += chunks[chunk]
        if not pairs:
            break                                  # every chunk is one token already
        # the most frequent pair; ties go to the smaller bytes, so that the result is one and the same
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        ranks[left + right] = len(MARKS) + len(ranks)
        for parts in words.values():
            i = 0
            while i < len(parts) - 1:
                if parts[i] == left and parts[i + 1] == right:
                    parts[i:i + 2] = [left + right]
                i += 1
    return ranks


class Tokenizer:
    """Text and marks <-> ids. `ranks` as from train_bpe."""

    def __init__(self, ranks):
        self.ranks = ranks
        self.bpe = tiktoken.Encoding("nanogrm", pat_str=PATTERN, mergeable_ranks=ranks,
                                     special_tokens={mark: i for i, mark in enumerate(MARKS)})
        self.vocab_size = self.bpe.n_vocab

    def encode(self, parts):
        """Parts (an int is a mark, a str is text, never structure) -> list of ids."""
        ids = []
        for part in parts:
            ids.extend([part] if isinstance(part, int) else self.bpe.encode_ordinary(part))
        return ids

    def text(self, ids):
        """ids of one piece of text -> str. Bytes that are no UTF-8 are replaced, never an exception."""
        return self.bpe.decode([i for i in ids if i >= len(MARKS)])

    def readable(self, ids):
        """ids -> str for people, marks written out. Not for parsing: a text may contain '<end>' too."""
        return "".join(MARKS[i] if i < len(MARKS) else self.bpe.decode([i]) for i in ids if i != PAD)

    def save(self, path):
        with new_file(path) as f:                  # tiktoken's format: base64 of the bytes, a space, the rank
            f.writelines(f"{base64.b64encode(b).decode()} {rank}\n" for b, rank in self.ranks.items())

    @classmethod
    def load(cls, path):
        with open(path) as f:
            lines = (line.split() for line in f)
            return cls({base64.b64decode(token): int(rank) for token, rank in lines})
