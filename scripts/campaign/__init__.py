"""Inject faults: kill runs, fill disks, damage files; see `__main__`."""
