"""``python -m vmcoal``: the command line."""

from vmcoal.cli.main import run

if __name__ == "__main__":
    run()
