import os
import sys

from trdlib.ops.cli import main

try:
    try:
        status = main()
    finally:  # after `--help` too
        sys.stdout.flush()
except BrokenPipeError:  # nobody reads on, as behind `| head`
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    status = 141  # as of a program that the signal has ended
sys.exit(status)
