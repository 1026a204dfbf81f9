"""Another package, which prints as it is imported, declares a class and something that is not one."""

import sys

print("PRINTED ON STDOUT")
print("PRINTED ON STDERR", file=sys.stderr)


class nnUNetTrainerTheirs:
    pass


not_a_class = 3
