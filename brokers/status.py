"""Words of an executor's status block, which its broker reads (and writes STOP). Pure.

RUNNING is the bundle in hand, from its coming until its results are sent (0: none). POSITION is the
task whose code runs, or whose result is being pickled; IDLE_POSITION: none, or one of several.
"""

RUNNING, POSITION, STOP, STARTED, DONE_COUNT = range(5)

IDLE_POSITION = -1
