"""What the trainers and planners share. The only package of the library that imports nnunetv2."""
