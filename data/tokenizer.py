"""
The tokenizer: byte pair encoding, trained by the short loop below. It is saved in tiktoken's file format and
run by `tiktoken.Encoding`.

The structure of a judgement is made of special tokens, which only our own code writes. Text from outside is
encoded without them: a response that contains "<end>" or "<scores>" gives ordinary tokens. So no response can
forge a score. Text is data, special tokens are structure.

A digit is always a token of its own, and a space before it is another: "4" is the same token everywhere. Most
texts are encoded with a leading space, so that their first word is the same token as inside a text.
"""

import base64
import itertools
import re
from collections import Counter

import tiktoken

from data import UserError, new_file

# The special tokens come first: their ids do not depend on the size of the vocabulary. PAD is not END: the
# model must learn when to stop, and must not learn to pad.
SPECIAL = ["<pad>", "<end>", "<query>", "<r1>", "<r2>", "<r3>", "<r4>", "<hint>",
           "<principles>", "<critique>", "<checks>", "<total>", "<scores>"]
PAD, END, QUERY, R1, R2, R3, R4, HINT, PRINCIPLES, CRITIQUE, CHECKS, TOTAL, SCORES = range(len(SPECIAL))
RESPONSE = [R1, R2, R3, R4]

# Text is first cut into chunks: a word with the space before it, one digit, punctuation with the space before
# it, or any other character ("_" too). Merges never cross chunks.
PATTERN = r" ?[^\W\d_]+|\d| ?[^\s\w]+|[\s\S]"


def train_bpe(texts, vocab_size):
    """Learn which neighbouring tokens to merge -> {bytes of a token: its id}, special tokens left out.

    We begin with the 256 bytes. Then, again and again, the most frequent pair of neighbours becomes a new token,
    until special tokens and tokens together are vocab_size, or every chunk is one token. Of pairs that are
    equally frequent we take the smaller one, as Python compares tuples of bytes.

    >>> list(train_bpe(["a b ab ab"], len(SPECIAL) + 256 + 2))[-2:]
    [b' a', b' ab']
    """
    counts = Counter(chunk.encode() for text in texts for chunk in re.findall(PATTERN, text))
    parts_of = {chunk: [bytes([byte]) for byte in chunk] for chunk in counts}    # chunk -> its tokens so far
    ranks = {bytes([byte]): len(SPECIAL) + byte for byte in range(256)}
    while len(SPECIAL) + len(ranks) < vocab_size:
        pairs = Counter()
        for chunk, parts in parts_of.items():
            for pair in zip(parts, parts[1:]):
                pairs[pair] += counts[chunk]
        if not pairs:
            break
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        ranks[left + right] = len(SPECIAL) + len(ranks)
        for parts in parts_of.values():
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == (left, right):
                    parts[i:i + 2] = [left + right]
                i += 1
    return ranks


class Tokenizer:
    """Text and special tokens <-> ids. ranks: as from train_bpe. (tiktoken calls ids ranks: the pair that makes
    the token with the lowest one is merged first.)"""

    def __init__(self, ranks):
        self.ranks = ranks
        self.bpe = tiktoken.Encoding("nanogrm", pat_str=PATTERN, mergeable_ranks=ranks,
                                     special_tokens={name: i for i, name in enumerate(SPECIAL)})
        self.vocab_size = self.bpe.n_vocab

    def encode(self, parts):
        """A list of parts -> ids. An int is a special token; a str is text, whatever it contains."""
        ids = []
        for part in parts:
            ids.extend([part] if isinstance(part, int) else self.bpe.encode_ordinary(part))
        return ids

    def text(self, ids):
        """The text of ids without special tokens. Bytes that are not UTF-8 become replacement characters."""
        return self.bpe.decode([i for i in ids if i >= len(SPECIAL)])

    def readable(self, ids):
        """ids -> text for people, with the names of the special tokens. It must not be parsed: a response may
        contain the text '<end>' as well."""
        pieces = []
        for special, run in itertools.groupby(ids, key=lambda i: i < len(SPECIAL)):
            pieces += [SPECIAL[i] for i in run if i != PAD] if special else [self.text(run)]
        return "".join(pieces)


def save_tokenizer(path, tok):
    """tiktoken's format: a line for each token, its bytes in base64, a space, its id."""
    with new_file(path) as f:
        f.writelines(f"{base64.b64encode(token).decode()} {id}\n" for token, id in tok.ranks.items())


def load_tokenizer(path):
    """Read what save_tokenizer wrote; UserError if it cannot be read."""
    try:
        with open(path, encoding="utf-8") as f:
            ranks = {base64.b64decode(token): int(id) for token, id in map(str.split, f)}
        if len(ranks) < 256 or list(ranks.values()) != list(range(len(SPECIAL), len(SPECIAL) + len(ranks))):
            raise ValueError("tokens are missing")
        return Tokenizer(ranks)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}). Pass the folder of a finished run, or delete the "
                        f"file.") from None
