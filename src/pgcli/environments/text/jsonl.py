"""Your own prompts, demonstrations, pairs or corpus: a file of JSON objects, one per line.

    {"prompt": "2 + 2 ="}                                           a reward function scores its completions
    {"prompt": "2 + 2 =", "completion": " 4"}                       a demonstration (`answer` is the same)
    {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}         a pair; `chosen` is a demonstration too
    {"text": "two and two are four"}                                for pretraining

A row may have more than one of these, and keys of its own. The reward is a function of a file that `env.reward` names:

    def score(prompt: str, completion: str, row: dict) -> float | dict[str, float]

called once for each completion; or, if its name begins with `batch_` or ends with `_batch`, once for all of them, with
three lists, and it returns a list. A dict is reported component by component; training maximises its `reward`, or else
the sum of its values. None or NaN: the completion could not be scored, and is left out.

A prompt is held out by a hash of its text, so that adding rows to a file moves no prompt to the other side.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pgcli.environments.text.tokenizers import Bytes, Characters, HuggingFace, Tokenizer, Words
from pgcli.errors import USER_ERRORS, InputError, RunError
from pgcli.seeding import keys_of
from pgcli.settings import Settings
from pgcli.types import Observations, State, TextSpec, Written

TEXTS = ("prompt", "completion", "answer", "chosen", "rejected", "text")
"""Keys of a row with a meaning for the task."""


SURROGATE = re.compile("[\ud800-\udfff]")


class Jsonl:
    class Config(Settings):
        name: str = Field(description="name of this environment")
        path: str = Field(min_length=1, description="file of JSON objects, one per line")
        reward: str | None = Field(
            description="file.py:function that scores a completion; null: no reward except a match with the file's "
            "completions"
        )
        tokenizer: str = Field(
            description="tokenizer: auto (the policy's own if it has one, else byte), byte, character, words, or a "
            "folder with one"
        )
        folder: str | None = Field(
            description="folder of the policy's own tokenizer, if it has one; with tokenizer=auto"
        )
        held_out: float = Field(
            ge=0,
            lt=1,
            description="share of prompts kept for evaluation; 0: training and evaluation use the same prompts",
        )
        prompt_length: int = Field(ge=1, description="most tokens of a prompt; a longer one is refused")
        completion_length: int = Field(ge=1, description="most tokens of a completion, the end token included")
        cut_reward: float | None = Field(
            description="reward of a completion that the length limit cut before its end token; null: its score"
        )
        solved_at: float | None = Field(description="greedy mean reward at which the task counts as solved; null: none")
        pairs: int = Field(
            ge=1, description="number of pairs that a policy writes and env.reward labels, if the file has no pairs"
        )
        label_scale: float = Field(
            gt=0,
            description="difference of rewards at which 73 of 100 labels prefer the better completion; if the file has "
            "no pairs",
        )
        label_flip: float = Field(
            ge=0, lt=0.5, description="share of labels that are turned round; if the file has no pairs"
        )

    world = "text"
    COMPONENTS: ClassVar = {
        "reward": "score by env.reward; without a function, the same as exact_match",
        "exact_match": "1 for the row's own completion (or its chosen one) and the end, 0 for any other",
    }

    def __init__(self, config: Config) -> None:
        self.config = config
        path = Path(config.path).expanduser()
        rows = _read(path)
        self.tokens = _tokenizer(config, rows)
        self.score = _function(config.reward) if config.reward is not None else None
        self.digests = {"digest": _digest(path)}
        if config.reward is not None:
            self.digests["reward_digest"] = _digest(Path(config.reward.rpartition(":")[0]).expanduser())
        self.begun_with: State = self.digests
        self.has_reward = self.score is not None
        self.rows = [row for _, row in rows]
        encoded = [self._encoded(where, row) for where, row in rows]
        if not any("prompt" in row for row in encoded):  # a corpus: its texts have no prompt
            encoded[0]["prompt"] = self._begun([]) or [self.tokens.end]
        self.prompt_tokens = Ragged([row.get("prompt", []) for row in encoded])
        self.answers = Ragged([row.get("completion", row.get("chosen", [])) for row in encoded])
        self.chosen = Ragged([row.get("chosen", []) for row in encoded])
        self.rejected = Ragged([row.get("rejected", []) for row in encoded])
        self.train, self.held_out = self._split()
        hidden = set(self.held_out) - set(self.train)
        self.texts = Ragged(list(self._pieces(row for number, row in enumerate(encoded) if number not in hidden)))
        self.spec = TextSpec(
            vocabulary=self.tokens.size,
            prompt_length=max(1, self.prompt_tokens.longest),
            completion_length=config.completion_length,
            end=self.tokens.end,
            pad=self.tokens.pad,
        )

    # ------------------------------------------------------------ the file

    def _encoded(self, where: str, row: dict[str, Any]) -> dict[str, list[int]]:
        """Each text of a row, encoded by itself. Raises InputError if it is too long."""
        found = {}
        for key in TEXTS:
            if row.get(key) is None:
                continue
            tokens = self.tokens.encode(row[key])
            if key == "prompt":
                tokens = self._begun(tokens)
                self._check(where, key, tokens, self.config.prompt_length, "env.prompt_length")
            elif key != "text":
                tokens = [*tokens, self.tokens.end]
                self._check(where, key, tokens, self.config.completion_length, "env.completion_length")
            if not tokens:
                raise InputError(f"{where}: an empty {key}")
            found["completion" if key == "answer" else key] = tokens
        return found

    def _begun(self, tokens: list[int]) -> list[int]:
        return tokens if self.tokens.bos is None else [self.tokens.bos, *tokens]

    def _check(self, where: str, key: str, tokens: list[int], limit: int, setting: str) -> None:
        if len(tokens) > limit:
            raise InputError(f"{where}: a {key} of {len(tokens)} tokens, and {setting} is {limit}")

    def _pieces(self, encoded: Iterable[dict[str, list[int]]]) -> Iterable[list[int]]:
        """Texts for pretraining: each row's text, or else its prompt and completion, in pieces that fit."""
        longest = self.config.completion_length + 1
        for row in encoded:
            if "text" in row:
                whole = [*self._begun(row["text"]), self.tokens.end]
            else:
                whole = [*row["prompt"], *row.get("completion", [self.tokens.end])]
            # The first token of a piece is only read, not learned, so pieces overlap by one.
            yield from (whole[i : i + longest] for i in range(0, len(whole) - 1, longest - 1))

    def _split(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the rows with a prompt to train on, and of those held out."""
        asked = np.flatnonzero(self.prompt_tokens.lengths)
        if self.config.held_out == 0 or "prompt" not in self.rows[asked[0]]:
            return asked, asked
        share = np.array([_fraction(self.rows[i]["prompt"]) for i in asked])
        # In a file of few prompts none may fall below the threshold: then the nearest one is held out.
        limit = max(self.config.held_out, share.min())
        train, held_out = asked[share > limit], asked[share <= limit]
        if not len(train):
            raise InputError(
                f"{self.config.path}: no prompt is left to train on when some are held out; "
                "env.held_out=0 evaluates on the same ones"
            )
        return train, held_out

    def state_dict(self) -> State:
        return dict(self.begun_with)

    def load_state_dict(self, state: State) -> None:
        self.begun_with = state

    @property
    def replay_mismatch(self) -> str | None:
        """A run that is resumed with another file is not the same run, even with the same seeds."""
        names = {"digest": self.config.path, "reward_digest": self.config.reward}
        changed = [names[key] for key, digest in self.digests.items() if self.begun_with.get(key, digest) != digest]
        return "; ".join(f"{name} has changed since the run began" for name in changed) or None

    # ------------------------------------------------------------ the task

    def prompts(self, seeds: Sequence[int], *, held_out: bool) -> Observations:
        """Adds `row`: the index of the file's row."""
        return self._asked(self._draw(seeds, self.held_out if held_out else self.train, "prompt"))

    def complete(self, prompts: Observations, seeds: Sequence[int]) -> Observations:
        """Finds the row of a prompt of the file; another prompt has none, and cannot be scored."""
        del seeds
        rows = []
        for prompt, length in zip(prompts["prompt"].tolist(), prompts["lengths"].tolist(), strict=True):
            text = self.tokens.decode(prompt[len(prompt) - length :])
            rows.append(next((number for number, row in enumerate(self.rows) if row.get("prompt") == text), -1))
        return prompts | {"row": torch.tensor(rows)}

    def rewards(self, observations: Observations, completions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        if (observations["row"] < 0).any():
            unknown = torch.full((len(completions),), torch.nan, device=completions.device)
            return {"reward": unknown, "exact_match": unknown}
        numbers = observations["row"].tolist()
        length = completions.shape[1]
        right = self.answers.padded(np.array(numbers), length, self.tokens.pad).to(completions.device)
        match = (torch.where(mask, completions, self.tokens.pad) == right).all(1).float()
        if self.score is None:
            return {"reward": match, "exact_match": match}
        lengths = mask.sum(1).tolist()
        texts = [self.tokens.decode(row[:n]) for row, n in zip(completions.tolist(), lengths, strict=True)]
        found = self._scored([self.rows[i] for i in numbers], texts)
        parts = {name: torch.tensor(values, device=completions.device) for name, values in found.items()}
        if self.config.cut_reward is not None:
            finished = ((completions == self.tokens.end) & mask).any(1)
            parts["reward"] = torch.where(finished, parts["reward"], self.config.cut_reward)
        return parts | {"exact_match": match}

    def demonstrations(self, seeds: Sequence[int]) -> Written:
        usable = self.train[self.answers.lengths[self.train] > 0]
        numbers = self._draw(seeds, usable, "completion")
        return Written(self._asked(numbers), self._completed(self.answers, numbers))

    def given_pairs(self, *, held_out: bool) -> tuple[Written, Written] | None:
        """(chosen, rejected) completions of the same prompts, each pair of the file once; None if it has none."""
        both = (self.chosen.lengths > 0) & (self.rejected.lengths > 0)
        if not both.any():
            return None
        side = self.held_out if held_out else self.train
        numbers = side[both[side]]
        if not len(numbers):
            which = "held out" if held_out else "to train on"
            raise InputError(f"{self.config.path}: none of the prompts {which} has a pair; change env.held_out")
        asked = self._asked(numbers)
        chosen, rejected = (self._completed(texts, numbers) for texts in (self.chosen, self.rejected))
        return Written(asked, chosen), Written(asked, rejected)

    def corpus(self, seeds: Sequence[int]) -> Written:
        numbers = self._draw(seeds, np.arange(len(self.texts.lengths)), "text")
        text = self._completed(self.texts, numbers, self.config.completion_length + 1)
        return Written({"prompt": text[:, :1]}, text[:, 1:])

    def encode(self, text: str) -> list[int]:
        return self._begun(self.tokens.encode(text))

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokens.decode(tokens)

    def _draw(self, seeds: Sequence[int], among: np.ndarray, kind: str) -> np.ndarray:
        if not len(among):
            raise InputError(f"{self.config.path}: no row to train on has a {kind}")
        keys = keys_of(seeds)
        return among[keys % np.uint64(len(among))]

    def _asked(self, numbers: np.ndarray) -> Observations:
        lengths = self.prompt_tokens.lengths[numbers]
        return {
            "prompt": self.prompt_tokens.padded(numbers, self.spec.prompt_length, self.tokens.pad, left=True),
            "lengths": torch.from_numpy(lengths),
            "row": torch.from_numpy(numbers),
        }

    def _completed(self, texts: Ragged, numbers: np.ndarray, length: int | None = None) -> Tensor:
        return texts.padded(numbers, length or self.config.completion_length, self.tokens.pad)

    # ------------------------------------------------------------ the user's function

    def _scored(self, rows: list[dict[str, Any]], completions: list[str]) -> dict[str, list[float]]:
        """Component -> one number per row; `reward` is one of them."""
        assert self.score is not None
        prompts = [row.get("prompt", "") for row in rows]
        name = str(self.config.reward).rpartition(":")[2]
        if name.startswith("batch_") or name.endswith("_batch"):
            found = self._called(self.score, "all rows", prompts, completions, rows)
            if not isinstance(found, Sequence) or len(found) != len(rows):
                raise RunError(f"env.reward={self.config.reward} must return a list of {len(rows)} scores")
        else:
            found = [
                self._called(
                    self.score, f"prompt {prompt!r:.80}, completion {completion!r:.80}", prompt, completion, row
                )
                for prompt, completion, row in zip(prompts, completions, rows, strict=True)
            ]
        parts = [self._components(score, row) for score, row in zip(found, rows, strict=True)]
        known = next((part for part in parts if len(part) > 1), parts[0])
        unscored = dict.fromkeys(known, math.nan)
        parts = [unscored if math.isnan(part["reward"]) else part for part in parts]
        odd = [key for part in parts for key in part.keys() ^ known.keys()]
        if odd:
            names = sorted(set(odd))
            raise RunError(
                f"env.reward={self.config.reward} returns {', '.join(names)} for some rows and not for others"
            )
        return {key: [part[key] for part in parts] for key in known}

    def _called(self, function: Callable[..., Any], where: str, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except USER_ERRORS as error:
            raise RunError(f"env.reward={self.config.reward} failed at {where}: {_one_line(error)}") from error

    def _components(self, score: Any, row: dict[str, Any]) -> dict[str, float]:
        parts = score if isinstance(score, dict) else {"reward": score}
        try:
            numbers = {str(key): math.nan if value is None else float(value) for key, value in parts.items()}
        except (TypeError, ValueError, OverflowError) as error:
            raise RunError(
                f"env.reward={self.config.reward} returned {score!r:.80}, not a number or a dict of numbers, "
                f"at prompt {row.get('prompt', '')!r:.80}"
            ) from error
        numbers.setdefault("reward", sum(numbers.values()) if numbers else math.nan)
        if any(map(math.isinf, numbers.values())):
            raise RunError(
                f"env.reward={self.config.reward} returned {score!r:.80} at prompt {row.get('prompt', '')!r:.80}"
            )
        return numbers


class Ragged:
    """Lists of tokens of different lengths."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.lengths = np.array([len(row) for row in rows], dtype=np.int64)
        self.starts = self.lengths.cumsum() - self.lengths
        self.flat = np.array([token for row in rows for token in row] or [0], dtype=np.int32)

    @property
    def longest(self) -> int:
        return int(self.lengths.max(initial=0))

    def padded(self, numbers: np.ndarray, length: int, pad: int, *, left: bool = False) -> Tensor:
        """(N, length) int64: the rows with indices `numbers`, padded."""
        own = self.lengths[numbers][:, None]
        place = np.arange(length) - (length - own if left else 0)
        at = (self.starts[numbers][:, None] + place).clip(0, len(self.flat) - 1)
        return torch.from_numpy(np.where((place >= 0) & (place < own), self.flat[at], pad).astype(np.int64))


def _fraction(text: str) -> float:
    """A hash of a text, uniform in [0, 1)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little") / 2**56


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _read(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(file and line, row) of each line. Raises InputError with the number of a wrong line."""
    try:
        # A text may hold what `splitlines` takes for the end of a line: U+2028 is a character like others in JSON.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(f"env.path={path} cannot be read: {reason}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
            raise InputError(f"{where}: cannot be read ({_one_line(error)})") from error
        if not isinstance(row, dict):
            raise InputError(f"{where}: a row is an object, {{...}}")
        wrong = next((key for key in TEXTS if not isinstance(row.get(key), str | None)), None)
        if wrong:
            raise InputError(f"{where}: `{wrong}` must be text")
        torn = next((key for key in TEXTS if SURROGATE.search(row.get(key) or "")), None)
        if torn:
            raise InputError(f"{where}: `{torn}` has half a character (a lone surrogate), which no tokenizer reads")
        if row.get("prompt") is None and row.get("text") is None:
            raise InputError(f"{where}: a row has a `prompt` or a `text`")
        rows.append((where, row))
    if not rows:
        raise InputError(f"{path} has no rows")
    return rows


def _tokenizer(config: Jsonl.Config, rows: list[tuple[str, dict[str, Any]]]) -> Tokenizer:
    texts = [row[key] for _, row in rows for key in TEXTS if row.get(key) is not None]
    match config.tokenizer:
        case "auto" if config.folder is not None:
            return HuggingFace(config.folder)
        case "auto" | "byte":
            return Bytes()
        case "character":
            return Characters("".join(sorted(set().union(*texts))))
        case "words":
            return Words(sorted({word for text in texts for word in text.split()}))
    if not Path(config.tokenizer).expanduser().is_dir():
        raise InputError(
            f"env.tokenizer={config.tokenizer} is neither auto, byte, character or words nor a folder with a tokenizer"
        )
    return HuggingFace(config.tokenizer)


def _function(name: str) -> Callable[..., Any]:
    """The function named by `file.py:function`. It runs the file: callers have checked that it is trusted."""
    file, colon, function = name.rpartition(":")
    path = Path(file).expanduser()
    if not colon or path.suffix != ".py" or not function.isidentifier():
        raise InputError(f"env.reward={name} must name a function in a file, such as my_rewards.py:score")
    if not path.is_file():
        raise InputError(f"env.reward={name}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"_pgcli_reward_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except USER_ERRORS as error:
        raise InputError(f"env.reward={name}: {path} cannot be run: {_one_line(error)}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise InputError(f"env.reward={name}: {path} has no function `{function}`")
    return found


def _one_line(error: BaseException) -> str:
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
