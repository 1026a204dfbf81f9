"""`nnunet-dg demo`: a small domain shift, nnU-Net's own commands on it, and what the shift costs each trainer."""
