"""What images are scored with: one class a score, registered in `registry`."""
