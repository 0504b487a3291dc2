"""From photos and masks to a trained, tested and exported network, and a report of it."""
