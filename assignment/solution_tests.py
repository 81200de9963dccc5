"""What T1 and T2 may look like (with holes filled this is mytests.py): it stays with the grader."""

import torch


def test_group_advantages(group_advantages):
    rewards = torch.tensor([[1.0, -1.0, -1.0, -1.0], [1.0, 1.0, 1.0, -1.0], [1.0, 1.0, 1.0, 1.0]])
    a = group_advantages(rewards)
    assert a.shape == rewards.shape and not a.isnan().any()
    assert (a[2] == 0).all()
    assert group_advantages(torch.full((1, 6), 0.9)).abs().max() < 1e-4      # their mean is rounded
    assert torch.allclose(group_advantages(0.001 * rewards), a, atol=1e-3)
    for r, mine in zip(rewards[:2], a):
        assert torch.allclose(mine, (r - r.mean()) / r.std(unbiased=False), atol=1e-4)


def test_vote_plurality(vote_plurality):
    assert vote_plurality([None, None]) is None
    assert vote_plurality([[9, 8], [9, 8], [1, 10]]) == [(2.0, 19), (1.0, 26)]
    assert vote_plurality([None, [7, 1, 7]]) == [(0.5, 7), (0.0, 1), (0.5, 7)]
    assert [votes for votes, _ in vote_plurality([[5, 5, 5]] * 6)] == [2.0, 2.0, 2.0]
