"""The searches as ask and tell, on functions whose optimum is known, and move by move with numbers derived by hand."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

from pgcli.algorithms.es import ES
from pgcli.algorithms.ga import GA
from pgcli.algorithms.nelder_mead import NelderMead
from pgcli.errors import InputError
from pgcli.experiment.build import build
from pgcli.experiment.config import compose
from pgcli.functional.evolution import antithetic
from pgcli.types import Fitness

CLASSES = {"es": ES, "ga": GA, "nelder_mead": NelderMead}


class Point(nn.Module):
    """Parameters, and nothing else."""

    def __init__(self, *start):
        super().__init__()
        self.first = nn.Parameter(torch.tensor(start[:1], dtype=torch.float32))
        self.rest = nn.Parameter(torch.tensor(start[1:], dtype=torch.float32))

    @property
    def place(self):
        return parameters_to_vector(self.parameters()).detach()


def search(name, start, *words, seed=0):
    policy = Point(*start)
    return CLASSES[name](policy, settings(name, *words), total_steps=300, seed=seed), policy


@cache
def settings(name, *words):
    return compose([f"algo={name}", "tuned=none", *(f"algo.{word}" for word in words)]).algo


def told(returns):
    return Fitness(torch.as_tensor(returns, dtype=torch.float64), steps=1, episodes=[])


def climb(algorithm, function, generations):
    for _ in range(generations):
        people = algorithm.behaviour().candidates
        algorithm.update(told([function(x.double().numpy()) for x in people]))


def hill(x):
    return -((x[0] - 1) ** 2) - 4 * (x[1] + 2) ** 2


def rosenbrock(x):
    return -(100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2)


# ---------------------------------------------------------------- evolution strategies


def test_es_climbs_a_hill():
    words = ("population=16", "noise_std=0.1", "learning_rate=0.05", "weight_decay=0", "schedule=linear")
    for utilities in ("centred_ranks", "returns"):
        algorithm, policy = search("es", (2.5, -1), *words, f"utilities={utilities}")
        climb(algorithm, hill, 300)
        assert policy.place.tolist() == pytest.approx([1, -2], abs=0.1)


def test_es_asks_for_mirrored_candidates_with_new_noise_each_time():
    algorithm, policy = search("es", (1, 2, 3), "population=6", "noise_std=0.5")
    first, second = algorithm.behaviour().candidates, algorithm.behaviour().candidates
    for people in (first, second):
        torch.testing.assert_close((people[:3] + people[3:]) / 2, policy.place.expand(3, 3))
    assert not torch.equal(first, second)
    torch.testing.assert_close((second[:3] - policy.place) / 0.5, algorithm.noise)


def test_a_plain_step_of_es_is_the_learning_rate_times_what_was_estimated():
    # One pair along eps with F+ = 3, F- = 1, sigma = 1/2: g = (3 - 1) eps / (2 * 1/2) = 2 eps.
    # theta = (1, -1) + 0.1 (2 eps - 0.5 (1, -1)).
    words = ("population=2", "noise_std=0.5", "learning_rate=0.1", "weight_decay=0.5", "optimiser=sgd")
    algorithm, policy = search("es", (1, -1), *words, "utilities=returns")
    algorithm.behaviour()
    eps = algorithm.noise[0].clone()
    algorithm.update(told([3, 1]))
    torch.testing.assert_close(policy.place, torch.tensor([1.0, -1]) + 0.1 * (2 * eps - 0.5 * torch.tensor([1.0, -1])))


def test_what_a_search_says_of_its_candidates():
    returns = [0, 5, 3, 9, 1, 6]  # mean 4, squares of distances 16, 1, 1, 25, 9, 4: their mean is 56/6
    es, _ = search("es", (3, -4), "population=6", "noise_std=0.5", "learning_rate=1e-9", "weight_decay=0")
    es.behaviour()
    said = es.update(told(returns))
    assert said["policy/parameter_norm"] == pytest.approx(5, abs=1e-6)
    assert (said["fitness/mean"], said["fitness/best"]) == (4, 9)
    assert said["fitness/std"] == pytest.approx((56 / 6) ** 0.5)

    ga, _ = search("ga", (0, 0), "population=6", "elites=2")
    ga.candidates = torch.tensor([[0.0, 2], [2, 2], [0, 2], [2, 2], [0, 2], [2, 2]])  # deviations 1 and 0
    said = ga.update(told(returns))
    assert said["policy/spread"] == pytest.approx(0.5)
    assert (said["fitness/mean"], said["fitness/best"]) == (4, 9)
    assert said["fitness/std"] == pytest.approx((56 / 6) ** 0.5)

    simplex, _ = search("nelder_mead", (5, 5), "size=0.5", "tolerance=0.1")
    said = simplex.update(told([-1, -3, -2]))
    assert (said["simplex/diameter"], said["fitness/best"], said["fitness/worst"]) == (0.5, -1, -3)


def test_es_with_adam_moves_every_parameter_by_the_learning_rate_first():
    algorithm, policy = search("es", (1, -1, 3), "population=2", "learning_rate=0.1", "weight_decay=0")
    algorithm.behaviour()
    before, eps = policy.place.clone(), algorithm.noise[0].clone()
    algorithm.update(told([3, 1]))
    torch.testing.assert_close(policy.place, before + 0.1 * eps.sign(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["es", "ga"])
def test_no_increasing_function_of_the_returns_changes_what_ranks_decide(name):
    places = []
    for change in (lambda x: x, lambda x: 1000 + 5 * x, np.exp, lambda x: np.arctan(x) - 3):
        algorithm, policy = search(name, (0.3, 0.4), "population=8")
        climb(algorithm, lambda x, change=change: change(hill(x) / 10), 5)
        places.append(policy.place)
    for place in places[1:]:
        assert torch.equal(place, places[0])


def test_es_refuses_an_odd_population():
    with pytest.raises(InputError, match=r"algo.population.*a multiple of 2"):
        compose(["algo=es", "algo.population=7"])


def test_antithetic_candidates_are_what_es_plays():
    algorithm, policy = search("es", (1, 2), "population=4", "noise_std=0.3")
    people = algorithm.behaviour().candidates
    assert torch.equal(people, antithetic(policy.place, algorithm.noise, 0.3))


# ---------------------------------------------------------------- a genetic algorithm


@pytest.mark.parametrize("words", [(), ("selection=tournament",), ("crossover=0.5",)])
def test_ga_climbs_a_hill(words):
    algorithm, policy = search("ga", (4, 3), "mutation_std=0.1", "initial_std=1", *words)
    climb(algorithm, hill, 60)
    assert policy.place.tolist() == pytest.approx([1, -2], abs=0.15)


def test_elites_go_on_unchanged_and_the_best_is_what_is_evaluated():
    algorithm, policy = search("ga", (0, 0), "population=6", "elites=2")
    assert policy.place.tolist() == algorithm.candidates[0].tolist()  # the policy itself plays in the first generation
    people = algorithm.behaviour().candidates.clone()
    algorithm.update(told([0, 5, 3, 9, 1, 2]))
    assert torch.equal(policy.place, people[3])
    following = algorithm.behaviour().candidates
    assert torch.equal(following[:2], people[[3, 1]])
    assert len(following) == 6


def test_how_the_last_generation_s_elites_do_in_this_one_is_said_once_there_are_some():
    algorithm, _ = search("ga", (0, 0), "population=6", "elites=2")
    assert "fitness/elites" not in algorithm.update(told([0, 5, 3, 9, 1, 2]))
    other, _ = search("ga", (0, 0), "population=6", "elites=2")
    other.load_state_dict(algorithm.state_dict())
    for one in (algorithm, other):
        assert one.update(told([4, 2, 10, 10, 10, 10]))["fitness/elites"] == 3


def test_children_lie_around_the_parents_that_were_selected():
    # Sigma is tiny beside the distances between candidates, so each child's parent is the nearest of them.
    algorithm, _ = search(
        "ga", (0, 0), "population=40", "elites=0", "parents=0.075", "mutation_std=1e-3", "initial_std=10"
    )
    people = algorithm.candidates.clone()
    algorithm.update(told(torch.arange(40)))
    nearest = torch.cdist(algorithm.candidates, people).argmin(1)
    assert set(nearest.tolist()) == {37, 38, 39}
    distances = torch.cdist(algorithm.candidates, people).min(1).values
    assert 0 < distances.max() < 0.01


def test_a_child_of_two_parents_has_each_parameter_of_one_of_them():
    start = range(30)
    algorithm, _ = search("ga", start, "population=20", "elites=0", "parents=0.1", "mutation_std=1e-6", "crossover=1")
    people = algorithm.candidates.clone()
    algorithm.update(told(torch.arange(20)))
    children, parents = algorithm.candidates, people[[18, 19]]
    whose = torch.stack([(children - parent).abs() < 1e-4 for parent in parents])
    assert whose.any(0).all()
    mixed = (~whose[0] & whose[1]).any(1) & (whose[0] & ~whose[1]).any(1)
    assert mixed.sum() >= 4  # half of them have the same parent twice


def test_ga_refuses_a_generation_of_elites_alone():
    with pytest.raises(InputError, match="with 8 elites a population of 8 has no children"):
        compose(["algo=ga", "algo.population=8", "algo.elites=8"])


# ---------------------------------------------------------------- the simplex


def simplex(vertices, losses):
    """A search that stands before its next reflection."""
    algorithm, policy = search("nelder_mead", vertices[0], "adaptive=false", "tolerance=0")
    algorithm.simplex = torch.tensor(vertices, dtype=torch.float64)
    algorithm.losses = torch.tensor(losses, dtype=torch.float64)
    algorithm.asked = algorithm._line("reflect", 1.0)
    return algorithm, policy


# Best (0, 0), then (2, 0), worst (0, 4): the centroid of the first two is (1, 0), so that the points of the line are
#  reflected (2, -4), expanded (3, -8), contracted outside (1.5, -2), contracted inside (0.5, 2); shrunk (1, 0), (0, 2)
TRIANGLE = [[0, 0], [2, 0], [0, 4]]
LOSSES = [1, 2, 5]
REFLECTED, EXPANDED, OUTSIDE, INSIDE = [2, -4], [3, -8], [1.5, -2], [0.5, 2]
MOVES = {
    # losses that are told, one after the other -> the points they are of, and the simplex that is left
    "reflected": ([1.5], [REFLECTED], [[0, 0], REFLECTED, [2, 0]], [1, 1.5, 2]),
    "as good as the best": ([1], [REFLECTED], [[0, 0], REFLECTED, [2, 0]], [1, 1, 2]),
    "expanded": ([0.5, 0.2], [REFLECTED, EXPANDED], [EXPANDED, [0, 0], [2, 0]], [0.2, 1, 2]),
    "expanded in vain": ([0.1, 0.1], [REFLECTED, EXPANDED], [REFLECTED, [0, 0], [2, 0]], [0.1, 1, 2]),
    "contracted outside": ([3, 3], [REFLECTED, OUTSIDE], [[0, 0], [2, 0], OUTSIDE], [1, 2, 3]),
    "as good as the second worst": ([2, 1.5], [REFLECTED, OUTSIDE], [[0, 0], OUTSIDE, [2, 0]], [1, 1.5, 2]),
    "contracted inside": ([5, 4], [REFLECTED, INSIDE], [[0, 0], [2, 0], INSIDE], [1, 2, 4]),
}


@pytest.mark.parametrize(("losses", "points", "left", "values"), MOVES.values(), ids=MOVES)
def test_each_move_of_the_simplex(losses, points, left, values):
    algorithm, policy = simplex(TRIANGLE, LOSSES)
    for loss, point in zip(losses, points, strict=True):
        assert algorithm.behaviour().candidates.tolist() == [point]
        algorithm.update(told([-loss]))
    assert algorithm.simplex.tolist() == left
    assert algorithm.losses.tolist() == values
    assert policy.place.tolist() == left[0]
    assert algorithm.move == "reflect"


@pytest.mark.parametrize(("reflected", "contracted"), [(3, 3.1), (5, 5), (9, 7)])
def test_the_simplex_shrinks_where_contraction_fails(reflected, contracted):
    algorithm, _ = simplex(TRIANGLE, LOSSES)
    algorithm.update(told([-reflected]))
    algorithm.update(told([-contracted]))
    assert algorithm.behaviour().candidates.tolist() == [[1, 0], [0, 2]]
    assert algorithm.simplex.tolist() == TRIANGLE
    algorithm.update(told([-0.5, -3]))
    assert algorithm.simplex.tolist() == [[1, 0], [0, 0], [0, 2]]
    assert algorithm.losses.tolist() == [0.5, 1, 3]


def test_a_simplex_too_small_is_built_anew_around_its_best_vertex():
    algorithm, _ = search("nelder_mead", (5, 5), "size=0.5", "tolerance=0.4", "fresh_seeds=true")
    first = algorithm.behaviour()
    assert first.fresh
    assert first.candidates[0].tolist() == [5, 5]
    assert (first.candidates[1:] - first.candidates[0]).abs().tolist() == [[0.5, 0], [0, 0.5]]
    algorithm.update(told([-1, -3, -2]))
    while algorithm.move != "build":  # as nothing is better, the simplex shrinks to half: 0.25 is below 0.4
        assert not algorithm.behaviour().fresh
        algorithm.update(told([-9] * len(algorithm.behaviour().candidates)))
    again = algorithm.behaviour()
    assert again.fresh
    assert again.candidates[0].tolist() == [5, 5]
    assert (again.candidates[1:] - again.candidates[0]).abs().tolist() == [[0.5, 0], [0, 0.5]]
    algorithm.update(told([-7, -3, -4]))
    assert algorithm.losses.tolist() == [3, 4, 7], "the best vertex was evaluated anew"


def test_new_initial_states_are_drawn_for_a_new_simplex_only():
    algorithm, _ = search("nelder_mead", (5, 5), "size=1", "tolerance=0.1", "fresh_seeds=true")
    algorithm.update(told([-1, -3, -2]))
    for loss in (4, 2.5, 1.5):
        assert not algorithm.behaviour().fresh
        algorithm.update(told([-loss] * len(algorithm.behaviour().candidates)))
    kept, _ = search("nelder_mead", (5, 5), "fresh_seeds=false")
    assert not kept.behaviour().fresh


@pytest.mark.parametrize("adaptive", ["false", "true"])
def test_the_simplex_walks_along_rosenbrock_s_valley(adaptive):
    algorithm, policy = search("nelder_mead", (-1.2, 1), "size=0.5", "tolerance=1e-5", f"adaptive={adaptive}")
    climb(algorithm, rosenbrock, 300)
    assert policy.place.tolist() == pytest.approx([1, 1], abs=1e-3)
    assert -float(algorithm.losses[0]) == pytest.approx(0, abs=1e-6)


def test_adaptive_coefficients_are_those_of_the_number_of_parameters():
    # n = 20: expansion 1 + 2/n, contraction 3/4 - 1/(2n), shrinkage 1 - 1/n (Gao & Han 2012, section 2).
    found = search("nelder_mead", [1.0] * 20, "adaptive=true")[0].coefficients
    assert tuple(found) == pytest.approx((1, 1.1, 0.725, 0.95))
    assert tuple(search("nelder_mead", [1.0] * 20, "adaptive=false")[0].coefficients) == (1, 2, 0.5, 0.5)


def test_adaptive_coefficients_find_the_bottom_of_a_bowl_of_many_dimensions():
    algorithm, policy = search("nelder_mead", [1.0] * 20, "size=0.5", "tolerance=1e-4", "adaptive=true")
    climb(algorithm, lambda x: -float((x**2).sum()), 4000)
    assert policy.place.abs().max() < 0.02


def test_more_than_fifty_parameters_are_refused_with_what_would_fit():
    with pytest.raises(InputError, match=r"at most 50 parameters, this policy has 4,610; policy=linear .* algo=es"):
        build(compose(["algo=nelder_mead", "policy=mlp", "device=cpu"]))


def test_a_linear_policy_is_the_simplex_s_own_choice_unless_another_is_named():
    assert compose(["algo=nelder_mead"]).choices["policy"] == "linear"
    assert compose(["algo=nelder_mead", "policy=rule"]).choices["policy"] == "rule"
    assert compose(["algo=es"]).choices["policy"] == "mlp"


# ---------------------------------------------------------------- stopped and resumed


@pytest.mark.parametrize("name", CLASSES)
def test_a_search_goes_on_from_its_state_after_any_update(name):
    words = {"es": ("population=4",), "ga": ("population=5", "crossover=0.5"), "nelder_mead": ()}[name]
    straight, _ = search(name, (-1.2, 1), *words)
    moves = set()
    for _ in range(60):
        other, policy = search(name, (-1.2, 1), *words, seed=99)
        with torch.no_grad():
            for own, theirs in zip(policy.parameters(), straight.policy.parameters(), strict=True):
                own.copy_(theirs)
        other.load_state_dict(straight.state_dict())
        assert torch.equal(other.behaviour().candidates, straight.behaviour().candidates)
        returns = told([rosenbrock(x.double().numpy()) for x in straight.behaviour().candidates])
        if name == "nelder_mead":
            moves.add(straight.move)
            other.update(returns)
            straight.update(returns)
            assert torch.equal(other.asked, straight.asked)
        else:
            straight.update(returns)
    assert name != "nelder_mead" or {"build", "reflect", "expand", "contract_inside", "contract_outside"} <= moves


# ---------------------------------------------------------------- their task


def learn(name, env, steps, *words):
    parts = build(compose([f"algo={name}", f"env={env}", "policy=linear", "tuned=none", "device=cpu", *words]))
    done = 0
    while done < steps:
        fitness = parts.collector.collect(parts.behaviour())
        parts.algorithm.update(fitness)
        done += fitness.steps
    return parts.policy.sampler()


PROBES = {
    "es": ("algo.num_episodes=8", "algo.noise_std=0.1", "algo.learning_rate=0.05", "algo.schedule=linear"),
    "ga": ("algo.num_episodes=8",),
    "nelder_mead": ("algo.tolerance=1e-3",),
}


@pytest.mark.parametrize("name", CLASSES)
def test_the_better_action_of_each_observation_is_found(name):
    words = (*PROBES[name], "total_steps=6000")
    assert learn(name, "probe_action_reward", 6000, *words).act(np.zeros((1, 1), np.float32), None)[0] == 1
    both = learn(name, "probe_observation_action_reward", 6000, *words)
    assert both.act(np.array([[1], [-1]], np.float32), None)[0].tolist() == [1, 0]


@pytest.mark.parametrize("name", CLASSES)
def test_the_best_real_action_of_each_observation_is_found(name):
    words = (*PROBES[name], "total_steps=30_000")
    one = learn(name, "probe_action_reward_continuous", 30_000, *words)
    assert one.act(np.zeros((1, 1), np.float32), None)[0].item() == pytest.approx(0.5, abs=0.05)
    both = learn(name, "probe_observation_action_reward_continuous", 30_000, *words)
    found = both.act(np.array([[1], [-1]], np.float32), None)[0][:, 0]
    assert found.tolist() == pytest.approx([0.5, -0.5], abs=0.05)


@pytest.mark.parametrize(("name", "policy"), [*((name, "linear") for name in CLASSES), ("es", "rule"), ("ga", "rule")])
def test_cartpole_is_learned(name, policy):
    # 475 is solved; a list of three comparisons seldom gets there, but 150 is no accident.
    enough = 475 if policy == "linear" else 150
    parts = build(compose([f"algo={name}", "env=cartpole", f"policy={policy}", "device=cpu", "seed=1"]))
    steps, best = 0, 0.0
    while steps < 200_000 and best < enough:
        fitness = parts.collector.collect(parts.behaviour())
        parts.algorithm.update(fitness)
        steps += fitness.steps
        if float(fitness.returns.max()) >= enough:
            best = np.mean([e.total for e in parts.evaluator.play(parts.policy, list(range(20)), None).episodes])
    assert best >= enough
