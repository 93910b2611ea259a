"""Evaluation of a policy: whole episodes that training never saw, greedy and stochastic, with an interval."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pgcli.collectors.episodes import Player
from pgcli.collectors.reference import view
from pgcli.errors import RunError
from pgcli.functional.masked import masked_sum
from pgcli.functional.pass_at_k import pass_at_k
from pgcli.seeding import episode_seeds, numpy_generator
from pgcli.student import student_quantile
from pgcli.types import Metrics, Rollout

METRICS = {
    "eval/return_mean": "mean undiscounted return of evaluation episodes, actions sampled from the policy; of a "
    "deterministic policy (es, ga, nelder_mead, ddpg, td3) the same as the greedy one",
    "eval/return_std": "standard deviation of the return of evaluation episodes, actions sampled from the policy",
    "eval/greedy_return_mean": "mean undiscounted return of evaluation episodes, each action the most probable",
    "eval/greedy_return_std": "standard deviation of the return of evaluation episodes, each action the most probable",
    "eval/length_mean": "mean length of the sampled evaluation episodes, in actions",
    "eval/finished": "share of sampled evaluation completions that ended by themselves, before the length limit",
    "eval/length_finished": "mean length of the sampled evaluation completions that ended by themselves, with the end "
    "token",
    "eval/length_cut": "mean length of the sampled evaluation completions that the length limit cut",
    "eval/kl": "KL(policy || reference) of a sampled evaluation episode: exact in each of its states, summed; mean "
    "over episodes, nats",
    "eval/kl_k1": "KL(policy || reference) of a sampled evaluation episode, estimated by the sum of its log-ratios; "
    "mean over episodes, nats",
    "eval/win_rate": "share of evaluation prompts that the policy completes better than the reference with the same "
    "noise, by the gold reward if there is one, else by the return; a tie counts 1/2; not where nothing is rewarded",
    "eval/preference_accuracy": "share of the task's held-out pairs whose preferred completion has the larger implicit "
    "reward (labels without pairs: of all pairs of a desirable completion and another); a tie counts 1/2",
    "eval/preference_margin": "implicit reward of the task's held-out preferred (or desirable) completions minus that "
    "of the others, mean",
    "eval/pass@k": "chance that one of k completions of a prompt is an exact match, for k = 1, 2, 4 up to eval.samples",
}
GOLD = "gold"
"""The component that is a text task's true reward, if training may maximise another one."""
SUCCESS = "exact_match"
"""The component that pass@k counts: 1 for a right completion, 0 for any other."""


@dataclass(frozen=True)
class Evaluation:
    """Returns of those episodes that could be scored. The interval is Student's 95 % interval of the mean over episodes
    of this one policy, or over the different prompts of a text task: a prompt that comes again says little more.
    """

    returns: np.ndarray
    lengths: np.ndarray
    components: dict[str, np.ndarray] = field(default_factory=dict)
    """Text tasks: the components of the reward, and values reported beside it."""
    finished: np.ndarray | None = None
    """Text tasks: which completions ended by themselves."""
    prompts: np.ndarray | None = None
    """Text tasks: the prompt of each return, (N, P) tokens."""

    @property
    def mean(self) -> float:
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        return float(self.returns.std(ddof=1)) if len(self.returns) > 1 else 0.0

    @property
    def interval(self) -> tuple[float, float] | None:
        """None for a single episode or prompt, which has no spread.

            variance = G / (G - 1) sum_g (n_g (m_g - mean))^2 / N^2      over G prompts, of n_g episodes with mean m_g

        With one episode of each prompt it is the usual one, s^2 / N. Source: the cluster-robust variance of a mean,
        Cameron & Miller 2015.
        """
        if self.independent < 2:
            return None
        sums = np.bincount(self._prompt_numbers(), self.returns - self.mean)
        error = math.sqrt(len(sums) / (len(sums) - 1) * float((sums**2).sum())) / len(self.returns)
        half = student_quantile(0.975, len(sums) - 1) * error
        return self.mean - half, self.mean + half

    @property
    def independent(self) -> int:
        """Number of different prompts, or of episodes in control."""
        return int(self._prompt_numbers().max()) + 1

    def _prompt_numbers(self) -> np.ndarray:
        """(N,): which returns have the same prompt."""
        if self.prompts is None:
            return np.arange(len(self.returns))
        return np.unique(self.prompts, axis=0, return_inverse=True)[1].reshape(-1)


def play(player: Player, policy: Any, *, episodes: int, seed: int, stream: str, greedy: bool) -> Evaluation:
    """`episodes` of `stream`: the same initial states for every policy that is evaluated with this seed and stream."""
    return read(play_once(player, policy, episodes=episodes, seed=seed, stream=stream, greedy=greedy))


def play_once(player: Player, policy: Any, *, episodes: int, seed: int, stream: str, greedy: bool) -> Rollout:
    """The episodes that `play` evaluates."""
    return next(_played(player, policy, episodes=episodes, seed=seed, stream=stream, greedy=greedy))


def evaluate_both(
    player: Player, policy: Any, *, episodes: int, seed: int, stream: str, samples: int = 1, reference: Any = None
) -> tuple[Metrics, Rollout]:
    """Metrics of the greedy and the stochastic policy; and the first sampled episode from each initial state.

    samples: sampled episodes from each initial state; the stochastic metrics are averaged over all of them.
    reference: a frozen policy; the rollout then has its log-probs, and `aux["kl"]`, each episode's KL to it.
    """
    sampled, more, rollout = play_sampled(player, policy, episodes=episodes, seed=seed, stream=stream, samples=samples)
    metrics = {"eval/return_mean": sampled.mean, "eval/return_std": sampled.std}
    greedy: Evaluation | None = sampled
    if not getattr(policy, "deterministic", False):  # one without noise would play the same episodes again
        best = play_once(player, policy, episodes=episodes, seed=seed, stream=stream, greedy=True)
        greedy = read(best) if is_scored(best) else None  # few prompts, and a reward that leaves some texts out
    if greedy is not None:
        metrics |= {"eval/greedy_return_mean": greedy.mean, "eval/greedy_return_std": greedy.std}
    metrics["eval/length_mean"] = float(sampled.lengths.mean())
    metrics |= more
    if reference is not None:
        metrics |= diverge(policy, reference, rollout)
    return metrics, rollout


def play_sampled(
    player: Player, policy: Any, *, episodes: int, seed: int, stream: str, samples: int
) -> tuple[Evaluation, Metrics, Rollout]:
    """All sampled episodes; components, lengths, pass@k of a text task; the first episode from each initial state."""
    played = _played(player, policy, episodes=episodes, seed=seed, stream=stream, greedy=False)
    rollouts = [next(played) for _ in range(samples)]
    each = [read(rollout) for rollout in rollouts]
    sampled = join(each)
    said = {name: x[~np.isnan(x)] for name, x in sampled.components.items() if name != "reward"}
    metrics = {f"eval/{name}": float(x.mean()) for name, x in said.items() if len(x)} | lengths(sampled)
    if samples > 1 and SUCCESS in sampled.components:
        metrics |= passes(np.stack([one.components[SUCCESS] for one in each], axis=1))
    return sampled, metrics, rollouts[0]


def _played(player: Player, policy: Any, *, episodes: int, seed: int, stream: str, greedy: bool) -> Iterator[Rollout]:
    """Rollouts from the same initial states, each with other noise."""
    seeds = episode_seeds(seed, stream, range(episodes))
    generator = None if greedy else numpy_generator(seed, stream, "actions")
    while True:
        yield player.play(policy, seeds, generator, held_out=True)


def read(rollout: Rollout) -> Evaluation:
    """The evaluation of whole episodes, one per row."""
    if not is_scored(rollout):
        raise RunError("no episode of the evaluation could be scored: more of them (eval.episodes), or another reward")
    totals = np.array([episode.total for episode in rollout.episodes])
    scored, asked = ~np.isnan(totals), rollout.observations
    return Evaluation(
        totals[scored],
        np.array([episode.length for episode in rollout.episodes]),
        {name: value.cpu().double().numpy() for name, value in rollout.aux.items()},
        rollout.terminated.any(1).cpu().numpy() if rollout.aux else None,
        asked["prompt"].cpu().numpy()[scored] if isinstance(asked, dict) and "prompt" in asked else None,
    )


def is_scored(rollout: Rollout) -> bool:
    """Whether any episode could be scored."""
    return not all(math.isnan(episode.total) for episode in rollout.episodes)


def join(parts: list[Evaluation]) -> Evaluation:
    return Evaluation(
        np.concatenate([part.returns for part in parts]),
        np.concatenate([part.lengths for part in parts]),
        {name: np.concatenate([part.components[name] for part in parts]) for name in parts[0].components},
        None if parts[0].finished is None else np.concatenate([part.finished for part in parts]),
        None if parts[0].prompts is None else np.concatenate([part.prompts for part in parts]),
    )


def lengths(found: Evaluation) -> Metrics:
    """Mean lengths of completions that ended and of those that were cut, if there are any; empty in control."""
    if found.finished is None:
        return {}
    kinds = {"eval/length_finished": found.finished, "eval/length_cut": ~found.finished}
    of_kind = {key: float(found.lengths[rows].mean()) for key, rows in kinds.items() if rows.any()}
    return {"eval/finished": float(found.finished.mean())} | of_kind


def passes(successes: np.ndarray) -> Metrics:
    """(prompts, samples) of zeros and ones -> pass@1, pass@2, pass@4 and so on."""
    samples = successes.shape[1]
    counts = torch.from_numpy(successes).sum(1)
    sizes = [2**i for i in range(samples.bit_length()) if 2**i <= samples]
    return {f"eval/pass@{k}": float(pass_at_k(counts, samples, k).mean()) for k in sizes}


def win_rate(own: Rollout, other: Rollout) -> float:
    """How often the one is better than the other, prompt by prompt, where both could be scored; a tie counts half."""
    difference = (_worth(own) - _worth(other)).cpu()
    difference = difference[~difference.isnan()]
    return float(((difference > 0).double() + (difference == 0).double() / 2).mean())


def _worth(rollout: Rollout) -> torch.Tensor:
    """(N,): the true reward of each row if it is known, else its return."""
    for name in (GOLD, "reward"):
        if name in rollout.aux:
            return rollout.aux[name]
    return torch.tensor([episode.total for episode in rollout.episodes])


@torch.no_grad()  # a standard deviation that no state changes is a view of the parameter, and has a graph
def diverge(policy: Any, reference: Any, rollout: Rollout) -> Metrics:
    """KL of the policy from the reference on the rollout, which also gets the reference's log-probs."""
    own, other = view(policy, rollout), view(reference, rollout)
    rollout.reference_log_probs = torch.where(rollout.mask, other.log_probs, 0)
    ratio = masked_sum(own.log_probs - other.log_probs, rollout.mask, dim=1)
    metrics = {"eval/kl_k1": float(ratio.mean())}
    if own.distribution is not None:
        rollout.aux = rollout.aux | {"kl": masked_sum(own.distribution.kl(other.distribution), rollout.mask, dim=1)}
        metrics["eval/kl"] = float(rollout.aux["kl"].mean())
    return metrics
