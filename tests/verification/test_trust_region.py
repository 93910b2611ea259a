"""Every row of the topic passes; and each of these mistakes makes one of its rows fail."""

import pytest

from pgcli.verification import trust_region as topic

from .test_mutations import mutated


def test_every_row_passes():
    rows = list(topic.checks())
    assert [row for row in rows if not row.passed] == []
    assert {row.algo for row in rows} == set(topic.ALGOS)


BASELINE = ("functional.advantages", "variance_minimising_baseline")
MUTATIONS = [
    # module, function, text, what it becomes, the rows that must notice
    ("functional.trust_region", "fisher_vector_product", "+ damping * v", "- damping * v", topic.natural_step),
    ("functional.trust_region", "fisher_vector_product", "flatten(curved) +", "2 * flatten(curved) +", topic.fisher),
    ("functional.trust_region", "conjugate_gradient", "r - alpha", "r + alpha", topic.natural_step),
    ("functional.trust_region", "conjugate_gradient", "p = r + squared", "p = r - squared", topic.natural_step),
    ("functional.trust_region", "NaturalGradient.length", "2 * max_kl", "max_kl", topic.natural_step),
    ("functional.trust_region", "backtracking", " and kl <= max_kl", "", topic.trust_region),
    ("functional.trust_region", "backtracking", "improvement > 0", "improvement < 0", topic.trust_region),
    ("functional.trust_region", "backtracking", "shrink**n", "shrink", topic.trust_region),
    ("functional.policy_loss", "surrogate", "log_probs - old", "old", topic.far_off),
    ("functional.distributions", "categorical_kl", "log_p.exp()", "log_q.exp()", topic.kl_penalty),
    (*BASELINE, "probabilities @ squares", "squares.mean()", topic.best_baseline),
    (*BASELINE, "products.sum() - products", "products.sum()", topic.best_baseline_of_a_batch),
    ("algorithms.reinforce", "Reinforce._scores", "climb @ score", "climb.abs() @ score", topic.best_baseline),
    ("algorithms.reinforce", "Reinforce._scores", "replace(rollout, weights=None)", "rollout", topic.best_baseline),
    ("algorithms.npg", "NPG._step", "-total, terms", "total, terms", topic.natural_step),
    ("algorithms.npg", "NPG.loss", "batch.per_action)\n    total", "batch.weights)\n    total", topic.fisher),
    ("algorithms.npg", "NPG._step", "alpha * self", "2 * alpha * self", topic.natural_step),
    ("algorithms.trpo", "TRPO._step", "old + fraction", "old - fraction", topic.trust_region),
    ("algorithms.trpo", "TRPO._step", "-total, terms", "total, terms", topic.monotonic_improvement),
    ("algorithms.ppo", "PPO.loss", '+ terms["loss/kl_p', '- terms["loss/kl_p', topic.kl_penalty),
]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "path", "text", "other", "rows"), [pytest.param(*m, id=f"{m[1]}: {m[2]} -> {m[3]}") for m in MUTATIONS]
)
def test_a_mistake_is_noticed(module, path, text, other, rows):
    with mutated(module, path, text, other):
        assert any(not row.passed for row in rows())
