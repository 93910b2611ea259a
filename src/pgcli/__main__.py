"""`python -m pgcli`: works even where another package owns the command `pgcli`."""

from pgcli.cli import main

if __name__ == "__main__":
    main()
