"""Training core of lfd-toolkit. Importing it imports nothing of weight: see the submodules."""

import os

# OpenCV reads these once, when it is loaded: refuse a picture that would fill the memory before it is decoded
# (lfd.data.base says how many pixels), and leave it to our errors to speak, in one line.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 28))
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
# ONNX Runtime reports models and sessions to its maker (on Linux since 1.31), with an identifier of the machine.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
