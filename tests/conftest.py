"""What holds for every test."""

import os

# Set before torch is imported, inherited by what tests start. With more threads per process than
# cores, idle threads spin and tests take up to fifty times as long; a test that is about threads
# sets their number itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")
