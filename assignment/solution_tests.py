"""What T1 and T2 may look like (with holes filled this is mytests.py): it stays with the grader."""

import torch


def test_advantages(advantages):
    rewards = torch.tensor([[1.0, -1.0, -1.0, -1.0], [1.0, 1.0, 1.0, -1.0], [1.0, 1.0, 1.0, 1.0]])
    a = advantages(rewards)
    assert a.shape == rewards.shape and not a.isnan().any()
    assert (a[2] == 0).all()
    for r, mine in zip(rewards[:2], a):
        assert torch.allclose(mine, (r - r.mean()) / r.std(unbiased=False), atol=1e-4)


def test_plurality(plurality):
    near = lambda answer, expected: all(abs(x - y) < 1e-3 for x, y in zip(answer, expected))
    assert plurality([None, None]) is None
    assert near(plurality([[9, 8], [9, 8], [1, 10]]), [2, 1])
    assert near(plurality([[7, 1, 7]]), [0.5, 0, 0.5])
    assert near(plurality([None, [1, 2], [5, 3]], [9.0, 2.0, 0.5]), [0.5, 2.0])
    assert near(plurality([[9, 8], [1, 2]], [1.0, -2.0]), [1.0, -2.0])
    a, b = plurality([[9, 4], [5, 8]])
    assert a > b
