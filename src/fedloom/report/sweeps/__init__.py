"""Reports of sweeps: comparisons along each axis, with everything else equal."""
