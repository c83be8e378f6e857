"""The runtime and the benchmark: numpy, OpenCV and one inference runtime, never torch."""
