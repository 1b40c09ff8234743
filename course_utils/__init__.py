"""The library that the lessons import: small modules, made to be read."""

from course_utils import threads

threads.prepare()  # before anything else: PyTorch must not be loaded yet
