"""The sections of a report's page, in words."""
