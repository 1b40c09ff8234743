"""JAX, which compiles a whole function for CPU, GPU or TPU. It has no row in the table: here it trains."""

from pathlib import Path

from course_utils.engines.entry import Engine

ENGINE = Engine(
    Path(__file__).parent, "JAX: one step of a distillation, compiled by XLA for whatever device there is",
    place=110, borrows=True, megabytes=408)
