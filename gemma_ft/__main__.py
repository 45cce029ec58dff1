"""Run `python -m gemma_ft`."""

import signal
import sys

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback before the program listens

    from gemma_ft.cli import main

    sys.exit(main())
