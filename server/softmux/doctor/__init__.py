"""Is this machine ready to serve? Each thing that must be so is looked at, and told with what to do."""

from softmux.doctor.check import Check, worst
from softmux.doctor.checks import examine

__all__ = ["Check", "examine", "worst"]
