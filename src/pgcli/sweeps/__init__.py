"""Many runs from one command line: expanded, scheduled, and recorded so that an interrupted sweep can be resumed."""

from pgcli.sweeps.driver import complete, resume_sweep, sweep
from pgcli.sweeps.ledger import Sweep, Trial

__all__ = ["Sweep", "Trial", "complete", "resume_sweep", "sweep"]
