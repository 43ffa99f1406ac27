"""A page to look at solutions token by token."""
