"""DQN, Q-learning and SARSA: the probes, convergence to what dynamic programming gives, and one update by hand."""

import numpy as np
import pytest
import torch

from pgcli.collectors.replay import ReplayCollector
from pgcli.collectors.transitions import TransitionCollector
from pgcli.errors import InputError, RunError
from pgcli.experiment.build import build
from pgcli.experiment.config import compose
from pgcli.registry import find
from pgcli.types import ControlSpec, Discrete, Step, Steps, Transitions

CPU = torch.device("cpu")
GAMMA = 0.9

# ---------------------------------------------------------------- the probes

DQN = [
    "algo=dqn", "tuned=none", "device=cpu", "algo.num_envs=8", "algo.num_steps=4", "algo.learning_starts=64",
    "algo.learning_rate=3e-3", "algo.target_period=20", "algo.epsilon_end=0.2", "algo.epsilon_steps=2000",
    f"algo.gamma={GAMMA}", "policy.hidden=[32]",
]  # fmt: skip
VARIANTS = {
    "dqn": (),
    "double, squared": ("algo.double=true", "algo.loss=squared"),
    "averaged target": ("algo.target_period=1", "algo.target_tau=0.05"),
}


def learn(env, *words, updates=500):
    parts = build(compose([*DQN, f"env=probe_{env}", *words]))
    for _ in range(updates):
        parts.algorithm.update(parts.collector.collect(parts.behaviour()))
    return parts


def action_values(parts, *observations):
    with torch.no_grad():
        return parts.policy(torch.tensor(observations, dtype=torch.float32)[:, None]).flatten().tolist()


@pytest.mark.parametrize("words", VARIANTS.values(), ids=VARIANTS)
def test_a_constant_reward_is_the_value_of_every_action(words):
    assert action_values(learn("constant_reward", *words), 0) == pytest.approx([1, 1], abs=0.05)


@pytest.mark.parametrize("words", VARIANTS.values(), ids=VARIANTS)
def test_the_value_depends_on_the_observation(words):
    found = action_values(learn("observation_value", *words), -1, 1)
    assert found == pytest.approx([-1, -1, 1, 1], abs=0.05)


@pytest.mark.parametrize("words", VARIANTS.values(), ids=VARIANTS)
def test_a_delayed_reward_is_discounted_once(words):
    found = action_values(learn("delayed_reward", *words), 0, 1)
    assert found == pytest.approx([GAMMA, GAMMA, 1, 1], abs=0.05)


@pytest.mark.parametrize("words", VARIANTS.values(), ids=VARIANTS)
def test_each_action_of_each_observation_has_its_own_value(words):
    assert action_values(learn("action_reward", *words), 0) == pytest.approx([-1, 1], abs=0.05)
    found = action_values(learn("observation_action_reward", *words), -1, 1)
    assert found == pytest.approx([1, -1, -1, 1], abs=0.05)


def test_values_of_images_are_learned_by_a_convolutional_network():
    words = [word for word in DQN if not word.startswith("policy.")]
    parts = build(compose([*words, "env=probe_image", "policy.channels=[4,4]"]))
    for _ in range(150):
        parts.algorithm.update(parts.collector.collect(parts.behaviour()))
    image = torch.zeros(2, 1, 8, 8)
    image[0, :, :, :4], image[1, :, :, 4:] = 1, 1  # -1 and +1
    with torch.no_grad():
        assert parts.policy(image).flatten().tolist() == pytest.approx([1, -1, -1, 1], abs=0.1)


# ---------------------------------------------------------------- a small world that can be solved

P = np.array([  # p(s' | s, a) of three states and two actions; state 2 ends the episode
    [[0.5, 0.4, 0.1], [0.1, 0.8, 0.1]],
    [[0.7, 0.2, 0.1], [0.1, 0.5, 0.4]],
    [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]],
])  # fmt: skip
R = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
EPSILON = 0.3


def solved(epsilon=0.0):
    """Q of the best policy among those that explore with `epsilon`, by value iteration."""
    q = np.zeros((3, 2))
    for _ in range(1000):
        v = (1 - epsilon) * q.max(1) + epsilon * q.mean(1)
        q = R + GAMMA * P[:, :, :2] @ v[:2]  # nothing follows state 2
    return q[:2]


class World:
    def __init__(self, num_envs):
        self.num_envs, self.spec = num_envs, ControlSpec((3,), Discrete(2), states=3)
        self.states, self.generator = np.zeros(num_envs, dtype=int), np.random.default_rng(0)

    def reset(self, rows, seeds):
        self.states[rows] = np.asarray(seeds) % 2
        return np.eye(3, dtype=np.float32)[self.states[rows]]

    def step(self, actions, rows=None):
        odds = P[self.states, actions].cumsum(-1)
        rewards = R[self.states, actions]
        self.states = (self.generator.random((self.num_envs, 1)) > odds).sum(-1)
        ended = self.states == 2
        return Step(np.eye(3, dtype=np.float32)[self.states], rewards, ended, np.zeros_like(ended), rewards)


def tabular(name, *words):
    config = compose([f"algo={name}", "policy=tabular", "env=frozen_lake", "tuned=none", f"algo.gamma={GAMMA}", *words])
    algorithm_class = find("algo", name)
    policy = find("policy", "tabular").make(
        World(1).spec, config.policy, algorithm_class.needs(config.algo), torch.Generator()
    )
    return policy, algorithm_class(policy, config.algo, total_steps=1, seed=0)


EXPLORING = [f"algo.epsilon_start={EPSILON}", f"algo.epsilon_end={EPSILON}"]
ROBBINS_MONRO = ["algo.learning_rate=1", "algo.schedule=robbins_monro", "algo.schedule_c=60", "algo.schedule_offset=60"]
TABULAR = {
    "q_learning": ([], solved()),
    "sarsa": ([], solved(EPSILON)),
    "expected sarsa": (["algo.expected=true"], solved(EPSILON)),
}


@pytest.mark.parametrize("name", TABULAR)
def test_a_table_converges_to_what_dynamic_programming_gives(name):
    words, exact = TABULAR[name]
    policy, algorithm = tabular(name.split()[-1], *EXPLORING, *ROBBINS_MONRO, *words)
    collector = TransitionCollector(World(64), looks_ahead=algorithm.config.looks_ahead, seed=0, device=CPU)
    for _ in range(1500):
        algorithm.update(collector.collect(algorithm.behaviour()))
    [table] = policy.parameters()
    assert table[:2].flatten().tolist() == pytest.approx(exact.flatten().tolist(), abs=0.1)
    assert np.abs(solved() - solved(EPSILON)).min() > 0.15  # the two fixed points are far apart
    assert not table[2].any()  # the terminal state was never left


def test_dqn_with_a_table_converges_to_what_dynamic_programming_gives():
    policy, algorithm = tabular(
        "dqn", *EXPLORING, "algo.learning_rate=0.1", "algo.schedule=robbins_monro", "algo.schedule_c=30",
        "algo.schedule_offset=30", "algo.batch_size=256", "algo.target_period=1", "algo.target_tau=0.1",
        "algo.loss=squared",
    )  # fmt: skip
    collector = ReplayCollector(World(64), num_steps=1, learning_starts=64, capacity=20_000, seed=0, device=CPU)
    for _ in range(1500):
        algorithm.update(collector.collect(algorithm.behaviour()))
    [table] = policy.parameters()
    assert table[:2].flatten().tolist() == pytest.approx(solved().flatten().tolist(), abs=0.15)


# ---------------------------------------------------------------- one update by hand


def fresh(states, actions, rewards, following, terminated, next_actions=None):
    one_hot = torch.eye(3)
    return Steps(
        Transitions(
            one_hot[states], torch.tensor(actions), torch.tensor(rewards), one_hot[following],
            torch.tensor(terminated), None if next_actions is None else torch.tensor(next_actions),
        ),
        [],
    )  # fmt: skip


def set_table(policy, rows):
    [table] = policy.parameters()
    with torch.no_grad():
        table.copy_(torch.tensor(rows))
    return table


ROWS = [[1.0, 2.0], [4.0, 3.0], [50.0, 60.0]]


@pytest.mark.parametrize(
    ("name", "words", "worth"),
    # What state 1 is worth with Q = (4, 3): its best; the action taken next, number 1; 0.8 * 4 + 0.2 * 3.5.
    [("q_learning", [], 4.0), ("sarsa", [], 3.0), ("sarsa", ["algo.expected=true"], 3.9)],
)
def test_one_update_moves_the_entries_that_were_tried_by_alpha_times_their_error(name, words, worth):
    policy, algorithm = tabular(
        name, "algo.learning_rate=0.5", "algo.epsilon_start=0.2", "algo.epsilon_end=0.2", *words
    )
    table = set_table(policy, ROWS)
    metrics = algorithm.update(fresh([0, 1], [1, 0], [1.0, -1.0], [1, 2], [False, True], [1, 1]))
    errors = [1 + GAMMA * worth - 2, -1 - 4]  # nothing behind the terminal state 2
    assert table.tolist() == [
        pytest.approx([1, 2 + 0.5 * errors[0]]), pytest.approx([4 + 0.5 * errors[1], 3]), [50, 60],
    ]  # fmt: skip
    assert metrics["value/td_error"] == pytest.approx(np.abs(errors).mean())
    assert metrics["value/mean"] == 3
    assert metrics["table/visited"] == pytest.approx(2 / 6)
    assert metrics["exploration/epsilon"] == pytest.approx(0.2)


def test_robbins_monro_counts_the_visits_of_each_state_and_action():
    policy, algorithm = tabular("q_learning", "algo.learning_rate=1", "algo.schedule=robbins_monro", "algo.gamma=0")
    [table] = policy.parameters()
    seen = {(0, 1): [5.0, 1.0, 3.0], (1, 0): [8.0]}
    for reward in seen[0, 1]:
        algorithm.update(fresh([0], [1], [reward], [1], [False]))
    algorithm.update(fresh([1], [0], [8.0], [1], [False]))
    # c = 1 and offset = 0: each entry is the mean of what it has seen.
    assert table.tolist() == [[0, pytest.approx(3)], [8, 0], [0, 0]]


def test_several_environments_in_one_state_do_not_overshoot():
    policy, algorithm = tabular("q_learning", "algo.learning_rate=0.5", "algo.gamma=0")
    [table] = policy.parameters()
    algorithm.update(fresh([0, 0, 0, 0, 1], [1, 1, 1, 1, 0], [2.0, 4.0, 6.0, 8.0, 8.0], [1] * 5, [False] * 5))
    assert table.tolist() == [[0, 5], [4, 0], [0, 0]]  # the mean of four targets; half-way to a single one


@pytest.mark.parametrize("name", ["q_learning", "sarsa"])
def test_an_update_that_is_not_finite_stops_before_it_is_made(name):
    policy, algorithm = tabular(name)
    table = set_table(policy, ROWS)
    with pytest.raises(RunError, match="not finite"):
        algorithm.update(fresh([0], [1], [np.inf], [1], [False], [0]))
    assert table.tolist() == ROWS


def dqn_errors(*words):
    """Minus the gradient of DQN's loss on one transition from state 0 by action 1 to state 1, with reward 1."""
    policy, algorithm = tabular("dqn", *words)
    [table] = policy.parameters()
    algorithm.updater.flat.copy_(torch.tensor(ROWS).flatten())
    algorithm.target.flat.copy_(torch.tensor([[0.0, 0.0], [7.0, 9.0], [0.0, 0.0]]).flatten())
    batch = algorithm.prepare(fresh([0], [1], [1.0], [1], [False]).transitions)
    total, _ = algorithm.loss(policy, batch, None)
    [gradient] = torch.autograd.grad(total, table)
    assert gradient.count_nonzero() == 1
    return -gradient[0, 1].item()


def test_dqn_bootstraps_from_its_target_network():
    # The best by the target network is 9; by the online network, action 0, which the target network values at 7.
    assert dqn_errors("algo.loss=squared") == pytest.approx(1 + GAMMA * 9 - 2)
    assert dqn_errors("algo.loss=squared", "algo.double=true") == pytest.approx(1 + GAMMA * 7 - 2)
    assert dqn_errors("algo.loss=huber") == 1


class Endless:
    """A memory in which every transition is the same."""

    steps, episodes, size = 1, (), 1

    def draw(self, batch_size):
        return fresh([0], [1], [1.0], [1], [False]).transitions


@pytest.mark.parametrize(("period", "tau"), [(3, 1.0), (1, 0.25)])
def test_the_target_network_moves_when_it_is_due(period, tau):
    _, algorithm = tabular("dqn", "algo.gradient_steps=1", f"algo.target_period={period}", f"algo.target_tau={tau}")
    expected = algorithm.target.flat.clone()
    for step in range(1, 8):
        algorithm.update(Endless())
        if step % period == 0:
            expected = (1 - tau) * expected + tau * algorithm.updater.flat
        torch.testing.assert_close(algorithm.target.flat, expected)
        assert not torch.equal(algorithm.target.flat, algorithm.updater.flat) or step % period == 0


def test_minibatches_that_are_drawn_at_once_are_those_of_one_draw_each(monkeypatch):
    def learned(at_once):
        monkeypatch.setattr("pgcli.algorithms.dqn.AT_ONCE", at_once)
        words = ("algo.gradient_steps=11", "algo.batch_size=16", "algo.target_period=4", "algo.double=true")
        parts = build(compose([*DQN, "env=cartpole", "algo.num_envs=1", *words]))
        for _ in range(5):
            parts.algorithm.update(parts.collector.collect(parts.algorithm.behaviour()))
        return parts.algorithm.updater.flat, parts.algorithm.target.flat

    torch.testing.assert_close(learned(1), learned(1024), atol=1e-5, rtol=1e-4)


def test_epsilon_falls_with_the_actions_taken():
    _, algorithm = tabular("dqn", "algo.epsilon_start=1", "algo.epsilon_end=0.5", "algo.epsilon_steps=4")
    found = [algorithm.update(Endless())["exploration/epsilon"] for _ in range(7)]
    assert found == [1, 0.875, 0.75, 0.625, 0.5, 0.5, 0.5]
    assert algorithm.behaviour().epsilon == 0.5


# ---------------------------------------------------------------- tasks, and what is refused


def greedy_episode(*words, steps):
    """Return and length, after so many steps of training."""
    parts = build(compose([*words, "tuned=none", "device=cpu", "eval.episodes=1"]))
    done = 0
    while done < steps:
        fresh = parts.collector.collect(parts.behaviour())
        parts.algorithm.update(fresh)
        done += fresh.steps
    [episode] = parts.evaluator.play(parts.policy, [1], None).episodes
    parts.close()
    return episode.total, episode.length


def test_q_learning_takes_the_edge_of_the_cliff_and_sarsa_the_safe_way():
    # Sutton & Barto 2018, example 6.6: 13 moves along the edge; two rows above it, 17, for who expects to slip.
    words = ["env=cliff_walk", "algo.num_envs=8", "algo.learning_rate=0.2", "algo.gamma=1"]
    assert greedy_episode("algo=q_learning", *words, steps=20_000) == (-13, 13)
    assert greedy_episode("algo=sarsa", *words, steps=30_000) == (-17, 17)


def test_q_learning_finds_the_way_over_the_ice():
    words = ["algo=q_learning", "env=frozen_lake", "env.kwargs.is_slippery=false", "algo.num_envs=8"]
    words += ["algo.learning_rate=0.2", "algo.epsilon_start=1", "algo.epsilon_end=0.05", "algo.epsilon_steps=10000"]
    assert greedy_episode(*words, steps=12_000) == (1, 6)  # six moves are the shortest way


def test_a_tabular_method_chooses_its_policy_unless_one_is_named():
    assert compose(["algo=q_learning", "env=frozen_lake"]).choices["policy"] == "tabular"
    assert compose(["algo=sarsa", "env=frozen_lake", "policy=mlp"]).choices["policy"] == "mlp"
    assert compose(["algo=dqn", "env=frozen_lake"]).choices["policy"] == "mlp"


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["algo=q_learning", "env=cartpole"], "algo=dqn"),
        (["algo=sarsa", "env=cartpole"], "algo=dqn"),
        (["algo=q_learning", "env=probe_image"], "does not offer; try algo=dqn"),
        (["algo=q_learning", "env=frozen_lake", "policy=mlp"], "policy=tabular"),
        (["algo=q_learning", "env=frozen_lake", "env.normalise.observations=true"], "countable states"),
        (["algo=q_learning", "env=pendulum"], "algo=.*ppo"),
        (["algo=dqn", "env=pendulum"], "algo=.*ppo"),
        (["algo=dqn", "env=sort"], "algo=.*grpo"),
        (["algo=ppo", "env=cartpole", "policy=tabular"], "policy=mlp"),
        (["algo=dqn", "env=cartpole", "algo.capacity=10"], "capacity"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(words, answer):
    with pytest.raises(InputError, match=answer) as refused:
        build(compose(words))
    assert "\n" not in str(refused.value)
