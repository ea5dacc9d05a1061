"""Do the methods measure what they claim? Studies with a ground truth, on the testbed.

`python -m harness.validation influence` retrains models on parts of a pool and asks how well each
influence method foretold what came out. Retrainings and scores are artefacts in the store: a killed
study continues. What is worth keeping goes to `results/validation/`, and `reports/validation/` is
made from that alone.
"""
