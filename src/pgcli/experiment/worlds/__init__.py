"""The two worlds, control and text, and how each collects for algorithms. The only place that knows both."""

from pgcli.experiment.worlds._world import World as World
from pgcli.experiment.worlds.control import CONTROL
from pgcli.experiment.worlds.text import TEXT

WORLDS = {"control": CONTROL, "text": TEXT}
"""`world` of an environment's class -> World."""
