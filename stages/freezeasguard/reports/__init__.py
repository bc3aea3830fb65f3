"""What people read: tables, figures, the page, and the mirror in MLflow."""
