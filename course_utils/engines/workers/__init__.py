"""Scripts that run in an engine's own environment. They import nothing of this course."""
