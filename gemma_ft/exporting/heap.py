"""Memory that was freed, given back to the system."""

import ctypes
import sys


def trim_heap() -> None:
    """Give freed memory back, where the C library can (glibc).

    It keeps freed blocks below 32 MB for later, and activations and dequantised blocks of many sizes between
    lasting ones leave gaps that nothing fits: with every layer of a large model the process grows a little.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
