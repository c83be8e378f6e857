"""The runtime and the benchmark: numpy, OpenCV and one inference runtime, never torch."""

import lfd  # noqa: F401  sets OpenCV's limits before it is loaded
