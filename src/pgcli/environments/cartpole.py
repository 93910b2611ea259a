"""CartPole, vectorised in NumPy: the equations, seeds and limits of Gymnasium's CartPole-v1, without its cost.

Barto, Sutton and Anderson 1983, in the corrected form of Florian 2005 (no friction):

    temp    = (force + m l w^2 sin a) / M                                  a: angle, w: angular velocity
    w_dot   = (g sin a - cos a * temp) / (l (4/3 - m cos^2 a / M))
    x_ddot  = temp - m l w_dot cos a / M

One Euler step of 0.02 s; the position moves by the *old* velocity. A test holds states and rewards to
Gymnasium's, within 1e-9.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from pgcli.environments.normalise import Normalisation
from pgcli.settings import Settings
from pgcli.types import ControlSpec, Discrete, State, Step

GRAVITY, CART_MASS, POLE_MASS, HALF_LENGTH, FORCE, SECONDS = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
MASS = CART_MASS + POLE_MASS
MAX_POSITION, MAX_ANGLE = 2.4, 12 * 2 * np.pi / 360


class CartPole:
    """Push a cart left (0) or right (1) so that its pole stays up. Observation: x, speed, angle, its speed.

    CartPole-positions-v1 shows only x and angle: a single observation does not show which way the pole falls, two do.
    (CartPoleNoVel-v1 in RL Zoo, PositionOnlyCartPole in POPGym.)
    """

    world: ClassVar[str] = "control"
    replay_mismatch: str | None = None

    class Config(Settings):
        name: str = Field(description="name of this environment")
        id: Literal["CartPole-v1", "CartPole-positions-v1"] = Field(
            description="Gymnasium environment that this one equals, or the same with velocities hidden"
        )
        max_episode_steps: int = Field(gt=0, description="steps after which an episode is truncated")
        solved_at: float | None = Field(
            description="greedy return at which the environment counts as solved; null: none"
        )
        normalise: Normalisation = Field(description="transformations of observations and rewards")

    def __init__(self, config: Config, num_envs: int) -> None:
        self.num_envs = num_envs
        self._limit = config.max_episode_steps
        self._seen = slice(0, 4, 2) if config.id == "CartPole-positions-v1" else slice(4)
        self._carts = _Carts(num_envs, self._limit, self._seen)
        self._some = _Some(self._carts, self._limit, self._seen)
        self.spec = ControlSpec(observation_shape=(self._carts.observed,), actions=Discrete(2))

    def reset(self, rows: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        # Most of a reset's time is making a generator: it is made once for all rows that share a seed.
        draws = {seed: np.random.Generator(np.random.PCG64(seed)).uniform(-0.05, 0.05, 4) for seed in set(seeds)}
        starts = np.array([draws[seed] for seed in seeds]).reshape(-1, 4)
        self._some.bring_back()
        self._carts.state[:, rows] = 0.0
        self._carts.state[_Carts.OBSERVED, rows] = starts.T
        self._carts.state[_Carts.CLOCK_SPEED, rows] = 1 / SECONDS
        return starts[:, self._seen].astype(np.float32)

    def step(self, actions: np.ndarray, rows: np.ndarray | None = None) -> Step:
        if rows is not None:
            return self._some.step(actions, rows)
        self._some.bring_back()
        return self._carts.step(actions)

    def state_dict(self) -> State:
        self._some.bring_back()
        return {"state": self._carts.state.copy()}

    def load_state_dict(self, state: State) -> None:
        self._some.bring_back()
        self._carts.state[:] = state["state"]

    def close(self) -> None:
        pass


class _Some:
    """Steps a subset of rows on a copy of their carts, which is kept as long as the same rows are stepped."""

    def __init__(self, home: "_Carts", limit: int, seen: slice) -> None:
        self._home, self._limit, self._seen = home, limit, seen
        self._rows = np.empty(0, dtype=np.int64)
        self._out = _Carts(0, limit, seen)
        self._actions = np.zeros(0, dtype=np.int64)

    def step(self, actions: np.ndarray, rows: np.ndarray) -> Step:
        if len(rows) != len(self._rows) or np.count_nonzero(rows != self._rows):
            self.bring_back()
            self._take(rows)
        count = len(rows)
        if count == self._out.count:
            return self._out.step(actions)
        self._actions[:count] = actions
        return Step(*(part[:count] for part in self._out.step(self._actions)))

    def _take(self, rows: np.ndarray) -> None:
        # At most a third more carts than rows are kept: making new ones costs as much as several steps.
        if not len(rows) <= self._out.count <= len(rows) * 4 / 3:
            self._out = _Carts(len(rows), self._limit, self._seen)
            self._actions = np.zeros(len(rows), dtype=np.int64)
        self._out.state[:, : len(rows)] = self._home.state[:, rows]
        self._out.state[:, len(rows) :] = 0.0
        self._rows = rows.copy()

    def bring_back(self) -> None:
        if not len(self._rows):
            return
        self._home.state[:, self._rows] = self._out.state[:, : len(self._rows)]
        self._rows = self._rows[:0]


class _Carts:
    """N carts and their buffers. At N = 4 the NumPy calls are the cost of a step, about 0.25 us each if, and only if,
    every operand is contiguous and none is a Python number: hence the row order and the constants written out in full.

    state: (6, N) float64. Rows 0-2 are positions (x, angle, clock in steps), rows 3-5 their velocities; the clock moves
    at 1/SECONDS, so that one addition advances all three and one comparison finds both ways in which an episode ends.

    The operations round as Gymnasium's do: a falling pole multiplies a difference by e every quarter of a second, so a
    difference in the last bit of one step would give a different episode 500 steps later.
    """

    OBSERVED = np.array([[0], [3], [1], [4]])
    CLOCK_SPEED = 5

    def __init__(self, count: int, limit: int, seen: slice) -> None:
        def full(*rows: float) -> np.ndarray:
            return np.repeat(np.array(rows)[:, None], count, axis=1)

        self.count = count
        self.state = np.zeros((6, count))
        self._positions, self._velocities = self.state[:3], self.state[3:]
        self._angle, self._angular_velocity = self.state[1], self.state[4]
        self.observed = len(range(4)[seen])
        # (N, 2, 2): of x and of the angle, the position and the velocity, in the order of an observation
        self._observed = self.state.reshape(2, 3, count)[: self.observed // 2, :2].transpose(2, 1, 0)

        self._forces = np.array([-FORCE, FORCE])
        self._trig = np.empty((2, count))
        self._cos, self._sin = self._trig
        self._work = full(0.0, 0.0, GRAVITY)
        self._inertia, self._temp, _ = self._work
        self._inertia_and_temp, self._temp_and_gravity = self._work[:2], self._work[1:]
        self._torques = np.empty((2, count))
        self._scratch = np.empty(count)
        self._moves = np.empty((3, count))
        self._accelerations = np.zeros((3, count))  # the clock's stays 0

        moment = POLE_MASS * HALF_LENGTH
        self._moment, self._moments = full(moment)[0], full(moment, moment)
        self._mass, self._masses = full(MASS)[0], full(MASS, MASS)
        self._bare_inertia = full(4 / 3 * HALF_LENGTH)[0]
        self._seconds = full(SECONDS, SECONDS, SECONDS)
        self._limits = full(MAX_POSITION, MAX_ANGLE, limit - 0.5)
        self._reward = np.ones(count)

    def step(self, actions: np.ndarray) -> Step:
        cart, pole, _ = self._accelerations
        inertia, temp, scratch = self._inertia, self._temp, self._scratch
        np.cos(self._angle, self._cos)
        np.sin(self._angle, self._sin)
        # m l / M cos^2 a and temp together, because they share a factor and a divisor.
        np.multiply(self._cos, self._cos, inertia)
        np.multiply(self._angular_velocity, self._angular_velocity, temp)
        np.multiply(self._inertia_and_temp, self._moments, self._inertia_and_temp)
        np.multiply(temp, self._sin, temp)
        self._forces.take(actions, out=scratch, mode="clip")  # the other modes of `take` would buffer `out`
        np.add(temp, scratch, temp)
        np.divide(self._inertia_and_temp, self._masses, self._inertia_and_temp)
        # w_dot = (g sin a - cos a temp) / (4/3 l - m l / M cos^2 a): rounded as Gymnasium does, because l is a half
        np.multiply(self._trig, self._temp_and_gravity, self._torques)
        np.subtract(self._torques[1], self._torques[0], pole)
        np.subtract(self._bare_inertia, inertia, inertia)
        np.divide(pole, inertia, pole)
        # x_ddot = temp - m l w_dot cos a / M
        np.multiply(self._moment, pole, scratch)
        np.multiply(scratch, self._cos, scratch)
        np.divide(scratch, self._mass, scratch)
        np.subtract(temp, scratch, cart)

        np.multiply(self._velocities, self._seconds, self._moves)
        np.add(self._positions, self._moves, self._positions)
        np.multiply(self._accelerations, self._seconds, self._accelerations)
        np.add(self._velocities, self._accelerations, self._velocities)

        np.abs(self._positions, self._moves)
        x, angle, truncated = self._moves > self._limits
        rewards = self._reward.copy()
        observations = self._observed.astype(np.float32, "C").reshape(-1, self.observed)
        return Step(observations, rewards, x | angle, truncated, rewards)
