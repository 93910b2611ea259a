"""A2C on stale data: what its further epochs leave out, and what PPO's put in."""

import torch

from pgcli.experiment.build import build
from pgcli.experiment.config import compose


def after_epochs(name, epochs, *words):
    """The policy's parameters after one update."""
    config = compose([
        f"algo={name}", "env=cartpole", "tuned=none", "algo.num_envs=2", "algo.num_steps=8", "algo.minibatches=1",
        "algo.gae_lambda=0.9", "algo.learning_rate=0.01", "algo.max_grad_norm=null", "algo.adam_epsilon=1e-5",
        "algo.entropy_coefficient=0", f"algo.epochs={epochs}", *words,
    ])  # fmt: skip
    parts = build(config)
    parts.algorithm.update(parts.collector.collect(parts.policy))
    return torch.cat([p.detach().flatten() for p in parts.policy.parameters()])


def test_one_epoch_is_ppo_s_and_a_second_is_not():
    plain = ["algo.normalise_advantages=none", "algo.clip_range=1000"]
    torch.testing.assert_close(
        after_epochs("a2c", 1, "algo.normalise_advantages=false"), after_epochs("ppo", 1, *plain), rtol=0, atol=1e-6
    )
    once, twice = (after_epochs("a2c", epochs, "algo.normalise_advantages=false") for epochs in (1, 2))
    assert (once - twice).abs().max() > 5e-3  # Adam's second step is as long as its first
    # From the second step on the ratio is no longer 1: the importance weight is all that differs.
    difference = twice - after_epochs("ppo", 2, *plain)
    assert difference.abs().max() > 1e-5
