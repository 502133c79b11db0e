"""Tables and figures, for model cards and reports."""
