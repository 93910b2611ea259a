"""A trained reward in the task's place: what fits, what is refused, and what is reported."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pgcli.collectors.learned_reward import Judge
from pgcli.errors import InputError
from pgcli.experiment import audit, evaluate, export, train
from pgcli.experiment.build import build
from pgcli.experiment.config import compose, load
from pgcli.experiment.fitting import check_critic
from pgcli.experiment.sources import Sources, Trained, Weights
from pgcli.policies.hf import HF
from pgcli.runs import checkpoint
from pgcli.types import Stochastic

from .conftest import TINY, TRANSFORMER

pytestmark = pytest.mark.usefixtures("_no_power_cut")

SORT = ("env=sort", *TRANSFORMER, "env.pairs=24")
SHORT = ("device=cpu", "tuned=none", "judge.calibration=32")


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    words = ("algo=reward_model", *SORT, "algo.ensemble=2", "algo.num_pairs=5")
    return train(*TINY, "total_steps=200", *words, run_dir=tmp_path_factory.mktemp("runs") / "judge", quiet=True)


def trained(run):
    state = checkpoint.load_newest(run.path / "checkpoints", memory=False).state["policy"]
    return Trained(load(run.path), Weights(state))


def parts(judge, *words):
    config = compose([*SHORT, *words, f"reward={judge.path}"])
    return build(config, Sources(reward=trained(judge)))


def test_the_trained_reward_is_trained_and_the_tasks_own_is_reported(judge):
    built = parts(judge, "algo=rloo", *SORT, "algo.num_groups=4", "algo.group_size=2")
    rollout = built.collector.collect(built.policy)
    found = rollout.aux
    cut = rollout.truncated.any(1)
    assert found["reward"][~cut].tolist() == found["proxy"][~cut].tolist()
    assert set(found["gold"].tolist()) <= {0, 1}
    assert {f"reward/{name}" for name in ("proxy", "gold", "gap", "disagreement", "exact_match")} <= set(
        rollout.metrics
    )
    assert set(found) - {"reward"} <= set(built.environment.COMPONENTS)


def test_a_completion_that_the_limit_cut_earns_what_the_task_allows_whoever_judges(judge):
    built = parts(judge, "algo=rloo", *SORT, "env.cut_reward=-0.5", "judge.calibration=2000")
    found = built.evaluator.play(built.policy, list(range(50)), np.random.default_rng(0))
    cut, aux = found.truncated.any(1), found.aux
    assert cut.any()
    most = (-0.5 - built.frozen["reward"].gold_mean) / built.frozen["reward"].gold_std  # in the model's unit
    assert_close(aux["reward"][cut], aux["proxy"][cut].clamp(max=float(most)))
    assert (aux["reward"] < aux["proxy"])[cut].any()


def test_on_completions_of_the_initial_policy_the_scores_have_mean_0_and_deviation_1(judge):
    built = parts(judge, "algo=rloo", *SORT, "judge.calibration=2000")
    found = built.evaluator.play(built.policy, list(range(2000)), np.random.default_rng(0))
    assert abs(found.aux["proxy"].mean()) < 0.1
    # Two members that agree in part: the deviation of their mean is below one.
    assert 0.5 < found.aux["proxy"].std() < 1.1


def test_a_task_without_a_reward_has_the_unit_of_its_judge(judge, monkeypatch):
    monkeypatch.setattr("pgcli.environments.text.sort.Sort.has_reward", False, raising=False)
    built = parts(judge, "algo=rloo", *SORT, "env.cut_reward=-0.5", "judge.calibration=200")
    found = built.evaluator.play(built.policy, list(range(50)), np.random.default_rng(0))
    cut, aux = found.truncated.any(1), found.aux
    assert_close(aux["reward"][cut], aux["proxy"][cut].clamp(max=-0.5))
    assert not {"gold", "gap"} & {*aux, *built.environment.COMPONENTS}


def test_a_run_that_goes_on_keeps_the_unit_of_its_reference(judge, tmp_path):
    words = ("algo=sft", *SORT, "algo.num_demonstrations=64", "algo.learning_rate=1e-2", "total_steps=30_000")
    reference = train(*TINY, *words, run_dir=tmp_path / "sft", quiet=True)
    config = compose([*SHORT, "algo=rloo", *SORT, "algo.kl.coefficient=0.1", "judge.calibration=2000"])
    built = build(config, Sources(reward=trained(judge), reference=trained(reference)))
    means = {}
    for name, policy in (("reference", built.frozen["reference"]), ("initial", built.policy)):
        means[name] = built.evaluator.play(policy, list(range(2000)), np.random.default_rng(0)).aux["proxy"].mean()
    assert abs(means["reference"]) < 0.1
    assert abs(means["initial"]) > 0.15


def test_a_combination_that_distrusts_never_pays_more_than_the_mean(judge):
    found = {}
    for combine in ("mean", "min", "mean_minus_variance"):
        built = parts(judge, "algo=rloo", *SORT, f"judge.combine={combine}", "judge.pessimism=2.0")
        found[combine] = built.evaluator.play(built.policy, list(range(50)), np.random.default_rng(0)).aux
    mean, spread = found["mean"]["proxy"], found["mean"]["disagreement"]
    # Of two members the deviation is half their distance: the smaller one is the mean less it.
    assert found["min"]["proxy"].tolist() == pytest.approx((mean - spread).tolist(), abs=1e-5)
    assert found["mean_minus_variance"]["proxy"].tolist() == pytest.approx((mean - 2 * spread**2).tolist(), abs=1e-5)


@pytest.mark.parametrize("of_reference", [False, True])
def test_a_critic_begins_as_its_judge_in_the_unit_of_the_rewards(judge, of_reference):
    words = [f"algo.kl.coefficient={0.1 * of_reference}", "algo.num_episodes=16", "policy.critic=reward_model"]
    built = parts(judge, "algo=ppo", "env=sort", "policy=nano", "env.pairs=24", *words)  # wider than the judge
    own = built.frozen["reward"]
    assert (own.mean[0] != 0) & (own.std[0] != 1), "it is calibrated"
    rollout = built.collector.collect(built.policy)
    scores = (own.scorer(rollout.observations, rollout.actions) - own.mean) / own.std
    # [.., t] of the scores has read action t, V(s_t) only the actions before it. The first of two members.
    assert_close(rollout.values[:, 1:], scores[0, :, :-1], atol=1e-5, rtol=1e-5)
    before = own.scorer.members[0].embedding.clone()
    built.algorithm.update(rollout)
    assert not torch.equal(built.policy.critic_trunk.embedding, before)
    assert torch.equal(own.scorer.members[0].embedding, before)


def test_a_run_with_a_critic_made_of_its_judge_is_evaluated_exported_and_built_upon(judge, tmp_path):
    words = ("algo=ppo", "env=sort", "policy=nano", "env.pairs=24", "algo.num_episodes=16", "total_steps=200")
    judged = (*words, f"reward={judge.path}", "judge.calibration=32")
    first = train(*TINY, *judged, "policy.critic=reward_model", run_dir=tmp_path / "first", quiet=True)
    assert evaluate(first.path, episodes=4)["episodes"] == 4
    assert "model.safetensors" in export(first.path, tmp_path / "exported")["files"]
    assert all(check.ok is not False for check in audit(first.path))
    for kind in ("shared", "separate", "reward_model"):
        given = (f"init={first.path}", f"policy.critic={kind}")
        again = train(*TINY, *judged, *given, run_dir=tmp_path / kind, quiet=True)
        assert again.status == "completed"
        forth = ("policy.critic=reward_model", f"init={again.path}")
        assert train(*TINY, *judged, *forth, run_dir=tmp_path / f"{kind}-and-back", quiet=True).status == "completed"


def test_a_critic_that_cannot_be_made_of_a_judge_is_refused_in_one_line(judge, tmp_path):
    critic = "policy.critic=reward_model"
    with pytest.raises(InputError, match=r"critic=reward_model: algo=grpo has no critic with these settings; leave it"):
        parts(judge, "algo=grpo", *SORT, critic)
    with pytest.raises(InputError, match=r"critic=reward_model: algo=reinforce has no critic with these settings"):
        parts(judge, "algo=reinforce", "algo.baseline=mean", *SORT, critic)
    with pytest.raises(InputError, match=r"critic=reward_model: there is no reward model: name its run with reward="):
        build(compose([*SHORT, "algo=ppo", *SORT, critic]))
    words = ("algo=outcome_reward", *SORT, "algo.num_completions=10", "total_steps=30")
    outcome = train(*TINY, *words, run_dir=tmp_path / "outcome", quiet=True)
    with pytest.raises(InputError, match=r"the rewards of reward=.* are probabilities, .* run of algo=reward_model"):
        parts(outcome, "algo=ppo", *SORT, critic)
    with pytest.raises(InputError, match=r"only policy=transformer starts its critic from a reward model"):
        compose([*SHORT, "algo=ppo", *SORT[:1], "policy=hf", "policy.path=models/x", critic])
    config = compose([*SHORT, "algo=ppo", *SORT, critic, f"reward={judge.path}"])
    theirs = trained(judge)
    other = theirs.config.model_copy(update={"policy": HF.Config.model_construct(name="hf")})
    own = Judge(torch.nn.Linear(1, 1), "preference", members=1)
    with pytest.raises(InputError, match=r"has policy=hf, of which policy=transformer can make no critic"):
        check_critic(config, Stochastic(critic=True), theirs._replace(config=other), own)


def test_what_cannot_judge_is_refused_in_one_line(judge, tmp_path):
    words = ("algo=sft", *SORT, "algo.num_demonstrations=4", "total_steps=30")
    other = train(*TINY, *words, run_dir=tmp_path / "sft", quiet=True)
    with pytest.raises(InputError, match=r"is a run of sft, not of a reward model: algo=reward_model"):
        parts(other, "algo=rloo", *SORT)
    with pytest.raises(InputError, match=r"judges texts; env=cartpole is stepped and has its own reward"):
        parts(judge, "algo=rloo", "env=cartpole")
    with pytest.raises(InputError, match=r"reads the vocabulary of env=sort, not that of story"):
        parts(judge, "algo=rloo", "env=story")
    words = ("algo=reward_model", *SORT, "algo.num_pairs=5", "total_steps=30")
    alone = train(*TINY, *words, run_dir=tmp_path / "alone", quiet=True)
    with pytest.raises(InputError, match=r"has one member, which cannot disagree"):
        parts(alone, "algo=rloo", *SORT, "judge.stop_disagreement=1")


def test_a_judge_of_another_size_labels_what_a_small_model_wrote(judge, tmp_path):
    # The pairs are written by the run `reference`, whose size is its own; the model that learns to judge has another.
    words = ("algo=sft", *SORT, "algo.num_demonstrations=4", "total_steps=30")
    writer = train(*TINY, *words, run_dir=tmp_path / "writer", quiet=True)
    wider = ("env=sort", "policy.width=16", "policy.heads=2", "policy.layers=1", "policy.hidden=8", "env.pairs=24")
    words = ("algo=reward_model", *wider, "algo.num_pairs=5", "total_steps=100", f"reference={writer.path}")
    run = train(*TINY, *words, f"reward={judge.path}", "judge.calibration=32", run_dir=tmp_path / "rm", quiet=True)
    assert run.info["summary"]["eval/return_mean"] is not None
    assert parts(run, "algo=rloo", *SORT).frozen["reward"].scorer.heads.shape[1] == 16


@pytest.mark.parametrize("algo", ["raft", "sft"])
def test_a_run_that_names_a_reference_is_compared_with_it_whatever_its_algorithm(algo, tmp_path):
    words = ("algo=sft", *SORT, "algo.num_demonstrations=4", "total_steps=30")
    reference = train(*TINY, *words, run_dir=tmp_path / "reference", quiet=True)
    words = (f"algo={algo}", *SORT, "total_steps=300", f"reference={reference.path}")
    run = train(*TINY, *words, run_dir=tmp_path / algo, quiet=True)
    logged = {key for key in ("eval/kl", "eval/win_rate", "kl/exact") if len(run.points(key)[1])}
    assert logged >= {"eval/kl", "eval/win_rate"}
    assert ("kl/exact" in logged) == (algo == "raft")  # demonstrations are not the policy's own doing


def test_a_reference_that_nothing_is_compared_with_is_refused(judge):
    with pytest.raises(InputError, match=r"reference=.*: algo=dqn does not compare its policy with another"):
        build(compose([*SHORT, "algo=dqn", "env=cartpole", f"reference={judge.path}"]))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("algo", ["grpo", "online_dpo"])
def test_a_reference_of_equal_weights_is_no_nat_away_at_any_temperature(algo, temperature):
    few = {
        "grpo": ["algo.num_groups=2", "algo.group_size=2", "algo.kl.measure=true"],
        "online_dpo": ["algo.num_pairs=4"],
    }
    words = [*SHORT, f"algo={algo}", *SORT, *few[algo]]
    first = compose([*words, "policy.temperature=1"])
    weights = build(first).policy.state_dict()
    config = compose([*words, f"policy.temperature={temperature}", "reference=somewhere"])
    parts = build(config, Sources(init=Weights(weights), reference=Trained(first, Weights(weights))))
    found = parts.collector.collect(parts.policy).metrics
    assert found["kl/exact"] == pytest.approx(0, abs=1e-5)
    assert found["kl/k2"] == pytest.approx(0, abs=1e-8)
    parts.frozen["reference"].config = first.policy  # at its own temperature it is another policy
    assert parts.collector.collect(parts.policy).metrics["kl/exact"] > 0.3
