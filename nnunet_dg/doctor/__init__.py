"""Checks of an installation and of a dataset, for `nnunet-dg doctor`."""
