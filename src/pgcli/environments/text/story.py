"""Tiny stories of a probabilistic grammar, with a known true reward: the task for learning from preferences.

    prompt      <bos> liz found the
    completion  brave fox . ann thanked the kind old ... <end>

A story has one to three sentences. Its tone persists: kind words follow kind words. The grammar is an automaton whose
next state is a function of its state and the word, so the entropy of its stories is known exactly (`entropy`).

    gold = 3 (1 - exp(-g / 3)) - 0.6 b - 0.5 r - 4 max(0, G / W - 0.35) - 0.1 max(0, W - 16)

    g   different good words        b   bad words (a <bos> or a <pad> that was written is one)
    r   verbs and adjectives that occurred before        G   good words      W   words

of the completion alone. In the grammar's stories good words are rare, so that "more good words" is nearly all that
preferences between them can teach; a policy that is rewarded for just that writes "brave brave kind bright ...", which
gold punishes by three of its terms. One beginning in ten is held out, by a hash of its words; no training text begins
with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pgcli.environments.text._settings import OVERLONG, TextSettings, settle
from pgcli.environments.text._split import is_held_out, whole_text
from pgcli.environments.text.tokenizers import Words
from pgcli.seeding import keys_of, mix, uniforms
from pgcli.types import Observations, TextSpec, Written

NAMES = ("ann", "ben", "liz", "max", "sam", "tom")
NOUNS = ("bear", "bird", "cat", "dog", "fox", "friend", "girl", "king")
ADJECTIVES = {
    "good": ("brave", "bright", "gentle", "happy", "kind", "warm"),
    "bad": ("angry", "cold", "cruel", "sad"),
    "plain": ("old", "red", "small", "tall"),
}
VERBS = {
    "good": ("helped", "hugged", "thanked"),
    "bad": ("hit", "scared"),
    "plain": ("called", "found", "met", "saw"),
}
TONED = [word for kind in (ADJECTIVES, VERBS) for words in kind.values() for word in words]
TOKENS = Words([*NAMES, *NOUNS, *TONED, "the", "was", "and", "."])
BOS, END, PAD = TOKENS.bos, TOKENS.end, TOKENS.pad
GOOD, BAD = (TOKENS.encode(" ".join([*ADJECTIVES[tone], *VERBS[tone]])) for tone in ("good", "bad"))
REPEATABLE = TOKENS.encode(" ".join(TONED))
LONGEST = 27
"""Tokens of the longest story, the end included: `the girl met the old king .` three times, once with `and ...`."""
HELD_OUT_ONE_IN = 10

TONES = {
    "plain": {"good": 0.25, "bad": 0.20, "plain": 0.55},
    "good": {"good": 0.45, "bad": 0.05, "plain": 0.50},
    "bad": {"good": 0.10, "bad": 0.40, "plain": 0.50},
}
"""Probabilities of the next verb's or adjective's tone, by the tone of the last one that had any."""


class Place(NamedTuple):
    """The state of the grammar: everything that the next word depends on."""

    sentences: int
    """Number of finished sentences."""
    joined: bool
    """Whether there was an `and`: a story has at most one."""
    tone: str
    expects: str


START = Place(0, False, "plain", "subject")


def choices(at: Place) -> Iterator[tuple[float, tuple[str, ...], Place]]:
    """The possible continuations: a probability, the words that share it equally, and the next state."""

    def toned(share: float, words: dict[str, tuple[str, ...]], expects: str) -> Iterator:
        for tone, p in TONES[at.tone].items():
            lasting = at.tone if tone == "plain" else tone
            yield share * p, words[tone], at._replace(tone=lasting, expects=expects)

    match at.expects:
        case "subject":
            end = (0.0, 0.25, 0.5, 1.0)[at.sentences]
            yield end, ("<end>",), at
            yield 0.7 * (1 - end), NAMES, at._replace(expects="verb")
            yield 0.3 * (1 - end), ("the",), at._replace(expects="subject's noun")
        case "subject's noun":
            yield 1.0, NOUNS, at._replace(expects="verb")
        case "verb":
            yield 0.2, ("was",), at._replace(expects="complement")
            yield from toned(0.8, VERBS, "object")
        case "complement":
            yield from toned(1.0, ADJECTIVES, "stop")
        case "object":
            yield 0.3, NAMES, at._replace(expects="stop")
            yield 0.7, ("the",), at._replace(expects="adjective")
        case "adjective":
            yield 0.4, NOUNS, at._replace(expects="stop")
            yield from toned(0.6, ADJECTIVES, "object's noun")
        case "object's noun":
            yield 1.0, NOUNS, at._replace(expects="stop")
        case "stop":
            join = 0.0 if at.joined else 0.2
            yield join, ("and",), at._replace(joined=True, expects="verb")
            yield 1 - join, (".",), at._replace(sentences=at.sentences + 1, expects="subject")


class Grammar:
    """The automaton, with numbered states: S states, V words.

    probabilities: (S, V). following: (S, V) int64, the next state; -1 if the word cannot come, and after the end.
    """

    def __init__(self) -> None:
        states = [START]
        number = {START: 0}
        rows = []
        for state in states:  # grows in the loop
            p, following = np.zeros(TOKENS.size), np.full(TOKENS.size, -1)
            for share, words, then in choices(state):
                if share and words != ("<end>",) and then not in number:
                    number[then] = len(states)
                    states.append(then)
                for word in words:
                    p[TOKENS.numbers[word]] = share / len(words)
                    if share and word != "<end>":
                        following[TOKENS.numbers[word]] = number[then]
            rows.append((p, following))
        self.probabilities = np.stack([p for p, _ in rows])
        self.following = np.stack([following for _, following in rows])
        cumulative = self.probabilities.cumsum(axis=1)
        self.cumulative = cumulative / cumulative[:, -1:]

    def beginnings(self, words: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All B beginnings: tokens (B, words), probabilities (B,), the states that they lead to (B,)."""
        tokens, p, states = np.zeros((1, 0), dtype=np.int64), np.ones(1), np.zeros(1, dtype=np.int64)
        for _ in range(words):
            rows, chosen = np.nonzero(self.following[states] >= 0)
            tokens = np.concatenate([tokens[rows], chosen[:, None]], axis=1)
            p, states = p[rows] * self.probabilities[states[rows], chosen], self.following[states[rows], chosen]
        return tokens, p, states

    def write(self, states: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """(N,), (N, T) uniform -> (N, T) tokens up to the end, padded after it. T must be enough for any story."""
        tokens = np.full(noise.shape, PAD)
        alive = np.arange(len(states))
        for t in range(noise.shape[1]):
            words = (self.cumulative[states] < noise[alive, t, None]).sum(axis=1)
            tokens[alive, t] = words
            states = self.following[states, words]
            alive, states = alive[states >= 0], states[states >= 0]
        return tokens

    def expected(self, per_word: np.ndarray) -> np.ndarray:
        """(S,) a value per state -> (S,) its expected sum until the end, from each state: (I - P)^-1 x."""
        moves = np.zeros((len(per_word), len(per_word)))
        rows, words = np.nonzero(self.following >= 0)
        np.add.at(moves, (rows, self.following[rows, words]), self.probabilities[rows, words])
        return np.linalg.solve(np.eye(len(per_word)) - moves, per_word)


class Story:
    class Config(TextSettings):
        prompt_words: int = Field(ge=1, le=4, description="words of a prompt, the beginning of a story")
        best_of: int = Field(
            ge=1, description="number of the grammar's stories of which a demonstration is the best in gold"
        )

    world = "text"
    COMPONENTS: ClassVar = {
        "reward": "reward that is trained: gold, at most cut_reward if cut",
        "gold": "the true reward of the story",
        "positive": "number of different good words in the completion",
        "negative": "number of bad words in the completion, and of symbols that are not words",
        "repetition": "number of verbs and adjectives in the completion that occurred before",
        "density": "share of good words among the completion's words",
        "length": "number of words in the completion",
        "grammatical": "share of stories that the grammar could have written",
        "overlong": OVERLONG,
    }

    def __init__(self, config: Config) -> None:
        self.config = config
        self.spec = TextSpec(
            vocabulary=TOKENS.size,
            prompt_length=1 + config.prompt_words,
            completion_length=LONGEST - config.prompt_words,
            end=END,
            pad=PAD,
        )
        self.grammar = Grammar()
        tokens, p, states = self.grammar.beginnings(config.prompt_words)
        powers = TOKENS.size ** np.arange(config.prompt_words, dtype=np.uint64)
        held_out = is_held_out((tokens.astype(np.uint64) * powers).sum(axis=1), HELD_OUT_ONE_IN)
        self.beginnings = {
            side: (tokens[held_out == side], p[held_out == side] / p[held_out == side].sum(), states[held_out == side])
            for side in (False, True)
        }

    def entropy(self) -> float:
        """The corpus's exact entropy in nats per token, the end included: a lower bound of any model's loss.

        (H(beginning) + E[sum of the entropies of the states that follow]) / E[tokens]
        """
        _, p, states = self.beginnings[False]
        words = self.grammar.probabilities
        surprise = -np.where(words > 0, words * np.log(np.where(words > 0, words, 1)), 0).sum(axis=1)
        entropy = -(p * np.log(p)).sum() + p @ self.grammar.expected(surprise)[states]
        return entropy / (self.config.prompt_words + p @ self.grammar.expected(np.ones(len(words)))[states])

    def prompts(self, seeds: Sequence[int], *, held_out: bool) -> Observations:
        return {"prompt": self._begin(seeds, held_out)[0]}

    def rewards(self, observations: Observations, completions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        words = mask & (completions != END)
        counts = torch.zeros(len(completions), TOKENS.size, device=completions.device)
        counts.scatter_add_(1, completions, words.to(counts))
        total = counts.sum(dim=1)
        positive = (counts[:, GOOD] > 0).sum(dim=1).float()
        negative = counts[:, [*BAD, BOS, PAD]].sum(dim=1)
        repetition = (counts[:, REPEATABLE] - 1).clamp(min=0).sum(dim=1)
        density = counts[:, GOOD].sum(dim=1) / total.clamp(min=1)
        gold = (
            3 * (1 - torch.exp(-positive / 3))
            - 0.6 * negative
            - 0.5 * repetition
            - 4 * (density - 0.35).clamp(min=0)
            - 0.1 * (total - 16).clamp(min=0)
        )
        parts = settle(self.config, self.spec, completions, mask, gold)
        return parts | {
            "gold": parts["reward"] - parts.get("overlong", 0),
            "positive": positive,
            "negative": negative,
            "repetition": repetition,
            "density": density,
            "length": total,
            "grammatical": self._grammatical(observations["prompt"], completions, mask),
        }

    def demonstrations(self, seeds: Sequence[int]) -> Written:
        """The best in gold of `best_of` continuations of the prompt by the grammar."""
        prompts, states = self._begin(seeds, held_out=False)
        best_of = self.config.best_of
        stories = self._continue(seeds, states, best_of)  # (N * best_of, T), those of a prompt contiguous
        repeated = {"prompt": prompts.repeat_interleave(best_of, dim=0)}
        gold = self.rewards(repeated, stories, _read(stories))["gold"].view(-1, best_of)
        return Written(
            {"prompt": prompts}, stories.view(len(prompts), best_of, -1)[range(len(prompts)), gold.argmax(1)]
        )

    def corpus(self, seeds: Sequence[int]) -> Written:
        """Whole stories of the grammar, except those that begin like a held-out prompt."""
        prompts, states = self._begin(seeds, held_out=False)
        return whole_text(Written({"prompt": prompts}, self._continue(seeds, states, 1)), PAD)

    def encode(self, text: str) -> list[int]:
        return TOKENS.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return TOKENS.decode(tokens, specials=True)

    def _begin(self, seeds: Sequence[int], held_out: bool) -> tuple[Tensor, np.ndarray]:
        """Prompts, (N, P), drawn with the grammar's probabilities, and the states that they lead to."""
        tokens, p, states = self.beginnings[held_out]
        noise = uniforms(_keys(seeds, "prompt"), 1)[:, 0]
        rows = np.minimum(np.searchsorted(p.cumsum(), noise), len(p) - 1)  # the sum may be a rounding error short of 1
        prompts = np.concatenate([np.full((len(rows), 1), BOS), tokens[rows]], axis=1)
        return torch.from_numpy(prompts), states[rows]

    def _continue(self, seeds: Sequence[int], states: np.ndarray, times: int) -> Tensor:
        """(N * times, completion_length): `times` continuations of each row."""
        noise = uniforms(_keys(seeds, "story"), times * self.spec.completion_length)
        return torch.from_numpy(self.grammar.write(states.repeat(times), noise.reshape(len(states) * times, -1)))

    def _grammatical(self, prompts: Tensor, completions: Tensor, mask: Tensor) -> Tensor:
        """(N,): 1 if the automaton accepts prompt and completion to their end."""
        following = torch.from_numpy(self.grammar.following).to(completions.device)
        state = torch.zeros_like(prompts[:, 0])
        for t in range(1, prompts.shape[1]):
            state = torch.where(state < 0, -1, following[state, prompts[:, t]])
        ends = torch.from_numpy(self.grammar.probabilities[:, END] > 0).to(completions.device)
        ended = torch.zeros_like(mask[:, 0])
        for t in range(completions.shape[1]):
            ended |= mask[:, t] & (completions[:, t] == END) & (state >= 0) & ends[state]
            state = torch.where(state < 0, -1, following[state, completions[:, t]])
        return ended.float()


def _keys(seeds: Sequence[int], purpose: str) -> np.ndarray:
    """(N,) uint64 keys, independent between purposes: prompts and their continuations."""
    keys = keys_of(seeds)
    return mix(keys) if purpose == "story" else keys


def _read(stories: Tensor) -> Tensor:
    """(N, T) bool: 1 up to and including the end token."""
    return stories != PAD
