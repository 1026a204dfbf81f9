"""Published baselines with which the papers compare, one file per method."""
