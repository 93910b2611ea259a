"""The downhill simplex (Nelder & Mead 1965), with the rules of Lagarias et al. 1998.

    f = -(mean return); n + 1 vertices, ordered f_1 <= ... <= f_{n+1}; c the centroid of all but the worst
    reflect             x_r = c + rho (c - x_{n+1})                f_1 <= f_r < f_n: take it
    expand              x_e = c + rho chi (c - x_{n+1})            f_r < f_1: take the better of x_e and x_r
    contract outside    x_c = c + rho gamma (c - x_{n+1})          f_n <= f_r < f_{n+1}: take it if f_c <= f_r
    contract inside     x_c = c - gamma (c - x_{n+1})              f_{n+1} <= f_r: take it if f_c < f_{n+1}
    shrink              x_i = x_1 + sigma (x_i - x_1)              otherwise: all but the best anew
    build               a new simplex around the best              once the diameter is below `tolerance`

One update evaluates the candidates of one move: a single one, or n to shrink and n + 1 to build. A run may stop and
resume between any two updates, also in the middle of an iteration.
The simplex compares each new vertex with values found earlier, and so with the luck in them. Therefore all vertices
play the same initial states; `fresh_seeds` draws new ones when a simplex is built, and all its vertices, the best one
too, are then evaluated anew. Candidates act deterministically; evaluations use the best vertex.
Differs from ES and GA: no random numbers except the directions of a new simplex; it remembers n + 1 points, and so is
for few parameters, at most 50.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from pgcli.collectors.settings import Candidates
from pgcli.errors import InputError
from pgcli.functional.evolution import diameter, initial_simplex, shrunk, simplex_coefficients, through_centroid
from pgcli.types import Acting, Fitness, Metrics, Needs, Population, State

MOST_PARAMETERS = 50
MOVES = ("build", "reflect", "expand", "contract_outside", "contract_inside", "shrink")


class NelderMead:
    class Config(Candidates):
        name: Literal["nelder_mead"]
        size: float = Field(
            gt=0, description="distance of a new simplex's vertices from the best one, each in one parameter"
        )
        tolerance: float = Field(
            ge=0, description="diameter of the simplex below which a new one is built around the best vertex"
        )
        adaptive: bool = Field(description="use coefficients that depend on the number of parameters (Gao & Han 2012)")

        @model_validator(mode="after")
        def _there_is_something_to_search(self) -> NelderMead.Config:
            if self.tolerance >= self.size:
                raise ValueError(
                    f"a new simplex has the diameter size={self.size:g}: with tolerance={self.tolerance:g} it would be "
                    "replaced at once; take a smaller tolerance"
                )
            return self

    METRICS: ClassVar = {
        "fitness/mean": "mean return of the candidates evaluated in this update",
        "fitness/best": "return of the best vertex",
        "fitness/worst": "return of the worst vertex",
        "simplex/diameter": "largest distance of a vertex from the best, in the maximum norm",
    } | {f"simplex/{move}": f"share of the updates that evaluated candidates of the move {move}" for move in MOVES}
    collects = ("population",)
    actions = ("discrete", "continuous")

    @staticmethod
    def needs(config: Config) -> Needs:
        return Acting()

    def __init__(self, policy: Any, config: Config, *, total_steps: int, seed: int) -> None:
        self.policy, self.config = policy, config
        start = parameters_to_vector(policy.parameters()).detach().cpu().double()
        if len(start) > MOST_PARAMETERS:
            raise InputError(
                f"algo=nelder_mead searches over at most {MOST_PARAMETERS} parameters, this policy has {len(start):,}; "
                "policy=linear has the fewest, and algo=es and algo=ga take any number"
            )
        self.coefficients = simplex_coefficients(len(start), adaptive=config.adaptive)
        self.generator = torch.Generator().manual_seed(seed)
        self.simplex = start.expand(len(start) + 1, -1).clone()  # (n + 1, P), the best first
        self.losses = start.new_zeros(len(start) + 1)
        self.reflected, self.reflected_loss = start, 0.0
        self.asked = self._build()

    # ---------------------------------------------------------------- ask and tell

    def _ask(self, move: str, candidates: Tensor) -> Tensor:
        self.move = move
        return candidates

    def _build(self) -> Tensor:
        signs = torch.randint(2, self.simplex[0].shape, generator=self.generator) * 2 - 1
        return self._ask("build", initial_simplex(self.simplex[0], self.config.size * signs))

    def _line(self, move: str, distance: float) -> Tensor:
        return self._ask(move, through_centroid(self.simplex, distance)[None])

    def tell(self, losses: Tensor) -> None:
        """Takes the losses of the candidates `asked`, (k,) float64, and sets the next candidates."""
        rho, chi, gamma, sigma = self.coefficients
        best, second_worst, worst = self.losses[0], self.losses[-2], self.losses[-1]
        loss = losses[0]
        match self.move:
            case "build":
                self.asked = self._next(self.asked, losses)
            case "reflect":
                self.reflected, self.reflected_loss = self.asked[0], float(loss)
                if loss < best:
                    self.asked = self._line("expand", rho * chi)
                elif loss < second_worst:
                    self.asked = self._replace(self.asked[0], loss)
                elif loss < worst:
                    self.asked = self._line("contract_outside", rho * gamma)
                else:
                    self.asked = self._line("contract_inside", -gamma)
            case "expand" if loss < self.reflected_loss:
                self.asked = self._replace(self.asked[0], loss)
            case "expand":
                self.asked = self._replace(self.reflected, losses.new_tensor(self.reflected_loss))
            case "contract_outside" if loss <= self.reflected_loss:
                self.asked = self._replace(self.asked[0], loss)
            case "contract_inside" if loss < worst:
                self.asked = self._replace(self.asked[0], loss)
            case "contract_outside" | "contract_inside":
                self.asked = self._ask("shrink", shrunk(self.simplex, sigma))
            case "shrink":
                self.asked = self._next(
                    torch.cat([self.simplex[:1], self.asked]), torch.cat([self.losses[:1], losses])
                )  # fmt: skip

    def _replace(self, vertex: Tensor, loss: Tensor) -> Tensor:
        """Put `vertex` in place of the worst one; returns the next candidates."""
        return self._next(torch.cat([self.simplex[:-1], vertex[None]]), torch.cat([self.losses[:-1], loss[None]]))

    def _next(self, simplex: Tensor, losses: Tensor) -> Tensor:
        """The first candidates of the next iteration. Among equal losses the older vertex comes first."""
        order = torch.argsort(losses, stable=True)
        self.simplex, self.losses = simplex[order], losses[order]
        if diameter(self.simplex) < self.config.tolerance:
            return self._build()
        return self._line("reflect", self.coefficients.reflection)

    # ---------------------------------------------------------------- the interface of the training loop

    def behaviour(self) -> Population:
        return Population(self.policy, self.asked.float(), fresh=self.config.fresh_seeds and self.move == "build")

    def update(self, fitness: Fitness) -> Metrics:
        moved = {f"simplex/{move}": float(move == self.move) for move in MOVES}
        self.tell(-fitness.returns)
        best = self.simplex[0].float().to(next(self.policy.parameters()).device)
        vector_to_parameters(best, self.policy.parameters())
        return moved | {
            "fitness/mean": float(fitness.returns.mean()),
            "fitness/best": -float(self.losses[0]),
            "fitness/worst": -float(self.losses[-1]),
            "simplex/diameter": float(diameter(self.simplex)),
        }

    def state_dict(self) -> State:
        return {
            "move": self.move,
            "asked": self.asked,
            "simplex": self.simplex,
            "losses": self.losses,
            "reflected": self.reflected,
            "reflected_loss": self.reflected_loss,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: State) -> None:
        self.move, self.asked = state["move"], state["asked"]
        self.simplex, self.losses = state["simplex"], state["losses"]
        self.reflected, self.reflected_loss = state["reflected"], state["reflected_loss"]
        self.generator.set_state(state["generator"])
