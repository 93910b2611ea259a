"""A causal language model of Hugging Face's `transformers`, from a local folder: a policy over tokens, or a judge.

Whatever model the folder holds (Llama, Qwen, GPT-2, ...), the logits are its own. Trained parameters are kept in
float32; with `dtype=bfloat16` the products are in the narrower type (autocast), the log-softmax still in float32.
Dropout is off: sampling, scoring and training see the same distribution.

With `lora`, only low-rank adapters are trained: W x + (alpha / rank) B A x, where B = 0 at first (Hu et al. 2022, eq.
3). The frozen weights then have the type `dtype`, are in no checkpoint, and are shared with the reference policy and
with a separate critic.

Shapes: N rows, P prompt tokens, T completion tokens, W width, V vocabulary.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from pgcli.errors import InputError
from pgcli.functional.distributions import Categorical, categorical
from pgcli.settings import Settings
from pgcli.types import ABSENT, Evaluation, Needs, PolicyFunction, Scores, State, Stochastic, TextSpec

TOKENIZER_FILES = ("*token*.json", "vocab*", "merges.txt", "*.model", "chat_template*")


class LoRA(Settings):
    rank: int = Field(ge=1, description="rank of an adapter: rows of A, columns of B")
    alpha: float = Field(gt=0, description="scale of an adapter: its output is multiplied by alpha / rank")
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        description="layers that get an adapter, by the ends of their names; all-linear: all but the output layer"
    )


class HF:
    """`policy=hf`: the folder's model, in the role that an algorithm needs."""

    offers: ClassVar = (Stochastic, Scores)
    reads: ClassVar = ("texts",)

    class Config(Settings):
        name: Literal["hf"]
        path: str = Field(min_length=1, description="local folder of the model: config.json and *.safetensors")
        temperature: float = Field(gt=0, description="divisor of the logits, in sampling, scoring and training alike")
        critic: Literal["shared", "separate"] = Field(
            description="of methods with a critic: trunk from which V(s) is computed, the policy's own (shared) or a "
            "second one that starts as its copy"
        )
        dtype: Literal["float32", "bfloat16"] = Field(
            description="number type of the matrix products; trained parameters stay float32"
        )
        gradient_checkpointing: bool = Field(
            description="recompute activations in the backward pass instead of keeping them: less memory, more time"
        )
        lora: LoRA | None = Field(description="low-rank adapters, which alone are trained; null: train all parameters")

        @field_validator("path")
        @classmethod
        def _from_anywhere(cls, path: str) -> str:
            return str(Path(path).expanduser().absolute())  # a run may be resumed from another folder

        @field_validator("critic", mode="before")
        @classmethod
        def _of_its_own_model(cls, critic: Any) -> Any:
            if critic == "reward_model":
                raise ValueError("only policy=transformer starts its critic from a reward model; take separate")
            return critic

    @classmethod
    def make(cls, spec: TextSpec, config: Config, needs: Needs, generator: torch.Generator) -> Writer | Judge:
        model = load(config)
        check_fit(model, spec, config)
        _without_dropout(model)
        if config.lora is not None:
            _adapt(model, config.lora, generator)
        if config.gradient_checkpointing:
            with _quiet():
                model.gradient_checkpointing_enable({"use_reentrant": False})
        match needs:
            case Scores(members):
                return Judge(model, spec, config, members=members, generator=generator)
            case Stochastic(critic):
                writer = Writer(model, spec, config, critic=critic)
                if getattr(model, "_is_stateful", False) or hasattr(model.config, "encoder_layers"):
                    check_decoding(writer)  # a state space, or the decoder half of a pair
                return writer
        raise AssertionError(needs)


class Network(nn.Module):
    """The base of both roles: a model that reads prompts padded on the left, with the types of its products."""

    unit = "sequence"

    def __init__(self, model: Any, spec: TextSpec, config: HF.Config) -> None:
        super().__init__()
        self.model, self.config, self.vocabulary = model, config, spec.vocabulary

    @cached_property
    def foundation(self) -> str | None:
        """A hash of the folder's weights under the adapters, which no checkpoint holds; None without adapters."""
        if self.config.lora is None:
            return None
        whole = hashlib.sha256()
        for file in sorted(Path(self.config.path).glob("*.safetensors")):
            with file.open("rb") as stream:
                whole.update(hashlib.file_digest(stream, "sha256").digest())
        return whole.hexdigest()

    def precision(self) -> AbstractContextManager[Any]:
        if self.config.dtype == "float32":
            return nullcontext()
        return torch.autocast(next(self.parameters()).device.type, torch.bfloat16)

    def read(self, module: Any, tokens: Tensor, positions: dict[str, Tensor], **options: Any) -> Any:
        """Runs `module`, a part of the model or all of it, on (N, S) tokens. Keeps activations only if needed."""
        if self.config.gradient_checkpointing:  # transformers supports it in training mode only, and without a cache
            self.train(torch.is_grad_enabled())
        with self.precision():
            return module(tokens, **positions, use_cache=False, **options)

    def once_differentiable(self) -> Any:
        return self

    def adopt(self, given: State) -> State:
        """Selects from another model's parameters those to start from. A critic that is not needed is left out, and so
        are heads that this policy does not have.
        """
        own = self.state_dict()
        return {name: value for name, value in given.items() if name in own or not name.startswith("critic")}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Network:
        """Tensors that are shared (tied embeddings) stay shared on another device, also if they are frozen."""
        moved: dict[int, tuple[Tensor, Tensor]] = {}

        def once(tensor: Tensor) -> Tensor:
            if id(tensor) not in moved:
                moved[id(tensor)] = (tensor, fn(tensor))
            return moved[id(tensor)][1]

        return super()._apply(once, recurse)

    def export(self, folder: Path) -> None:
        """Write the trained model, adapters merged, as a folder that transformers and other tools load. No heads."""
        model = self.model
        if self.config.lora is not None:
            model = load(self.config)
            layers = dict(model.named_modules())
            for name, layer in _adapted(self.model):
                weight = layers[name].weight
                weight.data += layer.get_delta_weight("default").to(weight)
        given = model.generation_config  # of its own habits, such as a repetition penalty, none is the policy's
        model.generation_config = type(given)(
            do_sample=True, temperature=self.config.temperature, top_k=0, top_p=1.0, bos_token_id=given.bos_token_id,
            eos_token_id=given.eos_token_id, pad_token_id=given.pad_token_id,
        )  # fmt: skip
        with _quiet():
            model.save_pretrained(folder)
        for pattern in TOKENIZER_FILES:
            for file in Path(self.config.path).glob(pattern):
                if not (folder / file.name).exists():
                    shutil.copy(file, folder)


@dataclass
class Cache:
    """The state of decoding: keys and values, and which tokens so far are not padding (None: all)."""

    memory: Any
    mask: Tensor | None
    weights: dict[str, Tensor]
    """Narrow copies of the weights, which autocast would otherwise make again for each token."""

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these, in this order: (k,) int64."""
        self.memory.batch_select_indices(rows)
        self.mask = None if self.mask is None else self.mask[rows]

    def expand(self, counts: Tensor) -> None:
        """Repeat each row `counts` times, (N,), copies next to each other."""
        self.keep(torch.arange(len(counts), device=counts.device).repeat_interleave(counts))


class Writer(Network):
    """Token t of a completion is an action, the prompt and the tokens before it are its state.

    pi(v | state) = softmax(logits / temperature)
    """

    def __init__(self, model: Any, spec: TextSpec, config: HF.Config, *, critic: bool) -> None:
        super().__init__(model, spec, config)
        # Renamed in transformers 5.2x; the old name goes in 5.40.
        self.memory_name = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
        self.has_critic = critic
        # Zero: an untrained critic gives V = 0, and its first gradients leave a shared trunk alone.
        self.critic = nn.Parameter(torch.zeros(1, width(model))) if critic else None
        self.critic_trunk = _twin(model.get_decoder()) if critic and config.critic == "separate" else None

    def forward(self, observations: dict[str, Tensor], actions: Tensor) -> Evaluation:
        """observations {"prompt": (N, P), "lengths": (N,)?}, actions (N, T) -> an Evaluation of (N, T), in one pass.

        Position P - 1 + t has read the prompt and the actions before t: it gives the logits of action t and V(s_t).
        Padding comes after a row's end, so it changes nothing before it.
        """
        T = actions.shape[1]
        tokens, where = torch.cat([observations["prompt"], actions[:, :-1]], dim=1), positions(observations, T - 1)
        seen: list[Tensor] = []
        with _inputs_of(self.model.get_output_embeddings(), seen):
            found = self.read(self.model, tokens, where, logits_to_keep=T)
        logits = self.logits(found.logits[:, -T:])
        log_probs, entropy = categorical(logits, actions)
        values = ABSENT
        if self.critic is not None:
            hidden = seen[0]
            if self.critic_trunk is not None:
                hidden = self.read(self.critic_trunk, tokens, where).last_hidden_state
            values = F.linear(hidden[:, -T:].float(), self.critic).squeeze(-1)
        return Evaluation(log_probs, entropy, values, Categorical(logits))

    def logits(self, found: Tensor) -> Tensor:
        """Logits in float32, of the vocabulary's tokens, without the embedding's unused rows."""
        return found[..., : self.vocabulary].float() / self.config.temperature

    def prefill(self, observations: dict[str, Tensor]) -> tuple[Tensor, Cache]:
        """{"prompt": (N, P)} -> logits of the first action, (N, V), and the cache for `step`."""
        if self.config.gradient_checkpointing:
            self.model.eval()
        weights: dict[str, Tensor] = {}
        if self.config.dtype == "bfloat16":
            layers = ((name, m) for name, m in self.model.named_modules() if isinstance(m, nn.Linear))
            weights = {f"{name}.weight": layer.weight.to(torch.bfloat16) for name, layer in layers}
        where = positions(observations, 0)
        cache = Cache(None, where.get("attention_mask"), weights)
        return self._decode(observations["prompt"], cache, **where), cache

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """(N,), the tokens just chosen -> logits of the next action, (N, V). The cache is extended by them."""
        if cache.mask is None:
            return self._decode(tokens[:, None], cache)
        cache.mask = F.pad(cache.mask, (0, 1), value=1)
        last = cache.mask.sum(1, keepdim=True) - 1
        return self._decode(tokens[:, None], cache, attention_mask=cache.mask, position_ids=last)

    def _decode(self, tokens: Tensor, cache: Cache, **where: Tensor) -> Tensor:
        options = {**where, self.memory_name: cache.memory, "use_cache": True, "logits_to_keep": 1}
        with self.precision():
            found = functional_call(self.model, cache.weights, (tokens,), options, tie_weights=False)
        cache.memory = found[self.memory_name]
        return self.logits(found.logits[:, -1])

    def once_differentiable(self) -> PolicyFunction:
        return self

    def twin(self) -> Writer | None:
        """With adapters: a second policy with its own copy of the adapters, which shares all frozen weights. Without
        adapters: None.
        """
        if self.config.lora is None:
            return None
        other = _twin(self)
        other.has_critic, other.critic, other.critic_trunk = False, None, None
        return other

    def adopt(self, given: State) -> State:
        """Selects from another policy's parameters those to start from.

        If the other has no critic, or a separate one while this one shares the trunk, the critic keeps its
        initialisation; a separate critic whose trunk is not given starts with a copy of the policy's.
        """
        found = super().adopt(given)
        if self.critic_trunk is None:
            separate = any(name.startswith("critic_trunk.") for name in given)
            return {name: value for name, value in found.items() if not (separate and name == "critic")}
        decoder = self.model.get_decoder()
        trunk = next(f"{name}." for name, module in self.named_modules() if module is decoder)
        copies = {name.replace(trunk, "critic_trunk.", 1): x for name, x in given.items() if name.startswith(trunk)}
        return copies | found


class Judge(Network):
    """An ensemble of `members` linear heads that score every token's last hidden state. They share the model."""

    has_critic = False

    def __init__(
        self, model: Any, spec: TextSpec, config: HF.Config, *, members: int, generator: torch.Generator
    ) -> None:
        super().__init__(model, spec, config)
        w = width(model)
        # 1 / sqrt(W + 1): Stiennon et al. 2020, in their code.
        self.heads = nn.Parameter(torch.empty(members, w).normal_(0, 1 / math.sqrt(w + 1), generator=generator))

    def forward(self, observations: dict[str, Tensor], actions: Tensor) -> Tensor:
        """observations {"prompt": (N, P)}, actions (N, T) -> (members, N, T): [.., t] has read actions 0 to t."""
        T = actions.shape[1]
        tokens = torch.cat([observations["prompt"], actions], dim=1)
        found = self.read(self.model.get_decoder(), tokens, positions(observations, T))
        return F.linear(found.last_hidden_state[:, -T:].float(), self.heads).movedim(-1, 0)


# ---------------------------------------------------------------- the folder


def load(config: HF.Config) -> Any:
    """The folder's model, a `PreTrainedModel`. Raises InputError, in one line, if there is none."""
    transformers = _need("transformers")
    folder = Path(config.path)
    if not (folder / "config.json").is_file():
        raise InputError(f"policy.path={config.path} is no folder with the config.json of a language model")
    frozen = config.lora is not None
    dtype = torch.bfloat16 if frozen and config.dtype == "bfloat16" else torch.float32
    try:
        with _quiet():
            return transformers.AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=dtype
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"policy.path={config.path} cannot be loaded: {' '.join(str(error).split())[:300]}") from error


def check_fit(model: Any, spec: TextSpec, config: HF.Config) -> None:
    """Raises InputError if the task has other tokens, or is longer than the model can read."""
    text = model.config.get_text_config()
    spare = text.vocab_size - spec.vocabulary
    if not 0 <= spare <= max(PADDING, spec.vocabulary // 20):
        raise InputError(
            f"policy.path={config.path} has {text.vocab_size:,} tokens and the task {spec.vocabulary:,}: "
            "it is written in others; env=jsonl reads your prompts with the tokenizer of the model"
        )
    if not 0 <= spec.end < text.vocab_size:
        raise InputError(f"policy.path={config.path}: no completion could end, for there is no end token")
    room, length = getattr(text, "max_position_embeddings", None), spec.prompt_length + spec.completion_length
    if room is not None and length > room:
        raise InputError(
            f"policy.path={config.path} reads {room:,} tokens, and a prompt of {spec.prompt_length:,} with "
            f"a completion of {spec.completion_length:,} are {length:,}"
        )


@torch.no_grad()
def check_decoding(policy: Writer) -> None:
    """Raises InputError if the model does not write token by token what it reads in one pass, once its rows were moved:
    states of its own kind, which are no keys and values, may lack that, or be lost on the way.
    """
    prompt = torch.arange(6).view(2, 3) % policy.vocabulary
    token = prompt[:, 0]
    turned = torch.tensor([1, 0])
    try:
        _, cache = policy.prefill({"prompt": prompt})
        cache.keep(turned)
        found = policy.step(token, cache).log_softmax(-1)
        whole = policy({"prompt": prompt[turned]}, torch.stack([token, token], 1))
        expected = whole.distribution.logits[:, 1].log_softmax(-1)
        same = bool(((found - expected).abs().amax() < 0.5).item())
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError, NotImplementedError):
        same = False
    if not same:
        raise InputError(
            f"policy.path={policy.config.path}: a {policy.model.config.model_type} has a memory of another kind than "
            "keys and values, with which pgcli cannot write"
        )


PADDING = 128
"""Rows that an embedding may have beyond the vocabulary (5 % in a large one), because sizes are rounded up."""


def width(model: Any) -> int:
    return model.get_output_embeddings().weight.shape[1]


def _twin(module: Any) -> Any:
    """A copy with its own parameters, which shares the buffers: all that is frozen."""
    return copy.deepcopy(module, {id(frozen): frozen for frozen in module.buffers()})


def positions(observations: dict[str, Tensor], following: int) -> dict[str, Tensor]:
    """Attention mask and position of each token, (N, S), for prompts padded on the left with `following` tokens after
    them. Empty if no row is padded.
    """
    if "lengths" not in observations:
        return {}
    P, lengths = observations["prompt"].shape[1], observations["lengths"]
    column = torch.arange(P + following, device=lengths.device)
    mask = column >= (P - lengths)[:, None]
    return {"attention_mask": mask.long(), "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


@contextmanager
def _inputs_of(layer: nn.Module, seen: list[Tensor]) -> Iterator[None]:
    """Collects a layer's inputs inside the context: those of the output layer are the last hidden states."""
    hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        yield
    finally:
        hook.remove()


def _without_dropout(model: nn.Module) -> None:
    """Turns dropout off also in training mode, which gradient checkpointing needs."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.eval()


def _adapt(model: nn.Module, lora: LoRA, generator: torch.Generator) -> None:
    """Put adapters into the model, in place, and freeze everything else."""
    peft = _need("peft")
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    settings = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0, bias="none"
    )
    read, written = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    tied = read.weight is written.weight
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):  # peft's own initialisation, which is replaced
            peft.inject_adapter_in_model(settings, model)
    except ValueError as error:
        raise InputError(f"policy.lora.targets: {' '.join(str(error).split())[:300]}") from error
    for name, layer in _adapted(model):
        if tied and layer.get_base_layer() in (read, written):
            raise InputError(
                f"policy.lora.targets: {name} shares its weights in this model, as embedding and output layer: with an "
                "adapter on one of them no export could be the same model"
            )
        for a, b in zip(layer.lora_A.parameters(), layer.lora_B.parameters(), strict=True):
            bound = 1 / math.sqrt(a.shape[1])  # that of a linear layer in torch
            a.data = torch.empty(a.shape).uniform_(-bound, bound, generator=generator)
            b.data = torch.zeros(b.shape)
        for a, b in zip(layer.lora_embedding_A.values(), layer.lora_embedding_B.values(), strict=True):
            a.data = torch.zeros(a.shape)  # peft's choice for an embedding
            b.data = torch.empty(b.shape).normal_(generator=generator)
    # Frozen weights become buffers: no optimiser sees them, and no checkpoint holds them.
    frozen = {id(p): p.data for p in model.parameters() if not p.requires_grad}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in frozen:
                del module._parameters[name]
                module.register_buffer(name, frozen[id(parameter)], persistent=False)


def _adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers that have an adapter, with their names."""
    return ((name, module) for name, module in model.named_modules() if hasattr(module, "lora_A"))


# ---------------------------------------------------------------- the packages


def _need(package: str) -> Any:
    """Imported only when used: transformers takes seconds."""
    try:
        with _quiet():
            return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"policy=hf needs a package that is not installed ({error.name}): "
            "run pip install 'policy-gradient-cli[llm]'"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences progress bars and advice of the packages: what matters is raised as an error."""
    logging = importlib.import_module("transformers.utils.logging")
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
