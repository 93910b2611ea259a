"""One file-name-safe word for an environment: run directories and `conf/tuned/<algo>_<slug>.yaml` are named by it."""

import re


def slug(name: str) -> str:
    """`CartPole-v1` and `cartpole` -> `cartpole`, `ALE/Pong-v5` -> `ale_pong`, `my_package:MyEnv-v0` -> `myenv`.

    The version goes, and so does the module to import: settings that suit one version suit the next. Pass the Gymnasium
    id where there is one, so that an option's file name and the bare id agree.
    """
    bare = re.sub(r"-v\d+$", "", name.rpartition(":")[2])
    return re.sub(r"[^a-z0-9]+", "_", bare.lower()).strip("_")
