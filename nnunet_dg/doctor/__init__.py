"""Checks of the installation and of a dataset, for `nnunet-dg doctor`."""
