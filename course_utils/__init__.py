"""The small library that the lessons import."""

from course_utils import threads

threads.prepare()  # before anything else: PyTorch must not be loaded yet
