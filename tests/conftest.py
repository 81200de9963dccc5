"""Shared by the tests: the tokenizer of the toy world and small models with random weights."""

import os
import sys

import pytest
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

torch.set_num_threads(1)        # the models here are tiny: more threads only wait for each other

from data.annotators import corpus_texts
from data.tokenizer import Tokenizer, train_bpe
from model import GPT, GPTConfig


@pytest.fixture(scope="session")
def tok():
    return Tokenizer(train_bpe(corpus_texts(0, 2000), 704))


@pytest.fixture
def tiny():
    """tiny(vocab_size, ...) -> a GPT whose weights are large enough for its outputs to differ."""
    def make(vocab_size=40, block_size=64, n_kv_head=1, seed=0):
        model = GPT(GPTConfig(vocab_size, block_size, n_layer=2, n_head=4, n_kv_head=n_kv_head, n_embd=32),
                    seed)
        gen = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            p.data = torch.randn(p.shape, generator=gen) * 0.3
        return model.eval()
    return make
