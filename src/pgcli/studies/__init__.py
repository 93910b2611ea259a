"""Named studies: what is run, what others published, and how the two compare. `conf/experiment/<name>.yaml` is one."""

from pgcli.studies.definition import Study, load, names
from pgcli.studies.outcome import Reproduction
from pgcli.studies.reproduction import reproduce

__all__ = ["Reproduction", "Study", "load", "names", "reproduce"]
