"""Reports of sweeps: tables, charts and paired comparisons along each axis."""
