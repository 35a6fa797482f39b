"""On a CPU, a process keeps the memory it has freed: what one step gives back, the next one asks for again.

glibc maps memory anew for every tensor of more than 32 MiB and gives it back to the system at once, with whatever is
free at the end of the heap. The system clears each of these pages at its next touch: 78,000 of them in a step of
training a model of 26 M parameters (16 rows of 128), a tenth of its time, and more on a virtual machine whose host has
to find the page first. The process holds 2 or 3 % more at its peak (rows of 16 to 256 tokens, batches of 1 to 16), and
as much between the peaks. https://man7.org/linux/man-pages/man3/mallopt.3.html
"""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # as malloc.h numbers them


def keep_freed() -> bool:
    """Whether freed memory stays with this process from now on: glibc can be told so, other allocators are left alone.

    Where another one is loaded in front of glibc's (LD_PRELOAD), this changes nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl; Windows
        return False
    return mallopt(M_MMAP_MAX, 0) == 1 and mallopt(M_TRIM_THRESHOLD, -1) == 1
