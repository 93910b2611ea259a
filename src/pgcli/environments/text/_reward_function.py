"""A user's reward: a function of a Python file, called once for each completion or once for all of them."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pgcli.errors import USER_ERRORS, InputError, RunError, one_line

TAKEN = frozenset((
    "return_mean", "return_std", "greedy_return_mean", "greedy_return_std", "length_mean", "finished",
    "length_finished", "length_cut", "kl", "kl_k1", "win_rate", "preference_accuracy", "preference_margin",
    "exact_match", "overlong",
))  # fmt: skip
"""Names of what an evaluation or the task itself measures, which a component would overwrite."""
LARGEST = 1e15
"""Largest reward. Squares of larger ones, and sums, leave float32."""


class RewardFunction:
    """The function that `file.py:function` names. Its file is run: callers have checked that it is trusted."""

    def __init__(self, name: str) -> None:
        """Raises InputError if there is no such function."""
        file, colon, function = name.rpartition(":")
        self.name, self.file = name, Path(file).expanduser()
        if not colon or self.file.suffix != ".py" or not function.isidentifier():
            raise InputError(f"env.reward={name} must name a function in a file, such as my_rewards.py:score")
        self.for_all = function.startswith("batch_") or function.endswith("_batch")
        self._function = self._found(function)

    def __call__(self, rows: Sequence[dict[str, Any]], completions: Sequence[str]) -> dict[str, list[float]]:
        """Component -> one number per row, NaN for what could not be scored; `reward` is one of them.

        Raises RunError, with the prompt, if the function fails or returns something else.
        """
        prompts = [row.get("prompt", "") for row in rows]
        rows = [dict(row) for row in rows]  # theirs to change
        if self.for_all:
            found = self._called("all rows", prompts, completions, rows)
            found = found.tolist() if hasattr(found, "tolist") else found  # an array or a tensor
            if not isinstance(found, Sequence) or len(found) != len(rows):
                raise RunError(f"env.reward={self.name} must return a list of {len(rows)} scores")
        else:
            found = [
                self._called(f"prompt {asked[0]!r:.80}, completion {asked[1]!r:.80}", *asked)
                for asked in zip(prompts, completions, rows, strict=True)
            ]
        parts = [self._components(score, prompt) for score, prompt in zip(found, prompts, strict=True)]
        known = next((part for part in parts if len(part) > 1), parts[0])
        unscored = dict.fromkeys(known, math.nan)
        parts = [unscored if math.isnan(part["reward"]) else part for part in parts]
        odd = sorted({key for part in parts for key in part.keys() ^ known.keys()})
        if odd:
            raise RunError(f"env.reward={self.name} returns {', '.join(odd)} for some rows and not for others")
        return {key: [part[key] for part in parts] for key in known}

    def _called(self, where: str, *arguments: Any) -> Any:
        try:
            return self._function(*arguments)
        except USER_ERRORS as error:
            raise RunError(f"env.reward={self.name} failed at {where}: {one_line(error)}") from error

    def _components(self, score: Any, prompt: str) -> dict[str, float]:
        parts = score if isinstance(score, dict) else {"reward": score}
        try:
            numbers = {str(key): math.nan if value is None else float(value) for key, value in parts.items()}
        except (TypeError, ValueError, OverflowError) as error:
            raise RunError(
                f"env.reward={self.name} returned {score!r:.80}, not a number or a dict of numbers, "
                f"at prompt {prompt!r:.80}"
            ) from error
        taken = TAKEN & numbers.keys()
        if taken:
            raise RunError(
                f"env.reward={self.name} calls a component {', '.join(sorted(taken))}, which is measured here already: "
                "another name for it"
            )
        numbers.setdefault("reward", sum(numbers.values()) if numbers else math.nan)
        if any(abs(number) > LARGEST for number in numbers.values()):
            raise RunError(f"env.reward={self.name} returned {score!r:.80} at prompt {prompt!r:.80}")
        return numbers

    def _found(self, function: str) -> Callable[..., Any]:
        if not self.file.is_file():
            raise InputError(f"env.reward={self.name}: there is no file {self.file}")
        spec = importlib.util.spec_from_file_location(f"_pgcli_reward_{self.file.stem}", self.file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up there
        beside = str(self.file.parent.absolute())
        if beside not in sys.path:
            sys.path.append(beside)  # last, so that a file beside it shadows no installed module
        try:
            spec.loader.exec_module(module)
        except USER_ERRORS as error:
            raise InputError(f"env.reward={self.name}: {self.file} cannot be run: {one_line(error)}") from error
        found = getattr(module, function, None)
        if not callable(found):
            raise InputError(f"env.reward={self.name}: {self.file} has no function `{function}`")
        return found
