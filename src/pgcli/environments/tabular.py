"""Tabular worlds: finite Markov decision processes given by their matrices, stepped like any other environment.

    P(s' | s, a), r(s, a, s'), a distribution of starts, terminal states, a limit of steps

The matrices are in `Tabular.mdp`, so values, policies and gradients can be computed (`functional.dynamic_programming`).
They come from one of three settings: a `grid` drawn in text, a `random` world from a seed, or the `matrices`
themselves. The observation is the one-hot vector of the state.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from pgcli.environments.normalise import Normalisation
from pgcli.functional.dynamic_programming import MDP
from pgcli.settings import Settings
from pgcli.types import ControlSpec, Discrete, State, Step

Probability = Annotated[float, Field(ge=0, le=1)]
MOVES = {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)}


class Grid(Settings):
    """Cells of a map: `S` start, `G` goal, `C` cliff, `#` wall, `.` free. Walls and the border stop a move."""

    map: tuple[str, ...] = Field(min_length=1, description="rows of cells: S start, G goal, C cliff, # wall, . free")
    moves: tuple[Literal["up", "right", "down", "left"], ...] = Field(
        min_length=1, description="directions that an action can choose, in the order of the actions"
    )
    step_reward: float = Field(description="reward of a move that leads neither to a goal nor to a cliff")
    goal_reward: float = Field(description="reward of reaching a goal, which ends the episode")
    cliff_reward: float = Field(description="reward of stepping off a cliff, which leads back to a start")
    slip: Probability = Field(description="probability that a random move is made instead of the chosen one")

    @model_validator(mode="after")
    def _has_a_way(self) -> "Grid":
        if len({len(row) for row in self.map}) > 1:
            raise ValueError("the rows of a map must be equally long")
        cells = "".join(self.map)
        if unknown := sorted(set(cells) - set("SGC#.")):
            raise ValueError(f"a map has no `{unknown[0]}`; its cells are S, G, C, # and .")
        if not {"S", "G"} <= set(cells):
            raise ValueError("a map needs a start S and a goal G")
        if len(set(self.moves)) < len(self.moves):
            raise ValueError("moves names one twice")
        return self


class Random(Settings):
    """A Garnet (Archibald et al. 1995): each state and action leads to a few random states, at random odds."""

    states: int = Field(ge=2, description="number of states")
    actions: int = Field(ge=1, description="number of actions")
    branching: int = Field(ge=1, description="number of states that one action can lead to")
    terminal: int = Field(ge=0, description="number of states that end an episode")
    seed: int = Field(ge=0, description="seed of the world, independent of the run's seed")

    @model_validator(mode="after")
    def _fits(self) -> "Random":
        if self.branching > self.states:
            raise ValueError(f"branching is {self.branching}, but there are {self.states} states to go to")
        if self.terminal >= self.states:
            raise ValueError(f"terminal is {self.terminal} of {self.states} states: an episode could not begin")
        return self


class Matrices(Settings):
    """The matrices of a world."""

    transitions: tuple[tuple[tuple[Probability, ...], ...], ...] = Field(
        min_length=1, description="p(s' | s, a), in the order s, a, s'"
    )
    rewards: tuple[tuple[tuple[float, ...], ...], ...] = Field(description="r(s, a, s'), in the order s, a, s'")
    start: tuple[Probability, ...] = Field(description="probability of beginning in each state")
    terminal: tuple[int, ...] = Field(description="numbers of the states that end an episode, from 0")

    @model_validator(mode="after")
    def _is_a_world(self) -> "Matrices":
        states, actions = len(self.transitions), len(self.transitions[0])
        for name, table in (("transitions", self.transitions), ("rewards", self.rewards)):
            if len(table) != states or any(len(row) != actions or {*map(len, row)} != {states} for row in table):
                raise ValueError(f"{name} must be {states} x {actions} x {states} numbers")
        if len(self.start) != states:
            raise ValueError(f"start must be {states} numbers")
        if wrong := [s for s in self.terminal if not 0 <= s < states]:
            raise ValueError(f"terminal names state {wrong[0]}; they are 0 to {states - 1}")
        for s, a in ((s, a) for s in range(states) for a in range(actions)):
            if s not in self.terminal and abs(sum(self.transitions[s][a]) - 1) > 1e-9:
                total = sum(self.transitions[s][a])
                raise ValueError(f"transitions from state {s} by action {a} add up to {total:g}, not 1")
        if abs(sum(self.start) - 1) > 1e-9 or any(self.start[s] for s in self.terminal):
            raise ValueError("start must add up to 1, outside the terminal states")
        return self


class Tabular:
    world: ClassVar[str] = "control"
    replay_mismatch: str | None = None

    class Config(Settings):
        name: str = Field(description="name of this environment")
        grid: Grid | None = Field(description="world drawn in text; null: another kind of world")
        random: Random | None = Field(description="random world from a seed; null: another kind of world")
        matrices: Matrices | None = Field(description="world given by its matrices; null: another kind of world")
        max_episode_steps: int = Field(gt=0, description="steps after which an episode is truncated")
        solved_at: float | None = Field(
            description="greedy return at which the environment counts as solved; null: none"
        )
        normalise: Normalisation = Field(description="transformations of observations and rewards")

        @model_validator(mode="after")
        def _one_world(self) -> "Tabular.Config":
            if sum(x is not None for x in (self.grid, self.random, self.matrices)) != 1:
                raise ValueError("a tabular world is one of grid, random and matrices; the other two are null")
            return self

    def __init__(self, config: Config, num_envs: int) -> None:
        self.num_envs = num_envs
        self.mdp = world_of(config)
        states, actions, _ = self.mdp.transitions.shape
        self.spec = ControlSpec((states,), Discrete(actions), states)
        self._limit = config.max_episode_steps
        self._rewards, self._terminal = self.mdp.rewards.numpy(), self.mdp.terminal.numpy()
        self._start, self._next = _cumulative(self.mdp.start.numpy()), _cumulative(self.mdp.transitions.numpy())
        self._one_hot = np.eye(states, dtype=np.float32)
        self._states = np.zeros(num_envs, dtype=np.int64)
        self._seeds, self._clock = np.zeros_like(self._states), np.zeros_like(self._states)

    def reset(self, rows: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        self._seeds[rows], self._clock[rows] = seeds, 0
        self._states[rows] = _draw(self._start, uniforms(self._seeds[rows], self._clock[rows]))
        return self._one_hot[self._states[rows]]

    def step(self, actions: np.ndarray, rows: np.ndarray | None = None) -> Step:
        rows = np.arange(self.num_envs) if rows is None else rows
        self._clock[rows] += 1
        before, clock = self._states[rows], self._clock[rows]
        after = _draw(self._next[before, actions], uniforms(self._seeds[rows], clock))
        self._states[rows] = after
        rewards = self._rewards[before, actions, after]
        terminated = self._terminal[after]
        return Step(self._one_hot[after], rewards, terminated, ~terminated & (clock >= self._limit), rewards)

    def encode(self, state: int) -> np.ndarray:
        return self._one_hot[state]

    def state_dict(self) -> State:
        return {"states": self._states.copy(), "seeds": self._seeds.copy(), "clock": self._clock.copy()}

    def load_state_dict(self, state: State) -> None:
        self._states[:], self._seeds[:], self._clock[:] = state["states"], state["seeds"], state["clock"]

    def close(self) -> None:
        pass


# ---------------------------------------------------------------- chance, as a function of seed and step


def uniforms(seeds: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """(k,) float64 in [0, 1): the random number of each step of each episode, independent of earlier draws.

    SplitMix64 (Steele, Lea and Flood 2014): a seed's stream, which can be read at any position. So an environment has
    no generator whose state a checkpoint would have to keep.
    """
    golden = np.uint64(0x9E37_79B9_7F4A_7C15)
    key = _scramble(seeds.astype(np.uint64) * golden)
    return (_scramble(key + (steps.astype(np.uint64) + np.uint64(1)) * golden) >> np.uint64(11)) * 2.0**-53


def _scramble(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    return x ^ (x >> np.uint64(31))


def _cumulative(probabilities: np.ndarray) -> np.ndarray:
    """Cumulative sums along the last axis, exactly 1 from the last possible outcome on, despite rounding."""
    sums = probabilities.cumsum(-1)
    return sums / np.where(sums[..., -1:] > 0, sums[..., -1:], 1)


def _draw(cumulative: np.ndarray, u: np.ndarray) -> np.ndarray:
    """The first outcome whose cumulative probability exceeds u: (k, S), or one (S,) for all -> (k,)."""
    return (cumulative <= u[:, None]).sum(-1)


# ---------------------------------------------------------------- making the matrices


def world_of(config: Tabular.Config) -> MDP:
    """The matrices that a config describes, in float64."""
    if config.grid is not None:
        return grid_world(config.grid)
    if config.random is not None:
        return random_world(config.random)
    given = config.matrices
    assert given is not None
    terminal = torch.zeros(len(given.start), dtype=torch.bool)
    terminal[list(given.terminal)] = True
    return MDP(_doubles(given.transitions), _doubles(given.rewards), _doubles(given.start), terminal)


def grid_world(grid: Grid) -> MDP:
    """States are the starts, goals and free cells, row by row. A fall leads to one of the starts, drawn uniformly."""
    cells = {(y, x): cell for y, row in enumerate(grid.map) for x, cell in enumerate(row)}
    number = {place: i for i, place in enumerate(place for place, cell in cells.items() if cell in "SG.")}
    starts = [number[place] for place in number if cells[place] == "S"]
    goals = [number[place] for place in number if cells[place] == "G"]
    states, actions = len(number), len(grid.moves)

    made, paid = np.zeros((states, actions, states)), np.zeros((states, actions, states))  # by a move; p and p * r
    for (y, x), s in number.items():
        for a, move in enumerate(grid.moves):
            there = (y + MOVES[move][0], x + MOVES[move][1])
            cell = cells.get(there, "#")
            arrivals = starts if cell == "C" else [s if cell == "#" else number[there]]
            reward = {"C": grid.cliff_reward, "G": grid.goal_reward}.get(cell, grid.step_reward)
            made[s, a, arrivals] += 1 / len(arrivals)
            paid[s, a, arrivals] += reward / len(arrivals)

    def slipping(x: np.ndarray) -> np.ndarray:
        return (1 - grid.slip) * x + grid.slip * x.mean(axis=1, keepdims=True)

    transitions, payments = slipping(made), slipping(paid)
    # The mean reward, if a step can happen in two ways: by walking to the start, or by a fall.
    rewards = np.divide(payments, transitions, out=np.zeros_like(payments), where=transitions > 0)
    start, terminal = np.zeros(states), np.zeros(states, dtype=bool)
    start[starts], terminal[goals] = 1 / len(starts), True
    return MDP(_doubles(transitions), _doubles(rewards), _doubles(start), torch.from_numpy(terminal))


def random_world(config: Random) -> MDP:
    """Rewards are normal, one for each state and action; the last states are the terminal ones; any other may begin."""
    generator = np.random.Generator(np.random.PCG64(config.seed))
    shape = (config.states, config.actions)
    transitions = np.zeros((*shape, config.states))
    for s, a in np.ndindex(shape):
        reached = generator.choice(config.states, size=config.branching, replace=False)
        cuts = np.sort(generator.uniform(size=config.branching - 1))
        transitions[s, a, reached] = [high - low for low, high in pairwise([0.0, *cuts, 1.0])]
    rewards = np.repeat(generator.standard_normal(shape)[:, :, None], config.states, axis=2)
    terminal = np.arange(config.states) >= config.states - config.terminal
    return MDP(
        _doubles(transitions), _doubles(rewards), _doubles(~terminal / (~terminal).sum()), torch.from_numpy(terminal)
    )


def _doubles(numbers: object) -> torch.Tensor:
    return torch.from_numpy(np.array(numbers, dtype=np.float64))
