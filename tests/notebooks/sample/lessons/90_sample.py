# %% [markdown] name="title"
# # A sample
#
# You measure a sample,
# and nothing else.
#
# A third paragraph.

# %% name="imports"
import sys
import time

sys.path.insert(0, "..")
import sample_library

from course_utils import checking

checking.MODULES["sample"] = "sample_exercises"
print("using", PROFILE, DEVICE, LM or "the embedded model")

# %% [markdown] name="predict"
# How many bytes do 1000 floats take?

# %% name="predict-bytes" predict="sample.bytes" points=1
### BEGIN SOLUTION
prediction = 4e3  # bytes
### END SOLUTION

# %% name="ex-halve" exercise="sample_library:halve" points=2

# %% name="ex-counter" exercise="sample_library:Counter"

# %% name="ex-double" exercise="inline" points=3
def double(x):
    """Twice `x`."""
    ### BEGIN SOLUTION
    return x + x
    ### END SOLUTION


# %% name="measured" tolerance=0.02
print(f"mean {sum(sample_library.halve([1.0, 4.0])) / 2:.3f} over  {2} values", file=sys.stdout)
print("loading", file=sys.stderr)

# %% name="timed" timing=true
print(f"now {time.time()}")

# %% name="result"
{"size": 3}

# %% name="picture"
import matplotlib.pyplot as plt

from course_utils import plots

fig, ax = plt.subplots(figsize=(2, 1))
ax.plot([1, 2])
plots.show(fig, "A line that rises from one to two.")

# %% [markdown] name="recap"
# That was all.
