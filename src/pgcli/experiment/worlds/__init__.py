"""The two worlds, and how each produces what algorithms ask for. The one place that knows both."""

from pgcli.experiment.worlds._world import World as World
from pgcli.experiment.worlds.control import CONTROL
from pgcli.experiment.worlds.text import TEXT

WORLDS = {"control": CONTROL, "text": TEXT}
"""By the `world` of an environment's class."""
