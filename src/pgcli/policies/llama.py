"""The built-in transformer's weights in the layout of Hugging Face's Llama, which other tools open: writing, reading.

config.json               sizes, as LlamaForCausalLM names them
model.safetensors         a trunk and its unembedding: no critic, no scores
generation_config.json    to sample exactly the policy's distribution: its temperature, no top-k
tokenizer.json            if every token is a character or a word of its own
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pgcli.errors import InputError
from pgcli.policies.trunk import EPSILON, ROTARY_BASE, TrunkSettings
from pgcli.types import State, TextSpec

CONFIG, WEIGHTS, GENERATION = "config.json", "model.safetensors", "generation_config.json"
SIZES = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
}
"""pgcli's name -> Llama's."""
BLOCK = {
    "attention_norm": "input_layernorm", "out": "self_attn.o_proj", "feed_norm": "post_attention_layernorm",
    "down": "mlp.down_proj",
}  # fmt: skip
JOINED = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
}  # fmt: skip
"""In each block: pgcli's name -> Llama's tensors, of which ours is the concatenation."""


# ---------------------------------------------------------------- writing


def write(folder: Path, state: State, config: TrunkSettings, spec: TextSpec, *, temperature: float) -> None:
    """`state`: the parameters of a `Transformer`."""
    ends = {"bos_token_id": None, "eos_token_id": spec.end, "pad_token_id": spec.pad}
    sizes = {theirs: getattr(config, ours) for ours, theirs in SIZES.items()}
    described = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": spec.vocabulary, **sizes,
        "num_key_value_heads": config.heads, "head_dim": config.width // config.heads,
        "max_position_embeddings": spec.prompt_length + spec.completion_length, "rms_norm_eps": EPSILON,
        "rope_theta": ROTARY_BASE, "rope_parameters": {"rope_type": "default", "rope_theta": ROTARY_BASE},
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
        "dtype": "float32", **ends,
    }  # fmt: skip
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    _write_json(folder / CONFIG, described)
    _write_json(folder / GENERATION, {**sampling, **ends, "max_new_tokens": spec.completion_length})
    tensors: dict[str, Tensor] = {}
    for ours, theirs in tensor_names(config.layers):
        for name, piece in zip(theirs, state[ours].chunk(len(theirs)), strict=True):
            tensors[name] = piece.detach().cpu().contiguous().clone()
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))


def write_tokenizer(folder: Path, decode: Callable[[Sequence[int]], str], spec: TextSpec) -> bool:
    """A word-level tokenizer of a closed vocabulary. Returns whether one was written: a byte vocabulary has none.

    decode: the task's `decode`, which gives every token's text.
    """
    names = [decode([token]) for token in range(spec.vocabulary)]
    words = decode([0, 1]) == f"{names[0]} {names[1]}"
    plain = [name for name in names if not (name.startswith("<") and name.endswith(">") and len(name) > 2)]
    if len(set(names)) < len(names) or (not words and any(len(name) != 1 for name in plain)):
        return False
    specials = [token for token, name in enumerate(names) if name not in plain]
    split = {"type": "WhitespaceSplit"} if words else {
        "type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip
    shape = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    _write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": split,
            "post_processor": None, "decoder": None if words else {"type": "Fuse"},
            "added_tokens": [{"id": token, "content": names[token], **shape} for token in specials],
            "model": {"type": "WordLevel", "vocab": {name: i for i, name in enumerate(names)}, "unk_token": "<unk>"},
        },
    )  # fmt: skip
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left", "clean_up_tokenization_spaces": False}
    told |= {key: names[token] for key, token in (("eos_token", spec.end), ("pad_token", spec.pad))}
    _write_json(folder / "tokenizer_config.json", told)
    return True


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# ---------------------------------------------------------------- reading


def read(folder: Path, config: TrunkSettings, spec: TextSpec) -> State:
    """The parameters of a `Transformer` of these settings. Raises InputError, in one line, if the folder differs."""
    origin = f"policy.path={folder}"
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        files = sorted(folder.glob("*.safetensors"))
        given = {name: x for file in files for name, x in safetensors.torch.load_file(file).items()}
    except FileNotFoundError:
        raise InputError(f"{origin} is not the folder of a model: it has no {CONFIG}") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{origin} cannot be read: {str(error).partition(chr(10))[0]}") from error
    different = [f"{name} is {value}" for name, value in _unlike_ours(found)]
    if different:
        raise InputError(f"{origin} is not in Llama's plain layout ({', '.join(different)}): try policy=hf")
    sizes = {ours: found.get(theirs) for ours, theirs in SIZES.items()}
    wrong = [f"policy.{name}={size}" for name, size in sizes.items() if size != getattr(config, name)]
    if wrong:
        raise InputError(f"{origin} has other sizes than these settings: add {' '.join(wrong)}")
    if found.get("vocab_size") != spec.vocabulary:
        raise InputError(f"{origin} knows {found.get('vocab_size')} tokens, and the task has {spec.vocabulary}")
    missing = [name for _, theirs in tensor_names(config.layers) for name in theirs if name not in given]
    if missing:
        raise InputError(f"{origin} lacks {missing[0]} in its *.safetensors")
    return {ours: torch.cat([given[name].float() for name in theirs]) for ours, theirs in tensor_names(config.layers)}


def _unlike_ours(found: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries of a config.json that the built-in transformer does not implement."""
    heads = found.get("num_attention_heads")
    rotary = found.get("rope_parameters") or found.get("rope_scaling") or {}
    usual = {
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
        "num_key_value_heads": heads, "rms_norm_eps": EPSILON,
    }  # fmt: skip
    """The default of an entry that a config.json leaves out."""
    if found.get("model_type") != "llama":
        yield "model_type", found.get("model_type")
    for name, value in usual.items():
        if found.get(name, value) != value:
            yield name, found[name]
    if found.get("head_dim") and heads and found["head_dim"] * heads != found.get("hidden_size"):
        yield "head_dim", found["head_dim"]
    if rotary.get("rope_type", "default") != "default":
        yield "rope_type", rotary["rope_type"]
    base = rotary.get("rope_theta", found.get("rope_theta", ROTARY_BASE))
    if base != ROTARY_BASE:
        yield "rope_theta", base


def tensor_names(layers: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each of our parameters, with Llama's tensors of which it is the concatenation."""
    yield "trunk.embedding", ("model.embed_tokens.weight",)
    for i in range(layers):
        joined = {**JOINED, **{ours: (theirs,) for ours, theirs in BLOCK.items()}}
        for ours, theirs in joined.items():
            yield f"trunk.blocks.{i}.{ours}", tuple(f"model.layers.{i}.{name}.weight" for name in theirs)
    yield "trunk.norm", ("model.norm.weight",)
    yield "unembedding", ("lm_head.weight",)
