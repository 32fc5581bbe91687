"""Two releases side by side. `later_release` makes a next release of this code, then the older one."""
