"""Tools for authors and instructors: generate, run, verify, grade, bench."""

import course_utils  # noqa: F401 - before any tool imports torch: it settles how threads wait
