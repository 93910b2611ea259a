"""The Llama layout: what is written is read back, transformers computes the same from it, what differs is refused."""

import json

import pytest
import torch

from pgcli.cli import main
from pgcli.environments.text.tokenizers import Bytes, Characters, Words
from pgcli.errors import InputError
from pgcli.experiment import train
from pgcli.experiment.config import compose
from pgcli.policies.llama import read, write_tokenizer
from pgcli.policies.transformer import Transformer
from pgcli.types import Scores, Stochastic, TextSpec

SPEC = TextSpec(vocabulary=14, prompt_length=8, completion_length=7, end=12, pad=13)


def settings(*words):
    return compose(["algo=ppo", "env=sort", *words]).policy


def make(needs=None, *words, spec=SPEC, seed=0):
    policy = Transformer.make(spec, settings(*words), needs or Stochastic(), torch.Generator().manual_seed(seed))
    with torch.no_grad():  # gains that are all one, as in a new policy, would hide a missing one
        for name, p in policy.named_parameters():
            if name.endswith("norm"):
                p.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    return policy


def tokens(n, length):
    return torch.randint(SPEC.vocabulary, (n, length), generator=torch.Generator().manual_seed(length))


INPUTS = ({"prompt": tokens(4, 8)}, tokens(4, 7))


def test_what_is_written_is_read_back_bit_for_bit(tmp_path):
    policy = make(Stochastic(critic=True), "policy=nano")
    policy.export(tmp_path)
    again = make(Stochastic(critic=True), "policy=nano", f"policy.path={tmp_path}", "policy.critic=separate", seed=9)
    fresh = Transformer.make(SPEC, settings("policy=nano", f"policy.path={tmp_path}"), Stochastic(), torch.Generator())
    assert torch.equal(fresh(*INPUTS).log_probs, policy(*INPUTS).log_probs)
    assert torch.equal(again.critic_trunk.blocks[1].qkv, policy.trunk.blocks[1].qkv)
    judges = Transformer.make(SPEC, settings("policy=nano", f"policy.path={tmp_path}"), Scores(2), torch.Generator())
    assert all(torch.equal(member.embedding, policy.trunk.embedding) for member in judges.members)


@pytest.mark.parametrize("preset", ["nano", "tiny", "small"])
def test_transformers_computes_the_same_logits(tmp_path, preset):
    transformers = pytest.importorskip("transformers")
    policy = make(None, f"policy={preset}")
    policy.export(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert isinstance(theirs, transformers.LlamaForCausalLM)
    prompt, actions = INPUTS
    with torch.no_grad():
        logits = theirs(torch.cat([prompt["prompt"], actions[:, :-1]], dim=1)).logits[:, 7:]
    torch.testing.assert_close(policy(*INPUTS).distribution.logits, logits, atol=1e-5, rtol=0)


def test_what_transformers_writes_is_read(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=14, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    prompt, actions = INPUTS
    with torch.no_grad():
        logits = model(torch.cat([prompt["prompt"], actions[:, :-1]], dim=1)).logits[:, 7:]
    policy = Transformer.make(SPEC, settings(f"policy.path={tmp_path}"), Stochastic(), torch.Generator())
    torch.testing.assert_close(policy(*INPUTS).distribution.logits, logits, atol=1e-5, rtol=0)


def test_the_config_says_what_the_weights_are(tmp_path):
    make(None, "policy.temperature=0.5").export(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim", "vocab_size")
    assert [config[name] for name in sizes] == [64, 192, 2, 4, 16, 14]
    assert (config["eos_token_id"], config["pad_token_id"], config["max_position_embeddings"]) == (12, 13, 15)
    sampling = json.loads((tmp_path / "generation_config.json").read_text())
    assert (sampling["temperature"], sampling["top_k"], sampling["top_p"]) == (0.5, 0, 1.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_key_value_heads": 2}, "num_key_value_heads is 2"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"model_type": "qwen3"}, "model_type is qwen3"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05"),
        ({"head_dim": 32}, "head_dim is 32"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0}}, "rope_type is llama3"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}, "rope_theta is 500000.0"),
        ({"hidden_size": 128, "head_dim": None}, "add policy.width=128"),
        ({"vocab_size": 100}, "knows 100 tokens, and the task has 14"),
        ({"num_hidden_layers": 3}, "add policy.layers=3"),
    ],
    ids=lambda x: x.split(",")[0] if isinstance(x, str) else "",
)
def test_what_differs_is_refused_in_one_line(tmp_path, change, said):
    make().export(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError) as refusal:
        read(tmp_path, settings(), SPEC)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_folder_without_a_model_or_without_weights_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"it has no config\.json"):
        read(tmp_path, settings(), SPEC)
    make().export(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks model\.embed_tokens\.weight"):
        read(tmp_path, settings(), SPEC)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read") as refusal:
        read(tmp_path, settings(), SPEC)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("own", "text"), [(Characters("abc<>\n "), "ab <c>\n"), (Words(["the", "dog", "."]), "the dog . dog")],
    ids=["characters", "words"],
)  # fmt: skip
def test_the_tokenizer_reads_and_writes_as_the_task_s_own(tmp_path, own, text):
    spec = TextSpec(vocabulary=own.size, prompt_length=4, completion_length=4, end=own.end, pad=own.pad)
    assert write_tokenizer(tmp_path, lambda given: own.decode(given, specials=True), spec)
    written = json.loads((tmp_path / "tokenizer.json").read_text())
    assert written["model"]["vocab"] == own.numbers
    assert [token["content"] for token in written["added_tokens"]] == ["<bos>", "<end>", "<pad>"]
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.encode(text).ids == own.encode(text)
    assert theirs.decode(own.encode(text)) == text
    transformers = pytest.importorskip("transformers")
    make(spec=spec).export(tmp_path)
    full = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (full.eos_token_id, full.pad_token_id, full.padding_side) == (own.end, own.pad, "left")
    assert full(text, add_special_tokens=False).input_ids == own.encode(text)


def test_bytes_have_no_word_level_tokenizer(tmp_path):
    own = Bytes()
    spec = TextSpec(vocabulary=own.size, prompt_length=4, completion_length=4, end=own.end, pad=own.pad)
    assert not write_tokenizer(tmp_path, lambda given: own.decode(given, specials=True), spec)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_exported_and_another_starts_from_the_folder(tmp_path, capsys):
    small = [
        "env=sort",
        "env.digits=2",
        "policy=nano",
        "tuned=none",
        "eval.episodes=2",
        f"runs_dir={tmp_path / 'runs'}",
    ]
    run = train("algo=sft", *small, "total_steps=10", quiet=True)
    folder = tmp_path / "model"

    def call(*words):
        with pytest.raises(SystemExit) as stop:
            main(words)
        said = capsys.readouterr()
        return stop.value.code, said.out + said.err

    code, said = call("export", str(run.path), str(folder), "--json")
    assert code == 0
    files = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert json.loads(said)["files"] == files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "runs"], "nothing else is left"
    code, said = call("export", str(run.path), str(folder))
    assert (code, said) == (2, f"error: {folder} exists already: name a new folder\n")
    (tmp_path / "file").touch()
    code, said = call("export", str(run.path), str(tmp_path / "file" / "model"))
    assert code == 2
    assert said.startswith(f"error: cannot write {tmp_path}/file/model: ")
    (tmp_path / "file").unlink()
    other = train(
        "algo=reinforce", *small, f"policy.path={folder}", "algo.learning_rate=1e-9", "total_steps=10", quiet=True
    )
    call("export", str(other.path), str(tmp_path / "again"))
    config = compose(["algo=sft", *small]).policy
    spec = TextSpec(vocabulary=14, prompt_length=4, completion_length=3, end=12, pad=13)
    first, second = (read(tmp_path / name, config, spec) for name in ("model", "again"))
    assert all((first[name] - second[name]).abs().max() < 1e-6 for name in first)


def test_a_run_of_control_has_no_language_model(tmp_path, capsys):
    words = ["env=cartpole", "total_steps=1", "eval.episodes=1", "algo.num_episodes=1", "tuned=none"]
    run = train("algo=reinforce", *words, f"runs_dir={tmp_path}", quiet=True)
    with pytest.raises(SystemExit) as stop:
        main(["export", str(run.path), str(tmp_path / "model")])
    assert stop.value.code == 2
    assert "has no language model to export (its policy is mlp)" in capsys.readouterr().err
