"""Training of the extractor `synthetic` on generated volumes."""
