"""Do the suite's own statistics keep their word? Simulated tables whose truth is known.

`python -m harness.studies statistics` asks of every method how often its 95% interval holds the
truth, how often it finds a difference between equal methods, and whether the formulas for power
give the power they promise. Counts go to `results/validation/statistics/`, one line per point as it
is finished: a killed study continues. `reports/validation/statistics.*` is made from these alone.
Nothing here imports torch.
"""
