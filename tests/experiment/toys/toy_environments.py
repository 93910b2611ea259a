"""Environments that misbehave, each in its own way. On a path of their own: named as `toy_environments:NaN-v0`."""

import itertools

import gymnasium
import numpy as np
from gymnasium import spaces

CLOCK = itertools.count()
"""Goes on whatever the seed: what no well-behaved environment looks at."""


class Toy(gymnasium.Env):
    """Episodes of twenty steps; the observation is the step's number and a number of the episode's own generator."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self):
        self.lives = 0  # steps since the environment was made

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), {}

    def step(self, action):
        self.t += 1
        self.lives += 1
        return self.observe(), float(action), self.t == 20, False, {}

    def observe(self):
        return np.array([self.t / 20, self.np_random.normal()], dtype=np.float32)


class NaN(Toy):
    """Not a number in its 250th observation."""

    def observe(self):
        return super().observe() * (np.nan if self.lives == 250 else 1.0)


class Raises(Toy):
    def step(self, action):
        if self.lives == 250:
            raise RuntimeError("the motor is\non fire")
        return super().step(action)


class Clock(Toy):
    """Not a function of (seed, actions)."""

    def observe(self):
        return np.array([self.t / 20, next(CLOCK)], dtype=np.float32)


for one in (Toy, NaN, Raises, Clock):
    gymnasium.register(f"{one.__name__}-v0", one, max_episode_steps=1000)
