"""A genetic algorithm over parameters (Such et al. 2017, algorithm 1).

    the best `elites` candidates pass on unchanged; every other candidate of the next generation is
        child = parent + sigma eps                  eps standard normal, the parent one of the best few (truncation),
                                                    or the best of a few drawn at random (tournament)
    and, for a share of the children, each parameter of the parent is first swapped for a second parent's with even odds

Only the order of the fitnesses counts. Fitness is noisy, since it is the mean of a few episodes: a lucky candidate
would stay for ever. So an elite plays again in every generation, on the same new initial states as all others, and
has to win again. Evaluations use the best candidate of the last generation; more `num_episodes` make that choice surer.
The candidates act deterministically: their parameters explore.
Differs from ES: candidates are kept and changed, not averaged into one direction; so there are no pairs, no step size,
and the search can follow several hills at once.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from pgcli.collectors.settings import Generations
from pgcli.functional.evolution import tournament_selection, truncation_selection, uniform_crossover
from pgcli.types import Acting, Fitness, Metrics, Needs, Population, State


class GA:
    class Config(Generations):
        name: Literal["ga"]
        elites: int = Field(ge=0, description="number of best candidates that pass unchanged to the next generation")
        selection: Literal["truncation", "tournament"] = Field(
            description="how a parent is chosen: evenly from the best candidates, or as the best of a few drawn at "
            "random"
        )
        parents: float = Field(
            gt=0,
            le=1,
            description="with selection=truncation: share of the candidates, the best ones, from which parents are "
            "drawn evenly",
        )
        tournament_size: int = Field(
            ge=1, description="with selection=tournament: candidates drawn at random, whose best is the parent"
        )
        initial_std: float = Field(
            gt=0, description="standard deviation of the first generation around the policy's initial parameters"
        )
        mutation_std: float = Field(
            gt=0, description="sigma: standard deviation of a child's parameters around its parent's"
        )
        crossover: float = Field(ge=0, le=1, description="share of the children that mix two parents")

        @model_validator(mode="after")
        def _has_children(self) -> GA.Config:
            if self.elites >= self.population:
                raise ValueError(f"with {self.elites} elites a population of {self.population} has no children")
            return self

    METRICS: ClassVar = {
        "fitness/mean": "mean return of the candidates",
        "fitness/best": "return of the best candidate",
        "fitness/std": "standard deviation of the candidates' returns",
        "fitness/elites": "mean return of the last generation's elites in this generation",
        "policy/spread": "standard deviation of the candidates around their mean, averaged over parameters",
    }
    collects = ("population",)
    actions = ("discrete", "continuous")

    @staticmethod
    def needs(config: Config) -> Needs:
        return Acting()

    def __init__(self, policy: Any, config: Config, *, total_steps: int, seed: int) -> None:
        self.policy, self.config = policy, config
        self.generator = torch.Generator().manual_seed(seed)
        start = parameters_to_vector(policy.parameters()).detach()
        self.candidates = start + config.initial_std * self._normal(config.population, len(start)).to(start.device)
        self.candidates[0] = start
        self.survivors = 0
        """How many of the candidates, the first ones, are elites of the last generation."""

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def behaviour(self) -> Population:
        return Population(self.policy, self.candidates, fresh=self.config.fresh_seeds)

    def parents(self, returns: Tensor, count: int) -> Tensor:
        """Indices of `count` parents of the next generation, selected by the returns (K,): (count,) int64."""
        if self.config.selection == "tournament":
            size = (count, self.config.tournament_size)
            return tournament_selection(returns, torch.randint(len(returns), size, generator=self.generator))
        best = truncation_selection(returns, max(1, round(self.config.parents * len(returns))))
        return best[torch.randint(len(best), (count,), generator=self.generator)]

    def offspring(self, returns: Tensor, count: int) -> Tensor:
        """(count, P) children."""
        shape = (count, self.candidates.shape[1])
        children = self.candidates[self.parents(returns, count)]
        if self.config.crossover > 0:
            others = self.candidates[self.parents(returns, count)]
            mixes = torch.rand((count, 1), generator=self.generator) < self.config.crossover
            swapped = mixes & (torch.rand(shape, generator=self.generator) < 0.5)
            children = uniform_crossover(others, children, swapped.to(children.device))
        return children + self.config.mutation_std * self._normal(*shape).to(children.device)

    def update(self, fitness: Fitness) -> Metrics:
        returns = fitness.returns
        order = truncation_selection(returns, len(returns))
        elites = self.config.elites
        metrics = {
            "fitness/mean": float(returns.mean()),
            "fitness/best": float(returns.max()),
            "fitness/std": float(returns.std(correction=0)),
            "policy/spread": float(self.candidates.std(0, correction=0).mean()),
        }
        if self.survivors:
            metrics["fitness/elites"] = float(returns[: self.survivors].mean())
        vector_to_parameters(self.candidates[order[0]].clone(), self.policy.parameters())
        children = self.offspring(returns, len(returns) - elites)
        self.candidates, self.survivors = torch.cat([self.candidates[order[:elites]], children]), elites
        return metrics

    def state_dict(self) -> State:
        return {
            "candidates": self.candidates, "survivors": self.survivors, "generator": self.generator.get_state()
        }  # fmt: skip

    def load_state_dict(self, state: State) -> None:
        self.candidates, self.survivors = state["candidates"].to(self.candidates.device), state["survivors"]
        self.generator.set_state(state["generator"])
