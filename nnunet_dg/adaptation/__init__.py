"""Test-time adaptation: predicting with a trained model that adapts to each volume."""
