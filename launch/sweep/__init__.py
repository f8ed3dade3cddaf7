"""Many runs of one config that differ in a few keys: the points, where they live, how they run, and the table."""
