"""First on the path of the random run's processes: their clock can be moved through a file."""

from tests.faults.harness.moved_clock import install

install()
