"""A population plays as its members would one by one, all of them the same episodes."""

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from pgcli.collectors.population import PopulationCollector, closed_up
from pgcli.environments.cartpole import CartPole
from pgcli.environments.pendulum import Pendulum
from pgcli.errors import InputError
from pgcli.experiment.build import build
from pgcli.experiment.config import compose
from pgcli.policies.linear import Linear
from pgcli.policies.mlp import MLP
from pgcli.policies.rule import Rule
from pgcli.types import Acting, ControlSpec, Discrete, Population, Step

POLICIES = {"linear": Linear, "mlp": MLP, "rule": Rule}
ENVIRONMENTS = {"cartpole": CartPole, "pendulum": Pendulum}


class Watched:
    """An environment that notes what it is asked for, and refuses to step a row without an open episode."""

    def __init__(self, env):
        self.env, self.spec, self.num_envs = env, env.spec, env.num_envs
        self.open, self.seeds, self.actions = set(), [], 0

    def reset(self, rows, seeds):
        self.open |= set(rows.tolist())
        self.seeds += list(seeds)
        return self.env.reset(rows, seeds)

    def step(self, actions, rows=None):
        stepped = np.arange(self.num_envs) if rows is None else rows
        assert set(stepped.tolist()) <= self.open
        assert len(actions) == len(stepped)
        self.actions += len(stepped)
        step = self.env.step(actions, rows)
        self.open -= set(stepped[step.terminated | step.truncated].tolist())
        return step

    def state_dict(self):
        return self.env.state_dict()

    def load_state_dict(self, state):
        self.env.load_state_dict(state)


def environment(name, rows, limit=60):
    config = compose([f"env={name}", f"env.max_episode_steps={limit}"]).env
    return Watched(ENVIRONMENTS[name](config, rows))


def actor(name, spec):
    words = ["policy.hidden=[8]"] if name == "mlp" else []
    config = compose([f"policy={name}", *words]).policy
    return POLICIES[name].make(spec, config, Acting(), torch.Generator().manual_seed(0))


def population(policy, count, fresh=True, scale=1.0):
    start = parameters_to_vector(policy.parameters()).detach()
    noise = torch.randn((count, len(start)), generator=torch.Generator().manual_seed(5))
    return Population(policy, start + scale * noise, fresh=fresh)


def play_alone(policy, vector, env, seed):
    """One episode, one row at a time, through nothing that knows of crowds: return and length."""
    vector_to_parameters(vector.clone(), policy.parameters())
    row = np.array([0])
    observation, total, length = env.reset(row, [seed]), 0.0, 0
    while True:
        with torch.no_grad():
            outputs = policy.module(torch.from_numpy(observation)).numpy()
        discrete = outputs.shape[1] == 2
        step = env.step(outputs.argmax(1) if discrete else outputs, row)
        observation, total, length = step.observations, total + step.task_rewards[0], length + 1
        if step.terminated[0] or step.truncated[0]:
            return total, length


@pytest.mark.parametrize("env", ENVIRONMENTS)
@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_a_population_plays_as_its_members_do_one_by_one(name, env):
    K, E = 7, 3
    whole = environment(env, K * E)
    policy = actor(name, whole.spec)
    people = population(policy, K)
    found = PopulationCollector(whole, num_episodes=E, seed=0).collect(people)
    seeds, alone = [episode.seed for episode in found.episodes], environment(env, 1)
    for k in range(K):
        mine = found.episodes[k * E : (k + 1) * E]
        played = [play_alone(policy, people.candidates[k], alone, seed) for seed in seeds[k * E : (k + 1) * E]]
        assert [episode.length for episode in mine] == [length for _, length in played]
        assert [episode.total for episode in mine] == pytest.approx([total for total, _ in played], rel=1e-4)
        assert found.returns[k].item() == pytest.approx(np.mean([episode.total for episode in mine]))
    assert len(set(found.returns.tolist())) > 3, "the candidates differ, or this shows nothing"


@pytest.mark.parametrize("name", POLICIES)
def test_it_does_not_matter_how_many_play_at_a_time(name):
    policy = actor(name, environment("cartpole", 1).spec)
    people = population(policy, 6)
    found = [
        PopulationCollector(environment("cartpole", rows), num_episodes=4, seed=3).collect(people)
        for rows in (24, 7, 4, 1)
    ]
    for other in found[1:]:
        assert other.episodes == found[0].episodes
        assert other.steps == found[0].steps
        assert torch.equal(other.returns, found[0].returns)


def test_all_candidates_play_the_same_initial_states_and_each_generation_new_ones():
    env = environment("cartpole", 12)
    policy = actor("linear", env.spec)
    collector = PopulationCollector(env, num_episodes=3, seed=1)
    generations = []
    for fresh in (True, True, False, True):
        env.seeds = []
        found = collector.collect(population(policy, 4, fresh=fresh))
        assert [episode.seed for episode in found.episodes] == env.seeds
        assert env.seeds == env.seeds[:3] * 4
        assert len(set(env.seeds)) == 3
        generations.append(set(env.seeds))
    first, second, same, third = generations
    assert same == second
    assert not first & second
    assert not third & (first | second)


def test_two_candidates_of_the_same_parameters_have_the_same_fitness():
    for name in POLICIES:
        env = environment("cartpole", 15)
        policy = actor(name, env.spec)
        people = population(policy, 5)
        people.candidates[3] = people.candidates[1]
        returns = PopulationCollector(env, num_episodes=3, seed=1).collect(people).returns
        assert returns[3] == returns[1]
        assert len(set(returns.tolist())) > 1


def test_steps_are_all_the_actions_that_were_taken():
    env = environment("cartpole", 10)
    policy = actor("rule", env.spec)
    found = PopulationCollector(env, num_episodes=2, seed=1).collect(population(policy, 5))
    assert found.steps == env.actions == sum(episode.length for episode in found.episodes)
    assert found.steps > 50


class Toll:
    """Row i pays i + 1 at each of its i + 1 steps."""

    spec, num_envs = ControlSpec((1,), Discrete(2)), 6

    def reset(self, rows, seeds):
        self.clock = np.zeros(6, dtype=np.int64)
        return np.zeros((len(rows), 1), dtype=np.float32)

    def step(self, actions, rows=None):
        rows = np.arange(6) if rows is None else rows
        self.clock[rows] += 1
        over, paid = self.clock[rows] == rows + 1, rows + 1.0
        return Step(np.zeros((len(rows), 1), dtype=np.float32), 0 * paid, over & (rows > 2), over & (rows <= 2), paid)


def test_returns_and_lengths_are_each_candidate_s_own():
    # Lengths 1 .. 6, returns 1, 4, 9, ... 36, of the task's rewards: means (1 + 4) / 2, (9 + 16) / 2, (25 + 36) / 2.
    found = PopulationCollector(Toll(), num_episodes=2, seed=0).collect(population(actor("linear", Toll.spec), 3))
    assert [(episode.total, episode.length) for episode in found.episodes] == [(n * n, n) for n in range(1, 7)]
    assert found.returns.tolist() == [2.5, 12.5, 30.5]
    assert found.steps == 21


def test_a_collector_goes_on_where_another_stopped():
    env = environment("cartpole", 8)
    people = population(actor("linear", env.spec), 4)
    straight = PopulationCollector(env, num_episodes=2, seed=1)
    straight.collect(people)
    resumed = PopulationCollector(environment("cartpole", 8), num_episodes=2, seed=1)
    resumed.load_state_dict(straight.state_dict())
    assert resumed.collect(people).episodes == straight.collect(people).episodes


def test_rows_that_go_on_close_up_and_most_of_them_stay_in_their_places():
    random = np.random.default_rng(0)
    assert closed_up(np.array([False, True, False, False, True, False])).tolist() == [0, 5, 2, 3]
    for share in (0.0, 0.2, 0.8, 1.0):
        done = random.random(50) < share
        kept = closed_up(done)
        assert sorted(kept) == np.flatnonzero(~done).tolist()
        stay = ~done[: len(kept)]
        assert (kept[stay] == np.flatnonzero(stay)).all()


@pytest.mark.parametrize("setting", ["rewards=true", "reward_shift=1", "reward_scale=0.1", "reward_clip=1"])
def test_changed_rewards_which_no_fitness_would_show_are_refused(setting):
    with pytest.raises(InputError, match=rf"^env\.normalise\.{setting.partition('=')[0]} has no effect: algo=ga "):
        build(compose(["algo=ga", "env=cartpole", f"env.normalise.{setting}"]))
