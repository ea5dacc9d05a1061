"""The testbed `testbed:chain`: chains of modular arithmetic with a pool of known quality.

Small enough to train on two processor cores. It checks the pipeline and the mechanics of the
selectors; it is not evidence about any real language model or data set.
"""

from harness.data.testbed.base import BASES, BaseSpec, build_tokenizer, train_base
from harness.data.testbed.chains import canonical
from harness.data.testbed.sets import (
    CORRECT,
    QUALITY,
    SHARES,
    TASKS,
    PoolSpec,
    anti_oracle_order,
    check_disjoint,
    make_pool,
    make_queries,
    make_task,
    oracle_order,
)

__all__ = [
    "BASES",
    "CORRECT",
    "QUALITY",
    "SHARES",
    "TASKS",
    "BaseSpec",
    "PoolSpec",
    "anti_oracle_order",
    "build_tokenizer",
    "canonical",
    "check_disjoint",
    "make_pool",
    "make_queries",
    "make_task",
    "oracle_order",
    "train_base",
]
