"""Planning: memory of methods, and preprocessed data that plans share."""
