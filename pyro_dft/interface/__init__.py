"""What a user holds, written once for both frameworks: train, draw, save, report."""
