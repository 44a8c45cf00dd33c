"""The lender daemon."""
