"""The policy that a config chose: checked against the algorithm's needs, initialised, or loaded with parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pgcli.errors import InputError
from pgcli.experiment.config import ExperimentConfig
from pgcli.experiment.sources import Sources, Weights
from pgcli.options import built_in_folder, options
from pgcli.registry import find, has_class
from pgcli.seeding import derive
from pgcli.types import ControlSpec, Needs, Spec, Stochastic


def make_policy(config: ExperimentConfig, spec: Spec, needs: Needs) -> Any:
    """The policy, freshly initialised by the seed."""
    generator = torch.Generator().manual_seed(derive(config.seed, "policy"))
    with _one_thread():
        return _policy_class(config, spec, needs).make(spec, config.policy, needs, generator)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Orthogonal matrices differ in their last bits with the number of threads. `device.threads` is set later, because
    a device is chosen by the size of the policy, and must not decide where training begins.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _policy_class(config: ExperimentConfig, spec: Spec, needs: Needs) -> Any:
    """The chosen policy's class. Raises InputError if it is not what the algorithm needs, or cannot read the task."""
    chosen: Any = find("policy", config.policy.name)
    if _fits(chosen, spec, needs):
        distribution = getattr(config.policy, "distribution", "auto")
        if distribution != "auto" and not (isinstance(needs, Stochastic) or getattr(needs, "stochastic", False)):
            raise InputError(
                f"policy.distribution={distribution} has no effect with algo={config.choices['algo']}, whose policy is "
                "deterministic; try auto"
            )
        return chosen
    known = [name for name in options("policy", [built_in_folder()]) if has_class("policy", name)]
    fitting = [f"policy={name}" for name in known if _fits(find("policy", name), spec, needs) and _is_complete(name)]
    remedy = " or ".join(fitting or [getattr(needs, "otherwise", "another algorithm")])
    algo, env, policy = (f"{group}={config.choices[group]}" for group in ("algo", "env", "policy"))
    if type(needs) not in chosen.offers:
        raise InputError(f"{algo} needs {needs.meaning}, which {policy} does not offer; try {remedy}")
    seen = f"{spec.kinds[0]} of the shape {spec.observation_shape}" if isinstance(spec, ControlSpec) else spec.kinds[0]
    raise InputError(f"{policy} reads {' or '.join(chosen.reads)}, and {env} has {seen}; try {remedy}")


def _is_complete(name: str) -> bool:
    """Whether a built-in option can be typed as it is, and leaves no value to be named (`???`)."""
    return "???" not in (built_in_folder() / "policy" / f"{name}.yaml").read_text("utf-8")


def _fits(policy: Any, spec: Spec, needs: Needs) -> bool:
    return type(needs) in policy.offers and not set(policy.reads).isdisjoint(spec.kinds)


def refers(config: ExperimentConfig) -> bool:
    """Whether there is a reference policy: because the algorithm needs one, or because `reference` names one."""
    algorithm: Any = find("algo", config.algo.name)
    return config.reference is not None or getattr(algorithm, "refers", lambda algo: False)(config.algo)


MAY_BEGIN_ANEW = ("critic", "target_", "head")
"""Beginnings of the names of parameters that the policy one starts from may lack."""


def initialise(policy: Any, weights: Weights, source: str) -> None:
    """Load given parameters; the others keep their initialisation. A policy that can start from another kind of weights
    selects in `adopt` which of them it takes. Raises InputError if they do not fit.
    """
    if weights.foundation is not None and getattr(policy, "foundation", None) not in (None, weights.foundation):
        raise InputError(f"{source}: its adapters belong to another model than {policy.config.path}")
    own, given = policy.state_dict(), weights.state
    if hasattr(policy, "adopt"):
        given = policy.adopt(given)
    else:
        given = {name: value for name, value in given.items() if name in own or not name.startswith("critic")}
    wrong = [f"{name} differs" for name, x in given.items() if name not in own or own[name].shape != x.shape]
    wrong += [f"it has no {name}" for name in own if name not in given and not name.startswith(MAY_BEGIN_ANEW)]
    if wrong or not given:
        raise InputError(
            f"{source}: its policy does not fit this one ({wrong[0] if wrong else 'nothing is the same'}); "
            "train with the same policy and env settings"
        )
    policy.load_state_dict(given, strict=False)


def make_reference(config: ExperimentConfig, spec: Spec, sources: Sources, policy: Any) -> Any:
    """The reference: a frozen policy, that of the run `reference`, or the initial policy.

    A policy that trains few of its parameters offers a `twin`, which copies those and shares the rest.
    """
    if sources.reference is not None:  # it may be of another size
        own = sources.reference.config
        settings = own.policy
        if hasattr(settings, "temperature") and hasattr(config.policy, "temperature"):
            # Of one temperature, or two policies of the same weights would be apart.
            settings = settings.model_copy(update={"temperature": config.policy.temperature})
        choices = config.choices | {"policy": own.choices["policy"]}
        own = own.model_copy(update={"seed": config.seed, "policy": settings, "choices": choices})
        try:
            reference = make_policy(own, spec, Stochastic())
        except InputError as error:
            raise InputError(f"reference={config.reference}: its {error}") from error
        initialise(reference, sources.reference.policy, f"reference={config.reference}")
        return reference.requires_grad_(False)
    twin = policy.twin() if hasattr(policy, "twin") else None
    reference = twin or make_policy(config, spec, Stochastic())
    if sources.init is not None:
        initialise(reference, sources.init, f"init={config.init}")
    return reference.requires_grad_(False)
