from pgcli.seeding import derive, episode_seeds, numpy_generator


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
