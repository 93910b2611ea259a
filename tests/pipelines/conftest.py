"""A pipeline that takes a second: three digits sorted by demonstrations, then by reward."""

import pytest

TINY = (
    "tuned=none, env=sort, env.digits=3, eval.episodes=4, device=cpu, policy.width=8, policy.heads=2, policy.layers=1"
)
SMALL = f"""# Sorting in small
stages:
  - name: taught
    words: [algo=sft, {TINY}, policy.hidden=8, algo.num_demonstrations=16, total_steps=600, eval.every=300]
  - name: paid
    words: [algo=grpo, {TINY}, policy.hidden=8, algo.num_groups=4, algo.group_size=4, total_steps=600, eval.every=200,
            checkpoint.every=200, init=taught, algo.kl.coefficient=0.1, algo.entropy_coefficient=0.1]
report: {{baseline: taught, prompts: 8, best_of: [2, 4], texts: 2}}
"""


@pytest.fixture
def conf(tmp_path):
    """A config folder with `small`; other files can be added."""
    folder = tmp_path / "conf"
    (folder / "pipeline").mkdir(parents=True)
    (folder / "pipeline" / "small.yaml").write_text(SMALL)
    return folder
