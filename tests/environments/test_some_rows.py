"""CartPole steps some of its rows as it steps all of them, whoever is asked for in which order."""

import numpy as np

from pgcli.environments.cartpole import CartPole
from pgcli.experiment.config import compose


def test_rows_stepped_in_any_company_are_as_rows_stepped_alone():
    config = compose(["env=cartpole"]).env
    N, random = 12, np.random.default_rng(0)
    together, alone = CartPole(config, N), [CartPole(config, 1) for _ in range(N)]
    one = np.array([0])
    seeds = list(range(100, 100 + N))
    together.reset(np.arange(N), seeds)
    for env, seed in zip(alone, seeds, strict=True):
        env.reset(one, [seed])
    rows = np.arange(N)
    for t in range(60):
        match random.integers(5):
            case 0:
                rows = np.sort(random.choice(N, size=random.integers(1, N + 1), replace=False))
            case 1 if len(rows) > 1:
                rows = rows[1:]
            case 2 if len(rows) > 1:  # the same array, with other rows in it
                rows[0] = min(set(range(N)) - set(rows[1:].tolist()))
            case 3:
                again = random.choice(N, size=3, replace=False)
                same = [int(random.integers(1000))] * 3
                found = together.reset(again, same)
                assert (found == found[0]).all()
                for row in again:
                    alone[row].reset(one, same[:1])
        everyone = t % 7 == 0
        stepped = np.arange(N) if everyone else rows
        actions = random.integers(0, 2, len(stepped))
        step = together.step(actions, None if everyone else rows)
        for i, row in enumerate(stepped):
            own = alone[row].step(actions[i : i + 1])
            assert (step.observations[i] == own.observations[0]).all()
            assert step.terminated[i] == own.terminated[0]
            assert step.truncated[i] == own.truncated[0]
        if t % 5 == 0:
            states = np.concatenate([env.state_dict()["state"] for env in alone], axis=1)
            assert (together.state_dict()["state"] == states).all()
        if t % 11 == 0:
            together.load_state_dict(together.state_dict())


def test_what_is_loaded_is_not_overwritten_by_rows_that_were_out():
    env = CartPole(compose(["env=cartpole"]).env, 4)
    env.reset(np.arange(4), [1, 2, 3, 4])
    saved = env.state_dict()["state"].copy()
    env.step(np.array([0, 1]), np.array([1, 2]))
    env.load_state_dict({"state": saved})
    assert (env.state_dict()["state"] == saved).all()
    env.step(np.array([1]), np.array([3]))
    assert (env.state_dict()["state"][:, :3] == saved[:, :3]).all()
