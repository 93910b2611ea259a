"""Evolution strategies (Salimans et al. 2017, algorithm 1), with antithetic pairs and centred ranks.

    J_sigma(theta) = E[ F(theta + sigma eps) ]                           eps standard normal, F the mean return
    g     = 1 / (K sigma) sum_i (u(theta + sigma eps_i) - u(theta - sigma eps_i)) eps_i            K / 2 pairs
    theta <- theta + alpha (g - lambda theta)                            or Adam of the same direction

u = F gives an unbiased estimate of grad J_sigma, and F needs no gradient of its own: a policy of comparisons and
thresholds will do. With u = centred ranks of F, g is not the gradient of a fixed function, but no increasing function
of the returns changes it, and no outlier outweighs the others.

The candidates act deterministically: their parameters explore. All play the same initial states (common random
numbers), and evaluations use theta, the centre of the candidates.
Differs from REINFORCE: noise in the parameters, once an episode, instead of noise in the actions, at each step; so
nothing is differentiated, no action is credited, and the variance does not grow with the length of the episode.
Differs from GA: the candidates are averaged into one direction instead of being kept.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from pgcli.algorithms import _update
from pgcli.algorithms._update import OptimiserSettings, Updater
from pgcli.collectors.settings import Generations
from pgcli.functional.evolution import antithetic, centred_ranks, es_gradient
from pgcli.types import Acting, Fitness, Metrics, Needs, Population, State


class ES:
    class Config(OptimiserSettings, Generations):
        name: Literal["es"]
        population: int = Field(ge=2, multiple_of=2, description="candidates of each generation, in mirrored pairs")
        noise_std: float = Field(gt=0, description="sigma: standard deviation of the candidates' parameters")
        utilities: Literal["centred_ranks", "returns"] = Field(
            description="weight of a candidate: its centred rank, or its return, which gives the gradient of the "
            "smoothed objective"
        )
        weight_decay: float = Field(ge=0, description="lambda: how strongly parameters are drawn to zero")
        optimiser: Literal["adam", "sgd"] = Field(
            description="rule of the step: adam, or sgd, which takes learning_rate times gradient"
        )

    METRICS: ClassVar = {key: text for key, text in _update.METRICS.items() if key != "loss/total"} | {
        "fitness/mean": "mean return of the candidates",
        "fitness/best": "return of the best candidate",
        "fitness/std": "standard deviation of the candidates' returns",
        "policy/parameter_norm": "norm of the parameters that are searched over, before the update",
    }
    collects = ("population",)
    actions = ("discrete", "continuous")

    @staticmethod
    def needs(config: Config) -> Needs:
        return Acting()

    def __init__(self, policy: Any, config: Config, *, total_steps: int, seed: int) -> None:
        self.policy, self.config = policy, config
        self.updater = Updater(policy, config, total_steps=total_steps, seed=seed)
        self.noise = self.updater.flat.new_empty((config.population // 2, len(self.updater.flat)))

    def behaviour(self) -> Population:
        self.noise = torch.randn(self.noise.shape, generator=self.updater.generator).to(self.noise.device)
        candidates = antithetic(self.updater.flat, self.noise, self.config.noise_std)
        return Population(self.policy, candidates, fresh=self.config.fresh_seeds)

    def gradient(self, returns: Tensor, noise: Tensor) -> Tensor:
        """Estimated gradient of the utilities: (K,) returns in the order of `antithetic`, (K / 2, P) noise -> (P,)."""
        utilities = centred_ranks(returns) if self.config.utilities == "centred_ranks" else returns
        return es_gradient(utilities.to(noise), noise, self.config.noise_std)

    def update(self, fitness: Fitness) -> Metrics:
        ascent = self.gradient(fitness.returns, self.noise)
        descent = self.config.weight_decay * self.updater.flat - ascent
        metrics = {
            "fitness/mean": float(fitness.returns.mean()),
            "fitness/best": float(fitness.returns.max()),
            "fitness/std": float(fitness.returns.std(correction=0)),
            "policy/parameter_norm": float(torch.linalg.vector_norm(self.updater.flat)),
        }
        adaptive = self.config.optimiser == "adam"
        return self.updater.apply(descent, metrics, steps=fitness.steps, adaptive=adaptive)

    def state_dict(self) -> State:
        """Without the noise: it is drawn for each generation, and there is no checkpoint in the middle of one."""
        return self.updater.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.updater.load_state_dict(state)
