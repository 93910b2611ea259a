import numpy as np
import pytest

from pgcli.seeding import derive, episode_seeds, mix, numpy_generator, uniforms


def test_an_episode_s_seed_is_that_of_its_number_whichever_way_it_is_asked_for():
    assert episode_seeds(3, "train", range(2, 5)) == [derive(3, "train", n) for n in (2, 3, 4)]


def test_seeds_differ_between_runs_streams_and_episodes():
    seeds = {derive(run, stream, n) for run in range(5) for stream in ("train", "evaluate") for n in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_seeds_are_the_same_on_every_machine():
    # blake2b("0/train/0", 4 bytes), little-endian, 31 bits: by `printf 0/train/0 | b2sum -l 32`.
    assert derive(0, "train", 0) == 473125581


def test_generators_of_one_purpose_are_equal_and_of_two_are_not():
    assert numpy_generator(1, "actions").random() == numpy_generator(1, "actions").random()
    assert numpy_generator(1, "actions").random() != numpy_generator(1, "policy").random()


def test_the_hash_is_splitmix64():
    # The generator's first two outputs from the state 0, as published with it.
    states = np.array([0, 0x9E3779B97F4A7C15], dtype=np.uint64)
    assert mix(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_keyed_uniforms_are_a_function_of_their_key_and_place_alone():
    keys = np.arange(1000, dtype=np.uint64)
    assert np.array_equal(uniforms(keys, 40)[[7, 3]], uniforms(keys[[7, 3]], 40))
    assert np.array_equal(uniforms(keys, 40)[:, :5], uniforms(keys, 5))


def test_keyed_uniforms_are_uniform_and_independent():
    # 40,000 numbers. Mean 1/2 with standard error 0.0014, variance 1/12 with 0.00037, correlations with 0.005: 4 each.
    x = uniforms(np.arange(1000, dtype=np.uint64), 40)
    assert x.min() > 0
    assert x.max() < 1
    assert x.mean() == pytest.approx(0.5, abs=0.006)
    assert x.var() == pytest.approx(1 / 12, abs=0.0015)
    for a, b in ((x[:, 1:], x[:, :-1]), (x[1:], x[:-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02
