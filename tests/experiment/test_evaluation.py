import numpy as np
import pytest
import torch

from pgcli.cli.show import metrics
from pgcli.collectors.reference import view
from pgcli.errors import InputError
from pgcli.experiment import evaluate, resume, train
from pgcli.experiment.build import build
from pgcli.experiment.config import compose
from pgcli.experiment.evaluation import Evaluation, evaluate_both, join, play, read, win_rate
from pgcli.types import Episode, Rollout


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


def test_a_prompt_that_comes_again_is_no_further_observation():
    # Prompts a, a, a, b, c with returns 1, 1, 1, 0, 0: mean 3/5; sums of deviations 6/5, -3/5, -3/5, squares 54/25;
    # sqrt(3/2 * 54/25) / 5 = 0.36; t(2, 97.5 %) = 4.3027.
    returns, prompts = np.array([1.0, 1.0, 1.0, 0.0, 0.0]), np.array([[5, 1], [5, 1], [5, 1], [5, 2], [4, 1]])
    found = Evaluation(returns, np.ones(5), prompts=prompts)
    assert found.independent == 3
    assert found.interval == pytest.approx((0.6 - 1.54896, 0.6 + 1.54896), abs=1e-4)
    # However often the same three come again.
    often = Evaluation(np.tile(returns, 50), np.ones(250), prompts=np.tile(prompts, (50, 1)))
    assert often.interval == pytest.approx(found.interval)
    assert Evaluation(returns[:3], np.ones(3), prompts=prompts[:3]).interval is None
    different = Evaluation(returns, np.ones(5), prompts=np.arange(5)[:, None])
    assert different.interval == pytest.approx(Evaluation(returns, np.ones(5)).interval)


def test_what_is_evaluated_counts_different_prompts_and_leaves_out_what_has_no_score():
    nan = float("nan")
    prompts = torch.tensor([[1, 2], [1, 2], [3, 4], [3, 4]])
    rollout = Rollout(
        {"prompt": prompts, "row": torch.arange(4)}, *[None] * 2, *[torch.zeros(4, 1)] * 2, torch.ones(4, 1),
        aux={"reward": torch.tensor([1.0, 0.0, nan, nan])},
        episodes=[Episode(total, 1, 0) for total in (1.0, 0.0, nan, nan)],
    )  # fmt: skip
    found = read(rollout)
    assert (len(found.returns), found.independent, found.interval) == (2, 1, None)
    assert join([found, found]).independent == 1


@pytest.fixture(scope="module")
def parts():
    return build(compose(["algo=ppo", "env=cartpole", "eval.episodes=4", "env.normalise.observations=true"]))


def test_an_evaluation_is_the_same_each_time_and_changes_nothing(parts):
    parts.collector.collect(parts.policy)
    before = repr(parts.collector.state_dict())
    first, _ = evaluate_both(parts.evaluator, parts.policy, episodes=4, seed=0, stream="evaluate")
    assert first == evaluate_both(parts.evaluator, parts.policy, episodes=4, seed=0, stream="evaluate")[0]
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


class Attempts:
    """A player whose completions of two prompts are right or wrong as it is told, one column for each time."""

    def __init__(self, right, lengths=((2, 3),)):
        self.right, self.lengths, self.time = torch.tensor(right), lengths, 0

    def play(self, policy, seeds, generator, *, held_out=False):
        assert held_out
        lengths = torch.tensor(self.lengths[self.time % len(self.lengths)])
        exact = self.right[:, self.time % self.right.shape[1]].float()
        self.time += 1
        mask = torch.arange(3) < lengths[:, None]
        ended = torch.zeros(2, 3, dtype=torch.bool)
        ended[0, lengths[0] - 1] = True  # the second one is always cut
        episodes = [Episode(float(e), int(n), s) for e, n, s in zip(exact, lengths, seeds, strict=True)]
        return Rollout(
            observations=None, actions=torch.zeros(2, 3), rewards=torch.zeros(2, 3), terminated=ended,
            truncated=~ended, mask=mask, aux={"reward": exact, "exact_match": exact}, episodes=episodes,
        )  # fmt: skip


def test_components_lengths_and_pass_at_k_of_a_text_task():
    # The first prompt is solved in 1 of 4 attempts, the second in 3: pass@2 is 1 - C(3,2)/C(4,2) = 1/2, and 1.
    player = Attempts([[0, 1, 0, 0], [1, 1, 1, 0]], lengths=((2, 3), (1, 3)))
    found, rollout = evaluate_both(player, None, episodes=2, seed=0, stream="evaluate", samples=4)
    assert found["eval/exact_match"] == found["eval/return_mean"] == found["eval/pass@1"] == pytest.approx(0.5)
    assert found["eval/pass@2"] == pytest.approx(0.75)
    assert found["eval/pass@4"] == pytest.approx(1)
    assert (found["eval/finished"], found["eval/length_finished"], found["eval/length_cut"]) == (0.5, 1.5, 3)
    assert "eval/reward" not in found, "it is the return"
    assert rollout.aux["exact_match"].tolist() == [0, 1], "the first attempts are what is shown"


def test_without_samples_nothing_is_said_of_pass_at_k():
    found, _ = evaluate_both(Attempts([[1], [1]], ((2, 2),)), None, episodes=2, seed=0, stream="evaluate")
    assert not [key for key in found if "pass" in key]
    assert "eval/length_cut" in found


def test_nothing_is_cut_where_all_end():
    player = Attempts([[1], [1]])
    play_one = player.play

    def both_end(*args, **kwargs):
        rollout = play_one(*args, **kwargs)
        rollout.terminated[1, 2] = True
        return rollout

    player.play = both_end
    found, _ = evaluate_both(player, None, episodes=2, seed=0, stream="evaluate")
    assert "eval/length_cut" not in found
    assert found["eval/finished"] == 1


def test_pass_at_k_is_refused_where_nothing_is_right_or_wrong():
    with pytest.raises(
        InputError, match=r"eval.samples=4: pass@k counts exact_match, which env=cartpole does not have"
    ):
        build(compose(["env=cartpole", "eval.samples=4"]))


@pytest.mark.parametrize("words", [["algo=grpo", "env=sort", "policy.width=8", "policy.heads=2"], ["algo=ppo"]])
def test_the_divergence_from_a_reference_is_that_of_the_states_that_were_seen(words):
    parts, other = build(compose([*words, "eval.episodes=3"])), build(compose([*words, "eval.episodes=3", "seed=1"]))
    given = {"episodes": 3, "seed": 0, "stream": "evaluate"}
    same, _ = evaluate_both(parts.evaluator, parts.policy, **given, reference=parts.policy)
    assert same["eval/kl"] == same["eval/kl_k1"] == 0
    found, rollout = evaluate_both(parts.evaluator, parts.policy, **given, reference=other.policy)
    own, theirs = (
        torch.log_softmax(view(p, rollout).distribution.logits, -1).double() for p in (parts.policy, other.policy)
    )
    expected = ((own.exp() * (own - theirs)).sum(-1) * rollout.mask).sum(1)
    torch.testing.assert_close(rollout.aux["kl"].double(), expected, rtol=1e-4, atol=1e-6)
    assert found["eval/kl"] == pytest.approx(float(expected.mean()), rel=1e-4)
    ratio = ((rollout.log_probs - rollout.reference_log_probs) * rollout.mask).sum(1).mean()
    assert found["eval/kl_k1"] == pytest.approx(float(ratio), rel=1e-3)
    assert not set(evaluate_both(parts.evaluator, parts.policy, **given)[0]) & {"eval/kl", "eval/kl_k1"}


def test_the_divergence_of_real_actions_keeps_no_graph():
    parts = build(compose(["algo=ppo", "env=pendulum", "eval.episodes=2", "env.max_episode_steps=5"]))
    _, rollout = evaluate_both(
        parts.evaluator, parts.policy, episodes=2, seed=0, stream="evaluate", reference=parts.policy
    )
    assert not rollout.aux["kl"].requires_grad


def test_every_key_of_an_evaluation_is_in_the_dictionary():
    declared = dict(metrics())
    parts = build(compose(["algo=grpo", "env=sort", "eval.episodes=3", "eval.samples=2"]))
    found, _ = evaluate_both(
        parts.evaluator, parts.policy, episodes=3, seed=0, stream="evaluate", samples=2, reference=parts.policy
    )
    keys = {"eval/pass@k" if "pass@" in key else key for key in found}
    assert keys <= set(declared)
    assert {"eval/exact_match", "eval/pass@k", "eval/kl"} <= keys


def test_who_is_better_more_often_by_gold_where_it_is_known():
    def played(**aux):
        return Rollout(*[None] * 6, aux={name: torch.tensor(value) for name, value in aux.items()})

    own, other = (
        played(reward=[9.0, 9.0, 9.0, 9.0], gold=[1.0, 2.0, 3.0, 0.0]),
        played(reward=[0.0] * 4, gold=[1.0] * 4),
    )
    assert win_rate(own, other) == (0.5 + 1 + 1 + 0) / 4
    assert win_rate(played(reward=[1.0, 0.0]), played(reward=[0.0, 0.0])) == 0.75


def test_who_is_better_is_asked_of_the_prompts_on_which_both_could_be_scored():
    def played(**aux):
        return Rollout(*[None] * 6, aux={name: torch.tensor(value) for name, value in aux.items()})

    nan = float("nan")
    # A win, a loss, a win and a tie; then three of which one side or both say nothing.
    own, other = [1.0, 0.0, 3.0, 2.0, nan, 5.0, nan], [0.0, 1.0, 1.0, 2.0, 0.0, nan, nan]
    assert win_rate(played(reward=own), played(reward=other)) == (1 + 0 + 1 + 0.5) / 4
    zeros = [0.0] * 7
    assert win_rate(played(reward=zeros, gold=own), played(reward=zeros, gold=other)) == (1 + 0 + 1 + 0.5) / 4


def test_an_older_policy_is_not_evaluated_in_place_of_a_damaged_one(tmp_path):
    run = train(
        "algo=reinforce", "env=cartpole", "total_steps=200", "algo.num_episodes=2", run_dir=tmp_path / "run", quiet=True
    )
    newest = run.checkpoints()[-1]
    data = bytearray((newest / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (newest / "model.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=rf"{newest.name}.*the newest intact one is of step 0"):
        evaluate(run.path, episodes=2)
    with pytest.raises(InputError, match=newest.name):
        train("algo=reinforce", "env=cartpole", f"init={run.path}", run_dir=tmp_path / "other", quiet=True)
    assert not (tmp_path / "other").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_run_of_a_device_that_is_not_here_is_evaluated_on_the_processor(tmp_path):
    run = train(
        "algo=reinforce", "env=cartpole", "device=cpu", "total_steps=200", "algo.num_episodes=2",
        run_dir=tmp_path / "run", quiet=True,
    )  # fmt: skip
    here = evaluate(run.path, episodes=2)
    config = run.path / "config.yaml"
    config.write_text(config.read_text().replace("name: cpu", "name: cuda\n  index: 1"))
    assert evaluate(run.path, episodes=2) == here
    with pytest.raises(InputError, match="finds no CUDA device"):
        resume(run.path, "total_steps=400", quiet=True)


@pytest.mark.parametrize(
    "words", [("algo=es", "env=cartpole"), ("algo=td3", "env=pendulum"), ("algo=ppo", "env=cartpole")]
)
def test_a_deterministic_policy_is_played_once(words, monkeypatch):
    parts = build(compose([*words, "eval.episodes=3", "device=cpu"]))
    played, play_them = [], parts.evaluator.play
    monkeypatch.setattr(
        parts.evaluator, "play", lambda *given, **named: played.append(given) or play_them(*given, **named)
    )
    metrics, _ = evaluate_both(parts.evaluator, parts.policy, episodes=3, seed=0, stream="evaluate")
    greedy = play(parts.evaluator, parts.policy, episodes=3, seed=0, stream="evaluate", greedy=True)
    assert metrics["eval/greedy_return_mean"] == greedy.mean
    deterministic = words[0] != "algo=ppo"
    assert len(played) == (2 if deterministic else 3)
    assert (metrics["eval/return_mean"] == greedy.mean) == deterministic
