"""The testbed `testbed:chain`: chains of modular arithmetic with a pool of known quality.

Small enough to train on two processor cores. It checks the pipeline and the mechanics of the
selectors; it is not evidence about any real language model or data set.
"""

from harness.data.testbed.base import BASES, BaseSpec, train_base
from harness.data.testbed.chains import Verdict, canonical, verify
from harness.data.testbed.pool import (
    CORRECT,
    QUALITY,
    SHARES,
    PoolSpec,
    anti_oracle_order,
    make_pool,
    oracle_order,
)
from harness.data.testbed.tasks import TASKS, check_disjoint, make_queries, make_task
from harness.data.testbed.tokenizer import build_tokenizer

__all__ = [
    "BASES",
    "CORRECT",
    "QUALITY",
    "SHARES",
    "TASKS",
    "BaseSpec",
    "PoolSpec",
    "Verdict",
    "anti_oracle_order",
    "build_tokenizer",
    "canonical",
    "check_disjoint",
    "make_pool",
    "make_queries",
    "make_task",
    "oracle_order",
    "train_base",
    "verify",
]
