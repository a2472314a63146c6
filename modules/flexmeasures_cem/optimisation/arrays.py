"""Names for the types of arrays."""

from typing import Any, cast

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.signedinteger[Any]]
Mask = npt.NDArray[np.bool_]
Numbers = npt.ArrayLike
"""Numbers, or one that holds for all entries of a vector."""


@pyscript_compile
def sums(places: Integers, values: Floats, count: int) -> Floats:
    """Return the sum of the values at each of `count` places."""
    return np.asarray(np.bincount(places, values, count), float)  # numpy declares it as integers


@pyscript_compile
def as_list(vector: Floats) -> list[float]:
    """Return the numbers of a vector."""
    return cast(list[float], vector.tolist())  # numpy declares those of any number of dimensions
