import numpy as np
import pytest

from pgcli.experiment.build import build
from pgcli.experiment.config import compose
from pgcli.experiment.evaluation import Evaluation, evaluate_both, play


def test_the_interval_of_a_mean_is_student_s():
    # Returns 1, 2, 3, 4: mean 2.5, deviation sqrt(5/3) = 1.29099; t(3, 97.5 %) = 3.1824; half = 3.1824 * 1.29099 / 2.
    found = Evaluation(np.array([1.0, 2.0, 3.0, 4.0]), np.ones(4))
    assert found.mean == 2.5
    assert found.std == pytest.approx(1.29099, abs=1e-5)
    assert found.interval == pytest.approx((2.5 - 2.05426, 2.5 + 2.05426), abs=1e-4)


def test_one_episode_says_nothing_of_the_spread():
    found = Evaluation(np.array([7.0]), np.ones(1))
    assert found.mean == 7
    assert found.interval is None


@pytest.fixture(scope="module")
def parts():
    return build(compose(["algo=ppo", "env=cartpole", "eval.episodes=4", "env.normalise.observations=true"]))


def test_an_evaluation_is_the_same_each_time_and_changes_nothing(parts):
    parts.collector.collect(parts.policy)
    before = repr(parts.collector.state_dict())
    first = evaluate_both(parts.evaluator, parts.policy, episodes=4, seed=0, stream="evaluate")
    assert first == evaluate_both(parts.evaluator, parts.policy, episodes=4, seed=0, stream="evaluate")
    assert repr(parts.collector.state_dict()) == before


def test_two_policies_are_evaluated_from_the_same_initial_states(parts):
    def seeds(greedy):
        rollout = parts.evaluator.play(parts.policy, [5, 6], None if greedy else np.random.default_rng(0))
        return rollout.observations[:, 0].tolist()

    assert seeds(greedy=True) == seeds(greedy=False)


def test_an_evaluation_sees_what_training_has_normalised_by(parts):
    parts.collector.collect(parts.policy)
    play(parts.evaluator, parts.policy, episodes=2, seed=0, stream="evaluate", greedy=True)
    own, theirs = parts.evaluator.env.statistics(), parts.environment.statistics()
    assert own["observations"]["count"] == theirs["observations"]["count"] > 0
    assert own["observations"]["mean"].tolist() == theirs["observations"]["mean"].tolist()
