import numpy as np
from numpy.typing import NDArray

from dagsched.partition.arrays import Float64
from dagsched.plan import Int32, Int64

def stages(deps: Int32, tasks: Int64, crosses: NDArray[np.bool_], stage: Int64) -> None: ...
def levels(deps: Int32, tasks: Int64, weights_s: Float64, level: Int32, start: Float64) -> None: ...
