"""Run `python -m gemma_ft`."""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the program listens, Ctrl-C ends it without a word

    from gemma_ft.cli import main

    sys.exit(main())
