"""A world: how its environments are made and evaluated, and its collectors by the algorithm's way of collecting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pgcli.collectors.episodes import EpisodeCollector, Player
from pgcli.collectors.informative import InformativeGroups
from pgcli.experiment.config import ExperimentConfig
from pgcli.types import Collector


@dataclass(frozen=True)
class World:
    """How environments of one world are made, and how data are collected in them."""

    unit: str
    make: Callable[[Any, ExperimentConfig, int], Any]
    rows: Callable[[ExperimentConfig, str], int]
    evaluator: Callable[[Any, ExperimentConfig, Any, torch.device], Player]
    close: Callable[[Any, Any], None]
    collectors: dict[str, Callable[[Any, ExperimentConfig, torch.device], Collector]]
    comparing: dict[str, Callable[[Any, ExperimentConfig, torch.device, Any], Collector]]
    """Collectors that need a frozen policy, their last argument."""

    @property
    def offers(self) -> list[str]:
        return [*self.collectors, *self.comparing]


def whole(player: Callable[[Any, ExperimentConfig, torch.device], Player], *, grouped: bool) -> Any:
    """A collector of whole episodes by a world's player: single ones, or groups."""

    def collector(environment: Any, config: ExperimentConfig, device: torch.device) -> Collector:
        algo: Any = config.algo
        groups, size = (algo.num_groups, algo.group_size) if grouped else (algo.num_episodes, 1)
        episodes = EpisodeCollector(
            player(environment, config, device), num_groups=groups, group_size=size, seed=config.seed
        )
        polls = getattr(algo, "max_polls", 1)
        return episodes if polls == 1 else InformativeGroups(episodes, num_groups=groups, max_polls=polls)

    return collector
