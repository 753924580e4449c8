"""Words of an executor's status block, which its broker reads (and writes STOP). Pure.

RUNNING is the bundle in hand, from its coming until its results are sent (0: none). POSITION is the
task whose code runs, or whose result is being pickled; IDLE_POSITION: none, or one of several;
AWAITING_POSITION: none, while values of another lane are awaited.
STARTED is when that began (monotonic ns). LATEST is the bundle that was RUNNING last: who has ended
one, and been told of no other yet, has not left it out.
Words of TAKEN_BACK name bundles that were sent and shall not be begun: the broker sets one that is
0, the executor makes it 0 when it has left the bundle out.
"""

RUNNING, POSITION, STOP, STARTED, LATEST = range(5)

TAKEN_BACK = range(5, 8)

IDLE_POSITION = -1
AWAITING_POSITION = -2
