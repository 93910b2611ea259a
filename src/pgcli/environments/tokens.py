"""The token-level Markov decision process of a text task, one token per step, as a Gymnasium environment.

    state       the prompt and all tokens so far
    action      the next token
    transition  deterministic: the token is appended, and after the first end token of a two-turn task also its reply
    reward      of the finished completion at its last token, or token by token, depending on the task
    terminated  the end token was chosen (the second of two turns)
    truncated   the length limit was reached before it

Training on text optimises this process; a test shows that batched decoding (`collectors.completions`) is the same.
"""

from __future__ import annotations

from typing import Any, TypeAlias, cast

import gymnasium
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Dict, Discrete, MultiDiscrete

from pgcli.types import Replying, TextTask

State: TypeAlias = dict[str, Any]


class Tokens(gymnasium.Env[State, np.int64]):
    """One completion is an episode. Its prompt is a function of the seed given to `reset`.

    Observations: `prompt` (P,), `length` (number of its tokens that are not padding), `completion` (T,), padded, and
    `written` (number of its tokens so far).
    """

    def __init__(self, task: TextTask) -> None:
        spec = task.spec
        self.task = task
        self.action_space = Discrete(spec.vocabulary)
        self.observation_space = Dict(
            {
                "prompt": MultiDiscrete([spec.vocabulary] * spec.prompt_length),
                "length": Discrete(spec.prompt_length + 1),
                "completion": MultiDiscrete([spec.vocabulary] * spec.completion_length),
                "written": Discrete(spec.completion_length + 1),
            }
        )
        self.over = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[State, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        spec = self.task.spec
        self.prompt = self.task.prompts([seed], held_out=False)
        self.completion = torch.full((1, spec.completion_length), spec.pad)
        self.mask = torch.zeros_like(self.completion, dtype=torch.bool)
        self.written, self.turns, self.over = 0, 2 if spec.reply_length else 1, False
        return self._state(), {}

    def step(self, action: np.int64) -> tuple[State, float, bool, bool, dict[str, Any]]:
        """At the last token, the info dict has the reward's components."""
        if self.over:
            raise ResetNeeded("the completion is over")
        spec, t = self.task.spec, self.written
        self.completion[0, t], self.mask[0, t] = int(action), True
        self.written += 1
        if action == spec.end:
            self.turns -= 1
            if self.turns:
                self._listen()
        terminated = self.turns == 0
        truncated = not terminated and self.written == spec.completion_length
        self.over = terminated or truncated
        parts = self.task.rewards(*self._judged())
        reward = parts["reward"]
        if reward.dim() == 1:  # of the whole completion, received at its last token
            reward = reward[:, None].expand_as(self.completion) if self.over else torch.zeros_like(self.completion)
        received = float(reward[0, t])
        told = {name: float(value) for name, value in parts.items() if name != "reward"} if self.over else {}
        return self._state(), received, terminated, truncated, told

    def _judged(self) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """What the task is asked about. A prefix stands as if it ended next: the limit takes nothing of it yet."""
        if self.over:
            return self.prompt, self.completion, self.mask
        completion, mask = self.completion.clone(), self.mask.clone()
        completion[0, self.written], mask[0, self.written] = self.task.spec.end, True
        return self.prompt, completion, mask

    def _listen(self) -> None:
        """Append the task's reply to a first turn, as far as there is room."""
        said = cast("Replying", self.task).replies(self.prompt, self.completion, self.mask)[0]
        room = self.completion[0, self.written :]
        room[: len(said)] = said[: len(room)]
        self.written += min(len(said), len(room))

    def _state(self) -> State:
        prompt = self.prompt["prompt"][0].numpy()
        length = int(self.prompt["lengths"][0]) if "lengths" in self.prompt else len(prompt)
        return {
            "prompt": prompt.copy(),
            "length": np.int64(length),
            "completion": self.completion[0].numpy().copy(),
            "written": np.int64(self.written),
        }
