"""Configurations as people keep them, read into one form and written back in their own."""

from undertow.apply.rescaling.configs._job import Job as Job
from undertow.apply.rescaling.configs._plan import Plan as Plan
from undertow.apply.rescaling.configs._read import read as read
