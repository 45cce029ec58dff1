"""Run `python -m gemma_ft`."""

import sys

from gemma_ft.cli import main

if __name__ == "__main__":
    sys.exit(main())
