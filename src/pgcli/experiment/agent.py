"""A trained policy outside of pgcli: one observation in, one action out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pgcli.environments.raw import decoded, encoded
from pgcli.errors import InputError
from pgcli.experiment.session import opened
from pgcli.runs.reader import find_run
from pgcli.seeding import numpy_generator
from pgcli.types import VectorEnvironment


class Agent:
    """Acts as the policy does in an evaluation: with the normalisation that it was trained with, and its memory."""

    def __init__(self, policy: Any, environment: VectorEnvironment, generator: np.random.Generator | None) -> None:
        self._sampler, self._environment, self._generator = policy.sampler(), environment, generator
        self.reset()

    def reset(self) -> None:
        """An episode begins. Only a policy with a memory needs to be told."""
        self._sampler.start(1)

    def act(self, observation: Any) -> Any:
        """An observation of the environment that the run was trained in -> an action that its `step` takes.

        Raises InputError if it is not an observation of that environment.
        """
        noise = None if self._generator is None else self._sampler.noise(self._generator, (1,))
        actions, _ = self._sampler.act(encoded(self._environment, observation)[None], noise)
        return decoded(self._environment, actions[0])


def load(
    run: Path | str, *, greedy: bool = True, seed: int | None = None, trust: bool = False, runs_dir: str = "runs"
) -> Agent:
    """The policy of a run's last checkpoint, to act in a loop of your own.

    Args:
        greedy: take the likeliest action; False: sample.
        seed: of the noise of sampled actions; the run's own by default.

    Raises InputError for a language model: `sample` writes its texts, `export` makes a folder for other tools.
    """
    found = find_run(str(run), runs_dir)
    with opened(found, "eval.episodes=1", trust=trust) as (parts, _):
        if parts.unit == "tokens":
            raise InputError(f"env={found.choices['env']} is a language task: see pgcli.sample and pgcli.export")
        number = parts.config.seed if seed is None else seed
        generator = None if greedy else numpy_generator(number, "agent", "actions")
        return Agent(parts.policy, parts.environment, generator)
