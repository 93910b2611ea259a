"""Your own prompts, demonstrations, pairs or corpus: a file of JSON objects, one per line.

    {"prompt": "2 + 2 ="}                                           a reward function scores its completions
    {"prompt": "2 + 2 =", "completion": " 4"}                       a demonstration (`answer` is the same)
    {"prompt": "2 + 2 =", "completion": " 5", "label": false}       true or false; a false one is no demonstration
    {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}         a pair; `chosen` is a demonstration too
    {"text": "two and two are four"}                                for pretraining

A row may have more than one of these, and keys of its own. The reward is a function of a file that `env.reward` names:

    def score(prompt: str, completion: str, row: dict) -> float | dict[str, float]

called once for each completion; or, if its name begins with `batch_` or ends with `_batch`, once for all of them (in
each process of a torchrun for its own), with three lists, and it returns a list. A dict is reported component by
component; training maximises its `reward`, or else the sum of its values. None or NaN: the completion could not be
scored, and is left out.

A prompt is held out by a hash of its text, so that adding rows to a file moves no prompt to the other side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pgcli.environments.text._reward_function import RewardFunction
from pgcli.environments.text._rows import TEXTS, Ragged, completed, digest, read
from pgcli.environments.text._settings import OVERLONG, punished
from pgcli.environments.text.tokenizers import SPECIALS, Bytes, Characters, HuggingFace, Tokenizer, Words
from pgcli.errors import InputError
from pgcli.seeding import keys_of
from pgcli.settings import Settings
from pgcli.types import Observations, State, TextSpec, Written


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
        overlong_buffer: int | None = Field(
            gt=0,
            description="tokens before the length limit over which a punishment grows from 0 to 1, in the unit of "
            "env.reward; null: no punishment",
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
        "overlong": OVERLONG,
    }

    def __init__(self, config: Config) -> None:
        self.config = config
        path = Path(config.path).expanduser()
        rows = read(path)
        self.tokens = _tokenizer(config, rows)
        self.score = RewardFunction(config.reward) if config.reward is not None else None
        self.digests = {"digest": digest(path)}
        if self.score is not None:
            self.digests["reward_digest"] = digest(self.score.file)
        self.begun_with: State = self.digests
        self.has_reward = self.score is not None
        self.rows = [row for _, row in rows]
        encoded = [self._encoded(where, row) for where, row in rows]
        if not any("prompt" in row for row in encoded):  # a corpus: its texts have no prompt
            encoded[0]["prompt"] = self._begun([]) or [self.tokens.end]
        self.prompt_tokens = Ragged([row.get("prompt", []) for row in encoded])
        self.answers = Ragged([row.get("completion", row.get("chosen", [])) for row in encoded])
        self.wrong = Ragged([row.get("wrong", []) for row in encoded])
        self.labelled = np.array([completed(row) and row.get("label") is not None for row in self.rows])
        self.chosen = Ragged([row.get("chosen", []) for row in encoded])
        self.rejected = Ragged([row.get("rejected", []) for row in encoded])
        self.train, self.held_out = self._split()
        self.demonstrated = self.train[self.answers.lengths[self.train] > 0]
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
        """Each text of a row, encoded by itself; a completion that is labelled false as `wrong`.

        Raises InputError if one is too long.
        """
        found = {}
        for key in TEXTS:
            if row.get(key) is None:
                continue
            tokens = self.tokens.encode(row[key])
            if key != "prompt" and self.tokens.end in tokens:
                raise InputError(f"{where}: `{key}` has the end token, {self._said(self.tokens.end)}, which is added")
            if key == "prompt":
                tokens = self._begun(tokens)
                self._check(where, key, tokens, self.config.prompt_length, "env.prompt_length")
            elif key != "text":
                tokens = [*tokens, self.tokens.end]
                self._check(where, key, tokens, self.config.completion_length, "env.completion_length")
            if not tokens:
                raise InputError(f"{where}: an empty {key}")
            completion = "wrong" if row.get("label") is False else "completion"
            found[completion if key in ("completion", "answer") else key] = tokens
        return found

    def _begun(self, tokens: list[int]) -> list[int]:
        """A prompt's tokens, or a text's, with the start that the tokenizer asks for."""
        return tokens if self.tokens.bos is None else [self.tokens.bos, *tokens]

    def _said(self, token: int) -> str:
        return self.tokens.decode([token], specials=True)

    def _check(self, where: str, key: str, tokens: list[int], limit: int, setting: str) -> None:
        if len(tokens) > limit:
            raise InputError(f"{where}: its `{key}` has {len(tokens)} tokens, and {setting} is {limit}")

    def _pieces(self, encoded: Iterable[dict[str, list[int]]]) -> Iterable[list[int]]:
        """Texts for pretraining: each row's text, or else its prompt and completion, in pieces that fit.

        A prompt alone is left out: an end after it would teach to say nothing.
        """
        longest = self.config.completion_length + 1
        for row in encoded:
            if "text" in row:
                whole = [*self._begun(row["text"]), self.tokens.end]
            elif "completion" in row or "chosen" in row:
                whole = [*row["prompt"], *row.get("completion", row.get("chosen", []))]
            else:
                continue
            # The first token of a piece is only read, not learned, so pieces overlap by one.
            yield from (whole[i : i + longest] for i in range(0, len(whole) - 1, longest - 1))

    def _split(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the rows with a prompt to train on, and of those held out."""
        asked = np.flatnonzero(self.prompt_tokens.lengths)
        if self.config.held_out == 0 or self.rows[asked[0]].get("prompt") is None:
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
            asked = prompt[len(prompt) - length :]
            known = np.flatnonzero(self.prompt_tokens.lengths == length).tolist()
            rows.append(next((number for number in known if self.prompt_tokens.row(number) == asked), -1))
        return prompts | {"row": torch.tensor(rows)}

    def rewards(self, observations: Observations, completions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        if (observations["row"] < 0).any():
            unknown = torch.full((len(completions),), torch.nan, device=completions.device)
            return {"reward": unknown, "exact_match": unknown}
        numbers = observations["row"].tolist()
        match = torch.zeros(len(numbers), device=completions.device)
        if self.answers.longest:
            right = self.answers.padded(np.array(numbers), completions.shape[1], self.tokens.pad).to(match.device)
            match = (torch.where(mask, completions, self.tokens.pad) == right).all(1).float()
            match *= torch.from_numpy(self.answers.lengths[numbers] > 0).to(match.device)  # padding is a token, too
        if self.score is None:
            return {"reward": match, "exact_match": match}
        lengths = mask.sum(1).tolist()
        texts = [self.tokens.decode(row[:n]) for row, n in zip(completions.tolist(), lengths, strict=True)]
        found = self.score([self.rows[i] for i in numbers], texts)
        parts = {name: torch.tensor(values, device=completions.device) for name, values in found.items()}
        if self.config.cut_reward is not None:
            finished = ((completions == self.tokens.end) & mask).any(1)
            parts["reward"] = torch.where(finished, parts["reward"], self.config.cut_reward)
        return parts | punished(self.config, self.spec, mask, parts["reward"]) | {"exact_match": match}

    def demonstrations(self, seeds: Sequence[int]) -> Written:
        numbers = self._draw(seeds, np.arange(self.count("demonstrations")), "completion")
        return self.listed("demonstrations", numbers)

    def given_pairs(self, *, held_out: bool) -> tuple[Written, Written] | None:
        """(chosen, rejected) completions of the same prompts, each pair of the file once; None if it has none."""
        numbers = self._given((self.chosen.lengths > 0) & (self.rejected.lengths > 0), "pair", held_out=held_out)
        if numbers is None:
            return None
        asked = self._asked(numbers)
        chosen, rejected = (self._completed(texts, numbers) for texts in (self.chosen, self.rejected))
        return Written(asked, chosen), Written(asked, rejected)

    def given_labels(self, *, held_out: bool) -> tuple[Written, Tensor] | None:
        """Completions of the file and whether each is right, (N,) bool, each once; None if it has no labels."""
        numbers = self._given(self.labelled, "label", held_out=held_out)
        if numbers is None:
            return None
        right = torch.from_numpy(self.wrong.lengths[numbers] == 0)
        yes, no = self._completed(self.answers, numbers), self._completed(self.wrong, numbers)
        return Written(self._asked(numbers), torch.where(right[:, None], yes, no)), right

    def _given(self, has: np.ndarray, kind: str, *, held_out: bool) -> np.ndarray | None:
        """The rows of one side that have it; None if no row of the file does."""
        if not has.any():
            return None
        side = self.held_out if held_out else self.train
        numbers = side[has[side]]
        if not len(numbers):
            which = "held out" if held_out else "to train on"
            raise InputError(f"{self.config.path}: none of the prompts {which} has a {kind}; change env.held_out")
        return numbers

    def corpus(self, seeds: Sequence[int]) -> Written:
        numbers = self._draw(seeds, np.arange(self.count("corpus")), "text or a completion")
        return self.listed("corpus", numbers)

    def count(self, source: str) -> int:
        return len(self.texts.lengths if source == "corpus" else self.demonstrated)

    def listed(self, source: str, numbers: np.ndarray) -> Written:
        if source == "corpus":
            text = self._completed(self.texts, numbers, self.config.completion_length + 1)
            return Written({"prompt": text[:, :1]}, text[:, 1:])
        rows = self.demonstrated[numbers]
        return Written(self._asked(rows), self._completed(self.answers, rows))

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


def _fraction(text: str) -> float:
    """A hash of a text, uniform in [0, 1)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little") / 2**56


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
            for line, row in rows:
                for special in SPECIALS:
                    if any(special in str(row.get(key, "")).split() for key in TEXTS):
                        raise InputError(f"{line}: `{special}` is a token of its own, and no word of a text")
            return Words(sorted({word for text in texts for word in text.split()}))
    if not Path(config.tokenizer).expanduser().is_dir():
        raise InputError(
            f"env.tokenizer={config.tokenizer} is neither auto, byte, character or words nor a folder with a tokenizer"
        )
    return HuggingFace(config.tokenizer)
