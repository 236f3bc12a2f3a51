"""Large memory pages for a process on Linux, where the C library is glibc.

XLA's CPU client allocates a step's temporaries anew in every step, and the system hands them out page by page, zeroed:
12,700 pages of 4 kB for a GPT of 4 layers, 128 wide, a third of the processor's time. Pages of 2 MB are handed out for
a fraction of that. glibc asks for them where an environment variable, read before Python begins, says so.
"""

import os
import sys

VARIABLE = "GLIBC_TUNABLES"
SETTING = "glibc.malloc.hugetlb=1"


def use_large_pages() -> None:
    """Starts this process anew, as the same one, with large pages; not where the environment has a say already."""
    if sys.platform == "linux" and VARIABLE not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, VARIABLE: SETTING})
