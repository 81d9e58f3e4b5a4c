"""Faults on purpose: runs that are killed, disks that fill, files that are damaged. See `__main__`."""
