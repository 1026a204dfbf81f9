"""A package of other authors, which prints when it is imported, with a trainer class and an object of another type."""

import sys

print("PRINTED ON STDOUT")
print("PRINTED ON STDERR", file=sys.stderr)


class nnUNetTrainerTheirs:
    pass


not_a_class = 3
