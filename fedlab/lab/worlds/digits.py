"""`Digits`: which digit is this picture? A world that brings its own vectors, so that no text model is needed."""

from __future__ import annotations

import hashlib

from fedlab.lab.extras import need
from fedlab.lab.worlds.answered import Answered


class Digits(Answered):
    """1,797 handwritten digits of 8 by 8 pixels (`sklearn.datasets.load_digits`), 64-dimensional vectors.

    Raises:
        InvalidRequest: If scikit-learn is not installed.

    >>> Digits()
    Digits(1,797 inputs, 10 options, ...)
    """

    def __init__(self) -> None:
        import numpy as np

        data = need("sklearn.datasets", "scikit-learn").load_digits()
        vectors = data.data.astype(np.float16)
        # A picture has no text: its number stands for it.
        inputs = [f"digit {number}" for number in range(len(vectors))]
        answers = [str(target) for target in data.target]
        digest = hashlib.sha256(vectors.tobytes() + bytes(data.target.astype(np.uint8))).hexdigest()
        super().__init__("which digit?", inputs, answers, dict.fromkeys(map(str, range(10)), ""), digest, vectors)
