"""Losses on preferences: on pairs, the preferred completion before the rejected one, or on single labelled completions.

A reward model scores both completions of a pair; a policy is its own reward model, up to a constant per prompt
(Rafailov et al. 2023, eq. 5):

        log_ratio(y) = log pi(y | x) - log ref(y | x)          summed over y's tokens
        r(x, y)      = beta * log_ratio(y)                      the implicit reward

Every loss is one number per pair, (B,), to be averaged. The log-probs are *sums* over tokens unless a function says
`averaged`: then they are divided by the completion's length. The choice matters: averaged, a pair of long completions
needs a larger difference to count as much.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

SMALLEST = 1e-6
"""Log-probs above minus this are clamped to it before odds are taken: the odds of certainty are infinite."""


def bradley_terry(chosen: Tensor, rejected: Tensor, *, margin: float | Tensor = 0.0, centring: float = 0.0) -> Tensor:
    """The negative log-likelihood that the preferred completion wins, if scores are log-strengths.

        P(chosen beats rejected) = sigmoid(s_chosen - s_rejected)
        L = -log sigmoid(s_chosen - s_rejected - margin) + centring * (s_chosen + s_rejected)^2

    The likelihood does not change when a constant is added to all scores of a prompt; `centring` keeps them near zero
    without affecting their difference.

    Args:
        chosen, rejected: (..., B), scores. `margin`: must be exceeded by their difference; the same shape or a number.

    Returns: the same shape. Source: Bradley & Terry 1952; margin: Touvron et al. 2023, eq. 2; centring: Eisenstein et
    al. 2023, as TRL's `center_rewards_coefficient`.
    """
    return -logsigmoid(chosen - rejected - margin) + centring * (chosen + rejected).square()


def dpo(chosen: Tensor, rejected: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Direct preference optimisation: Bradley-Terry of the implicit rewards.

        h = beta * (log_ratio_chosen - log_ratio_rejected)
        L = -(1 - label_smoothing) log sigmoid(h) - label_smoothing log sigmoid(-h)

    With smoothing it is conservative DPO: a share `label_smoothing` of labels is taken to be wrong, and the loss has
    its minimum at a finite h = log((1 - label_smoothing) / label_smoothing).

    Args:
        chosen, rejected: (B,), log-ratios to the reference; with averaged ones it is length-normalised DPO.

    Returns: (B,). Source: Rafailov et al. 2023, eq. 7; smoothing: Mitchell 2023, a note on cDPO.
    """
    h = beta * (chosen - rejected)
    return -(1 - label_smoothing) * logsigmoid(h) - label_smoothing * logsigmoid(-h)


def ipo(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Identity preference optimisation: the margin of log-ratios is regressed on a finite number.

        L = (log_ratio_chosen - log_ratio_rejected - 1 / (2 beta))^2

    If the preferred completion always wins, DPO's margin grows for ever; this one converges to 1 / (2 beta).

    Args:
        chosen, rejected: (B,), log-ratios to the reference. The paper's are sums over tokens; averaged ones, as in TRL,
            make it another loss, whose margin is in nats *per token*.

    Returns: (B,). Source: Azar et al. 2023, eq. 17, where beta is tau.
    """
    return (chosen - rejected - 1 / (2 * beta)).square()


def simpo(chosen: Tensor, rejected: Tensor, *, beta: float, gamma: float) -> Tensor:
    """Simple preference optimisation: the averaged log-prob is the reward; there is no reference.

        L = -log sigmoid(beta * (a_chosen - a_rejected) - gamma),   a(y) = log pi(y | x) / |y|

    Args:
        chosen, rejected: (B,), log-probs averaged over tokens. `gamma`: margin of the rewards.

    Returns: (B,). Source: Meng et al. 2024, eq. 6.
    """
    return -logsigmoid(beta * (chosen - rejected) - gamma)


def log_odds(averaged: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(log pi(y | x) / |y|), the probability of a completion's average token.

    Args:
        averaged: (B,), log-probs averaged over tokens, below zero.

    Returns: (B,). Source: Hong et al. 2024, eq. 4.
    """
    averaged = averaged.clamp(max=-SMALLEST)
    return averaged - torch.log(-torch.expm1(averaged))


def odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """The penalty of odds-ratio preference optimisation (ORPO), to be added to the preferred completion's NLL.

        L = -log sigmoid(log odds(chosen) - log odds(rejected))

    Args:
        chosen, rejected: (B,), log-probs averaged over tokens, below zero.

    Returns: (B,). Source: Hong et al. 2024, eq. 7. There is no reference.
    """
    return -logsigmoid(log_odds(chosen) - log_odds(rejected))


def apo_zero(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Anchored preference optimisation: makes the preferred completion likelier than under the reference, the rejected
    one rarer. For pairs whose preferred completion is better than the policy's own.

        L = 1 - sigmoid(beta log_ratio_chosen) + sigmoid(beta log_ratio_rejected)

    Args:
        chosen, rejected: (B,), log-ratios to the reference.

    Returns: (B,). Source: D'Oosterlinck et al. 2024, plus 1.
    """
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Anchored preference optimisation: makes both completions rarer, the rejected one more so. For pairs whose
    preferred completion is worse than the policy's own.

        L = sigmoid(beta log_ratio_chosen) + 1 - sigmoid(beta (log_ratio_chosen - log_ratio_rejected))

    Args:
        chosen, rejected: (B,), log-ratios to the reference.

    Returns: (B,). Source: D'Oosterlinck et al. 2024, plus 1.
    """
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))


def kto(
    log_ratios: Tensor, desirable: Tensor, reference_point: Tensor, *,
    beta: float, desirable_weight: float = 1.0, undesirable_weight: float = 1.0,
) -> Tensor:  # fmt: skip
    """Kahneman-Tversky optimisation: gains and losses relative to a reference point, from labels of single completions.

        v = w_d sigmoid(beta (log_ratio - z))   if desirable        L = w_d - v
        v = w_u sigmoid(beta (z - log_ratio))   if not              L = w_u - v

    Args:
        log_ratios: (N,), to the reference. desirable: (N,) bool. reference_point: z, a scalar, see below.

    Returns: (N,). Source: Ethayarajh et al. 2024, eq. 8.
    """
    gain = log_ratios - reference_point
    return torch.where(
        desirable, desirable_weight * torch.sigmoid(-beta * gain), undesirable_weight * torch.sigmoid(beta * gain)
    )


def kto_reference_point(mismatched: Tensor) -> Tensor:
    """z of `kto`: how far the policy has moved from the reference, estimated on completions of *other* prompts.

        z = max(0, mean log pi(y' | x) / ref(y' | x)),   y' written for another prompt than x

    Completions of the same prompt are pushed up and down by the loss, and would move the point with them. The point is
    only compared with: no gradient flows into it.

    Args:
        mismatched: (N,), log-ratios of the mismatched pairs.

    Returns: a scalar. Source: Ethayarajh et al. 2024, section 4.1.
    """
    return mismatched.detach().mean().clamp(min=0)


def correctness(scores: Tensor, right: Tensor) -> Tensor:
    """The cross-entropy of sigmoid(score) as the probability that a completion, or a step of one, is right.

        L = -y log sigmoid(s) - (1 - y) log sigmoid(-s)

    Args:
        scores: any shape. right: y, the same shape or one that broadcasts, 0 or 1 (or a probability).

    Returns: the shape of `scores`. Source: Cobbe et al. 2021 (outcomes); Lightman et al. 2023 (steps).
    """
    return -right * logsigmoid(scores) - (1 - right) * logsigmoid(-scores)
