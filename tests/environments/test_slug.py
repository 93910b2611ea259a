import pytest

from pgcli.environments._slug import slug


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CartPole-v1", "cartpole"),
        ("cartpole", "cartpole"),
        ("acrobot", "acrobot"),
        ("MountainCar-v0", "mountaincar"),
        ("LunarLander-v3", "lunarlander"),
        ("ALE/Pong-v5", "ale_pong"),
        ("my_package:MyEnv-v0", "myenv"),
        ("my_package.envs:space/MyEnv-v12", "space_myenv"),
        ("MiniGrid-Empty-5x5-v0", "minigrid_empty_5x5"),
    ],
)
def test_a_slug_is_the_bare_name_without_module_and_version(name, expected):
    assert slug(name) == expected
