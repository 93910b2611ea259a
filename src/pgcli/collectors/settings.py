"""How much to collect at once. An algorithm's Config inherits the settings of the collectors in its `collects`."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pgcli.settings import Settings


class Segments(Settings):
    """For `segments`: pieces of a fixed length, cut anywhere and bootstrapped."""

    num_envs: int = Field(ge=1, description="environments stepped side by side")
    num_steps: int = Field(ge=1, description="steps of each environment per update")


class Episodes(Settings):
    """For `episodes`: whole episodes; every one that is begun is finished."""

    num_episodes: int = Field(ge=1, description="whole episodes (or completions) per update; not with segments")


class Groups(Settings):
    """For `groups`: whole episodes that share their initial state (or prompt) in groups."""

    num_groups: int = Field(ge=1, description="initial states (or prompts) per update")
    group_size: int = Field(ge=1, description="episodes (or completions) from each of them, 2 or more")

    @model_validator(mode="after")
    def _of_several(self) -> Self:
        if self.group_size < 2:
            raise ValueError(
                f"group_size={self.group_size}: a group is compared with itself, so it needs 2 or more; "
                "without groups, try algo=reinforce or algo=ppo"
            )
        return self


class InformativeGroups(Groups):
    """For `groups`, with a preference for those whose episodes differ in return."""

    max_polls: int = Field(
        ge=1,
        description="most collections per update, repeated until num_groups groups have episodes that differ in "
        "return; 1: take the first as it is",
    )


class Demonstrations(Settings):
    """For `demonstrations`: text that the task provides."""

    num_demonstrations: int = Field(ge=1, description="demonstrations (or texts of the corpus) per update")
    source: Literal["demonstrations", "corpus"] = Field(
        description="what is imitated: right answers to prompts, or text to learn the language from, prompts included"
    )


class Revisions(Settings):
    """For `revisions`: answers that were criticised and rewritten."""

    num_prompts: int = Field(ge=1, description="prompts per update, each with an answer that may be revised")
    rounds: int = Field(ge=1, description="most times that an answer is criticised and revised")
    writer: Literal["initial", "policy"] = Field(
        description="policy that writes answers and revisions: the frozen initial one, or the one that learns"
    )


class Workers(Settings):
    """For `gradients`: processes that play segments of their own and differentiate the loss on them."""

    num_workers: int = Field(ge=1, description="worker processes; with one, a run resumes bit for bit")
    num_envs: int = Field(ge=1, description="environments of each worker, stepped side by side")
    num_steps: int = Field(ge=1, description="steps of each environment per gradient")


class Candidates(Settings):
    """For `population`: each candidate plays whole episodes, all of them the same."""

    num_episodes: int = Field(ge=1, description="whole episodes that each candidate plays")
    fresh_seeds: bool = Field(
        description="draw new initial states for each generation (nelder_mead: for each new simplex); otherwise always "
        "the same ones"
    )

    @property
    def rows(self) -> int:
        """Rows of the environment: for one candidate at a time, unless an algorithm has a population of them."""
        return self.num_episodes


class Generations(Candidates):
    """For `population`, where every update evaluates the same number of candidates."""

    population: int = Field(ge=2, description="candidates of each generation")

    @property
    def rows(self) -> int:
        return self.population * self.num_episodes


class Fresh(Settings):
    """For `transitions`: single steps, learned from at once and then dropped."""

    num_envs: int = Field(ge=1, description="environments stepped side by side: one step of each per update")


class Replay(Settings):
    """For `replay`: a replay memory of transitions, from which minibatches are drawn."""

    num_envs: int = Field(ge=1, description="environments stepped side by side")
    num_steps: int = Field(ge=1, description="steps of each environment per update")
    gradient_steps: int = Field(ge=1, description="gradient steps per update")
    batch_size: int = Field(
        ge=1,
        description="transitions per minibatch, drawn from the replay memory with replacement for each gradient step",
    )
    capacity: int = Field(
        ge=1, description="most transitions in the replay memory; once it is full, the oldest are overwritten"
    )
    learning_starts: int = Field(ge=0, description="random actions before the first update")


class Either(Segments, Episodes):
    """For an algorithm that learns from segments or from episodes."""

    collect: Literal["auto", "segments", "episodes"] = Field(
        description="what is collected: segments, episodes, or auto: segments in a stepped environment, episodes in a "
        "text task"
    )


class Pairs(Settings):
    """For `pairs`: two completions of each prompt, one of them preferred."""

    num_pairs: int = Field(ge=1, description="pairs of completions per update")


class FreshPairs(Pairs):
    """For an algorithm that learns from `pairs` of a dataset or from `judged` ones."""

    collect: Literal["auto", "pairs", "judged"] = Field(
        description="where pairs come from: a dataset that the frozen initial policy wrote (pairs), or fresh ones of "
        "the policy itself (judged)"
    )


class Texts(Settings):
    """For `labelled` and `checked`: single completions."""

    num_completions: int = Field(ge=1, description="completions per update")
