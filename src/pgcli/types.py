"""The words that every floor shares: what an environment looks like, what a collector hands on, what an algorithm is.

Shapes: N rows (environments or completions), T actions (steps or tokens), right-padded. (N, T) everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pgcli.functional.masked import Aggregation, aggregation_weights

Metrics: TypeAlias = dict[str, float]
State: TypeAlias = dict[str, Any]
"""A checkpointable tree: dicts and lists of tensors, NumPy arrays, what JSON can hold, and at most one `Appended`.
Never an object.
"""


class Appended(NamedTuple):
    """Rows that are numbered from 0 and only ever appended: a checkpoint writes those that the one before it has not.

    first, end: the oldest row that is not forgotten, and the number that the next row will have.
    pieces: consecutive and none of them empty, each the number of its first row and its columns, name -> (n, ...).
    """

    first: int
    end: int
    pieces: list[tuple[int, dict[str, np.ndarray]]]


Observations: TypeAlias = Any
"""A tensor, or a dict of tensors, whose leading axes are those of the actions. Opaque to algorithms."""


ABSENT: Any = None
"""The value of a field that only some rollouts have. An algorithm that needs it has said so, and it is there."""


# ---------------------------------------------------------------- what an environment looks like


@dataclass(frozen=True)
class Discrete:
    """Actions 0 .. n-1."""

    n: int


@dataclass(frozen=True, eq=False)
class Continuous:
    """A box of real actions. `low`, `high`: (A,), possibly infinite."""

    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class ControlSpec:
    """What a policy must know of a stepped environment."""

    observation_shape: tuple[int, ...]
    actions: Discrete | Continuous
    states: int | None = None
    """Where the states can be counted: how many; an observation is then the one-hot vector of one."""


@dataclass(frozen=True)
class TextSpec:
    """What a policy must know of a text task. A completion ends with `end` or at the limit."""

    vocabulary: int
    prompt_length: int
    """Of the longest prompt."""
    completion_length: int
    """At most, the end token included."""
    end: int
    pad: int
    reply_length: int = 0
    """Tokens with which the task goes on after the policy's first end token, before a second turn; 0: one turn."""


Spec: TypeAlias = ControlSpec | TextSpec


class Step(NamedTuple):
    """One step of some rows of a vectorised environment.

    observations: (N, *shape) float32, the true successors: nothing has been reset.
    rewards: (N,) float64, as the algorithm sees them (normalised, where that is switched on).
    terminated, truncated: (N,) bool. The task ended | a time limit cut it.
    task_rewards: (N,) float64, before any normalisation: what episode returns and evaluations count.
    """

    observations: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    task_rewards: np.ndarray


class VectorEnvironment(Protocol):
    """`num_envs` copies of an environment that reset when told to, each episode with its own seed. No autoreset."""

    spec: ControlSpec
    num_envs: int

    @property
    def replay_mismatch(self) -> str | None:
        """After `load_state_dict`: why the open episodes are not exactly those that were saved. None: they are."""
        ...

    def reset(self, rows: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """Start new episodes in `rows` (k,): returns their observations, (k, *shape) float32."""
        ...

    def step(self, actions: np.ndarray, rows: np.ndarray | None = None) -> Step:
        """Advance `rows` (all, if None) by `actions`, (k,) int64 or (k, A) float. Only rows with an open episode."""
        ...

    def state_dict(self) -> State:
        """All that a resumed run needs to go on with the open episodes as if it had never stopped."""
        ...

    def load_state_dict(self, state: State) -> None: ...

    def close(self) -> None: ...


class Written(NamedTuple):
    """Completions that no policy sampled: a teacher's answers, or a corpus."""

    observations: Observations
    actions: Tensor
    """(N, T) int64, each row with its end token and padded after it."""


class TextTask(Protocol):
    """Prompts, each made by a seed, and a reward for a finished completion.

    Prompts are {"prompt": (N, P) int64}; where their lengths differ they are padded on the left, and "lengths" (N,)
    says how many of the last tokens are theirs. Everything is a function of the seeds alone.
    """

    spec: TextSpec
    COMPONENTS: ClassVar[dict[str, str]]
    """Each key of `rewards`, with its meaning. `exact_match`, where there is one, is 1 for a right completion and 0 for
    any other: it is what pass@k counts.
    """

    def prompts(self, seeds: Sequence[int], *, held_out: bool) -> Observations:
        """A held-out prompt never occurs among the others."""
        ...

    def rewards(self, observations: Observations, completions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Reward components, float32; `reward` is the one that is trained, the others are reported, (N,) each.

        NaN: nothing can be said of this row. Without a reward it is not learned from.

        completions: (N, T) int64, mask: (N, T) bool, 1 up to and including the end token.
        `reward` is (N,), received with the last token, or (N, T), received token by token.
        """
        ...

    def demonstrations(self, seeds: Sequence[int]) -> Written:
        """Right answers to training prompts: what supervised fine-tuning learns from."""
        ...

    def corpus(self, seeds: Sequence[int]) -> Written:
        """Text to learn the language from, prompts included: what pretraining learns from."""
        ...

    def encode(self, text: str) -> list[int]:
        """Raises InputError for what the vocabulary has not."""
        ...

    def decode(self, tokens: Sequence[int]) -> str: ...


class Replying(Protocol):
    """A text task of two turns (`spec.reply_length` > 0). It goes on where the policy's first turn has ended."""

    def replies(self, observations: Observations, completions: Tensor, mask: Tensor) -> Tensor:
        """What it says to first turns: (N, R) int64, a function of the prompt and of what was written.

        completions: (N, T), mask: (N, T), as in `rewards`; nothing follows the end token yet.
        """
        ...


class Completing(Protocol):
    """A text task whose observations hold more than a prompt, which a prompt that somebody types has not."""

    def complete(self, prompts: Observations, seeds: Sequence[int]) -> Observations:
        """The same prompts with all that `rewards` reads."""
        ...


class Comparing(Protocol):
    """A text task that may bring pairs of its own, which somebody has compared."""

    def given_pairs(self, *, held_out: bool) -> tuple[Written, Written] | None:
        """What was preferred and what was rejected, of the same prompts; None where it has none after all."""
        ...


class Revising(Protocol):
    """A text task with a constitution, which says what is wrong with an answer, so that it can be revised."""

    def criticise(
        self, observations: Observations, completions: Tensor, mask: Tensor, generator: np.random.Generator
    ) -> Tensor:
        """(N,) int64: the number of the rule by which each answer is criticised; -1: nothing is said of it."""
        ...

    def revision_prompts(
        self, observations: Observations, completions: Tensor, mask: Tensor, rules: Tensor
    ) -> Observations:
        """What a revision is written after: prompts as in `TextTask`. rules: (N,), none of them -1."""
        ...


# ---------------------------------------------------------------- what a policy is asked for, and answers


@dataclass(frozen=True)
class Stochastic:
    """A distribution over actions whose log-probs have a gradient, and with `critic` V(s)."""

    critic: bool = False
    meaning: ClassVar[str] = "a distribution over actions"


@dataclass(frozen=True)
class ActionValues:
    """Q(s, a) of all discrete actions at once."""

    meaning: ClassVar[str] = "values of all actions"


@dataclass(frozen=True)
class ActionTable:
    """Q(s, a) as the entries of a table, (S, n): the policy's only parameter."""

    meaning: ClassVar[str] = "a table of action values"


@dataclass(frozen=True)
class ActorWithQ:
    """An actor of bounded real actions, deterministic or reparameterised, and `critics` of Q(s, a) beside it."""

    critics: int
    stochastic: bool
    meaning: ClassVar[str] = "an actor with critics of Q(s, a)"


@dataclass(frozen=True)
class Acting:
    """Whatever acts and has parameters: no gradient is asked for."""

    meaning: ClassVar[str] = "parameters to search over"


@dataclass(frozen=True)
class Scores:
    """How good a text is, after each of its tokens: `members` of an ensemble, each by itself.

    Such a policy is called with (observations, actions (N, T)) and returns (members, N, T): the score at [.., t] has
    read the prompt and the actions up to and including t.
    """

    members: int = 1
    meaning: ClassVar[str] = "scores of texts"


Needs: TypeAlias = Stochastic | ActionValues | ActionTable | ActorWithQ | Acting | Scores
"""What an algorithm asks of its policy. A policy class says in `offers` which of them it can be."""


class Memoryless:
    """The memory of a sampler that has none. Who steps environments tells a sampler which episodes begin and end."""

    memory: dict[str, np.ndarray] | None = None
    """What is remembered of each row: (N, ...) each. None: nothing ever is."""

    def start(self, rows: int, memory: dict[str, np.ndarray] | None = None) -> None:
        """`rows` episodes begin, or go on with this `memory` of them."""

    def forget(self, rows: np.ndarray) -> None:
        """The episodes of `rows` (k,) are over; others begin there."""

    def keep(self, rows: np.ndarray) -> None:
        """From now on there are only `rows`: (N,) bool, or their numbers."""


class Distribution(Protocol):
    """What a policy draws its actions from: a NamedTuple of tensors that share the actions' leading shape."""

    def kl(self, other: Any) -> Tensor:
        """KL(self || other), exact, one for each state; `other` is of the same kind."""
        ...


class Evaluation(NamedTuple):
    """A policy's view of actions that were taken; each has the actions' leading shape, and a gradient."""

    log_probs: Tensor
    entropy: Tensor
    values: Tensor
    """ABSENT without a critic."""
    distribution: Distribution = ABSENT


PolicyFunction: TypeAlias = Callable[[Observations, Tensor], Evaluation]
"""The policy as a loss sees it: a module, or `torch.func.functional_call` bound to other parameters."""


class ActorCritics(Protocol):
    """What an off-policy loss asks of an actor with K critics: each pass says what it has a gradient of.

    observations (B, *shape), actions and noise (B, A).
    """

    def act(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions from standard normal noise, (B, A), and their log-probs (B,), densities in the unit box: the actor's
        gradient. A deterministic actor has no log-probs (ABSENT) and does not look at the noise.
        """
        ...

    def target_act(self, observations: Tensor, noise: Tensor) -> Tensor:
        """The target copy of a deterministic actor, (B, A), moved by noise in units of the unit box, and kept in it."""
        ...

    def values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q_k(s, a), (K, B): the critics' gradient."""
        ...

    def fixed_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q_k(s, a), (K, B): the actions' gradient, the critics are constants."""
        ...

    def target_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q_k(s, a) of the critics' target copies, (K, B): no gradient."""
        ...


# ---------------------------------------------------------------- what a collector hands on


Sample: TypeAlias = dict[str, Any]
"""A completion as a person reads it, and what is known of it: plain data, a row of samples.jsonl."""


class Episode(NamedTuple):
    """A finished episode: undiscounted return of the task's own rewards, length in actions, and its seed."""

    total: float
    length: int
    seed: int


def each_tensor(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`change` applied to a tensor, or to those of a dict or a NamedTuple; None stays None."""
    if tree is None or isinstance(tree, Tensor):
        return tree if tree is None else change(tree)
    if isinstance(tree, dict):
        return {key: each_tensor(value, change) for key, value in tree.items()}
    return tree._make(each_tensor(value, change) for value in tree)


@dataclass
class Rollout:
    """What was seen, done and received: the one thing that both worlds hand on. (N, T), right-padded."""

    observations: Observations
    """(N, T, *shape) in control; {"prompt": (N, P)} in language, where a prompt takes no T (see `TextTask`)."""
    actions: Tensor
    """(N, T) int64 or (N, T, A) float."""
    rewards: Tensor
    """(N, T), as the environment gave them: never modified in place."""
    terminated: Tensor
    """(N, T) bool: the task ended with this action."""
    truncated: Tensor
    """(N, T) bool: a time or length limit cut the episode after this action."""
    mask: Tensor
    """(N, T) bool: the policy chose this action (the end token included)."""
    log_probs: Tensor = ABSENT
    """(N, T), of the behaviour policy, under the exact sampling distribution. None for demonstrations."""
    values: Tensor = ABSENT
    """(N, T), V(s_t), where there is a critic."""
    next_values: Tensor = ABSENT
    """(N, T), V of the true successor; meaningless (and unused) where terminated."""
    reference_log_probs: Tensor = ABSENT
    """(N, T), of the frozen reference policy, where there is one."""
    groups: Tensor = ABSENT
    """(N,) int64: rows with the same initial state share a number."""
    weights: Tensor | None = None
    """(N,): None when sampled; the probability of each row when the rows enumerate a distribution."""
    distribution: Distribution = ABSENT
    """The behaviour policy's, of each state, where its collector was asked to keep it."""
    aux: dict[str, Tensor] = field(default_factory=dict)
    """(N,) each: reward components and the like, one for each episode."""
    metrics: Metrics = field(default_factory=dict)
    """What the collector has to say of it."""
    episodes: list[Episode] = field(default_factory=list)
    """Those that finished here."""
    discarded: int = 0
    """Actions that were taken for it and are not in it."""

    @property
    def done(self) -> Tensor:
        """(N, T) bool: the episode ended with this action, in either way."""
        return self.terminated | self.truncated

    @property
    def steps(self) -> int:
        """Actions that the policy chose."""
        return int(self.mask.sum()) + self.discarded

    def rows(self, keep: Tensor) -> Rollout:
        """Only some of its rows: (N,) bool, or their numbers. What `metrics` says was said of all of them, and the
        actions of the others were taken too.
        """
        whole = ("metrics", "episodes", "discarded")
        kept = {
            f.name: each_tensor(getattr(self, f.name), lambda x: x[keep]) for f in fields(self) if f.name not in whole
        }
        numbers = torch.arange(len(self.episodes))[keep.cpu()].tolist()
        discarded = self.steps - int(kept["mask"].sum())
        return replace(self, **kept, episodes=[self.episodes[number] for number in numbers], discarded=discarded)

    def batch(
        self,
        advantages: Tensor,
        aggregation: Aggregation,
        returns: Tensor = ABSENT,
        *,
        constant: float | None = None,
    ) -> Batch:
        """What the loss reads. `advantages`, `returns`: (N, T); `aggregation`: how the policy loss adds up."""
        per_action = aggregation_weights(self.mask, "token_mean", row_weights=self.weights)
        weights = per_action
        if aggregation != "token_mean":
            weights = aggregation_weights(self.mask, aggregation, row_weights=self.weights, constant=constant)
        return Batch(
            observations=self.observations, actions=self.actions, mask=self.mask, weights=weights,
            per_action=per_action, advantages=advantages, returns=returns, log_probs=self.log_probs, values=self.values,
            reference_log_probs=self.reference_log_probs,
        )  # fmt: skip


@dataclass
class Batch:
    """A rollout and its estimates, as a loss reads them: (N, T) whole sequences, or (B,) single actions once cut.

    Its weights are those of the whole batch, so that cutting it into minibatches changes no normaliser: the policy loss
    is `weighted_sum(..., weights)`, a mean over actions `weighted_sum(..., per_action)`.
    """

    observations: Observations
    actions: Tensor
    mask: Tensor
    """ABSENT once cut into single actions: there is no padding left."""
    weights: Tensor
    """The aggregation that the algorithm chose."""
    per_action: Tensor
    """Every action alike: they sum to one."""
    advantages: Tensor
    returns: Tensor = ABSENT
    log_probs: Tensor = ABSENT
    values: Tensor = ABSENT
    reference_log_probs: Tensor = ABSENT
    distribution: Distribution = ABSENT
    """The old policy's, of each state, where an exact KL to it is asked for."""

    def __len__(self) -> int:
        return len(self.actions)

    def single_actions(self) -> Batch:
        """Cut into (B,) single actions without the padding: the unit of a policy without memory."""
        keep = self.mask.flatten()
        everything = bool(keep.all())
        cut = self._each(lambda x: x.flatten(0, 1) if everything else x.flatten(0, 1)[keep])
        return replace(cut, mask=ABSENT)

    def __getitem__(self, rows: Tensor | slice) -> Batch:
        if isinstance(rows, slice):
            return self._each(lambda x: x[rows])
        return self._each(lambda x: x.index_select(0, rows))  # a third of the time of x[rows]

    def _each(self, cut: Callable[[Tensor], Tensor]) -> Batch:
        """`cut` applied to each tensor, once even if two fields share it."""
        done: dict[int, Any] = {id(None): None}
        for f in fields(self):
            value = getattr(self, f.name)
            if id(value) not in done:
                done[id(value)] = each_tensor(value, cut)
        return Batch(**{f.name: done[id(getattr(self, f.name))] for f in fields(self)})

    def minibatches(self, count: int, order: Tensor) -> Iterator[Batch]:
        """`count` pieces in the given order. Their losses have the whole batch's as their mean, exactly, even where a
        piece is smaller than the others: each one's weights are the batch's, times `count`.
        """
        shuffled = self[order]
        whole = {id(weights): weights * count for weights in (shuffled.weights, shuffled.per_action)}
        weights, per_action = whole[id(shuffled.weights)], whole[id(shuffled.per_action)]
        shuffled = replace(shuffled, weights=weights, per_action=per_action)
        for part in range(count):
            yield shuffled[len(self) * part // count : len(self) * (part + 1) // count]


@dataclass
class Transitions:
    """Single transitions in no particular order: what an off-policy loss reads. (B,) each."""

    observations: Tensor
    """(B, *shape)"""
    actions: Tensor
    """(B,) int64 or (B, A) float, as the environment was given them."""
    rewards: Tensor
    next_observations: Tensor
    """(B, *shape), the true successors: of a truncated episode its final observation."""
    terminated: Tensor
    """bool. There is nothing to bootstrap behind these; a truncated episode is bootstrapped like any other."""
    next_actions: Tensor = ABSENT
    """The actions that will be taken in `next_observations`, where the collector has chosen them (SARSA)."""
    weights: Tensor = ABSENT
    """How much each counts in a loss. ABSENT: all alike, and together one."""

    def __len__(self) -> int:
        return len(self.actions)

    def mean(self, x: Tensor) -> Tensor:
        """Of a quantity of each transition, (B,), by their weights: a scalar."""
        return x.mean() if self.weights is ABSENT else (x * self.weights).sum()


@dataclass
class Steps:
    """What a collector of fresh transitions hands on: one step of each environment."""

    transitions: Transitions
    episodes: list[Episode]
    """Those that finished with it."""

    @property
    def steps(self) -> int:
        return len(self.transitions)


class Replay(Protocol):
    """What a replay collector hands on: what just happened, and a memory to draw from."""

    steps: int
    """Actions taken since the last time."""
    episodes: list[Episode]
    """Those that finished meanwhile."""
    size: int
    """Transitions in the memory."""

    def draw(self, batch_size: int) -> Transitions:
        """Uniformly, with replacement."""
        ...


class Completions(NamedTuple):
    """Texts that somebody wrote, whoever it was: what is compared, labelled or judged. N rows, right-padded."""

    observations: Observations
    actions: Tensor
    """(N, T) int64."""
    mask: Tensor
    """(N, T) bool: up to and including the end token."""
    reference_log_probs: Tensor
    """(N, T), of the frozen reference policy; 0 on padding. ABSENT where nobody asks for them."""


class OfTexts:
    """What is learned from completions that stand in a table, whoever wrote them."""

    texts: Completions

    @property
    def steps(self) -> int:
        """Tokens that are trained on."""
        return int(self.texts.mask.sum())


@dataclass
class Preferences(OfTexts):
    """Pairs of completions of one prompt, one of which was preferred."""

    texts: Completions
    """2B rows: the preferred completions of B prompts, then, in the same order, those rejected."""
    numbers: Tensor
    """(B,) int64: which pair it is, the same whenever a dataset's comes again."""
    gold: Tensor
    """(B,), the task's true reward of the preferred one minus that of the rejected: a label may be wrong."""
    metrics: Metrics = field(default_factory=dict)
    episodes: list[Episode] = field(default_factory=list)
    """Completions that were written for it, where they were."""


@dataclass
class Labelled(OfTexts):
    """Completions that are desirable or not, each by itself."""

    texts: Completions
    """N rows."""
    desirable: Tensor
    """(N,) bool."""
    mismatched: Completions
    """N rows: the same prompts, each with a completion that was written for another one."""
    metrics: Metrics = field(default_factory=dict)
    episodes: list[Episode] = field(default_factory=list)


@dataclass
class Checked(OfTexts):
    """Completions of which it is known what is right: each as a whole, or each of its steps."""

    texts: Completions
    """N rows."""
    right: Tensor
    """(N, T), 0 or 1, at the tokens that `known` names."""
    known: Tensor
    """(N, T) bool: the last token of a completion, or of each of its steps."""
    metrics: Metrics = field(default_factory=dict)
    episodes: list[Episode] = field(default_factory=list)


@dataclass
class Gradients:
    """What an asynchronous worker hands on: the gradient of its loss on one segment, all parameters in one vector."""

    flat: Tensor
    """(P,)"""
    terms: Metrics
    """What the loss reports of itself."""
    statistics: Metrics
    """What else is worth knowing of the segment; may be NaN."""
    steps: int
    episodes: list[Episode]
    staleness: int = 0
    """Updates made by others between reading the parameters and applying this."""

    @classmethod
    def load(cls, saved: State) -> Gradients:
        """From `vars` of one that went through a checkpoint."""
        return cls(**saved | {"episodes": [Episode(*episode) for episode in saved["episodes"]]})


@dataclass
class Population:
    """What a population collector plays: copies of one policy, each with parameters of its own."""

    policy: Any
    """Of the role `Acting`."""
    candidates: Tensor
    """(K, P): each row replaces `policy.parameters()`, flattened one after the other."""
    fresh: bool = True
    """From new initial states; otherwise from those of the last time."""


@dataclass
class Fitness:
    """What a population collector hands on."""

    returns: Tensor
    """(K,) float64, each candidate's mean undiscounted return, of the task's own rewards."""
    steps: int
    """Actions taken, by all candidates together."""
    episodes: list[Episode]
    """The same number of each candidate, one candidate after the other."""


# ---------------------------------------------------------------- what an algorithm is


class Policy(Protocol):
    """A module that any algorithm can train. `unit`: what a minibatch is cut by."""

    unit: ClassVar[str]
    """`action` (no memory) or `sequence`."""
    has_critic: bool

    def __call__(self, observations: Observations, actions: Tensor) -> Evaluation: ...

    def once_differentiable(self) -> PolicyFunction:
        """The same evaluation for a gradient step: the policy itself, or a faster function of the same parameters."""
        ...


class Algorithm(Protocol):
    """One class a module. It says what it needs; it never asks which world it is in."""

    Config: ClassVar[type]
    """A `Settings` model; its values are in `conf/algo/<name>.yaml`."""
    METRICS: ClassVar[dict[str, str]]
    """Every key that `update` returns, with its meaning."""
    collects: ClassVar[tuple[str, ...]]
    """What it can learn from, best first: `segments`, `episodes`, `groups`, `demonstrations`, `revisions`, `pairs`,
    `judged`, `labelled`, `checked`, `transitions`, `replay`, `population`, `gradients`."""

    @staticmethod
    def needs(config: Any) -> Needs:
        """What it asks of its policy."""
        ...

    def update(self, rollout: Any) -> Metrics:
        """Learn from what the collector handed on. An algorithm may also have `behaviour()`: who acts while training,
        where that is not the policy itself (it explores, or is a population), and `warnings(config)`: what it runs
        though something is wrong with it.
        """
        ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


class Collector(Protocol):
    """Plays a policy and hands on what an algorithm learns from, a Rollout or a Replay."""

    def collect(self, policy: Any) -> Any: ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...
