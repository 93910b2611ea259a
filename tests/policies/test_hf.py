"""Models are made here, tiny and random, in the layout that any other has: nothing is downloaded."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pgcli.collectors.completions import decode
from pgcli.errors import InputError
from pgcli.experiment import evaluate, resume, train
from pgcli.experiment.build import build
from pgcli.experiment.config import compose
from pgcli.experiment.policy import initialise
from pgcli.experiment.sources import Weights
from pgcli.policies.hf import HF, LoRA
from pgcli.seeding import uniforms
from pgcli.types import Scores, Stochastic, TextSpec

transformers = pytest.importorskip("transformers", reason="the extra `llm` is not installed")
pytest.importorskip("peft", reason="the extra `llm` is not installed")

SORT = TextSpec(vocabulary=14, prompt_length=8, completion_length=7, end=12, pad=13)
LORA = LoRA(rank=4, alpha=8, targets="all-linear")
SHAPE = {
    "vocab_size": 14, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 32, "pad_token_id": 13, "eos_token_id": 12, "bos_token_id": 11,
    "attention_dropout": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for name, config, model in (
        ("llama", transformers.LlamaConfig, transformers.LlamaForCausalLM),
        ("qwen3", transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    ):
        made[name] = tmp_path_factory.mktemp(name)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            extra = {"head_dim": 16, "tie_word_embeddings": True} if name == "qwen3" else {}
            made_model = model(config(**SHAPE, **extra))
            with torch.no_grad():  # far from uniform, so that a difference shows
                for parameter in made_model.parameters():
                    parameter.mul_(4) if parameter.dim() == 2 else parameter.uniform_(0.5, 1.5)
            made_model.save_pretrained(made[name])
    return made


@pytest.fixture(params=["llama", "qwen3"])
def folder(folders, request):
    return folders[request.param]


def settings(folder, **changes):
    values = {"name": "hf", "path": str(folder), "temperature": 1.0, "critic": "shared", "dtype": "float32"}
    return HF.Config(**values | {"gradient_checkpointing": False, "lora": None} | changes)


def make(folder, needs=None, seed=0, spec=SORT, **changes):
    needs = needs or Stochastic(critic=True)
    return HF.make(spec, settings(folder, **changes), needs, torch.Generator().manual_seed(seed))


def tokens(n, length, seed=0):
    return torch.randint(14, (n, length), generator=torch.Generator().manual_seed(seed))


INPUTS = {"prompt": tokens(4, 8)}, tokens(4, 7, seed=1)


def shaken(policy):
    """Adapters and heads that are no longer zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return policy


def headed(policy):
    """A critic starts at zero, where no test could see what it reads."""
    torch.nn.init.normal_(policy.critic, generator=torch.Generator().manual_seed(0))
    return policy


def test_the_log_probs_are_those_of_the_model_itself(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    observations, actions = INPUTS
    with torch.no_grad():
        whole = model(torch.cat([observations["prompt"], actions], 1), output_hidden_states=True)
    policy = headed(make(folder, temperature=2.0))
    found = policy(observations, actions)
    # Position 7 has read the prompt of 8 tokens and says what action 0 is.
    torch.testing.assert_close(found.distribution.logits, whole.logits[:, 7:-1] / 2, atol=1e-5, rtol=0)
    expected = torch.log_softmax(whole.logits[:, 7:-1] / 2, -1).gather(-1, actions[..., None])[..., 0]
    torch.testing.assert_close(found.log_probs, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.values, (whole.hidden_states[-1] @ policy.critic[0])[:, 7:-1], atol=1e-4, rtol=0)


def padded():
    lengths = [3, 8, 1, 5]
    alone = [tokens(1, n, seed=n) for n in lengths]
    rows = torch.full((4, 8), SORT.pad)
    for i, prompt in enumerate(alone):
        rows[i, -prompt.shape[1] :] = prompt
    return alone, {"prompt": rows, "lengths": torch.tensor(lengths)}


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_a_prompt_padded_on_the_left_is_read_as_if_it_were_alone(folder, critic):
    policy, judge = shaken(make(folder, critic=critic)), make(folder, Scores(2))
    alone, together = padded()
    actions = INPUTS[1]
    found, scores = policy(together, actions), judge(together, actions)
    for i, prompt in enumerate(alone):
        own = policy({"prompt": prompt}, actions[i : i + 1])
        for a, b in zip((*found[:3], *found.distribution), (*own[:3], *own.distribution), strict=True):
            torch.testing.assert_close(a[i : i + 1], b, atol=1e-4, rtol=0)
        expected = judge({"prompt": prompt}, actions[i : i + 1])
        torch.testing.assert_close(scores[:, i : i + 1], expected, atol=1e-4, rtol=0)
    found.log_probs.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters())


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_step_by_step_the_logits_are_those_of_one_pass(folder, pad, dtype):
    policy = make(folder, Stochastic(), dtype=dtype)
    observations, actions = (padded()[1], INPUTS[1]) if pad else INPUTS
    with torch.no_grad():
        expected = policy(observations, actions).distribution.logits
        logits, cache = policy.prefill(observations)
        for t in range(7):
            close = 1e-4 if dtype == "float32" else 0.15  # products of three digits, in another order
            torch.testing.assert_close(logits, expected[:, t], atol=close, rtol=0)
            if t < 6:
                logits = policy.step(actions[:, t], cache)


def test_what_is_decoded_has_the_log_probs_that_training_sees(folder):
    policy = make(folder, Stochastic())
    noise = torch.from_numpy(uniforms(torch.arange(16).numpy().astype("uint64"), 7))
    observations = {"prompt": tokens(16, 8, seed=3)}
    written = decode(policy, observations, length=7, end=SORT.end, pad=SORT.pad, noise=noise)
    again = policy(observations, written.actions).log_probs * written.mask
    torch.testing.assert_close(written.log_probs, again, atol=1e-4, rtol=0)
    assert 0 < written.mask.float().mean() < 1


@pytest.mark.parametrize("pad", [False, True])
def test_a_cache_goes_on_with_the_rows_that_are_kept(folder, pad):
    policy = make(folder, Stochastic())
    observations, actions = (padded()[1], INPUTS[1]) if pad else INPUTS
    with torch.no_grad():
        expected = policy(observations, actions).distribution.logits
        _, cache = policy.prefill({name: value[:2] for name, value in observations.items()})
        cache.expand(torch.tensor([3, 1]))  # rows 0, 0, 0, 1
        rows = torch.tensor([0, 0, 0, 1])
        torch.testing.assert_close(policy.step(actions[rows, 0], cache), expected[rows, 1], atol=1e-4, rtol=0)
        cache.keep(torch.tensor([1, 3]))
        torch.testing.assert_close(policy.step(actions[:2, 1], cache), expected[:2, 2], atol=1e-4, rtol=0)


def test_tokens_that_only_fill_up_the_embedding_are_never_said(folder):
    smaller = TextSpec(vocabulary=12, prompt_length=8, completion_length=7, end=10, pad=11)
    found = make(folder, spec=smaller)({"prompt": tokens(4, 8) % 12}, tokens(4, 7) % 12)
    assert found.distribution.logits.shape == (4, 7, 12)


def test_a_score_has_read_the_action_it_stands_at_and_nothing_later(folder):
    judge = make(folder, Scores(2))
    observations, actions = INPUTS
    changed = actions.clone()
    changed[:, 3] = (actions[:, 3] + 1) % 14
    before, after = judge(observations, actions), judge(observations, changed)
    assert before.shape == (2, 4, 7)
    torch.testing.assert_close(before[..., :3], after[..., :3], atol=1e-6, rtol=0)
    assert (before[..., 3:] != after[..., 3:]).all()
    assert (before[0] != before[1]).all()


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_checkpointing_changes_neither_the_gradient_nor_the_numbers(folder, critic):
    # In training mode, where the fixtures' dropout of one half would show.
    plain, frugal = (headed(make(folder, critic=critic, gradient_checkpointing=on)) for on in (False, True))
    for policy in (plain, frugal):
        found = policy(*INPUTS)
        (found.log_probs.sum() + found.values.square().sum()).backward()
    assert frugal.model.training
    for a, b in zip(plain.parameters(), frugal.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-5)
    first, cache = frugal.prefill(INPUTS[0])
    torch.testing.assert_close(first, found.distribution.logits[:, 0], atol=1e-4, rtol=0)
    assert cache.memory.get_seq_length() == 8


def test_checkpointing_keeps_fewer_activations_of_each_trunk(folder):
    def kept(policy, trunk):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            policy.read(trunk, INPUTS[1], {})
        return sum(sizes)

    plain, frugal = (make(folder, critic="separate", gradient_checkpointing=on) for on in (False, True))
    assert kept(frugal, frugal.model.get_decoder()) < kept(plain, plain.model.get_decoder()) / 2
    assert kept(frugal, frugal.critic_trunk) < kept(plain, plain.critic_trunk) / 2


@torch.no_grad()
def test_a_model_that_drops_out_says_the_same_twice_in_training_mode_too(folder):
    policy = make(folder)
    before = policy(*INPUTS).log_probs
    policy.train()
    assert policy.model.training
    assert torch.equal(policy(*INPUTS).log_probs, before)


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_in_bfloat16_the_parameters_their_gradients_and_the_log_softmax_are_float32(folder, critic):
    policy = headed(make(folder, dtype="bfloat16", critic=critic))
    found = policy(*INPUTS)
    assert {x.dtype for x in (*found[:3], *found.distribution)} == {torch.float32}
    total = found.distribution.logits.log_softmax(-1).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-6, rtol=0)
    (found.log_probs.sum() + found.values.sum()).backward()
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in policy.parameters()} == {torch.float32}
    exact = headed(make(folder, critic=critic))(*INPUTS)
    for narrow, wide in ((found.log_probs, exact.log_probs), (found.values, exact.values)):
        assert (narrow - wide).abs().max() > 1e-3, "it did compute in bfloat16"


# ---------------------------------------------------------------- a critic of its own


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_separate_critic_reads_a_second_trunk_that_starts_as_a_copy(folder, lora):
    policy, shared = make(folder, critic="separate", lora=lora), make(folder, lora=lora)
    values = policy(*INPUTS).values
    assert values.dtype == torch.float32
    assert (values == 0).all()
    assert torch.equal(headed(policy)(*INPUTS).values, headed(shared)(*INPUTS).values)
    assert make(folder, Stochastic(), critic="separate", lora=lora).critic_trunk is None


@pytest.mark.parametrize("lora", [None, LORA])
def test_neither_loss_touches_the_other_s_trunk(folder, lora):
    policy = shaken(make(folder, critic="separate", lora=lora))
    names = {name for name, _ in policy.named_parameters()}
    critic = {name for name in names if name.startswith("critic")}
    for loss, own in (("values", critic), ("log_probs", names - critic)):
        policy.zero_grad()
        getattr(policy(*INPUTS), loss).sum().backward()
        assert {name for name, p in policy.named_parameters() if p.grad is not None and (p.grad != 0).any()} == own


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_critic_s_trunk_has_its_own_adapters_and_no_second_copy_of_what_is_frozen(folder, dtype):
    policy, shared = make(folder, lora=LORA, dtype=dtype, critic="separate"), make(folder, lora=LORA, dtype=dtype)
    assert policy(*INPUTS).values.dtype == torch.float32
    adapters = sum(p.numel() for p in shared.parameters()) - 32
    assert sum(p.numel() for p in policy.parameters()) == 2 * adapters + 32
    assert policy.state_dict().keys() == {name for name, _ in policy.named_parameters()}
    for moved in (policy, policy.to(torch.float64)):
        frozen, read = (dict(trunk.named_buffers()) for trunk in (moved.model.get_decoder(), moved.critic_trunk))
        assert frozen.keys() == read.keys()
        assert all(read[name].data_ptr() == frozen[name].data_ptr() for name in frozen)
    twin = policy.twin()
    assert twin.state_dict().keys() == make(folder, Stochastic(), lora=LORA).state_dict().keys()
    assert twin(*INPUTS).values is None


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A model whose trunk has another name."""
    path = tmp_path_factory.mktemp("gpt2")
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 14, "eos_token_id": 12}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(path)
    return path


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_a_policy_starts_from_another_s_trunk_whatever_critics_they_have(folders, gpt2, name, lora):
    def new(kind, needs=None, seed=9):
        return make(folders.get(name, gpt2), needs, seed=seed, critic=kind, lora=lora)

    def started(policy, given):
        initialise(policy, Weights(given.state_dict()), "init=runs/x")
        return policy

    plain, shared, separate = (
        shaken(new(*which, seed=0)) for which in (("separate", Stochastic()), ("shared",), ("separate",))
    )
    for given in (plain, shared, separate):
        expected = given(*INPUTS)
        for kind in ("shared", "separate"):
            policy = started(new(kind), given)
            found = policy(*INPUTS)
            assert torch.equal(found.log_probs, expected.log_probs)
            if given is shared or (given is separate and kind == "separate"):
                assert torch.equal(found.values, expected.values)
            else:  # nothing that could be read from this trunk was given: it says nothing yet
                assert (found.values == 0).all()
            if kind == "separate" and given is not separate:
                trunk, copied = given.model.get_decoder().state_dict(), policy.critic_trunk.state_dict()
                assert all(torch.equal(copied[name], trunk[name]) for name in trunk)
        assert torch.equal(started(new("shared", Stochastic()), given)(*INPUTS).log_probs, expected.log_probs)
        judge = started(new("separate", Scores(2)), given)
        assert all(
            torch.equal(x, given.state_dict()[name]) for name, x in judge.model.state_dict(prefix="model.").items()
        )


# ---------------------------------------------------------------- adapters


def test_adapters_say_nothing_at_first_and_are_all_that_is_trained(folder):
    plain, policy = make(folder), make(folder, lora=LORA)
    assert torch.equal(plain(*INPUTS).log_probs, policy(*INPUTS).log_probs)
    # Two layers of seven matrices, A (4, in) and B (out, 4), and the critic's 32.
    d = 64 if "qwen3" in str(folder) else 32  # queries; keys and values are half as wide
    sizes = [(32, d), (32, d // 2), (32, d // 2), (d, 32), (32, 48), (32, 48), (48, 32)]
    assert sum(p.numel() for p in policy.parameters()) == 2 * sum(4 * (i + o) for i, o in sizes) + 32
    assert policy.state_dict().keys() == {name for name, _ in policy.named_parameters()}
    # B is zero, so only B and the critic have a gradient at first; once moved, A has one too.
    policy = shaken(policy)
    policy(*INPUTS).log_probs.sum().backward()
    assert all((p.grad != 0).any() for name, p in policy.named_parameters() if name != "critic")


def test_the_adapters_are_initialised_by_the_seed_and_by_nothing_else(folder):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = make(folder, lora=LORA, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    again, other = make(folder, lora=LORA, seed=1).state_dict(), make(folder, lora=LORA, seed=2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_reference_is_the_model_without_its_adapters_and_no_second_copy(folder, dtype):
    policy = make(folder, lora=LORA, dtype=dtype)
    twin = policy.twin().requires_grad_(False)
    base = make(folder, lora=LORA, dtype=dtype, needs=Stochastic())
    assert {b.data_ptr() for b in policy.buffers()} == {b.data_ptr() for b in twin.buffers()}
    shaken(policy)
    assert torch.equal(twin(*INPUTS).log_probs, base(*INPUTS).log_probs)
    assert not torch.equal(twin(*INPUTS).log_probs, policy(*INPUTS).log_probs)
    assert not twin.has_critic
    assert all(p.requires_grad for p in policy.parameters())
    wide = sum(b.numel() for b in policy.buffers() if b.dim() == 2)
    narrow = sum(b.numel() for b in policy.buffers() if b.dim() == 2 and b.dtype == torch.bfloat16)
    assert narrow == (wide if dtype == "bfloat16" else 0)
    assert make(folder).twin() is None


def test_frozen_embeddings_that_are_tied_stay_tied_when_they_move(folders):
    policy = make(folders["qwen3"], lora=LORA).to(torch.float64)
    inside, outside = policy.model.get_input_embeddings().weight, policy.model.get_output_embeddings().weight
    assert inside.dtype == torch.float64
    assert inside.data_ptr() == outside.data_ptr()


@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize("lora", [None, LORA])
def test_what_is_exported_is_what_was_trained(folder, tmp_path, lora, critic):
    (folder / "tokenizer.json").write_text("{}")
    policy = shaken(make(folder, lora=lora, critic=critic, temperature=0.5))
    policy.model.generation_config.update(repetition_penalty=1.3, min_p=0.1, top_k=7)
    policy.export(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == load_file(folder / "model.safetensors").keys()
    found = make(tmp_path, temperature=0.5)(*INPUTS)
    torch.testing.assert_close(found.log_probs, policy(*INPUTS).log_probs, atol=1e-4, rtol=0)
    assert (tmp_path / "tokenizer.json").exists()
    said = json.loads((tmp_path / "generation_config.json").read_text())
    assert "repetition_penalty" not in said
    assert "min_p" not in said
    assert (said["eos_token_id"], said["pad_token_id"]) == (12, 13)
    assert (said["do_sample"], said["temperature"], said["top_k"], said["top_p"]) == (True, 0.5, 0, 1.0)


def test_adapters_of_an_embedding_come_from_the_seed_and_change_nothing_at_first(folders):
    lora = LoRA(rank=4, alpha=8, targets=("embed_tokens",))
    first, again, other = (make(folders["llama"], lora=lora, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    policy, plain = make(folders["llama"], lora=lora), make(folders["llama"])
    torch.testing.assert_close(policy(*INPUTS).log_probs, plain(*INPUTS).log_probs, atol=1e-6, rtol=0)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_on_one_of_two_tied_layers_is_refused(folders, target):
    with pytest.raises(InputError, match=rf"policy.lora.targets: .*{target} shares its weights in this model"):
        make(folders["qwen3"], lora=LoRA(rank=1, alpha=1, targets=(target,)))
    assert make(folders["llama"], lora=LoRA(rank=1, alpha=1, targets=(target,)))


@pytest.mark.parametrize("kind", ["mamba", "bart"])
def test_a_model_with_a_memory_of_another_kind_is_refused(tmp_path, kind):
    sizes = {key: SHAPE[key] for key in ("vocab_size", "pad_token_id", "eos_token_id", "bos_token_id")}
    if kind == "mamba":
        config = transformers.MambaConfig(**sizes, hidden_size=32, num_hidden_layers=2, state_size=4)
    else:
        heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
        config = transformers.BartConfig(**sizes, **heads, d_model=32, encoder_layers=1, decoder_layers=2)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=rf"a {kind} has a memory of another kind than keys and values"):
        make(tmp_path)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (TextSpec(15, 8, 7, 12, 13), r"has 14 tokens and the task 15.*env=jsonl"),
        (TextSpec(14, 8, 7, 14, 13), "no end token"),
        (TextSpec(14, 26, 7, 12, 13), r"reads 32 tokens, and a prompt of 26 with a completion of 7 are 33"),
    ],
)
def test_a_task_that_does_not_fit_is_refused(folders, spec, text):
    with pytest.raises(InputError, match=text):
        make(folders["llama"], spec=spec)


def test_a_large_vocabulary_is_not_mistaken_for_a_small_one(folders, tmp_path):
    config = json.loads((folders["llama"] / "config.json").read_text())
    config |= {"vocab_size": 500}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has 500 tokens and the task 14"):
        make(tmp_path)


def test_folders_that_hold_no_such_model_are_refused(folders, tmp_path):
    with pytest.raises(InputError, match="is no folder with the config"):
        make(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no_such_model"}')
    with pytest.raises(InputError, match=r"^policy.path=\S+ cannot be loaded: .*no_such_model") as refusal:
        make(tmp_path)
    assert "\n" not in str(refusal.value)
    config = json.loads((folders["llama"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save({}, tmp_path / "pytorch_model.bin")  # a pickle is not opened
    with pytest.raises(InputError, match="cannot be loaded"):
        make(tmp_path)
    with pytest.raises(InputError, match=r"policy.lora.targets: .*no_such_layer"):
        make(folders["llama"], lora=LoRA(rank=1, alpha=1, targets=("no_such_layer",)))


def test_without_the_package_the_refusal_says_how_to_install_it(folders, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(InputError, match=r"\(peft\): run pip install 'policy-gradient-cli\[llm\]'"):
        make(folders["llama"], lora=LORA)


# ---------------------------------------------------------------- runs


WORDS = (
    "env=sort", "device=cpu", "log_every=1", "checkpoint.every=1", "checkpoint.keep=100", "eval.every=100000",
    "eval.episodes=2", "tuned=none", "total_steps=500",
)  # fmt: skip
GROUPS = ("algo=grpo", "algo.num_groups=4", "algo.group_size=4", "algo.epochs=1", *WORDS)
CRITIC = ("algo=ppo", "policy.critic=separate", "algo.num_episodes=16", "algo.epochs=1", *WORDS)


@pytest.mark.parametrize("method", [GROUPS, CRITIC], ids=["grpo", "ppo with a critic of its own"])
@pytest.mark.parametrize("kind", ["hf", "hf_lora"])
def test_a_resumed_run_ends_as_one_that_never_stopped(folders, tmp_path, kind, method):
    words = (*method, "algo.kl.coefficient=0.1", f"policy={kind}", f"policy.path={folders['qwen3']}")
    straight = train(*words, run_dir=tmp_path / "straight", quiet=True)
    train(*words, "total_steps=200", run_dir=tmp_path / "halves", quiet=True)
    halves = resume(tmp_path / "halves", "total_steps=500", quiet=True)
    for name in ("model.safetensors", "state.safetensors"):
        last = [run.checkpoints()[-1] / name for run in (straight, halves)]
        assert last[0].read_bytes() == last[1].read_bytes()
    assert evaluate(straight.path, episodes=4)["greedy"]["mean"] >= 0


def test_adapters_whose_model_has_changed_are_refused(folders, tmp_path):
    copy = shutil.copytree(folders["llama"], tmp_path / "model")
    words = (*GROUPS, "policy=hf_lora", f"policy.path={copy}", "total_steps=100")
    run = train(*words, run_dir=tmp_path / "run", quiet=True)
    assert evaluate(run.path, episodes=2)["episodes"] == 2
    weights = load_file(copy / "model.safetensors")
    save_file({name: value * 1.5 for name, value in weights.items()}, copy / "model.safetensors", {"format": "pt"})
    for use in (lambda: resume(run.path, "total_steps=200"), lambda: evaluate(run.path)):
        with pytest.raises(InputError, match=r"model has changed since .*run was begun, whose adapters belong to its"):
            use()
    with pytest.raises(InputError, match=r"init=.*run: its adapters belong to another model than .*model$"):
        train(*words, f"init={run.path}", run_dir=tmp_path / "other")
    assert not (tmp_path / "other").exists()
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert resume(run.path, "total_steps=200", quiet=True).status == "completed"
    assert train(*words, f"init={run.path}", run_dir=tmp_path / "other", quiet=True).status == "completed"


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_the_frozen_reference_of_adapters_is_what_training_started_from(folders, critic):
    words = ["algo=ppo", "env=sort", "device=cpu", "policy=hf_lora", f"policy.path={folders['llama']}", "tuned=none"]
    parts = build(compose([*words, "algo.kl.coefficient=0.1", f"policy.critic={critic}"]))
    shaken(parts.policy)
    reference = parts.frozen["reference"]
    assert torch.equal(reference(*INPUTS).log_probs, make(folders["llama"])(*INPUTS).log_probs)
    own = {name for name in parts.policy.state_dict() if not name.startswith("critic")}
    assert parts.state_dict()["frozen"]["reference"].keys() == own
