"""``python tether.py PARENT SIGNAL PROGRAM [ARGUMENT...]``: become a program that dies with PARENT.

Run as a file, by an interpreter that imports nothing else: this costs each job some milliseconds.
The kernel (Linux) signals the program when the thread ends that started this, however that comes.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent, number = int(sys.argv[1]), int(sys.argv[2])
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel was told
        sys.exit("dask-batch: the client has ended")
    try:
        os.execvp(sys.argv[3], sys.argv[3:])
    except OSError as error:
        sys.exit(f"dask-batch: {sys.argv[3]} cannot be run: {error.strerror}")
