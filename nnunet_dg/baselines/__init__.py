"""Published baselines that the papers compare with, one page each."""
