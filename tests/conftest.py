"""Shared by the tests: a tokenizer, small models with random weights, a run folder of them, a shell."""

import os
import subprocess
import sys

import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

torch.set_num_threads(1)        # the models here are tiny: more threads only wait for each other

from data.annotators import make_document
from data.tokenizer import Tokenizer, save_tokenizer, train_bpe
from metarm import from_policy
from model import GPT, GPTConfig, save_model


@pytest.fixture(scope="session")
def tok():
    parts = [part for i in range(2500) for parts, _ in make_document(0, i) for part in parts]
    return Tokenizer(train_bpe([part for part in parts if isinstance(part, str)], 704))


def tiny_model(vocab_size=40, block_size=64, seed=0):
    """A GPT whose weights are large enough for its outputs to differ."""
    model = GPT(GPTConfig(vocab_size, block_size, n_layer=2, n_head=4, n_embd=32), seed)
    gen = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=gen) * 0.3
    return model.eval()


@pytest.fixture
def tiny():
    return tiny_model


@pytest.fixture(scope="session")
def folder(tok, tmp_path_factory):
    """A run folder with the files that sample.py reads. None of its judgements parse."""
    path = tmp_path_factory.mktemp("run")
    save_tokenizer(str(path / "tokenizer.tiktoken"), tok)
    model = tiny_model(tok.vocab_size, 368)
    for name in ("base", "rft", "rl"):
        save_model(str(path / f"{name}.pt"), model)
    save_model(str(path / "meta.pt"), from_policy(model))
    return str(path)


@pytest.fixture
def shell():
    """shell(command) -> the finished process of a command line in the project's folder."""
    def run(command, **env):
        env = {**os.environ, "OMP_NUM_THREADS": "1", **env}      # threads that share a busy core take minutes
        return subprocess.run(["bash", "-c", command.replace("python ", f"{sys.executable} ", 1)], cwd=ROOT,
                              env=env, capture_output=True, timeout=120)
    return run
