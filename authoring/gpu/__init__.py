"""`course gpu-run`: what a GPU machine can tell, in bounded steps, each result kept as soon as it exists.

A step is a module of this package with

    TITLE = "one line that says what is measured"
    def measure_into(settings, results): ...     # adds rows to a `results.Results`, one after the other

and runs as a process of its own (`python -m authoring.gpu NAME SETTINGS`), so that one that hangs or dies is
a line in the report. `plan.py` names the steps, their order and their limits; `run.py` runs them.
"""
