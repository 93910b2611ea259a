"""One file-name-safe word for an environment, in the names of run directories and `conf/tuned/<algo>_<slug>.yaml`."""

import re


def slug(name: str) -> str:
    """`CartPole-v1` and `cartpole` -> `cartpole`, `ALE/Pong-v5` -> `ale_pong`, `my_package:MyEnv-v0` -> `myenv`.

    The version and the module to import are removed, because settings for one version suit the next. Pass the Gymnasium
    id if there is one, so that an option's file name and the bare id agree.
    """
    bare = re.sub(r"-v\d+$", "", name.rpartition(":")[2])
    return re.sub(r"[^a-z0-9]+", "_", bare.lower()).strip("_")
