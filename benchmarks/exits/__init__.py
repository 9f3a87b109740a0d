"""What early exit costs and saves in seconds, beside the plain student."""
