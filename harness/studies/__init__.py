"""Do the methods measure what they claim? Studies with a ground truth.

`python -m harness.studies influence` retrains the testbed's models on parts of a pool and asks
how well each influence method foretold what came out. Retrainings and scores are artefacts in the
store: a killed study continues. What is worth keeping goes to `results/validation/`, and
`reports/validation/` is made from that alone. `python -m harness.studies statistics` holds the
suite's own intervals and tests against simulated tables (`harness.studies.intervals`).
"""
