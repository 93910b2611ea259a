"""The oracle bites: flip a sign, drop a mask, shift an index, and `pgcli verify` must notice, wherever it is.

Each mutation is a piece of source text that is replaced, the function compiled again, and its code put in the place of
the old one: so every module that has imported the function has the broken one. Noticed means that a row fails, or that
a row is no longer there (a surrogate that has forgotten the ratio has no row on it).
"""

import __future__

import importlib
import inspect
import textwrap
from contextlib import contextmanager
from functools import cache

import pytest

from pgcli.verification import language, policy_gradients, preferences, text_oracle
from pgcli.verification.check import safely

MUTATIONS = [
    # module, function, text, what it becomes, the algorithm whose rows must notice ("": what all share)
    ("functional.returns", "reverse_recurrence", "(~done).to(x.dtype)", "torch.ones_like(x)", "a3c"),
    ("functional.returns", "reverse_recurrence", "carry_t, running)", "carry_t, -running)", "reinforce"),
    ("functional.returns", "reverse_recurrence", "columns[::-1]", "columns", "reinforce"),
    ("functional.returns", "reverse_recurrence", "reversed(x.unbind(1))", "reversed(x.roll(1, 1).unbind(1))", "ppo"),
    ("functional.returns", "trajectory_returns", "gamma ** (", "gamma ** -(", "vanilla_pg"),
    ("functional.returns", "trajectory_returns", "sum(dim=1, keepdim=True)", "cumsum(dim=1)", "vanilla_pg"),
    ("functional.advantages", "gae", ".masked_fill(terminated, 0)", "", "a2c"),
    ("functional.advantages", "gae", "gamma * next_values", "next_values", "ppo"),
    ("functional.advantages", "gae", "- values", "+ values", "a2c"),
    ("functional.advantages", "gae", "gamma * lam", "gamma", "a2c"),
    ("functional.advantages", "leave_one_out", "(k / (k - 1))", "((k - 1) / k)", "rloo"),
    ("functional.advantages", "_group", "above - means", "above + means", "rloo"),
    ("functional.advantages", "group_centre", ".deviations", ".deviations.abs()", "dr_grpo"),
    ("functional.advantages", "group_standardise", "variances.sqrt()", "variances", "grpo"),
    ("functional.advantages", "group_standardise", ") / sizes", ") / (sizes - 1)", "grpo"),
    ("functional.policy_loss", "policy_gradient", "-advantages", "advantages", "rloo"),
    ("functional.policy_loss", "clipped_surrogate", "torch.minimum", "torch.maximum", "ppo"),
    ("functional.policy_loss", "clipped_surrogate", "exp(log_probs - old", "exp(-log_probs + old", "grpo"),
    ("functional.policy_loss", "clipped_surrogate", "log_probs - old_log_probs", "log_probs - log_probs", "ppo"),
    ("functional.policy_loss", "clipped_surrogate", "maximum((1 + high)", "maximum((1 + low)", "grpo"),
    ("functional.policy_loss", "clipped_surrogate", "torch.maximum((1", "torch.minimum((1", "ppo"),
    ("functional.value_loss", "value_mse", "values - returns", "values + returns", "a2c"),
    ("functional.value_loss", "value_clipped", "torch.maximum", "torch.minimum", "ppo"),
    ("functional.value_loss", "value_clipped", "clamp(-clip_range", "clamp(0", "ppo"),
    ("functional.masked", "aggregation_weights", "weights = rows / lengths", "weights = rows", "reinforce"),
    ("functional.masked", "aggregation_weights", "(rows * lengths).sum()", "lengths.sum()", "ppo"),
    ("functional.masked", "aggregation_weights", "rows / constant", "rows * constant", "dr_grpo"),
    ("functional.masked", "aggregation_weights", "row_weights[:, None] if", "row_weights.flip(0)[:, None] if", "rloo"),
    ("functional.masked", "masked_mean", "masked_sum(x, mask, dim) /", "masked_sum(x, mask, dim) *", "reinforce"),
    ("functional.masked", "weighted_sum", "torch.dot(x, weights)", "torch.dot(x, weights.flip(0))", "vanilla_pg"),
    ("functional.distributions", "categorical", "-(log_pi.exp()", "(log_pi.exp()", "a2c"),
    ("functional.distributions", "categorical", "actions.unsqueeze(0)", "1 - actions.unsqueeze(0).clamp(max=1)", "sft"),
    ("functional.kl", "k1", "log_probs - reference_log_probs", "reference_log_probs - log_probs", ""),
    ("functional.kl", "k2", "0.5 * ", "", ""),
    ("functional.kl", "k3", "- opposite", "+ opposite", ""),
    ("functional.kl", "k3", "(reference_log_probs - log_probs)", "(log_probs - reference_log_probs)", ""),
    ("functional.kl", "k3_corrected", "ratio * k3", "ratio.detach() * k3", ""),
    ("functional.dynamic_programming", "MDP.continuing", ".masked_fill(ended, 0)", "", ""),
    ("functional.dynamic_programming", "lookahead", "+ gamma", "- gamma", ""),
    ("functional.dynamic_programming", "backward_induction", "values[-1], gamma", "values[0], gamma", ""),
    ("functional.dynamic_programming", "visits", "found[-1] @ chain", "found[0] @ chain", ""),
    ("functional.dynamic_programming", "softmax_gradient", "- (policy", "+ (policy", ""),
    ("types", "Batch.minibatches", "weights * count for", "weights for", "reinforce"),
    ("types", "Batch.single_actions", ".flatten(0, 1)[keep]", ".flatten(0, 1)[keep.roll(1)]", "a2c"),
    ("algorithms.vanilla_pg", "VanillaPG.prepare", "gamma=self.config.gamma", "gamma=1.0", "vanilla_pg"),
    ("algorithms.vanilla_pg", "VanillaPG.loss", "- self.config.entropy", "+ self.config.entropy", "vanilla_pg"),
    ("algorithms.reinforce", "Reinforce.prepare", "returns - rollout.values", "returns + rollout.values", "reinforce"),
    ("algorithms.reinforce", "Reinforce.prepare", "rollout.done", "rollout.done.roll(-1, 1)", "reinforce"),
    ("algorithms.reinforce", "Reinforce.prepare", "gamma=self.config.gamma", "gamma=self.config.gamma**2", "reinforce"),
    ("algorithms.reinforce", "Reinforce.loss", "batch.weights)", "batch.per_action)", "reinforce"),
    ("algorithms.a2c", "A2C.prepare", "rollout.terminated, ", "rollout.done, ", "a2c"),
    ("algorithms.a2c", "A2C.prepare", "advantages + rollout.values", "advantages", "a2c"),
    ("algorithms.a2c", "A2C.loss", "- self.config.entropy", "+ self.config.entropy", "a2c"),
    ("algorithms.a3c", "A3C.loss", "- self.config.entropy", "+ self.config.entropy", "a3c"),
    ("algorithms.a3c", "A3C.prepare", "rollout.terminated, ", "rollout.done, ", "a3c"),
    ("algorithms.ppo", "PPO.prepare", "rollout.next_values", "rollout.values.roll(1, 1)", "ppo"),
    ("algorithms.ppo", "PPO.loss", "-weighted_sum(objective", "weighted_sum(objective", "ppo"),
    ("algorithms.ppo", "PPO.loss", "+ c.value_coefficient", "- c.value_coefficient", "ppo"),
    ("algorithms.ppo", "PPO.loss", "value_error, batch.per_action", "value_error, batch.weights", "ppo"),
    ("algorithms._kl", "KL.returns", "masked_sum(rollout.rewards,", "masked_sum(-rollout.rewards,", "rloo"),
    ("algorithms.rloo", "RLOO.prepare", "leave_one_out(returns, rollout.groups)", "returns", "rloo"),
    ("algorithms.rloo", "RLOO.loss", "batch.weights)", "batch.per_action)", "rloo"),
    ("algorithms.grpo", "GRPO.prepare", "group_standardise", "batch_standardise", "grpo"),
    ("algorithms.grpo", "GRPO.loss", "-weighted_sum(self", "weighted_sum(self", "grpo"),
    ("algorithms.grpo", "GRPO.objective", "row_mean(old, batch.mask)", "old", "gspo"),
    ("functional.masked", "row_mean", "masked_mean", "masked_sum", "gspo"),
    ("functional.policy_loss", "clipped_weight", "clamp(1 - low, 1 + high)", "clamp(1 - high, 1 + low)", "cispo"),
    ("functional.policy_loss", "clipped_weight", "(weight * advantages).detach()", "(weight * advantages)", "cispo"),
    ("functional.policy_loss", "gated_surrogate", "advantages > 0", "advantages < 0", "sapo"),
    ("functional.policy_loss", "gated_surrogate", "4 / tau", "4", "sapo"),
    ("functional.advantages", "group_relative", "1 / means", "1 / means.sqrt()", "maxrl"),
    ("algorithms.sft", "SFT.prepare", "torch.ones_like", "-torch.ones_like", "sft"),
]  # fmt: skip


OF_TEXTS = [
    # The same, of the rows on completions.
    ("functional.kl", "k1", "log_probs - reference_log_probs", "reference_log_probs - log_probs", "reinforce"),
    ("functional.kl", "k2", "0.5 * ", "", "rloo"),
    ("functional.kl", "k3", "(reference_log_probs - log_probs)", "(log_probs - reference_log_probs)", "grpo"),
    ("functional.kl", "k3_corrected", "ratio * k3", "ratio.detach() * k3", "ppo"),
    ("functional.kl", "k3_corrected", "log_probs - old_log_probs.detach()", "old_log_probs - log_probs", "grpo"),
    ("functional.masked", "masked_sum", "torch.where(mask, x, 0)", "x", ""),
    ("functional.masked", "aggregation_weights", "torch.where(mask, weights, 0)", "weights.expand_as(mask)", "ppo"),
    ("functional.masked", "aggregation_weights", "(mask, weights, 0)", "(mask[:, [1, 2, 0]], weights, 0)", "sft"),
    ("functional.masked", "aggregation_weights", "mask.sum(dim=1", "mask[:, :-1].sum(dim=1", "sft"),
    ("functional.advantages", "leave_one_out", "deviations * (k / (k - 1))[members]", "deviations", "rloo"),
    ("functional.advantages", "_group", "returns - ", "returns.flip(0) - ", "grpo"),
    ("functional.completions", "tilt", "rewards / beta", "rewards", ""),
    ("functional.completions", "tilt", "log_reference + rewards", "log_reference - rewards", ""),
    ("functional.completions", "tilt", "log_reference + ", "", ""),
    ("environments.text.oracle", "enumerate_completions", "is_end.long()) == 0", "is_end.long()) <= 1", ""),
    ("policies.choosing", "_chosen", " / temperature", "", ""),
    ("policies.transformer", "Transformer._evaluate", "actions[:, :-1]", "actions[:, 1:]", "reinforce"),
    ("policies.transformer", "Transformer._evaluate", "chooses(hidden,", "chooses(hidden.roll(1, 1),", ""),
    ("algorithms._kl", "KL.rewards", "rollout.rewards - ", "rollout.rewards + ", "reinforce"),
    ("algorithms._kl", "KL.returns", "returns - masked_sum", "returns + masked_sum", "rloo"),
    ("algorithms._kl", "KL._prices", "self.coefficient * ", "", "reinforce"),
    ("algorithms._kl", "KL._prices", "(own, reference, own)", "(reference, own, own)", "ppo"),
    ("algorithms._kl", "KL.loss", "self.coefficient * weighted", "-self.coefficient * weighted", "grpo"),
    ("algorithms._kl", "KL.loss", "batch.weights", "batch.per_action", "reinforce"),
    ("algorithms._kl", "KL.loss", "batch.log_probs)", "log_probs)", "ppo"),
    ("algorithms._kl", "KL.loss", "(log_probs, batch.reference_log_probs, ", "(batch.reference_log_probs, log_probs, ",
     "rloo"),
    ("algorithms.reinforce", "Reinforce.prepare", "self.kl.rewards(rollout)", "rollout.rewards", "reinforce"),
    ("algorithms._kl", "KL.returns", "(rollout.rewards, rollout.mask,", "(rollout.rewards, rollout.mask.roll(1, 1),",
     "rloo"),
    ("algorithms.rloo", "RLOO.prepare", "leave_one_out(returns, rollout.groups)", "returns", "rloo"),
    ("algorithms.grpo", "GRPO.loss", "total + terms", "total - terms", "grpo"),
    ("algorithms.ppo", "PPO.prepare", "rollout.terminated, ", "rollout.truncated, ", "ppo"),
    ("functional.policy_loss", "clipped_weight", ".clamp(1 - low, 1 + high)", "", "cispo"),
    ("functional.policy_loss", "clipped_weight", "(weight * advantages).detach()", "weight * advantages", "cispo"),
    ("functional.policy_loss", "gated_surrogate", "4 / tau", "1 / tau", "sapo"),
    ("functional.advantages", "group_relative", "1 / means", "means", "maxrl"),
    ("functional.masked", "row_mean", "masked_mean(x, mask, dim=1)", "masked_sum(x, mask, dim=1)", "gspo"),
    ("functional.masked", "aggregation_weights", "rows / constant", "rows", "dr_grpo"),
    ("functional.masked", "aggregation_weights", "weights = rows / lengths", "weights = rows", "grpo"),
    ("functional.masked", "aggregation_weights", "(rows * lengths).sum()", "lengths.sum()", "dapo"),
    ("algorithms.grpo", "GRPO.prepare", "mask=rollout.mask & finished", "mask=rollout.mask", "grpo"),
    ("algorithms.grpo", "GRPO.objective", "row_mean(old, batch.mask)", "old", "gspo"),
    ("algorithms.grpo", "GRPO.objective", "positive=c.gate.positive", "positive=c.gate.negative", "sapo"),
    ("functional.advantages", "gae", "deltas.masked_fill(~mask, 0)", "deltas", "ppo"),
    ("algorithms.ppo", "PPO.prepare", "mask=rollout.mask", "mask=None", "ppo"),
    ("functional.advantages", "best_of_each_group", '"amax"', '"amin"', "raft"),
    ("algorithms.raft", "RAFT.prepare", "rollout.mask & kept[:, None]", "rollout.mask", "raft"),
    ("algorithms.raft", "RAFT.loss", "batch.weights)", "batch.per_action.flip(0))", "raft"),
    ("algorithms.sft", "SFT.prepare", "torch.ones_like(rollout.rewards)", "rollout.rewards + 0.5", "sft"),
    ("algorithms.sft", "SFT.prepare", '"token_mean"', '"sequence_mean"', "pretrain"),
    ("algorithms.sft", "SFT.loss", "batch.weights)", "batch.weights.flip(1))", "sft"),
]  # fmt: skip
OF_PREFERENCES = [
    ("functional.preference_loss", "bradley_terry", "chosen - rejected", "rejected - chosen", "reward_model"),
    ("functional.preference_loss", "bradley_terry", "- margin", "+ margin", "reward_model"),
    ("functional.preference_loss", "bradley_terry", "(chosen + rejected)", "(chosen - rejected)", "reward_model"),
    ("functional.preference_loss", "dpo", "beta * (chosen - rejected)", "chosen - rejected", "dpo"),
    ("functional.preference_loss", "dpo", "chosen - rejected", "rejected - chosen", "online_dpo"),
    ("functional.preference_loss", "dpo", "-(1 - label_smoothing) *", "-", "cdpo"),
    ("functional.preference_loss", "dpo", "logsigmoid(-h)", "logsigmoid(h)", "cdpo"),
    ("functional.preference_loss", "ipo", "(2 * beta)", "beta", "ipo"),
    ("functional.preference_loss", "ipo", "- 1 /", "+ 1 /", "ipo"),
    ("functional.preference_loss", "simpo", "- gamma", "+ gamma", "simpo"),
    ("functional.preference_loss", "log_odds", "torch.expm1(averaged)", "torch.exp(averaged)", "orpo"),
    ("functional.preference_loss", "odds_ratio", "log_odds(chosen) -", "log_odds(chosen) +", "orpo"),
    ("functional.preference_loss", "apo_zero", "-beta", "beta", "apo_zero"),
    ("functional.preference_loss", "apo_down", "beta * chosen", "-beta * chosen", "apo_down"),
    ("functional.preference_loss", "kto", "log_ratios - reference_point", "log_ratios", "kto"),
    ("functional.preference_loss", "kto", "desirable, desirable_weight", "~desirable, desirable_weight", "kto"),
    ("functional.preference_loss", "kto_reference_point", ".clamp(min=0)", "", "kto"),
    ("functional.preference_loss", "correctness", "-right *", "right *", "outcome_reward"),
    ("functional.preference_loss", "correctness", "logsigmoid(-scores)", "logsigmoid(scores)", "process_reward"),
    ("algorithms.outcome_reward", "OutcomeReward.loss", "batch.right), over=\"known\"", "batch.right), over=\"tokens\"",
     "outcome_reward"),
    ("functional.masked", "masked_mean", " / mask.sum(dim).clamp(min=1)", "", "dpo_norm"),
    ("functional.masked", "last_of", "arange(mask.shape[1]", "arange(-1, mask.shape[1] - 1", "reward_model"),
    ("collectors.learned_reward", "last_score", "scores.gather(2, last)", "scores[:, :, -1:]", "reward_model"),
    ("algorithms.dpo", "DPO._measured", "log_probs - texts.reference_log_probs", "log_probs", "dpo"),
    ("algorithms.dpo", "DPO._measured", "log_probs - texts.ref", "-log_probs + texts.ref", "ipo"),
    ("algorithms.dpo", "DPO._measured", "measured, texts.mask,", "measured, texts.mask * (texts.actions != 3),", "dpo"),
    ("algorithms.dpo", "DPO._measured", "(measured, texts.mask,", "(measured, texts.mask.roll(1, -1),", "apo_zero"),
    ("algorithms.dpo", "DPO._measured", "else masked_sum", "else masked_mean", "dpo"),
    ("algorithms.dpo", "DPO._measured", "if self.config.length_norm", "if not self.config.length_norm", "dpo_norm"),
    ("algorithms.dpo", "DPO.loss", "chosen, rejected = self._m", "rejected, chosen = self._m", "simpo"),
    ("algorithms.dpo", "DPO.loss", "loss + c.likelihood", "loss - c.likelihood", "orpo"),
    ("algorithms.dpo", "DPO.loss", "loss = batch.mean(losses, over=\"pairs\")", "loss = losses.sum()", "dpo"),
    ("algorithms.dpo", "DPO.loss", "new.log_probs[: len(batch)]", "new.log_probs[len(batch) :]", "orpo"),
    ("algorithms.kto", "KTO.loss", "new.log_probs - texts.ref", "-new.log_probs + texts.ref", "kto"),
    ("algorithms.kto", "KTO.prepare", "batch.mismatched", "batch.texts", "kto"),
    ("algorithms.kto", "KTO._log_ratios", "- texts.reference_log_probs", "", "kto"),
    ("algorithms.reward_model", "RewardModel.loss", "chosen, rejected = ", "rejected, chosen = ", "reward_model"),
]  # fmt: skip
TOPICS = {"": policy_gradients, "of texts": language, "of preferences": preferences}


def rows(option, topic=""):
    module = TOPICS[topic]
    if option:
        return module.checks([option])
    return (row for shared in module.SHARED for row in safely("", shared))


@cache
def quantities(option, topic):
    """The rows of the code as it is, which all pass."""
    found = list(rows(option, topic))
    assert all(row.passed for row in found)
    return [row.quantity for row in found]


def locate(module, path):
    found = importlib.import_module(f"pgcli.{module}")
    for name in path.split("."):
        found = inspect.getattr_static(found, name)
    if isinstance(found, staticmethod):
        return found.__func__
    return found.fget if isinstance(found, property) else found


@contextmanager
def mutated(module, path, text, other):
    function = locate(module, path)
    source = textwrap.dedent(inspect.getsource(function))
    source = source.removeprefix("@property\n").removeprefix("@staticmethod\n")
    body = source.rpartition('"""\n')[2]  # the formula in the docstring may hold the same text
    assert body.count(text) == 1, f"{module}.{path} has {body.count(text)} times: {text}"
    source = source[: -len(body)] + body.replace(text, other)
    names = {}
    code = compile(source, path, "exec", flags=__future__.annotations.compiler_flag, dont_inherit=True)
    exec(code, dict(function.__globals__), names)
    original = function.__code__
    function.__code__ = names[function.__name__].__code__
    text_oracle.language.cache_clear()
    try:
        yield
    finally:
        function.__code__ = original
        text_oracle.language.cache_clear()  # what was made of the broken code


@pytest.mark.parametrize(
    ("topic", "module", "path", "text", "other", "option"),
    [
        pytest.param(topic, *m, id=f"{m[1]}: {m[2]} -> {m[3]}, {topic}")
        for topic, mutations in (("", MUTATIONS), ("of texts", OF_TEXTS), ("of preferences", OF_PREFERENCES))
        for m in mutations
    ],
)
def test_a_mistake_is_noticed(topic, module, path, text, other, option):
    expected = quantities(option, topic)
    seen = []
    with mutated(module, path, text, other):
        for row in rows(option, topic):
            assert not row.note.startswith("could not be checked"), "a crash is no proof that a number is looked at"
            if not row.passed:
                return
            seen.append(row.quantity)
    assert seen != expected, "no row noticed"


def test_there_are_many_places_and_each_is_its_own():
    assert len({mutation[:4] for mutation in MUTATIONS}) == len(MUTATIONS) > 50
    assert {module.partition(".")[0] for module, *_ in MUTATIONS} == {"functional", "algorithms", "types"}


def test_what_is_put_back_passes():
    before = locate("functional.advantages", "gae").__code__
    with mutated("functional.advantages", "gae", "- values", "+ values"):
        assert locate("functional.advantages", "gae").__code__ is not before
    assert all(row.passed for row in rows("a2c"))


def test_a_mutation_whose_text_is_gone_says_so():
    with pytest.raises(AssertionError, match=r"functional\.advantages\.gae has 0 times: - the values"):
        mutated("functional.advantages", "gae", "- the values", "").__enter__()
