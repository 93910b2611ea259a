"""Tabular worlds: played, they do what their matrices say."""

import numpy as np
import pytest
import torch

from pgcli.environments.tabular import Tabular, uniforms
from pgcli.errors import InputError
from pgcli.experiment.config import compose
from pgcli.functional import dynamic_programming as dp
from pgcli.seeding import episode_seeds

NAMES = ["corridor", "cliff_walk", "garnet", "recycling_robot"]


def make(name, count, *words):
    return Tabular(compose(["algo=reinforce", f"env={name}", *words]).env, count)


def state_of(observations):
    assert np.array_equal(observations.sum(1), np.ones(len(observations)))
    return observations.argmax(1)


@pytest.mark.parametrize("name", NAMES)
def test_a_world_is_made_of_probabilities(name):
    mdp = make(name, 1).mdp
    torch.testing.assert_close(mdp.transitions.sum(-1), torch.ones(mdp.transitions.shape[:2], dtype=torch.float64))
    assert float(mdp.start.sum()) == pytest.approx(1)
    assert not mdp.start[mdp.terminal].any()


@pytest.mark.parametrize(
    ("name", "words"),
    [("garnet", []), ("recycling_robot", []), ("cliff_walk", ["env.grid.slip=0.3", "env.grid.map=[S..,SCG]"])],
)
def test_played_often_enough_the_frequencies_are_the_probabilities(name, words):
    N, T = 1000, 60
    env = make(name, N, "env.max_episode_steps=1000000", *words)
    states, actions, _ = env.mdp.transitions.shape
    generator = np.random.Generator(np.random.PCG64(3))
    seeds = iter(episode_seeds(0, "train", range(N * T)))
    counts = np.zeros((states, actions, states))
    begun = np.zeros(states)
    current = state_of(env.reset(np.arange(N), [next(seeds) for _ in range(N)]))
    np.add.at(begun, current, 1)
    for _ in range(T):
        chosen = generator.integers(0, actions, N)
        step = env.step(chosen)
        following = state_of(step.observations)
        np.add.at(counts, (current, chosen, following), 1)
        np.testing.assert_array_equal(step.rewards, env.mdp.rewards.numpy()[current, chosen, following])
        np.testing.assert_array_equal(step.terminated, env.mdp.terminal.numpy()[following])
        current = following
        if len(rows := np.flatnonzero(step.terminated)):
            current[rows] = state_of(env.reset(rows, [next(seeds) for _ in rows]))
            np.add.at(begun, current[rows], 1)

    def agree(found, expected):
        """Within five standard deviations of a binomial, everywhere; what is impossible never happens."""
        total = found.sum(-1, keepdims=True)
        slack = 5 * np.sqrt(expected * (1 - expected) / np.maximum(total, 1)) + 1e-12
        shares = found / np.maximum(total, 1)
        assert (np.abs(shares - expected) <= slack)[np.broadcast_to(total > 0, found.shape)].all()

    live = ~env.mdp.terminal.numpy()
    assert (counts[live].sum(-1) > 100).all()
    agree(counts[live], env.mdp.transitions.numpy()[live])
    agree(begun, env.mdp.start.numpy())


def test_the_mean_return_of_many_episodes_is_the_exact_one():
    # From (seed, actions) alone: actions uniform, 20,000 episodes of at most 50 steps.
    N = 20_000
    env = make("garnet", N)
    generator = np.random.Generator(np.random.PCG64(5))
    env.reset(np.arange(N), episode_seeds(1, "train", range(N)))
    rows, returns = np.arange(N), np.zeros(N)
    while len(rows):
        step = env.step(generator.integers(0, 3, len(rows)), rows)
        returns[rows] += step.rewards
        rows = rows[~(step.terminated | step.truncated)]
    even = torch.full((10, 3), 1 / 3, dtype=torch.float64)
    exact = dp.expected_return(env.mdp, dp.backward_induction(env.mdp, 50, gamma=1.0, policy=even).values[0])
    assert abs(returns.mean() - float(exact)) < 4 * returns.std() / np.sqrt(N)


def test_chance_is_even_and_knows_nothing_of_itself():
    seeds, steps = np.repeat(np.arange(1000), 100), np.tile(np.arange(100), 1000)
    u = uniforms(seeds, steps)
    assert ((u >= 0) & (u < 1)).all()
    counts = np.histogram(u, bins=100, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 160  # chi-squared, 99 degrees of freedom: p = 1e-4
    grid = u.reshape(1000, 100) - 0.5
    for a, b in ((grid[:, 1:], grid[:, :-1]), (grid[1:], grid[:-1])):  # step after step, seed beside seed
        assert abs((a * b).mean() * 12) < 4 / np.sqrt(a.size)


def test_an_episode_is_that_of_its_seed_in_any_row_and_company():
    env, alone = make("garnet", 4), make("garnet", 1)
    actions = np.arange(20) % 3
    env.reset(np.arange(4), [5, 9, 7, 9])
    first = alone.reset(np.arange(1), [9])
    assert np.array_equal(env.reset(np.array([3]), [9]), first)
    for action in actions:
        together, single = env.step(np.full(4, action)), alone.step(np.array([action]))
        assert np.array_equal(together.observations[1], single.observations[0])
        assert np.array_equal(together.observations[3], single.observations[0])
        if single.terminated[0]:
            return


def test_a_restored_environment_goes_on_bit_for_bit():
    env, restored = make("garnet", 3), make("garnet", 3)
    env.reset(np.arange(3), [1, 2, 3])
    env.step(np.array([0, 1, 2]))
    saved = env.state_dict()
    expected = [env.step(np.array([2, 1, 0])) for _ in range(5)]
    restored.load_state_dict(saved)
    for step in expected:
        for a, b in zip(restored.step(np.array([2, 1, 0])), step, strict=True):
            assert np.array_equal(a, b)


def test_some_rows_step_while_the_others_wait():
    some, everything = make("garnet", 4), make("garnet", 4)
    for env in (some, everything):
        env.reset(np.arange(4), [1, 2, 3, 4])
    whole = everything.step(np.array([0, 1, 2, 0]))
    part, rest = some.step(np.array([0, 1]), np.array([3, 1])), some.step(np.array([0, 2]), np.array([0, 2]))
    for a, b, both in zip(part, rest, whole, strict=True):
        assert np.array_equal(a, both[[3, 1]])
        assert np.array_equal(b, both[[0, 2]])


def test_the_limit_truncates_but_a_terminal_state_at_the_limit_terminates():
    env = make("corridor", 2, "env.max_episode_steps=7")
    env.reset(np.arange(2), [0, 1])
    for t in range(7):
        step = env.step(np.array([1, 0]))  # one walks right, one against the wall
        assert step.rewards.tolist() == [float(t == 6), 0.0]
        assert step.truncated.tolist() == [False, t == 6]
    assert step.terminated.tolist() == [True, False]


def test_a_fall_off_the_cliff_costs_and_leads_back():
    env = make("cliff_walk", 1)
    start = state_of(env.reset(np.arange(1), [0]))
    step = env.step(np.array([1]))  # right: off the edge
    assert step.rewards.tolist() == [-100.0]
    assert not step.terminated.any()
    assert state_of(step.observations) == start
    for action, reward in [(0, -1.0)] + [(1, -1.0)] * 11 + [(2, -1.0)]:
        step = env.step(np.array([action]))
        assert step.rewards.tolist() == [reward]
    assert step.terminated.all()


def test_the_shortest_way_along_the_cliff_is_thirteen_steps():
    mdp = make("cliff_walk", 1).mdp
    assert float(dp.expected_return(mdp, dp.policy_iteration(mdp, gamma=0.999).values)) == pytest.approx(
        -sum(0.999**t for t in range(13))
    )


def test_a_slip_moves_at_random():
    # Two moves, slip 0.2: the chosen one with 0.8 + 0.1, the other with 0.1.
    mdp = make("corridor", 1, "env.grid.slip=0.2", "env.grid.map=[.S.G]").mdp
    torch.testing.assert_close(mdp.transitions[1, 1, :3], torch.tensor([0.1, 0, 0.9], dtype=torch.float64))


def test_a_fall_leads_to_any_start_and_costs_the_same():
    # States 0 and 1 are starts, 2 is the goal; down from state 0 is the cliff.
    words = ["env.grid.map=[SSG,C..]", "env.grid.moves=[down,right]", "env.grid.slip=0"]
    mdp = make("cliff_walk", 1, *words).mdp
    assert mdp.start.tolist() == [0.5, 0.5, 0, 0, 0]
    assert mdp.transitions[0, 0].tolist() == [0.5, 0.5, 0, 0, 0]
    assert mdp.rewards[0, 0, :2].tolist() == [-100, -100]
    # Slipping half the time: the step from state 0 to state 1 is a fall (3/4 * 1/2) or a walk (1/4).
    mdp = make("cliff_walk", 1, *words[:2], "env.grid.slip=0.5").mdp
    torch.testing.assert_close(mdp.transitions[0, 0, :2], torch.tensor([0.375, 0.625], dtype=torch.float64))
    assert float(mdp.rewards[0, 0, 1]) == pytest.approx((0.375 * -100 + 0.25 * -1) / 0.625)


def test_the_recycling_robot_of_the_book():
    # Sutton & Barto 2018, example 3.11, the Bellman optimality equation of h, with the numbers of the YAML file.
    mdp, g = make("recycling_robot", 1).mdp, 0.9
    high, low = dp.policy_iteration(mdp, gamma=g).values.tolist()
    assert high == pytest.approx(max(2 + g * (0.9 * high + 0.1 * low), 1 + g * high))
    assert low == pytest.approx(max(0.6 * 2 - 3 * 0.4 + g * (0.4 * high + 0.6 * low), 1 + g * low, g * high))


@pytest.mark.parametrize(
    ("name", "word", "message"),
    [
        ("corridor", "env.grid.map=[S.,G]", "equally long"),
        ("corridor", "env.grid.map=[S.X]", "no `X`"),
        ("corridor", "env.grid.map=[S..]", "a start S and a goal G"),
        ("corridor", "env.grid.moves=[left,left]", "names one twice"),
        ("corridor", "env.grid=null", "one of grid, random and matrices"),
        ("garnet", "env.random.branching=11", "there are 10 states"),
        ("garnet", "env.random.terminal=10", "an episode could not begin"),
        ("recycling_robot", "env.matrices.start=[1,1]", "start must add up to 1"),
        ("recycling_robot", "env.matrices.start=[1]", "start must be 2 numbers"),
        ("recycling_robot", "env.matrices.terminal=[2]", "0 to 1"),
        ("recycling_robot", "env.matrices.rewards=[[[0]]]", "rewards must be 2 x 3 x 2"),
        ("recycling_robot", "env.matrices.transitions=[[[1,0]],[[0.5,0.4]]]", "rewards must be 2 x 1 x 2"),
    ],
)
def test_what_is_no_world_is_refused_in_one_line(name, word, message):
    with pytest.raises(InputError, match=message) as error:
        compose(["algo=ppo", f"env={name}", word])
    assert "\n" not in str(error.value)


def test_transitions_that_do_not_add_up_are_named():
    table = "env.matrices.transitions=[[[1,0],[1,0],[1,0]],[[0.5,0.4],[1,0],[1,0]]]"
    with pytest.raises(InputError, match=r"from state 1 by action 0 add up to 0\.9, not 1"):
        compose(["algo=ppo", "env=recycling_robot", table])
