"""Does it generalize: what happens on a domain that was not trained on, and what it cost on those that were."""
