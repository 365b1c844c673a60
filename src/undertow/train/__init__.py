"""Make it happen: update rules, optimizer front ends, and ensembles of networks trained as one."""

from undertow.train import flows as flows
from undertow.train import optim as optim
from undertow.train import rules as rules
from undertow.train import schedules as schedules
from undertow.train._ensemble import Ensemble as Ensemble
from undertow.train._ensemble import Evaluation as Evaluation
from undertow.train._member import Member as Member

__all__ = ["Ensemble", "Evaluation", "Member", "flows", "optim", "rules", "schedules"]
