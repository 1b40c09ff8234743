"""What authors and instructors use: the `course` command. The lessons import nothing of it."""

import course_utils  # noqa: F401 - before any tool imports torch: it settles how threads wait
