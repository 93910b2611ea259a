"""One step of TRL on the same completions has the same gradient. Needs the extra `llm`, and trl and datasets."""

import runpy
from pathlib import Path

import pytest
import torch

from pgcli.experiment.build import build
from pgcli.experiment.config import compose
from pgcli.policies import llama

trl = pytest.importorskip("trl", reason="trl is not installed")
transformers = pytest.importorskip("transformers", reason="the extra `llm` is not installed")
datasets = pytest.importorskip("datasets", reason="datasets is not installed")

PEER = Path(__file__).parents[2] / "benchmarks" / "peer_trl_grpo.py"
ROWS, NEW = 32, 32
KL = ("algo.kl.coefficient=0.1", "algo.kl.placement=loss")
# Our settings, and TRL's for the same loss.
LOSSES = {
    "grpo": (("algo.aggregation=sequence_mean",), {"loss_type": "grpo"}),
    "dapo": (("algo.aggregation=token_mean",), {"loss_type": "dapo"}),
    "dapo, clipped higher, with the published k3": (
        ("algo.aggregation=token_mean", "algo.clip.high=0.28", *KL, "algo.kl.estimator=k3"),
        {"loss_type": "dapo", "epsilon_high": 0.28, "beta": 0.1, "use_bias_correction_kl": False},
    ),
    "dapo, with the corrected k3": (
        ("algo.aggregation=token_mean", *KL, "algo.kl.estimator=k3_corrected"),
        {"loss_type": "dapo", "beta": 0.1, "use_bias_correction_kl": True},
    ),
    "dr_grpo": (
        ("algo.aggregation=constant", f"algo.aggregation_length={NEW}"),
        {"loss_type": "dr_grpo", "max_completion_length": NEW},
    ),
}  # fmt: skip


POLICIES = {
    "hf": ("policy=hf",),
    "transformer": (
        "policy=transformer", "policy.width=64", "policy.layers=2", "policy.heads=4", "policy.hidden=256",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("peer")
    with torch.random.fork_rng():
        runpy.run_path(str(PEER))["write"](made)
    return made


def ours(folder, words):
    """A policy of the folder's weights, a batch that a somewhat different policy has written, and the gradient, by
    Llama's names.
    """
    config = compose([
        "algo=grpo", "env=jsonl", "tuned=none", "device=cpu", f"policy.path={folder}",
        f"env.path={folder / 'prompts.jsonl'}", f"env.reward={folder / 'reward.py'}:score", f"env.tokenizer={folder}",
        f"env.completion_length={NEW}", f"algo.num_groups={ROWS // 8}", "algo.group_size=8", *words,
    ])  # fmt: skip
    parts = build(config)
    rollout = parts.collector.collect(parts.policy)
    batch = parts.algorithm.prepare(rollout)
    noise = torch.randn(2, *batch.mask.shape, generator=torch.Generator().manual_seed(0))
    # Ratios on both sides of the clip range, and a reference elsewhere.
    batch.log_probs = batch.log_probs + 0.3 * noise[0]
    if batch.reference_log_probs is not None:
        batch.reference_log_probs = batch.reference_log_probs + 0.5 * noise[1]
    for parameter in parts.policy.parameters():
        parameter.grad = None
    total, _ = parts.algorithm.loss(parts.policy.once_differentiable(), batch, None)
    total.backward()
    found = {name.removeprefix("model."): p.grad for name, p in parts.policy.named_parameters()}
    if config.policy.name == "transformer":
        names = llama.tensor_names(config.policy.layers)
        found = {
            name: piece for own, theirs in names
            for name, piece in zip(theirs, found[own].chunk(len(theirs)), strict=True)
        }  # fmt: skip
        # Llama's embedding has a padding index, whose row never learns; here the token may be written like any other.
        found["model.embed_tokens.weight"][parts.environment.spec.pad] = 0
    return batch, total, found


def theirs(folder, batch, settings):
    arguments = trl.GRPOConfig(**{
        "output_dir": str(folder / "trl"), "per_device_train_batch_size": ROWS, "num_generations": 8, "use_cpu": True,
        "bf16": False, "gradient_checkpointing": False, "report_to": "none", "max_completion_length": NEW, **settings,
    })  # fmt: skip
    trainer = trl.GRPOTrainer(
        model=transformers.LlamaForCausalLM.from_pretrained(folder), args=arguments, reward_funcs=len,
        train_dataset=datasets.Dataset.from_list([{"prompt": "1="}] * ROWS),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder),
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    prompts = batch.observations["prompt"]
    lengths = batch.observations["lengths"][:, None] if "lengths" in batch.observations else prompts.shape[1]
    inputs = {
        "prompt_ids": prompts,
        "prompt_mask": (torch.arange(prompts.shape[1]) >= prompts.shape[1] - lengths).long().expand_as(prompts),
        "completion_ids": batch.actions, "completion_mask": batch.mask.long(), "advantages": batch.advantages[:, 0],
        "old_per_token_logps": batch.log_probs, "ref_per_token_logps": batch.reference_log_probs,
        "num_items_in_batch": batch.mask.sum(),
    }  # fmt: skip
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return loss, {name: p.grad for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize(("words", "settings"), LOSSES.values(), ids=LOSSES)
def test_the_loss_and_its_gradient_are_those_of_trl(folder, policy, words, settings):
    batch, total, own = ours(folder, (*policy, *words))
    assert batch.mask.sum(1).unique().numel() > 1, "completions of several lengths"
    loss, other = theirs(folder, batch, settings)
    torch.testing.assert_close(total, loss, atol=1e-5, rtol=1e-5)
    assert own.keys() == other.keys()
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, other[name], atol=1e-5, rtol=1e-4, msg=name)
    assert sum(gradient.square().sum() for gradient in own.values()) > 1e-4
