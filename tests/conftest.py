"""What holds for all tests, whichever process runs them."""

import os

os.environ.pop("COLUMNS", None)  # xdist's workers have one, and tables would be as narrow as that
