"""Named studies: runs, published results, and their comparison. Each is a file `conf/experiment/<name>.yaml`."""

from pgcli.studies.definition import Study, load, names
from pgcli.studies.outcome import Reproduction
from pgcli.studies.reproduction import reproduce

__all__ = ["Reproduction", "Study", "load", "names", "reproduce"]
