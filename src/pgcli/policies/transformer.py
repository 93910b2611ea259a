"""A small decoder-only transformer for text tasks: as a policy over tokens, or as a judge of texts.

Width 64, 2 layers and 14 characters make 108,608 parameters. All of them are kept in float32: under autocast the
products are in the narrower type, but the logits return to float32 before the temperature and the log-softmax (with
Adam in bfloat16, nine in ten small updates would round to nothing).

Shapes: N rows, P prompt tokens, T completion tokens, W width, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pgcli.functional.distributions import Categorical
from pgcli.policies import llama, writing
from pgcli.policies.choosing import Chooser, choose, choose_once
from pgcli.policies.reading import Reader, read, read_once
from pgcli.policies.trunk import Trunk, TrunkSettings, matrix
from pgcli.policies.writing import Cache
from pgcli.types import ABSENT, Evaluation, Needs, PolicyFunction, Scores, State, Stochastic, TextSpec


class Transformer(nn.Module):
    """A policy over tokens: token t of a completion is an action, the prompt and the tokens before it are its state.

        pi(v | state) = softmax(logits / temperature)

    The temperature is part of the policy: sampling, scoring and a reference with the same settings all divide by it.
    """

    offers: ClassVar = (Stochastic, Scores)
    reads: ClassVar = ("texts",)

    class Config(TrunkSettings):
        name: Literal["transformer"]
        temperature: float = Field(gt=0, description="divisor of the logits, in sampling, scoring and training alike")
        critic: Literal["shared", "separate", "reward_model"] = Field(
            description="of methods with a critic: trunk from which V(s) is computed, the policy's own (shared), a "
            "second one that starts as its copy (separate), or one that starts, with its head, as that of the run "
            "`reward`, of an ensemble as its first member (reward_model)"
        )

        path: str | None = Field(
            description="folder of initial weights in Llama's layout, as pgcli export writes it; null: fresh weights"
        )

        @field_validator("path")
        @classmethod
        def _from_anywhere(cls, path: str | None) -> str | None:
            return path and str(Path(path).expanduser().absolute())  # a run is resumed from other folders too

    unit = "sequence"

    @classmethod
    def make(cls, spec: TextSpec, config: Config, needs: Needs, generator: torch.Generator) -> Transformer | Scorer:
        policy: Transformer | Scorer
        match needs:
            case Scores(members):
                policy = Scorer(spec, config, members=members, generator=generator)
            case Stochastic(critic):
                policy = cls(spec, config, critic=critic, generator=generator)
            case _:
                raise AssertionError(needs)
        if config.path is not None:
            given = llama.read(Path(config.path), config, policy.spec)
            policy.load_state_dict(policy.adopt(given), strict=False)
        return policy

    def __init__(self, spec: TextSpec, config: Config, *, critic: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.spec, self.config = spec, config
        self.trunk = _trunk(self.spec, config, generator)
        self.unembedding = matrix(len(self.trunk.embedding), config.width, 1 / math.sqrt(config.width), generator)
        fresh = critic and config.critic != "reward_model"  # that one is made in `value_by`
        self.has_critic = fresh
        # Zero: an untrained critic gives V = 0, and its first gradients leave a shared trunk alone.
        self.critic = nn.Parameter(torch.zeros(1, config.width)) if fresh else None
        self.critic_bias: nn.Parameter | None = None
        self.critic_trunk = copy.deepcopy(self.trunk) if critic and config.critic == "separate" else None

    def value_by(self, judge: Scorer, mean: Tensor, std: Tensor) -> None:
        """Makes a critic of a judge's first member, which may be of another size than the policy:

            V(s) = (score of the text so far - mean) / std

        mean, std: of one element, the member's calibration.
        """
        self.critic_trunk = copy.deepcopy(cast("Trunk", judge.members[0])).requires_grad_(True)
        self.critic = nn.Parameter(judge.heads[:1].detach() / std.reshape(1, 1))
        self.critic_bias = nn.Parameter((-mean / std).reshape(1))
        self.has_critic = True

    def forward(self, observations: dict[str, Tensor], actions: Tensor) -> Evaluation:
        """observations {"prompt": (N, P)}, actions (N, T) -> an Evaluation of (N, T), in one pass.

        Position P - 1 + t has read the prompt and the actions before t: it gives the logits of action t and V(s_t).
        Padding comes after a row's end, so it changes nothing before it.
        """
        return self._evaluate(observations, actions, read, choose)

    def once_differentiable(self) -> PolicyFunction:
        return lambda observations, actions: self._evaluate(observations, actions, read_once, choose_once)

    def _evaluate(
        self, observations: dict[str, Tensor], actions: Tensor, reads: Reader, chooses: Chooser
    ) -> Evaluation:
        given = observations["prompt"], actions[:, :-1], actions.shape[1], _padding(observations)
        hidden = reads(self.trunk, *given)
        log_probs, entropy, logits = chooses(hidden, self.unembedding, actions, self.config.temperature)
        values = ABSENT
        if self.critic is not None:
            if self.critic_trunk is not None:
                hidden = reads(self.critic_trunk, *given)
            values = F.linear(hidden, self.critic, self.critic_bias).squeeze(-1).to(self.critic.dtype)
        return Evaluation(log_probs, entropy, values, Categorical(logits))

    @torch.no_grad()
    def prefill(self, observations: dict[str, Tensor]) -> tuple[Tensor, Cache]:
        """{"prompt": (N, P)} -> logits of the first action, (N, V), and the cache for `step`."""
        head = self.unembedding / self.config.temperature
        return writing.prefill(self.trunk, head, observations["prompt"], _padding(observations))

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """(N,), the tokens just chosen -> logits of the next action, (N, V). The cache is extended by them."""
        return writing.step(tokens, cache)

    def adopt(self, given: State) -> State:
        """Selects from another transformer's parameters those to start from, by their names here.

        The critic keeps its initialisation if the other has none, a separate one while this one shares the trunk, or
        one made of a judge. A separate critic that is given no trunk starts with a copy of the policy's. One that is
        made of a judge takes nothing from another critic.
        """
        own = {name: value for name, value in given.items() if not name.startswith("critic")}
        if self.critic is None:
            return own
        separate = any(name.startswith("critic_trunk.") for name in given)
        unlike = "critic_bias" in given or (separate and self.critic_trunk is None)
        found = own if unlike else given
        if self.critic_trunk is None:
            return found
        copies = {f"critic_{name}": value for name, value in own.items() if name.startswith("trunk.")}
        return copies | found

    def export(self, folder: Path) -> None:
        """Write the weights in Llama's layout, without a critic's."""
        llama.write(folder, self.state_dict(), self.config, self.spec, temperature=self.config.temperature)


class Scorer(nn.Module):
    """An ensemble of judges: `members` trunks, each with a linear score of every token's hidden state.

    Started from a language model, all members have copies of its trunk and different heads (Coste et al. 2024).
    """

    unit = "sequence"
    has_critic = False

    def __init__(self, spec: TextSpec, config: Transformer.Config, *, members: int, generator: torch.Generator) -> None:
        super().__init__()
        self.spec = spec
        self.members = nn.ModuleList(_trunk(self.spec, config, generator) for _ in range(members))
        # 1 / sqrt(W + 1): Stiennon et al. 2020, in their code.
        self.heads = matrix(members, config.width, 1 / math.sqrt(config.width + 1), generator)

    def forward(self, observations: dict[str, Tensor], actions: Tensor) -> Tensor:
        """observations {"prompt": (N, P)}, actions (N, T) -> (members, N, T): [.., t] has read actions 0 to t."""
        return self._evaluate(observations, actions, read)

    def once_differentiable(self) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
        return lambda observations, actions: self._evaluate(observations, actions, read_once)

    def _evaluate(self, observations: dict[str, Tensor], actions: Tensor, reads: Reader) -> Tensor:
        given = observations["prompt"], actions, actions.shape[1], _padding(observations)
        members = cast("Iterable[Trunk]", self.members)
        scores = [
            F.linear(reads(trunk, *given), head).to(head.dtype) for trunk, head in zip(members, self.heads, strict=True)
        ]
        return torch.stack(scores)

    def adopt(self, given: State) -> State:
        """Selects parameters to start from: a language model's trunk, for each member; all of another ensemble's."""
        trunk = {name.removeprefix("trunk."): x for name, x in given.items() if name.startswith("trunk.")}
        if not trunk:
            return given
        return {f"members.{m}.{name}": value for m in range(len(self.members)) for name, value in trunk.items()}


def _trunk(spec: TextSpec, config: TrunkSettings, generator: torch.Generator) -> Trunk:
    return Trunk(spec.vocabulary, spec.prompt_length + spec.completion_length, config, generator)


def _padding(observations: dict[str, Tensor]) -> Tensor | None:
    """(N,): number of padding tokens on the left of each prompt; None if there are no lengths."""
    if "lengths" not in observations:
        return None
    return observations["prompt"].shape[1] - observations["lengths"]
