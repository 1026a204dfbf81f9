"""Tables, pictures and pages made from scores."""
