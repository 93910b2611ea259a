"""The shared types: specs of environments, what collectors return, the protocols of algorithms and policies.

Shapes: N rows (environments or completions), T actions (steps or tokens), right-padded. (N, T) everywhere.
Import them from here.
"""

from pgcli.types.algorithm import Algorithm, Collector
from pgcli.types.environment import (
    Comparing,
    Completing,
    Continuous,
    ControlSpec,
    Discrete,
    Limiting,
    Replying,
    Revising,
    Spec,
    Step,
    TextSpec,
    TextTask,
    VectorEnvironment,
    Written,
)
from pgcli.types.experience import (
    Checked,
    Completions,
    Fitness,
    Gradients,
    Labelled,
    OfTexts,
    Population,
    Preferences,
    Replay,
    Steps,
    Transitions,
)
from pgcli.types.policy import (
    Acting,
    ActionTable,
    ActionValues,
    ActorCritics,
    ActorWithQ,
    Distribution,
    Drawn,
    Evaluation,
    Memoryless,
    Needs,
    Policy,
    PolicyFunction,
    Scores,
    Stochastic,
)
from pgcli.types.rollout import Batch, Episode, Rollout, Sample
from pgcli.types.tree import ABSENT, Appended, Metrics, Observations, State, each_tensor
