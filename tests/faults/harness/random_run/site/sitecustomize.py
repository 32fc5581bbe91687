"""First on the path of the random run's processes: their clock can be moved through a file."""

from tests.faults.harness.random_run.moved_clock import install

install()
