"""Local SGD: workers that take steps on their own and are averaged now and then."""

from undertow.train.local_sgd._local_sgd import LocalSGD as LocalSGD
from undertow.train.local_sgd._meeting import WorkerLost as WorkerLost
from undertow.train.local_sgd._outer import Outer as Outer
from undertow.train.local_sgd._partition import partition as partition
from undertow.train.local_sgd._report import LocalReport as LocalReport
from undertow.train.local_sgd._rounds import Rounds as Rounds
from undertow.train.local_sgd._workers import Workers as Workers

__all__ = ["LocalReport", "LocalSGD", "Outer", "Rounds", "WorkerLost", "Workers", "partition"]
