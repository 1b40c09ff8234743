"""What authors and instructors use: the `course` command. The lessons import nothing of it."""
